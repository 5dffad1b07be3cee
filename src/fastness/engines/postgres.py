"""The engine for fleets: programs on a PostgreSQL database that many processes on many machines share.

It promises what ``Engine`` promises. A write takes two round trips, or one where the program knows what it will find.
What another try mends is tried again here, with jitter and a bound: serialization failures, deadlocks, waits for locks,
connections that were lost before COMMIT was sent, servers that restart. A connection that is lost while COMMIT is in
flight is an unknown outcome, and the caller's to settle.

It works through a transaction pooler: nothing is set or prepared there beyond a transaction, and the only locks besides
those of rows end with it. An engine belongs to the event loop and the process of its first use, and does no I/O before.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import psycopg

from fastness.engines.binding import Binding
from fastness.engines.engine import Clock
from fastness.engines.postgres_faults import LOCK_TIMEOUT, STALE_STATEMENT, TRANSIENT, ends_connection, explain
from fastness.engines.postgres_open import (
    Place,
    migration_script,
    place_of,
    schema_findings,
    session_settings,
    translated,
)
from fastness.engines.postgres_pool import Connections, Pool
from fastness.engines.postgres_run import Attempt, BatchHook, Session
from fastness.engines.postgres_signals import Notices
from fastness.engines.postgres_wire import Lost, Refused, Wire
from fastness.errors import (
    BackendError,
    CommitOutcomeUnknownError,
    ContendedError,
    HandleUnusableError,
    InvalidInputError,
)
from fastness.model.session import DurabilityTier
from fastness.sql.program import ProgramFactory

__all__ = ["BatchHook", "PostgresEngine", "PostgresSnapshot"]

T = TypeVar("T")

DEFAULT_POOL_SIZE = 8
DEFAULT_PATIENCE_MS = 30_000
_MAX_PATIENCE_MS = 2**31 - 1


class PostgresEngine:
    """Runs programs on a PostgreSQL database, in a schema of its own.

    ``conninfo`` is a url or a connection string of libpq. ``pool`` is one that the application owns: it is used as it
    is, nothing is left set on its connections, and it stays open. ``patience_ms`` bounds the wait for a connection, a
    lock, a server that restarts; then ``ContendedError`` or what stood in the way. A server that takes a statement and
    never answers is left to TCP, which gives up after a minute unless the url says otherwise. ``listen_url`` leads past
    a pooler to where notices can be listened for; without one, behind a pooler, waiting for work is polling. Without
    ``create``, a schema that is not there is an error. ``clock`` and ``before_batch`` are for tests: they replace the
    server's clock, and raise a fault at a point.
    """

    def __init__(
        self,
        conninfo: str = "",
        *,
        pool: Pool | None = None,
        schema: str = "fastness",
        pool_size: int = DEFAULT_POOL_SIZE,
        patience_ms: int = DEFAULT_PATIENCE_MS,
        listen_url: str | None = None,
        create: bool = True,
        clock: Clock | None = None,
        before_batch: BatchHook | None = None,
    ) -> None:
        self.durability_tier: DurabilityTier = "durable"
        self.rows_per_read = 10_000
        self.decides_ahead = True
        if patience_ms > _MAX_PATIENCE_MS:
            raise InvalidInputError("patience_ms", f"is {patience_ms} and must be at most {_MAX_PATIENCE_MS}")
        place = place_of(conninfo, schema)
        settings = session_settings(schema, max(patience_ms // 3, 1), patience_ms)
        self._session = Session(settings, clock, before_batch)
        self._patience_s = patience_ms / 1000
        self._connections = Connections(
            place, settings, size=pool_size, patience_s=self._patience_s, create=create, given=pool
        )
        self._binding = Binding()
        self._opening = asyncio.Lock()
        self._notices = Notices(place, listen_url, self._tell)
        self._in_use = 0
        self._unused = asyncio.Event()

    @property
    def place(self) -> Place:
        """Where the database is."""
        return self._connections.place

    def __repr__(self) -> str:
        return f"PostgresEngine({self.place.name}, schema={self.place.schema!r})"

    async def start(self) -> None:
        """Open the database now, and create or migrate it where needed. Every other call does it by itself.

        Raises ``DatabaseOpenError`` or ``DatabaseReadOnlyError``; the next call tries again.
        """
        self._binding.enter()
        with self._using():
            async with self._opening:
                if self._connections.is_open:
                    return
                self._binding.enter()
                await self._connections.open()
                self._notices.move(self.place, direct=self._connections.direct)

    @contextmanager
    def _using(self) -> Iterator[None]:
        """While this lasts, ``close`` waits."""
        self._in_use += 1
        try:
            yield
        finally:
            self._done()

    def _done(self) -> None:
        self._in_use -= 1
        if not self._in_use:
            self._unused.set()

    # --- running programs ---

    async def read(self, make: ProgramFactory[T]) -> T:
        """Run a program that only reads, on one snapshot."""
        result: T = await self._patiently(lambda attempt: attempt.read(make))
        return result

    async def write(self, make: ProgramFactory[T]) -> T:
        """Run a program in a writing transaction; the result is durable when this returns."""
        outcome = await self._patiently(lambda attempt: attempt.write(make))
        if outcome.wakes:
            self._notices.tell()
        result: T = outcome.result
        return result

    async def _patiently(self, run: Callable[[Attempt], Awaitable[Any]]) -> Any:
        """Run attempts until one says something that another would not change."""
        loop = self._binding.enter()
        started = loop.time()
        tries = 0
        self._in_use += 1
        try:
            if not self._connections.is_open:
                await self.start()
            while True:
                try:
                    return await self._attempt(run, started)
                except _TryAgainError as again:
                    tries += 1
                    pause = again.pause_s(tries)
                    if loop.time() - started + pause > self._patience_s:
                        raise again.given_up(self.place.schema, round((loop.time() - started) * 1000)) from None
                    await asyncio.sleep(pause)
        finally:
            self._done()

    async def _attempt(self, run: Callable[[Attempt], Awaitable[Any]], started: float) -> Any:
        wire = await self._connections.acquire(started)
        attempt = Attempt(wire, self._session, alone=self._in_use == 1)
        try:
            result = await run(attempt)
        except Lost as lost:
            await self._connections.discard(wire)
            if attempt.committing:
                raise CommitOutcomeUnknownError(str(lost)) from None
            raise _TryAgainError(lost) from None
        except Refused as refused:
            if refused.ends_connection and attempt.committing and not refused.stopped_before_the_end:
                await self._connections.discard(wire)
                raise CommitOutcomeUnknownError(str(refused)) from None
            if ends_connection(refused):
                await self._connections.discard(wire)
                raise _TryAgainError(refused) from None
            if refused.sqlstate in STALE_STATEMENT:
                wire.forget()
            await self._connections.recover(wire)
            if refused.sqlstate in TRANSIENT:
                raise _TryAgainError(refused) from None
            raise explain(refused, self.place.schema) from None
        except Exception:
            await self._connections.recover(wire)
            raise
        except BaseException:
            # Cancelled: what is in flight is not waited for. The server ends the transaction with the connection.
            await self._connections.discard(wire)
            raise
        await self._connections.release(wire)
        return result

    # --- snapshots, care, end ---

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[PostgresSnapshot]:
        """Hold one snapshot for several reads, on a connection of its own until the end."""
        loop = self._binding.enter()
        with self._using():
            await self.start()
            started = loop.time()
            wire = held = None
            while wire is None or held is None:
                wire = await self._connections.acquire(started)
                held = await self._held(wire, started)
            try:
                yield held
            finally:
                held.ended = True
                await self._connections.recover(wire)

    async def _held(self, wire: Wire, started: float) -> PostgresSnapshot | None:
        """Take a snapshot; None where the connection turned out to be gone and there is time for another."""
        held = PostgresSnapshot(wire, self._session, self.place.schema)
        try:
            await held.begin()
        except BaseException:
            await self._connections.recover(wire)
            if held.lost and asyncio.get_running_loop().time() - started < self._patience_s:
                return None
            raise
        return held

    async def verify(self) -> list[str]:
        """Compare the schema with how it was made, indexes included. The pages are the server's to check."""
        with self._using():
            await self.start()
            return await self._verified()

    async def _verified(self) -> list[str]:
        try:
            async with self._connections.borrowed() as connection:
                return await schema_findings(connection, self.place.schema)
        except psycopg.Error as error:
            raise translated(error, self.place) from None

    async def migration_script(self) -> list[str]:
        """Give the statements that this database lacks to be up to date; none where it is. Changes nothing."""
        self._binding.enter()
        return await migration_script(self.place)

    async def wait_for_work(self, seen: int, timeout_s: float) -> int:
        """Wait until somebody, anywhere, committed something that leaves work to do, or the time is up.

        Gives a number; show it with the next call as ``seen``. Another number than the one shown means: look again.
        """
        self._binding.enter()
        await self.start()
        return await self._notices.wait(seen, timeout_s)

    async def _tell(self, channel: str) -> None:
        async with self._connections.borrowed() as connection:
            await connection.execute("select pg_notify(%s, '')", (channel,))

    async def close(self) -> None:
        """Finish what was started, refuse what comes after, and close the connections. Twice is fine.

        A pool that the application owns stays open. In a forked child this touches nothing.
        """
        if not self._binding.close():
            return
        while self._in_use:
            self._unused.clear()
            await self._unused.wait()
        await self._notices.close()
        await self._connections.close()


