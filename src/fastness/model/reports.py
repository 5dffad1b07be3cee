"""Reports of maintenance: every count is what that call did (law M5)."""

from __future__ import annotations

from fastness.model.base import Value


class GcReport(Value, frozen=True):
    """What a collection of blobs did. ``root_count`` counts the checkpoints that were read as roots."""

    root_count: int
    retained_blob_count: int
    deleted_blob_count: int
    deleted_byte_count: int = 0


class VacuumReport(Value, frozen=True):
    """What a vacuum of one session removed."""

    removed_node_count: int
    removed_pending_turn_input_tombstone_count: int
    removed_queue_evidence_count: int
    removed_receipt_count: int


class AttachmentReclamationReport(Value, frozen=True):
    """What a sweep of attachments did, or with ``dry_run`` what it would do.

    Intents and releases that were looked at; contents whose bytes were deleted; contents that stayed, since somebody
    holds them or another sweep is at them; and bytes freed, those of puts that never came to their end among them. Of
    the reclaimed, ``absent_count`` had no bytes in this store: their put never came so far, or they are in another one.
    """

    scanned_intent_count: int
    reclaimed_count: int
    skipped_count: int = 0
    freed_byte_count: int = 0
    absent_count: int = 0
    dry_run: bool = False


class MaintenancePreview(Value, frozen=True):
    """What a vacuum of every session and a collection of blobs would remove now."""

    tombstoned_node_count: int
    turn_input_evidence_count: int
    queue_evidence_count: int
    receipt_count: int
    unreachable_blob_count: int
    unreachable_byte_count: int


class CheckFinding(Value, frozen=True):
    """One fault that a verification found. ``rule`` is a short stable word; ``session_id`` None: the whole database."""

    rule: str
    session_id: str | None
    detail: str


class CheckReport(Value, frozen=True):
    """What a verification of the whole database looked at and found."""

    session_count: int
    node_count: int
    commit_count: int
    blob_count: int
    pending_input_count: int
    queued_batch_count: int
    findings: tuple[CheckFinding, ...] = ()
