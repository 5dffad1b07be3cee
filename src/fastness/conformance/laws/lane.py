"""The laws of the lane (L1 to L6)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from fastness.conformance.builders import (
    ALICE,
    BOB,
    TTL_MS,
    chain,
    claim_inputs,
    claim_work,
    commit,
    lane,
    other_token,
    owner,
    release,
    said,
    texts,
    work,
)
from fastness.conformance.lab import Lab, refused
from fastness.errors import LeaseExpiredError
from fastness.model import (
    Acquired,
    Busy,
    LeaseOwnerIdentity,
    LocalProcess,
    RuntimePersistence,
    SessionExecutionLease,
    SessionExecutionLeaseFence,
)

HERE = LocalProcess("host", "boot", 4242, "1000")


async def claim(store: RuntimePersistence, who: LeaseOwnerIdentity, ttl_ms: int = TTL_MS) -> object:
    """What a claim of the lane answers."""
    return await store.try_claim_session_execution_lease("s", who, ttl_ms)


async def test_l1_a_free_lane_is_acquired(lab: Lab) -> None:
    """The first lease of a session has fencing token 1 and lives as long as was asked."""
    store = await lab.store()
    lease = await lane(store)
    assert lease == SessionExecutionLease("s", ALICE, lease.lease_token, 1, lab.start_ms, lab.start_ms + 30_000)


async def test_l1_a_held_lane_is_busy_for_every_other_incarnation(lab: Lab) -> None:
    """Another owner, and the same owner in another incarnation, learn who holds the lane, and change nothing."""
    store = await lab.store()
    lease = await lane(store)
    async with lab.unchanged():
        async for handle in lab.handles(store):
            assert await claim(handle, BOB) == Busy(lease)
            assert await claim(handle, owner("alice", "alice-2")) == Busy(lease)


async def test_l1_of_several_who_race_one_wins(lab: Lab) -> None:
    """Of twenty claims at once exactly one is granted, and all others are shown the winner."""
    store = await lab.store()
    outcomes = await asyncio.gather(*(claim(store, owner(f"o{at}")) for at in range(20)))
    won = [outcome.lease for outcome in outcomes if isinstance(outcome, Acquired)]
    lost = [outcome.holder for outcome in outcomes if isinstance(outcome, Busy)]
    assert len(won) == 1
    assert lost == won * 19


async def test_l1_lanes_of_different_sessions_are_independent(lab: Lab) -> None:
    """Holding one session's lane says nothing about another's, also through one handle."""
    store = await lab.store()
    await lane(store)
    other = await lane(store, BOB, session_id="other")
    assert (other.session_id, other.fencing_token) == ("other", 1)


async def test_l2_the_same_incarnation_reenters_with_its_fencing_token(lab: Lab) -> None:
    """Re-entry keeps the fencing token, extends the expiry and gives a fresh lease token."""
    store = await lab.store()
    lease = await lane(store)
    lab.clock.advance(20_000)
    entry = await lane(store)
    assert (entry.fencing_token, entry.expires_at_epoch_ms) == (1, lab.start_ms + 50_000)
    assert entry.lease_token != lease.lease_token
    # What process an incarnation lives in is not what makes it the same.
    assert (await lane(store, owner("alice", "alice-1", HERE))).fencing_token == 1


async def test_l2_reentry_never_shortens_the_lease(lab: Lab) -> None:
    """Who comes back and asks for less keeps what it had."""
    store = await lab.store()
    await lane(store)
    assert (await lane(store, ttl_ms=1)).expires_at_epoch_ms == lab.start_ms + 30_000


async def test_l2_reentry_supersedes_fence_and_completion_of_the_entry_before(lab: Lab) -> None:
    """The old fence renews and commits nothing, the old completion releases nothing."""
    store = await lab.store()
    lease = await lane(store)
    entry = await lane(store)
    await refused(lab, LeaseExpiredError, store.renew_session_execution_lease(lease.fence(), TTL_MS))
    await refused(lab, LeaseExpiredError, store.commit_runtime_state(commit(lease, None, *chain("a"))))
    await release(store, lease)
    assert await claim(store, BOB) == Busy(entry)


async def test_l2_reentry_grants_the_rows_of_the_earlier_entry_again(lab: Lab) -> None:
    """After re-entry a claim call gives what the earlier entry held, under a new claim id; the old claim is gone."""
    store = await lab.store()
    await store.enqueue_pending_turn_input(said("one"))
    await store.enqueue_queued_work(work())
    lease = await lane(store)
    inputs = await claim_inputs(store, lease)
    batches = await claim_work(store, lease)
    await store.enqueue_pending_turn_input(said("two"))
    again = await lab.reopen()
    entry = await lane(again)
    inputs_2 = await claim_inputs(again, entry)
    batches_2 = await claim_work(again, entry)
    assert texts(inputs_2.inputs) == ["one"]
    assert inputs_2.claim_id != inputs.claim_id
    assert (inputs.fencing_token, inputs_2.fencing_token) == (1, 2)
    assert batches_2.claim_id != batches.claim_id
    assert [batch.batch_id for batch in batches_2.batches] == [batch.batch_id for batch in batches.batches]
    stale = commit(entry, None, *chain("a")).completing_turn_input_claim(inputs)
    with pytest.raises(Exception, match="turn-input claim"):
        await again.commit_runtime_state(stale)
    fresh = commit(entry, None, *chain("a")).completing_turn_input_claim(inputs_2).completing_queue_claim(batches_2)
    assert (await again.commit_runtime_state(fresh)).head_revision == 1


async def test_l3_every_new_grant_has_a_greater_fencing_token(lab: Lab) -> None:
    """After a release, an expiry, a reclaim and a reopening the token goes up, and never back."""
    store = await lab.store()
    tokens = []
    first = await lane(store)
    tokens.append(first.fencing_token)
    await release(store, first)
    tokens.append((await lane(store)).fencing_token)
    lab.clock.advance(30_000)
    third = await lane(store, owner("carol", "1", HERE))
    tokens.append(third.fencing_token)
    lab.bury(HERE)
    reclaimed = await store.reclaim_session_execution_lease("s", BOB, third.fence(), TTL_MS)
    assert isinstance(reclaimed, Acquired)
    tokens.append(reclaimed.lease.fencing_token)
    lab.clock.advance(30_000)
    tokens.append((await lane(await lab.reopen(), BOB)).fencing_token)
    assert tokens == [1, 2, 3, 4, 5]


async def test_l3_an_expired_incarnation_does_not_reenter(lab: Lab) -> None:
    """Who comes back after the expiry gets a new grant, even if nobody was there in between."""
    store = await lab.store()
    await lane(store)
    lab.clock.advance(30_000)
    assert (await lane(store)).fencing_token == 2


FENCED: dict[str, Callable[[RuntimePersistence, SessionExecutionLeaseFence], Awaitable[object]]] = {
    "renew": lambda store, fence: store.renew_session_execution_lease(fence, TTL_MS),
    "claim next": lambda store, fence: store.claim_next_turn_inputs("s", fence, max_inputs=1),
    "claim active": lambda store, fence: store.claim_active_turn_inputs(
        "s", fence, turn_id="t1", checkpoint="after_work", max_inputs=1
    ),
    "claim command": lambda store, fence: store.claim_leading_ready_session_command("s", fence),
    "claim work": lambda store, fence: store.claim_ready_queued_work("s", fence, boundary="idle", max_batches=1),
    "claim exactly": lambda store, fence: store.claim_ready_queued_work_by_batch_ids(
        "s", fence, boundary="idle", batch_ids=["b"]
    ),
}
"""Every operation that takes a fence; the commit has its own law (C4)."""


@pytest.mark.parametrize("operation", FENCED)
@pytest.mark.parametrize("fault", ["stale", "superseded", "released", "expired", "forged", "foreign", "unborn"])
async def test_l4_whatever_takes_a_fence_refuses_one_that_is_not_live(lab: Lab, operation: str, fault: str) -> None:
    """A fence that is stale, superseded, released, expired, forged or another session's is refused, without a trace."""
    store = await lab.store()
    lease = await lane(store)
    fence = lease.fence()
    if fault == "stale":
        lab.clock.advance(30_000)
        await lane(store, BOB)
    elif fault == "superseded":
        await lane(store)
    elif fault == "released":
        await release(store, lease)
    elif fault == "expired":
        lab.clock.advance(30_000)
    elif fault == "forged":
        fence = other_token(fence)
    elif fault == "foreign":
        await lane(store, session_id="other")
        fence = msgspec.structs.replace(fence, session_id="other")
    else:
        fence = msgspec.structs.replace(fence, fencing_token=2)
    error = await refused(lab, LeaseExpiredError, FENCED[operation](store, fence))
    assert error.reason


