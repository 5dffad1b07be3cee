"""The programs of queued work, run on a bare database (laws W1 to W6, K1 to K4)."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from fastness.conformance.builders import command, kinds, said, task, work
from fastness.decide import queued_work as rules
from fastness.errors import (
    InvalidInputError,
    LeaseExpiredError,
    QueuedWorkClaimExpiredError,
    SessionBindingMismatchError,
    SessionDeletedError,
)
from fastness.model import (
    Group,
    PayloadDefault,
    QueuedWorkBatch,
    QueuedWorkBatchDraft,
    QueuedWorkClaim,
    SessionExecutionLease,
)
from fastness.ops import queued_work
from fastness.ops.lane import Target, look
from tests.ops.driver import ALICE, BOB, Bench, S

UNKNOWN = Target("unknown")
DEFAULT = PayloadDefault()


def put(bench: Bench, draft: QueuedWorkBatchDraft) -> QueuedWorkBatch:
    """Enqueue a draft."""
    return bench.run(queued_work.enqueue(Target(draft.session_id), draft, bench.draw()))


def tasks(bench: Bench, *names: str, **fields: object) -> list[str]:
    """Enqueue one task after the other, and give the ids of the batches."""
    return [put(bench, work(task(name), **fields)).batch_id for name in names]  # type: ignore[arg-type]


def waiting(bench: Bench) -> list[str]:
    """The kinds of what is listed as pending."""
    return kinds(bench.read(queued_work.list_pending(S)))


def ready(bench: Bench, lease: SessionExecutionLease, limit: int = 10, *, idle: bool = True) -> QueuedWorkClaim | None:
    """Claim turn work."""
    boundary = "idle" if idle else "active_turn_checkpoint"
    return bench.run(queued_work.claim_ready(S, lease.fence(), boundary, limit, bench.draw()))  # type: ignore[arg-type]


def exact(bench: Bench, lease: SessionExecutionLease, ids: Sequence[str]) -> QueuedWorkClaim | None:
    """Claim named batches while idle."""
    return bench.run(queued_work.claim_exact(S, lease.fence(), "idle", ids, bench.draw()))


def one_command(bench: Bench, lease: SessionExecutionLease) -> QueuedWorkClaim | None:
    """Claim a command."""
    return bench.run(queued_work.claim_command(S, lease.fence(), bench.draw()))


def got(claim: QueuedWorkClaim | None) -> list[str]:
    """What a claim granted, in words."""
    return [] if claim is None else kinds(claim.batches)


def complete(bench: Bench, claim: QueuedWorkClaim | None) -> None:
    """Settle a claim the way a commit does."""
    assert claim is not None
    lane, _ = bench.read(look(S))
    assert lane is not None
    (found,) = bench.run_batch([queued_work.held_statement(lane.sid, [claim.completion()])])
    rules.require_owned("s", [claim.completion()], [queued_work.held_row(row) for row in found], lane)
    bench.write(*queued_work.settle_claim(lane.sid, claim.completion()))


def test_enqueue_brings_a_session_to_life(bench: Bench) -> None:
    """M3: enqueue brings an unknown id to life; items are numbered within their batch."""
    batch = put(bench, work(task("a"), task("b"), merge=Group("g"), at_ms=7))
    assert (batch.batch_id, batch.admission_seq, batch.state, batch.work_class) == ("id-1", 1, "pending", "turn_work")
    assert [item.item_id for item in batch.items] == ["id-1/0", "id-1/1"]
    assert (batch.merge_key, batch.available_at_ms, batch.enqueued_at_epoch_ms) == (Group("g"), 7, 1_000)
    assert bench.read(queued_work.list_all(S)) == [batch]


def test_nothing_else_brings_a_session_to_life(bench: Bench) -> None:
    """M3: lists, cancels and claims of an unknown session find nothing and create nothing."""
    lease = bench.lane()
    assert bench.read(queued_work.list_all(UNKNOWN)) == []
    assert bench.read(queued_work.list_pending(UNKNOWN)) == []
    assert bench.run(queued_work.cancel(UNKNOWN, "x")) is None
    with pytest.raises(LeaseExpiredError):
        bench.run(queued_work.claim_ready(UNKNOWN, lease.fence(), "idle", 1, "c"))
    assert bench.rows("select session_id from session") == [("s",)]
    with pytest.raises(SessionDeletedError):
        bench.read(queued_work.list_all(Target("s", 99)))
    with pytest.raises(SessionBindingMismatchError):
        bench.run(queued_work.enqueue(S, work(session_id="other"), "b"))


def test_input_and_work_share_one_admission_sequence(bench: Bench) -> None:
    """Locking: one admission sequence per session orders input and work alike."""
    from fastness.ops import turn_input  # noqa: PLC0415 (only this law needs both)

    first = put(bench, work())
    second = bench.run(turn_input.enqueue(S, said("x"), "i"))
    third = put(bench, work())
    assert [first.admission_seq, second.admission_seq, third.admission_seq] == [1, 2, 3]


def test_a_replay_returns_the_original_whatever_its_content(bench: Bench) -> None:
    """W1: a source key replay returns the original batch with its state, whatever the new content."""
    first = put(bench, work(task("a"), key="k"))
    other = work(command(), key="k", at_ms=9)
    assert put(bench, other) == first
    lease = bench.lane()
    claim = ready(bench, lease)
    assert put(bench, other).state == "claimed"
    bench.now_ms += 10_000
    assert put(bench, other).state == "pending"
    with pytest.raises(QueuedWorkClaimExpiredError):
        complete(bench, claim)
    complete(bench, ready(bench, bench.lane(BOB)))
    replayed = put(bench, other)
    assert (replayed.state, replayed.batch_id, kinds([replayed])) == ("completed", first.batch_id, ["a"])
    second = put(bench, work(task("b"), key="k2"))
    bench.run(queued_work.cancel(S, second.batch_id))
    assert put(bench, work(key="k2")).state == "cancelled"
    assert bench.read(queued_work.list_all(S)) == []


def test_an_empty_or_mixed_batch_is_refused(bench: Bench) -> None:
    """W6: a batch without items, or of mixed classes, is refused and brings nothing to life."""
    empty = QueuedWorkBatchDraft("s", "earliest_safe_boundary", "join", ())
    for bad in (empty, work(task(), command())):
        with pytest.raises(InvalidInputError):
            put(bench, bad)
    assert bench.rows("select count(*) from session") == [(0,)]


def test_a_command_blocks_turn_work_behind_it(bench: Bench) -> None:
    """W2: the head decides: turn work behind a command waits, and commands go one at a time."""
    put(bench, work(command()))
    put(bench, work(command()))
    tasks(bench, "a")
    lease = bench.lane()
    assert ready(bench, lease) is None
    first = one_command(bench, lease)
    assert got(first) == ["command"]
    assert ready(bench, lease) is None
    assert got(one_command(bench, lease)) == ["command"]
    assert one_command(bench, lease) is None
    assert got(ready(bench, lease)) == ["a"]


def test_turn_work_blocks_commands_behind_it(bench: Bench) -> None:
    """W2: a command behind turn work waits."""
    tasks(bench, "a")
    put(bench, work(command()))
    lease = bench.lane()
    assert one_command(bench, lease) is None
    ready(bench, lease)
    assert got(one_command(bench, lease)) == ["command"]


def test_a_checkpoint_admits_only_what_may_come_early(bench: Bench) -> None:
    """W3: at a checkpoint a head that waits for the turn's end admits nothing, also not what is behind it."""
    tasks(bench, "late", delivery="after_current_turn_commit")
    tasks(bench, "early")
    lease = bench.lane()
    assert ready(bench, lease, idle=False) is None
    assert got(ready(bench, lease)) == ["late"]
    assert got(ready(bench, lease, idle=False)) == ["early"]


