"""The systems that the dispatch benchmark holds side by side, each in processes of its own.

The peers live in a virtual environment of their own, ``.venv-peers`` at the root of the checkout with what
``bench/requirements-peers.txt`` names, or in the interpreter that ``FASTNESS_BENCH_PEERS`` names. A peer that is not
there is reported as not installed, never with a figure.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PEERS = "FASTNESS_BENCH_PEERS"
"""The environment variable that names another interpreter for the peers."""

NOT_INSTALLED = "not installed"
CONCURRENCY = 8
SMALLEST_POLL_S = 0.001
"""How often DBOS polls at the most: a queue takes any positive number, its other intervals end here."""

_PATIENCE_S = 300
_VERSION = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"


class Side(NamedTuple):
    """One system with its settings."""

    name: str
    python: str
    module: str
    options: Mapping[str, Any]

    def call(self, role: str, url: str, **options: Any) -> dict[str, Any]:
        """Have a fresh process do something, and give its answer."""
        return Running(self, role, url, options).answer()

    def start(self, role: str, url: str, **options: Any) -> Running:
        """Start a process that says when it is ready."""
        running = Running(self, role, url, options)
        running.line()
        return running


class Running:
    """A process of a side."""

    def __init__(self, side: Side, role: str, url: str, options: Mapping[str, Any]) -> None:
        given = json.dumps({**side.options, **options, "url": url})
        self._told = f"{side.name}: {role}"
        self._process = subprocess.Popen(
            [side.python, "-m", f"bench.{side.module}", role, given],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self) -> dict[str, Any]:
        """Wait for the next answer."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.answer()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def answer(self) -> dict[str, Any]:
        """Tell it to end, if it works until it is told to, and give the last answer."""
        try:
            out, errors = self._process.communicate("\n", timeout=_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            out, errors = self._process.communicate()
        if self._process.returncode != 0 or not out:
            raise RuntimeError(f"{self._told} ended with {self._process.returncode}:\n{errors[-2000:]}")
        answer: dict[str, Any] = json.loads(out.splitlines()[-1])
        return answer


def peers_python() -> str:
    """Give the path of the peers' interpreter, whether it is there or not."""
    return os.environ.get(PEERS) or str(ROOT / ".venv-peers" / "bin" / "python")


def version(package: str) -> str | None:
    """Give the version of a peer; None where it is not installed."""
    try:
        found = subprocess.run([peers_python(), "-c", _VERSION, package], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def versions() -> dict[str, str]:
    """Say which peers there are."""
    return {name: version(name) or NOT_INSTALLED for name in ("dbos", "procrastinate")}


def ours(name: str = "ours", *, sessions: int | None = CONCURRENCY) -> Side:
    """Our worker; input goes to so many sessions in turn."""
    return Side(name, sys.executable, "dispatch.ours", {"concurrency": CONCURRENCY, "sessions": sessions})


def dbos(name: str, polling_s: float = 1.0, concurrency: int | None = CONCURRENCY) -> Side:
    """DBOS with a queue that is polled so often, and that gives a worker so many workflows at once."""
    return Side(name, peers_python(), "dispatch.dbos", {"polling_s": polling_s, "concurrency": concurrency})


def procrastinate(name: str, concurrency: int = CONCURRENCY, *, bare: bool = False) -> Side:
    """A worker of procrastinate, or as many bare loops of its fetching and finishing."""
    return Side(name, peers_python(), "dispatch.procrastinate", {"concurrency": concurrency, "bare": bare})


def installed(side: Side) -> bool:
    """Whether a side can be measured here."""
    package = {"dispatch.dbos": "dbos", "dispatch.procrastinate": "procrastinate"}.get(side.module)
    return package is None or version(package) is not None


def settle() -> None:
    """Let the machine come to rest between two measurements."""
    time.sleep(0.5)
