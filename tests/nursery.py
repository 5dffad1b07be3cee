"""What the tests see of the mortals: a process that bears them on demand, and all that they say."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from tests.servers.postgres import shared_server

Line = tuple[str, int, str, str]
"""What happened, to whom, in which session, and what: see ``tests.mortals``."""

SHARED = ("postgres", "sqlite")
"""The engines whose databases several processes can share."""


@contextmanager
def database_of(engine: str, directory: Path) -> Iterator[str]:
    """The url of a fresh database that is gone at the end."""
    if engine == "sqlite":
        yield f"sqlite:///{directory}/mortal.db"
        return
    with shared_server().database() as url:
        yield url


class Nursery:
    """The process that the mortals are forked from, and what they say."""

    def __init__(self, url: str) -> None:
        command = [sys.executable, "-m", "tests.mortals", url]
        root = Path(__file__).parents[1]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root, start_new_session=True
        )
        self.heard: list[Line] = []
        self.living: list[int] = []

    def order(self, *words: object) -> int:
        """Have a child born; gives its process id."""
        assert self.process.stdin is not None
        self.process.stdin.write((" ".join(map(str, words)) + "\n").encode())
        self.process.stdin.flush()
        while True:
            line = self.listen()
            if line[0] == "born":
                self.living.append(line[1])
                return line[1]

    def listen(self) -> Line:
        """The next line that anybody says."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        assert line.endswith("\n"), f"the nursery is gone, after {self.heard[-3:]}"
        what, pid, *rest = line.split()
        heard = (what, int(pid), *rest) if rest else (what, int(pid), "-", "-")
        self.heard.append(heard)  # type: ignore[arg-type]
        return self.heard[-1]

    def lines(self) -> Iterator[Line]:
        """Every line from the first on, also those that passed while somebody was born."""
        for at in count():
            while at >= len(self.heard):
                self.listen()
            yield self.heard[at]

    def wait_for(self, pid: int, *kinds: str) -> Line:
        """The next line of one process that is of one of these kinds."""
        while True:
            line = self.listen()
            if line[1] == pid and line[0] in kinds:
                return line

    def wait_for_any(self, kind: str, *pids: int) -> Line:
        """The next line of a kind, of one of these processes where some are named."""
        while True:
            line = self.listen()
            if line[0] == kind and (not pids or line[1] in pids):
                return line

    def kill(self, pid: int) -> None:
        """Kill one child, wherever it is."""
        self.living.remove(pid)
        os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        """Kill all that is left of them, and hear what they said last."""
        for pid in list(self.living):
            self.kill(pid)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        for line in self.process.stdout:
            what, speaker, session_id, text = line.decode().split()
            self.heard.append((what, int(speaker), session_id, text))
        self.process.stdout.close()
        assert self.process.wait(timeout=60) == 0

    def told(self, kind: str, session_id: str) -> list[str]:
        """All that was said of one kind about a session."""
        return [text for what, _, where, text in self.heard if (what, where) == (kind, session_id)]


@contextmanager
def nursery_over(url: str) -> Iterator[Nursery]:
    """A nursery over a database. Whatever happens, nobody outlives the block."""
    made = Nursery(url)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.close()