def test_batches_join_up_to_the_limit(bench: Bench) -> None:
    """W4: a joinable head takes followers of its policy and key, up to the limit and to the first that differs."""
    tasks(bench, "a", "b", "c", merge=DEFAULT)
    tasks(bench, "d", merge=Group("g"))
    tasks(bench, "e", merge=DEFAULT)
    lease = bench.lane()
    assert got(ready(bench, lease, 2)) == ["a", "b"]
    assert got(ready(bench, lease)) == ["c"]
    assert got(ready(bench, lease)) == ["d"]
    assert got(ready(bench, lease)) == ["e"]


def test_held_and_future_batches_are_not_in_the_queue(bench: Bench) -> None:
    """W4: a head joins across batches that are held or not yet ready."""
    (future,) = tasks(bench, "future", at_ms=1_001)
    tasks(bench, "a", merge=DEFAULT)
    tasks(bench, "future too", merge=DEFAULT, at_ms=1_001)
    tasks(bench, "b", merge=DEFAULT)
    lease = bench.lane()
    assert got(ready(bench, lease)) == ["a", "b"]
    assert waiting(bench) == ["future", "future too"]
    assert exact(bench, lease, [future]) is None
    bench.now_ms = 1_001
    assert got(ready(bench, lease)) == ["future"]


