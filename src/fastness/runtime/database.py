"""The database as applications see it: send to a session, run its turns, read it, branch it, watch it.

It promises that nobody who uses it needs to know what a lease is. It holds no rule of its own: stores, lanes and turns
have them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import msgspec

from fastness.attachments.opening import open_attachments
from fastness.attachments.session import SessionAttachmentStore
from fastness.decide import limits, limits_directory
from fastness.engines.sqlite import SqliteEngine
from fastness.errors import InvalidInputError, SessionNotFoundError, StoreError
from fastness.factory import EngineSessionStoreFactory, open_database
from fastness.liveness import mint_owner
from fastness.model import (
    RUNNING_TURN,
    ActivePath,
    ActiveTurn,
    AttachmentItem,
    AttachmentSource,
    AttachmentStore,
    Busy,
    ByInputId,
    BySourceKey,
    CheckpointKind,
    CommitRecord,
    FullGraph,
    LeaseOwnerIdentity,
    LeaseTimings,
    NextTurn,
    PendingTurnInput,
    PendingTurnInputCancelOutcome,
    PendingTurnInputDraft,
    QuarantinedRow,
    QueuedWorkBatch,
    QueuedWorkBatchDraft,
    QueuedWorkPayload,
    SessionCommand,
    SessionExecutionLease,
    SessionExecutionLeaseFence,
    SessionFilter,
    SessionMeta,
    SessionPage,
    SessionReadView,
    SessionStoreCreateRequest,
    SessionSummary,
    SlotPolicy,
    Task,
    TurnBegun,
)
from fastness.model.base import encode
from fastness.runtime import branches
from fastness.runtime.durations import seconds
from fastness.runtime.messages import Said, input_of
from fastness.runtime.running import Runner
from fastness.runtime.turn import Turn, require_place
from fastness.runtime.waiting import all_given_back, enter
from fastness.store import SessionStore
from fastness.telemetry import Telemetry, default_telemetry

_LOOK_AGAIN_S = 1.0
_PAGE = 100


def connect(
    url: str,
    *,
    attachments: str | Path | AttachmentStore | None = None,
    timings: LeaseTimings | None = None,
    owner_id: str | None = None,
    telemetry: Telemetry | None = None,
) -> Database:
    """Name a database by url: ``sqlite:///file``, ``postgresql://…`` or ``memory:``. Use it in ``async with``.

    ``attachments`` is where bytes are kept that messages refer to: a directory or the url of a bucket. ``timings`` say
    how long a lane is held without a sign of life, and ``owner_id`` what the holder is called where others see it; both
    have defaults. Raises ``InvalidInputError`` for a url of no known kind.
    """
    return Database(
        open_database(url), attachments=attachments, timings=timings, owner_id=owner_id, telemetry=telemetry
    )


class Database:
    """All sessions of one database. It is made by ``connect``, or over a factory that the application has."""

    def __init__(
        self,
        factory: EngineSessionStoreFactory,
        *,
        attachments: str | Path | AttachmentStore | None = None,
        timings: LeaseTimings | None = None,
        owner_id: str | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        self.factory = factory
        self.telemetry = telemetry or default_telemetry()
        place = open_attachments(attachments) if isinstance(attachments, str | Path) else attachments
        self.runner = Runner(factory, timings=timings or LeaseTimings(), attachments=place, telemetry=self.telemetry)
        self._owner_id = owner_id
        if isinstance(factory.engine, SqliteEngine):
            factory.engine.tell_groups(self.telemetry.grouped)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Finish what was started and let go of the database."""
        await all_given_back()
        await self.factory.close()

    # --- saying something to a session ---

    async def send(
        self,
        session_id: str,
        said: Said,
        *,
        key: str | None = None,
        to: Literal["next_turn", "running_turn"] = "next_turn",
        boundary: CheckpointKind = "after_work",
        delay: float | timedelta = 0,
    ) -> PendingTurnInput:
        """Say something to a session, durably. An unknown session comes to life with it.

        It starts the next turn, or, with ``to="running_turn"``, joins the turn that runs at its next checkpoint, from
        ``boundary`` on; where none runs, that is the next turn as well. ``delay`` (seconds) holds it back. With
        ``key``, the same thing said again is there once. Raises ``InputSourceKeyConflictError`` for other content
        under a key that is taken.
        """
        if to not in {"next_turn", "running_turn"}:
            raise InvalidInputError("to", f"must be 'next_turn' or 'running_turn', not {to!r}")
        limits.check_checkpoint("boundary", boundary)
        ingress = NextTurn() if to == "next_turn" else ActiveTurn(RUNNING_TURN, boundary)
        draft = PendingTurnInputDraft(
            session_id, ingress, input_of(said), source_key=key, available_at_ms=await self._due_ms(delay)
        )
        return await self._any(session_id).enqueue_pending_turn_input(draft)

    async def enqueue(
        self,
        session_id: str,
        kind: str,
        data: object = None,
        *,
        key: str | None = None,
        delay: float | timedelta = 0,
        slot: SlotPolicy = "exclusive",
    ) -> QueuedWorkBatch:
        """Leave work to a session that no user has asked for; a turn finds it in ``turn.work`` as a ``Task``.

        ``data`` is anything that JSON can say. With ``key``, work of that key is there once.
        """
        return await self._enqueue(session_id, Task(kind, msgspec.Raw(encode(data))), key, delay, slot)

    async def command(self, session_id: str, command: object, *, key: str | None = None) -> QueuedWorkBatch:
        """Have a session apply a command between turns, in order with all else that was sent to it.

        ``command`` is anything that JSON can say. A command of the form ``{"fastness": …}`` is one of the library's own
        (``fastness.runtime.commands``); all others are the handler's.
        """
        return await self._enqueue(session_id, SessionCommand(msgspec.Raw(encode(command))), key, 0, "exclusive")

    async def _enqueue(
        self, session_id: str, payload: QueuedWorkPayload, key: str | None, delay: float | timedelta, slot: SlotPolicy
    ) -> QueuedWorkBatch:
        due_ms = await self._due_ms(delay)
        draft = QueuedWorkBatchDraft(
            session_id, "earliest_safe_boundary", slot, (payload,), source_key=key, available_at_ms=due_ms
        )
        return await self._any(session_id).enqueue_queued_work(draft)

    async def attach(
        self, session_id: str, source: AttachmentSource, *, name: str, media_type: str | None = None
    ) -> AttachmentItem:
        """Keep content for a session and give what refers to it in ``send``; the turn that takes it makes it last."""
        return AttachmentItem(await self._attached(session_id).put(source, name=name, media_type=media_type))

    async def attachment(self, session_id: str, attachment_id: str) -> bytes:
        """Give the content of an attachment that a session holds.

        Raises ``AttachmentNotInManifestError`` for what it does not hold, whoever else may.
        """
        return await self._attached(session_id).get(attachment_id)

    def _attached(self, session_id: str) -> SessionAttachmentStore:
        return require_place(self.runner.session_attachments(self._any(session_id)))

    async def pending(self, session_id: str) -> tuple[tuple[PendingTurnInput, ...], tuple[QueuedWorkBatch, ...]]:
        """Give what waits for a session's next turns: input and work, each in the order of admission."""
        store = self._any(session_id)
        inputs = await store.list_pending_turn_inputs(session_id)
        return tuple(inputs), tuple(await store.list_pending_queued_work(session_id))

    async def cancel(
        self, session_id: str, *, input_id: str | None = None, key: str | None = None
    ) -> PendingTurnInputCancelOutcome:
        """Take back what was said, by its id or its key, unless a turn has taken it."""
        if (input_id is None) == (key is None):
            raise InvalidInputError("input_id", "or key must be given, one of the two")
        target = ByInputId(input_id) if input_id is not None else BySourceKey(key or "")
        (result,) = await self._any(session_id).cancel_pending_turn_inputs(session_id, [target])
        return result.outcome

    async def interrupt(self, session_id: str, *, reason: str | None = None) -> SessionExecutionLease | None:
        """Ask the turn that runs, in whatever process, to end. Gives the lease that it runs under, None: none runs.

        What the turn has taken is settled with an event that says so; what it was making is dropped.
        """
        return await self.factory.dispatch.request_interrupt(session_id, reason=reason)

    # --- turns ---

    @asynccontextmanager
    async def turn(
        self,
        session_id: str,
        *,
        wait_s: float | None = None,
        max_inputs: int = 100,
        at: str | None = None,
        claims: bool = True,
    ) -> AsyncIterator[Turn]:
        """Run a turn: the block's end commits all that it did, an exception leaves nothing of it.

        Turns of one session run one at a time, in whatever process; ``wait_s`` bounds the wait for the others
        (``ContendedError``). ``at`` names the node to go on from, by default the session's leaf. Without ``claims``
        the turn takes nothing of what waits. If the lane is lost
        meanwhile, the block is cancelled, and ``LeaseExpiredError`` says why.
        """

        limits.check_optional_id("at", at)
        limits.check_type("claims", claims, bool)
        if wait_s is not None:
            seconds("wait_s", wait_s)
        outer = self.runner.lanes.get(session_id)
        if outer is not None and outer.is_asked_inside:
            raise InvalidInputError("session_id", f"{session_id!r} runs a turn right here, which would wait for itself")

        async def claim(owner: LeaseOwnerIdentity, observed: SessionExecutionLeaseFence | None) -> TurnBegun | Busy:
            """Begin the turn, also where nothing waits."""
            outcome = await self.factory.dispatch.begin_turn(
                session_id,
                owner,
                self.runner.timings.ttl_ms,
                max_inputs=max_inputs,
                needs_something=False,
                claims=claims,
                observed_holder=observed,
            )
            assert isinstance(outcome, TurnBegun | Busy)
            return outcome

        owner = mint_owner(self._owner_id)
        entry = await enter(
            session_id, owner, claim, give_back=self.runner.give_back, wait_s=wait_s, wait=self._waiter()
        )
        running = self.runner.turn(
            entry.outcome, entry.asked_at, max_inputs=max_inputs, at_node_id=at, on_failure=self._cancelled
        )
        async with running as turn:
            yield turn

    async def _cancelled(self, turn: Turn, error: BaseException) -> None:
        """Give a turn back that its caller has cancelled: what it took was not tried."""
        if isinstance(error, asyncio.CancelledError):
            with suppress(StoreError):
                await turn._give_up(self.factory.dispatch, error="cancelled", counts=False)

    # --- reading ---

    async def read(
        self, session_id: str, *, last: int | None = None, at_revision: int | None = None
    ) -> SessionReadView | None:
        """Read a session as its last turn left it, with every branch; None before the first turn.

        With ``last``, only so many nodes at the end of the branch it stands on are read, however long that is. With
        ``at_revision`` it is read, whole, as that commit left it: ``RevisionNotReadableError`` where that is not
        possible any more.
        """
        if last is not None:
            limits.check_positive("last", last)
            if at_revision is not None:
                raise InvalidInputError("last", "goes with the session as it is now, not with at_revision")
        if at_revision is not None:
            read = await self.factory.history.load_session_at(session_id, at_revision)
        else:
            store = await self.factory.open_existing_store(SessionStoreCreateRequest(session_id))
            scope = FullGraph() if last is None else ActivePath(last=last)
            read = None if store is None else await store.load_session(scope)
        return None if read is None else SessionReadView.of(read)

    async def history(self, session_id: str, *, after_revision: int = 0) -> AsyncIterator[CommitRecord]:
        """Go through the commits of a session, oldest first: revision, turn, time, usage."""
        while True:
            page = await self.factory.history.list_commits(session_id, after_revision=after_revision, limit=_PAGE)
            for record in page.commits:
                after_revision = record.revision
                yield record
            if page.cursor is None:
                return

    async def watch(self, session_id: str, *, after_revision: int | None = None) -> AsyncIterator[CommitRecord]:
        """Go on through the commits of a session as they are made, anywhere, for as long as one likes.

        It begins behind ``after_revision``, by default behind the last one there is.
        """
        wait = self._waiter()
        seen = await self._revision(session_id) if after_revision is None else after_revision
        while True:
            async for record in self.history(session_id, after_revision=seen):
                seen = record.revision
                yield record
            await wait(_LOOK_AGAIN_S)

    async def _revision(self, session_id: str) -> int:
        store = await self.factory.open_existing_store(SessionStoreCreateRequest(session_id))
        head = None if store is None else await store.load_head()
        return 0 if head is None else head.revision

    async def list(
        self, *, limit: int = _PAGE, cursor: str | None = None, filters: SessionFilter | None = None
    ) -> SessionPage:
        """List sessions, oldest first, a page at a time."""
        return await self.factory.list_sessions(limit=limit, cursor=cursor, filters=filters)

    async def sessions(self, filters: SessionFilter | None = None) -> AsyncIterator[SessionSummary]:
        """Go through all sessions, oldest first."""
        cursor: str | None = None
        while True:
            page = await self.list(cursor=cursor, filters=filters)
            for summary in page.sessions:
                yield summary
            cursor = page.next_cursor
            if cursor is None:
                return

    async def describe(
        self,
        session_id: str,
        *,
        name: str | None = None,
        labels: Sequence[str] | None = None,
        priority: int | None = None,
        custom: object = msgspec.UNSET,
    ) -> SessionMeta:
        """Describe a session, as far as something is given, and give what is known of it.

        ``priority`` is 0 to 9, and 9 goes first; ``custom`` is anything that JSON can say. An unknown session comes to
        life if something is given. Raises ``SessionNotFoundError`` where only asked about one.
        """
        changes: dict[str, Any] = {"session_name": name, "priority": priority}
        if labels is not None:
            # A text is a sequence as well, of labels that nobody means.
            limits.check_type("labels", labels, list, tuple)
            changes["labels"] = tuple(labels)
        changes["custom"] = None if custom is msgspec.UNSET else msgspec.Raw(encode(custom))
        changes = {field: value for field, value in changes.items() if value is not None}
        limits_directory.check_changes(session_id, changes)
        if changes:
            return await self.factory.describe_session(session_id, changes)
        store = await self.factory.open_existing_store(SessionStoreCreateRequest(session_id))
        meta = None if store is None else await store.load_session_meta()
        if meta is None:
            raise SessionNotFoundError(session_id)
        return meta

    # --- branches ---

    async def switch(self, session_id: str, node_id: str | None) -> None:
        """Have the session go on from another node, on whatever branch; None is before the first one.

        It waits for the turn that runs. Raises ``GraphInvalidError`` for a node that is not there.
        """
        limits.check_optional_id("node_id", node_id)
        async with self.turn(session_id, claims=False) as turn:
            await branches.switch(turn, node_id)

    async def edit(self, session_id: str, message_id: str, said: Said, *, key: str | None = None) -> None:
        """Say something else in the place of an earlier message: a new branch from where that message stood.

        The session goes on from the message's parent, and what is said is its next turn's input, by one commit. The
        branch that was is kept. Raises ``GraphInvalidError`` for a message that is not there.
        """
        limits.check_id("message_id", message_id)
        limits.check_input_draft(PendingTurnInputDraft(session_id, NextTurn(), input_of(said), source_key=key))
        async with self.turn(session_id, claims=False) as turn:
            await branches.edit(turn, message_id, said, key)

    async def regenerate(self, session_id: str, message_id: str | None = None) -> None:
        """Have an answer made anew, by default the last: a new branch from what it answered.

        The session goes on from there, with work of the kind ``fastness.regenerate`` for its next turn, by one commit.
        """
        limits.check_optional_id("message_id", message_id)
        async with self.turn(session_id, claims=False) as turn:
            await branches.regenerate(turn, message_id)

    async def fork(
        self,
        session_id: str,
        new_session_id: str,
        *,
        at_node: str | None = None,
        at_revision: int | None = None,
        name: str | None = None,
    ) -> SessionMeta:
        """Make a new session of what one was, at its head, a node or an earlier revision, in one transaction.

        Raises ``SessionIdTakenError``, ``SessionNotFoundError`` or ``RevisionNotReadableError``.
        """
        return await self.factory.history.fork_session(
            session_id, new_session_id, at_node_id=at_node, at_revision=at_revision, name=name
        )

    # --- what was set aside ---

    async def quarantine(self, session_id: str | None = None) -> AsyncIterator[QuarantinedRow]:
        """Go through what was set aside because its turns failed again and again."""
        cursor: str | None = None
        while True:
            page = await self.factory.dispatch.list_quarantine(session_id=session_id, limit=_PAGE, cursor=cursor)
            for row in page.rows:
                yield row
            cursor = page.cursor
            if cursor is None:
                return

    async def retry(self, row: QuarantinedRow) -> bool:
        """Let a row be tried again, behind everything that waits. False: it is not in quarantine any more."""
        limits.check_type("row", row, QuarantinedRow)
        return await self.factory.dispatch.retry_quarantined(row.session_id, row.kind, row.row_id)

    async def discard(self, row: QuarantinedRow) -> bool:
        """Give a row up for good. False: it is not in quarantine any more."""
        limits.check_type("row", row, QuarantinedRow)
        return await self.factory.dispatch.discard_quarantined(row.session_id, row.kind, row.row_id)

    async def delete(self, session_id: str) -> None:
        """Remove all of a session, also while somebody works on it; twice is fine."""
        await self.factory.delete_session(session_id)

    # --- odds and ends ---

    def _any(self, session_id: str) -> SessionStore:
        """Give a handle that reaches a session by its name, whether or not it is there."""
        return SessionStore(self.factory.engine, session_id, None, self.factory.options)

    async def _due_ms(self, delay: float | timedelta) -> int:
        """Give the database's time after a delay, 0 for none."""
        delay_s = seconds("delay", delay)
        return await self.factory.dispatch.now_ms() + int(delay_s * 1000) if delay_s else 0

    def _waiter(self) -> Callable[[float], Any]:
        """Give a way to wait until something was committed that may concern whoever waits, or the time is up."""
        seen = 0

        async def wait(timeout_s: float) -> None:
            """Wait once."""
            nonlocal seen
            seen = await self.factory.engine.wait_for_work(seen, timeout_s)

        return wait