async def test_l4_renewal_extends_and_keeps_the_tokens(lab: Lab) -> None:
    """A renewed lease has the same tokens, runs from now, and is never shortened."""
    store = await lab.store()
    lease = await lane(store)
    lab.clock.advance(29_999)
    renewed = await store.renew_session_execution_lease(lease.fence(), TTL_MS)
    assert renewed == msgspec.structs.replace(lease, expires_at_epoch_ms=lab.start_ms + 59_999)
    shorter = await store.renew_session_execution_lease(lease.fence(), 1)
    assert shorter.expires_at_epoch_ms == lab.start_ms + 59_999
    lab.clock.advance(29_999)
    assert await claim(await lab.reopen(), BOB) == Busy(shorter)


async def test_l5_release_is_idempotent_and_frees_the_lane(lab: Lab) -> None:
    """A lane that was given back is free at once; giving it back again does nothing."""
    store = await lab.store()
    lease = await lane(store)
    await release(store, lease)
    async with lab.unchanged():
        await release(store, lease)
    assert (await lane(await lab.reopen(), BOB)).fencing_token == 2


async def test_l5_release_clears_only_the_lease_that_it_names(lab: Lab) -> None:
    """A completion of an earlier grant, of another owner or of no session leaves the lane as it is."""
    store = await lab.store()
    old = await lane(store)
    lab.clock.advance(30_000)
    lease = await lane(store, BOB)
    async with lab.unchanged():
        done = lease.completion()
        for wrong in (
            old.completion(),
            msgspec.structs.replace(done, owner=ALICE),
            msgspec.structs.replace(done, fencing_token=1),
            msgspec.structs.replace(done, session_id="no such session"),
        ):
            await store.release_session_execution_lease(wrong)


