"""The laws of claims, for input and work alike (K1 to K4), and of their completion by a commit (C6)."""

from __future__ import annotations

import msgspec
import pytest

from fastness.conformance.builders import BOB, TTL_MS, chain, commit, lane, owner, release, some
from fastness.conformance.lab import Lab, refused
from fastness.conformance.rows import ROWS, Rows, held
from fastness.errors import LeaseExpiredError

of_both_kinds = pytest.mark.parametrize("rows", ROWS, ids=lambda rows: rows.table)


@of_both_kinds
async def test_k1_a_claim_is_granted_to_the_owner_of_the_fence(lab: Lab, rows: Rows) -> None:
    """A claim names the lane's holder, its tokens and its expiry, and has the rows in order."""
    store = await lab.store()
    lease = await lane(store)
    claim = (await held(store, lease, rows, "abc", 2)).claim
    assert rows.names(claim) == ["a", "b"]
    assert (claim.session_id, claim.owner) == ("s", lease.owner)
    assert (claim.fencing_token, claim.lane_fencing_token, claim.expires_at_epoch_ms) == (1, 1, lab.start_ms + 30_000)
    assert await rows.waiting(await lab.reopen()) == ["c"]


@of_both_kinds
async def test_k1_a_claim_lives_as_long_as_the_lease_and_no_longer(lab: Lab, rows: Rows) -> None:
    """It has no lifetime of its own: as long as the lease is renewed it is live, and with the lease it ends."""
    store = await lab.store()
    lease = await lane(store)
    claim = (await held(store, lease, rows, "ab", 1)).claim
    for _ in range(5):
        lab.clock.advance(29_999)
        await store.renew_session_execution_lease(lease.fence(), TTL_MS)
    assert (await rows.renew(store, claim)).expires_at_epoch_ms == lab.start_ms + 5 * 29_999 + 30_000
    assert await rows.waiting(store) == ["b"]
    lab.clock.advance(30_000)
    assert await rows.waiting(await lab.reopen()) == ["a", "b"]


@of_both_kinds
async def test_k1_renewing_a_claim_changes_nothing_but_the_expiry_it_shows(lab: Lab, rows: Rows) -> None:
    """A renewed claim is the claim with the lease's expiry of now."""
    store = await lab.store()
    lease = await lane(store)
    claim = (await held(store, lease, rows, "ab", 1)).claim
    lab.clock.advance(1_000)
    await store.renew_session_execution_lease(lease.fence(), TTL_MS)
    async with lab.unchanged():
        renewed = await rows.renew(store, claim)
        assert renewed == msgspec.structs.replace(claim, expires_at_epoch_ms=lab.start_ms + 31_000)


@of_both_kinds
@pytest.mark.parametrize("end", ["abandoned", "completed", "released", "expired", "granted again", "forged"])
async def test_k1_a_claim_that_ended_is_not_renewed(lab: Lab, rows: Rows, end: str) -> None:
    """A claim that was abandoned, completed or granted again, or whose lease is gone, is refused."""
    store = await lab.store()
    lease = await lane(store)
    claim = (await held(store, lease, rows, "ab", 1)).claim
    if end == "abandoned":
        await rows.abandon(store, claim)
    elif end == "completed":
        await store.commit_runtime_state(rows.settle(commit(lease, None, *chain("a")), claim))
    elif end == "released":
        await release(store, lease)
    elif end == "expired":
        lab.clock.advance(30_000)
    elif end == "granted again":
        await rows.abandon(store, claim)
        assert await rows.claim(store, lease, 1) is not None
    else:
        claim = msgspec.structs.replace(claim, fencing_token=claim.fencing_token + 1)
    await refused(lab, rows.error, rows.renew(store, claim))


@of_both_kinds
@pytest.mark.parametrize("end", ["release", "expiry", "takeover", "abandon"])
async def test_k2_rows_of_a_dead_claim_are_visible_claimable_and_cancellable(lab: Lab, rows: Rows, end: str) -> None:
    """Whatever ended the claim, its rows are listed, can be claimed in order, and can be cancelled."""
    store = await lab.store()
    lease = await lane(store)
    claim = (await held(store, lease, rows, "abc", 2)).claim
    if end == "release":
        await release(store, lease)
    elif end == "abandon":
        await rows.abandon(store, claim)
    else:
        lab.clock.advance(30_000)
    holder = await lane(store) if end == "abandon" else await lane(store, BOB)
    store = await lab.reopen()
    assert await rows.waiting(store) == ["a", "b", "c"]
    assert await rows.cancel(store, "b") is True
    again = some(await rows.claim(store, holder))
    assert rows.names(again) == ["a", "c"]
    assert again.claim_id != claim.claim_id
    await store.commit_runtime_state(rows.settle(commit(holder, None, *chain("n")), again))
    assert await rows.waiting(store) == []
    await lab.assert_sound()


