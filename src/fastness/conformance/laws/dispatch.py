"""The laws of the agenda and of what is for later (T1 to T3, T8): which sessions can run a turn, and in which order."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fastness.conformance.builders import (
    BOB,
    TTL_MS,
    begin,
    chain,
    claim_inputs,
    commit,
    lane,
    later,
    owner,
    release,
    said,
    said_now,
    some,
    task,
    texts,
    work,
)
from fastness.conformance.lab import Lab
from fastness.model import (
    Acquired,
    Agenda,
    Cancelled,
    LabelLimited,
    LocalProcess,
    NothingToDo,
    ReadySession,
    SessionMeta,
    TurnBegun,
)

HERE = LocalProcess("host", "boot", 4242, "1000")
WHEN = "2024-05-01T12:00:00Z"


async def ready(lab: Lab, **fields: Any) -> list[str]:
    """The sessions on the agenda, in its order."""
    return [each.session_id for each in (await lab.dispatch().read_agenda(**fields)).sessions]


async def next_ready(lab: Lab) -> int | None:
    """When there will be more, in milliseconds from now."""
    return (await lab.dispatch().read_agenda()).next_ready_in_ms


async def described(lab: Lab, session_id: str, *labels: str, priority: int = 0) -> None:
    """Describe a session, which comes to life with it."""
    store = await lab.store(session_id)
    await store.save_session_meta(SessionMeta(session_id, session_id, WHEN, "m", labels=labels, priority=priority))


@pytest.mark.parametrize("what", ["input", "input for a turn", "task", "command", "outbox"])
async def test_t1_a_session_with_something_to_do_is_on_the_agenda(lab: Lab, what: str) -> None:
    """Whatever waits, from the moment that it came in; after the commit that settled all of it the session is gone."""
    store = await lab.store()
    await lab.store("idle")
    lab.dispatch()
    start = lab.now_ms
    if what == "input":
        await store.enqueue_pending_turn_input(said("hello"))
    elif what == "input for a turn":
        await store.enqueue_pending_turn_input(said_now("hello"))
    elif what == "outbox":
        other = await lane(await lab.store("idle"), session_id="idle")
        made = (
            commit(other, None, *chain("a"))
            .with_outbox(said("hello"))
            .releasing_session_execution_lease(other.completion())
        )
        await (await lab.store("idle")).commit_runtime_state(made)
    else:
        await store.enqueue_queued_work(work(task()) if what == "task" else work())
    store = await lab.reopen()
    assert await lab.dispatch().read_agenda() == Agenda((ReadySession("s", 0, start),))
    begun = await begin(lab.dispatch())
    assert await ready(lab) == []
    made = commit(begun.lease, None, *chain("a"))
    if begun.input_claim is not None:
        made = made.completing_turn_input_claim(begun.input_claim)
    if begun.work_claim is not None:
        made = made.completing_queue_claim(begun.work_claim)
    await store.commit_runtime_state(made.releasing_session_execution_lease(begun.lease.completion()))
    assert await lab.dispatch().read_agenda() == Agenda(())


async def test_t1_what_a_commit_leaves_or_sends_is_on_the_agenda(lab: Lab) -> None:
    """What came in while the turn ran, what it did not claim, and what it sent to its own session and to others."""
    store = await lab.store()
    for text in ("one", "two"):
        await store.enqueue_pending_turn_input(said(text))
    begun = await begin(lab.dispatch(), max_inputs=1)
    done = commit(begun.lease, None, *chain("a")).completing_turn_input_claim(some(begun.input_claim))
    done = done.with_outbox(said("to another", session_id="new"))
    await store.commit_runtime_state(done.releasing_session_execution_lease(begun.lease.completion()))
    assert sorted(await ready(lab)) == ["new", "s"]
    begun = await begin(lab.dispatch())
    done = commit(begun.lease, 1, *chain("b", after="a")).completing_turn_input_claim(some(begun.input_claim))
    done = done.with_outbox(said("to myself"))
    await store.commit_runtime_state(done.releasing_session_execution_lease(begun.lease.completion()))
    assert sorted(await ready(lab)) == ["new", "s"]
    assert texts(some((await begin(lab.dispatch())).input_claim).inputs) == ["to myself"]


async def test_t1_a_held_lane_is_not_on_the_agenda_until_it_is_free(lab: Lab) -> None:
    """Given back it is on it at once, with all that its holder claimed; lost, when the lease ends, renewed or not."""
    store = await lab.store()
    dispatch = lab.dispatch()
    await store.enqueue_pending_turn_input(said("hello"))
    begun = await begin(dispatch)
    await store.enqueue_pending_turn_input(said("more"))
    assert await dispatch.read_agenda() == Agenda((), 30_000)
    await release(store, begun.lease)
    assert await ready(lab) == ["s"]
    lease = (await begin(dispatch)).lease
    lab.clock.advance(20_000)
    await store.renew_session_execution_lease(lease.fence(), TTL_MS)
    lab.clock.advance(29_999)
    assert await dispatch.read_agenda() == Agenda((), 1)
    lab.clock.advance(1)
    assert await ready(lab) == ["s"]
    store = await lab.reopen()
    begun = await begin(lab.dispatch(), who=BOB)
    assert texts(some(begun.input_claim).inputs) == ["hello"]
    assert begun.lease.fencing_token == 3


async def test_t1_giving_claims_back_leaves_nothing_behind(lab: Lab) -> None:
    """After an abandoned claim, and after the lane that was claimed by itself, the session is on the agenda again."""
    store = await lab.store()
    await store.enqueue_pending_turn_input(said("hello"))
    lease = await lane(store)
    claim = await claim_inputs(store, lease)
    await store.abandon_turn_input_claim(claim)
    assert await ready(lab) == []
    await release(store, lease)
    assert await ready(lab) == ["s"]
    lease = await lane(store)
    assert await next_ready(lab) == 30_000
    lab.clock.advance(30_000)
    assert await ready(lab) == ["s"]


@pytest.mark.parametrize("what", ["cancelled", "later", "completed"])
async def test_t1_a_session_that_is_looked_at_too_early_is_corrected(lab: Lab, what: str) -> None:
    """It may be on the agenda though nothing is to be done; then whoever looks leaves the lane, and it is gone."""
    store = await lab.store()
    row = await store.enqueue_pending_turn_input(said("hello"))
    if what == "completed":
        lease = await lane(store)
        done = commit(lease, None, *chain("a")).completing_turn_input_claim(await claim_inputs(store, lease))
        await store.commit_runtime_state(done)
        lab.clock.advance(30_000)
    else:
        await store.cancel_pending_turn_input("s", row.input_id)
    if what == "later":
        await store.enqueue_pending_turn_input(later(said("later"), lab.now_ms + 5_000))
    for _ in range(2):
        assert await lab.dispatch().begin_turn("s", BOB, TTL_MS) == NothingToDo()
        assert await lab.dispatch().read_agenda() == Agenda((), 5_000 if what == "later" else None)
    assert (await lane(await lab.reopen())).fencing_token == (2 if what == "completed" else 1)


async def test_t1_a_deleted_session_is_not_on_the_agenda(lab: Lab) -> None:
    """And beginning a turn in it brings nothing to life; a new one of its name begins with nothing."""
    store = await lab.store()
    await store.enqueue_pending_turn_input(said("hello"))
    await lab.factory.delete_session("s")
    assert await lab.dispatch().read_agenda() == Agenda(())
    async with lab.unchanged():
        assert await lab.dispatch().begin_turn("s", BOB, TTL_MS) == NothingToDo()
    await lab.store()
    assert await lab.dispatch().begin_turn("s", BOB, TTL_MS) == NothingToDo()


async def test_t2_what_is_for_later_is_on_the_agenda_at_its_time(lab: Lab) -> None:
    """Not a millisecond before; the agenda says when, and what is ready meanwhile does not wait for it."""
    store = await lab.store()
    dispatch = lab.dispatch()
    await store.enqueue_pending_turn_input(later(said("in five"), lab.now_ms + 5_000))
    await store.enqueue_queued_work(work(session_id="other", at_ms=lab.now_ms + 9_000))
    assert await dispatch.read_agenda() == Agenda((), 5_000)
    await store.enqueue_pending_turn_input(said("now"))
    begun = await begin(dispatch)
    assert texts(some(begun.input_claim).inputs) == ["now"]
    done = commit(begun.lease, None, *chain("a")).completing_turn_input_claim(some(begun.input_claim))
    await store.commit_runtime_state(done.releasing_session_execution_lease(begun.lease.completion()))
    assert await dispatch.read_agenda() == Agenda((), 5_000)
    lab.clock.advance(4_999)
    assert await dispatch.begin_turn("s", BOB, TTL_MS) == NothingToDo()
    assert await dispatch.read_agenda() == Agenda((), 1)
    lab.clock.advance(1)
    assert await (await lab.reopen()).load_head() is not None
    assert (await ready(lab), await next_ready(lab)) == (["s"], 4_000)
    begun = await begin(lab.dispatch())
    assert texts(some(begun.input_claim).inputs) == ["in five"]
    assert begun.waited_ms == 0
    lab.clock.advance(4_000)
    assert await ready(lab) == ["other"]


async def test_t2_input_for_later_is_listed_and_cancelled_and_not_claimed(lab: Lab) -> None:
    """No call claims it before its time, whether it is for the next turn or for the one that runs."""
    store = await lab.store()
    at_ms = lab.now_ms + 5_000
    lease = await lane(store)
    kept = await store.enqueue_pending_turn_input(later(said("a"), at_ms))
    await store.enqueue_pending_turn_input(later(said_now("b"), at_ms))
    gone = await store.enqueue_pending_turn_input(later(said("c"), at_ms))
    active: Any = {"turn_id": "t1", "checkpoint": "before_completion", "max_inputs": 9}
    lab.clock.advance(4_999)
    assert await store.claim_next_turn_inputs("s", lease.fence(), max_inputs=9) is None
    assert await store.claim_active_turn_inputs("s", lease.fence(), **active) is None
    assert texts(await store.list_pending_turn_inputs("s")) == ["a", "b", "c"]
    assert kept.available_at_ms == at_ms
    assert isinstance(await store.cancel_pending_turn_input("s", gone.input_id), Cancelled)
    lab.clock.advance(1)
    store = await lab.reopen()
    assert texts(some(await store.claim_active_turn_inputs("s", lease.fence(), **active)).inputs) == ["b"]
    assert texts((await claim_inputs(store, lease, 9)).inputs) == ["a"]


async def test_t2_saying_the_same_for_another_time_changes_nothing(lab: Lab) -> None:
    """The source key gives the row that was there, with the time that it had."""
    store = await lab.store()
    first = await store.enqueue_pending_turn_input(later(said("a", key="k"), lab.now_ms + 5_000))
    async with lab.unchanged():
        for at_ms in (0, lab.now_ms + 9_000):
            assert await store.enqueue_pending_turn_input(later(said("a", key="k"), at_ms)) == first
    assert await next_ready(lab) == 5_000


async def test_t2_any_time_may_be_named(lab: Lab) -> None:
    """The last moment of 63 bits is a time like others, also where a failed turn is to wait that long."""
    store = await lab.store()
    await store.enqueue_pending_turn_input(later(said("never"), 2**63 - 1))
    assert await next_ready(lab) == 2**63 - 1 - lab.now_ms
    await store.enqueue_pending_turn_input(said("now"))
    begun = await begin(lab.dispatch())
    await lab.dispatch().fail_turn(
        begun.lease.completion(), input_claims=[some(begun.input_claim)], error="no", delay_ms=2**63 - 1
    )
    assert await lab.dispatch().read_agenda() == Agenda((), 2**63 - 1 - lab.now_ms)


async def test_t3_priority_goes_first_and_then_who_waits_longest(lab: Lab) -> None:
    """What a session was described with counts at once; a page of the agenda is the beginning of it."""
    for session_id, priority in (("low", 0), ("mid", 4), ("top", 9), ("late", 4)):
        await described(lab, session_id, priority=priority)
        lab.clock.advance(1)
    store = await lab.store("low")
    for session_id in ("low", "mid", "top", "late"):
        await store.enqueue_pending_turn_input(said("hello", session_id=session_id))
        lab.clock.advance(1)
    assert await ready(lab) == ["top", "mid", "late", "low"]
    assert await ready(lab, limit=2) == ["top", "mid"]
    await described(lab, "low", priority=9)
    assert await ready(lab) == ["low", "top", "mid", "late"]
    assert [each.priority for each in (await lab.dispatch().read_agenda()).sessions] == [9, 9, 4, 4]


async def test_t3_who_had_a_turn_stands_behind_who_had_none(lab: Lab) -> None:
    """A session with a lot to do does not keep the others waiting."""
    store = await lab.store()
    for session_id in ("busy", "busy", "other"):
        await store.enqueue_pending_turn_input(said("hello", session_id=session_id))
        lab.clock.advance(1)
    assert await ready(lab) == ["busy", "other"]
    begun = await begin(lab.dispatch(), "busy", max_inputs=1)
    lab.clock.advance(1)
    busy = await lab.store("busy")
    done = commit(begun.lease, None, *chain("a")).completing_turn_input_claim(some(begun.input_claim))
    await busy.commit_runtime_state(done.releasing_session_execution_lease(begun.lease.completion()))
    assert await ready(lab) == ["other", "busy"]


async def test_t3_sessions_of_a_saturated_label_are_passed_over(lab: Lab) -> None:
    """However many there are, those behind them are found within the limit."""
    store = await lab.store()
    for at in range(5):
        await described(lab, f"red{at}", "red", "round")
        await store.enqueue_pending_turn_input(said("hello", session_id=f"red{at}"))
    await described(lab, "blue", "blue", "round")
    await store.enqueue_pending_turn_input(said("hello", session_id="blue"))
    await store.enqueue_pending_turn_input(said("hello"))
    assert sorted(await ready(lab, limit=2, saturated_labels=["red", "green"])) == ["blue", "s"]
    assert await ready(lab, limit=2, saturated_labels=["blue", "red"]) == ["s"]
    assert len(await ready(lab)) == 7


async def test_t8_no_more_turns_of_a_label_run_than_its_limit_allows(lab: Lab) -> None:
    """The lane of one too many is left alone, until a turn ends, by its release or with its lease."""
    limits = {"red": 2, "blue": 1}
    for name in "abc":
        await described(lab, name, "red", "round")
        await (await lab.store(name)).enqueue_pending_turn_input(said("hello", session_id=name))
    dispatch = lab.dispatch()
    first = await begin(dispatch, "a", label_limits=limits)
    await begin(dispatch, "b", who=BOB, label_limits=limits)
    async with lab.unchanged():
        assert await dispatch.begin_turn("c", owner("carol"), TTL_MS, label_limits=limits) == LabelLimited("red")
    # Whoever holds one of the turns may come back for it.
    again = await begin(dispatch, "b", who=BOB, label_limits=limits)
    assert again.lease.fencing_token == 1
    await release(await lab.store("a"), first.lease)
    await begin(dispatch, "c", who=owner("carol"), label_limits=limits)
    assert await dispatch.begin_turn("a", owner("dave"), TTL_MS, label_limits=limits) == LabelLimited("red")
    lab.clock.advance(30_000)
    assert isinstance(await dispatch.begin_turn("a", owner("dave"), TTL_MS, label_limits=limits), TurnBegun)


async def test_t8_of_many_that_begin_at_once_as_many_as_allowed_do(lab: Lab) -> None:
    """Sessions of one label, two factories, and a limit of three."""
    dispatches = (lab.dispatch(), lab.dispatch(await lab.second()))
    for at in range(12):
        await described(lab, f"s{at}", "red")
        await (await lab.store(f"s{at}")).enqueue_pending_turn_input(said("hello", session_id=f"s{at}"))
    got = await asyncio.gather(
        *(dispatches[at % 2].begin_turn(f"s{at}", owner(f"o{at}"), TTL_MS, label_limits={"red": 3}) for at in range(12))
    )
    assert sum(isinstance(each, TurnBegun) for each in got) == 3
    assert [each for each in got if not isinstance(each, TurnBegun)] == [LabelLimited("red")] * 9


async def test_t8_taking_over_from_the_dead_needs_no_place_of_its_own(lab: Lab) -> None:
    """The turn of the dead holder is not counted beside the one that takes its place."""
    await described(lab, "s", "red")
    store = await lab.store()
    await store.enqueue_pending_turn_input(said("hello"))
    dispatch = lab.dispatch()
    dead = await begin(dispatch, who=owner("dead", "1", HERE), label_limits={"red": 1})
    lab.bury(HERE)
    got = await dispatch.begin_turn("s", BOB, TTL_MS, label_limits={"red": 1}, observed_holder=dead.lease.fence())
    assert isinstance(got, TurnBegun)
    assert (got.lease.fencing_token, texts(some(got.input_claim).inputs)) == (2, ["hello"])
    assert isinstance(await store.try_claim_session_execution_lease("s", BOB, TTL_MS), Acquired)
