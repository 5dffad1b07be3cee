"""The contestants of the comparison with the peers: who they are, and the processes that they run in."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from bench.peer_processes import SideProcess, peers_python

Engine: TypeAlias = Literal["sqlite", "postgres"]

STRACE = shutil.which("strace")
_SYNCS = ("fsync", "fdatasync", "msync")
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


class Running(SideProcess):
    """A side that takes part, in a process of its own, with its file or database. Its first answer is that it is ready.

    With ``syncs``, strace writes its syncs there, where there is strace.
    """

    def __init__(self, side: Side, place: str, *, syncs: Path | None = None) -> None:
        self.side = side
        self.place = place
        traced = [STRACE, "-f", "-e", f"trace={','.join(_SYNCS)}", "-o", str(syncs)] if STRACE and syncs else []
        super().__init__(
            peers_python() if side.is_peer else sys.executable,
            side.module,
            options={**side.options, "place": place},
            under=traced,
            environment=_QUIET,
        )


def syncs_in(trace: Path) -> int:
    """Count the calls that strace has seen so far."""
    # A call that another thread's line interrupts is told in two lines; only the first has the bracket.
    lines = trace.read_text(encoding="utf-8", errors="replace").splitlines()
    return sum(any(f" {name}(" in line for name in _SYNCS) for line in lines)
