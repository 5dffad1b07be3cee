"""Enqueueing, listing, cancelling, claiming and settling turn input (laws I1 to I6, K1 to K4).

The scans that look for claimable rows restate ``decide.turn_input.effective_state`` in SQL, so that held rows are
passed over before the limit counts (law K4) and no body is read that is not granted.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import msgspec

from fastness.decide import limits
from fastness.decide import turn_input as rules
from fastness.decide.claims import Claimable, Grant, is_held, pick
from fastness.decide.lane import LaneFacts, require_live
from fastness.decide.turn_input import InputRow
from fastness.errors import SessionBindingMismatchError, TurnInputClaimExpiredError
from fastness.model.base import checked
from fastness.model.checkpoint import CheckpointKind
from fastness.model.dispatch import RUNNING_TURN
from fastness.model.lease import SessionExecutionLeaseFence
from fastness.model.turn_input import (
    ActiveTurn,
    AnchorNotFound,
    ByInputId,
    BySourceKey,
    NotFound,
    PendingTurnInput,
    PendingTurnInputCancelOutcome,
    PendingTurnInputCancelResult,
    PendingTurnInputCancelTarget,
    PendingTurnInputDraft,
    PendingTurnInputSuffixCancelOutcome,
    SuffixOutcomes,
    TurnInputClaim,
    TurnInputCompletion,
    TurnInputState,
)
from fastness.ops import claims
from fastness.ops.claims import EARLIER, FREE, GRANT_COLUMNS, NO_GRANT, ClaimTable, claim_table, held_row
from fastness.ops.lane import Target, draw_admission, enter, enter_or_create, look, of_session
from fastness.sql.program import Expected, Param, Program, Read, Row, Rows, Statement, Write, id_list
from fastness.sql.records import stored

__all__ = [
    "abandon",
    "cancel",
    "cancel_many",
    "cancel_suffix",
    "claim_active",
    "claim_next",
    "defer_interrupted",
    "defer_settled",
    "enqueue",
    "expected_held",
    "held_row",
    "held_statement",
    "list_pending",
    "renew",
    "settle_claim",
]

# What is granted to its turn keeps that turn's name, what is granted as next-turn input is next-turn input for good.
ACTIVE = claim_table("turn_input", "input", "input_id", ", state = 'accepted'")
NEXT = claim_table(
    "turn_input", "input", "input_id", ", state = 'deferred_next_turn', turn_id = null, min_boundary = null"
)

# With its limit it is looked up row by row; an ``exists`` may be planned as a table of every receipt there is.
_TURN_IS_SETTLED = """(
        select 1 from commit_log c where c.sid = t.sid and c.turn_id = t.turn_id and c.turn_hash is not null limit 1
        ) is not null"""

_WAITING = f"""
    select t.input_id, t.seq, t.state, t.admission_token, {_TURN_IS_SETTLED}, t.enqueued_ms, {GRANT_COLUMNS}, t.body
    from turn_input t where t.sid = $1"""
_SETTLED = f"""
    select input_id, seq, state, 0, false, enqueued_ms, {NO_GRANT}, body
    from turn_input_evidence where sid = $1"""

ADD_INPUT = """
    insert into turn_input (sid, seq, input_id, source_key, state, turn_id, min_boundary, admission_token, enqueued_ms,
        available_ms, body)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"""
FIND_BY_ID = f"{_WAITING} and t.input_id in any_of($2) union all {_SETTLED} and input_id in any_of($2)"
FIND_BY_KEY = f"{_WAITING} and t.source_key in any_of($2) union all {_SETTLED} and source_key in any_of($2)"
FIND_RECEIPT = "select 1 from commit_log where sid = $1 and turn_id = $2 and turn_hash is not null"
LIST_WAITING = f"{_WAITING} order by t.seq"
LIST_AFTER = f"{_WAITING} and t.seq > $2 order by t.seq"

# $2 is the lane's live token; $3 the lease token of the entry that asks, or the limit.
_CLAIMABLE = "select t.input_id, t.seq, t.claim_token, t.attempts from turn_input t where t.sid = $1"
_FREE = f"{FREE} and +t.available_ms <= (select now_ms())"
# Input for after_work is admitted at both boundaries, input for before_completion only there.
_OF_TURN = "t.turn_id = $4 and (t.min_boundary = 'after_work' or t.min_boundary = $5)"
ACTIVE_EARLIER = f"{_CLAIMABLE} and {EARLIER} and {_OF_TURN}"
ACTIVE_FREE = f"{_CLAIMABLE} and {_FREE} and {_OF_TURN} order by t.seq limit $3"
NEXT_EARLIER = f"{_CLAIMABLE} and {EARLIER} and t.turn_id is null"
NEXT_FREE = f"""{_CLAIMABLE} and {_FREE}
        and (t.turn_id is null or t.state = 'accepted' or t.admission_token <> $2 or {_TURN_IS_SETTLED})
    order by t.seq limit $3"""

DEFER_SETTLED = """
    update turn_input set state = 'deferred_next_turn', turn_id = null, min_boundary = null
    where sid = $1 and claim_id is null and turn_id in (
        select c.turn_id from commit_log c where c.sid = $1 and c.turn_hash is not null and c.committed_ms <= $2)"""
DEFER_INTERRUPTED = """
    update turn_input set state = 'deferred_next_turn', turn_id = null, min_boundary = null, claim_id = null,
        lane_token = 0, lease_token = null,
        attempts = attempts - case when claim_id is not null and lane_token = $3 and attempts > 0 then 1 else 0 end
    where sid = $1 and turn_id = $2"""


def enqueue(target: Target, draft: PendingTurnInputDraft, minted_id: str) -> Program[PendingTurnInput]:
    """Admit input, or give the row that this very submission made before (law I1). Brings its session to life.

    ``minted_id`` names the row where the draft names none. The configured budget is for the caller to check.
    """
    limits.check_input_draft(draft)
    if draft.session_id != target.session_id:
        raise SessionBindingMismatchError(target.session_id, draft.session_id)
    draft, body = checked(PendingTurnInputDraft, draft)
    asked = named(target, [draft])
    turn = draft.ingress if isinstance(draft.ingress, ActiveTurn) else None
    if turn is not None:
        asked.append(of_session(target, FIND_RECEIPT, turn.turn_id))
    lane, found = yield from enter_or_create(target, *asked)
    turn_settled = turn is not None and bool(found.pop())
    row = rules.resubmitted(draft, input_rows(found))
    if row is None:
        row, add = admission(lane, lane.admission_seq + 1, draft, draft.input_id or minted_id, body)
        row = msgspec.structs.replace(row, turn_settled=turn_settled)
        yield Write(draw_admission(lane, draft.available_at_ms), Statement(ADD_INPUT, add), wakes=True)
    return rules.as_input(row, rules.effective_state(row, lane))


def named(target: Target, drafts: Sequence[PendingTurnInputDraft]) -> list[Statement]:
    """Give the two statements that find the rows which drafts name: by id and by source key, for ``input_rows``."""
    ids = [draft.input_id for draft in drafts if draft.input_id is not None]
    keys = [draft.source_key for draft in drafts if draft.source_key is not None]
    return [of_session(target, FIND_BY_ID, id_list(ids)), of_session(target, FIND_BY_KEY, id_list(keys))]


def admission(
    lane: LaneFacts, seq: int, draft: PendingTurnInputDraft, input_id: str, body: str
) -> tuple[InputRow, tuple[Param, ...]]:
    """Give the row of new input, and the parameters of ``ADD_INPUT`` that write it."""
    turn = draft.ingress if isinstance(draft.ingress, ActiveTurn) else None
    state: TurnInputState = "pending_active" if turn else "deferred_next_turn"
    of_turn = (turn.turn_id, turn.min_boundary) if turn else (None, None)
    named_so = (lane.sid, seq, input_id, draft.source_key, state, *of_turn)
    add = (*named_so, lane.live_token, lane.now_ms, draft.available_at_ms, body)
    return InputRow(input_id, seq, state, lane.live_token, False, lane.now_ms, Grant(), draft), add


def list_pending(target: Target) -> Program[list[PendingTurnInput]]:
    """List what waits, in the order of admission, each row as what it counts as now (laws I2, I4). Changes nothing."""
    lane, found = yield from look(target, of_session(target, LIST_WAITING))
    if lane is None:
        return []
    rows = (row for row in input_rows(found) if not is_held(row.grant, lane))
    return [rules.as_input(row, rules.effective_state(row, lane)) for row in rows]


def cancel(target: Target, input_id: str) -> Program[PendingTurnInputCancelOutcome]:
    """Cancel one row (law I6)."""
    (result,) = yield from cancel_many(target, (ByInputId(input_id),))
    return result.outcome


def cancel_many(
    target: Target, targets: Sequence[PendingTurnInputCancelTarget]
) -> Program[list[PendingTurnInputCancelResult]]:
    """Cancel several rows at once, with one outcome for each target in its order (law I6)."""
    for one in targets:
        limits.check_cancel_target(one)
    lane, found = yield from enter(target, *_named(target, targets))
    if lane is None:
        return [PendingTurnInputCancelResult(one, NotFound()) for one in targets]
    return (yield from _cancel(lane, rules.cancel(targets, input_rows(found), lane)))


def cancel_suffix(target: Target, anchor: PendingTurnInputCancelTarget) -> Program[PendingTurnInputSuffixCancelOutcome]:
    """Cancel a row and every unsettled one after it (law I6). A settled anchor is reported, the rest still goes."""
    limits.check_cancel_target(anchor)
    lane, hits = yield from enter(target, *_named(target, (anchor,)))
    found = input_rows(hits)
    if lane is None or not found:
        return AnchorNotFound()
    after = yield Read(Statement(LIST_AFTER, (lane.sid, found[0].seq)))
    results = rules.cancel_suffix(anchor, found[0], input_rows(after), lane)
    return SuffixOutcomes(tuple((yield from _cancel(lane, results))))


def _cancel(
    lane: LaneFacts, results: list[PendingTurnInputCancelResult]
) -> Program[list[PendingTurnInputCancelResult]]:
    ids = rules.cancelled_ids(results)
    if ids:
        yield Write(*claims.cancel_rows(ACTIVE, lane, ids))
    return results


def _named(target: Target, names: Sequence[PendingTurnInputCancelTarget]) -> list[Statement]:
    """Give the statements that find all rows which are named, waiting or settled."""
    ids = [name.input_id for name in names if isinstance(name, ByInputId)]
    keys = [name.source_key for name in names if isinstance(name, BySourceKey)]
    asked = [of_session(target, FIND_BY_ID, id_list(ids))] if ids else []
    if keys:
        asked.append(of_session(target, FIND_BY_KEY, id_list(keys)))
    return asked


def input_rows(found: Rows) -> list[InputRow]:
    """Read what was found, each row once."""
    rows = {row[0]: row for rows in found for row in rows}
    return [_input_row(row) for row in rows.values()]


def claim_active(
    target: Target,
    fence: SessionExecutionLeaseFence,
    turn_id: str,
    checkpoint: CheckpointKind,
    max_inputs: int,
    claim_id: str,
) -> Program[TurnInputClaim | None]:
    """Claim what was said to the running turn and may be heard at this checkpoint (laws I3, I4).

    What an earlier entry of the lease holds of this turn's input comes first and counts towards the limit (law L2), as
    far as the checkpoint admits it. What that entry claimed as next-turn input is for ``claim_next`` to grant again.
    """
    limits.check_id("turn_id", turn_id)
    limits.check_checkpoint("checkpoint", checkpoint)
    limits.check_fence(fence)
    limits.check_positive("max_inputs", max_inputs)
    # The rows are read as the fence says that the lane stands; where it does not, they are not looked at.
    found, (earlier, free) = yield from enter(
        target,
        of_session(target, ACTIVE_EARLIER, fence.fencing_token, fence.lease_token, turn_id, checkpoint),
        of_session(target, ACTIVE_FREE, fence.fencing_token, max_inputs, turn_id, checkpoint),
    )
    lane = require_live(found, target.session_id, fence)
    if turn_id == RUNNING_TURN:
        free = list(takewhile(_is_untried, free))
    chosen = _pick(earlier, free, max_inputs)
    return (yield from _grant(ACTIVE, lane, fence, claim_id, chosen))


def claim_next(
    target: Target, fence: SessionExecutionLeaseFence, max_inputs: int, claim_id: str
) -> Program[TurnInputClaim | None]:
    """Claim input for the turn that begins: all that counts as next-turn input (laws I3, I4).

    What an earlier entry of the lease holds as next-turn input comes first and counts towards the limit (law L2). What
    it accepted for its running turn is for ``claim_active`` to grant again.
    """
    limits.check_fence(fence)
    limits.check_positive("max_inputs", max_inputs)
    found, (earlier, free) = yield from enter(
        target,
        of_session(target, NEXT_EARLIER, fence.fencing_token, fence.lease_token),
        of_session(target, NEXT_FREE, fence.fencing_token, max_inputs),
    )
    lane = require_live(found, target.session_id, fence)
    chosen = _pick(earlier, free, max_inputs)
    return (yield from _grant(NEXT, lane, fence, claim_id, chosen))


def _pick(earlier: list[Row], free: list[Row], limit: int) -> Sequence[Claimable]:
    return pick((Claimable(*row[:3]) for row in earlier), (Claimable(*row[:3]) for row in free), limit)


def _is_untried(row: Row) -> bool:
    """Whether no turn has taken it yet. What failed with one turn joins no other: it begins one, alone."""
    attempts: int = row[3]
    return attempts == 0


def _grant(
    table: ClaimTable, lane: LaneFacts, fence: SessionExecutionLeaseFence, claim_id: str, chosen: Sequence[Claimable]
) -> Program[TurnInputClaim | None]:
    if not chosen:
        return None
    state: TurnInputState = "accepted" if table is ACTIVE else "deferred_next_turn"
    token, granted = yield from claims.grant_rows(table, lane, claim_id, chosen)
    inputs = [granted_input(row, state) for row in granted]
    return TurnInputClaim(
        lane.session_id, claim_id, fence.owner, token, lane.fencing_token, lane.expires_ms, tuple(inputs)
    )


def granted_input(row: claims.GrantedRow, state: TurnInputState) -> PendingTurnInput:
    """Read a row that was granted just now."""
    draft = stored(PendingTurnInputDraft, row.body, repr(row.row_id))
    kept = InputRow(row.row_id, row.seq, state, 0, False, row.enqueued_ms, Grant(attempts=row.attempts), draft)
    return rules.as_input(kept, state)


def renew(target: Target, claim: TurnInputClaim) -> Program[TurnInputClaim]:
    """Give a live claim back with its lease's expiry (law K1). Raises ``TurnInputClaimExpiredError``. Only reads."""
    limits.check_type("claim", claim, TurnInputClaim)
    limits.check_id("claim.claim_id", claim.claim_id)
    lane = yield from claims.verify(ACTIVE, target, rules.shown(claim), TurnInputClaimExpiredError)
    return msgspec.structs.replace(claim, expires_at_epoch_ms=lane.expires_ms)


