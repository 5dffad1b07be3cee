"""How long a sweep of attachments takes beside many committed rows, and with twice as much to do."""

from __future__ import annotations

import asyncio
import hashlib
import time
from pathlib import Path

from bench.findings import Found, Part, Size, Spread, Table, Value
from fastness.attachments.memory import InMemoryAttachmentStore
from fastness.attachments.reclaim import reclaim_orphaned_attachments
from fastness.model import AttachmentReclamationReport, AttachmentRef, SessionStoreCreateRequest
from fastness.model.base import encode
from fastness.persistence import SqliteSessionStoreFactory
from fastness.sql.program import Many, Param, Program, Write
from fastness.store import SessionStore

ROWS = {"short": 25_000, "full": 100_000}
SESSIONS = 100
ORPHANS = 1_000
ROUNDS = {"short": 4, "full": 11}
WARM_UP = 1

ADD = """
    insert into attachment (sid, attachment_id, committed, recorded_ms, reference, intent_id)
    select sid, $2, $3, $4, $5, 'bench' from session where session_id = $1"""
OLD_MS = 1_700_000_000_000


def as_rows_and_orphans_grow(folder: Path, size: Size) -> Found:
    """The same sweep on four databases, in turns: no rows, many, four times as many, and twice the orphans."""
    none, many, more, double = asyncio.run(_measure(folder, ROWS[size], ROUNDS[size]))
    rows: dict[str, list[Value]] = {
        "no rows": [ORPHANS, 0, Spread.of(none)],
        "rows": [ORPHANS, ROWS[size], Spread.of(many)],
        "four times the rows": [ORPHANS, 4 * ROWS[size], Spread.of(more)],
        "twice the orphans": [2 * ORPHANS, ROWS[size], Spread.of(double)],
    }
    figures: dict[str, Value] = {
        "ratio_no_rows": Spread.of_ratios(many, none),
        "ratio_rows": Spread.of_ratios(more, many),
        "ratio_orphans": Spread.of_ratios(double, many),
    }
    return Found(figures, [Table("Sweeps", ("orphans", "committed rows", "ms"), rows)])


async def _measure(folder: Path, rows: int, rounds: int) -> list[list[float]]:
    cases = [
        await _Case.make(folder / "none.db", 0, ORPHANS),
        await _Case.make(folder / "many.db", rows, ORPHANS),
        await _Case.make(folder / "more.db", 4 * rows, ORPHANS),
        await _Case.make(folder / "double.db", rows, 2 * ORPHANS),
    ]
    taken_ms: list[list[float]] = [[] for _ in cases]
    for number in range(-WARM_UP, rounds):
        # Who comes first finds the disk idle: they take turns.
        for at in sorted(range(len(cases)), key=lambda at: (at + number) % len(cases)):
            seconds = await cases[at].round(number)
            if number >= 0:
                taken_ms[at].append(seconds * 1e3)
    for case in cases:
        await case.factory.close()
    return taken_ms


class _Case:
    """One database, and the bytes of what is swept in it."""

    def __init__(self, factory: SqliteSessionStoreFactory, store: SessionStore, orphans: int) -> None:
        self.factory = factory
        self._store = store
        self._orphans = orphans
        self._bytes = InMemoryAttachmentStore()

    @classmethod
    async def make(cls, path: Path, rows: int, orphans: int) -> _Case:
        """Make a database with so many committed rows, in some sessions."""
        factory = SqliteSessionStoreFactory(path)
        store = await factory.create_store(SessionStoreCreateRequest("sweeper"))
        case = cls(factory, store, orphans)
        for number in range(SESSIONS):
            session_id = f"session {number}"
            await factory.create_store(SessionStoreCreateRequest(session_id))
            names = [f"committed {number} {row}" for row in range(rows // SESSIONS)]
            await case._add([(session_id, name) for name in names], committed=1)
        return case

    async def round(self, number: int) -> float:
        """Leave orphans, their bytes too, and give how many seconds a sweep takes to remove them."""
        names = [f"orphan {number} {orphan}" for orphan in range(self._orphans)]
        for name in names:
            await self._bytes.put(name.encode())
        await self._add([(f"session {at % SESSIONS}", name) for at, name in enumerate(names)], committed=0)
        started = time.perf_counter()
        report = await reclaim_orphaned_attachments(self._store, self._bytes, OLD_MS)
        seconds = time.perf_counter() - started
        size = sum(map(len, names))
        assert report == AttachmentReclamationReport(self._orphans, self._orphans, 0, size, False)
        return seconds

    async def _add(self, contents: list[tuple[str, str]], *, committed: int) -> None:
        rows: list[tuple[Param, ...]] = []
        for session_id, name in contents:
            reference = AttachmentRef(hashlib.sha256(name.encode()).hexdigest(), name, "text/plain", len(name))
            row = (session_id, reference.attachment_id, committed, OLD_MS, encode(reference).decode())
            rows.append(row)

        def program() -> Program[None]:
            """Write all of them."""
            yield Write(Many(ADD, rows))

        await self.factory.engine.write(program)


PARTS = (
    Part(
        "sweeps",
        "Sweeps of attachments",
        as_rows_and_orphans_grow,
        """The same sweep on four SQLite databases. Orphans beside no rows share their pages of the database; beside
many rows each is on pages of its own, which is what the sweep has to write, and more rows do not change that.""",
    ),
)
