"""The history of a session: one record for each revision of its head."""

from __future__ import annotations

from fastness.model.base import Value
from fastness.model.checkpoint import BlobRef, TokenLedgerEntry, TokenUsage


class CommitRecord(Value, frozen=True):
    """What is remembered of one commit.

    ``kind`` is ``turn``, ``tombstone`` (nodes were hidden) or ``fork`` (the session began as one). ``turn_id`` is that
    of the stamp, if there was one. ``usage`` is what this commit added, an entry for each source and model.
    ``leaf_node_id`` and ``checkpoint_ref`` are where the head stood afterwards, ``fencing_token`` is the lease's. A
    commit that was made by a release without a history has no usage and no token here.
    """

    session_id: str
    revision: int
    kind: str
    turn_id: str | None
    committed_at_epoch_ms: int
    leaf_node_id: str | None
    usage: tuple[TokenLedgerEntry, ...] = ()
    fencing_token: int | None = None
    checkpoint_ref: BlobRef | None = None

    @property
    def total_usage(self) -> TokenUsage:
        """What this commit added, of all sources and models together."""
        return sum((entry.usage for entry in self.usage), TokenUsage())


class CommitPage(Value, frozen=True):
    """One page of a history; ``cursor`` is the ``after_revision`` of the next one, None at the end."""

    commits: tuple[CommitRecord, ...]
    cursor: int | None = None
