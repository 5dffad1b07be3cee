"""Short ways to say what the tests say all the time: owners, lanes, nodes, drafts, commits, whole turns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import msgspec

from fastness.model import (
    Acquired,
    ActiveTurn,
    Append,
    AttachmentIntent,
    AttachmentRef,
    CheckpointKind,
    DeliveryPolicy,
    FullGraph,
    HydratedSessionCheckpoint,
    LeaseOwnerIdentity,
    LeaseOwnerLiveness,
    MergeKey,
    Message,
    Never,
    NextTurn,
    Opaque,
    PendingTurnInput,
    PendingTurnInputDraft,
    PersistedSessionRead,
    PersistedTurnState,
    QueuedWorkBatch,
    QueuedWorkBatchDraft,
    QueuedWorkClaim,
    QueuedWorkPayload,
    RuntimeCommit,
    RuntimeCommitResult,
    SessionCommand,
    SessionExecutionLease,
    SessionExecutionLeaseFence,
    SessionNodeRecord,
    SlotPolicy,
    Task,
    TextPart,
    TokenLedgerEntry,
    TokenUsage,
    TurnBegun,
    TurnInput,
    TurnInputClaim,
    TurnInputIngress,
    Unchanged,
    message_node,
    raw_json,
)
from fastness.model.protocols import RuntimePersistence, SessionDispatchStore

T = TypeVar("T")

TTL_MS = 30_000
WHEN = "2024-05-01T12:00:00Z"
ALICE = LeaseOwnerIdentity("alice", "alice-1")
BOB = LeaseOwnerIdentity("bob", "bob-1")


def some(value: T | None) -> T:
    """What has to be there."""
    assert value is not None, "nothing was given where something had to be"
    return value


async def loaded(store: RuntimePersistence) -> PersistedSessionRead:
    """The whole of a session that has a head."""
    return some(await store.load_session(FullGraph()))


async def claim_inputs(store: RuntimePersistence, lease: SessionExecutionLease, limit: int = 1) -> TurnInputClaim:
    """Claim input for the next turn of ``s``, of which there has to be some."""
    return some(await store.claim_next_turn_inputs("s", lease.fence(), max_inputs=limit))


async def claim_work(store: RuntimePersistence, lease: SessionExecutionLease, limit: int = 1) -> QueuedWorkClaim:
    """Claim queued work of ``s`` while no turn runs, of which there has to be some."""
    return some(await store.claim_ready_queued_work("s", lease.fence(), boundary="idle", max_batches=limit))


def owner(name: str, incarnation: str = "1", liveness: LeaseOwnerLiveness | None = None) -> LeaseOwnerIdentity:
    """One holder of a lane."""
    return LeaseOwnerIdentity(name, incarnation, Opaque() if liveness is None else liveness)


async def lane(
    store: RuntimePersistence, who: LeaseOwnerIdentity = ALICE, *, session_id: str = "s", ttl_ms: int = TTL_MS
) -> SessionExecutionLease:
    """Claim a lane that must be free, expired or one's own."""
    outcome = await store.try_claim_session_execution_lease(session_id, who, ttl_ms)
    assert isinstance(outcome, Acquired), f"{who.owner_id} expected the lane of {session_id!r} and got {outcome}"
    return outcome.lease


async def release(store: RuntimePersistence, lease: SessionExecutionLease) -> None:
    """Give a lane back."""
    await store.release_session_execution_lease(lease.completion())


def node(
    node_id: str, parent: str | None = None, text: str = "hello", *, frame: str | None = None, when: str = WHEN
) -> SessionNodeRecord:
    """A node that carries a message of a user."""
    message = Message(f"m-{node_id}", "user", (TextPart(text),))
    return message_node(node_id, parent, when, message, agent_frame_id=frame)


def chain(*node_ids: str, after: str | None = None) -> tuple[SessionNodeRecord, ...]:
    """Nodes of which each is the parent of the next."""
    parents = (after, *node_ids[:-1])
    return tuple(node(node_id, parent) for node_id, parent in zip(node_ids, parents, strict=True))


def append(*nodes: SessionNodeRecord) -> Append:
    """Add nodes; the last one becomes the leaf."""
    return Append(nodes, nodes[-1].node_id)


def commit(lease: SessionExecutionLease, on: int | None, *nodes: SessionNodeRecord, **fields: Any) -> RuntimeCommit:
    """A commit under a lease on a revision that appends the nodes; ``fields`` are fields of ``RuntimeCommit``."""
    if nodes:
        fields["graph"] = append(*nodes)
    fields = {"session_id": lease.session_id, "session_execution_lease": lease.fence(), **fields}
    return RuntimeCommit(expected_head_revision=on, **fields)


async def revision(store: RuntimePersistence) -> int | None:
    """The head's revision, None before the first commit."""
    head = await store.load_head()
    return None if head is None else head.revision


