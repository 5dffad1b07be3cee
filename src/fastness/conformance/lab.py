"""A laboratory: one database or one place for bytes, a clock that laws move, and ways to see what a call has changed.

Laws know nothing of engines. What a law needs and its subject does not give (``Power``) skips the law, from wherever in
it the need arises: no law has to announce its needs, and none passes without them.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import pytest

from fastness.conformance.subject import Power, Subject
from fastness.errors import StoreError
from fastness.model import CheckReport, FullGraph, LocalProcess, SessionStoreCreateRequest
from fastness.model.protocols import (
    AttachmentStore,
    ProcessExecutionEnvStore,
    RuntimePersistence,
    SessionDispatchStore,
    SessionHistoryStore,
    WorkerRegistry,
)
from fastness.sql.program import Param, Program, Read, Row, Statement, Write
from fastness.sql.schema import SQLITE_TYPES, create_tables

START_MS = 1_700_000_000_000
"""The time at which every test begins, in milliseconds since the epoch."""

TABLES = tuple(
    match.group(1) for ddl in create_tables(SQLITE_TYPES) if (match := re.match(r"\s*create table (\w+)", ddl))
)
"""Every table of the schema, by name; the names are the same on every engine."""

E = TypeVar("E", bound=StoreError)

Dump = dict[str, list[Any]]
"""All rows of all tables, in an order that does not depend on when they were written."""


class Clock:
    """Milliseconds since the epoch, moved by hand. ``before`` is called ahead of every move."""

    def __init__(self, now_ms: int = START_MS, before: Callable[[], None] = lambda: None) -> None:
        self.now_ms = now_ms
        self._before = before

    def __call__(self) -> int:
        return self.now_ms

    def advance(self, ms: int) -> None:
        """Let time pass."""
        self._before()
        self.now_ms += ms


class Bench:
    """What a subject was opened as, for one test: opened again, opened a second time beside it, closed at the end."""

    def __init__(self, subject: Any, directory: Path) -> None:
        self.subject = subject
        self.directory = directory
        self.opened: Any = None
        self._beside: Any = None
        self._surroundings = AsyncExitStack()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        if self.subject.around is not None:
            await self._surroundings.enter_async_context(self.subject.around(self))
        try:
            await self._open()
        except BaseException:
            await self._surroundings.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        async with self._surroundings:
            await self._stack.aclose()

    async def _open(self) -> None:
        self.opened = await self._stack.enter_async_context(self.subject.open(self))

    def needs(self, *powers: Power) -> None:
        """Skip the law that is running if its subject lacks one of these powers."""
        for power in powers:
            if power not in self.subject.powers:
                pytest.skip(power.value)

    async def restart(self) -> None:
        """Close what was opened and open it again; what came of it before is of no use any more."""
        self.needs(Power.REOPENING)
        await self._stack.aclose()
        self._beside = None
        await self._open()

    async def second(self) -> Any:
        """Give what stands for another process: opened beside the first, or that one where nothing else may be."""
        if self._beside is None and Power.SHARED in self.subject.powers:
            self._beside = await self._stack.enter_async_context(self.subject.open(self))
        return self._beside or self.opened

    async def snapshot(self) -> Dump:
        """Give all that there is, in a form that can be compared."""
        raise NotImplementedError

    @asynccontextmanager
    async def unchanged(self, why: str = "something was changed that had to stay") -> AsyncIterator[None]:
        """Expect a block to leave everything as it was."""
        before = await self.snapshot()
        yield
        changed = differences(before, await self.snapshot())
        assert changed == {}, why


class AttachmentLab(Bench):
    """A place of its own for the bytes of attachments, and the store that was opened on it."""

    @property
    def store(self) -> AttachmentStore:
        """The store that is open now."""
        opened: AttachmentStore = self.opened
        return opened

    async def reopen(self) -> AttachmentStore:
        """Give the store, newly opened where the subject outlives its closing."""
        if Power.REOPENING in self.subject.powers:
            await self.restart()
        return self.store

    async def ids(self, *, limit: int = 1000) -> list[str]:
        """Give the ids of all content there is, page by page."""
        found: list[str] = []
        while page := await self.store.list(after=found[-1] if found else "", limit=limit):
            found += page
        return found

    async def damage(self, attachment_id: str, data: bytes) -> None:
        """Put other bytes in the place of some content, behind the store's back."""
        if self.subject.damage is None:
            pytest.skip("the kit cannot damage its content")
        await self.subject.damage(self, attachment_id, data)

    async def snapshot(self) -> Dump:
        """Give all content there is."""
        return {"content": [(each, await self.store.get(each)) for each in await self.ids()]}