@of_both_kinds
async def test_k2_each_grant_of_a_row_has_a_greater_token(lab: Lab, rows: Rows) -> None:
    """The claim's token is one more than the greatest that any of its rows was granted under."""
    store = await lab.store()
    lease = await lane(store)
    await rows.add(store, "a")
    await rows.add(store, "b")
    tokens = []
    for limit in (1, 1, 2, 1):
        claim = some(await rows.claim(store, lease, limit))
        tokens.append(claim.fencing_token)
        await rows.abandon(store, claim)
    lab.clock.advance(30_000)
    store = await lab.reopen()
    claim = some(await rows.claim(store, await lane(store, BOB)))
    assert [*tokens, claim.fencing_token] == [1, 2, 3, 4, 5]


@of_both_kinds
async def test_k3_abandon_is_idempotent(lab: Lab, rows: Rows) -> None:
    """Giving a claim back twice is giving it back once; afterwards it completes nothing."""
    store = await lab.store()
    lease = await lane(store)
    claim = (await held(store, lease, rows, "ab", 2)).claim
    await rows.abandon(store, claim)
    async with lab.unchanged():
        await rows.abandon(store, claim)
    assert await rows.waiting(await lab.reopen()) == ["a", "b"]


@of_both_kinds
async def test_k3_abandon_frees_only_rows_that_the_claim_still_owns(lab: Lab, rows: Rows) -> None:
    """A claim that came too late does not free what another one holds now."""
    store = await lab.store()
    lease = await lane(store)
    old = (await held(store, lease, rows, "ab", 2)).claim
    lab.clock.advance(30_000)
    bob = await lane(store, BOB)
    new = some(await rows.claim(store, bob))
    async with lab.unchanged():
        await rows.abandon(store, old)
    assert await rows.renew(store, new) == new


@of_both_kinds
async def test_k4_held_rows_never_hide_a_claimable_one(lab: Lab, rows: Rows) -> None:
    """Behind 200 rows that a live claim holds, the next row is found and claimed."""
    store = await lab.store()
    lease = await lane(store)
    names = [f"n{at}" for at in range(200)]
    for name in names:
        await rows.add(store, name)
    claim = some(await rows.claim(store, lease, 200))
    assert rows.names(claim) == names
    await rows.add(store, "behind")
    behind = some(await rows.claim(store, lease, 1))
    assert rows.names(behind) == ["behind"]


@of_both_kinds
async def test_k4_a_claim_takes_no_more_than_asked_and_is_none_when_nothing_waits(lab: Lab, rows: Rows) -> None:
    """The limit is kept, the order is that of admission, and an empty queue gives None without a trace."""
    store = await lab.store()
    lease = await lane(store)
    assert await rows.claim(store, lease) is None
    for name in "abc":
        await rows.add(store, name)
    first = some(await rows.claim(store, lease, 2))
    second = some(await rows.claim(store, lease, 2))
    async with lab.unchanged():
        assert await rows.claim(store, lease, 2) is None
    assert (rows.names(first), rows.names(second)) == (["a", "b"], ["c"])


@of_both_kinds
async def test_k1_the_successor_cannot_settle_its_predecessors_claim(lab: Lab, rows: Rows) -> None:
    """A claim granted under one lease is worth nothing under the next, not even to the same owner."""
    store = await lab.store()
    lease = await lane(store)
    claim = (await held(store, lease, rows, "a", 1)).claim
    lab.clock.advance(30_000)
    successor = await lane(store, owner("alice", "alice-1"))
    assert successor.fencing_token == 2
    attempt = rows.settle(commit(successor, None, *chain("n")), claim)
    await refused(lab, rows.error, store.commit_runtime_state(attempt))
    await refused(
        lab, LeaseExpiredError, store.commit_runtime_state(rows.settle(commit(lease, None, *chain("n")), claim))
    )


@of_both_kinds
@pytest.mark.parametrize("fault", ["fewer", "more", "twice", "repeated", "token", "unknown", "foreign", "abandoned"])
async def test_c6_a_completion_owns_exactly_its_rows(lab: Lab, rows: Rows, fault: str) -> None:
    """A completion with rows missing, foreign or doubled, or of a claim that is gone, settles nothing."""
    store = await lab.store()
    lease = await lane(store)
    claim = (await held(store, lease, rows, "ab", 2)).claim
    spare = await rows.add(store, "spare")
    done = claim.completion()
    one, two = rows.ids(done)
    faults = {
        "fewer": (rows.naming(done, one),),
        "more": (rows.naming(done, one, two, spare),),
        "twice": (done, done),
        "repeated": (rows.naming(done, one, one),),
        "token": (msgspec.structs.replace(done, fencing_token=done.fencing_token + 1),),
        "unknown": (msgspec.structs.replace(done, claim_id="nobody's"),),
        "foreign": (msgspec.structs.replace(done, session_id="other"),),
        "abandoned": (done,),
    }
    if fault == "abandoned":
        await rows.abandon(store, claim)
    attempt = commit(lease, None, *chain("n"), **{rows.completed: faults[fault]})
    await refused(lab, rows.error, store.commit_runtime_state(attempt))
