"""What a handle knows of its session's head, and so the facts that its next commit expects to find.

A commit on a network database takes one round trip less if it need not wait for its facts. The handle that loaded the
session, or that committed last, can say what they are; the database looks whether they are, and refuses the writes
otherwise. A hint that is old does no harm: the commit is then decided on what the database says.

Only the lease, the head's row and the claims are looked at. What is a function of the head's revision needs no look:
nothing moves usage, frames or live nodes without moving the revision, and nobody but the holder of this very lease can
have moved that. That ids of new nodes are free is held by the table's own constraint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from fastness.decide.commit import CommitFacts, HeadFacts, Settlement
from fastness.decide.commit_input import CommitInput
from fastness.model.checkpoint import TokenUsage
from fastness.model.lease import SessionExecutionLeaseFence
from fastness.ops import queued_work, turn_input
from fastness.ops.lane import expected_fence
from fastness.sql.program import Expected, Row


class Hint(msgspec.Struct, frozen=True):
    """The head as a handle saw it last.

    ``usage`` and ``frames`` (bodies by id) are what was seen of them, all of it where ``complete``. ``leaf_seq`` is the
    seq of the leaf.
    """

    head: HeadFacts
    leaf_seq: int | None
    usage: Mapping[str, Mapping[str, TokenUsage]]
    frames: Mapping[str, str]
    complete: bool


def expected_facts(given: CommitInput, hint: Hint | None, asked: Sequence[str]) -> list[Expected] | None:
    """Give the rows that each statement of a commit's facts will bring, by the names of the statements.

    None where the handle cannot know.
    """
    fence = given.commit.session_execution_lease
    if hint is None or fence is None or hint.head.revision != given.commit.expected_head_revision:
        return None
    expected = [_EXPECTED[name](given, hint, fence) if name in _EXPECTED else None for name in asked]
    known = [rows for rows in expected if rows is not None]
    return known if len(known) == len(expected) else None


_NO_RECEIPT = (None,) * 6


def _head_row(head: HeadFacts) -> Row:
    """The row of the head and of a receipt that is not there."""
    where = (head.revision, head.leaf_node_id, head.node_count, head.next_seq, head.config_body, head.agent_frame_id)
    return (*where, head.checkpoint_ref, head.checkpoint_body, *_NO_RECEIPT)


def _known_nodes(given: CommitInput, hint: Hint) -> Expected | None:
    new = {node.node_id for node in given.nodes}
    named = [node_id for node_id in given.node_ids if node_id not in new]
    if any(node_id != hint.head.leaf_node_id for node_id in named) or (named and hint.leaf_seq is None):
        return None
    return Expected([(node_id, hint.leaf_seq, 0) for node_id in named], implied=True)


def _known_frames(given: CommitInput, hint: Hint) -> Expected | None:
    if not hint.complete and any(frame_id not in hint.frames for frame_id in given.frame_ids):
        return None
    known = [(frame_id, hint.frames[frame_id]) for frame_id in given.frame_ids if frame_id in hint.frames]
    return Expected(known, implied=True)


def _known_usage(given: CommitInput, hint: Hint) -> Expected | None:
    sources = {source for source, _ in given.usage}
    if not hint.complete and any(source not in hint.usage for source in sources):
        return None
    rows = [
        (source, model, *msgspec.structs.astuple(usage))
        for source in sources
        for model, usage in hint.usage.get(source, {}).items()
    ]
    return Expected(rows, implied=True)


_EXPECTED: Mapping[str, Callable[[CommitInput, Hint, SessionExecutionLeaseFence], Expected | None]] = {
    "lane": lambda _, __, fence: expected_fence(fence),
    "head": lambda _, hint, __: Expected([_head_row(hint.head)]),
    "nodes": lambda given, hint, _: _known_nodes(given, hint),
    "frames": lambda given, hint, _: _known_frames(given, hint),
    "usage": lambda given, hint, _: _known_usage(given, hint),
    "input": lambda given, _, fence: turn_input.expected_held(
        given.commit.completed_turn_input_claims, fence.fencing_token
    ),
    "work": lambda given, _, fence: queued_work.expected_held(given.commit.completed_queue_claims, fence.fencing_token),
    "attachments": lambda given, _, __: Expected([(each,) for each in set(given.commit.committed_attachment_ids)]),
}
"""What a handle can say about each kind of facts; about the others it cannot."""


def hint_after(given: CommitInput, facts: CommitFacts, plan: Settlement, before: Hint | None) -> Hint:
    """What the handle knows once this settlement is committed. ``before`` is what it knew, if it was on this track."""
    if facts.head is None or before is None or before.head.revision != facts.head.revision:
        before = None
    usage = {source: dict(models) for source, models in before.usage.items()} if before else {}
    for seen in (facts.usage, plan.usage):
        for (source, model), total in seen.items():
            usage.setdefault(source, {})[model] = total
    frames = dict(before.frames) if before else {}
    for frame, body in zip(given.commit.agent_frames, given.frame_bodies, strict=True):
        frames[frame.frame_id] = body
    result = plan.result
    head = HeadFacts(
        result.head_revision,
        result.leaf_node_id,
        plan.node_count,
        plan.next_seq,
        plan.config_body,
        plan.agent_frame_id,
        None if result.checkpoint_ref is None else result.checkpoint_ref.sha256,
        plan.checkpoint_body,
        result.manifest or (facts.head.checkpoint if facts.head else None),
    )
    return Hint(head, _leaf_seq(facts, plan), usage, frames, before is not None and before.complete)


def _leaf_seq(facts: CommitFacts, plan: Settlement) -> int | None:
    leaf = plan.result.leaf_node_id
    for node in reversed(plan.placed):
        if node.node_id == leaf:
            return node.seq
    known = facts.known.get(leaf) if leaf is not None else None
    return known.seq if known is not None else None