async def test_l6_a_dead_holder_on_this_host_is_replaced_early(lab: Lab) -> None:
    """An unexpired lease of a process that is proven dead goes to the claimant, with the next fencing token."""
    store = await lab.store()
    lease = await lane(store, owner("carol", "1", HERE))
    lab.bury(HERE)
    outcome = await (await lab.reopen()).reclaim_session_execution_lease("s", BOB, lease.fence(), TTL_MS)
    assert isinstance(outcome, Acquired)
    assert (outcome.lease.owner, outcome.lease.fencing_token) == (BOB, 2)
    store = await lab.reopen()
    await refused(lab, LeaseExpiredError, store.renew_session_execution_lease(lease.fence(), TTL_MS))


@pytest.mark.parametrize("why", ["alive", "opaque", "another holder", "restarted entry", "moved process"])
async def test_l6_where_death_is_not_proven_the_lane_is_busy(lab: Lab, why: str) -> None:
    """A live or opaque holder, and one that is not the observed one, keeps its lease."""
    store = await lab.store()
    dead = owner("carol", "1", HERE)
    if why == "opaque":
        lease = await lane(store, owner("carol"))
        observed = lease.fence()
    else:
        lease = await lane(store, dead)
        observed = lease.fence()
    if why != "alive":
        lab.bury(HERE)
    if why == "another holder":
        await release(store, lease)
        lease = await lane(store, owner("dave"))
    if why == "restarted entry":
        lease = await lane(store, dead)
    if why == "moved process":
        # The same incarnation came back from another process, and the observer does not know.
        lease = await lane(store, owner("carol", "1", LocalProcess("host", "boot", 4243, "2000")))
    async with lab.unchanged():
        assert await store.reclaim_session_execution_lease("s", BOB, observed, TTL_MS) == Busy(lease)


async def test_l6_a_forged_liveness_does_not_prove_anything(lab: Lab) -> None:
    """What counts is the process in the lease's row, not the one that the claimant's fence claims."""
    store = await lab.store()
    lease = await lane(store, owner("carol"))
    lab.bury(HERE)
    forged = msgspec.structs.replace(lease.fence(), owner=owner("carol", "1", HERE))
    assert await store.reclaim_session_execution_lease("s", BOB, forged, TTL_MS) == Busy(lease)


@pytest.mark.parametrize("state", ["free", "expired", "unknown session"])
async def test_l6_a_lane_that_nobody_holds_is_simply_acquired(lab: Lab, state: str) -> None:
    """A reclaim of a free or expired lane is a claim, dead or not."""
    store = await lab.store()
    lease = await lane(store, owner("carol"))
    if state == "free":
        await release(store, lease)
    else:
        lab.clock.advance(30_000)
    session_id = "new" if state == "unknown session" else "s"
    observed = msgspec.structs.replace(lease.fence(), session_id=session_id)
    outcome = await store.reclaim_session_execution_lease(session_id, BOB, observed, TTL_MS)
    assert isinstance(outcome, Acquired)
    assert outcome.lease.fencing_token == (1 if session_id == "new" else 2)