def test_a_claimable_batch_behind_many_others_is_found(bench: Bench) -> None:
    """K4: 5,000 held and 5,000 future batches do not hide the one behind them."""
    for at in range(5_000):
        put(bench, work(merge=DEFAULT))
        put(bench, work(merge=DEFAULT, at_ms=5_000 + at))
    tasks(bench, "behind")
    lease = bench.lane()
    assert len(got(ready(bench, lease, 5_000))) == 5_000
    assert got(ready(bench, lease, 1)) == ["behind"]


def test_an_exact_claim_takes_all_or_nothing(bench: Bench) -> None:
    """W5: the named batches must be the leading ones, in order, and fit one claim."""
    a, b, c = tasks(bench, "a", "b", "c", merge=DEFAULT)
    (lone,) = tasks(bench, "lone")
    lease = bench.lane()
    for ids in ([b], [b, a], [a, c], [a, a], [a, b, c, lone], [a, "x"]):
        assert exact(bench, lease, ids) is None
    with pytest.raises(InvalidInputError):
        exact(bench, lease, [])
    assert got(exact(bench, lease, [a, b])) == ["a", "b"]
    assert got(exact(bench, lease, [c])) == ["c"]
    assert exact(bench, lease, [a]) is None
    assert got(exact(bench, lease, [lone])) == ["lone"]


def test_an_exact_claim_takes_no_command(bench: Bench) -> None:
    """W2, W5: a command has a call of its own and is not taken by its id."""
    batch = put(bench, work(command()))
    assert exact(bench, bench.lane(), [batch.batch_id]) is None


def test_reentry_grants_again_what_the_earlier_entry_holds(bench: Bench) -> None:
    """L2: held work is granted again first, tops up under the limit, and the old claim owns nothing."""
    tasks(bench, "a", "b", merge=DEFAULT)
    old = ready(bench, bench.lane())
    tasks(bench, "c", "d", merge=DEFAULT)
    lease = bench.lane()
    new = ready(bench, lease, 3)
    assert old is not None
    assert new is not None
    assert (got(new), new.fencing_token, new.owner) == (["a", "b", "c"], 2, ALICE)
    with pytest.raises(QueuedWorkClaimExpiredError):
        complete(bench, old)
    bench.run(queued_work.abandon(S, old))
    complete(bench, new)
    assert waiting(bench) == ["d"]


def test_work_granted_again_obeys_the_rules(bench: Bench) -> None:
    """L2: an exclusive batch is granted again alone, and exact claims see the queue that re-entry left."""
    (x,) = tasks(bench, "x", slot="exclusive", merge=DEFAULT)
    (y,) = tasks(bench, "y", slot="exclusive", merge=DEFAULT)
    lease = bench.lane()
    assert got(ready(bench, lease)) == ["x"]
    assert got(ready(bench, lease)) == ["y"]
    lease = bench.lane()
    assert exact(bench, lease, [y]) is None
    assert got(exact(bench, lease, [x])) == ["x"]
    assert got(ready(bench, lease)) == ["y"]
    assert ready(bench, lease) is None


def test_each_claim_call_grants_its_own_kind_again(bench: Bench) -> None:
    """L2: a call grants again what it could have granted; the rest stays held, can be completed, and blocks nothing."""
    put(bench, work(command()))
    tasks(bench, "late", delivery="after_current_turn_commit")
    lease = bench.lane()
    held_command = one_command(bench, lease)
    held_work = ready(bench, lease)
    tasks(bench, "early")
    lease = bench.lane()
    assert got(ready(bench, lease, idle=False)) == ["early"]
    complete(bench, held_work)
    assert got(one_command(bench, lease)) == ["command"]
    with pytest.raises(QueuedWorkClaimExpiredError):
        complete(bench, held_command)