class PostgresSnapshot:
    """One moment of a database, for reads that come one after another."""

    def __init__(self, wire: Wire, session: Session, schema: str) -> None:
        self.ended = False
        self.lost = False
        self._attempt = Attempt(wire, session)
        self._schema = schema
        self._fault: str | None = None

    async def begin(self) -> None:
        """Take the snapshot: the moment is now."""
        await self._guarded(self._attempt.hold())

    async def read(self, make: ProgramFactory[T]) -> T:
        """Run a program that only reads, on the snapshot."""
        if self.ended:
            raise HandleUnusableError("is a snapshot that has ended", "open another one")
        if self._fault is not None:
            raise BackendError(f"the snapshot was lost ({self._fault})", "open another one")
        result: T = await self._guarded(self._attempt.read_held(make))
        return result

    async def _guarded(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except (Lost, Refused) as error:
            self._fault = str(error)
            self.lost = isinstance(error, Lost) or ends_connection(error)
            if isinstance(error, Refused) and not self.lost:
                raise explain(error, self._schema) from None
            raise BackendError(f"the snapshot was lost ({error})", "open another one") from None
        except BaseException:
            self._fault = "a read was broken off"
            raise


class _TryAgainError(Exception):
    """An attempt failed in a way that another one may not."""

    def __init__(self, cause: Lost | Refused) -> None:
        self.cause = cause
        super().__init__(str(cause))

    def pause_s(self, tries: int) -> float:
        """How long to wait before the next try: longer each time, never in step with others."""
        of_connection = isinstance(self.cause, Lost) or ends_connection(self.cause)
        first, longest = (0.02, 1.0) if of_connection else (0.002, 0.2)
        return min(longest, first * float(2 ** min(tries, 10))) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter

    def given_up(self, schema: str, waited_ms: int) -> BaseException:
        """The error for a caller who waited long enough."""
        if isinstance(self.cause, Lost):
            return BackendError(f"the connection was lost before anything was committed ({self.cause})")
        if self.cause.sqlstate in TRANSIENT:
            what = (
                "a lane stayed locked" if self.cause.sqlstate == LOCK_TIMEOUT else f"the server refused: {self.cause}"
            )
            return ContendedError(what, waited_ms)
        return explain(self.cause, schema)
