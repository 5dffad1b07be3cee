"""The hash of what a turn means (law C9).

Two runs of one turn that mean the same hash the same, although ids and times were minted anew; anything the user could
notice changes the hash. So the ids that a commit introduces (nodes, messages, frames) count as ordinals, and references
to what exists already, to completed rows and to all foreign JSON count as they are, foreign JSON byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

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

_Ordinals: TypeAlias = "Mapping[str | None, int | str | None]"
"""The ordinals of the ids that a commit introduces. The hash sees ``ordinals.get(name, name)``: all others, and None,
as they are."""


def turn_commit_hash(commit: RuntimeCommit) -> str:
    """Give the sha256 of what the commit means, in hexadecimal. ``InvalidInputError`` for what is no commit."""
    try:
        return sha256_hex(canonical_json(_meaning(commit)))
    except (AttributeError, TypeError) as error:
        raise InvalidInputError("commit", f"is not made of the values that it should be: {error}") from None


def _meaning(commit: RuntimeCommit) -> Any:
    nodes = introduced_nodes(commit.graph)
    of_nodes: _Ordinals = {node.node_id: at for at, node in enumerate(nodes)}
    of_frames: _Ordinals = {frame.frame_id: at for at, frame in enumerate(commit.agent_frames)}
    current, leaf = commit.current_agent_frame_id, leaf_of(commit.graph)
    return (
        _HASH_VERSION,
        commit.session_id,
        commit.config,
        [_frame(frame, of_frames) for frame in commit.agent_frames],
        of_frames.get(current, current),
        type(commit.graph).__name__,
        [_node(node, of_nodes, of_frames) for node in nodes],
        of_nodes.get(leaf, leaf),
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


def _node(node: SessionNodeRecord, of_nodes: _Ordinals, of_frames: _Ordinals) -> Any:
    parent, cause, frame = node.parent_node_id, node.caused_by, node.agent_frame_id
    payload = _payload(node.payload)
    return (of_nodes.get(parent, parent), payload, of_nodes.get(cause, cause), of_frames.get(frame, frame))


def _payload(payload: NodePayload) -> Any:
    if isinstance(payload, EventPayload) and isinstance(payload.event, Conversation):
        message = payload.event.message
        return ("message", message.role, message.parts, message.origin, message.provider)
    return payload


def _frame(frame: AgentFrameRecord, of_frames: _Ordinals) -> Any:
    previous = frame.previous_frame_id
    return (frame.reason, of_frames.get(previous, previous), frame.checkpoint_ref, frame.body)


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
