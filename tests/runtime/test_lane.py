"""Laws of the lane keeper: it holds while it can, lets go when it should, and stops its block when it has lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from fastness.conformance.lab import Clock
from fastness.errors import (
    BackendError,
    ContendedError,
    LeaseExpiredError,
    SessionDeletedError,
    TurnInterruptedError,
)
from fastness.liveness import mint_owner
from fastness.model import Acquired, Busy, InterruptRequest, LeaseTimings, LocalProcess, SessionStoreCreateRequest
from fastness.persistence import InMemorySessionStoreFactory, SessionStore
from fastness.runtime.waiting import hold_lane

QUICK = LeaseTimings(timedelta(milliseconds=300), timedelta(milliseconds=50))
"""A lease that ends soon, by the clock of the event loop: for laws of its end alone."""
OFTEN = LeaseTimings(timedelta(seconds=30), timedelta(milliseconds=50))
OFTEN_MS = 30_000
"""A lease that is renewed soon and lives long: what ends it is the clock that is moved, and no slow machine."""
HOUR = LeaseTimings(timedelta(hours=1), timedelta(minutes=10))
HOUR_MS = 3_600_000


@pytest.fixture
async def factory() -> AsyncIterator[InMemorySessionStoreFactory]:
    """A database whose clock is moved by hand, in which every process but this one is dead."""
    clock = Clock()
    async with InMemorySessionStoreFactory(clock=clock, is_dead=lambda process: process.pid == 1) as made:
        made.clock = clock  # type: ignore[attr-defined]
        yield made


@pytest.fixture
async def store(factory: InMemorySessionStoreFactory) -> SessionStore:
    """One session."""
    return await factory.create_store(SessionStoreCreateRequest("s"))


async def holder(store: SessionStore) -> str | None:
    """Who holds the lane now."""
    lease = await store.observe_session_execution_lease("s")
    return None if lease is None else lease.owner.owner_id


class Asked:
    """A store that counts how often somebody has asked for its lane and had an answer."""

    def __init__(self, store: SessionStore) -> None:
        self._store = store
        self.count = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def try_claim_session_execution_lease(self, *given: Any) -> Any:
        """Pass it on, and count it."""
        outcome = await self._store.try_claim_session_execution_lease(*given)
        self.count += 1
        return outcome


async def test_the_lane_is_held_inside_the_block_and_free_behind_it(store: SessionStore) -> None:
    """Also where the block fails, whose own error comes through; each grant has a greater token."""
    tokens = []
    for error in (None, KeyError("the turn's own")):
        with pytest.raises(KeyError) if error else pytest.MonkeyPatch.context():
            async with hold_lane(store, "s", owner_id="alice") as lane:
                assert await holder(store) == "alice"
                tokens.append(lane.fencing_token)
                if error:
                    raise error
        assert await holder(store) is None
    assert tokens == [1, 2]


async def test_two_blocks_of_one_process_exclude_each_other(store: SessionStore) -> None:
    """The second waits until the first has ended, and runs under a greater token."""
    order: list[tuple[str, int]] = []

    asked = Asked(store)

    async def block(name: str, entered: asyncio.Event, leave: asyncio.Event) -> None:
        async with hold_lane(asked, "s", owner_id="alice") as lane:
            order.append((name, lane.fencing_token))
            entered.set()
            await leave.wait()
            order.append((name, lane.fencing_token))

    first_in, first_out, second_in, second_out = (asyncio.Event() for _ in range(4))
    first = asyncio.create_task(block("first", first_in, first_out))
    await first_in.wait()
    second = asyncio.create_task(block("second", second_in, second_out))
    while asked.count < 2:
        await asyncio.sleep(0.001)
    assert not second_in.is_set()
    first_out.set()
    second_out.set()
    await asyncio.gather(first, second)
    assert order == [("first", 1), ("first", 1), ("second", 2), ("second", 2)]


async def test_a_wait_in_vain_says_who_holds_the_lane(store: SessionStore) -> None:
    """Where the wait is bounded, and the holder alive."""
    async with hold_lane(store, "s", owner_id="alice"):
        with pytest.raises(ContendedError, match="held by 'alice'"):
            async with hold_lane(store, "s", owner_id="bob", wait_s=0.1):
                raise AssertionError
        assert await holder(store) == "alice"


async def test_a_lane_of_a_dead_process_is_taken_over_at_once(store: SessionStore) -> None:
    """Long before the lease expires, by whoever can prove the death."""
    owner = mint_owner("crashed")
    assert isinstance(owner.liveness, LocalProcess)
    dead = LocalProcess(owner.liveness.host_id, owner.liveness.boot_id, 1, "0")
    gone = type(owner)("crashed", "x", dead)
    assert isinstance(await store.try_claim_session_execution_lease("s", gone, HOUR_MS), Acquired)
    async with hold_lane(store, "s", owner_id="bob", wait_s=0) as lane:
        assert lane.fencing_token == 2
        assert await holder(store) == "bob"


async def test_the_lease_is_renewed_while_the_block_runs(factory: Any, store: SessionStore) -> None:
    """The database's clock goes on by more than the lease would have lived, in steps that a renewal covers."""
    async with hold_lane(store, "s", owner_id="alice", timings=OFTEN) as lane:
        for _ in range(5):
            before = lane.lease.expires_at_epoch_ms
            factory.clock.advance(OFTEN_MS // 3)
            while lane.lease.expires_at_epoch_ms == before:
                await asyncio.sleep(0.01)
        outcome = await store.try_claim_session_execution_lease("s", mint_owner("bob"), HOUR_MS)
        assert isinstance(outcome, Busy)
        assert lane.fencing_token == 1


async def test_a_block_that_lost_its_lane_is_cancelled_and_told_by_whom(factory: Any, store: SessionStore) -> None:
    """Its clean-up runs; what it raises in the end names the successor, and the task itself goes on."""
    cleaned = asyncio.Event()

    async def block() -> None:
        async with hold_lane(store, "s", owner_id="alice", timings=OFTEN):
            factory.clock.advance(OFTEN_MS)
            await store.try_claim_session_execution_lease("s", mint_owner("bob"), HOUR_MS)
            try:
                await asyncio.Event().wait()
            finally:
                cleaned.set()

    with pytest.raises(LeaseExpiredError) as caught:
        await block()
    assert cleaned.is_set()
    assert caught.value.successor_owner_id == "bob"
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]
    assert await holder(store) == "bob"