class Lab(Bench):
    """One database, its clock, the processes that count as dead, and a hook that sees every batch.

    ``on_batch`` may raise, which is a fault before that batch (None: before COMMIT).
    """

    def __init__(self, subject: Subject, directory: Path) -> None:
        super().__init__(subject, directory)
        self.clock = Clock(before=lambda: self.needs(Power.CLOCK))
        self.dead: set[LocalProcess] = set()
        self.on_batch: Callable[[Read | Write | None], None] | None = None
        self._seen: list[Read | Write] = []

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.on_batch = None
        await super().__aexit__(kind, error, trace)

    @property
    def factory(self) -> Any:
        """The factory that is open now."""
        return self.opened

    # --- what a subject may offer to the kit ---

    def batch_hook(self, batch: Read | Write | None) -> None:
        """What the engine calls before every batch, and with None before COMMIT: notes it and asks ``on_batch``."""
        if batch is not None:
            self._seen.append(batch)
        if self.on_batch is not None:
            self.on_batch(batch)

    def is_dead(self, process: LocalProcess) -> bool:
        """What stands in for probing the operating system."""
        return process in self.dead

    # --- what laws ask for, and what it takes ---

    @property
    def start_ms(self) -> int:
        """The time at which the test began, by the subject's own clock."""
        self.needs(Power.CLOCK)
        return START_MS

    @property
    def now_ms(self) -> int:
        """The time by the subject's own clock."""
        self.needs(Power.CLOCK)
        return self.clock.now_ms

    @property
    def seen(self) -> list[Read | Write]:
        """The batches so far; it may be cleared."""
        self.needs(Power.BATCHES)
        return self._seen

    def bury(self, process: LocalProcess) -> None:
        """Let a process count as dead from now on."""
        self.needs(Power.DEATH)
        self.dead.add(process)

    async def execute_raw(self, sql: str, *params: Param) -> list[Row]:
        """Run one statement behind the store's back, past every rule. Parameters are ``$1``, ``$2``, …"""
        self.needs(Power.ROWS)

        def program() -> Program[list[Row]]:
            """One statement."""
            (rows,) = yield Write(Statement(sql, params), last=True)
            return rows

        found: list[Row] = await self.factory.engine.write(program)
        return found

    async def dump(self) -> Dump:
        """Give every row of every table."""
        self.needs(Power.ROWS)

        def program() -> Program[Dump]:
            """One read of everything."""
            found = yield Read(*(Statement(f"select * from {table}") for table in TABLES))
            return {table: sorted(rows, key=repr) for table, rows in zip(TABLES, found, strict=True)}

        rows: Dump = await self.factory.engine.read(program)
        return rows

    async def check(self) -> CheckReport:
        """Let the store verify its whole database."""
        self.needs(Power.CHECK)
        report: CheckReport = await self.factory.check()
        return report

    # --- sessions ---

    async def store(self, session_id: str = "s") -> RuntimePersistence:
        """Create a session and give a handle of it."""
        made: RuntimePersistence = await self.factory.create_store(SessionStoreCreateRequest(session_id))
        return made

    async def reopen(self, session_id: str = "s") -> RuntimePersistence:
        """Give a second handle, of a newly opened database where the subject outlives its closing."""
        if Power.REOPENING in self.subject.powers:
            await self.restart()
        found: RuntimePersistence | None = await self.factory.open_existing_store(SessionStoreCreateRequest(session_id))
        assert found is not None, f"session {session_id!r} was there and cannot be opened again"
        return found

    async def handles(self, store: RuntimePersistence, session_id: str = "s") -> AsyncIterator[RuntimePersistence]:
        """Go through the handle at hand and then a reopened one, for laws that both must show."""
        yield store
        yield await self.reopen(session_id)

    async def beside(self, session_id: str = "s") -> RuntimePersistence:
        """Create a session and give a handle of it that stands for another process.

        It is of a factory that is opened beside the first one. Where nothing else may open the database, that one is
        all that can be at work on it, and the handle is of that.
        """
        made: RuntimePersistence = await (await self.second()).create_store(SessionStoreCreateRequest(session_id))
        return made

    def envs(self, factory: Any = None) -> ProcessExecutionEnvStore:
        """Give the environments of a factory, by default of the one that is open now."""
        self.needs(Power.ENVIRONMENTS)
        found: ProcessExecutionEnvStore = (factory or self.factory).process_execution_envs
        return found

    def dispatch(self, factory: Any = None) -> SessionDispatchStore:
        """Give what dispatches turns in a factory's database, by default of the factory that is open now."""
        self.needs(Power.DISPATCH)
        found: SessionDispatchStore = (factory or self.factory).dispatch
        return found

    def workers(self, factory: Any = None) -> WorkerRegistry:
        """Give the registry of workers of a factory, by default of the one that is open now."""
        self.needs(Power.WORKERS)
        found: WorkerRegistry = (factory or self.factory).workers
        return found

    def history(self, factory: Any = None) -> SessionHistoryStore:
        """Give the history of a factory's sessions, by default of the factory that is open now."""
        self.needs(Power.HISTORY)
        found: SessionHistoryStore = (factory or self.factory).history
        return found

    # --- what was changed ---

    async def view(self) -> Dump:
        """Give all that the public calls show of every session."""
        shown: Dump = {"uncommitted": []}
        cursor = None
        while True:
            page = await self.factory.list_sessions(cursor=cursor)
            for summary in page.sessions:
                await self._view_session(summary.meta.session_id, shown)
            shown.setdefault("listing", []).extend(page.sessions)
            cursor = page.next_cursor
            if cursor is None:
                return shown

    async def _view_session(self, session_id: str, shown: Dump) -> None:
        store: RuntimePersistence | None = await self.factory.open_existing_store(SessionStoreCreateRequest(session_id))
        if store is None:
            return
        shown[f"session {session_id}"] = [
            await store.load_session_meta(),
            await store.load_head(),
            await store.load_session(FullGraph()),
            *await store.list_pending_turn_inputs(session_id),
            *await store.list_queued_work(session_id),
            *await store.list_pending_queued_work(session_id),
        ]
        shown["uncommitted"] = list(await store.list_uncommitted(2**63 - 1))

    async def snapshot(self) -> Dump:
        """Give every row, or where the kit cannot reach the rows, all that the public calls show."""
        hook, self.on_batch = self.on_batch, None
        try:
            return await (self.dump() if Power.ROWS in self.subject.powers else self.view())
        finally:
            self.on_batch = hook

    async def assert_sound(self) -> None:
        """Expect the whole database to be in order: by its own check, or else by loading every session."""
        if Power.CHECK in self.subject.powers:
            report = await self.check()
            assert report.findings == (), f"the check found {report.findings}"
        else:
            await self.view()


def differences(before: Dump, after: Dump) -> dict[str, tuple[list[Any], list[Any]]]:
    """Give what went and what came, by table; empty when nothing changed."""
    changed = {}
    for table in {**before, **after}:
        rows, others = before.get(table, []), after.get(table, [])
        gone = [row for row in rows if row not in others]
        come = [row for row in others if row not in rows]
        if gone or come or len(rows) != len(others):
            changed[table] = (gone, come)
    return changed


def sql_of(item: object) -> str:
    """The SQL of one item of a batch, in small letters; empty for what has none."""
    return str(getattr(item, "sql", "")).strip().lower()


async def refused(lab: Bench, error: type[E], call: Awaitable[object]) -> E:
    """Expect a call to fail in this very way and to leave everything as it was."""
    async with lab.unchanged(f"{error.__name__} was raised, and yet something was written"):
        with pytest.raises(error) as caught:
            await call
        assert type(caught.value) is error, f"expected exactly {error.__name__}, got {caught.value!r}"
    return caught.value
