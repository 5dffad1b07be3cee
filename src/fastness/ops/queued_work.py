"""Enqueueing, listing, cancelling, claiming and settling queued work (laws W1 to W6, K1 to K4).

A claim reads the facts of the batches at the head of the ready queue, lets ``decide.queued_work`` say which of them it
takes, and reads the content of those alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from fastness.decide import limits
from fastness.decide import queued_work as rules
from fastness.decide.claims import Claimable, Grant
from fastness.decide.lane import LaneFacts, require_live
from fastness.decide.queued_work import WaitingWork, WorkRow
from fastness.errors import InvalidInputError, QueuedWorkClaimExpiredError, SessionBindingMismatchError
from fastness.model.base import checked, encode
from fastness.model.lease import SessionExecutionLeaseFence
from fastness.model.queued_work import (
    MergeKey,
    QueuedWorkBatch,
    QueuedWorkBatchDraft,
    QueuedWorkClaim,
    QueuedWorkClaimBoundary,
    QueuedWorkClass,
    QueuedWorkCompletion,
)
from fastness.ops import claims
from fastness.ops.claims import EARLIER, FREE, GRANT_COLUMNS, NO_GRANT, claim_table, held_row
from fastness.ops.lane import Target, draw_admission, enter, enter_or_create, look, of_session
from fastness.sql.program import Expected, Param, Program, Row, Statement, Write, id_list
from fastness.sql.records import stored

__all__ = [
    "abandon",
    "cancel",
    "claim_command",
    "claim_exact",
    "claim_ready",
    "enqueue",
    "expected_held",
    "held_row",
    "held_statement",
    "list_all",
    "list_pending",
    "renew",
    "settle_claim",
]

WORK = claim_table("queued_work", "work", "batch_id")

_WAITING = f"select batch_id, seq, null, enqueued_ms, {GRANT_COLUMNS}, body from queued_work where sid = $1"
_SETTLED = f"select batch_id, seq, state, enqueued_ms, {NO_GRANT}, body from queued_work_evidence where sid = $1"

ADD_WORK = """
    insert into queued_work (sid, seq, batch_id, source_key, work_class, delivery_policy, slot_policy, merge_key,
        available_ms, enqueued_ms, body)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"""
FIND_BY_KEY = f"{_WAITING} and source_key in any_of($2) union all {_SETTLED} and source_key in any_of($2)"
FIND_WAITING = f"{_WAITING} and batch_id = $2"
LIST_ALL = f"{_WAITING} order by seq"

_FACTS = """
    select batch_id, seq, claim_token, work_class, delivery_policy, slot_policy, merge_key, attempts
    from queued_work where sid = $1"""
HELD_EARLIER = f"{_FACTS} and {EARLIER}"
READY = f"{_FACTS} and {FREE} and +available_ms <= (select now_ms()) order by seq limit $3"

_merge_key: msgspec.json.Decoder[MergeKey] = msgspec.json.Decoder(MergeKey)

_Choice = Callable[[Sequence[WaitingWork]], Sequence[WaitingWork]]
"""What a claim takes of the queue that it finds."""


def enqueue(target: Target, draft: QueuedWorkBatchDraft, minted_id: str) -> Program[QueuedWorkBatch]:
    """Admit a batch, or give the one that its source key named before (law W1). Brings its session to life.

    ``minted_id`` names the batch. The configured budget is for the caller to check.
    """
    limits.check_batch_draft(draft)
    if draft.session_id != target.session_id:
        raise SessionBindingMismatchError(target.session_id, draft.session_id)
    draft, body = checked(QueuedWorkBatchDraft, draft)
    by_key = [] if draft.source_key is None else [named(target, [draft.source_key])]
    lane, found = yield from enter_or_create(target, *by_key)
    for known in found:
        if known:
            return _batch(known[0], lane)
    row, add = admission(lane, lane.admission_seq + 1, draft, minted_id, body)
    yield Write(draw_admission(lane, draft.available_at_ms), Statement(ADD_WORK, add), wakes=True)
    return rules.as_batch(row, "pending")


def named(target: Target, source_keys: Sequence[str]) -> Statement:
    """Give the statement that finds the batches which source keys name."""
    return of_session(target, FIND_BY_KEY, id_list(source_keys))


def source_key_of(row: Row) -> str | None:
    """The source key of a row that ``named`` found."""
    return _work_row(row).draft.source_key


def admission(
    lane: LaneFacts, seq: int, draft: QueuedWorkBatchDraft, batch_id: str, body: str
) -> tuple[WorkRow, tuple[Param, ...]]:
    """Give the row of a new batch, and the parameters of ``ADD_WORK`` that write it."""
    params = (
        lane.sid,
        seq,
        batch_id,
        draft.source_key,
        rules.class_of(draft.payloads),
        draft.delivery_policy,
        draft.slot_policy,
        encode(draft.merge_key).decode(),
        draft.available_at_ms,
        lane.now_ms,
        body,
    )
    return WorkRow(batch_id, seq, None, lane.now_ms, Grant(), draft), params


def list_all(target: Target) -> Program[list[QueuedWorkBatch]]:
    """List what waits and what is claimed, in the order of admission. Changes nothing."""
    lane, found = yield from look(target, of_session(target, LIST_ALL))
    return [] if lane is None else [_batch(row, lane) for row in found[0]]


def list_pending(target: Target) -> Program[list[QueuedWorkBatch]]:
    """List what no live claim holds, future batches included, in the order of admission. Changes nothing."""
    lane, found = yield from look(target, of_session(target, LIST_ALL))
    batches = [] if lane is None else [_batch(row, lane) for row in found[0]]
    return [batch for batch in batches if batch.state == "pending"]


def cancel(target: Target, batch_id: str) -> Program[QueuedWorkBatch | None]:
    """Cancel a batch that no live claim holds (law W6). None: it is held, settled or unknown."""
    limits.check_id("batch_id", batch_id)
    lane, found = yield from enter(target, of_session(target, FIND_WAITING, batch_id))
    if lane is None:
        return None
    rows = [_work_row(row) for row in found[0]]
    if not rows or rules.state_of(rows[0], lane) != "pending":
        return None
    yield Write(*claims.cancel_rows(WORK, lane, (batch_id,)))
    return rules.as_batch(rows[0], "cancelled")


def claim_command(target: Target, fence: SessionExecutionLeaseFence, claim_id: str) -> Program[QueuedWorkClaim | None]:
    """Claim the session command that leads the ready queue, alone (law W2).

    A command that an earlier entry of the lease holds is granted again first (law L2).
    """

    def choose(queue: Sequence[WaitingWork]) -> Sequence[WaitingWork]:
        command = rules.leading_command(queue)
        return () if command is None else (command,)

    return (yield from _claim(target, fence, claim_id, "session_command", "idle", 1, choose))


def claim_ready(
    target: Target,
    fence: SessionExecutionLeaseFence,
    boundary: QueuedWorkClaimBoundary,
    max_batches: int,
    claim_id: str,
) -> Program[QueuedWorkClaim | None]:
    """Claim the turn work that leads the ready queue, and what joins it (laws W2 to W4).

    Turn work that an earlier entry of the lease holds leads, see ``decide.queued_work.queue_after_reentry`` (law L2).
    """
    limits.check_claim_boundary(boundary)
    limits.check_positive("max_batches", max_batches)

    def choose(queue: Sequence[WaitingWork]) -> Sequence[WaitingWork]:
        return rules.leading_turn_work(queue, boundary, max_batches)

    return (yield from _claim(target, fence, claim_id, "turn_work", boundary, max_batches, choose))


def claim_exact(
    target: Target,
    fence: SessionExecutionLeaseFence,
    boundary: QueuedWorkClaimBoundary,
    batch_ids: Sequence[str],
    claim_id: str,
) -> Program[QueuedWorkClaim | None]:
    """Claim exactly these batches of turn work, if a claim of that many would take them, in this order (law W5)."""
    limits.check_claim_boundary(boundary)
    if not batch_ids:
        raise InvalidInputError("batch_ids", "is empty; name at least one batch")
    for batch_id in batch_ids:
        limits.check_id("batch_ids", batch_id)

    def choose(queue: Sequence[WaitingWork]) -> Sequence[WaitingWork]:
        return rules.exact_turn_work(queue, boundary, batch_ids)

    return (yield from _claim(target, fence, claim_id, "turn_work", boundary, len(batch_ids), choose))


def _claim(
    target: Target,
    fence: SessionExecutionLeaseFence,
    claim_id: str,
    work_class: QueuedWorkClass,
    boundary: QueuedWorkClaimBoundary,
    limit: int,
    choose: _Choice,
) -> Program[QueuedWorkClaim | None]:
    limits.check_fence(fence)
    # The rows are read as the fence says that the lane stands; where it does not, they are not looked at.
    found, (held, free) = yield from enter(
        target,
        of_session(target, HELD_EARLIER, fence.fencing_token, fence.lease_token),
        of_session(target, READY, fence.fencing_token, limit),
    )
    lane = require_live(found, target.session_id, fence)
    earlier = sorted(map(waiting_work, held), key=lambda work: work.seq)
    ready = [waiting_work(row) for row in free]
    chosen = choose(rules.queue_after_reentry(earlier, ready, work_class, boundary))
    if not chosen:
        return None
    claimable = [Claimable(work.batch_id, work.seq, work.claim_token) for work in chosen]
    token, granted = yield from claims.grant_rows(WORK, lane, claim_id, claimable)
    batches = tuple(granted_batch(row) for row in granted)
    return QueuedWorkClaim(lane.session_id, claim_id, fence.owner, token, lane.fencing_token, lane.expires_ms, batches)


def renew(target: Target, claim: QueuedWorkClaim) -> Program[QueuedWorkClaim]:
    """Give a live claim back with its lease's expiry (law K1). Raises ``QueuedWorkClaimExpiredError``. Only reads."""
    limits.check_type("claim", claim, QueuedWorkClaim)
    limits.check_id("claim.claim_id", claim.claim_id)
    lane = yield from claims.verify(WORK, target, rules.shown(claim), QueuedWorkClaimExpiredError)
    return msgspec.structs.replace(claim, expires_at_epoch_ms=lane.expires_ms)


