"""A session as it is stored and as a running turn or a reader holds it."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from fastness.model.base import NO_JSON, Id, Record, Timestamp, Value
from fastness.model.checkpoint import (
    BlobRef,
    HydratedSessionCheckpoint,
    PersistedTurnState,
    TokenLedgerEntry,
    TokenUsage,
)
from fastness.model.graph import MessageTree, SessionGraph, events_of, messages_of
from fastness.model.transcript import Message, ProtocolEvent

DurabilityTier: TypeAlias = Literal["inline", "durable"]
"""``inline`` dies with the process, ``durable`` survives it."""


class Root(Value, frozen=True, tag_field="type", tag="root"):
    """A session that nobody started but a user."""


class Child(Value, frozen=True, tag_field="type", tag="child"):
    """A session that another session started; ``caused_by`` names the node or call that did."""

    parent_session_id: str
    caused_by: str | None = None


SessionRelation: TypeAlias = Root | Child


class SessionMeta(Record, frozen=True):
    """What a person wants to know of a session. ``created_at`` is RFC 3339.

    ``labels`` are a set, kept in the order of their bytes: a listing can ask for them. ``priority`` is 0 to 9, and the
    work of sessions with 9 goes first. ``custom`` is the application's own JSON.
    """

    session_id: str
    session_name: str
    created_at: str
    model: str
    cwd: str | None = None
    relation: SessionRelation = Root()
    labels: tuple[str, ...] = ()
    priority: int = 0
    custom: msgspec.Raw = NO_JSON


class PersistedSessionConfig(Record, frozen=True):
    """The provider and model that the session runs on."""

    provider_id: str = ""
    model: str = ""


class AgentFrameRecord(Record, frozen=True):
    """A stretch of the transcript that the model sees as one context.

    A frame starts when the context is compacted or the agent's assignment changes. ``started_at`` is RFC 3339,
    ``checkpoint_ref`` the checkpoint that the frame started from (a root of collection), ``body`` the driver's own
    JSON.
    """

    frame_id: Id
    started_at: Timestamp
    reason: str = "initial"
    previous_frame_id: Id | None = None
    checkpoint_ref: BlobRef | None = None
    body: msgspec.Raw = NO_JSON


class SessionHeadMeta(Record, frozen=True):
    """One row that says where a session stands. ``revision`` counts commits from 1."""

    revision: int
    leaf_node_id: str | None
    node_count: int
    config: PersistedSessionConfig
    current_agent_frame_id: str | None = None
    checkpoint_ref: BlobRef | None = None


class SessionHead(Record, frozen=True):
    """The head with all that hangs on it: frames in the order they started, usage per (source, model)."""

    meta: SessionHeadMeta
    agent_frames: tuple[AgentFrameRecord, ...] = ()
    ledger: tuple[TokenLedgerEntry, ...] = ()


class FullGraph(Value, frozen=True, tag_field="type", tag="full_graph"):
    """Load every live node."""


class ActivePath(Value, frozen=True, tag_field="type", tag="active_path"):
    """Load the ancestry of one leaf, by default the head's; all of it, or its end alone.

    ``last`` is how many nodes are wanted at most, the leaf among them. With ``after_revision`` what the session stood
    on at that revision is left out, for whoever has it already; where the path does not lead over the leaf of that
    revision, or nobody knows any more which that was, all of it is given. ``graph.behind_node_id`` says what the nodes
    follow: None where they begin at the root.
    """

    leaf_node_id: str | None = None
    last: int | None = None
    after_revision: int | None = None


SessionReadScope: TypeAlias = FullGraph | ActivePath


class PersistedSessionRead(msgspec.Struct, frozen=True):
    """What a load returns, from one snapshot. ``graph.leaf_node_id`` is the leaf that was asked for."""

    meta: SessionMeta
    head: SessionHead
    graph: SessionGraph
    checkpoint: HydratedSessionCheckpoint | None = None


class SessionSnapshot(Value, frozen=True):
    """The settled state of a session as one value, without anything that only a running turn knows."""

    session_id: str
    config: PersistedSessionConfig
    turn_state: PersistedTurnState
    graph: SessionGraph
    agent_frames: tuple[AgentFrameRecord, ...] = ()
    current_agent_frame_id: str | None = None
    ledger: tuple[TokenLedgerEntry, ...] = ()
    tool_state: bytes | None = None
    plugin_snapshot: bytes | None = None
    execution_state: bytes | None = None


class RuntimeSessionState(msgspec.Struct, frozen=True):
    """What a running turn holds: the settled state, and what is never persisted (all that stands beside it)."""

    settled: SessionSnapshot
    meta: SessionMeta
    observed_head_revision: int | None = None
    pending_tool_state: bytes | None = None
    pending_plugin_snapshot: bytes | None = None
    pending_execution_state: bytes | None = None
    replace_graph: bool = False

    @property
    def session_id(self) -> str:
        """The session this state belongs to."""
        return self.settled.session_id

    def to_snapshot(self) -> SessionSnapshot:
        """Give the settled part; what is never persisted cannot be in it."""
        return self.settled


def _content(part: bytes | BlobRef | None) -> bytes | None:
    return part if isinstance(part, bytes) else None


def snapshot_of(read: PersistedSessionRead) -> SessionSnapshot:
    """Give the settled state that a load returned."""
    checkpoint = read.checkpoint or HydratedSessionCheckpoint(PersistedTurnState())
    return SessionSnapshot(
        session_id=read.meta.session_id,
        config=read.head.meta.config,
        turn_state=checkpoint.turn_state,
        graph=read.graph,
        agent_frames=read.head.agent_frames,
        current_agent_frame_id=read.head.meta.current_agent_frame_id,
        ledger=read.head.ledger,
        tool_state=_content(checkpoint.tool_state),
        plugin_snapshot=_content(checkpoint.plugin_snapshot),
        execution_state=_content(checkpoint.execution_state),
    )


def runtime_state_of(read: PersistedSessionRead) -> RuntimeSessionState:
    """Give what a turn starts from. A session without a commit has no observed revision yet."""
    revision = read.head.meta.revision or None
    return RuntimeSessionState(snapshot_of(read), read.meta, observed_head_revision=revision)


class SessionReadView(msgspec.Struct, frozen=True):
    """An immutable view for readers: the active path in the current frame, and the tree of all loaded messages."""

    messages: tuple[Message, ...]
    events: tuple[ProtocolEvent, ...]
    message_tree: MessageTree
    turn_index: int
    usage: TokenUsage
    config: PersistedSessionConfig
    snapshot: SessionSnapshot

    @classmethod
    def of(cls, read: PersistedSessionRead) -> SessionReadView:
        """Build the view of what a load returned."""
        snapshot = snapshot_of(read)
        frame = snapshot.current_agent_frame_id
        path = tuple(node for node in snapshot.graph.active_path() if node.agent_frame_id == frame)
        usage = TokenUsage()
        for entry in snapshot.ledger:
            usage = usage + entry.usage
        return cls(
            messages_of(path),
            events_of(path),
            snapshot.graph.message_tree(),
            snapshot.turn_state.turn_index,
            usage,
            snapshot.config,
            snapshot,
        )

    def to_snapshot(self) -> SessionSnapshot:
        """Give the settled state behind this view."""
        return self.snapshot


class SessionStoreCreateRequest(Value, frozen=True):
    """Names a session for a factory; all else counts when the session is created.

    ``labels`` and ``priority`` count where nobody has described the session yet: one without labels may be meant so.
    """

    session_id: str
    relation: SessionRelation = Root()
    config: PersistedSessionConfig = PersistedSessionConfig()
    labels: tuple[str, ...] = ()
    priority: int = 0


class SessionFilter(Value, frozen=True):
    """Which sessions a listing shows; times are milliseconds since the epoch, both ends inclusive.

    A session is shown if it has all of the ``labels``. A listing goes through the sessions that the rarest of what is
    asked for fits, and looks at those for the rest; what fits many one by one and hardly any together takes longest.
    """

    id_prefix: str | None = None
    parent_session_id: str | None = None
    created_from_ms: int | None = None
    created_until_ms: int | None = None
    labels: tuple[str, ...] = ()


class SessionSummary(Value, frozen=True):
    """One row of a listing. ``revision`` is 0 before the first commit; times are milliseconds since the epoch."""

    meta: SessionMeta
    revision: int
    node_count: int
    created_ms: int
    updated_ms: int


class SessionPage(Value, frozen=True):
    """One page of a listing, oldest session first; ``next_cursor`` goes into the next call, None at the end."""

    sessions: tuple[SessionSummary, ...]
    next_cursor: str | None = None
