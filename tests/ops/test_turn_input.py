"""The programs of turn input, run on a bare database (laws I1 to I6, K1 to K4)."""

from __future__ import annotations

import pytest

from fastness.conformance.builders import said, said_now
from fastness.errors import (
    BackendError,
    InputSourceKeyConflictError,
    InvalidInputError,
    LeaseExpiredError,
    RecordVersionUnsupportedError,
    SessionBindingMismatchError,
    SessionDeletedError,
    TurnInputClaimExpiredError,
)
from fastness.model import (
    AnchorNotFound,
    ByInputId,
    BySourceKey,
    NotFound,
    TurnInput,
)
from fastness.ops import turn_input
from fastness.ops.lane import Target
from tests.ops.driver import ALICE, BOB, Bench, S
from tests.ops.inputs import UNKNOWN, complete, got, pending, put, settle_turn, take_active, take_next


def test_enqueue_brings_a_session_to_life(bench: Bench) -> None:
    """M3: enqueue brings an unknown id to life; the row carries a minted id and the next admission number."""
    row = put(bench, said("hello"))
    assert (row.input_id, row.admission_seq, row.state) == ("id-1", 1, "deferred_next_turn")
    assert row.enqueued_at_epoch_ms == 1_000
    assert pending(bench) == [("hello", "deferred_next_turn")]


def test_nothing_else_brings_a_session_to_life(bench: Bench) -> None:
    """M3: lists, cancels and claims of an unknown session find nothing and create nothing."""
    lease = bench.lane()
    assert bench.read(turn_input.list_pending(UNKNOWN)) == []
    assert bench.run(turn_input.cancel(UNKNOWN, "x")) == NotFound()
    assert bench.run(turn_input.cancel_suffix(UNKNOWN, ByInputId("x"))) == AnchorNotFound()
    with pytest.raises(LeaseExpiredError):
        bench.run(turn_input.claim_next(UNKNOWN, lease.fence(), 1, "c"))
    assert bench.rows("select session_id from session") == [("s",)]


def test_a_bound_handle_of_a_deleted_session_is_refused(bench: Bench) -> None:
    """M3: what names a surrogate key that is gone gets "session deleted", whatever the call."""
    gone = Target("s", 99)
    with pytest.raises(SessionDeletedError):
        bench.run(turn_input.enqueue(gone, said("x"), "i"))
    with pytest.raises(SessionDeletedError):
        bench.read(turn_input.list_pending(gone))
    with pytest.raises(SessionBindingMismatchError):
        bench.run(turn_input.enqueue(S, said("x", session_id="other"), "i"))


def test_the_same_submission_is_admitted_once(bench: Bench) -> None:
    """I1: a source key's second submission of the same content returns the original row."""
    first = put(bench, said("hello", key="k"))
    assert put(bench, said("hello", key="k")) == first
    assert put(bench, said("hello", key="k", input_id=first.input_id)) == first
    assert pending(bench) == [("hello", "deferred_next_turn")]


def test_a_source_key_names_one_submission(bench: Bench) -> None:
    """I1: other text, another ingress or another explicit id under the same key is a conflict and changes nothing."""
    put(bench, said("hello", key="k"))
    for other in (said("bye", key="k"), said_now("hello", source_key="k"), said("hello", key="k", input_id="mine")):
        with pytest.raises(InputSourceKeyConflictError):
            put(bench, other)
    assert pending(bench) == [("hello", "deferred_next_turn")]


def test_an_explicit_input_id_names_one_submission(bench: Bench) -> None:
    """I1: an input id that exists behaves like a source key, and does not take a key on afterwards."""
    first = put(bench, said("hello", input_id="mine"))
    assert put(bench, said("hello", input_id="mine")) == first
    for other in (said("bye", input_id="mine"), said("hello", input_id="mine", key="late")):
        with pytest.raises(InputSourceKeyConflictError):
            put(bench, other)
    put(bench, said("two", key="k2"))
    with pytest.raises(InputSourceKeyConflictError):
        put(bench, said("hello", input_id="mine", key="k2"))


def test_a_replay_returns_the_row_whatever_its_state(bench: Bench) -> None:
    """I1: a replay finds the row while it is claimed, accepted, completed and cancelled, with its state."""
    for key in ("a", "b"):
        put(bench, said(key, key=key))
    put(bench, said_now("c", source_key="c"))
    lease = bench.lane()
    claim = take_next(bench, lease, 1)
    assert put(bench, said("a", key="a")).state == "deferred_next_turn"
    take_active(bench, lease)
    assert put(bench, said_now("c", source_key="c")).state == "accepted"
    complete(bench, claim)
    assert put(bench, said("a", key="a")).state == "completed"
    bench.run(turn_input.cancel_many(S, [BySourceKey("b")]))
    assert put(bench, said("b", key="b")).state == "cancelled"
    with pytest.raises(InputSourceKeyConflictError):
        put(bench, said("other", key="a"))
    assert pending(bench) == []


