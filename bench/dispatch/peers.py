"""The systems that the dispatch benchmark holds side by side, each in processes of its own.

A peer that is not there is reported as not installed, never with a figure.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from bench.peer_processes import SideProcess, peers_python

NOT_INSTALLED = "not installed"
CONCURRENCY = 8
SMALLEST_POLL_S = 0.001
"""How often DBOS polls at the most: a queue takes any positive number, its other intervals end here."""

_VERSION = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"


class Side(NamedTuple):
    """One system with its settings."""

    name: str
    python: str
    module: str
    options: Mapping[str, Any]

    def call(self, role: str, url: str, **options: Any) -> dict[str, Any]:
        """Have a fresh process do something, and give its answer."""
        return self._run(role, url, options).last_answer()

    def start(self, role: str, url: str, **options: Any) -> SideProcess:
        """Start a process that says when it is ready."""
        running = self._run(role, url, options)
        running.answer()
        return running

    def _run(self, role: str, url: str, options: Mapping[str, Any]) -> SideProcess:
        return SideProcess(self.python, self.module, role, options={**self.options, **options, "url": url})


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
