"""The laws of turns that begin, fail and are asked to end (T4 to T7)."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from fastness.conformance.builders import (
    ALICE,
    BOB,
    TTL_MS,
    begin,
    chain,
    claim_inputs,
    command,
    commit,
    kinds,
    lane,
    owner,
    release,
    said,
    said_now,
    some,
    task,
    texts,
    work,
)
from fastness.conformance.lab import Lab, refused
from fastness.errors import InvalidInputError, LeaseExpiredError, TurnInputClaimExpiredError
from fastness.model import (
    Agenda,
    Busy,
    InterruptRequest,
    LocalProcess,
    NothingToDo,
    PayloadDefault,
    RequestedInterrupt,
    RuntimePersistence,
    SessionExecutionLease,
    TurnBegun,
    TurnFailure,
)

HERE = LocalProcess("host", "boot", 4242, "1000")


def taken(begun: TurnBegun) -> list[str]:
    """What a turn began with, in order."""
    assert begun.input_claim is None or begun.work_claim is None, "a turn began with input and with work"
    if begun.input_claim is not None:
        return texts(begun.input_claim.inputs)
    return [] if begun.work_claim is None else kinds(begun.work_claim.batches)


def tried(begun: TurnBegun) -> list[int]:
    """How often each of what a turn began with was granted."""
    if begun.input_claim is not None:
        return [row.attempts for row in begun.input_claim.inputs]
    return [] if begun.work_claim is None else [batch.attempts for batch in begun.work_claim.batches]


async def settle(store: RuntimePersistence, begun: TurnBegun) -> None:
    """Complete what a turn began with, and give the lane back."""
    made = commit(begun.lease, begun.head_revision).releasing_session_execution_lease(begun.lease.completion())
    if begun.input_claim is not None:
        made = made.completing_turn_input_claim(begun.input_claim)
    if begun.work_claim is not None:
        made = made.completing_queue_claim(begun.work_claim)
    await store.commit_runtime_state(made)


async def fail(lab: Lab, begun: TurnBegun, **fields: int | None) -> TurnFailure:
    """Let a turn fail with all that it began with."""
    inputs = [] if begun.input_claim is None else [begun.input_claim]
    batches = [] if begun.work_claim is None else [begun.work_claim]
    return await lab.dispatch().fail_turn(
        begun.lease.completion(),
        input_claims=inputs,
        work_claims=batches,
        error="no",
        **fields,  # type: ignore[arg-type]
    )


async def holder(store: RuntimePersistence) -> SessionExecutionLease:
    """The lease that anybody who wants the lane is shown."""
    outcome = await store.try_claim_session_execution_lease("s", owner("looks"), TTL_MS)
    assert isinstance(outcome, Busy)
    return outcome.holder


async def test_t4_turns_go_through_input_and_work_in_one_order(lab: Lab) -> None:
    """Each takes what was admitted next to each other: input, or work that joins, or one command."""
    store = await lab.store()
    for text in ("one", "two"):
        await store.enqueue_pending_turn_input(said(text))
    for kind in ("wash", "dry"):
        await store.enqueue_queued_work(work(task(kind), merge=PayloadDefault()))
    for _ in range(2):
        await store.enqueue_queued_work(work(command()))
    await store.enqueue_pending_turn_input(said_now("three"))
    await store.enqueue_queued_work(work(task("fold"), delivery="after_current_turn_commit", slot="exclusive"))
    store = await lab.reopen()
    seen = []
    while isinstance(got := await lab.dispatch().begin_turn("s", ALICE, TTL_MS), TurnBegun):
        seen.append(taken(got))
        await settle(store, got)
    assert got == NothingToDo()
    assert seen == [["one", "two"], ["wash", "dry"], ["command"], ["command"], ["three"], ["fold"]]


async def test_t4_a_turn_begins_whole_and_no_longer_than_asked(lab: Lab) -> None:
    """Lane and claim are of one grant: same tokens, same end; what was not asked for waits."""
    store = await lab.store()
    for text in ("one", "two", "three"):
        await store.enqueue_pending_turn_input(said(text))
        lab.clock.advance(1_000)
    begun = await begin(lab.dispatch(), max_inputs=2)
    claim = some(begun.input_claim)
    assert taken(begun) == ["one", "two"]
    assert begun.lease == SessionExecutionLease(
        "s", ALICE, begun.lease.lease_token, 1, lab.start_ms + 3_000, lab.start_ms + 33_000
    )
    assert (claim.owner, claim.lane_fencing_token, claim.expires_at_epoch_ms) == (ALICE, 1, lab.start_ms + 33_000)
    assert (begun.head_revision, begun.waited_ms, begun.quarantined_count) == (None, 3_000, 0)
    store = await lab.reopen()
    assert await store.renew_turn_input_claim(claim) == claim
    assert texts(await store.list_pending_turn_inputs("s")) == ["three"]
    await settle(store, begun)
    assert (await begin(lab.dispatch())).head_revision == 1


async def test_t4_of_many_that_begin_at_once_one_wins(lab: Lab) -> None:
    """All others are shown the winner; nothing is granted twice."""
    await (await lab.store()).enqueue_pending_turn_input(said("hello"))
    dispatches = (lab.dispatch(), lab.dispatch(await lab.second()))
    got = await asyncio.gather(*(dispatches[at % 2].begin_turn("s", owner(f"o{at}"), TTL_MS) for at in range(10)))
    (won,) = [each for each in got if isinstance(each, TurnBegun)]
    assert taken(won) == ["hello"]
    assert [each for each in got if not isinstance(each, TurnBegun)] == [Busy(won.lease)] * 9


async def test_t4_where_there_is_nothing_to_claim_the_lane_is_left_alone(lab: Lab) -> None:
    """Unless the caller wants it all the same: then it has the lane, and an unknown session comes to life."""
    dispatch = lab.dispatch()
    await lab.store()
    for session_id in ("s", "unknown"):
        async with lab.unchanged():
            assert await dispatch.begin_turn(session_id, ALICE, TTL_MS) == NothingToDo()
        begun = await begin(dispatch, session_id, needs_something=False)
        assert (begun.lease.fencing_token, begun.input_claim, begun.work_claim) == (1, None, None)
    lease = await lane(await lab.reopen())
    assert lease.fencing_token == 1


async def test_t4_a_turn_may_take_the_lane_alone(lab: Lab) -> None:
    """Without claims, what waits stays where it is, for the calls that claim it."""
    store = await lab.store()
    await store.enqueue_pending_turn_input(said("hello"))
    begun = await begin(lab.dispatch(), needs_something=False, claims=False)
    assert taken(begun) == []
    assert texts((await claim_inputs(store, begun.lease)).inputs) == ["hello"]


async def test_t4_a_dead_holder_is_taken_over_with_what_it_had(lab: Lab) -> None:
    """Only where its process is provably dead; else the caller is told who holds the lane."""
    store = await lab.store()
    await store.enqueue_pending_turn_input(said("hello"))
    dispatch = lab.dispatch()
    dead = await begin(dispatch, who=owner("carol", "1", HERE))
    async with lab.unchanged():
        busy = await dispatch.begin_turn("s", BOB, TTL_MS, observed_holder=dead.lease.fence())
        assert busy == Busy(dead.lease)
    lab.bury(HERE)
    assert await dispatch.begin_turn("s", BOB, TTL_MS) == Busy(dead.lease)
    begun = await begin(dispatch, who=BOB, observed_holder=dead.lease.fence())
    assert (begun.lease.fencing_token, taken(begun), tried(begun)) == (2, ["hello"], [2])
    await refused(lab, TurnInputClaimExpiredError, store.renew_turn_input_claim(some(dead.input_claim)))


@pytest.mark.parametrize("kind", ["input", "work"])
async def test_t5_entering_again_grants_the_same_rows_and_counts_nothing(lab: Lab, kind: str) -> None:
    """A holder whose answer was lost asks again: all of its rows, no more, under a new claim, on the first attempt."""
    store = await lab.store()
    lab.dispatch()
    for name in ("one", "two"):
        if kind == "input":
            await store.enqueue_pending_turn_input(said(name))
        else:
            await store.enqueue_queued_work(work(task(name), merge=PayloadDefault()))
    first = await begin(lab.dispatch(), max_attempts=1)
    await store.enqueue_pending_turn_input(said("later"))
    store = await lab.reopen()
    for _ in range(3):
        again = await begin(lab.dispatch(), max_attempts=1)
        assert (taken(again), tried(again)) == (["one", "two"], [1, 1])
        assert (again.lease.fencing_token, again.quarantined_count) == (1, 0)
        assert again.lease.lease_token != first.lease.lease_token
    await settle(store, again)
    assert taken(await begin(lab.dispatch())) == ["later"]


async def test_t5_an_attempt_counts_from_the_grant(lab: Lab) -> None:
    """A turn that dies, loses its lane or fails has had its attempt; what is given back has had none."""
    store = await lab.store()
    row = await store.enqueue_pending_turn_input(said("hello"))
    assert row.attempts == 0
    counted: list[int] = []
    for end in ("expiry", "abandon", "release", "failure", "no fault of its own", "expiry"):
        begun = await begin(lab.dispatch(), who=owner("runner", f"{len(counted)}"))
        counted += tried(begun)
        if end == "expiry":
            lab.clock.advance(30_000)
        elif end == "abandon":
            await store.abandon_turn_input_claim(some(begun.input_claim))
            await release(store, begun.lease)
        elif end == "release":
            await release(store, begun.lease)
        else:
            assert await fail(lab, begun, counts=end == "failure") == TurnFailure(1, 0)
        store = await lab.reopen()
    assert counted == [1, 2, 2, 3, 4, 4]
    assert [each.attempts for each in await store.list_pending_turn_inputs("s")] == [4]


@pytest.mark.parametrize("kind", ["input", "work"])
async def test_t5_what_has_failed_before_is_tried_alone(lab: Lab, kind: str) -> None:
    """It takes nothing with it if it fails again; what was never tried goes together, up to what was."""
    store = await lab.store()
    lab.dispatch()

    async def add(name: str) -> None:
        """Leave one more row of the kind."""
        if kind == "input":
            await store.enqueue_pending_turn_input(said(name))
        else:
            await store.enqueue_queued_work(work(task(name), merge=PayloadDefault()))

    await add("one")
    await add("two")
    await fail(lab, await begin(lab.dispatch()))
    await add("three")
    await add("four")
    seen = []
    while isinstance(got := await lab.dispatch().begin_turn("s", ALICE, TTL_MS), TurnBegun):
        seen.append(taken(got))
        await settle(store, got)
    assert seen == [["one"], ["two"], ["three", "four"]]


async def test_t6_a_failed_turn_gives_everything_back_at_once(lab: Lab) -> None:
    """The lane is free, the rows wait in their order, and what the turn claimed completes nothing any more."""
    store = await lab.store()
    for text in ("one", "two"):
        await store.enqueue_pending_turn_input(said(text))
    begun = await begin(lab.dispatch())
    assert await fail(lab, begun) == TurnFailure(2, 0)
    store = await lab.reopen()
    assert texts(await store.list_pending_turn_inputs("s")) == ["one", "two"]
    assert [each.session_id for each in (await lab.dispatch().read_agenda()).sessions] == ["s"]
    late = commit(begun.lease, None, *chain("a")).completing_turn_input_claim(some(begun.input_claim))
    await refused(lab, LeaseExpiredError, store.commit_runtime_state(late))


@pytest.mark.parametrize("fault", ["released", "expired", "superseded", "taken", "forged", "unknown"])
async def test_t6_a_lease_that_is_not_live_fails_nothing(lab: Lab, fault: str) -> None:
    """A holder that lost its lane is told so, and everything stays as it is."""
    store = await lab.store()
    await store.enqueue_pending_turn_input(said("hello"))
    begun = await begin(lab.dispatch())
    if fault == "released":
        await release(store, begun.lease)
    elif fault == "superseded":
        await lane(store)
    elif fault in {"forged", "unknown"}:
        wrong = {"forged": {"lease_token": "forged"}, "unknown": {"session_id": "nowhere"}}[fault]
        begun = msgspec.structs.replace(begun, lease=msgspec.structs.replace(begun.lease, **wrong))
    else:
        lab.clock.advance(30_000)
    if fault == "taken":
        await lane(store, BOB)
    await refused(lab, LeaseExpiredError, fail(lab, begun, max_attempts=1, delay_ms=1_000))


async def test_t6_nothing_of_the_session_runs_before_the_delay_is_over(lab: Lab) -> None:
    """What comes in meanwhile waits behind what failed, and a commit or a release in between ends the wait."""
    store = await lab.store()
    dispatch = lab.dispatch()
    await store.enqueue_pending_turn_input(said("one"))
    await fail(lab, await begin(dispatch), delay_ms=5_000)
    await store.enqueue_pending_turn_input(said("two"))
    await store.enqueue_queued_work(work())
    for _ in range(2):
        assert await dispatch.read_agenda() == Agenda((), 5_000)
        assert await dispatch.begin_turn("s", BOB, TTL_MS) == NothingToDo()
    lab.clock.advance(4_999)
    assert await dispatch.begin_turn("s", BOB, TTL_MS) == NothingToDo()
    lab.clock.advance(1)
    begun = await begin(dispatch)
    assert taken(begun) == ["one"]
    await fail(lab, begun, delay_ms=5_000)
    # Whoever asks for the lane itself does not wait, and what it does counts.
    lease = (await begin(dispatch, needs_something=False, claims=False)).lease
    await release(store, lease)
    assert taken(await begin(dispatch)) == ["one"]


async def test_t6_a_lane_that_is_lost_within_the_delay_is_looked_at_after_it(lab: Lab) -> None:
    """The session is not offered again and again to those who have to leave it alone."""
    store = await lab.store()
    dispatch = lab.dispatch()
    await store.enqueue_pending_turn_input(said("one"))
    await fail(lab, await begin(dispatch), delay_ms=60_000)
    await begin(dispatch, needs_something=False)
    lab.clock.advance(30_000)
    assert await dispatch.begin_turn("s", BOB, TTL_MS) == NothingToDo()
    assert await dispatch.read_agenda() == Agenda((), 30_000)
    lab.clock.advance(30_000)
    assert taken(await begin(dispatch, who=BOB)) == ["one"]


async def test_t6_a_failure_is_checked_before_anything_is_written(lab: Lab) -> None:
    """No negative delay, no number of attempts below one; any text of an error is taken."""
    store = await lab.store()
    await store.enqueue_pending_turn_input(said("hello"))
    begun = await begin(lab.dispatch())
    for fields in ({"delay_ms": -1}, {"max_attempts": 0}, {"delay_ms": 2**63}):
        await refused(lab, InvalidInputError, fail(lab, begun, **fields))
    failed = await lab.dispatch().fail_turn(
        begun.lease.completion(), input_claims=[some(begun.input_claim)], error="\0\ud800 x" * 9_999, max_attempts=1
    )
    assert failed == TurnFailure(0, 1)


async def test_t7_the_holder_learns_that_its_turn_is_to_end(lab: Lab) -> None:
    """By its renewal, by its agenda, and so does whoever observes the lane; the lease is as live as before."""
    store = await lab.store()
    dispatch = lab.dispatch()
    lease = await lane(store)
    lab.clock.advance(1_000)
    asked = await dispatch.request_interrupt("s", reason="enough")
    wanted = InterruptRequest("enough", lab.now_ms)
    assert asked == msgspec.structs.replace(lease, interrupt=wanted)
    store = await lab.reopen()
    assert (await holder(store)).interrupt == wanted
    assert (await store.renew_session_execution_lease(lease.fence(), TTL_MS)).interrupt == wanted
    dispatch = lab.dispatch()
    assert (await dispatch.read_agenda(owner_id="alice")).interrupts == (RequestedInterrupt("s", 1, wanted),)
    assert (await dispatch.read_agenda(owner_id="bob")).interrupts == ()
    assert (await dispatch.read_agenda()).interrupts == ()
    # The same holder is asked the same when it comes back.
    assert (await lane(store)).interrupt == wanted
    lease = await lane(store)
    await store.commit_runtime_state(commit(lease, None, *chain("a")))


async def test_t7_who_comes_after_is_asked_nothing(lab: Lab) -> None:
    """After a release, an end of the lease or a new grant the request is gone."""
    store = await lab.store()
    dispatch = lab.dispatch()
    for end in ("release", "expiry"):
        lease = await lane(store)
        assert await dispatch.request_interrupt("s") is not None
        if end == "release":
            await release(store, lease)
        else:
            lab.clock.advance(30_000)
        after = await lane(store, BOB)
        assert after.interrupt is None
        assert (await holder(store)).interrupt is None
        assert (await dispatch.read_agenda(owner_id="bob")).interrupts == ()
        await release(store, after)


async def test_t7_only_a_turn_that_runs_is_asked(lab: Lab) -> None:
    """Nobody, where the lane is free or lost, where another grant was named, or where there is no such session."""
    store = await lab.store()
    dispatch = lab.dispatch()
    async with lab.unchanged():
        assert await dispatch.request_interrupt("s") is None
        assert await dispatch.request_interrupt("unknown") is None
    lease = await lane(store)
    async with lab.unchanged():
        assert await dispatch.request_interrupt("s", fencing_token=2) is None
    assert await dispatch.request_interrupt("s", fencing_token=1) is not None
    lab.clock.advance(30_000)
    async with lab.unchanged():
        assert await dispatch.request_interrupt("s", fencing_token=lease.fencing_token) is None