def test_the_limits_hold_before_anything_is_written(bench: Bench) -> None:
    """B1: a draft that breaks a limit is refused and brings nothing to life."""
    for bad in (said("x", key="\0"), said("\ud800"), said("x", input_id="i" * 513)):
        with pytest.raises(InvalidInputError):
            put(bench, bad)
    lease = bench.lane()
    for limit in (0, -1, True, 2**63):
        with pytest.raises(InvalidInputError):
            take_next(bench, lease, limit)
    assert bench.rows("select count(*) from turn_input") == [(0,)]


def test_next_turn_input_is_claimed_in_order_up_to_the_limit(bench: Bench) -> None:
    """I2, I3: a claim grants the first free rows in the order of admission; they stay deferred and are hidden."""
    for text in "abc":
        put(bench, said(text))
    lease = bench.lane()
    claim = take_next(bench, lease, 2)
    assert claim is not None
    assert (got(claim), claim.owner, claim.fencing_token) == (["a", "b"], ALICE, 1)
    assert (claim.lane_fencing_token, claim.expires_at_epoch_ms) == (1, 11_000)
    assert {row.state for row in claim.inputs} == {"deferred_next_turn"}
    assert pending(bench) == [("c", "deferred_next_turn")]
    assert got(take_next(bench, lease)) == ["c"]
    assert take_next(bench, lease) is None


def test_a_claimable_row_behind_many_held_ones_is_found(bench: Bench) -> None:
    """K4: 10,000 held rows do not hide the one behind them."""
    for at in range(10_001):
        put(bench, said(str(at)))
    lease = bench.lane()
    assert len(got(take_next(bench, lease, 10_000))) == 10_000
    assert got(take_next(bench, lease, 1)) == ["10000"]


def test_active_input_is_for_its_turn_at_its_boundary(bench: Bench) -> None:
    """I3: active input is granted to its turn, where its boundary admits it, and becomes accepted."""
    lease = bench.lane()
    put(bench, said_now("late", boundary="before_completion"))
    put(bench, said_now("soon"))
    put(bench, said_now("other", "t2"))
    assert take_next(bench, lease) is None
    first = take_active(bench, lease)
    assert first is not None
    assert [(row.state, row.input) for row in first.inputs] == [("accepted", TurnInput.of_text("soon"))]
    assert got(take_active(bench, lease, last=True)) == ["late"]
    assert pending(bench) == [("other", "pending_active")]


def test_before_completion_admits_both_boundaries(bench: Bench) -> None:
    """I3: at the last checkpoint, input for either boundary is granted, in the order of admission."""
    lease = bench.lane()
    put(bench, said_now("late", boundary="before_completion"))
    put(bench, said_now("soon"))
    assert got(take_active(bench, lease, last=True)) == ["late", "soon"]


def test_active_input_of_a_lost_lane_becomes_next_turn_input(bench: Bench) -> None:
    """I4: once the lane's live token is another than at admission, active input counts as next-turn input."""
    put(bench, said_now("before any lane"))
    assert pending(bench) == [("before any lane", "pending_active")]
    lease = bench.lane()
    put(bench, said_now("of the first"))
    assert pending(bench) == [("before any lane", "deferred_next_turn"), ("of the first", "pending_active")]
    bench.now_ms += 10_000
    assert [state for _, state in pending(bench)] == ["pending_active", "deferred_next_turn"]
    assert lease.fencing_token == 1
    assert got(take_next(bench, bench.lane(BOB))) == ["before any lane", "of the first"]


def test_a_live_turn_of_the_same_id_may_still_take_it(bench: Bench) -> None:
    """I4: input that counts as next-turn input is still granted to a turn of its id."""
    put(bench, said_now("a"))
    lease = bench.lane()
    assert got(take_active(bench, lease)) == ["a"]


def test_active_input_of_a_settled_turn_becomes_next_turn_input(bench: Bench) -> None:
    """I4: once the turn has a receipt, its input counts as next-turn input, in lists, replays and claims."""
    lease = bench.lane()
    put(bench, said_now("a", source_key="a"))
    settle_turn(bench, "t1")
    assert pending(bench) == [("a", "deferred_next_turn")]
    assert put(bench, said_now("a", source_key="a")).state == "deferred_next_turn"
    assert put(bench, said_now("b")).state == "deferred_next_turn"
    assert got(take_next(bench, lease)) == ["a", "b"]


