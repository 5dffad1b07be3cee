"""Short ways to enqueue, list, claim and settle turn input on a bench."""

from __future__ import annotations

from fastness.conformance.builders import texts
from fastness.decide import turn_input as rules
from fastness.model import (
    PendingTurnInput,
    PendingTurnInputDraft,
    SessionExecutionLease,
    TurnInputClaim,
)
from fastness.ops import turn_input
from fastness.ops.lane import Target, look
from fastness.sql.program import Statement
from tests.ops.driver import Bench, S

UNKNOWN = Target("unknown")


def put(bench: Bench, draft: PendingTurnInputDraft) -> PendingTurnInput:
    """Enqueue a draft."""
    return bench.run(turn_input.enqueue(Target(draft.session_id), draft, bench.draw()))


def pending(bench: Bench) -> list[tuple[str, str]]:
    """Text and state of what is listed."""
    rows = bench.read(turn_input.list_pending(S))
    return list(zip(texts(rows), (row.state for row in rows), strict=True))


def take_next(bench: Bench, lease: SessionExecutionLease, limit: int = 10) -> TurnInputClaim | None:
    """Claim next-turn input."""
    return bench.run(turn_input.claim_next(S, lease.fence(), limit, bench.draw()))


def take_active(
    bench: Bench, lease: SessionExecutionLease, turn_id: str = "t1", limit: int = 10, *, last: bool = False
) -> TurnInputClaim | None:
    """Claim active input at the checkpoint after work, or at the last one."""
    checkpoint = "before_completion" if last else "after_work"
    return bench.run(turn_input.claim_active(S, lease.fence(), turn_id, checkpoint, limit, bench.draw()))  # type: ignore[arg-type]


def got(claim: TurnInputClaim | None) -> list[str]:
    """What a claim granted, in words."""
    return [] if claim is None else texts(claim.inputs)


def complete(bench: Bench, claim: TurnInputClaim | None) -> None:
    """Settle a claim the way a commit does."""
    assert claim is not None
    lane, _ = bench.read(look(S))
    assert lane is not None
    rows = [turn_input.held_row(row) for row in bench.run_batch([_held(lane.sid, claim)])[0]]
    rules.require_owned("s", [claim.completion()], rows, lane)
    bench.write(*turn_input.settle_claim(lane.sid, claim.completion()))


def _held(sid: int, claim: TurnInputClaim) -> Statement:
    return turn_input.held_statement(sid, [claim.completion()])


def settle_turn(bench: Bench, turn_id: str) -> None:
    """Write the receipt of a turn."""
    bench.db.execute(
        "insert into commit_log (sid, revision, kind, turn_id, turn_hash, committed_ms)"
        " values (1, 1, 'turn', ?, 'h', 1)",
        (turn_id,),
    )
