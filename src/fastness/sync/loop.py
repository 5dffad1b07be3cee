"""An event loop in a thread of its own, and calls that other threads make of it and wait for.

It promises that whoever waits gets what the call came to, its error included, and never waits for a loop that is gone;
that a wait which is broken off, as by Ctrl-C, leaves nothing behind that still runs; and that nothing is started before
the first call, so that what was made before a fork can be used behind it. It knows nothing of sessions.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from fastness.errors import HandleUnusableError

R = TypeVar("R")
Make = Callable[[], Awaitable[R]]
"""Makes, on the loop's thread, what is to be awaited there."""


class Call(Generic[R]):
    """One call: what it comes to is in ``future``, for any thread."""

    def __init__(self, make: Make[R]) -> None:
        self.future: concurrent.futures.Future[R] = concurrent.futures.Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._make = make
        self._task: asyncio.Task[R] | None = None

    def result(self) -> R:
        """Wait for it. Where the wait is broken off, the call is cancelled, and has come to rest when this returns."""
        try:
            return self.future.result()
        except BaseException:
            if self._loop is not None and not self.future.done():
                with contextlib.suppress(RuntimeError):  # then the loop is gone, and the call with it
                    self._loop.call_soon_threadsafe(self.cancel)
                concurrent.futures.wait([self.future])
            raise

    def post(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have it begin on a loop soon, from any thread. Raises ``RuntimeError`` where that is closed."""
        self._loop = loop
        loop.call_soon_threadsafe(self.start)

    def start(self) -> None:
        """Begin it, on the loop's thread."""
        assert self._loop is not None
        self._task = self._loop.create_task(self._work())
        self._task.add_done_callback(self._ended)

    def cancel(self) -> None:
        """Cancel it, on the loop's thread."""
        if self._task is not None:
            self._task.cancel()

    @property
    def task(self) -> asyncio.Task[R] | None:
        """The task that it runs in, None before it began."""
        return self._task

    async def _work(self) -> R:
        return await self._make()

    def _ended(self, task: asyncio.Task[R]) -> None:
        if task.cancelled():
            self.future.set_exception(_closed("was closed while a call of it was running"))
        elif (error := task.exception()) is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(task.result())


class LoopThread:
    """The thread and its loop. Any number of threads may call it at once."""

    def __init__(self, name: str) -> None:
        self._name = name
        # A signal's handler may come while its own thread holds it.
        self._lock = threading.RLock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._is_closed = False
        self._calls: set[Call[Any]] = set()
        self._held: set[asyncio.Task[Any]] = set()
        self._stopping = asyncio.Event()

    def run(self, make: Make[R]) -> R:
        """Have something awaited on the loop, in the context of the calling thread, and give what came of it.

        Raises whatever it raised, and ``HandleUnusableError`` after ``close``, in a forked child, and on the loop's own
        thread, which would wait for itself.
        """
        return self.start(make).result()

    def start(self, make: Make[R]) -> Call[R]:
        """Begin a call without waiting for it. Raises ``HandleUnusableError`` as ``run`` does."""
        call = Call(make)
        self.begin(call)
        return call

    def begin(self, call: Call[R]) -> None:
        """Begin a call that was made before, so that whoever is interrupted amid this still has it: see ``has_begun``.

        Raises ``HandleUnusableError`` as ``run`` does.
        """
        self._refuse_fork()
        with self._lock:
            if self._is_closed:
                raise _closed("is closed")
            self._refuse_own_thread()
            self._post(self._started(), call)

    def has_begun(self, call: Call[Any]) -> bool:
        """Find out whether a call is on its way whose ``begin`` was broken off, as by Ctrl-C."""
        with contextlib.suppress(HandleUnusableError):
            self.run(_nothing)  # what was posted before this has begun when this has
        return call.task is not None

    def post(self, function: Callable[[], object]) -> None:
        """Have a plain function called on the loop soon, from any thread and from a signal's handler."""
        self._refuse_fork()
        with self._lock:
            if not self._is_closed:
                self._started().call_soon_threadsafe(function)

    def hold(self, task: asyncio.Task[Any]) -> None:
        """Have a task cancelled by ``close`` if it still runs then. On the loop's thread."""
        self._held.add(task)
        task.add_done_callback(self._held.discard)

    def close(self, last: Make[object]) -> None:
        """Cancel the calls that run, have ``last`` awaited, and end the thread. Twice is fine.

        In a forked child it touches nothing: thread and loop are the parent's.
        """
        if self._is_foreign:
            return
        with self._lock:
            self._refuse_own_thread()
            was_closed, self._is_closed = self._is_closed, True
            thread, loop = self._thread, self._loop
            if thread is None or loop is None:
                return
            call = None if was_closed else self._post(loop, Call(lambda: self._wind_up(last)))
        try:
            if call is not None:
                call.result()
        finally:
            thread.join()

    # --- within ---

    @property
    def _is_foreign(self) -> bool:
        return self._pid not in {0, os.getpid()}

    def _refuse_fork(self) -> None:
        # Before the lock, which another thread of the parent may have held.
        if self._is_foreign:
            raise HandleUnusableError(
                "was used before this process was forked from its parent",
                "use it for the first time after the fork, or start the process with the spawn method",
            )

    def _refuse_own_thread(self) -> None:
        if self._thread is threading.current_thread():
            raise HandleUnusableError(
                "was called on its own event loop's thread, which would wait for itself",
                "call it on another thread, or use the async face there",
            )

    def _started(self) -> asyncio.AbstractEventLoop:
        """Give the loop, and see to it that it runs."""
        if self._loop is None:
            loop = asyncio.new_event_loop()
            # A daemon: whoever forgets to close must still be able to leave.
            thread = threading.Thread(target=self._serve, args=(loop,), name=self._name, daemon=True)
            thread.start()
            self._loop, self._thread, self._pid = loop, thread, os.getpid()
        return self._loop

    def _post(self, loop: asyncio.AbstractEventLoop, call: Call[R]) -> Call[R]:
        try:
            call.post(loop)
        except RuntimeError:  # something has ended the thread
            raise _closed("is closed") from None
        self._calls.add(call)
        call.future.add_done_callback(lambda _: self._calls.discard(call))
        return call

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(self._until_closed())
        finally:
            with self._lock:
                self._is_closed = True
                left = [call for call in self._calls if not call.future.done()]
            for call in left:  # posted too late to be begun
                call.future.set_exception(_closed("was closed before a call of it began"))

    async def _until_closed(self) -> None:
        await self._stopping.wait()

    async def _wind_up(self, last: Make[object]) -> None:
        try:
            running = {call.task for call in tuple(self._calls) if call.task is not None}
            others = [task for task in running | self._held if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await last()
        finally:
            self._stopping.set()


async def _nothing() -> None:
    return None


def _closed(reason: str) -> HandleUnusableError:
    return HandleUnusableError(reason, "open a new one")