async def turn(
    store: RuntimePersistence, *nodes: SessionNodeRecord, session_id: str = "s", **fields: Any
) -> RuntimeCommitResult:
    """A whole turn of a free lane: claim it, append the nodes on the head as it is, settle, release."""
    lease = await lane(store, owner("turn", "turn"), session_id=session_id)
    head = await store.load_head()
    stay = Unchanged(None if head is None else head.leaf_node_id)
    fields = {"graph": stay, "release_session_execution_lease": lease.completion(), **fields}
    return await store.commit_runtime_state(commit(lease, None if head is None else head.revision, *nodes, **fields))


def checkpoint(turn_index: int = 1, **parts: Any) -> HydratedSessionCheckpoint:
    """A checkpoint; ``parts`` are ``tool_state``, ``plugin_snapshot``, ``execution_state``."""
    return HydratedSessionCheckpoint(PersistedTurnState(turn_index), **parts)


def usage(*counters: int, source: str = "turn", model: str = "m") -> TokenLedgerEntry:
    """Usage of one model: input, output, cache read, cache write, reasoning output."""
    return TokenLedgerEntry(source, model, TokenUsage(*counters))


def said(text: str, *, session_id: str = "s", key: str | None = None, input_id: str | None = None) -> Any:
    """A draft of input for the next turn."""
    return PendingTurnInputDraft(session_id, NextTurn(), TurnInput.of_text(text), input_id, key)


def said_now(
    text: str, turn_id: str = "t1", *, session_id: str = "s", boundary: CheckpointKind = "after_work", **fields: Any
) -> PendingTurnInputDraft:
    """A draft of input for a turn that runs now."""
    ingress: TurnInputIngress = ActiveTurn(turn_id, boundary)
    return PendingTurnInputDraft(session_id, ingress, TurnInput.of_text(text), **fields)


def later(draft: PendingTurnInputDraft, at_ms: int) -> PendingTurnInputDraft:
    """The same input, for a time of its own."""
    return msgspec.structs.replace(draft, available_at_ms=at_ms)


async def begin(
    dispatch: SessionDispatchStore, session_id: str = "s", who: LeaseOwnerIdentity = ALICE, **fields: Any
) -> TurnBegun:
    """Begin a turn in a session that can run one; ``fields`` are those of ``begin_turn``."""
    begun = await dispatch.begin_turn(session_id, who, TTL_MS, **fields)
    assert isinstance(begun, TurnBegun), f"{who.owner_id} expected a turn of {session_id!r} and got {begun}"
    return begun


def task(kind: str = "task") -> Task:
    """A piece of turn work."""
    return Task(kind, raw_json({"n": 1}))


def command(name: str = "rename") -> SessionCommand:
    """A session command."""
    return SessionCommand(raw_json({"name": name}))


def work(
    *payloads: QueuedWorkPayload,
    session_id: str = "s",
    delivery: DeliveryPolicy = "earliest_safe_boundary",
    slot: SlotPolicy = "join",
    merge: MergeKey | None = None,
    key: str | None = None,
    at_ms: int = 0,
) -> QueuedWorkBatchDraft:
    """A draft of queued work, by default one task."""
    merge_key = Never() if merge is None else merge
    return QueuedWorkBatchDraft(session_id, delivery, slot, payloads or (task(),), merge_key, key, at_ms)


def intent(attachment_id: str, *, session_id: str = "s", name: str = "a.png") -> AttachmentIntent:
    """An intent to put content."""
    return AttachmentIntent(session_id, AttachmentRef(attachment_id, name, "image/png", 3))


def content_id(label: str) -> str:
    """A well-formed attachment id: 64 hexadecimal digits."""
    return label.encode().hex().ljust(64, "0")


async def pieces(*given: bytes) -> AsyncIterator[bytes]:
    """Content as a stream."""
    for piece in given:
        yield piece


async def reached(event: asyncio.Event, by: asyncio.Future[Any]) -> None:
    """Wait until a call comes to a point. One that ends before has failed to, and says why."""
    waiting = asyncio.ensure_future(event.wait())
    await asyncio.wait({waiting, by}, return_when=asyncio.FIRST_COMPLETED)
    if waiting.cancel():
        raise AssertionError(f"it ended early, with {await by!r}")


def other_token(fence: SessionExecutionLeaseFence) -> SessionExecutionLeaseFence:
    """The same fence with a lease token that nobody was given."""
    return SessionExecutionLeaseFence(fence.session_id, fence.owner, "forged", fence.fencing_token)


async def node_ids(store: RuntimePersistence) -> list[str]:
    """The ids of all live nodes in commit order."""
    read = await store.load_session(FullGraph())
    return [] if read is None else [found.node_id for found in read.graph.nodes]


def texts(rows: list[PendingTurnInput] | tuple[PendingTurnInput, ...]) -> list[str]:
    """What the rows of input say, for inputs of one text."""
    return [getattr(row.input.items[0], "text", "?") for row in rows]


def kinds(batches: list[QueuedWorkBatch] | tuple[QueuedWorkBatch, ...]) -> list[str]:
    """The kinds of the first task of each batch; a command shows as ``command``."""
    first = [batch.items[0].payload for batch in batches]
    return [payload.kind if isinstance(payload, Task) else "command" for payload in first]
