"""Who runs turns on a database: workers as they announce themselves, and the lanes that are held."""

from __future__ import annotations

from typing import Literal, TypeAlias

from fastness.model.base import Record, Value
from fastness.model.lease import LeaseOwnerIdentity

WorkerState: TypeAlias = Literal["running", "draining"]
"""A worker that is ``draining`` finishes what it runs and begins nothing more."""


class WorkerRecord(Record, frozen=True):
    """What a worker says of itself, again and again while it lives.

    Times are milliseconds since the epoch: ``started_at_epoch_ms`` by the worker's own clock, ``seen_at_epoch_ms`` by
    the database's, which sets it whenever the worker announces itself. ``concurrency`` is how many turns it runs at
    most, ``running`` how many it runs now, the counts are those of turns since its start.
    """

    worker_id: str
    host: str
    pid: int
    started_at_epoch_ms: int
    seen_at_epoch_ms: int = 0
    concurrency: int = 1
    state: WorkerState = "running"
    running: int = 0
    settled_count: int = 0
    failed_count: int = 0


class HeldLane(Value, frozen=True):
    """A lane that somebody was granted and did not give back, without the token that proves it.

    Times are milliseconds since the epoch of the database's clock. One that ``is_expired`` is anybody's to claim.
    ``interrupt_requested``: its holder is asked to end the turn that runs.
    """

    session_id: str
    owner: LeaseOwnerIdentity
    fencing_token: int
    claimed_at_epoch_ms: int
    expires_at_epoch_ms: int
    is_expired: bool
    interrupt_requested: bool
