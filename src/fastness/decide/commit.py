"""The settlement of a turn: from the facts under the lane's lock to what is written, or to an error (laws C)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from fastness.decide import lane as lane_rules
from fastness.decide import queued_work, turn_input
from fastness.decide.commit_input import CheckpointInput, CommitInput, check_usage_totals
from fastness.decide.graph import KnownNode, PlacedNode, place
from fastness.decide.lane import FenceFacts
from fastness.errors import (
    AttachmentNotInManifestError,
    GraphInvalidError,
    HeadRevisionConflictError,
    SessionBindingMismatchError,
    TurnCommitConflictError,
    UnknownBlobRefError,
)
from fastness.model.checkpoint import BlobRef, SessionCheckpoint, TokenUsage
from fastness.model.commit import RuntimeCommit, RuntimeCommitResult, RuntimeTurnCommitStamp
from fastness.model.graph import ReplaceFull
from fastness.model.session import AgentFrameRecord

HEAD = "head"
"""The holder of what the head's checkpoint needs."""


def frame_holder(frame_id: str) -> str:
    """Name the holder of what a frame's checkpoint needs."""
    return f"frame:{frame_id}"


class Receipt(msgspec.Struct, frozen=True):
    """What the turn id of the stamp was settled as.

    ``changed_frames`` are the frames that existed and were changed. The hash cannot tell a changed frame from a new
    one, whose id is minted anew by each run, so these are compared by name.
    """

    turn_hash: str
    result: RuntimeCommitResult
    changed_frames: frozenset[str]


class HeadFacts(msgspec.Struct, frozen=True):
    """The head's row. ``config_body`` and ``checkpoint_body`` are JSON records, ``checkpoint`` is the latter, read."""

    revision: int
    leaf_node_id: str | None
    node_count: int
    next_seq: int
    config_body: str
    agent_frame_id: str | None
    checkpoint_ref: str | None
    checkpoint_body: str | None
    checkpoint: SessionCheckpoint | None

    def held(self) -> frozenset[str]:
        """The blobs that the head needs: its manifest and what that refers to."""
        if self.checkpoint_ref is None or self.checkpoint is None:
            return frozenset()
        return frozenset((self.checkpoint_ref, *(ref.sha256 for ref in self.checkpoint.blob_refs())))


class CommitFacts(msgspec.Struct, frozen=True):
    """What the database says about a commit, read after the lane was locked.

    ``head`` is None before the first commit; ``known`` are the stored nodes among the ids the commit names, ``frames``
    the stored frames among those with the checkpoint that each started from, ``held`` the blobs that each frame of the
    commit needs already, by holder.
    """

    lane: FenceFacts | None
    head: HeadFacts | None
    receipt: Receipt | None = None
    initial_config_body: str | None = None
    known: Mapping[str, KnownNode] = {}
    frames: Mapping[str, BlobRef | None] = {}
    held: Mapping[str, frozenset[str]] = {}
    usage: Mapping[tuple[str, str], TokenUsage] = {}
    input_rows: Sequence[turn_input.HeldInput] = ()
    work_rows: Sequence[queued_work.HeldWork] = ()
    manifest: frozenset[str] = frozenset()


class Replay(msgspec.Struct, frozen=True):
    """The turn was settled before: nothing is written, but the lane may still have to be released (law C3)."""

    result: RuntimeCommitResult
    releases: bool


class Settlement(msgspec.Struct, frozen=True):
    """Everything that a commit writes. Blobs gained and dropped are pairs of holder and ref."""

    lane: FenceFacts
    result: RuntimeCommitResult
    first: bool
    replaces: bool
    placed: Sequence[PlacedNode]
    node_count: int
    next_seq: int
    config_body: str
    agent_frame_id: str | None
    checkpoint_body: str | None
    blobs_gained: Sequence[tuple[str, str]]
    blobs_dropped: Sequence[tuple[str, str]]
    changed_frames: Sequence[str]
    usage: Mapping[tuple[str, str], TokenUsage]
    releases: bool


EMPTY_HEAD = HeadFacts(0, None, 0, 1, '{"v":1}', None, None, None, None)
"""What a session stands on before its first commit."""


def settle(bound_session_id: str, given: CommitInput, facts: CommitFacts) -> Settlement | Replay:
    """Decide a commit. The checks run in the order of law C7; the first that fails is the error."""
    commit = given.commit
    if commit.session_id != bound_session_id:
        raise SessionBindingMismatchError(bound_session_id, commit.session_id)
    if commit.turn_commit is not None:
        replay = _replay(commit, commit.turn_commit, facts)
        if replay is not None:
            return replay
    lane = lane_rules.require_live(facts.lane, commit.session_id, commit.session_execution_lease)
    revision = None if facts.head is None else facts.head.revision
    if commit.expected_head_revision != revision:
        raise HeadRevisionConflictError(commit.session_id, commit.expected_head_revision, revision)
    if commit.completed_turn_input_claims:
        turn_input.require_owned(commit.session_id, commit.completed_turn_input_claims, facts.input_rows, lane)
    if commit.completed_queue_claims:
        queued_work.require_owned(commit.session_id, commit.completed_queue_claims, facts.work_rows, lane)
    return _settlement(given, facts, lane, facts.head or EMPTY_HEAD)


