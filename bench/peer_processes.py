"""The processes of the comparisons with other systems: ours and the peers', each a module that answers in JSON.

The peers live in a virtual environment of their own, ``.venv-peers`` at the root of the checkout with what
``bench/requirements-peers.txt`` names, or in the interpreter that ``FASTNESS_BENCH_PEERS`` names.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PEERS = "FASTNESS_BENCH_PEERS"
"""The environment variable that names another interpreter for the peers."""

_PATIENCE_S = 300
"""How long an answer may take."""
_END_S = 30
"""How long a process may take to end, when nothing comes any more."""
_KEPT = 2000
"""How many characters are kept of what a process said on its way down."""


class ProcessError(Exception):
    """A process could not be started, or failed. What it was and all that it said is in the notes."""


def peers_python() -> str:
    """Give the path of the peers' interpreter, whether it is there or not."""
    return os.environ.get(PEERS) or str(ROOT / ".venv-peers" / "bin" / "python")


class SideProcess:
    """A module of the benchmark in a process of its own.

    The command line has the ``words`` and the ``options`` as JSON; ``under`` is a command that runs another one.
    It is started at once, may say that it is ready, and then answers what it is told, a line of JSON each. It ends by
    itself, or when nothing comes any more.
    """

    def __init__(
        self,
        python: str,
        module: str,
        *words: str,
        options: Mapping[str, Any],
        under: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        if not Path(python).exists():
            raise ProcessError("not installed: there is no environment of the peers")
        self._told = " ".join((module, *words))
        # What it says goes to a file, since a pipe that nobody empties would stop it one day.
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [*under, python, "-m", f"bench.{module}", *words, json.dumps(options)],
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def ask(self, do: str, **details: Any) -> dict[str, Any]:
        """Have it do something, and wait for the answer. Raises ``ProcessError``."""
        self.tell(do, **details)
        return self.answer()

    def tell(self, do: str, **details: Any) -> None:
        """Have it do something; the answer is waited for later. Raises ``ProcessError``."""
        assert self._process.stdin is not None
        try:
            print(json.dumps({"do": do, **details}), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise self._failure() from None

    def answer(self) -> dict[str, Any]:
        """Wait for the next line. Raises ``ProcessError``, also where the line says that something went wrong."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], _PATIENCE_S)[0]:
            raise ProcessError(f"no answer in {_PATIENCE_S} s")
        line = self._process.stdout.readline()
        if not line:
            raise self._failure()
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise ProcessError(f"not installed: {found['error']}" if found["missing"] else found["error"])
        return found

    def last_answer(self) -> dict[str, Any]:
        """Tell it that nothing comes any more, wait for what it says to that, and for its end.

        Raises ``ProcessError``, also where it ends with a status other than 0.
        """
        try:
            self._close()
            found = self.answer()
            self._reap()
            if self._process.returncode != 0:
                raise self._failure()
            return found
        finally:
            self.end()

    def end(self) -> None:
        """Have it end, or end it where it does not in good time. A second time does nothing."""
        self._close()
        self._reap()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()

    def _close(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def _reap(self) -> None:
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _failure(self) -> ProcessError:
        """Tell why it has ended: in short, and what it said before that as a note."""
        self._reap()
        self._errors.seek(0)
        said = self._errors.read()
        lines = said.splitlines()
        last = lines[-1] if lines else "nothing was said"
        missing = last.startswith(("ModuleNotFoundError", "ImportError"))
        ended = f"{self._told} ended with {self._process.returncode}"
        error = ProcessError(f"not installed: {last}" if missing else f"{ended}: {last[:500]}")
        error.add_note(said[-_KEPT:])
        return error
