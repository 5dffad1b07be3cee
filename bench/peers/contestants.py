"""The contestants of the comparison with the peers: who they are, and the processes that they run in."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from bench.dispatch.peers import ROOT, peers_python

Engine: TypeAlias = Literal["sqlite", "postgres"]

STRACE = shutil.which("strace")
_SYNCS = ("fsync", "fdatasync", "msync")
_PATIENCE_S = 240
_QUIET = {
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "OPENAI_AGENTS_DONT_LOG_MODEL_DATA": "1",
    "LANGSMITH_TRACING": "false",
    "LANGCHAIN_TRACING_V2": "false",
    "OTEL_SDK_DISABLED": "true",
}
"""Nobody tells anybody of what is done here."""


class Side(NamedTuple):
    """One store on one engine. ``name`` is that of its figures, ``title`` is for people."""

    name: str
    title: str
    module: str
    engine: Engine
    options: Mapping[str, Any] = {}
    is_peer: bool = True


_ADK, _GRAPH, _OPENAI = "peers.adk", "peers.langgraph", "peers.openai"

SIDES = (
    Side("ours_sqlite", "ours, SQLite", "peers.ours", "sqlite", is_peer=False),
    Side("bare_sqlite", "bare apsw script, SQLite", "peers.bare", "sqlite", is_peer=False),
    Side("openai_sqlite", "OpenAI `SQLiteSession`", _OPENAI, "sqlite", {"sqlalchemy": False}),
    Side("openai_sqlalchemy_sqlite", "OpenAI `SQLAlchemySession`, SQLite", _OPENAI, "sqlite", {"sqlalchemy": True}),
    Side("langgraph_sqlite", "LangGraph `AsyncSqliteSaver`", _GRAPH, "sqlite", {"delta": False}),
    Side("langgraph_delta_sqlite", "LangGraph `AsyncSqliteSaver`, delta channel", _GRAPH, "sqlite", {"delta": True}),
    Side("adk_sqlite", "ADK `DatabaseSessionService`, SQLite", _ADK, "sqlite"),
    Side("ours_postgres", "ours, PostgreSQL", "peers.ours", "postgres", is_peer=False),
    Side(
        "openai_sqlalchemy_postgres",
        "OpenAI `SQLAlchemySession`, PostgreSQL",
        _OPENAI,
        "postgres",
        {"sqlalchemy": True},
    ),
    Side("langgraph_postgres", "LangGraph `AsyncPostgresSaver`", _GRAPH, "postgres", {"delta": False}),
    Side(
        "langgraph_delta_postgres", "LangGraph `AsyncPostgresSaver`, delta channel", _GRAPH, "postgres", {"delta": True}
    ),
    Side("adk_postgres", "ADK `DatabaseSessionService`, PostgreSQL", _ADK, "postgres"),
)


class ContestantError(Exception):
    """A contestant could not be started, or failed."""


class Running:
    """A contestant in a process of its own. It is started at once, and answers when it is asked."""

    def __init__(self, side: Side, place: str, folder: Path, *, syncs: Path | None = None) -> None:
        self.side = side
        self.place = place
        options = json.dumps({**side.options, "place": place})
        python = peers_python() if side.is_peer else sys.executable
        if not Path(python).exists():
            raise ContestantError("not installed: there is no environment of the peers")
        traced = [STRACE, "-f", "-e", f"trace={','.join(_SYNCS)}", "-o", str(syncs)] if STRACE and syncs else []
        self._errors = (folder / f"{side.name}{'-traced' if syncs else ''}.log").open("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            [*traced, python, "-m", f"bench.{side.module}", options],
            cwd=ROOT,
            env={**os.environ, **_QUIET},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def ask(self, do: str, **details: Any) -> dict[str, Any]:
        """Have it do something, and wait for the answer."""
        self.tell(do, **details)
        return self.answer()

    def tell(self, do: str, **details: Any) -> None:
        """Have it do something; the answer is waited for later."""
        assert self._process.stdin is not None
        try:
            print(json.dumps({"do": do, **details}), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise ContestantError(self._last_words()) from None

    def answer(self) -> dict[str, Any]:
        """Wait for the next line; the first one says that it is ready. Raises ``ContestantError``."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], _PATIENCE_S)[0]:
            raise ContestantError(f"no answer in {_PATIENCE_S} s")
        line = self._process.stdout.readline()
        if not line:
            raise ContestantError(self._last_words())
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise ContestantError(f"not installed: {found['error']}" if found["missing"] else found["error"])
        return found

    def end(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._reap()
        self._errors.close()

    def _reap(self) -> None:
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _last_words(self) -> str:
        self._reap()
        self._errors.seek(0)
        lines = self._errors.read().splitlines()
        said = lines[-1] if lines else "nothing was said"
        missing = said.startswith(("ModuleNotFoundError", "ImportError"))
        return f"not installed: {said}" if missing else f"ended with {self._process.returncode}: {said[:500]}"


def syncs_in(trace: Path) -> int:
    """Count the calls that strace has seen so far."""
    # A call that another thread's line interrupts is told in two lines; only the first has the bracket.
    lines = trace.read_text(encoding="utf-8", errors="replace").splitlines()
    return sum(any(f" {name}(" in line for name in _SYNCS) for line in lines)
