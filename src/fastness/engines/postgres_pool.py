"""The connections of an engine: where they come from, that they are fit for use, and that none is lost.

It promises that a connection which is handed out is alive as far as anybody can tell, that one in doubt is closed and
replaced, and that waiting has a bound: then the error says whether the server lets nobody in or all are in use. It
knows no program.
"""

from __future__ import annotations

import asyncio
import random
import types
import weakref
from collections.abc import AsyncIterator, Coroutine, Generator
from contextlib import asynccontextmanager, suppress
from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

from fastness.engines.postgres_faults import is_passing
from fastness.engines.postgres_open import (
    Place,
    bounds_transactions,
    bring_up_to_date,
    connect,
    is_direct,
    place_of_pool,
    set_up,
    translated,
)
from fastness.engines.postgres_wire import Lost, Wire
from fastness.errors import BackendError, ContendedError, DatabaseOpenError, HandleUnusableError, InvalidInputError

Pool = AsyncConnectionPool[psycopg.AsyncConnection[Any]]

_LONGEST_PAUSE_S = 0.5
_ROUND_S = 60.0
"""How long a connection is kept at hand before it goes through the pool, which sees to its age and to how many."""


class Connections:
    """A pool of its own, or the application's, which is used as it is and stays open.

    ``settings`` are set once on connections of our own that lead to the server itself (``direct``).
    """

    def __init__(
        self,
        place: Place,
        settings: tuple[tuple[str, str], ...],
        *,
        size: int,
        patience_s: float,
        create: bool,
        given: Pool | None = None,
    ) -> None:
        if given is not None and not isinstance(given, AsyncConnectionPool):
            raise InvalidInputError("pool", "must be an AsyncConnectionPool of psycopg_pool")
        self.place = place
        self.direct = False
        self._settings = settings
        self._size = size
        self._patience_s = patience_s
        self._create = create
        self._given = given
        self._pool: Pool | None = None
        self._is_ready = False
        self._at_hand: list[Wire] = []
        # Whoever waits here is let in when a connection is at hand; to wait in the pool costs several times as much.
        self._gate = asyncio.Semaphore(size) if given is None else None
        self._rounds = 0
        self._waiting = 0
        self._round: asyncio.TimerHandle | None = None
        self._tidying: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether connections can be had."""
        return self._is_ready

    async def open(self) -> None:
        """Bring the database up to date and open the pool. Waits for a server that is coming up, and for nothing else.

        Raises ``DatabaseOpenError`` or ``DatabaseReadOnlyError``.
        """
        if self._given is not None:
            await self._adopt_pool(self._given)
            self._is_ready = True
            return
        connection = await self._first()
        try:
            await bring_up_to_date(connection, self.place, create=self._create)
            self.direct = await is_direct(connection)
        finally:
            await connection.close()
        pool: Pool = AsyncConnectionPool(
            self.place.conninfo,
            kwargs={"autocommit": True, "prepare_threshold": None},
            min_size=1,
            max_size=self._size,
            configure=self._set_up,
            # The pool would wait ever longer between tries. Whoever needs a connection waits here, with a bound.
            reconnect_timeout=0.001,
            reconnect_failed=_try_on,
            open=False,
            name="fastness",
        )
        await pool.open()
        self._keeper = asyncio.get_running_loop().create_task(_close_at_end(pool))
        self._pool, self._is_ready = pool, True

    async def _first(self) -> psycopg.AsyncConnection[Any]:
        loop = asyncio.get_running_loop()
        started = loop.time()
        while True:
            try:
                return await connect(self.place)
            except DatabaseOpenError as error:
                pause = random.uniform(0.5, 1.0) * _LONGEST_PAUSE_S  # noqa: S311 - jitter
                if not is_passing(error.detail) or loop.time() - started + pause > self._patience_s:
                    raise
            await asyncio.sleep(pause)

    async def _adopt_pool(self, pool: Pool) -> None:
        self.place = await place_of_pool(pool, self.place.schema)
        self._pool = pool
        try:
            async with self.borrowed() as connection:
                await bring_up_to_date(connection, self.place, create=self._create)
                self.direct = await is_direct(connection)
        except BaseException as error:
            self._pool = None
            if isinstance(error, psycopg.Error):
                raise translated(error, self.place) from None
            raise

    async def _set_up(self, connection: psycopg.AsyncConnection[Any]) -> None:
        own = await set_up(connection, self._settings)
        bounded = own and bounds_transactions(connection)
        self._keep(connection, Wire(connection, prepares=own, own_session=own, bounded=bounded))

    async def acquire(self, started: float) -> Wire:
        """Get a connection that is alive. Raises ``ContendedError`` or why the server lets nobody in.

        ``started`` is when the caller began to wait, on the loop's clock. Each one that was got is given back once, by
        ``release``, ``recover`` or ``discard``.
        """
        await self._enter(started)
        try:
            while self._at_hand:
                wire = self._at_hand.pop()
                try:
                    wire.begin()
                except Lost:
                    await self._drop(wire.connection)
                    continue
                return wire
            self._waiting += 1
            try:
                return await self._from_pool(started)
            finally:
                self._waiting -= 1
        except BaseException:
            self._leave()
            raise

    async def _enter(self, started: float) -> None:
        """Wait until there is one program less than there may be connections of our own."""
        gate, loop = self._gate, asyncio.get_running_loop()
        if gate is None:
            return
        if not gate.locked():
            await gate.acquire()
            return
        try:
            async with asyncio.timeout_at(started + self._patience_s):
                await gate.acquire()
        except TimeoutError:
            raise await self._shut_out(round((loop.time() - started) * 1000)) from None

    def _leave(self) -> None:
        if self._gate is not None:
            self._gate.release()

    async def _from_pool(self, started: float) -> Wire:
        loop = asyncio.get_running_loop()
        pool = self._pool
        if pool is None:
            raise HandleUnusableError("is closed", "open a new one")
        while True:
            left = self._patience_s - (loop.time() - started)
            try:
                connection = await pool.getconn(timeout=max(left, 0.001))
            except PoolTimeout:
                raise await self._shut_out(round((loop.time() - started) * 1000)) from None
            except PoolClosed:
                raise HandleUnusableError(
                    "has a pool that is not open", "open the pool first, or another one"
                ) from None
            try:
                wire = _wires_of(connection).get(self) or await self._adopt(connection)
                wire.begin()
                wire.round = self._rounds
            except (Lost, psycopg.Error):
                await self._drop(connection)
                continue
            except BaseException:
                await self._drop(connection)
                raise
            return wire

    async def _adopt(self, connection: psycopg.AsyncConnection[Any]) -> Wire:
        """Get to know a connection of the application's pool."""
        direct = await is_direct(connection)
        await connection.rollback()
        return self._keep(connection, Wire(connection, prepares=direct, own_session=False))

    def _keep(self, connection: psycopg.AsyncConnection[Any], wire: Wire) -> Wire:
        _wires_of(connection)[self] = wire
        return wire

    async def _shut_out(self, waited_ms: int) -> BaseException:
        """Say why there was no connection: the server lets nobody in, or all of ours are in use."""
        try:
            connection = await connect(self.place)
        except BackendError as error:
            return error
        await connection.close()
        return ContendedError("all connections of the pool stayed in use", waited_ms)

    async def release(self, wire: Wire) -> None:
        """Give a connection back after a transaction that has ended.

        One of our own stays at hand for the next program, unless somebody waits for the pool to have one.
        """
        try:
            await self._release(wire)
        finally:
            self._leave()

    async def _release(self, wire: Wire) -> None:
        if self._pool is None:
            return
        if self._given is None and not self._waiting and wire.round == self._rounds and wire.is_ready:
            self._at_hand.append(wire)
            if self._round is None:
                self._round = asyncio.get_running_loop().call_later(_ROUND_S, self._tidy)
        elif wire.end():
            await _give_back(self._pool, wire.connection)
        else:
            await self._drop(wire.connection)

    def _tidy(self) -> None:
        self._round = None
        self._rounds += 1
        self._tidying = asyncio.get_running_loop().create_task(self._put_away())

    async def _put_away(self) -> None:
        """Give what is at hand back to the pool."""
        wires, self._at_hand = self._at_hand, []
        for wire in wires:
            if self._pool is not None and wire.end():
                await _give_back(self._pool, wire.connection)
            else:
                await self._drop(wire.connection)

    async def recover(self, wire: Wire) -> None:
        """Leave the transaction and give the connection back; one that cannot is given up."""
        try:
            await wire.rollback()
        except BaseException as error:
            await self.discard(wire)
            if not isinstance(error, Lost):
                raise
            return
        await self.release(wire)

    async def discard(self, wire: Wire) -> None:
        """Close a connection that is in doubt: the server ends its transaction, and the pool makes another."""
        try:
            await self._drop(wire.connection)
        finally:
            self._leave()

    async def _drop(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Close a connection and give it back, so that the pool makes another."""
        wire = _wires_of(connection).get(self)
        if wire is not None:
            wire.leave()
        connection.pgconn.finish()  # ``close`` of a pooled connection may be the same as giving it back
        if self._pool is not None:
            await _give_back(self._pool, connection)

    @asynccontextmanager
    async def borrowed(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """Lend a connection for what is no program."""
        wire = await self.acquire(asyncio.get_running_loop().time())
        try:
            if not wire.end():
                raise Lost("the connection is in a transaction of somebody else")
            yield wire.connection
            await wire.connection.rollback()  # where it does not commit by itself, looking has begun something
        except BaseException:
            await self.discard(wire)
            raise
        await self.release(wire)

    async def close(self) -> None:
        """Close the pool, unless it is the application's."""
        if self._round is not None:
            self._round.cancel()
        if self._tidying is not None and not self._tidying.done():
            await asyncio.wait([self._tidying])
        await self._put_away()
        self._pool, self._is_ready = None, False
        if self._keeper is not None and not self._keeper.done():
            self._keeper.cancel()
            await asyncio.wait([self._keeper])


def _wires_of(connection: psycopg.AsyncConnection[Any]) -> weakref.WeakKeyDictionary[Connections, Wire]:
    """Give what the engines that share a connection know of it. It lives in the connection, and ends with it."""
    wires: weakref.WeakKeyDictionary[Connections, Wire] = vars(connection).setdefault(
        "_fastness_wires", weakref.WeakKeyDictionary()
    )
    return wires


async def _close_at_end(pool: Pool) -> None:
    """Wait to be cancelled, by us or by an event loop that ends, and close the pool.

    A task of the pool that connects at that very moment takes its own cancellation for a failure to connect and goes
    on; the loop would wait for it for ever.
    """
    with suppress(asyncio.CancelledError):
        await asyncio.get_running_loop().create_future()
    await pool.close()


async def _give_back(pool: Pool, connection: psycopg.AsyncConnection[Any]) -> None:
    """Give a connection back, also when the caller is cancelled meanwhile: half given back, it would be lost for good.

    It hardly ever has to wait for the pool. So it is begun here, and only what is left of it becomes a task.
    """
    giving = pool.putconn(connection)
    try:
        waits_for = giving.send(None)
    except StopIteration:
        return
    await asyncio.shield(asyncio.get_running_loop().create_task(_rest_of(giving, waits_for)))


@types.coroutine
def _rest_of(begun: Coroutine[Any, Any, None], waits_for: Any) -> Generator[Any, Any, None]:
    """Go on with a coroutine from what it waits for."""
    try:
        while True:
            try:
                sent = yield waits_for
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is for the coroutine
                waits_for = begun.throw(error)
            else:
                waits_for = begun.send(sent)
    except StopIteration:
        return


async def _try_on(pool: Pool) -> None:
    """The pool failed to connect: where somebody waits for a connection, have it try again soon."""
    await asyncio.sleep(random.uniform(0.1, 0.3))  # noqa: S311 - jitter
    if pool.get_stats().get("requests_waiting"):
        await pool.check()