def test_each_grant_of_a_batch_has_a_greater_token(bench: Bench) -> None:
    """K2: a claim's fencing token is the greatest of its batches plus one."""
    tasks(bench, "a", merge=DEFAULT)
    lease = bench.lane()
    for token in (1, 2):
        claim = ready(bench, lease)
        assert claim is not None
        assert claim.fencing_token == token
        bench.run(queued_work.abandon(S, claim))
    tasks(bench, "b", merge=DEFAULT)
    both = ready(bench, lease)
    assert both is not None
    assert (got(both), both.fencing_token, both.lane_fencing_token) == (["a", "b"], 3, 1)


def test_a_claim_lives_as_long_as_its_lease(bench: Bench) -> None:
    """K1: renewing gives the lease's expiry while the claim is live, and the typed error afterwards."""
    tasks(bench, "a")
    claim = ready(bench, bench.lane())
    assert claim is not None
    assert bench.read(queued_work.renew(S, claim)).expires_at_epoch_ms == 11_000
    assert [batch.state for batch in bench.read(queued_work.list_all(S))] == ["claimed"]
    assert waiting(bench) == []
    bench.now_ms += 10_000
    with pytest.raises(QueuedWorkClaimExpiredError):
        bench.read(queued_work.renew(S, claim))
    assert waiting(bench) == ["a"]
    bench.run(queued_work.abandon(S, claim))
    bench.run(queued_work.abandon(S, claim))


def test_cancel_removes_only_what_no_live_claim_holds(bench: Bench) -> None:
    """W6: cancel gives the cancelled batch, and None for a held, settled or unknown one."""
    a, b = tasks(bench, "a", "b")
    lease = bench.lane()
    claim = ready(bench, lease)
    assert bench.run(queued_work.cancel(S, a)) is None
    cancelled = bench.run(queued_work.cancel(S, b))
    assert cancelled is not None
    assert (cancelled.batch_id, cancelled.state) == (b, "cancelled")
    assert bench.run(queued_work.cancel(S, b)) is None
    complete(bench, claim)
    assert bench.run(queued_work.cancel(S, a)) is None
    assert bench.run(queued_work.cancel(S, "x")) is None
    assert bench.rows("select batch_id, state, settled_ms from queued_work_evidence order by seq") == [
        (a, "completed", 1_000),
        (b, "cancelled", 1_000),
    ]


def test_the_limits_hold(bench: Bench) -> None:
    """B1: limits below one, unknown boundaries and ids that are none are refused; a stale fence is too."""
    lease = bench.lane()
    for limit in (0, -1, 2**63):
        with pytest.raises(InvalidInputError):
            ready(bench, lease, limit)
    with pytest.raises(InvalidInputError):
        bench.run(queued_work.claim_ready(S, lease.fence(), "now", 1, "c"))  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError):
        bench.run(queued_work.cancel(S, "\ud800"))
    bench.release(lease)
    with pytest.raises(LeaseExpiredError):
        one_command(bench, lease)


@pytest.mark.parametrize(
    ("sql", "index"),
    [
        (queued_work.READY, "queued_work_by_seq (sid=?)"),
        (queued_work.HELD_EARLIER, "queued_work_by_claim (sid=? AND claim_id>?)"),
        (queued_work.FIND_BY_KEY, "queued_work_by_key (sid=? AND source_key=?)"),
        (queued_work.FIND_WAITING, "queued_work_by_id (sid=? AND batch_id=?)"),
        (queued_work.WORK.grant, "queued_work_by_id (sid=? AND batch_id=?)"),
        (queued_work.WORK.held, "queued_work_by_claim (sid=? AND claim_id=?)"),
        (queued_work.WORK.drop_claimed, "queued_work_by_claim (sid=? AND claim_id=?)"),
        (queued_work.LIST_ALL, "queued_work_by_seq (sid=?)"),
    ],
)
def test_every_search_has_its_index(bench: Bench, sql: str, index: str) -> None:
    """K4: what a claim, a cancel or a settlement looks for is found by an index, and nothing is sorted for it."""
    plan = bench.plan(sql)
    assert index in plan
    assert "USE TEMP B-TREE" not in plan
