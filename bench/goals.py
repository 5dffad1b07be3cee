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


_COLD = (
    "Of a commit of one waiter about half is COMMIT itself and a sixth the statements, which the script pays as"
    " well. The rest is two changes of thread and Python (stamp, check and encode, decide) that runs two to three"
    " times slower than when it is warm, because it comes after each wait for the disk. The script has none of it:"
    " its rows are encoded before. On a virtual machine the waking of a processor that stands still comes on top,"
    " three times for each commit: beside two loops of the lowest priority that keep the processors awake, the"
    " same commits took a quarter less. Needed: that Python written as native code; the modules compiled as they"
    " stand (Cython, tried once) were no faster that could be told from noise."
)
_WARM = (
    "With many waiters the loop's thread and the writer's take turns under one interpreter lock. Warm, one commit is"
    " about 60 µs of stamping, checking and encoding, 50 of deciding, and 60 of SQLite's own work on the rows, which"
    " the script has as well; waiting for the lock, futures and what is not warm come on top. 256 waiters come"
    " closer, since they share more of the sync. Needed: a third less Python, or no lock."
)
_POSTGRES = (
    "The server spends less on our statements than on the function (about 205 against 245 µs of its processor),"
    " so what is missing is the client: 250 to 320 µs of Python for each commit, in line with the server at one"
    " connection and beside it on the same two cores at eight. Needed: a client of about 65 µs for the first and"
    " 190 µs for the second, that is native code, or cores of its own."
)
_TRIP = (
    "One round trip, which `select 1` beside it pays as well; the server's work and its sync are about half a"
    " millisecond, the client's Python before the last byte goes out the rest."
)
_PEERS = (
    "Our turn writes a checkpoint, usage, the input's settlement and a receipt besides the messages. The bare"
    " script of those rows, in the same rounds, is the most that can be had on this machine; see its row in the"
    " table."
)
_BLOBS = (
    "PostgreSQL compresses the saver's values, although the texts are prose; ours are small rows with indexes,"
    " and what a turn leaves dead is counted until a vacuum."
)
_BODIES = (
    "The rows of the nodes are about 1.3 of it, the log and indexes the rest. Needed: compressed segments of old nodes."
)
_CHECKS = (
    "What is left is the checksum of each node, two more columns for it, and the check that the graph is whole."
    " Rounds differ widely, see the spread."
)
_QUEUE = (
    "procrastinate fetches and finishes a job in two statements. A turn here is a lane's lease, a claim under its"
    " fence, a transcript, a receipt and the next turn's beginning in the same transaction; the client's Python is"
    " the bound."
)
_PUTS = (
    "The work takes what the bare script takes; waking a thread for it and the loop again is a fifth of that. On"
    " the loop's own thread it would be reached, and every sync would stand in everybody's way."
)

GOALS = (
    # --- commits ---
    Goal(
        "SQLite: full turn commit, 1 waiter / bare script of the same rows",
        "≥",
        0.8,
        "commit",
        "ratio_one_waiter",
        note=_COLD,
    ),
    Goal(
        "SQLite: full turn commit, 64 waiters / one transaction per commit on bare apsw",
        "≥",
        2.5,
        "commit",
        "ratio_many_waiters",
        note=_WARM,
    ),
    Goal("SQLite: p99 of 64 waiters / p99 of 64 callers of the bare script", "≤", 1, "commit", "ratio_p99_many"),
    Goal("SQLite: p99 / p50 under sustained load, 1 waiter", "≤", 6, "load", "ratio_p99_p50"),
    Goal("SQLite: largest log under sustained load", "≤", 64, "load", "largest_wal_mib", "MiB"),
    Goal("SQLite: commit on 100,000 nodes / on 100 nodes", "≤", 1.05, "growth", "ratio"),
    Goal(
        "PostgreSQL: commit, 1 connection / the same work in one function",
        "≥",
        0.9,
        "fleet",
        "ratio_1_connection",
        note=_POSTGRES,
    ),
    Goal("PostgreSQL: the same, 8 connections", "≥", 0.7, "fleet", "ratio_8_connections", note=_POSTGRES),
    Goal("PostgreSQL: a commit at 1 ms of round-trip time", "≤", 1.8, "network", "commit_1_ms", "ms", _TRIP),
    # --- peers ---
    *(
        Goal(f"{text}: our turns in a second / theirs", "≥", bound, "peers", figure, note=_PEERS)
        for text, bound, figure in (
            ("SQLite, OpenAI `SQLiteSession`", 1.2, "ratio_openai_sqlite"),
            ("SQLite, OpenAI `SQLAlchemySession`", 6, "ratio_openai_sqlalchemy_sqlite"),
            ("PostgreSQL, OpenAI `SQLAlchemySession`", 4, "ratio_openai_sqlalchemy_postgres"),
            ("SQLite, LangGraph's saver at 400 turns", 20, "ratio_langgraph_sqlite_400"),
            ("PostgreSQL, LangGraph's saver at 400 turns", 40, "ratio_langgraph_postgres_400"),
            ("SQLite, Google ADK `DatabaseSessionService`", 40, "ratio_adk_sqlite"),
        )
    ),
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
        note=_BLOBS,
    ),
    # --- reading ---
    Goal("SQLite: load of 10,000 nodes / raw rows plus decoding", "≤", 1.2, "reading", "ratio_load_10k", "", _CHECKS),
    Goal("SQLite: the last 50 of 100,000 messages", "≤", 1, "reading", "last_50_of_100k_ms", "ms"),
    Goal("PostgreSQL: load of 10,000 nodes / raw rows plus decoding", "≤", 1.2, "fleet_reading", "ratio", note=_CHECKS),
    Goal("A page of 100,000 sessions, the slowest filter", "≤", 5, "listing", "page_filtered_ms", "ms"),
    Goal(
        "Bytes on disk per byte of message, 40,000 messages, after maintenance",
        "≤",
        1.6,
        "size",
        "bytes_per_message_byte_40k",
        note=_BODIES,
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
    Goal(
        "PostgreSQL: no-op turns / procrastinate's fetch+finish",
        ">",
        1,
        "turns",
        "ratio_fetch_finish_postgres",
        note=_QUEUE,
    ),
    Goal("SQLite: a claim beside a long history / on an empty database", "≤", 1.2, "claims", "sqlite_ratio"),
    Goal("PostgreSQL: the same", "≤", 1.2, "claims", "postgres_ratio"),
    Goal("SQLite: an idle worker, of a core", "<", 1, "idle", "ours_sqlite_percent", "%"),
    Goal("PostgreSQL: the same", "<", 1, "idle", "ours_postgres_percent", "%"),
    # --- attachments ---
    Goal("Attachment of 1 KB / bare write, fsync, rename, fsync", "≤", 1.3, "attachments", "ratio_1_kb", "", _PUTS),
    Goal("Attachment of 1 MB / the same bare", "≤", 1.3, "attachments", "ratio_1_mb", "", _PUTS),
    Goal("Attachment of 100 MB / the same bare", "≤", 1.3, "attachments", "ratio_100_mb"),
    Goal("Growth of memory by a put of up to 1 GB", "≤", 64, "attachments_memory", "largest_mib", "MiB"),
    Goal("Sweep of orphans beside many committed rows / beside none", "about", 1, "sweeps", "ratio_no_rows"),
    Goal("Sweep beside four times the rows / beside the rows", "about", 1, "sweeps", "ratio_rows"),
    Goal("Sweep of twice the orphans / of the orphans", "about", 2, "sweeps", "ratio_orphans"),
)
"""In the order of the page."""
