"""Finding sessions that have something to do, beginning and failing their turns, and what was set aside."""

from __future__ import annotations

from typing import Literal, TypeAlias

from fastness.model.base import Value
from fastness.model.lease import Busy, InterruptRequest, SessionExecutionLease
from fastness.model.queued_work import QueuedWorkBatchDraft, QueuedWorkClaim
from fastness.model.turn_input import PendingTurnInputDraft, TurnInputClaim

RUNNING_TURN = "running"
"""The turn id that stands for whichever turn runs now: input for it joins that turn, or else the next one (law I4)."""


class ReadySession(Value, frozen=True):
    """A session with something to do and, as it seems, a free lane. Sessions of a greater priority come first."""

    session_id: str
    priority: int
    ready_at_epoch_ms: int


class RequestedInterrupt(Value, frozen=True):
    """Somebody wants the turn that runs under a lease to end."""

    session_id: str
    fencing_token: int
    request: InterruptRequest


class Agenda(Value, frozen=True):
    """What there is to do now. ``next_ready_in_ms`` says when more will be, None: not before somebody sends something.

    ``interrupts`` are those asked of the holder that the agenda was read for.
    """

    sessions: tuple[ReadySession, ...]
    next_ready_in_ms: int | None = None
    interrupts: tuple[RequestedInterrupt, ...] = ()


class TurnBegun(Value, frozen=True, tag_field="type", tag="begun"):
    """The lane is the caller's, and with it what leads the session's line: input or work, or nothing.

    ``session_key`` tells this session from an earlier one of the same name; ``head_revision`` is None before the first
    commit. ``waited_ms`` is how long the oldest of what was granted has been waiting since it could be claimed;
    ``more_waits``: something is left for the next turn. ``took_over_from`` names the holder that never gave the lane
    back, None where the last one did; ``took_over_expired`` says that its lease had ended by then, so that nobody had
    to prove it dead. ``limited_labels`` are those of its labels that a limit was named for: one turn less may run.
    """

    lease: SessionExecutionLease
    session_key: int
    head_revision: int | None
    input_claim: TurnInputClaim | None = None
    work_claim: QueuedWorkClaim | None = None
    waited_ms: int = 0
    quarantined_count: int = 0
    more_waits: bool = False
    took_over_from: str | None = None
    took_over_expired: bool = False
    limited_labels: tuple[str, ...] = ()


class NothingToDo(Value, frozen=True, tag_field="type", tag="nothing"):
    """Nothing can be claimed now; the lane was left alone. ``quarantined_count`` rows were set aside on the way."""

    quarantined_count: int = 0


class LabelLimited(Value, frozen=True, tag_field="type", tag="limited"):
    """As many sessions with this label have a turn running as are allowed to; the lane was left alone."""

    label: str


TurnBeginning: TypeAlias = TurnBegun | Busy | NothingToDo | LabelLimited

QuarantineKind: TypeAlias = Literal["input", "work"]


class QuarantinedRow(Value, frozen=True):
    """Input or work that was set aside, with why. It waits for somebody to retry or to discard it."""

    session_id: str
    kind: QuarantineKind
    row_id: str
    attempts: int
    error: str
    quarantined_at_epoch_ms: int
    enqueued_at_epoch_ms: int
    draft: PendingTurnInputDraft | QueuedWorkBatchDraft


class QuarantinePage(Value, frozen=True):
    """Some of the quarantine, oldest first; ``cursor`` leads to the next page, None at the end."""

    rows: tuple[QuarantinedRow, ...]
    cursor: str | None = None


class TurnFailure(Value, frozen=True):
    """What a failed turn came to: how many rows will be tried again, and how many were set aside."""

    retried_count: int
    quarantined_count: int
