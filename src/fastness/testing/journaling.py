"""Journals for programs that use the runtime: a telemetry and a wrapper for workers, and a sender.

They write down what the checker needs and change nothing else::

    told = JournalTelemetry(Journal.create_in("journals"))
    async with fastness.connect(url, telemetry=told) as db:
        async with fastness.Worker(db, told.handler(answer)): ...

What they say of a turn is known when they say it: its beginning before anything of it can be committed, its commit when
the database has acknowledged it. What was set aside is not written; the final state tells it.
"""

from __future__ import annotations

import asyncio
from typing import Literal, NamedTuple

import msgspec

from fastness.errors import BackendError, CommitOutcomeUnknownError, ContendedError
from fastness.model import CheckpointKind, RuntimeCommitResult
from fastness.runtime.database import Database
from fastness.runtime.turn import Turn
from fastness.runtime.worker import Answer, Handler
from fastness.telemetry import CommitSpan, Telemetry, TurnSpan, error_type
from fastness.telemetry.context import TurnFacts
from fastness.testing.events import Committed, Interrupted, Sent, TurnFailed, TurnStarted, text_hash
from fastness.testing.journal import Journal

_TRY_AGAIN = (BackendError, CommitOutcomeUnknownError, ContendedError)
_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 1.0


class _Name(NamedTuple):
    """Which turn it is."""

    session_id: str
    turn_id: str
    fencing_token: int


class JournalTelemetry(Telemetry):
    """Writes the turns of this process into its journal. It tells nobody else.

    ``handler`` wraps the handler of a worker, or ``begun`` is called first in the block of a turn: only that way is it
    known on which revision a turn stands and which inputs it has. A turn of which neither was said, such as a session
    command, is announced right before its commit, without.
    """

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._open: dict[tuple[str, int], _JournalSpan] = {}

    def turn(self, session_id: str, turn_id: str, fencing_token: int, *, worker: str | None = None) -> TurnSpan:
        """Give the span of a turn, which writes how the turn ended."""
        span = _JournalSpan(_Name(session_id, turn_id, fencing_token), self, worker or "")
        self._open[session_id, fencing_token] = span
        return span

    def commit(self, session_id: str, turn_id: str, fencing_token: int) -> CommitSpan:
        """Give the span of one attempt to commit, which writes that it landed."""
        span = self._open.get((session_id, fencing_token))
        if span is None:  # nobody runs a turn here, or the lane was claimed anew for a commit that is sent again
            span = self._latest(session_id, turn_id) or _JournalSpan(
                _Name(session_id, turn_id, fencing_token), self, ""
            )
        span.announce()
        return _JournalCommit(span, fencing_token)

    def begun(self, turn: Turn) -> None:
        """Announce a turn, as the first thing in it."""
        span = self._open.get((turn.session_id, turn.fencing_token))
        if span is not None:
            span.announce(turn)

    def handler(self, handler: Handler) -> Handler:
        """Wrap a worker's handler, so that each of its turns is announced."""

        async def announced(turn: Turn) -> Answer:
            """Announce it and run it."""
            self.begun(turn)
            return await handler(turn)

        return announced

    def ended(self, session_id: str, fencing_token: int) -> None:
        """Forget a turn that is over."""
        self._open.pop((session_id, fencing_token), None)

    def _latest(self, session_id: str, turn_id: str) -> _JournalSpan | None:
        return next(
            (span for (name, _), span in self._open.items() if name == session_id and span.name.turn_id == turn_id),
            None,
        )


class _JournalSpan(TurnSpan):
    """One turn of this process, and what was said of it."""

    def __init__(self, name: _Name, telemetry: JournalTelemetry, worker: str) -> None:
        super().__init__(TurnFacts(*name))
        self.name = name
        self.journal = telemetry.journal
        self.turn: Turn | None = None
        self.was_interrupted = False
        self._telemetry = telemetry
        self._worker = worker
        self._is_announced = False
        self._failure: BaseException | None = None
        self._has_landed = False

    def announce(self, turn: Turn | None = None) -> None:
        """Write that it begins, once."""
        if self._is_announced:
            return
        self._is_announced = True
        self.turn = turn
        event = TurnStarted(**self.name._asdict(), worker=self._worker)
        if turn is not None:
            inputs = tuple(row.input_id for row in turn.inputs)
            event = msgspec.structs.replace(event, input_ids=inputs, head_revision=turn.revision)
        self.journal.write(event)

    def landed(self, result: RuntimeCommitResult, fencing_token: int) -> None:
        """Write that its commit was acknowledged. What an interrupted turn took has no answer, and is not named."""
        self._has_landed = True
        answered = () if self.turn is None or self.was_interrupted else self.turn.inputs
        self.journal.write(
            Committed(
                session_id=self.name.session_id,
                turn_id=self.name.turn_id,
                fencing_token=fencing_token,
                revision=result.head_revision,
                input_ids=tuple(row.input_id for row in answered),
                replayed=result.replayed,
            )
        )

    def failed(self, error: BaseException) -> None:
        self._failure = error

    def interrupted(self) -> None:
        self.was_interrupted = True

    def _end(self, error: BaseException | None) -> None:
        self._telemetry.ended(self.name.session_id, self.name.fencing_token)
        failure = self._failure or error
        if self.was_interrupted:
            self.journal.write(Interrupted(**self.name._asdict()))
        elif failure is not None and not self._has_landed:
            self.journal.write(TurnFailed(**self.name._asdict(), error=error_type(failure)))


class _JournalCommit(CommitSpan):
    """One attempt to commit a turn."""

    def __init__(self, span: _JournalSpan, fencing_token: int) -> None:
        self._span = span
        self._fencing_token = fencing_token

    def landed(self, result: RuntimeCommitResult) -> None:
        self._span.landed(result, self._fencing_token)


class JournalSender:
    """Sends to sessions and writes it down, before and after; insists until the database has acknowledged."""

    def __init__(self, db: Database, journal: Journal) -> None:
        self._db = db
        self._journal = journal

    async def send(
        self,
        session_id: str,
        text: str,
        *,
        key: str,
        to: Literal["next_turn", "running_turn"] = "next_turn",
        boundary: CheckpointKind = "after_work",
        delay: float = 0,
    ) -> str:
        """Send one text as ``Database.send`` does, and give the id of the input.

        While the database is away, or its answer was lost, the same is sent again under the same key, however often
        that takes. Raises what else ``Database.send`` raises.
        """
        ordered = to == "next_turn" and not delay
        sent = Sent(session_id=session_id, key=key, text_hash=text_hash(text), ordered=ordered)
        self._journal.write(sent)
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                row = await self._db.send(session_id, text, key=key, to=to, boundary=boundary, delay=delay)
            except _TRY_AGAIN:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            else:
                self._journal.write(msgspec.structs.replace(sent, input_id=row.input_id, acknowledged=True))
                return row.input_id
