"""The worker: finds sessions that have something to do and runs their turns, some at a time.

It promises that a session's turns run in order and one at a time, whoever else runs turns of it; that a turn which
fails is tried again after a pause, and set aside when it has failed too often; that it ends when it is told to, with
what it runs finished or given back; and that it outlives a database that is away for a while. It looks at the agenda,
never at sessions: what is idle costs nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import secrets
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeAlias

from fastness.decide import limits, limits_directory
from fastness.errors import (
    DatabaseOpenError,
    InvalidInputError,
    LeaseExpiredError,
    SessionDeletedError,
    StoreError,
    TurnInterruptedError,
)
from fastness.liveness import mint_owner
from fastness.model import (
    Agenda,
    Busy,
    LabelLimited,
    LocalProcess,
    Message,
    TurnBeginning,
    TurnBegun,
    WorkerRecord,
)
from fastness.runtime import commands
from fastness.runtime.database import Database
from fastness.runtime.retry import RetryPolicy
from fastness.runtime.sending import Succession
from fastness.runtime.turn import Turn
from fastness.runtime.waiting import granted
from fastness.telemetry import error_type, turn_context, turn_logger

logger = turn_logger("fastness.worker")

Answer: TypeAlias = "str | Message | Mapping[str, Any] | None"
Handler: TypeAlias = "Callable[[Turn], Awaitable[Answer]]"
"""Runs one turn. What it returns, if anything, is appended as the answer."""

_HEARTBEAT_S = 5.0
_SWEEP_S = 1.0
_LOOK_AGAIN_S = 1.0
_QUIET_S = 0.002
_SATURATED_S = 0.5
_HEED_S = 0.25
_FIRST_REST_S = 0.1
_LONGEST_PAUSE_S = 5.0
_STUCK_S = 10.0
_MOST_IN_A_ROW = 8
_MOST_RESTING = 100
_FORGET_AFTER_MS = 86_400_000


class _Rest(NamedTuple):
    """How long a session is left alone of which no turn could be begun, and until when on the event loop's clock."""

    pause_s: float
    until: float