def abandon(target: Target, claim: QueuedWorkClaim) -> Program[None]:
    """Give up a claim; what is not its own any more stays as it is, and twice is fine (law K3)."""
    limits.check_type("claim", claim, QueuedWorkClaim)
    limits.check_id("claim.claim_id", claim.claim_id)
    yield from claims.abandon(WORK, target, claim.claim_id)


def held_statement(sid: int, completions: Sequence[QueuedWorkCompletion]) -> Statement:
    """Give the statement that reads the facts of completions (law C6), for ``held_row``."""
    return claims.held_statement(WORK, sid, map(rules.shown, completions))


def expected_held(completions: Sequence[QueuedWorkCompletion], lane_token: int) -> Expected:
    """What ``held_statement`` gives while the completions own their rows."""
    return claims.expected_held(map(rules.shown, completions), lane_token)


def settle_claim(sid: int, completion: QueuedWorkCompletion) -> tuple[Statement, ...]:
    """Give the statements that complete a claim, once ``require_owned`` has passed it under this very lock."""
    return claims.settle_claim(WORK, sid, completion.claim_id)


def waiting_work(row: Row) -> WaitingWork:
    """Read the facts of a batch that a claim may take."""
    batch_id, seq, claim_token, work_class, delivery, slot, merge_key, attempts = row
    return WaitingWork(batch_id, seq, claim_token, work_class, delivery, slot, _merge_key.decode(merge_key), attempts)


def granted_batch(row: claims.GrantedRow) -> QueuedWorkBatch:
    """Read a batch that was granted just now."""
    draft = stored(QueuedWorkBatchDraft, row.body, repr(row.row_id))
    grant = Grant(attempts=row.attempts)
    return rules.as_batch(WorkRow(row.row_id, row.seq, None, row.enqueued_ms, grant, draft), "claimed")


def _batch(row: Row, lane: LaneFacts) -> QueuedWorkBatch:
    work = _work_row(row)
    return rules.as_batch(work, rules.state_of(work, lane))


def _work_row(row: Row) -> WorkRow:
    batch_id, seq, settled, enqueued_ms, *grant, body = row
    draft = stored(QueuedWorkBatchDraft, body, repr(batch_id))
    return WorkRow(batch_id, seq, settled, enqueued_ms, Grant(*grant), draft)
