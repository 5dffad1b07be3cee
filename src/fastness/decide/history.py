"""What a revision of the past was, and what of it can still be told (laws H1 to H3, F1 to F3).

The log has where the head stood after each commit. Nodes stay where they are until they are hidden or replaced, and
places are given out in order: what was there at a revision is what stands before its next place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from fastness.decide.commit import HeadFacts
from fastness.errors import DatabaseDamagedError, RevisionNotReadableError
from fastness.model.checkpoint import TokenLedgerEntry, TokenUsage
from fastness.model.transcript import SessionNodeRecord

LoggedRow = tuple[int, "str | None", "str | None", "int | None"]
"""Revision, leaf, checkpoint ref, and the seq of the next node (None: logged by a release without a history)."""

_ATTACHMENT_ID = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_ESCAPE = b"\\u00"


class Point(NamedTuple):
    """Where the head stood after a commit. Nodes from ``next_seq`` on came later."""

    revision: int
    leaf_node_id: str | None
    checkpoint_ref: str | None
    next_seq: int


def point_of(head: HeadFacts) -> Point:
    """Where the head stands."""
    return Point(head.revision, head.leaf_node_id, head.checkpoint_ref, head.next_seq)


def point_at(session_id: str, revision: int, head: HeadFacts | None, logged: LoggedRow | None) -> Point:
    """Where the head stood at a revision. ``RevisionNotReadableError``: there is none, or too little is known of it."""
    if head is not None and head.revision == revision:
        return point_of(head)
    if head is None or logged is None:
        newest = 0 if head is None else head.revision
        raise RevisionNotReadableError(
            session_id,
            revision,
            "unknown",
            f"there is no such revision, the newest is {newest}; list_commits shows all",
        )
    _, leaf_node_id, checkpoint_ref, next_seq = logged
    if next_seq is None:
        detail = "it was committed by a release that kept no history; later revisions can be read"
        raise RevisionNotReadableError(session_id, revision, "before_history", detail)
    return Point(revision, leaf_node_id, checkpoint_ref, next_seq)


def lost_transcript(session_id: str, point: Point) -> RevisionNotReadableError:
    """The error for a revision whose leaf is gone, and its path with it."""
    detail = f"its leaf {point.leaf_node_id!r} was tombstoned or replaced since; read a later revision"
    return RevisionNotReadableError(session_id, point.revision, "transcript", detail)


def lost_checkpoint(session_id: str, point: Point) -> RevisionNotReadableError:
    """The error for a revision whose checkpoint was collected, or a part of it."""
    detail = (
        f"its checkpoint was collected; load ActivePath({point.leaf_node_id!r}) for the transcript alone, fork at that"
        " node to go on without a checkpoint, and collect with a greater keep_revisions to keep more of them"
    )
    return RevisionNotReadableError(session_id, point.revision, "checkpoint", detail)


def usage_until(
    session_id: str, totals: Iterable[TokenLedgerEntry], later: Iterable[TokenLedgerEntry]
) -> tuple[TokenLedgerEntry, ...]:
    """What the ledger said before the later commits: today's totals without what those added (law C10).

    Counted from today's end, it is known also where older commits were logged without their usage.
    """
    left = {(entry.source, entry.model): entry.usage for entry in totals}
    changed: set[tuple[str, str]] = set()
    for entry in later:
        key = (entry.source, entry.model)
        changed.add(key)
        left[key] = _minus(session_id, left.get(key, TokenUsage()), entry.usage)
    return tuple(
        TokenLedgerEntry(source, model, usage)
        for (source, model), usage in left.items()
        if (source, model) not in changed or usage != TokenUsage()
    )


def _minus(session_id: str, total: TokenUsage, usage: TokenUsage) -> TokenUsage:
    counters = zip(msgspec.structs.astuple(total), msgspec.structs.astuple(usage), strict=True)
    left = TokenUsage(*(one - other for one, other in counters))
    if min(msgspec.structs.astuple(left)) < 0:
        raise DatabaseDamagedError(
            f"the commits of session {session_id!r} add up to more usage than its ledger has",
            "restore it from a backup",
        )
    return left


def frame_at(head: HeadFacts, point: Point, leaf: SessionNodeRecord | None) -> str | None:
    """The frame that was current: the head's own, and of an older revision, or of another node, the leaf's."""
    if point.revision == head.revision and point.leaf_node_id == head.leaf_node_id:
        return head.agent_frame_id
    return None if leaf is None else leaf.agent_frame_id


def mentioned(bodies: Iterable[bytes]) -> frozenset[str]:
    """The attachment ids that occur in stored records, wherever in them.

    Ids are hashes, so that none occurs by accident. JSON of others may be written with escapes; it is then looked at
    without them.
    """
    found: set[str] = set()
    for body in bodies:
        text = msgspec.json.encode(msgspec.json.decode(body)) if _ESCAPE in body else body
        found.update(each.decode() for each in _ATTACHMENT_ID.findall(text))
    return frozenset(found)