def abandon(target: Target, claim: TurnInputClaim) -> Program[None]:
    """Give up a claim; what is not its own any more stays as it is, and twice is fine (law K3)."""
    limits.check_type("claim", claim, TurnInputClaim)
    limits.check_id("claim.claim_id", claim.claim_id)
    yield from claims.abandon(ACTIVE, target, claim.claim_id)


def held_statement(sid: int, completions: Sequence[TurnInputCompletion]) -> Statement:
    """Give the statement that reads the facts of completions (law C6), for ``held_row``."""
    return claims.held_statement(ACTIVE, sid, map(rules.shown, completions))


def expected_held(completions: Sequence[TurnInputCompletion], lane_token: int) -> Expected:
    """What ``held_statement`` gives while the completions own their rows."""
    return claims.expected_held(map(rules.shown, completions), lane_token)


def settle_claim(sid: int, completion: TurnInputCompletion) -> tuple[Statement, ...]:
    """Give the statements that complete a claim, once ``require_owned`` has passed it under this very lock."""
    return claims.settle_claim(ACTIVE, sid, completion.claim_id)


def defer_interrupted(sid: int, turn_id: str, lane_token: int) -> tuple[Statement, ...]:
    """Give the statements that leave the rest of a turn's input to the next turn (law I5).

    They come after the commit's completions. The rows forget the turn, so that it happens once, and their claims, so
    that the next turn finds them at once.
    """
    return (Statement(DEFER_INTERRUPTED, (sid, turn_id, lane_token)),)


def defer_settled(sid: int, receipts_until_ms: int) -> Statement:
    """Give the statement that makes waiting input of turns whose receipts go away next-turn input for good (law I4)."""
    return Statement(DEFER_SETTLED, (sid, receipts_until_ms))


def _input_row(row: Row) -> InputRow:
    input_id, seq, state, admission_token, turn_settled, enqueued_ms, *grant, body = row
    draft = stored(PendingTurnInputDraft, body, repr(input_id))
    return InputRow(input_id, seq, state, admission_token, bool(turn_settled), enqueued_ms, Grant(*grant), draft)
