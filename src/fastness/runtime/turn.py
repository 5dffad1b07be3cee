"""One turn of a session: what was said goes in, what came of it lands as one commit, or nothing does.

It promises that nothing is written before the end but claims, which die with the lane; that the commit is sent again,
unchanged, where its answer was lost; and that no transaction is open while the turn's own code runs. It goes through
the public capabilities of a store and knows no database.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from fastness.errors import (
    CommitOutcomeUnknownError,
    ContendedError,
    InvalidInputError,
    LeaseExpiredError,
)
from fastness.formats.openai_chat import to_message
from fastness.model import (
    Append,
    AttachmentItem,
    BlobRef,
    CheckpointKind,
    EventPayload,
    FilePart,
    GenericPart,
    HydratedSessionCheckpoint,
    Message,
    MessageOrigin,
    MessagePart,
    PendingTurnInput,
    PersistedSessionConfig,
    PersistedTurnState,
    Protocol,
    ProtocolEvent,
    RuntimeCommit,
    RuntimeCommitResult,
    RuntimePersistence,
    RuntimeSessionState,
    SessionNodeRecord,
    StructuredItem,
    TextItem,
    TextPart,
    TokenLedgerEntry,
    TokenUsage,
    TurnInputClaim,
    Unchanged,
    message_node,
)
from fastness.model.base import encode, sha256_hex
from fastness.model.graph import messages_of
from fastness.runtime.lane import LaneKeeper
from fastness.state import load_persisted_session_state_active_path

_USAGE_SOURCE = "turn"
_ATTEMPTS = 6
_FIRST_PAUSE_S = 0.1


def turn_id_of(fencing_token: int) -> str:
    """Name the turn that runs under a grant of the lane, so that whoever sees the lease can address it."""
    return f"turn/{fencing_token}"


class Turn:
    """What a handler has in hand while it runs a turn. ``Turn.begin`` makes one, under a lane that is held.

    ``messages`` is the conversation as a model should see it: the branch that the session stands on, then what was
    said since, then what this turn has appended.
    """

    def __init__(
        self, store: RuntimePersistence, lane: LaneKeeper, state: RuntimeSessionState | None, max_inputs: int
    ) -> None:
        self.session_id = lane.session_id
        self.turn_id = turn_id_of(lane.fencing_token)
        self.result: RuntimeCommitResult | None = None
        self._store = store
        self._lane = lane
        self._max_inputs = max_inputs
        self._before = state
        path = () if state is None else state.settled.graph.active_path()
        frame = None if state is None else state.settled.current_agent_frame_id
        self._settled_messages = messages_of(node for node in path if node.agent_frame_id == frame)
        self._frame = frame
        self._leaf = None if state is None else state.settled.graph.leaf_node_id
        self._nodes: list[SessionNodeRecord] = []
        self._usage: list[TokenLedgerEntry] = []
        self._claims: list[TurnInputClaim] = []
        self._state = None if state is None else state.settled.execution_state
        self._state_changed = False
        self._fresh: tuple[Message, ...] = ()

    @classmethod
    async def begin(cls, store: RuntimePersistence, lane: LaneKeeper, *, max_inputs: int = 100) -> Turn:
        """Load the session, and claim what was said since the last turn."""
        turn = cls(store, lane, await load_persisted_session_state_active_path(store), max_inputs)
        claim = await store.claim_next_turn_inputs(turn.session_id, lane.lease.fence(), max_inputs=max_inputs)
        turn._fresh = turn._take(claim)
        return turn

    # --- reading ---

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation up to now."""
        return (*self._settled_messages, *messages_of(self._nodes))

    @property
    def fencing_token(self) -> int:
        """The number of the lane's grant under which this turn runs."""
        return self._lane.fencing_token

    @property
    def state(self) -> bytes | None:
        """The agent's own state, as the last turn left it or this one has set it; any bytes."""
        return self._state

    @state.setter
    def state(self, state: bytes | None) -> None:
        """Have this turn leave another state; None takes it away."""
        if state is not None and not isinstance(state, bytes):
            raise InvalidInputError("state", f"must be bytes or None, not {type(state).__name__}")
        self._state = state
        self._state_changed = True

    # --- writing ---

    def append(
        self,
        item: str | Message | Mapping[str, Any] | ProtocolEvent,
        *,
        usage: TokenUsage | None = None,
        model: str | None = None,
    ) -> str:
        """Add to the conversation, and give the id of the new node.

        ``item`` is the assistant's text, a message, a provider's dictionary in the form of chat completions, or an
        event. ``usage`` is charged to ``model``, by default the one that the session is configured for.
        """
        node_id = secrets.token_hex(16)
        now = datetime.now(UTC).isoformat()
        if isinstance(item, ProtocolEvent):
            payload = EventPayload(Protocol(item))
            self._nodes.append(SessionNodeRecord(node_id, self._leaf, now, payload, None, self._frame))
        else:
            message = _message_of(item, node_id)
            self._nodes.append(message_node(node_id, self._leaf, now, message, agent_frame_id=self._frame))
        self._leaf = node_id
        if usage is not None:
            self.charge(usage, model=model)
        return node_id

    def charge(self, usage: TokenUsage, *, model: str | None = None) -> None:
        """Add to the session's usage, for a call that gave no message."""
        if not isinstance(usage, TokenUsage):
            raise InvalidInputError("usage", "must be a TokenUsage")
        config = PersistedSessionConfig() if self._before is None else self._before.settled.config
        self._usage.append(TokenLedgerEntry(_USAGE_SOURCE, model or config.model or "unknown", usage))

    async def checkpoint(self, kind: CheckpointKind = "after_work") -> tuple[Message, ...]:
        """Take what was said to this turn meanwhile, at a safe boundary; it is appended, and given."""
        self._lane.require()
        claim = await self._store.claim_active_turn_inputs(
            self.session_id,
            self._lane.lease.fence(),
            turn_id=self.turn_id,
            checkpoint=kind,
            max_inputs=self._max_inputs,
        )
        return self._take(claim)

    async def checkpoints(self) -> AsyncIterator[tuple[Message, ...]]:
        """Go on until nobody has said anything more.

        First what the turn began with, which may be nothing; then, each time that the body has come to an end, what was
        said to this turn meanwhile.
        """
        fresh = self._fresh
        while True:
            yield fresh
            fresh = await self.checkpoint("before_completion")
            if not fresh:
                return

    def _take(self, claim: TurnInputClaim | None) -> tuple[Message, ...]:
        if claim is None:
            return ()
        self._claims.append(claim)
        now = datetime.now(UTC).isoformat()
        messages = []
        for row in claim.inputs:
            message = _said(row)
            node = message_node(
                message.id, self._leaf, now, message, caused_by=row.input_id, agent_frame_id=self._frame
            )
            self._nodes.append(node)
            self._leaf = node.node_id
            messages.append(message)
        return tuple(messages)

    # --- the end ---

    async def settle(self) -> RuntimeCommitResult:
        """Commit all of it at once, and give the lane back with it.

        Raises ``LeaseExpiredError`` where the lane was lost (nothing is written then), and what else a commit raises. A
        lost answer is not one of them: the same commit is sent again, and lands once.
        """
        commit = self._commit().with_turn_commit(self.turn_id)
        self.result = await self._send(commit)
        self._lane.settled()
        return self.result

    def _commit(self) -> RuntimeCommit:
        before = self._before
        leaf = self._leaf
        usage = sum((entry.usage for entry in self._usage), TokenUsage())
        turn_state = PersistedTurnState() if before is None else before.settled.turn_state
        turn_state = msgspec.structs.replace(
            turn_state,
            turn_index=turn_state.turn_index + 1,
            token_usage=turn_state.token_usage + usage,
            last_prompt_usage=self._usage[-1].usage if self._usage else turn_state.last_prompt_usage,
        )
        commit = RuntimeCommit(
            self.session_id,
            None if before is None else before.observed_head_revision,
            graph=Append(tuple(self._nodes), leaf) if self._nodes else Unchanged(leaf),
            checkpoint=self._checkpoint(turn_state),
            usage_deltas=tuple(self._usage),
        )
        return commit.completing_turn_input_claims(tuple(self._claims))

    def _checkpoint(self, turn_state: PersistedTurnState) -> HydratedSessionCheckpoint:
        settled = None if self._before is None else self._before.settled
        state: bytes | BlobRef | None = self._state if self._state_changed else _carried(self._state)
        if settled is None:
            return HydratedSessionCheckpoint(turn_state, execution_state=state)
        return HydratedSessionCheckpoint(
            turn_state, _carried(settled.tool_state), _carried(settled.plugin_snapshot), state
        )

    async def _send(self, commit: RuntimeCommit) -> RuntimeCommitResult:
        unanswered = False
        pause_s = _FIRST_PAUSE_S
        for attempt in range(1, _ATTEMPTS + 1):
            lease = self._lane.lease
            sent = commit.with_session_execution_lease(lease.fence())
            sent = sent.releasing_session_execution_lease(lease.completion())
            try:
                return await self._store.commit_runtime_state(sent)
            except (CommitOutcomeUnknownError, ContendedError) as error:
                unanswered |= isinstance(error, CommitOutcomeUnknownError)
                if attempt == _ATTEMPTS:
                    raise
            except LeaseExpiredError:
                # Had it landed, the receipt would have answered. The lane may only have run out meanwhile.
                if not unanswered or attempt == _ATTEMPTS:
                    raise
                await self._lane.reenter()
            await asyncio.sleep(pause_s * (0.5 + random.random()))  # noqa: S311 - jitter
            pause_s *= 2
        raise AssertionError("the last attempt returns or raises")


