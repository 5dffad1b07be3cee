"""A laboratory: one database on one engine, a clock that tests move, and builders for all that a law needs.

Laws know nothing of engines. An engine joins by one entry in ``ENGINES``: how to open a factory in a directory, and
whether what it holds survives its closing.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import pytest

from fastness.errors import StoreError
from fastness.model import LocalProcess, SessionStoreCreateRequest
from fastness.model.protocols import RuntimePersistence
from fastness.persistence import InMemorySessionStoreFactory, SqliteSessionStoreFactory
from fastness.sql.program import Param, Program, Read, Row, Statement, Write
from fastness.sql.schema import SQLITE_TYPES, create_tables

START_MS = 1_700_000_000_000
"""The time at which every test begins, in milliseconds since the epoch."""

TABLES = tuple(
    match.group(1) for ddl in create_tables(SQLITE_TYPES) if (match := re.match(r"\s*create table (\w+)", ddl))
)
"""Every table of the schema, by name."""

E = TypeVar("E", bound=StoreError)

Dump = dict[str, list[Row]]
"""All rows of all tables, in an order that does not depend on when they were written."""


class Clock:
    """Milliseconds since the epoch, moved by hand."""

    def __init__(self, now_ms: int = START_MS) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms

    def advance(self, ms: int) -> None:
        """Let time pass."""
        self.now_ms += ms


class EngineKind(NamedTuple):
    """How to open a factory for a lab, and whether a second one finds what the first one wrote."""

    open: Callable[[Lab], Any]
    survives_closing: bool


class Lab:
    """One database, its clock, the processes that count as dead, and a hook that sees every batch.

    ``seen`` are the batches so far; ``on_batch`` may raise, which is a fault before that batch (None: before COMMIT).
    """

    def __init__(self, kind: EngineKind, directory: Path) -> None:
        self.kind = kind
        self.directory = directory
        self.clock = Clock()
        self.dead: set[LocalProcess] = set()
        self.on_batch: Callable[[Read | Write | None], None] | None = None
        self.seen: list[Read | Write] = []
        self.factory: Any = None

    async def __aenter__(self) -> Self:
        self.factory = self.kind.open(self)
        await self.factory.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.on_batch = None
        await self.factory.close()

    def batch_hook(self, batch: Read | Write | None) -> None:
        """What the engine calls before every batch, and with None before COMMIT: notes it and asks ``on_batch``."""
        if batch is not None:
            self.seen.append(batch)
        if self.on_batch is not None:
            self.on_batch(batch)

    def is_dead(self, process: LocalProcess) -> bool:
        """What stands in for probing the operating system."""
        return process in self.dead

    async def store(self, session_id: str = "s") -> RuntimePersistence:
        """Create a session and give a handle of it."""
        made: RuntimePersistence = await self.factory.create_store(SessionStoreCreateRequest(session_id))
        return made

    async def reopen(self, session_id: str = "s") -> RuntimePersistence:
        """Give a second handle, of a newly opened database where the engine outlives its closing."""
        if self.kind.survives_closing:
            await self.restart()
        found: RuntimePersistence | None = await self.factory.open_existing_store(SessionStoreCreateRequest(session_id))
        assert found is not None, f"session {session_id!r} was there and cannot be opened again"
        return found

    async def handles(self, store: RuntimePersistence, session_id: str = "s") -> AsyncIterator[RuntimePersistence]:
        """Go through the handle at hand and then a reopened one, for laws that both must show."""
        yield store
        yield await self.reopen(session_id)

    async def restart(self) -> None:
        """Close the database and open it again; handles from before are of no use any more."""
        await self.factory.close()
        self.factory = self.kind.open(self)
        await self.factory.__aenter__()

    async def execute_raw(self, sql: str, *params: Param) -> list[Row]:
        """Run one statement behind the store's back, past every rule. Parameters are ``$1``, ``$2``, …"""
        quiet, self.on_batch = self.on_batch, None

        def program() -> Program[list[Row]]:
            (rows,) = yield Write(Statement(sql, params))
            return rows

        try:
            found: list[Row] = await self.factory.engine.write(program)
        finally:
            self.on_batch = quiet
        return found

    async def dump(self) -> Dump:
        """Give every row of every table."""
        quiet, self.on_batch = self.on_batch, None

        def program() -> Program[Dump]:
            found = yield Read(*(Statement(f"select * from {table}") for table in TABLES))
            return {table: sorted(rows, key=repr) for table, rows in zip(TABLES, found, strict=True)}

        try:
            rows: Dump = await self.factory.engine.read(program)
        finally:
            self.on_batch = quiet
        return rows

    async def assert_sound(self) -> None:
        """Let the store verify its whole database, and expect no finding."""
        report = await self.factory.check()
        assert report.findings == (), f"the check found {report.findings}"


def differences(before: Dump, after: Dump) -> dict[str, tuple[list[Row], list[Row]]]:
    """Give the rows that went and the rows that came, by table; empty when nothing changed."""
    changed = {}
    for table, rows in before.items():
        gone = [row for row in rows if row not in after[table]]
        come = [row for row in after[table] if row not in rows]
        if gone or come:
            changed[table] = (gone, come)
    return changed


def _memory(lab: Lab) -> Any:
    return InMemorySessionStoreFactory(clock=lab.clock, is_dead=lab.is_dead, batch_hook=lab.batch_hook)


def _sqlite(lab: Lab) -> Any:
    path = lab.directory / "lab.db"
    return SqliteSessionStoreFactory(path, clock=lab.clock, is_dead=lab.is_dead, batch_hook=lab.batch_hook)


ENGINES: dict[str, EngineKind] = {
    "memory": EngineKind(_memory, survives_closing=False),
    "sqlite": EngineKind(_sqlite, survives_closing=True),
}
"""The engines that every law is proved on."""


async def refused(lab: Lab, error: type[E], call: Awaitable[object]) -> E:
    """Expect a call to fail in this way and to leave every row of every table as it was."""
    before = await lab.dump()
    with pytest.raises(error) as caught:
        await call
    assert type(caught.value) is error, f"expected exactly {error.__name__}, got {caught.value!r}"
    assert differences(before, await lab.dump()) == {}, f"{error.__name__} was raised, and yet something was written"
    return caught.value