def _replay(commit: RuntimeCommit, stamp: RuntimeTurnCommitStamp, facts: CommitFacts) -> Replay | None:
    if stamp.session_id != commit.session_id:
        recorded = facts.receipt.turn_hash if facts.receipt else ""
        raise TurnCommitConflictError(stamp.session_id, stamp.turn_id, recorded, stamp.turn_commit_hash)
    receipt = facts.receipt
    if receipt is None:
        return None
    same_frames = receipt.changed_frames <= {frame.frame_id for frame in commit.agent_frames}
    if receipt.turn_hash != stamp.turn_commit_hash or not same_frames:
        raise TurnCommitConflictError(commit.session_id, stamp.turn_id, receipt.turn_hash, stamp.turn_commit_hash)
    return Replay(msgspec.structs.replace(receipt.result, replayed=True), _releases(commit, facts.lane))


def _releases(commit: RuntimeCommit, lane: FenceFacts | None) -> bool:
    release = commit.release_session_execution_lease
    return release is not None and lane is not None and lane_rules.names_lease(lane, release)


def _settlement(given: CommitInput, facts: CommitFacts, lane: FenceFacts, head: HeadFacts) -> Settlement:
    commit = given.commit
    replaces = isinstance(commit.graph, ReplaceFull)
    placed = place(
        commit.session_id,
        given.nodes,
        given.leaf_node_id,
        facts.known,
        head.next_seq,
        stands_on=head.leaf_node_id,
        replaces=replaces,
    )
    _require_frames(given, facts.frames)
    gained, dropped = _blobs(given, facts, head)
    for attachment_id in commit.committed_attachment_ids:
        if attachment_id not in facts.manifest:
            raise AttachmentNotInManifestError(commit.session_id, attachment_id)
    usage = {key: facts.usage.get(key, TokenUsage()) + delta for key, delta in given.usage.items()}
    check_usage_totals(usage)
    checkpoint_ref = given.checkpoint.manifest_ref if given.checkpoint else head.checkpoint_ref
    result = RuntimeCommitResult(
        head_revision=head.revision + 1,
        checkpoint_ref=None if checkpoint_ref is None else BlobRef(checkpoint_ref),
        manifest=given.checkpoint.manifest if given.checkpoint else None,
        leaf_node_id=given.leaf_node_id,
    )
    config_body = given.config_body
    if config_body is None:
        config_body = head.config_body if facts.head is not None else facts.initial_config_body or head.config_body
    return Settlement(
        lane=lane,
        result=result,
        first=facts.head is None,
        replaces=replaces,
        placed=placed,
        node_count=len(placed) + (0 if replaces else head.node_count),
        next_seq=head.next_seq + len(placed),
        config_body=config_body,
        agent_frame_id=commit.current_agent_frame_id or head.agent_frame_id,
        checkpoint_body=given.checkpoint.manifest_body if given.checkpoint else head.checkpoint_body,
        blobs_gained=gained,
        blobs_dropped=dropped,
        changed_frames=[frame.frame_id for frame in commit.agent_frames if frame.frame_id in facts.frames],
        usage=usage,
        releases=_releases(commit, lane),
    )


def _require_frames(given: CommitInput, stored: Mapping[str, BlobRef | None]) -> None:
    brought = {frame.frame_id for frame in given.commit.agent_frames}
    for frame_id in given.frame_ids:
        if frame_id not in stored and frame_id not in brought:
            detail = f"frame {frame_id!r} is not there; bring it along in agent_frames"
            raise GraphInvalidError(given.commit.session_id, "unknown_frame", frame_id, detail)


def _blobs(
    given: CommitInput, facts: CommitFacts, head: HeadFacts
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Which blobs the head and the frames of the commit gain and drop, as (holder, ref)."""
    gained: list[tuple[str, str]] = []
    dropped: list[tuple[str, str]] = []

    def change(holder: str, held: frozenset[str], wanted: frozenset[str]) -> None:
        gained.extend((holder, ref) for ref in sorted(wanted - held))
        dropped.extend((holder, ref) for ref in sorted(held - wanted))

    if given.checkpoint is not None:
        held = head.held()
        _require_held(given.commit.session_id, given.checkpoint, held)
        change(HEAD, held, given.checkpoint.refs())
    for frame in given.commit.agent_frames:
        holder = frame_holder(frame.frame_id)
        held = facts.held.get(holder, frozenset())
        change(holder, held, _frame_needs(given, facts, head, frame, held))
    return gained, dropped


def _require_held(session_id: str, checkpoint: CheckpointInput, held: frozenset[str]) -> None:
    """A session may carry by reference only what its head holds (law A3)."""
    for ref in checkpoint.carried:
        if ref not in held and ref not in checkpoint.bodies:
            raise UnknownBlobRefError(session_id, ref)


def _frame_needs(
    given: CommitInput, facts: CommitFacts, head: HeadFacts, frame: AgentFrameRecord, held: frozenset[str]
) -> frozenset[str]:
    """What a frame needs: the checkpoint that it started from. It may name this commit's, the head's, or its own."""
    if frame.checkpoint_ref is None:
        return frozenset()
    if given.checkpoint is not None and frame.checkpoint_ref.sha256 == given.checkpoint.manifest_ref:
        return given.checkpoint.refs()
    if frame.checkpoint_ref.sha256 == head.checkpoint_ref:
        return head.held()
    if frame.checkpoint_ref == facts.frames.get(frame.frame_id):
        return held
    raise UnknownBlobRefError(given.commit.session_id, frame.checkpoint_ref.sha256)
