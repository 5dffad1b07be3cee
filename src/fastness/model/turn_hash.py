"""The hash of what a turn means (law C9).

Two runs of one turn that mean the same hash the same, although ids and times were minted anew; anything the user could
notice changes the hash. So the ids that a commit introduces (nodes, messages, frames) count as ordinals, and references
to what exists already, to completed rows and to all foreign JSON count as they are, foreign JSON byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastness.errors import InvalidInputError
from fastness.model.base import canonical_json, sha256_hex
from fastness.model.checkpoint import BlobRef, HydratedSessionCheckpoint
from fastness.model.graph import Append, GraphCommitDelta, ReplaceFull
from fastness.model.queued_work import QueuedWorkBatchDraft
from fastness.model.session import AgentFrameRecord
from fastness.model.transcript import Conversation, EventPayload, NodePayload, SessionNodeRecord
from fastness.model.turn_input import PendingTurnInputDraft

if TYPE_CHECKING:
    from fastness.model.commit import RuntimeCommit

_HASH_VERSION = "fastness.turn/1"

_Named = Callable[[str | None], "int | str | None"]
"""Gives an id as the hash sees it: its ordinal if this commit introduces it, else itself."""


def turn_commit_hash(commit: RuntimeCommit) -> str:
    """Give the sha256 of what the commit means, in hexadecimal. ``InvalidInputError`` for what is no commit."""
    try:
        return sha256_hex(canonical_json(_meaning(commit)))
    except (AttributeError, TypeError) as error:
        raise InvalidInputError("commit", f"is not made of the values that it should be: {error}") from None


def _meaning(commit: RuntimeCommit) -> Any:
    nodes = introduced_nodes(commit.graph)
    node_ordinals = {node.node_id: at for at, node in enumerate(nodes)}
    frame_ordinals = {frame.frame_id: at for at, frame in enumerate(commit.agent_frames)}

    def node_name(node_id: str | None) -> int | str | None:
        return node_id if node_id is None else node_ordinals.get(node_id, node_id)

    def frame_name(frame_id: str | None) -> int | str | None:
        return frame_id if frame_id is None else frame_ordinals.get(frame_id, frame_id)

    return (
        _HASH_VERSION,
        commit.session_id,
        commit.config,
        [_frame(frame, frame_name) for frame in commit.agent_frames],
        frame_name(commit.current_agent_frame_id),
        type(commit.graph).__name__,
        [_node(node, node_name, frame_name) for node in nodes],
        node_name(leaf_of(commit.graph)),
        _checkpoint(commit.checkpoint),
        commit.usage_deltas,
        [completion.batch_ids for completion in commit.completed_queue_claims],
        [completion.input_ids for completion in commit.completed_turn_input_claims],
        commit.interrupted_turn_input_turn_id,
        commit.committed_attachment_ids,
        [_outbox(entry.draft) for entry in commit.outbox],
    )


def introduced_nodes(delta: GraphCommitDelta) -> tuple[SessionNodeRecord, ...]:
    """The nodes that a delta writes."""
    if isinstance(delta, Append):
        return delta.nodes
    return delta.graph.nodes if isinstance(delta, ReplaceFull) else ()


def leaf_of(delta: GraphCommitDelta) -> str | None:
    """The leaf that a delta ends on."""
    return delta.graph.leaf_node_id if isinstance(delta, ReplaceFull) else delta.leaf_node_id


def _node(node: SessionNodeRecord, node_name: _Named, frame_name: _Named) -> Any:
    caused_by, frame = node_name(node.caused_by), frame_name(node.agent_frame_id)
    return (node_name(node.parent_node_id), _payload(node.payload), caused_by, frame)


def _payload(payload: NodePayload) -> Any:
    if isinstance(payload, EventPayload) and isinstance(payload.event, Conversation):
        message = payload.event.message
        return ("message", message.role, message.parts, message.origin, message.provider)
    return payload


def _frame(frame: AgentFrameRecord, frame_name: _Named) -> Any:
    return (frame.reason, frame_name(frame.previous_frame_id), frame.checkpoint_ref, frame.body)


def _checkpoint(checkpoint: HydratedSessionCheckpoint | None) -> Any:
    if checkpoint is None:
        return None
    parts = (checkpoint.tool_state, checkpoint.plugin_snapshot, checkpoint.execution_state)
    return (checkpoint.turn_state, [_part(part) for part in parts])


def _outbox(draft: PendingTurnInputDraft | QueuedWorkBatchDraft) -> Any:
    # An input id that the draft brings along is one that the commit introduces; its place in the outbox names it.
    if isinstance(draft, PendingTurnInputDraft):
        return ("input", draft.session_id, draft.ingress, draft.input, draft.source_key)
    return ("work", draft)


def _part(part: bytes | BlobRef | None) -> str | None:
    # Content and a reference to the same content mean the same.
    if part is None:
        return None
    return part.sha256 if isinstance(part, BlobRef) else sha256_hex(part)
