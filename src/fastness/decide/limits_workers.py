"""What the registry of workers takes from outside, and what it refuses before anything is written (laws B1, R1, R2).

The same promise as that of ``limits``.
"""

from __future__ import annotations

from typing import get_args

from fastness.decide.limits import (
    check_choice,
    check_count,
    check_id,
    check_optional_id,
    check_page_size,
    check_positive,
    check_type,
)
from fastness.model.lease import LeaseOwnerIdentity
from fastness.model.worker import HeldLane, WorkerRecord, WorkerState

_COUNTS = ("pid", "started_at_epoch_ms", "seen_at_epoch_ms", "running", "settled_count", "failed_count")


def check_worker(record: WorkerRecord) -> None:
    """Take what a worker says of itself."""
    check_type("worker", record, WorkerRecord)
    check_id("worker.worker_id", record.worker_id)
    check_id("worker.host", record.host)
    for what in _COUNTS:
        check_count(f"worker.{what}", getattr(record, what))
    check_positive("worker.concurrency", record.concurrency)
    check_choice("worker.state", record.state, get_args(WorkerState))


def check_lane_page(after: HeldLane | None, limit: int, owner_id: str | None) -> None:
    """Take the bounds of a page of held lanes."""
    check_page_size(limit)
    check_optional_id("owner_id", owner_id)
    if after is not None:
        check_type("after", after, HeldLane)
        check_type("after.owner", after.owner, LeaseOwnerIdentity)
        check_id("after.owner.owner_id", after.owner.owner_id)
        check_id("after.session_id", after.session_id)
