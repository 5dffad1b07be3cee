"""A temporary directory whose servers do not outlive the process that made it, and small helpers to start them."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.servers import keeper
from tests.servers.binaries import account, reachable

PORTS = range(20_000, 32_000)
"""Ports below the range from which outgoing connections get theirs, so that a stopped server finds its port free."""


class Room:
    """A directory in the system's temporary place, kept by a process of its own (see :mod:`tests.servers.keeper`).

    It is owned by the account that runs the servers. :meth:`close` ends what still runs in it and removes it; so does
    the end of this process, even by SIGKILL.
    """

    def __init__(self, prefix: str) -> None:
        base = Path(tempfile.gettempdir())
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=base if reachable(base) else "/tmp"))  # noqa: S108
        self.path.chmod(0o755)
        account().own(self.path)
        self._owner = os.getpid()
        self._keeper: subprocess.Popen[bytes] | None = subprocess.Popen(
            [sys.executable, "-I", "-S", keeper.__file__, str(self.path)], stdin=subprocess.PIPE, start_new_session=True
        )

    def directory(self, name: str) -> Path:
        """A new directory of the account in the room, closed to others."""
        made = self.path / name
        made.mkdir(mode=0o700)
        account().own(made)
        return made

    @property
    def mine(self) -> bool:
        """Whether this process made the room; a forked child leaves it to its parent."""
        return os.getpid() == self._owner

    def close(self) -> None:
        """End what runs in the room and remove it. No-op the second time, and in a forked child."""
        if self._keeper is None or not self.mine:
            return
        self._keeper.communicate(b"!")  # a forked child may hold the pipe open: closing it says nothing
        self._keeper = None
        shutil.rmtree(self.path, ignore_errors=True)


def free_port() -> int:
    """A TCP port of 127.0.0.1 at which nobody listens now."""
    for port in random.sample(PORTS, 200):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port on 127.0.0.1 among 200 tried")


def wait_until(ready: Callable[[], bool], excuse: Callable[[], str], patience_s: float) -> None:
    """Ask every few milliseconds until the answer is yes; TimeoutError with the excuse when it never is."""
    deadline = time.monotonic() + patience_s
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(excuse())
        time.sleep(0.005)
