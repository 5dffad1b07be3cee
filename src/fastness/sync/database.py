"""The database for code that does not await: an event loop in a thread, and every method of the async face over it.

It promises the same names, values and errors, and that any number of threads may use it at once. It holds no rule.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from fastness.errors import StoreError
from fastness.runtime import database
from fastness.runtime.database import Database as AsyncDatabase
from fastness.runtime.turn import Turn as AsyncTurn
from fastness.sync.face import Face, Seen, blocking, iterating, like
from fastness.sync.loop import LoopThread
from fastness.sync.turn import Turn

P = ParamSpec("P")
R = TypeVar("R")


def _seen(read: Callable[[AsyncDatabase], R]) -> Seen[R]:
    return Seen(read)


def _entering(
    method: Callable[Concatenate[Any, P], AbstractAsyncContextManager[AsyncTurn]],
) -> Callable[Concatenate[Any, P], AbstractContextManager[Turn]]:
    """Make of an async context manager one whose block runs in the calling thread."""

    def call(self: Face, /, *args: P.args, **kwargs: P.kwargs) -> AbstractContextManager[Turn]:
        """Run a block."""
        return HeldTurn(self._loop, method(self._over, *args, **kwargs))

    return like(method, call)


class Database(Face):
    """All sessions of one database, for any number of threads. It is made by ``connect``, or over an async one.

    The async one is used by nobody else then. Use it in ``with``, or ``close`` it; its loop begins with the first call.
    """

    _of = AsyncDatabase

    def __init__(self, over: AsyncDatabase) -> None:
        super().__init__(LoopThread("fastness.sync"), over)

    factory = _seen(lambda db: db.factory)
    runner = _seen(lambda db: db.runner)
    telemetry = _seen(lambda db: db.telemetry)

    send = blocking(AsyncDatabase.send)
    enqueue = blocking(AsyncDatabase.enqueue)
    command = blocking(AsyncDatabase.command)
    attachment = blocking(AsyncDatabase.attachment)
    attach = blocking(AsyncDatabase.attach)
    pending = blocking(AsyncDatabase.pending)
    cancel = blocking(AsyncDatabase.cancel)
    interrupt = blocking(AsyncDatabase.interrupt)
    turn = _entering(AsyncDatabase.turn)
    read = blocking(AsyncDatabase.read)
    history = iterating(AsyncDatabase.history)
    watch = iterating(AsyncDatabase.watch)
    list = blocking(AsyncDatabase.list)
    sessions = iterating(AsyncDatabase.sessions)
    describe = blocking(AsyncDatabase.describe)
    switch = blocking(AsyncDatabase.switch)
    edit = blocking(AsyncDatabase.edit)
    regenerate = blocking(AsyncDatabase.regenerate)
    fork = blocking(AsyncDatabase.fork)
    quarantine = iterating(AsyncDatabase.quarantine)
    retry = blocking(AsyncDatabase.retry)
    discard = blocking(AsyncDatabase.discard)
    delete = blocking(AsyncDatabase.delete)

    def run(self, work: Awaitable[R]) -> R:
        """Await something of the async face on this database's loop: ``db.run(db.factory.check())``."""

        async def there() -> R:
            """Await it here."""
            return await work

        return self._run(there)

    def __enter__(self) -> Self:
        self._run(self._over.__aenter__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the database, and end the loop. Calls and turns of other threads are cancelled. Twice is fine."""
        self._loop.close(self._over.close)


class HeldTurn(AbstractContextManager[Turn]):
    """A turn whose block runs in a thread, while one task of the loop enters it, keeps its lane and leaves it."""

    def __init__(self, loop: LoopThread, manager: AbstractAsyncContextManager[AsyncTurn]) -> None:
        self._loop = loop
        self._manager = manager
        self._turn: Turn | None = None
        self._task: asyncio.Task[None] | None = None
        self._done: asyncio.Future[tuple[None, Exception | None]] | None = None
        self._here: AbstractContextManager[None] | None = None

    def __enter__(self) -> Turn:
        try:
            turn = self._loop.run(self._enter)
            self._here = turn._here()
            self._here.__enter__()
        except BaseException:
            # It may have begun in the very moment in which the wait for it was broken off.
            with contextlib.suppress(StoreError):
                self._loop.run(self._put_down)
            raise
        return turn

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._here is not None
        try:
            # An error of the block goes on as it is, whatever else there is to say.
            with contextlib.nullcontext() if error is None else contextlib.suppress(StoreError):
                self._loop.run(lambda: self._leave(error))
        finally:
            self._here.__exit__(None, None, None)
            if error is not None:
                error.__traceback__ = trace  # it went through the loop, which is not where it came from

    # --- on the loop's thread ---

    async def _hold(self, entered: asyncio.Event) -> None:
        async with self._manager as over:
            self._done = asyncio.get_running_loop().create_future()
            self._turn = Turn(self._loop, over)
            entered.set()
            await self._turn._attended(self._done)

    async def _enter(self) -> Turn:
        entered = asyncio.Event()
        self._task = asyncio.create_task(self._hold(entered), name="a turn that a thread runs")
        self._loop.hold(self._task)
        waiting = asyncio.create_task(entered.wait())
        try:
            await asyncio.wait({self._task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if self._turn is None:
            await self._task
        assert self._turn is not None
        return self._turn

    async def _put_down(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _leave(self, error: BaseException | None) -> None:
        """Have the turn end as its block did: with a commit, with an error, or cancelled, as by Ctrl-C."""
        assert self._task is not None
        assert self._done is not None
        if error is not None and not isinstance(error, Exception):
            await self._put_down()
            return
        if not self._done.done():
            self._done.set_result((None, error))
        try:
            await self._task
        except BaseException:
            if error is None:
                raise


def _opening(make: Callable[P, AsyncDatabase]) -> Callable[P, Database]:
    def call(*args: P.args, **kwargs: P.kwargs) -> Database:
        """Open."""
        return Database(make(*args, **kwargs))

    return like(make, call)


connect = _opening(database.connect)
