"""What a turn has made of its session so far, and the commit that it amounts to. It does no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from fastness.model import (
    RUNNING_TURN,
    Append,
    BlobRef,
    EventPayload,
    HydratedSessionCheckpoint,
    Message,
    PendingTurnInput,
    PendingTurnInputDraft,
    PersistedSessionConfig,
    Protocol,
    ProtocolEvent,
    QueuedWorkBatchDraft,
    QueuedWorkClaim,
    RuntimeCommit,
    RuntimeCommitResult,
    SessionNodeRecord,
    TokenLedgerEntry,
    TokenUsage,
    TurnInputClaim,
    Unchanged,
    message_node,
)
from fastness.model.base import encode
from fastness.model.graph import messages_of
from fastness.runtime.ground import Ground, carried
from fastness.runtime.messages import attachment_ids_of, message_of_input, new_id

_PLUGIN = "fastness"


class Made:
    """Nodes behind a leaf, usage, claims, an outbox, a state and a configuration: all that a turn's commit says."""

    def __init__(self) -> None:
        self.ground = Ground()
        self.leaf: str | None = None
        self.nodes: list[SessionNodeRecord] = []
        self.usage: list[TokenLedgerEntry] = []
        self.inputs: list[TurnInputClaim] = []
        self.work: list[QueuedWorkClaim] = []
        self.outbox: list[PendingTurnInputDraft | QueuedWorkBatchDraft] = []
        self.state: bytes | None = None
        self.state_changed = False
        self.config: PersistedSessionConfig | None = None
        self.moved = False

    def stand_on(self, ground: Ground) -> None:
        """Begin on the settled state of a session."""
        self.ground, self.leaf, self.state = ground, ground.leaf_node_id, ground.state

    def move_to(self, node_id: str | None, turn_id: str) -> None:
        """Go on from another node; None is before the first one."""
        self.leaf, self.moved = node_id, True
        if node_id is None and self.ground.leaf_node_id is not None:
            # A session that has nodes always stands on one: here on a root of its own.
            self.note({"type": "new_root", "turn_id": turn_id})

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation up to now."""
        return (*self.ground.messages, *messages_of(self.nodes))

    @property
    def rows(self) -> tuple[PendingTurnInput, ...]:
        """What users said that was taken, in the order in which it was."""
        return tuple(row for claim in self.inputs for row in claim.inputs)

    # --- adding ---

    def say(self, inputs: Sequence[PendingTurnInput]) -> tuple[Message, ...]:
        """Add what users said, each as a message of the input's id."""
        messages = tuple(map(message_of_input, inputs))
        for message in messages:
            self.add(message.id, message, caused_by=message.id)
        return messages

    def add(self, node_id: str, message: Message, *, caused_by: str | None = None) -> None:
        """Add a message behind the leaf."""
        frame_id = self.ground.frame_id
        node = message_node(node_id, self.leaf, _now(), message, caused_by=caused_by, agent_frame_id=frame_id)
        self.nodes.append(node)
        self.leaf = node_id

    def add_event(self, node_id: str, event: ProtocolEvent) -> None:
        """Add an event behind the leaf."""
        payload = EventPayload(Protocol(event))
        self.nodes.append(SessionNodeRecord(node_id, self.leaf, _now(), payload, None, self.ground.frame_id))
        self.leaf = node_id

    def note(self, what: dict[str, str | None]) -> None:
        """Add an event of our own."""
        self.add_event(new_id(), ProtocolEvent(_PLUGIN, msgspec.Raw(encode(what))))

    def drop(self) -> None:
        """Forget all that was made, but for what was taken and what was spent."""
        self.leaf, self.nodes = self.ground.leaf_node_id, []
        self.outbox, self.state, self.state_changed, self.config = [], self.ground.state, False, None
        self.say(self.rows)

    # --- what it comes to ---

    @property
    def is_something(self) -> bool:
        """Whether there is anything to commit."""
        made = self.nodes or self.usage or self.outbox or self.inputs or self.work
        return bool(made or self.moved or self.state_changed or self.config is not None)

    def commit(self, session_id: str, *, interrupted: bool) -> RuntimeCommit:
        """Give the commit, without lease and stamp. One of an interrupted turn leaves later input to the next."""
        commit = RuntimeCommit(
            session_id,
            self.ground.revision,
            graph=Append(tuple(self.nodes), self.leaf) if self.nodes else Unchanged(self.leaf),
            checkpoint=self._checkpoint(),
            usage_deltas=tuple(self.usage),
            config=self.config,
        )
        commit = commit.completing_turn_input_claims(tuple(self.inputs)).completing_queue_claims(tuple(self.work))
        if interrupted:
            commit = commit.deferring_interrupted_turn_inputs(RUNNING_TURN)
        if self.outbox:
            commit = commit.with_outbox(*self.outbox)
        attached = {attachment_id: None for row in self.rows for attachment_id in attachment_ids_of(row)}
        return commit.with_committed_attachments(tuple(attached)) if attached else commit

    def _checkpoint(self) -> HydratedSessionCheckpoint:
        before = self.ground
        spent = sum((entry.usage for entry in self.usage), TokenUsage())
        turn_state = msgspec.structs.replace(
            before.turn_state,
            turn_index=before.turn_state.turn_index + 1,
            token_usage=before.turn_state.token_usage + spent,
            last_prompt_usage=self.usage[-1].usage if self.usage else before.turn_state.last_prompt_usage,
        )
        state: bytes | BlobRef | None = self.state if self.state_changed else carried(self.state)
        return HydratedSessionCheckpoint(turn_state, before.tool_state, before.plugin_snapshot, state)

    def ground_after(self, result: RuntimeCommitResult | None) -> Ground | None:
        """Give what the next turn stands on, None where this one cannot know: its commit was there before it."""
        if self.moved or result is None or result.replayed or result.manifest is None:
            return None
        return msgspec.structs.replace(
            self.ground,
            revision=result.head_revision,
            leaf_node_id=result.leaf_node_id,
            messages=self.messages,
            config=self.config or self.ground.config,
            turn_state=result.manifest.turn_state,
            state=self.state,
        )


def _now() -> str:
    return datetime.now(UTC).isoformat()
