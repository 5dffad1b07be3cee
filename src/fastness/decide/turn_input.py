"""What counts as input for which turn, and what a cancel or a submission does (laws I1 to I6, C6). Pure.

A row of input is stored as it was granted or submitted last; what it *counts as* depends on the lane as well. Only
``effective_state`` says so, and the scans in ``fastness.ops.turn_input`` restate it, no more, to find claimable rows
without reading all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from fastness.decide import claims
from fastness.decide.claims import Grant, HeldRow, ShownClaim, is_held
from fastness.decide.lane import Lane, LaneFacts
from fastness.errors import InputSourceKeyConflictError, TurnInputClaimExpiredError
from fastness.model.base import encode
from fastness.model.turn_input import (
    AlreadyCancelled,
    AlreadyClaimed,
    AlreadyCompleted,
    ByInputId,
    Cancelled,
    NotFound,
    PendingTurnInput,
    PendingTurnInputCancelOutcome,
    PendingTurnInputCancelResult,
    PendingTurnInputCancelTarget,
    PendingTurnInputClaimDiagnostics,
    PendingTurnInputDraft,
    TurnInputClaim,
    TurnInputCompletion,
    TurnInputState,
)

HeldInput = HeldRow
"""A row of input that carries a claim's id."""


class InputRow(msgspec.Struct, frozen=True):
    """Input as the store keeps it, waiting, claimed or settled.

    ``admission_token`` is the lane's live fencing token at admission (0: the lane was free); ``turn_settled`` says
    whether the turn that it was meant for has a receipt. Settled input has no grant. ``draft`` is what was submitted.
    """

    input_id: str
    seq: int
    state: TurnInputState
    admission_token: int
    turn_settled: bool
    enqueued_ms: int
    grant: Grant
    draft: PendingTurnInputDraft

    @property
    def is_settled(self) -> bool:
        """Whether the row is evidence only."""
        return self.state in {"completed", "cancelled", "quarantined"}


def effective_state(row: InputRow, lane: LaneFacts) -> TurnInputState:
    """Say what a row counts as now (law I4).

    Held and settled input is what it says. Waiting input is for its turn only while the lane is in the hands it was in
    at its admission and that turn is not settled; all other waiting input, accepted input of a dead claim included, is
    next-turn input.
    """
    if row.is_settled or is_held(row.grant, lane):
        return row.state
    still_active = row.admission_token == lane.live_token and not row.turn_settled
    return "pending_active" if row.state == "pending_active" and still_active else "deferred_next_turn"


def as_input(row: InputRow, state: TurnInputState) -> PendingTurnInput:
    """Give the public value of a row."""
    draft = row.draft
    return PendingTurnInput(
        session_id=draft.session_id,
        input_id=row.input_id,
        admission_seq=row.seq,
        state=state,
        ingress=draft.ingress,
        input=draft.input,
        source_key=draft.source_key,
        enqueued_at_epoch_ms=row.enqueued_ms,
        available_at_ms=draft.available_at_ms,
        attempts=row.grant.attempts,
    )


def resubmitted(draft: PendingTurnInputDraft, known: Sequence[InputRow]) -> InputRow | None:
    """Find the row that a draft submits once more; None: it is new (law I1).

    ``known`` are the rows that have the draft's source key or its explicit input id. A draft that names both must mean
    one row with both, or the key would end up bound to two submissions: where they name two rows, no row fits.
    Raises ``InputSourceKeyConflictError``.
    """
    if not known:
        return None
    row = known[0]
    same = (
        draft.input_id in {None, row.input_id}
        and draft.source_key in {None, row.draft.source_key}
        and encode((draft.ingress, draft.input)) == encode((row.draft.ingress, row.draft.input))
    )
    if not same:
        raise InputSourceKeyConflictError(draft.session_id, draft.source_key, row.input_id)
    return row


def cancel(
    targets: Iterable[PendingTurnInputCancelTarget], rows: Sequence[InputRow], lane: LaneFacts
) -> list[PendingTurnInputCancelResult]:
    """Decide a cancel, one outcome for each target in its order (law I6). A row named again is cancelled by then.

    ``rows`` are all that a target names, by id or by source key. What is to be cancelled shows as ``Cancelled``.
    """
    by_id = {row.input_id: row for row in rows}
    by_key = {row.draft.source_key: row for row in rows if row.draft.source_key is not None}
    gone: set[str] = set()
    results = []
    for target in targets:
        found = by_id.get(target.input_id) if isinstance(target, ByInputId) else by_key.get(target.source_key)
        outcome = _outcome(found, gone, lane)
        if isinstance(outcome, Cancelled):
            gone.add(outcome.input.input_id)
        results.append(PendingTurnInputCancelResult(target, outcome))
    return results


def cancel_suffix(
    anchor: PendingTurnInputCancelTarget, at: InputRow, later: Sequence[InputRow], lane: LaneFacts
) -> list[PendingTurnInputCancelResult]:
    """Decide a suffix cancel: the anchor, then everything unsettled after it in the order of admission (law I6)."""
    targets: list[PendingTurnInputCancelTarget] = [anchor, *(ByInputId(row.input_id) for row in later)]
    return cancel(targets, [at, *later], lane)


def cancelled_ids(results: Iterable[PendingTurnInputCancelResult]) -> list[str]:
    """Give the ids of the rows that a decision cancels."""
    return [result.outcome.input.input_id for result in results if isinstance(result.outcome, Cancelled)]


def _outcome(row: InputRow | None, gone: set[str], lane: LaneFacts) -> PendingTurnInputCancelOutcome:
    if row is None:
        return NotFound()
    if row.state == "completed":
        return AlreadyCompleted(row.input_id)
    if row.state == "cancelled" or row.input_id in gone:
        return AlreadyCancelled(row.input_id)
    holder = lane.holder()
    if holder is None or row.grant.claim_id is None or not is_held(row.grant, lane):
        return Cancelled(as_input(row, "cancelled"))
    diagnostics = PendingTurnInputClaimDiagnostics(
        row.grant.claim_id, holder.owner, row.grant.claim_token, holder.expires_at_epoch_ms
    )
    return AlreadyClaimed(row.input_id, diagnostics)


def shown(claim: TurnInputClaim | TurnInputCompletion) -> ShownClaim:
    """Give a claim as it is checked."""
    completion = claim.completion() if isinstance(claim, TurnInputClaim) else claim
    return ShownClaim(completion.session_id, completion.claim_id, completion.fencing_token, completion.input_ids)


def require_owned(
    session_id: str,
    completions: Sequence[TurnInputClaim | TurnInputCompletion],
    rows: Sequence[HeldInput],
    lane: Lane,
) -> None:
    """Refuse completions that do not own exactly their rows, with ``TurnInputClaimExpiredError`` (law C6)."""
    claims.require_owned(session_id, [shown(one) for one in completions], rows, lane, TurnInputClaimExpiredError)
