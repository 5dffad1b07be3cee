"""What a commit is before it meets the database: checked against the limits (law B1), encoded and hashed.

All of this happens outside the transaction, so that the writer is held for facts, decision and writes only.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from fastness.decide.limits import (
    check_batch_draft,
    check_budget,
    check_claim_names,
    check_completion,
    check_count,
    check_fence,
    check_id,
    check_ids,
    check_input_draft,
    check_optional_id,
    check_proofs,
    check_type,
    utf8_size,
)
from fastness.decide.packing import packed
from fastness.decide.stored_node import node_body
from fastness.errors import InvalidInputError
from fastness.model.attachments import AttachmentProof
from fastness.model.base import MAX_INT, MAX_TIMESTAMP_BYTES, checked, checked_bodies, encode, sha256_hex
from fastness.model.checkpoint import (
    BlobRef,
    HydratedSessionCheckpoint,
    PersistedTurnState,
    SessionCheckpoint,
    TokenLedgerEntry,
    TokenUsage,
)
from fastness.model.commit import OutboxInput, OutboxWork, RuntimeCommit, RuntimeTurnCommitStamp
from fastness.model.graph import Append, ReplaceFull, SessionGraph, Unchanged
from fastness.model.lease import SessionExecutionLeaseCompletion, SessionExecutionLeaseFence
from fastness.model.queued_work import QueuedWorkCompletion
from fastness.model.session import AgentFrameRecord, PersistedSessionConfig
from fastness.model.transcript import Message, SessionNodeRecord
from fastness.model.turn_hash import introduced_nodes, leaf_of
from fastness.model.turn_input import TurnInputCompletion


class CheckpointInput(msgspec.Struct, frozen=True):
    """A checkpoint ready to be stored: its manifest, the content that came along, and what it carries by reference.

    ``bodies`` are the contents as they are stored, by their names; ``size`` is that of the contents, in bytes.
    """

    manifest: SessionCheckpoint
    manifest_body: str
    manifest_ref: str
    bodies: dict[str, bytes]
    size: int
    carried: tuple[str, ...]

    def refs(self) -> frozenset[str]:
        """All blobs that the head holds once this checkpoint is its own."""
        return frozenset((self.manifest_ref, *(ref.sha256 for ref in self.manifest.blob_refs())))


class CommitInput(msgspec.Struct, frozen=True):
    """A commit with everything encoded; ``node_bodies`` and ``frame_bodies`` are in the order of its values.

    ``node_ids`` and ``frame_ids`` are what has to be looked up in the store to decide whether the graph may change so.
    """

    commit: RuntimeCommit
    nodes: tuple[SessionNodeRecord, ...]
    node_bodies: list[str]
    leaf_node_id: str | None
    config_body: str | None
    frame_bodies: list[str]
    checkpoint: CheckpointInput | None
    usage: dict[tuple[str, str], TokenUsage]
    node_ids: list[str]
    frame_ids: list[str]


def prepare(commit: RuntimeCommit, budget_bytes: int) -> CommitInput:
    """Check and encode a commit. Raises ``InvalidInputError``; it looks at nothing but the commit."""
    _check_shape(commit)
    nodes = introduced_nodes(commit.graph)
    records = checked_bodies(SessionNodeRecord, nodes, _check_node) if nodes else []
    frames = commit.agent_frames
    frame_bodies = checked_bodies(AgentFrameRecord, frames, _check_frame) if frames else []
    checkpoint = None if commit.checkpoint is None else _checkpoint(commit.checkpoint)
    config_body = None if commit.config is None else checked(PersistedSessionConfig, commit.config)[1]
    size = sum(map(utf8_size, [*records, *frame_bodies, config_body or ""]))
    size += sum([len(encode(entry)) for entry in commit.outbox])
    check_budget(size if checkpoint is None else size + checkpoint.size, budget_bytes)
    return CommitInput(
        commit,
        nodes,
        list(map(node_body, nodes)),
        leaf_of(commit.graph),
        config_body,
        frame_bodies,
        checkpoint,
        _usage(commit.usage_deltas),
        _node_ids(commit, nodes),
        _frame_ids(commit, nodes),
    )


def _node_ids(commit: RuntimeCommit, nodes: Sequence[SessionNodeRecord]) -> list[str]:
    """New ids, and the parents and the leaf that must exist already."""
    ids = {node.node_id for node in nodes}
    if not isinstance(commit.graph, ReplaceFull):
        ids.update(node.parent_node_id for node in nodes if node.parent_node_id is not None)
        if commit.graph.leaf_node_id is not None:
            ids.add(commit.graph.leaf_node_id)
    return list(ids)


def _frame_ids(commit: RuntimeCommit, nodes: Sequence[SessionNodeRecord]) -> list[str]:
    """The frames that the commit refers to or brings along."""
    ids = {node.agent_frame_id for node in nodes}
    ids.add(commit.current_agent_frame_id)
    for frame in commit.agent_frames:
        ids.update((frame.frame_id, frame.previous_frame_id))
    return [frame_id for frame_id in ids if frame_id is not None]


_OPTIONAL: tuple[tuple[str, type], ...] = (
    ("session_execution_lease", SessionExecutionLeaseFence),
    ("release_session_execution_lease", SessionExecutionLeaseCompletion),
    ("config", PersistedSessionConfig),
    ("checkpoint", HydratedSessionCheckpoint),
    ("turn_commit", RuntimeTurnCommitStamp),
)
_LISTS: tuple[tuple[str, tuple[type, ...]], ...] = (
    ("agent_frames", (AgentFrameRecord,)),
    ("usage_deltas", (TokenLedgerEntry,)),
    ("completed_queue_claims", (QueuedWorkCompletion,)),
    ("completed_turn_input_claims", (TurnInputCompletion,)),
    ("committed_attachment_ids", (str,)),
    ("attachment_proofs", (AttachmentProof,)),
    ("outbox", (OutboxInput, OutboxWork)),
)


def _check_shape(commit: RuntimeCommit) -> None:
    check_type("commit", commit, RuntimeCommit)
    for name, kind in _OPTIONAL:
        value = getattr(commit, name)
        if value is not None and type(value) is not kind:
            check_type(name, value, kind)
    for name, kinds in _LISTS:
        values = getattr(commit, name)
        if type(values) is not tuple or values:
            check_type(name, values, tuple, list)
            for value in values:
                check_type(name, value, *kinds)
    check_type("graph", commit.graph, Unchanged, Append, ReplaceFull)
    _check_graph(commit.graph)
    _check_names(commit)
    for entry in commit.outbox:
        if isinstance(entry, OutboxInput):
            check_input_draft(entry.draft)
        else:
            check_batch_draft(entry.draft)


def _check_names(commit: RuntimeCommit) -> None:
    """Check what the commit names: session, revision, lease, stamp, claims, attachments."""
    check_id("commit.session_id", commit.session_id)
    if commit.expected_head_revision is not None:
        check_count("commit.expected_head_revision", commit.expected_head_revision)
    if commit.session_execution_lease is not None:  # without one, the lane's own rule speaks
        check_fence(commit.session_execution_lease)
    if commit.release_session_execution_lease is not None:
        check_completion(commit.release_session_execution_lease)
    if commit.turn_commit is not None:
        for field in commit.turn_commit.__struct_fields__:
            check_id(f"turn_commit.{field}", getattr(commit.turn_commit, field))
    check_optional_id("commit.interrupted_turn_input_turn_id", commit.interrupted_turn_input_turn_id)
    check_optional_id("commit.current_agent_frame_id", commit.current_agent_frame_id)
    for claim in commit.completed_turn_input_claims:
        check_claim_names(claim.session_id, claim.claim_id, claim.fencing_token, claim.input_ids)
    for work in commit.completed_queue_claims:
        check_claim_names(work.session_id, work.claim_id, work.fencing_token, work.batch_ids)
    check_ids("commit.committed_attachment_ids", commit.committed_attachment_ids)
    check_proofs("commit.attachment_proofs", commit.attachment_proofs)


def _check_graph(delta: Unchanged | Append | ReplaceFull) -> None:
    if isinstance(delta, ReplaceFull) and not isinstance(delta.graph, SessionGraph):
        raise InvalidInputError("commit.graph", "must replace by a SessionGraph")
    nodes = introduced_nodes(delta)
    if not isinstance(nodes, tuple | list) or not all(isinstance(node, SessionNodeRecord) for node in nodes):
        raise InvalidInputError("commit.graph.nodes", "must be a tuple of SessionNodeRecord")
    check_optional_id("leaf_node_id", leaf_of(delta))


def _check_node(node: SessionNodeRecord) -> None:
    check_id("node_id", node.node_id)
    check_optional_id("parent_node_id", node.parent_node_id)
    check_optional_id("node.caused_by", node.caused_by)
    check_optional_id("node.agent_frame_id", node.agent_frame_id)
    _check_timestamp("node.timestamp", node.timestamp)
    message = node.message
    if message is not None:
        check_type("message", message, Message)
        check_id("message.id", message.id)


def _check_frame(frame: AgentFrameRecord) -> None:
    check_id("frame_id", frame.frame_id)
    check_optional_id("previous_frame_id", frame.previous_frame_id)
    _check_timestamp("frame.started_at", frame.started_at)


def _check_timestamp(what: str, value: object) -> None:
    check_id(what, value)
    if isinstance(value, str) and len(value) > MAX_TIMESTAMP_BYTES:
        raise InvalidInputError(what, f"must be an RFC 3339 time of at most {MAX_TIMESTAMP_BYTES} characters")


def _usage(deltas: tuple[TokenLedgerEntry, ...]) -> dict[tuple[str, str], TokenUsage]:
    """Add up the deltas per (source, model), and refuse what is no count."""
    total: dict[tuple[str, str], TokenUsage] = {}
    for entry in deltas:
        check_id("usage.source", entry.source)
        check_id("usage.model", entry.model)
        check_usage("usage", entry.usage)
        key = (entry.source, entry.model)
        if key in total:
            total[key] += entry.usage
            check_usage("usage total", total[key])
        else:
            total[key] = entry.usage
    return total


def check_usage(what: str, usage: object) -> None:
    """Refuse what is no usage, or counters that are no count."""
    if not isinstance(usage, TokenUsage):
        raise InvalidInputError(what, "must be a TokenUsage")
    counters = msgspec.structs.astuple(usage)
    if set(map(type, counters)) == {int} and min(counters) >= 0 and max(counters) <= MAX_INT:
        return
    for name, counter in zip(usage.__struct_fields__, counters, strict=True):
        check_count(f"{what}.{name}", counter)


def check_usage_totals(totals: dict[tuple[str, str], TokenUsage]) -> None:
    """Refuse totals that a 63-bit counter cannot hold, before they could wrap."""
    for usage in totals.values():
        check_usage("usage total", usage)


def _checkpoint(hydrated: HydratedSessionCheckpoint) -> CheckpointInput:
    state = hydrated.turn_state
    if type(state) is not PersistedTurnState:
        raise InvalidInputError("checkpoint.turn_state", "must be a PersistedTurnState")
    contents: dict[str, bytes] = {}
    carried: list[str] = []
    manifest = SessionCheckpoint(
        state,
        _part("tool_state", hydrated.tool_state, contents, carried),
        _part("plugin_snapshot", hydrated.plugin_snapshot, contents, carried),
        _part("execution_state", hydrated.execution_state, contents, carried),
    )
    try:
        manifest, manifest_body = checked(SessionCheckpoint, manifest)
    except InvalidInputError:
        _check_state(state)  # which of them it is
        raise
    content = manifest_body.encode()
    manifest_ref = sha256_hex(content)
    contents[manifest_ref] = content
    bodies = {ref: packed(content) for ref, content in contents.items()}
    size = sum(map(len, contents.values()))
    return CheckpointInput(manifest, manifest_body, manifest_ref, bodies, size, tuple(carried))


def _check_state(state: PersistedTurnState) -> None:
    check_count("turn_state.turn_index", state.turn_index)
    check_usage("turn_state.token_usage", state.token_usage)
    if state.last_prompt_usage is not None:
        check_usage("turn_state.last_prompt_usage", state.last_prompt_usage)


def _part(name: str, part: object, contents: dict[str, bytes], carried: list[str]) -> BlobRef | None:
    if part is None:
        return None
    if isinstance(part, BlobRef):
        check_id(f"checkpoint.{name}", part.sha256)
        carried.append(part.sha256)
        return part
    if not isinstance(part, bytes):
        raise InvalidInputError(f"checkpoint.{name}", "must be bytes, a BlobRef or None")
    ref = sha256_hex(part)
    contents[ref] = part
    return BlobRef(ref)
