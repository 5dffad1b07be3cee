"""One turn of a session: what was said goes in, what came of it lands as one commit, or nothing does.

It promises that nothing is written before the end but claims, which die with the lane; that the commit is sent again,
unchanged, where its answer was lost; and that no transaction is open while the turn's own code runs. It goes through
the public capabilities of a store and knows no database. Whoever runs turns (``running``, ``worker``, ``branches``)
calls what begins with an underscore; the turn's own code does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, Literal

import msgspec

from fastness.attachments.session import SessionAttachmentStore
from fastness.decide import limits
from fastness.decide.commit_input import check_usage
from fastness.dispatch import EngineSessionDispatch
from fastness.errors import InvalidInputError, NodeIdCollisionError
from fastness.formats.openai_chat import from_message
from fastness.model import (
    RUNNING_TURN,
    AttachmentRef,
    AttachmentSource,
    CheckpointKind,
    Message,
    NextTurn,
    PendingTurnInput,
    PendingTurnInputDraft,
    PersistedSessionConfig,
    ProtocolEvent,
    QueuedWorkBatch,
    QueuedWorkBatchDraft,
    RuntimeCommitResult,
    RuntimePersistence,
    SessionNodeRecord,
    Task,
    TokenLedgerEntry,
    TokenUsage,
    TurnBegun,
    TurnFailure,
    TurnInputClaim,
)
from fastness.model.base import encode
from fastness.runtime.durations import seconds
from fastness.runtime.ground import Ground
from fastness.runtime.lane import LaneKeeper, turn_id_of
from fastness.runtime.made import Made
from fastness.runtime.messages import Item, Said, input_of, message_of, new_id
from fastness.runtime.sending import Submit, send
from fastness.telemetry import Telemetry, TurnSpan, default_telemetry

_USAGE_SOURCE = "turn"


def require_place(attached: SessionAttachmentStore | None) -> SessionAttachmentStore:
    """Refuse to attach or to read where no place for attachments was named."""
    if attached is None:
        raise InvalidInputError("attachments", "have no place; name one: connect(url, attachments='some/directory')")
    return attached


class Turn:
    """What a handler has in hand while it runs a turn.

    ``messages`` is the conversation as a model should see it: the branch that the session stands on, then what was
    said since, then what this turn has appended. ``inputs`` and ``work`` are what the turn has claimed, and what its
    commit settles; one of the two is what it began with, as ``kind`` says.
    """

    def __init__(
        self,
        store: RuntimePersistence,
        lane: LaneKeeper,
        begun: TurnBegun,
        *,
        max_inputs: int = 100,
        attachments: SessionAttachmentStore | None = None,
        telemetry: Telemetry | None = None,
        span: TurnSpan | None = None,
        submit: Submit | None = None,
    ) -> None:
        self.session_id = lane.session_id
        self.turn_id = turn_id_of(lane.fencing_token)
        self.result: RuntimeCommitResult | None = None
        self._store = store
        self._lane = lane
        self._max_inputs = max_inputs
        self._attachments = attachments
        self._telemetry = telemetry or default_telemetry()
        self._span = span
        self._submit = submit or store.commit_runtime_state
        self._began_at_ms = begun.lease.claimed_at_epoch_ms
        self._began_at = asyncio.get_running_loop().time()
        self._made = Made()
        self._fresh: tuple[Message, ...] = ()
        if begun.input_claim is not None:
            self._made.inputs.append(begun.input_claim)
        if begun.work_claim is not None:
            self._made.work.append(begun.work_claim)
        self._tell_claimed(len(self.inputs) + len(self.work))

    # --- reading ---

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation up to now."""
        return self._made.messages

    def chat_messages(self) -> list[dict[str, Any]]:
        """Give the conversation up to now in the form of chat completions, each message as its provider sent it."""
        return [msgspec.json.decode(from_message(message)) for message in self.messages]

    @property
    def inputs(self) -> tuple[PendingTurnInput, ...]:
        """What users said that this turn has taken, in the order of admission."""
        return self._made.rows

    @property
    def work(self) -> tuple[QueuedWorkBatch, ...]:
        """The queued work that this turn has taken."""
        return tuple(batch for claim in self._made.work for batch in claim.batches)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks among the queued work that this turn has taken; ``task.decode(type)`` gives what they carry."""
        payloads = (item.payload for batch in self.work for item in batch.items)
        return tuple(payload for payload in payloads if isinstance(payload, Task))

    @property
    def kind(self) -> Literal["input", "work", "command", "empty"]:
        """What the turn has to do: answer, do work, apply a session command, or nothing that it was told of."""
        if self._made.inputs:
            return "input"
        if not self._made.work:
            return "empty"
        return "command" if self.work[0].work_class == "session_command" else "work"

    @property
    def attempts(self) -> int:
        """How often what the turn has taken was tried, this time included: 1 for the first."""
        counts = [row.attempts for row in self.inputs] + [batch.attempts for batch in self.work]
        return max(counts, default=1)

    @property
    def fencing_token(self) -> int:
        """The number of the lane's grant under which this turn runs."""
        return self._lane.fencing_token

    @property
    def revision(self) -> int:
        """The session's last commit when this turn began, 0 before the first: what the turn stands on."""
        return self._made.ground.revision or 0

    @property
    def model(self) -> str:
        """The model that the session is configured for, empty where none is."""
        return self._config.model

    @property
    def interrupted(self) -> bool:
        """Whether somebody asked this turn to end. Its code is cancelled then; what it may still do is to return."""
        return self._lane.interrupt is not None

    @property
    def state(self) -> bytes | None:
        """The agent's own state, as the last turn left it or this one has set it; any bytes."""
        return self._made.state

    @state.setter
    def state(self, state: bytes | None) -> None:
        """Have this turn leave another state; None takes it away."""
        if state is not None and not isinstance(state, bytes):
            raise InvalidInputError("state", f"must be bytes or None, not {type(state).__name__}")
        self._made.state, self._made.state_changed = state, True

    async def node(self, node_id: str) -> SessionNodeRecord | None:
        """Give a settled node of the session, on whatever branch; None where there is none."""
        return await self._store.load_node(node_id)

    # --- writing ---

    def append(self, item: Item, *, usage: TokenUsage | None = None, model: str | None = None) -> str:
        """Add to the conversation, and give the id of the new node.

        ``item`` is the assistant's text, a message, a provider's dictionary in the form of chat completions, or an
        event. A message's node has the message's id, which must be new to the session (``NodeIdCollisionError``).
        ``usage`` is charged to ``model``, by default the one that the session is configured for.
        """
        node_id = limits.check_id("item.id", item.id) if isinstance(item, Message) else new_id()
        if isinstance(item, Message) and any(known.id == node_id for known in self.messages):
            raise NodeIdCollisionError(self.session_id, node_id)
        said = item if isinstance(item, ProtocolEvent) else message_of(item, node_id)
        # Nothing is half appended, and nothing is refused only when the turn is over.
        if usage is not None:
            self.charge(usage, model=model)
        if isinstance(said, ProtocolEvent):
            self._made.add_event(node_id, said)
        else:
            self._made.add(node_id, said)
        return node_id

    def charge(self, usage: TokenUsage, *, model: str | None = None) -> None:
        """Add to the session's usage, for a call that gave no message."""
        check_usage("usage", usage)
        charged = limits.check_id("model", model or self.model or "unknown")
        self._made.usage.append(TokenLedgerEntry(_USAGE_SOURCE, charged, usage))

    def send(
        self,
        session_id: str,
        said: Said,
        *,
        key: str | None = None,
        delay: float | timedelta = 0,
        input_id: str | None = None,
    ) -> None:
        """Say something to this or another session with this turn's commit, or not at all (law C14)."""
        draft = PendingTurnInputDraft(session_id, NextTurn(), input_of(said), input_id, key, self._due_ms(delay))
        limits.check_input_draft(draft)
        self._made.outbox.append(draft)

    def enqueue(
        self,
        kind: str,
        data: object = None,
        *,
        session_id: str | None = None,
        key: str | None = None,
        delay: float | timedelta = 0,
    ) -> None:
        """Leave work to this or another session with this turn's commit, or not at all: a wake, a follow-up.

        ``data`` is anything that JSON can say; the turn that does the work finds it in ``tasks``. ``delay`` is in
        seconds.
        """
        task = Task(kind, msgspec.Raw(encode(data)))
        target = self.session_id if session_id is None else session_id
        due = self._due_ms(delay)
        draft = QueuedWorkBatchDraft(
            target, "after_current_turn_commit", "exclusive", (task,), source_key=key, available_at_ms=due
        )
        limits.check_batch_draft(draft)
        self._made.outbox.append(draft)

    def configure(self, *, model: str | None = None, provider_id: str | None = None) -> None:
        """Have the session run on another model or provider from now on."""
        for what, name in (("model", model), ("provider_id", provider_id)):
            if name is not None:
                limits.check_text(what, name)
        config = self._config
        self._made.config = PersistedSessionConfig(
            config.provider_id if provider_id is None else provider_id, config.model if model is None else model
        )

    async def attach(self, source: AttachmentSource, *, name: str, media_type: str | None = None) -> AttachmentRef:
        """Keep content beside the transcript; the turn's commit refers to it. Give the reference for a message."""
        return await self._attached().put(source, name=name, media_type=media_type)

    async def attachment(self, attachment_id: str) -> bytes:
        """Give the content of an attachment that this session holds."""
        return await self._attached().get(attachment_id)

    def _attached(self) -> SessionAttachmentStore:
        return require_place(self._attachments)

    def _due_ms(self, delay: float | timedelta) -> int:
        """Give the database's time after a delay; what it was when the turn began is known."""
        delay_s = seconds("delay", delay)
        if not delay_s:
            return 0
        passed_s = asyncio.get_running_loop().time() - self._began_at
        return self._began_at_ms + int((passed_s + delay_s) * 1000)

    @property
    def _config(self) -> PersistedSessionConfig:
        return self._made.config or self._made.ground.config

    # --- what is said meanwhile ---

    async def checkpoint(self, kind: CheckpointKind = "after_work") -> tuple[Message, ...]:
        """Take what was said to this turn meanwhile, at a safe boundary; it is appended, and given."""
        self._lane.require()
        claim = await self._store.claim_active_turn_inputs(
            self.session_id,
            self._lane.lease.fence(),
            turn_id=RUNNING_TURN,
            checkpoint=kind,
            max_inputs=self._max_inputs,
        )
        return self._take(claim)

    async def checkpoints(self) -> AsyncIterator[tuple[Message, ...]]:
        """Go on until nobody has said anything more.

        First what the turn began with, which is nothing where it began with work (an answer that is to be made anew
        is work); then, each time that the body has come to an end, what was said to this turn meanwhile.
        """
        fresh = self._fresh
        while True:
            yield fresh
            fresh = await self.checkpoint("before_completion")
            if not fresh:
                return

    async def take_work(self, max_batches: int = 1) -> tuple[QueuedWorkBatch, ...]:
        """Take work that may be done within a running turn, if such work leads the queue; this turn settles it."""
        self._lane.require()
        claim = await self._store.claim_ready_queued_work(
            self.session_id, self._lane.lease.fence(), boundary="active_turn_checkpoint", max_batches=max_batches
        )
        if claim is None:
            return ()
        self._made.work.append(claim)
        self._tell_claimed(len(claim.batches))
        return claim.batches

    def _take(self, claim: TurnInputClaim | None) -> tuple[Message, ...]:
        if claim is None:
            return ()
        self._made.inputs.append(claim)
        self._tell_claimed(len(claim.inputs))
        return self._made.say(claim.inputs)

    def _tell_claimed(self, count: int) -> None:
        if self._span is not None:
            self._span.claimed(count)

    # --- its beginning and its end ---

    def _begin(self, ground: Ground) -> None:
        """Stand on the settled state of the session, with what was taken said behind it."""
        self._made.stand_on(ground)
        self._fresh = self._made.say(self.inputs)

    def _move_to(self, node_id: str | None) -> None:
        """Go on from another node, on whatever branch; None is before the first one. Before anything is appended."""
        if self._made.nodes:
            raise InvalidInputError("node_id", "must be named before anything is appended or claimed")
        self._made.move_to(node_id, self.turn_id)

    async def _settle(self) -> None:
        """Commit all of it at once, and give the lane back with it. A turn that did nothing commits nothing.

        Raises ``LeaseExpiredError`` where the lane was lost (nothing is written then), and what else a commit raises. A
        lost answer is not one of them: the same commit is sent again, and lands once.
        """
        self._lane.settle()
        self._lane.take_back_cancellation()
        attached = self._attachments
        if not (self._made.is_something or self.interrupted or (attached is not None and attached.pending)):
            self._lane.require()
            return
        commit = self._made.commit(self.session_id, interrupted=self.interrupted)
        if attached is not None:
            commit = attached.stamp(commit)
        commit = commit.with_turn_commit(self.turn_id)
        self.result = await send(self._submit, self._lane, commit, self._telemetry)
        self._lane.settled()
        if attached is not None:
            attached.settled(commit)
        if self._span is not None and not self.interrupted:
            self._span.settled(self.result, self._made.usage)

    async def _settle_interrupted(self) -> None:
        """Commit that the turn was interrupted: what it took and what it spent, and nothing of what it made.

        The transcript gets what was said and an event that says so; what was said to the running turn and not taken yet
        is for the next one (law I5).
        """
        request = self._lane.interrupt
        self._made.drop()
        reason = None if request is None else request.reason
        self._made.note({"type": "turn_interrupted", "turn_id": self.turn_id, "reason": reason})
        # What it attached is referred to by nothing; what users did, their input names.
        self._attachments = None
        await self._settle()

    async def _give_up(
        self,
        dispatch: EngineSessionDispatch,
        *,
        error: str,
        delay_ms: int = 0,
        max_attempts: int | None = None,
        counts: bool = True,
    ) -> TurnFailure:
        """Give back what was taken, and the lane with it, as ``fail_turn`` does. Nothing else is written."""
        failure = await dispatch.fail_turn(
            self._lane.lease.completion(),
            input_claims=tuple(self._made.inputs),
            work_claims=tuple(self._made.work),
            error=error,
            delay_ms=delay_ms,
            max_attempts=max_attempts,
            counts=counts,
        )
        self._lane.settled()
        return failure

    def _ground_after(self) -> Ground | None:
        """Give what the next turn stands on, None where this one cannot know."""
        return self._made.ground_after(self.result)