async def test_a_deleted_session_ends_its_block(factory: Any, store: SessionStore) -> None:
    """What is raised says so."""

    async def block() -> None:
        async with hold_lane(store, "s", timings=OFTEN):
            await factory.delete_session("s")
            await asyncio.Event().wait()

    with pytest.raises(SessionDeletedError):
        await block()


async def test_a_cancellation_from_outside_stays_one(store: SessionStore) -> None:
    """The lane is given back, and nobody takes it for a loss."""
    entered = asyncio.Event()

    async def block() -> None:
        async with hold_lane(store, "s", timings=HOUR):
            entered.set()
            await asyncio.Event().wait()

    running = asyncio.create_task(block())
    await entered.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await holder(store) is None


class Away:
    """A store whose renewals fail or hang, as where its database is away."""

    def __init__(self, store: SessionStore, *, hangs: bool, for_calls: int = 10**9) -> None:
        self._store = store
        self._hangs = hangs
        self.left = for_calls

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def renew_session_execution_lease(self, *given: Any) -> Any:
        """Fail, or give no answer."""
        self.left -= 1
        if self.left < 0:
            return await self._store.renew_session_execution_lease(*given)
        if self._hangs:
            await asyncio.Event().wait()
        raise BackendError("the database is away")


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_block_ends_when_nobody_can_know_that_it_still_holds_its_lane(store: SessionStore, hangs: bool) -> None:
    """A database that is away for as long as a lease lives ends the block, though nobody else may have the lane."""
    with pytest.raises(LeaseExpiredError, match="could not be renewed in time"):
        async with hold_lane(Away(store, hangs=hangs), "s", timings=QUICK):
            await asyncio.Event().wait()


async def test_a_database_that_comes_back_in_time_ends_nothing(store: SessionStore) -> None:
    """A renewal that failed is tried again."""
    away = Away(store, hangs=False, for_calls=1)
    async with hold_lane(away, "s", timings=OFTEN) as lane:
        while away.left > -1:
            await asyncio.sleep(0.01)
        lane.require()
        assert lane.lost is None


async def test_a_blocked_event_loop_is_noticed_and_said(store: SessionStore, caplog: pytest.LogCaptureFixture) -> None:
    """Each renewal that came late because nothing else could run is a warning with the session and the token."""
    async with hold_lane(store, "s", timings=OFTEN) as lane:
        await asyncio.sleep(0.01)
        time.sleep(0.2)
        while not lane.stall_count:
            await asyncio.sleep(0.01)
    told = [record.__dict__ for record in caplog.records if "the event loop was blocked" in record.message]
    assert [(each["session_id"], each["fencing_token"]) for each in told] == [("s", 1)] * lane.stall_count


async def test_a_commit_that_gave_the_lane_back_is_believed(store: SessionStore) -> None:
    """The keeper then releases nothing: another holder may be there by now."""
    async with hold_lane(store, "s", owner_id="alice", timings=HOUR) as lane:
        await store.release_session_execution_lease(lane.lease.completion())
        lane.settled()
        await store.try_claim_session_execution_lease("s", mint_owner("bob"), HOUR_MS)
    assert await holder(store) == "bob"


