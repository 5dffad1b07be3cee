"""The worker for handlers that do not await: the async one finds and keeps the turns, threads run them.

It promises what the async worker promises, but that a handler can be stopped: a thread cannot. A handler whose turn was
taken from it finds that out by its next call of the turn, and nobody waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import signal
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeAlias, TypeVar

from fastness.errors import InvalidInputError
from fastness.runtime.turn import Turn as AsyncTurn
from fastness.runtime.worker import Answer
from fastness.runtime.worker import Worker as AsyncWorker
from fastness.sync.crew import Crew
from fastness.sync.database import Database
from fastness.sync.face import Face, Seen, like
from fastness.sync.loop import Call
from fastness.sync.turn import Turn
from fastness.telemetry import error_type, turn_logger

logger = turn_logger("fastness.worker")

P = ParamSpec("P")
R = TypeVar("R")
Handler: TypeAlias = "Callable[[Turn], Answer]"
"""Runs one turn, on a thread. What it returns, if anything, is appended as the answer."""
_Outcome: TypeAlias = "tuple[Answer, Exception | None]"


def _seen(read: Callable[[AsyncWorker], R]) -> Seen[R]:
    return Seen(read)


def _options_of(
    method: Callable[Concatenate[Any, Any, Any, P], None],
) -> Callable[[Callable[..., None]], Callable[Concatenate[Any, Database, Handler, P], None]]:
    """Have a constructor take the options that the async one takes."""
    return lambda init: like(method, init)


class Worker(Face):
    """``fastness.Worker`` with a plain function as its handler, on as many threads as turns run.

    Use it in ``with``, or call ``run``.
    """

    _of = AsyncWorker

    @_options_of(AsyncWorker.__init__)
    def __init__(self, db: Database, handler: Handler, **options: Any) -> None:
        if not callable(handler) or inspect.iscoroutinefunction(handler):
            raise InvalidInputError("handler", "must be a plain function that takes a turn; fastness.Worker awaits one")
        super().__init__(db._loop, AsyncWorker(db._over, self._handle, **options))
        self._handler = handler
        self._crew = Crew(f"fastness.sync {self.worker_id}")

    worker_id = _seen(lambda worker: worker.worker_id)
    settled_count = _seen(lambda worker: worker.settled_count)
    failed_count = _seen(lambda worker: worker.failed_count)
    running = _seen(lambda worker: worker.running)

    def __enter__(self) -> Self:
        self._run(self._over.__aenter__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._run(lambda: self._over.__aexit__(kind, error, trace))
        finally:
            self._crew.dismiss()

    def stop(self) -> None:
        """Begin nothing more, as any thread or a signal's handler may say; ``run`` drains then, and ends."""
        self._loop.post(self._over.stop)

    def run(self, *, handle_signals: bool = False) -> None:
        """Run turns until ``stop``, or until SIGTERM or SIGINT where signals are to be handled: in the main thread.

        Ctrl-C drains as ``stop`` does, and goes on as ``KeyboardInterrupt`` behind that; a second one gives back what
        still runs.
        """
        with self._signals() if handle_signals else contextlib.nullcontext():
            running = Call(self._over.run)
            try:
                self._loop.begin(running)
                running.future.result()
            except BaseException:
                self.stop()
                # Ctrl-C may come before it is known that the worker runs.
                if not running.future.done() and self._loop.has_begun(running):
                    running.result()
                raise
            finally:
                self._crew.dismiss()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def stop(number: int, frame: FrameType | None) -> None:
            """Take it as a wish to stop."""
            self.stop()

        before = {each: signal.signal(each, stop) for each in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    # --- on the loop's thread, but for what the crew runs ---

    async def _handle(self, over: AsyncTurn) -> Answer:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[_Outcome] = loop.create_future()
        turn = Turn(self._loop, over)
        # The thread's log records and spans belong to the turn as those of this task do.
        context = contextvars.copy_context()

        def take(outcome: _Outcome) -> None:
            """Take what came of it, where somebody still waits for that."""
            if not done.done():
                done.set_result(outcome)
            elif outcome[1] is not None:
                logger.info("a handler that had lost its turn ended with %s", error_type(outcome[1]))

        def tell(outcome: _Outcome) -> None:
            """Have it taken on the loop."""
            with contextlib.suppress(RuntimeError):  # the loop is gone, and the turn with it
                loop.call_soon_threadsafe(take, outcome)

        self._crew.start(lambda: context.run(self._outcome_of, turn), tell)
        return await turn._attended(done)

    def _outcome_of(self, turn: Turn) -> _Outcome:
        try:
            return self._handler(turn), None
        except Exception as error:  # noqa: BLE001 - a turn's error is its session's
            return None, error
        except BaseException as error:  # noqa: BLE001 - neither is leaving the thread a reason to end the process
            failed = RuntimeError(f"the handler was left by {error_type(error)}")
            failed.__cause__ = error
            return None, failed
