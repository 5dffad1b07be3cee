"""What is wanted of the figures. Whether a goal is reached is worked out from what was measured, never written down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from bench.results import Kept, Results, Rounds

ABOUT = 0.25
"""How far from it a figure may lie, as a share, that shall be about something."""

_HOLDS: Mapping[str, Callable[[float, float], bool]] = {
    "≥": lambda value, bound: value >= bound,
    "≤": lambda value, bound: value <= bound,
    ">": lambda value, bound: value > bound,
    "<": lambda value, bound: value < bound,
    "about": lambda value, bound: abs(value / bound - 1) <= ABOUT,
}


class Goal(NamedTuple):
    """A figure of a part, and what is wanted of it. ``note``: why it is not reached, and what would be needed."""

    text: str
    relation: str
    bound: float
    part: str
    figure: str
    unit: str = ""
    note: str = ""

    @property
    def wanted(self) -> str:
        """The bound in words."""
        return f"{self.relation} {self.bound:g}{' ' + self.unit if self.unit else ''}"

    def value(self, results: Results) -> Kept:
        """Give what was measured; None where it was not."""
        part = results.get(self.part)
        return part.figures.get(self.figure) if part else None

    def reached(self, results: Results) -> bool | None:
        """Whether the median is within the bound; None where there is no figure."""
        value = self.value(results)
        if isinstance(value, Rounds):
            value = value.median
        return None if value is None or isinstance(value, str) else _HOLDS[self.relation](value, self.bound)


GOALS = (
    # --- commits ---
    Goal("SQLite: full turn commit, 1 waiter / bare script of the same rows", "≥", 0.8, "commit", "ratio_one_waiter"),
    Goal(
        "SQLite: full turn commit, 64 waiters / one transaction per commit on bare apsw",
        "≥",
        2.5,
        "commit",
        "ratio_many_waiters",
    ),
    Goal("SQLite: p99 of 64 waiters / p99 of 64 callers of the bare script", "≤", 1, "commit", "ratio_p99_many"),
    Goal("SQLite: p99 / p50 under sustained load, 1 waiter", "≤", 6, "load", "ratio_p99_p50"),
    Goal("SQLite: largest log under sustained load", "≤", 64, "load", "largest_wal_mib", "MiB"),
    Goal("SQLite: commit on 100,000 nodes / on 100 nodes", "≤", 1.05, "growth", "ratio"),
    Goal("PostgreSQL: commit, 1 connection / the same work in one function", "≥", 0.9, "fleet", "ratio_1_connection"),
    Goal("PostgreSQL: the same, 8 connections", "≥", 0.7, "fleet", "ratio_8_connections"),
    Goal("PostgreSQL: a commit at 1 ms of round-trip time", "≤", 1.8, "network", "commit_1_ms", "ms"),
    # --- peers ---
    Goal("SQLite: our turn / OpenAI `SQLiteSession`", "≥", 1.2, "peers", "ratio_openai_sqlite"),
    Goal("SQLite: our turn / OpenAI `SQLAlchemySession`", "≥", 6, "peers", "ratio_openai_sqlalchemy_sqlite"),
    Goal("PostgreSQL: our turn / OpenAI `SQLAlchemySession`", "≥", 4, "peers", "ratio_openai_sqlalchemy_postgres"),
    Goal("SQLite: our turn / LangGraph's saver, 400 turns", "≥", 20, "peers", "ratio_langgraph_sqlite_400"),
    Goal("PostgreSQL: our turn / LangGraph's saver, 400 turns", "≥", 40, "peers", "ratio_langgraph_postgres_400"),
    Goal(
        "SQLite: our bytes on disk / LangGraph's, 400 turns",
        "≤",
        round(1 / 30, 4),
        "peers",
        "ratio_langgraph_bytes_sqlite",
    ),
    Goal(
        "PostgreSQL: our bytes on disk / LangGraph's, 400 turns",
        "≤",
        round(1 / 30, 4),
        "peers",
        "ratio_langgraph_bytes_postgres",
    ),
    Goal("SQLite: our turn / Google ADK `DatabaseSessionService`", "≥", 40, "peers", "ratio_adk_sqlite"),
    # --- reading ---
    Goal("SQLite: load of 10,000 nodes / raw rows plus decoding", "≤", 1.2, "reading", "ratio_load_10k"),
    Goal("SQLite: the last 50 of 100,000 messages", "≤", 1, "reading", "last_50_of_100k_ms", "ms"),
    Goal("PostgreSQL: load of 10,000 nodes / raw rows plus decoding", "≤", 1.2, "fleet_reading", "ratio"),
    Goal("A page of 100,000 sessions, the slowest filter", "≤", 5, "listing", "page_filtered_ms", "ms"),
    Goal(
        "Bytes on disk per byte of message, 40,000 messages, after maintenance",
        "≤",
        1.6,
        "size",
        "bytes_per_message_byte_40k",
    ),
    Goal("`import fastness` / `import sqlite3, asyncio, json`", "≤", 2.5, "startup", "ratio_import"),
    Goal("`fastness --help`", "≤", 150, "startup", "help_ms", "ms"),
    Goal("Peak memory of an import, 5 times the file", "about", 1, "import", "ratio"),
    # --- dispatch ---
    Goal("SQLite: from `send` to the handler's first line, p50", "<", 10, "pickup", "ours_sqlite_p50_ms", "ms"),
    Goal("SQLite: the same, p99", "<", 50, "pickup", "ours_sqlite_p99_ms", "ms"),
    Goal("PostgreSQL: from `send` to the handler's first line, p50", "<", 10, "pickup", "ours_postgres_p50_ms", "ms"),
    Goal("PostgreSQL: the same, p99", "<", 50, "pickup", "ours_postgres_p99_ms", "ms"),
    Goal("SQLite: no-op turns / DBOS' queued no-ops, 8 at a time", ">", 1, "turns", "ratio_dbos_sqlite"),
    Goal("PostgreSQL: the same", ">", 1, "turns", "ratio_dbos_postgres"),
    Goal("PostgreSQL: no-op turns / procrastinate's fetch+finish", ">", 1, "turns", "ratio_fetch_finish_postgres"),
    Goal("SQLite: a claim beside a long history / on an empty database", "≤", 1.2, "claims", "sqlite_ratio"),
    Goal("PostgreSQL: the same", "≤", 1.2, "claims", "postgres_ratio"),
    Goal("SQLite: an idle worker, of a core", "<", 1, "idle", "ours_sqlite_percent", "%"),
    Goal("PostgreSQL: the same", "<", 1, "idle", "ours_postgres_percent", "%"),
    # --- attachments ---
    Goal("Attachment of 1 KB / bare write, fsync, rename, fsync", "≤", 1.3, "attachments", "ratio_1_kb"),
    Goal("Attachment of 1 MB / the same bare", "≤", 1.3, "attachments", "ratio_1_mb"),
    Goal("Attachment of 100 MB / the same bare", "≤", 1.3, "attachments", "ratio_100_mb"),
    Goal("Growth of memory by a put of up to 1 GB", "≤", 64, "attachments_memory", "largest_mib", "MiB"),
    Goal("Sweep of orphans beside many committed rows / beside none", "about", 1, "sweeps", "ratio_no_rows"),
    Goal("Sweep beside four times the rows / beside the rows", "about", 1, "sweeps", "ratio_rows"),
    Goal("Sweep of twice the orphans / of the orphans", "about", 2, "sweeps", "ratio_orphans"),
)
"""In the order of the page."""