def _carried(content: bytes | None) -> BlobRef | None:
    """Name content that the head holds already: it is neither read nor written again."""
    return None if content is None else BlobRef(sha256_hex(content))


def _message_of(item: str | Message | Mapping[str, Any], message_id: str) -> Message:
    if isinstance(item, Message):
        return item
    if isinstance(item, str):
        return Message(message_id, "assistant", (TextPart(item),))
    if isinstance(item, Mapping):
        return to_message(encode(dict(item)), message_id)
    raise InvalidInputError("item", f"must be text, a message or a dictionary, not {type(item).__name__}")


def _said(row: PendingTurnInput) -> Message:
    """Give what a user said as a message. Its id is that of the input: claimed again, it is the same message."""
    role: Literal["user"] = "user"
    origin = MessageOrigin("turn_input", row.input_id)
    return Message(row.input_id, role, _parts(row.input.items), origin)


def _parts(items: Sequence[TextItem | AttachmentItem | StructuredItem]) -> tuple[MessagePart, ...]:
    parts: list[MessagePart] = []
    for item in items:
        if isinstance(item, TextItem):
            parts.append(TextPart(item.text))
        elif isinstance(item, AttachmentItem):
            reference = item.attachment
            modality = reference.media_type.partition("/")[0]
            parts.append(FilePart(reference.attachment_id, reference.media_type, modality))
        else:
            parts.append(GenericPart(item.kind, item.data))
    return tuple(parts)