def test_accepted_input_of_a_dead_claim_is_never_stranded(bench: Bench) -> None:
    """I4: accepted input whose claim died or was abandoned counts as next-turn input and is claimed as such."""
    lease = bench.lane()
    put(bench, said_now("a"))
    claim = take_active(bench, lease)
    assert claim is not None
    assert pending(bench) == []
    bench.run(turn_input.abandon(S, claim))
    assert pending(bench) == [("a", "deferred_next_turn")]
    claim = take_active(bench, lease)
    assert claim is not None
    assert got(claim) == ["a"]
    bench.now_ms += 10_000
    assert pending(bench) == [("a", "deferred_next_turn")]
    assert got(take_next(bench, bench.lane(BOB))) == ["a"]


def test_abandoned_accepted_input_is_next_turn_input_at_once(bench: Bench) -> None:
    """I4: the holder of the lane that gives accepted input up may claim it as next-turn input under the same lease."""
    lease = bench.lane()
    put(bench, said_now("a"))
    claim = take_active(bench, lease)
    assert claim is not None
    assert take_next(bench, lease) is None
    bench.run(turn_input.abandon(S, claim))
    assert got(take_next(bench, lease)) == ["a"]


def test_input_granted_as_next_turn_input_stays_that(bench: Bench) -> None:
    """I3: once granted as next-turn input, a row is deferred until it is completed, also when the claim is given up."""
    put(bench, said_now("a"))
    lease = bench.lane()
    claim = take_next(bench, lease)
    assert claim is not None
    bench.run(turn_input.abandon(S, claim))
    assert take_active(bench, lease) is None
    assert pending(bench) == [("a", "deferred_next_turn")]


def test_each_grant_of_a_row_has_a_greater_token(bench: Bench) -> None:
    """K2: a claim's fencing token is the greatest of its rows plus one, across abandons and lanes."""
    put(bench, said("a"))
    lease = bench.lane()
    for token in (1, 2, 3):
        claim = take_next(bench, lease)
        assert claim is not None
        assert claim.fencing_token == token
        bench.run(turn_input.abandon(S, claim))
    put(bench, said("b"))
    bench.release(lease)
    both = take_next(bench, bench.lane(BOB))
    assert both is not None
    assert (got(both), both.fencing_token) == (["a", "b"], 4)


def test_reentry_grants_again_what_the_earlier_entry_holds(bench: Bench) -> None:
    """L2: after re-entry a claim call grants the held rows again under a new claim; the old one owns nothing."""
    for text in "abc":
        put(bench, said(text))
    old = take_next(bench, bench.lane(), 2)
    lease = bench.lane()
    new = take_next(bench, lease, 2)
    assert old is not None
    assert new is not None
    assert (got(new), new.fencing_token) == (["a", "b"], 2)
    with pytest.raises(TurnInputClaimExpiredError):
        complete(bench, old)
    with pytest.raises(TurnInputClaimExpiredError):
        bench.read(turn_input.renew(S, old))
    bench.run(turn_input.abandon(S, old))
    assert got(take_next(bench, lease)) == ["c"]
    complete(bench, new)


def test_rows_granted_again_come_first_and_count(bench: Bench) -> None:
    """L2: rows of the earlier entry are granted before free ones and count towards the limit; others follow later."""
    lease = bench.lane()
    put(bench, said_now("late", boundary="before_completion"))
    put(bench, said_now("soon"))
    put(bench, said_now("soon too"))
    take_active(bench, lease)
    lease = bench.lane()
    assert got(take_active(bench, lease, limit=1, last=True)) == ["soon"]
    assert got(take_active(bench, lease, limit=2, last=True)) == ["late", "soon too"]


def test_each_claim_call_grants_its_own_kind_again(bench: Bench) -> None:
    """L2: next-turn input is granted again by ``claim_next`` alone, a turn's by ``claim_active`` of that turn alone."""
    put(bench, said("next"))
    lease = bench.lane()
    put(bench, said_now("now"))
    take_next(bench, lease)
    take_active(bench, lease)
    lease = bench.lane()
    assert take_active(bench, lease, "t2") is None
    assert got(take_active(bench, lease)) == ["now"]
    assert got(take_next(bench, lease)) == ["next"]
    lease = bench.lane()
    assert got(take_next(bench, lease)) == ["next"]
    assert got(take_active(bench, lease)) == ["now"]


