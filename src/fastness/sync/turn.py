"""A turn in the hands of a thread, while a task of the loop holds it.

The thread cannot be cancelled as a task can. What it gets instead, when its lane is lost or somebody interrupts it, is
the error that says so: from the call that it is in, from every call after that, and at the end of its block. It
promises that nothing which the thread does after that point changes anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from fastness.errors import LeaseExpiredError, StoreError
from fastness.runtime.turn import Turn as AsyncTurn
from fastness.sync.face import Face, Seen, SeenAndSet, blocking, iterating, touching
from fastness.sync.loop import LoopThread, Make

R = TypeVar("R")


def _seen(read: Callable[[AsyncTurn], R]) -> Seen[R]:
    return Seen(read)


def _seen_and_set(read: Callable[[AsyncTurn], R]) -> SeenAndSet[R]:
    return SeenAndSet(read)


class Turn(Face):
    """``fastness.Turn`` for code that does not await: the same names, over the same turn.

    Calls run on the loop's thread, one thread's after each other, and several threads may make them at once.
    """

    _of = AsyncTurn

    def __init__(self, loop: LoopThread, over: AsyncTurn) -> None:
        super().__init__(loop, over)
        self._calls: set[asyncio.Task[Any]] = set()
        self._ended_by: StoreError | None = None

    session_id = _seen(lambda turn: turn.session_id)
    turn_id = _seen(lambda turn: turn.turn_id)
    result = _seen(lambda turn: turn.result)
    messages = _seen(lambda turn: turn.messages)
    inputs = _seen(lambda turn: turn.inputs)
    work = _seen(lambda turn: turn.work)
    kind = _seen(lambda turn: turn.kind)
    attempts = _seen(lambda turn: turn.attempts)
    fencing_token = _seen(lambda turn: turn.fencing_token)
    revision = _seen(lambda turn: turn.revision)
    model = _seen(lambda turn: turn.model)
    interrupted = _seen(lambda turn: turn.interrupted)
    state = _seen_and_set(lambda turn: turn.state)

    tasks = _seen(lambda turn: turn.tasks)

    append = touching(AsyncTurn.append)
    chat_messages = touching(AsyncTurn.chat_messages)
    charge = touching(AsyncTurn.charge)
    send = touching(AsyncTurn.send)
    enqueue = touching(AsyncTurn.enqueue)
    configure = touching(AsyncTurn.configure)
    node = blocking(AsyncTurn.node)
    attach = blocking(AsyncTurn.attach)
    attachment = blocking(AsyncTurn.attachment)
    checkpoint = blocking(AsyncTurn.checkpoint)
    checkpoints = iterating(AsyncTurn.checkpoints)
    take_work = blocking(AsyncTurn.take_work)

    def require(self) -> None:
        """Raise the error that says so if the turn has ended under the thread's hands.

        ``LeaseExpiredError`` or ``SessionDeletedError`` where the lane was lost, ``TurnInterruptedError`` where
        somebody asked it to end. A loop that makes no calls of the turn for long should ask now and then.
        """
        if self._ended_by is not None:
            raise self._ended_by.with_traceback(None)

    def _run(self, make: Make[R]) -> R:
        return self._loop.run(lambda: self._while_it_lasts(make))

    async def _while_it_lasts(self, make: Make[R]) -> R:
        """Make a call of the turn; it ends with the turn."""
        self.require()
        call = asyncio.current_task()
        assert call is not None
        self._calls.add(call)
        try:
            return await make()
        except asyncio.CancelledError:
            self.require()
            raise
        finally:
            self._calls.discard(call)

    async def _attended(self, done: asyncio.Future[tuple[R, Exception | None]]) -> R:
        """Wait, in the task that holds the turn, until a thread is done with it, and give or raise what came of that.

        Where the task is cancelled before, the thread is told by its next call.
        """
        try:
            answer, error = await done
        except asyncio.CancelledError:
            self._end()
            raise
        if error is not None:
            raise error
        return answer

    def _end(self) -> None:
        lane = self._over._lane
        self._ended_by = (
            lane.lost or lane.interruption() or LeaseExpiredError(self.session_id, self.fencing_token, "given back")
        )
        for call in self._calls:
            call.cancel()

    def _here(self) -> AbstractContextManager[None]:
        """Have log records and spans of this thread belong to the turn while a block runs."""
        span = self._over._span
        return nullcontext() if span is None else span.current()