class Worker:
    """Runs the turns of a database's sessions with one handler, ``concurrency`` sessions at a time.

    ``retry`` says how often and when a failed turn is tried again. ``label_limits`` bound how many sessions with a
    label may have a turn running, in all workers together. ``turn_timeout`` bounds one turn; one that is over it has
    failed. ``drain`` is how long turns may go on after ``stop`` before they are given back. ``max_inputs`` bounds what
    one turn takes of what users said. Use it in ``async with``, or call ``run``.
    """

    def __init__(
        self,
        db: Database,
        handler: Handler,
        *,
        concurrency: int = 8,
        name: str | None = None,
        retry: RetryPolicy | None = None,
        label_limits: Mapping[str, int] | None = None,
        turn_timeout: timedelta | None = None,
        drain: timedelta = timedelta(seconds=30),
        max_inputs: int = 100,
        max_batches: int = 100,
    ) -> None:
        for what, number in (("concurrency", concurrency), ("max_inputs", max_inputs), ("max_batches", max_batches)):
            limits.check_positive(what, number)
        if not callable(handler):
            raise InvalidInputError("handler", "must be an async function that takes a turn")
        limits.check_optional_id("name", name)
        limits.check_type("retry", retry, RetryPolicy, type(None))
        limits.check_type("label_limits", label_limits, Mapping, type(None))
        for label, bound in (label_limits or {}).items():
            limits_directory.check_label("label_limits", label)
            limits.check_positive("label_limits", bound)
        _check_span("drain", drain, timedelta(0))
        if turn_timeout is not None:
            _check_span("turn_timeout", turn_timeout, timedelta(microseconds=1))
        self.worker_id = name or f"{platform.node() or 'host'}:{os.getpid()}:{secrets.token_hex(4)}"
        self.settled_count = 0
        self.failed_count = 0
        self._db = db
        self._handler = handler
        self._concurrency = concurrency
        self._retry = retry or RetryPolicy()
        self._label_limits = dict(label_limits or {})
        self._turn_timeout_s = None if turn_timeout is None else turn_timeout.total_seconds()
        self._drain_s = drain.total_seconds()
        self._max_inputs = max_inputs
        self._max_batches = max_batches
        self._started_ms = time.time_ns() // 1_000_000
        self._running: dict[str, asyncio.Task[None]] = {}
        self._saturated: dict[str, float] = {}
        self._freed: dict[str, float] = {}
        self._resting: dict[str, _Rest] = {}
        self._crowded = False
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._background: asyncio.Task[None] | None = None

    # --- its life ---

    async def __aenter__(self) -> Self:
        self._background = asyncio.create_task(self.run(), name=f"worker {self.worker_id}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._background is not None:
            await self._background

    @property
    def running(self) -> tuple[str, ...]:
        """The sessions whose turns run now."""
        return tuple(self._running)

    def stop(self) -> None:
        """Begin nothing more. ``run`` ends when what runs has ended, or was given back at the end of ``drain``."""
        self._stopping.set()
        self._wake.set()

    async def run(self, *, handle_signals: bool = False) -> None:
        """Run turns until ``stop``, or until SIGTERM or SIGINT where signals are to be handled."""
        with self._signals() if handle_signals else contextlib.nullcontext():
            helpers = [
                asyncio.create_task(each, name=f"worker {self.worker_id}")
                for each in (self._listen(), self._heed_often(), self._announce_often(), self._sweep_often())
            ]
            try:
                await self._dispatch()
                await self._drain()
            finally:
                await _end(*helpers, *self._running.values())
                with contextlib.suppress(StoreError):
                    await self._db.factory.workers.retire_worker(self.worker_id)

    @contextlib.contextmanager
    def _signals(self) -> Any:
        loop = asyncio.get_running_loop()
        before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
        for each in before:
            loop.add_signal_handler(each, self.stop)
        try:
            yield
        finally:
            for each, handler in before.items():
                loop.remove_signal_handler(each)
                if handler is not None:
                    signal.signal(each, handler)

    async def _drain(self) -> None:
        """Let what runs come to its end, and give back what does not in time."""
        if self._running:
            logger.info("stopping; %d turns are still running", len(self._running))
            await asyncio.wait(self._running.values(), timeout=self._drain_s)
        await _end(*self._running.values())

    # --- finding turns ---

    async def _listen(self) -> None:
        """Wake the dispatcher whenever something was committed that may be work."""
        seen = 0
        while True:
            try:
                seen = await self._db.factory.engine.wait_for_work(seen, _LOOK_AGAIN_S)
            except Exception as error:  # noqa: BLE001 - the worker looks by itself meanwhile
                logger.warning("cannot listen for work: %s", error_type(error))
                await asyncio.sleep(_LOOK_AGAIN_S)
            self._wake.set()

    async def _dispatch(self) -> None:
        pause_s = _QUIET_S
        while not self._stopping.is_set():
            self._wake.clear()
            timeout_s = _LOOK_AGAIN_S
            if len(self._running) < self._concurrency:
                try:
                    agenda = await self._look()
                except DatabaseOpenError as error:
                    # Most often that is for somebody to mend: another schema, no right, no such place.
                    logger.error("cannot open the database, trying again: %s", error)
                    pause_s = _LONGEST_PAUSE_S
                except StoreError as error:
                    logger.warning("cannot look for work, trying again: %s", error_type(error))
                    pause_s = min(2 * pause_s or _QUIET_S, _LONGEST_PAUSE_S)
                else:
                    began = self._begin_all(agenda)
                    pause_s = 0 if began else _QUIET_S
                    if agenda.next_ready_in_ms is not None:
                        timeout_s = min(timeout_s, agenda.next_ready_in_ms / 1000 + _QUIET_S)
                    if self._saturated:
                        timeout_s = min(timeout_s, _SATURATED_S)
            # Whoever wakes for nothing waits a little: commits of a busy database would have it look all the time.
            await asyncio.sleep(pause_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._wake.wait()

    async def _look(self) -> Agenda:
        now = asyncio.get_running_loop().time()
        self._saturated = {label: until for label, until in self._saturated.items() if until > now}
        # One that was not tried again for as long as it has rested is not on the agenda any more.
        self._resting = {name: rest for name, rest in self._resting.items() if rest.until + rest.pause_s > now}
        # Those that run here may still stand on it while they are about to begin, and those that rest do.
        limit = self._concurrency + len(self._running) + min(len(self._resting), _MOST_RESTING)
        agenda = await self._db.factory.dispatch.read_agenda(
            limit=limit, owner_id=self.worker_id, saturated_labels=tuple(self._saturated)
        )
        self._heed(agenda)
        return agenda

    def _heed(self, agenda: Agenda) -> None:
        """End the turns of this worker that somebody asked to end."""
        for asked in agenda.interrupts:
            lane = self._db.runner.lanes.get(asked.session_id)
            if lane is not None and lane.fencing_token == asked.fencing_token:
                lane.request_interrupt(asked.request)

    async def _heed_often(self) -> None:
        """Hear of interrupts also while there is no room for another turn, and the dispatcher does not look."""
        while True:
            await asyncio.sleep(_HEED_S)
            if len(self._running) >= self._concurrency or self._stopping.is_set():
                with contextlib.suppress(StoreError):
                    self._heed(await self._db.factory.dispatch.read_agenda(limit=1, owner_id=self.worker_id))

    def _begin_all(self, agenda: Agenda) -> int:
        began = 0
        self._crowded = False
        for session in agenda.sessions:
            if len(self._running) >= self._concurrency:
                self._crowded = True
                break
            began += self._start(session.session_id)
        return began

    def _start(self, session_id: str, *, dead_holder: bool = False) -> bool:
        if session_id in self._running or self._stopping.is_set() or self._rests(session_id):
            return False
        with turn_context(session_id=session_id):  # its records say whose they are, also around the turn
            task = asyncio.create_task(self._run(session_id, dead_holder), name=f"turn of {session_id}")
        self._running[session_id] = task

        def ended(_: asyncio.Task[None]) -> None:
            """Make room for the next."""
            del self._running[session_id]
            self._wake.set()

        task.add_done_callback(ended)
        return True

    # --- running one ---

    async def _run(self, session_id: str, dead_holder: bool) -> None:
        """Begin and run one turn. Whatever comes of it, the worker goes on."""
        asked_at = asyncio.get_running_loop().time()
        begun: TurnBeginning | None = None
        try:
            begun = await self._begin(session_id, dead_holder)
            self._resting.pop(session_id, None)
            if isinstance(begun, TurnBegun):
                await self._turns(begun, asked_at)
            elif isinstance(begun, LabelLimited) and self._freed.get(begun.label, 0.0) < asked_at:
                self._saturated[begun.label] = asked_at + _SATURATED_S
        except (LeaseExpiredError, SessionDeletedError) as error:
            self.failed_count += 1
            logger.warning("%s", error)
        except Exception as error:  # noqa: BLE001 - a turn's error is its session's, never the worker's
            self.failed_count += 1
            logger.warning("a turn of session %s failed with %s", session_id, error_type(error))
            if begun is None:
                self._rest(session_id)
        finally:
            if isinstance(begun, TurnBegun):
                for label in begun.limited_labels:  # there is room again
                    self._freed[label] = asyncio.get_running_loop().time()
                    self._saturated.pop(label, None)

    def _rests(self, session_id: str) -> bool:
        rest = self._resting.get(session_id)
        return rest is not None and rest.until > asyncio.get_running_loop().time()

    def _rest(self, session_id: str) -> None:
        """Leave a session alone for a while, longer each time: it stays on the agenda, and would be tried at once."""
        before = self._resting.pop(session_id, None)
        pause_s = _FIRST_REST_S if before is None else min(2 * before.pause_s, _LONGEST_PAUSE_S)
        self._resting[session_id] = _Rest(pause_s, asyncio.get_running_loop().time() + pause_s)

    async def _begin(self, session_id: str, dead_holder: bool) -> TurnBeginning:
        dispatch, ttl_ms = self._db.factory.dispatch, self._db.runner.timings.ttl_ms
        owner, observed = mint_owner(self.worker_id), None
        while True:
            beginning = dispatch.begin_turn(
                session_id,
                owner,
                ttl_ms,
                max_inputs=self._max_inputs,
                max_batches=self._max_batches,
                max_attempts=self._retry.max_attempts,
                label_limits=self._label_limits,
                observed_holder=observed,
            )
            begun = await granted(beginning, self._db.runner.give_back)
            if not (dead_holder and isinstance(begun, Busy) and observed is None):
                return begun
            observed = begun.holder.fence()

    async def _turns(self, begun: TurnBegun, asked_at: float) -> None:
        """Run a turn, and as long as more waits the next ones with it: a few, then it is another session's turn."""
        for left in range(_MOST_IN_A_ROW, 0, -1):
            goes_on = begun.more_waits and left > 1 and not self._crowded and not self._stopping.is_set()
            succession = self._succession() if goes_on else None
            ended = False
            try:
                await self._turn(begun, asked_at, succession)
                ended = not self._stopping.is_set()
            finally:
                # Whatever has ended this one: the next one may have begun with it, and nobody else can run it.
                if succession is not None and not ended:
                    unwanted = await succession.outcome(begun.lease.session_id)
                    if unwanted is not None:
                        await self._db.runner.give_back(unwanted)
            if succession is None or succession.begun is None or not ended:
                return
            begun, asked_at = succession.begun, succession.asked_at

    def _succession(self) -> Succession:
        return Succession(
            self._db.factory.dispatch,
            self.worker_id,
            self._db.runner.timings.ttl_ms,
            max_inputs=self._max_inputs,
            max_batches=self._max_batches,
            max_attempts=self._retry.max_attempts,
        )

    async def _turn(self, begun: TurnBegun, asked_at: float, succession: Succession | None) -> None:
        running = self._db.runner.turn(
            begun,
            asked_at,
            max_inputs=self._max_inputs,
            worker=self.worker_id,
            on_failure=self._give_up,
            succession=succession,
        )
        try:
            async with running as turn:
                if not await commands.apply(turn):
                    answer = await self._answer(turn)
                    if answer is not None:
                        turn.append(answer)
        except TurnInterruptedError as error:
            logger.info("%s", error)
        else:
            self.settled_count += 1

    async def _answer(self, turn: Turn) -> Answer:
        """Have the handler answer. What it raises that is no error becomes one: it concerns this session alone."""
        try:
            async with asyncio.timeout(self._turn_timeout_s):
                return await self._handler(turn)
        except (Exception, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            raise RuntimeError(f"the handler raised {error_type(error)}") from error

    async def _give_up(self, turn: Turn, error: BaseException) -> None:
        """Give back what a turn took: to be tried again later, or set aside, or, where it was stopped, at once."""
        stopped = isinstance(error, asyncio.CancelledError)
        try:
            failure = await turn._give_up(
                self._db.factory.dispatch,
                error=_told(error),
                delay_ms=0 if stopped else self._retry.pause_ms(turn.attempts),
                max_attempts=self._retry.max_attempts,
                counts=not stopped,
            )
        except StoreError as reason:
            # Then its lease runs out, and the attempt counts.
            logger.warning("could not give a failed turn back: %s", error_type(reason))
            return
        if failure.quarantined_count:
            self._db.telemetry.quarantined("input" if turn.inputs else "work", failure.quarantined_count)
            logger.warning("set aside what failed %d times", self._retry.max_attempts)

    # --- beside the turns ---

    async def _announce_often(self) -> None:
        workers = self._db.factory.workers
        while True:
            try:
                await workers.announce_worker(self._record())
                await workers.forget_workers(await self._db.factory.dispatch.now_ms() - _FORGET_AFTER_MS)
            except Exception as error:  # noqa: BLE001 - it is for people to see, and nothing depends on it
                logger.debug("cannot announce the worker: %s", error_type(error))
            await asyncio.sleep(_HEARTBEAT_S)

    def _record(self) -> WorkerRecord:
        return WorkerRecord(
            self.worker_id,
            platform.node() or "host",
            os.getpid(),
            self._started_ms,
            concurrency=self._concurrency,
            state="draining" if self._stopping.is_set() else "running",
            running=len(self._running),
            settled_count=self.settled_count,
            failed_count=self.failed_count,
        )

    async def _sweep_often(self) -> None:
        """Take over what processes of this host held when they died: long before their leases run out."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            if len(self._running) < self._concurrency:
                try:
                    await self._sweep()
                except Exception as error:  # noqa: BLE001 - what dead processes held is free when their leases end
                    logger.debug("cannot look after dead processes: %s", error_type(error))

    async def _sweep(self) -> None:
        verdicts: dict[LocalProcess, bool] = {}
        is_dead = self._db.factory.options.is_dead
        for lane in await self._db.factory.workers.list_held_lanes():
            process = lane.owner.liveness
            if lane.is_expired or not isinstance(process, LocalProcess):
                continue
            if process not in verdicts:
                verdicts[process] = is_dead(process)
            if verdicts[process] and len(self._running) < self._concurrency:
                self._start(lane.session_id, dead_holder=True)


async def _end(*tasks: asyncio.Task[None]) -> None:
    """Cancel what still runs, and wait until it has ended, but not for ever."""
    for task in tasks:
        task.cancel()
    _, stuck = await asyncio.wait(tasks, timeout=_STUCK_S) if tasks else ((), ())
    if stuck:
        # Their code does not let itself be cancelled. Their lanes are free when their leases or the process end.
        logger.error("%d turns do not end; going on without them", len(stuck))


def _told(error: BaseException) -> str:
    """Say what a turn failed with, for whoever looks at what was set aside."""
    return f"{error_type(error)}: {error}" if str(error) else error_type(error)


def _check_span(what: str, value: object, shortest: timedelta) -> None:
    """Take a span of time that may be waited for."""
    if not isinstance(value, timedelta) or value < shortest:
        raise InvalidInputError(what, f"must be a timedelta of {shortest} or more")