async def test_the_same_holder_may_enter_again(store: SessionStore) -> None:
    """After a lost answer: the token of the grant stays, the proof is a new one, and the old proof is void."""
    async with hold_lane(store, "s", owner_id="alice", timings=HOUR) as lane:
        before = lane.lease
        after = await lane.reenter()
        assert (after.fencing_token, after.lease_token != before.lease_token) == (1, True)
        with pytest.raises(LeaseExpiredError):
            await store.renew_session_execution_lease(before.fence(), HOUR_MS)
        await store.renew_session_execution_lease(lane.lease.fence(), HOUR_MS)


async def test_a_block_that_is_asked_to_end_is_cancelled_and_told_why(factory: Any, store: SessionStore) -> None:
    """The renewal brings the request; what the block raises in the end is its reason, and the lane is free."""

    async def block() -> None:
        async with hold_lane(store, "s", timings=LeaseTimings(timedelta(hours=1), timedelta(milliseconds=50))):
            await factory.dispatch.request_interrupt("s", reason="a better question")
            await asyncio.Event().wait()

    with pytest.raises(TurnInterruptedError) as caught:
        await block()
    assert (caught.value.fencing_token, caught.value.reason) == (1, "a better question")
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]
    assert await holder(store) is None


async def test_a_block_that_was_asked_to_end_may_end_by_itself(store: SessionStore) -> None:
    """One that takes the cancellation for what it is and returns raises nothing; asked, the keeper still says so."""
    async with hold_lane(store, "s", timings=HOUR) as lane:
        lane.request_interrupt(InterruptRequest("first"))
        lane.request_interrupt(InterruptRequest("second"))
        with pytest.raises(asyncio.CancelledError):
            await asyncio.Event().wait()
        with pytest.raises(TurnInterruptedError, match="first"):
            lane.require()
        await asyncio.sleep(0)
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


async def test_a_block_that_settles_is_not_cancelled_any_more(store: SessionStore) -> None:
    """Whatever it is asked for then comes too late."""
    async with hold_lane(store, "s", timings=HOUR) as lane:
        lane.settle()
        lane.request_interrupt(InterruptRequest("too late"))
        await asyncio.sleep(0)
    assert lane.interrupt == InterruptRequest("too late")


async def test_a_block_that_ignores_the_loss_of_its_lane_ends_with_it(factory: Any, store: SessionStore) -> None:
    """It cannot pass for one that still held the lane at its end."""

    async def block() -> None:
        async with hold_lane(store, "s", owner_id="alice", timings=OFTEN):
            factory.clock.advance(OFTEN_MS)
            await store.try_claim_session_execution_lease("s", mint_owner("bob"), HOUR_MS)
            with pytest.raises(asyncio.CancelledError):
                await asyncio.Event().wait()

    with pytest.raises(LeaseExpiredError, match="now held by 'bob'"):
        await block()


async def test_a_cancellation_from_outside_counts_beside_that_of_a_loss(factory: Any, store: SessionStore) -> None:
    """Both at once are a cancellation: whoever asked for it must not be left waiting."""
    entered, lost = asyncio.Event(), asyncio.Event()

    async def block() -> None:
        async with hold_lane(store, "s", owner_id="alice", timings=OFTEN):
            entered.set()
            try:
                await asyncio.Event().wait()
            finally:
                lost.set()
                with pytest.raises(asyncio.CancelledError):
                    await asyncio.Event().wait()

    running = asyncio.create_task(block())
    await entered.wait()
    factory.clock.advance(OFTEN_MS)
    await store.try_claim_session_execution_lease("s", mint_owner("bob"), HOUR_MS)
    await lost.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


@pytest.mark.parametrize("first", ["the answer", "the refusal"])
async def test_a_renewal_that_comes_behind_the_commit_is_no_loss(store: SessionStore, first: str) -> None:
    """The commit gave the lane back; whichever of the two hears from the database first, the block ends well."""
    asked, refused, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

    class Late:
        """A store whose renewal reaches the database when it is told to."""

        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

        async def renew_session_execution_lease(self, *given: Any) -> Any:
            """Wait for that, and say that it was refused."""
            asked.set()
            await go_on.wait()
            try:
                return await store.renew_session_execution_lease(*given)
            finally:
                refused.set()

    timings = LeaseTimings(timedelta(hours=1), timedelta(milliseconds=20))
    async with hold_lane(Late(), "s", timings=timings) as lane:
        await asked.wait()
        lane.settle()
        await store.release_session_execution_lease(lane.lease.completion())
        if first == "the answer":
            lane.settled()
        go_on.set()
        await refused.wait()
        await asyncio.sleep(0)
        lane.settled()
        lane.require()
    assert lane.lost is None