def test_a_claim_lives_as_long_as_its_lease(bench: Bench) -> None:
    """K1: a claim survives re-entry of its holder, renews to the lease's expiry, and ends with the lease."""
    put(bench, said("a"))
    claim = take_next(bench, bench.lane())
    assert claim is not None
    bench.now_ms += 5_000
    lease = bench.lane()
    renewed = bench.read(turn_input.renew(S, claim))
    assert renewed.expires_at_epoch_ms == lease.expires_at_epoch_ms == 16_000
    bench.now_ms += 10_000
    with pytest.raises(TurnInputClaimExpiredError):
        bench.read(turn_input.renew(S, claim))
    with pytest.raises(TurnInputClaimExpiredError):
        bench.read(turn_input.renew(UNKNOWN, claim))


def test_a_stale_fence_claims_nothing(bench: Bench) -> None:
    """L4: a released, superseded or expired fence is refused by every claim call."""
    put(bench, said("a"))
    old = bench.lane()
    bench.lane()
    with pytest.raises(LeaseExpiredError):
        take_next(bench, old)
    with pytest.raises(LeaseExpiredError):
        take_active(bench, old)


def test_abandon_frees_only_what_the_claim_owns(bench: Bench) -> None:
    """K3: abandon is idempotent, also of an unknown session, and leaves a later grant of the rows alone."""
    put(bench, said("a"))
    first = take_next(bench, bench.lane())
    assert first is not None
    bench.now_ms += 10_000
    second = take_next(bench, bench.lane(BOB))
    bench.run(turn_input.abandon(S, first))
    bench.run(turn_input.abandon(S, first))
    bench.run(turn_input.abandon(UNKNOWN, first))
    assert pending(bench) == []
    complete(bench, second)


def test_an_interrupted_turn_leaves_its_rest_to_the_next(bench: Bench) -> None:
    """I5: what the turn did not complete is deferred, claimed or not, and is no longer that turn's, once."""
    lease = bench.lane()
    for text in ("done", "held", "waiting"):
        put(bench, said_now(text))
    done = take_active(bench, lease, limit=1)
    held = take_active(bench, lease, limit=1)
    complete(bench, done)
    bench.write(*turn_input.defer_interrupted(1, "t1", 0))
    assert pending(bench) == [("held", "deferred_next_turn"), ("waiting", "deferred_next_turn")]
    assert take_active(bench, lease) is None
    assert held is not None
    with pytest.raises(TurnInputClaimExpiredError):
        bench.read(turn_input.renew(S, held))
    again = take_next(bench, lease)
    bench.write(*turn_input.defer_interrupted(1, "t1", 0))
    complete(bench, again)


def test_a_row_that_cannot_be_read_says_so(bench: Bench) -> None:
    """M4: a stored draft of an unknown version or a damaged one is a typed error on a list and on a claim."""
    put(bench, said("a"))
    bench.db.execute("""update turn_input set body = replace(body, '{"v":1,', '{"v":9,')""")
    with pytest.raises(RecordVersionUnsupportedError):
        bench.read(turn_input.list_pending(S))
    bench.db.execute("""update turn_input set body = '{"v":1,'""")
    with pytest.raises(BackendError):
        take_next(bench, bench.lane())
    assert bench.rows("select claim_id from turn_input") == [(None,)]


@pytest.mark.parametrize(
    ("sql", "index"),
    [
        (turn_input.ACTIVE_FREE, "turn_input_by_turn (sid=? AND turn_id=?)"),
        (turn_input.NEXT_FREE, "turn_input_by_seq (sid=?)"),
        (turn_input.NEXT_EARLIER, "turn_input_by_claim (sid=? AND claim_id>?)"),
        (turn_input.ACTIVE_EARLIER, "(sid=? AND"),
        (turn_input.FIND_BY_KEY, "turn_input_by_key (sid=? AND source_key=?)"),
        (turn_input.FIND_BY_ID, "turn_input_by_id (sid=? AND input_id=?)"),
        (turn_input.ACTIVE.grant, "turn_input_by_id (sid=? AND input_id=?)"),
        (turn_input.ACTIVE.held, "turn_input_by_claim (sid=? AND claim_id=?)"),
        (turn_input.ACTIVE.keep_claimed, "turn_input_by_claim (sid=? AND claim_id=?)"),
        (turn_input.ACTIVE.drop_named, "turn_input_by_id (sid=? AND input_id=?)"),
        (turn_input.DEFER_INTERRUPTED, "turn_input_by_turn (sid=? AND turn_id=?)"),
    ],
)
def test_every_search_has_its_index(bench: Bench, sql: str, index: str) -> None:
    """K4: what a claim, a cancel or a settlement looks for is found by an index, and no free row is sorted for."""
    plan = bench.plan(sql)
    assert index in plan
    assert "USE TEMP B-TREE" not in plan
