"""The server ends a connection, or its answer gets lost, at every point of every operation."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fastness.conformance import Lab
from fastness.conformance.builders import (
    ALICE,
    BOB,
    TTL_MS,
    chain,
    commit,
    lane,
    loaded,
    node_ids,
    said,
    texts,
    usage,
    work,
)
from fastness.conformance.lab import differences
from fastness.errors import CommitOutcomeUnknownError
from fastness.model import Acquired
from fastness.sql.program import Read, Write
from tests.engines.postgres_lab import Ground, subject
from tests.servers.proxy import Cut, Proxy
from tests.test_faults import CHANGE_NOTHING, OPERATIONS, Scene, points_of, start_over

READ_FIRST = {"reclaim_session_execution_lease"}
"""Operations that look before they write, in a transaction of its own."""


@pytest.fixture
async def lab(own_ground: Ground, tmp_path: Path) -> AsyncIterator[Lab]:
    """A database straight on the server."""
    async with Lab(subject(own_ground), tmp_path) as made:
        yield made


@pytest.fixture
async def proxy(own_ground: Ground) -> AsyncIterator[Proxy]:
    """A proxy that cuts."""
    with Proxy.spawn(own_ground.server.url()) as made:
        yield made


@pytest.fixture
async def far(own_ground: Ground, proxy: Proxy, tmp_path: Path) -> AsyncIterator[Lab]:
    """The same behind a proxy."""
    async with Lab(subject(own_ground, proxy.url(own_ground.url)), tmp_path) as made:
        yield made


class Termination:
    """Ends all of the engine's connections at one point, counted from 0, on the server's side, and lets it go on."""

    def __init__(self, ground: Ground, point: int) -> None:
        self.ground = ground
        self.left = point
        self.ended = 0

    def __call__(self, _batch: Read | Write | None) -> None:
        self.left -= 1
        if self.left == -1:
            self.ended = self.ground.terminate()


@pytest.mark.parametrize("name", OPERATIONS)
async def test_a_connection_that_the_server_ends_at_any_point_is_made_up_for(
    lab: Lab, own_ground: Ground, name: str
) -> None:
    """The caller gets what he asked for, from another connection, and the rows are as after one undisturbed call."""
    operation = OPERATIONS[name]
    points = await points_of(lab, operation)
    for point in range(points):
        await start_over(lab)
        scene = await Scene(lab, await lab.store()).set()
        before = await lab.dump()
        termination = Termination(own_ground, point)
        lab.on_batch = termination
        await operation(scene)
        lab.on_batch = None
        assert termination.ended >= 1, f"point {point} of {name} was never reached"
        changed = differences(before, await lab.dump()) != {}
        assert changed == (name not in CHANGE_NOTHING), f"{name}, ended at point {point}: changed is {changed}"
    await lab.assert_sound()
    assert own_ground.sessions("idle in transaction", "idle in transaction (aborted)") == []


@pytest.mark.parametrize("lost", ["request", "answer"])
@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - CHANGE_NOTHING))
async def test_a_lost_commit_is_all_or_nothing_and_said_to_be_unknown(
    far: Lab, proxy: Proxy, name: str, lost: Cut
) -> None:
    """A connection lost with COMMIT in flight is an unknown outcome: all of the call is there, or none of it."""
    scene = await Scene(far, await far.store()).set()
    before = await far.dump()
    proxy.cut(lost, r"^\s*commit", after=1 if name in READ_FIRST else 0)
    with pytest.raises(CommitOutcomeUnknownError, match="send the same stamped commit again: it lands once"):
        await OPERATIONS[name](scene)
    assert (differences(before, await far.dump()) != {}) == (lost == "answer")
    await far.assert_sound()


@pytest.mark.parametrize(("lost", "replayed"), [("request", False), ("answer", True)])
async def test_a_stamped_commit_that_was_lost_lands_once_when_sent_again(
    far: Lab, proxy: Proxy, lost: Cut, replayed: bool
) -> None:
    """Sent again after an unknown outcome, it is written now or was before, and its usage and nodes are there once."""
    store = await far.store()
    lease = await lane(store)
    await store.enqueue_pending_turn_input(said("x"))
    claim = await store.claim_next_turn_inputs("s", lease.fence(), max_inputs=1)
    assert claim is not None
    made = commit(lease, None, *chain("a", "b"), usage_deltas=(usage(5, 7),))
    stamped = made.completing_turn_input_claim(claim).with_outbox(work(session_id="t")).with_turn_commit("t1")
    proxy.cut(lost, r"^\s*commit")
    with pytest.raises(CommitOutcomeUnknownError):
        await store.commit_runtime_state(stamped)
    result = await store.commit_runtime_state(stamped)
    assert (result.head_revision, result.leaf_node_id, result.replayed) == (1, "b", replayed)
    assert (await store.commit_runtime_state(stamped)).replayed is True
    read = await loaded(store)
    assert await node_ids(store) == ["a", "b"]
    assert (read.head.ledger[0].usage.input_tokens, read.head.ledger[0].usage.output_tokens) == (5, 7)
    assert await store.list_pending_turn_inputs("s") == []
    assert len(await store.list_queued_work("t")) == 1


@pytest.mark.parametrize(("lost", "token"), [("request", 1), ("answer", 1)])
async def test_a_lane_whose_grant_was_lost_is_entered_again(far: Lab, proxy: Proxy, lost: Cut, token: int) -> None:
    """The same incarnation asks again and holds the lane under the first token; nobody else got in between."""
    store = await far.store()
    proxy.cut(lost, r"^\s*commit")
    with pytest.raises(CommitOutcomeUnknownError):
        await store.try_claim_session_execution_lease("s", ALICE, TTL_MS)
    if lost == "answer":
        busy = await store.try_claim_session_execution_lease("s", BOB, TTL_MS)
        assert not isinstance(busy, Acquired)
    lease = await lane(store, ALICE)
    assert lease.fencing_token == token
    assert (await store.renew_session_execution_lease(lease.fence(), TTL_MS)).fencing_token == token


@pytest.mark.parametrize("lost", ["request", "answer"])
async def test_a_submission_with_a_source_key_that_was_lost_is_there_once(far: Lab, proxy: Proxy, lost: Cut) -> None:
    """Input and work that carry a source key may be sent again after an unknown outcome."""
    store = await far.store()
    for _ in range(2):
        proxy.cut(lost, r"^\s*commit")
        try:
            await store.enqueue_pending_turn_input(said("x", key="k"))
        except CommitOutcomeUnknownError:
            await store.enqueue_pending_turn_input(said("x", key="k"))
        proxy.cut(lost, r"^\s*commit")
        try:
            await store.enqueue_queued_work(work(key="k"))
        except CommitOutcomeUnknownError:
            await store.enqueue_queued_work(work(key="k"))
    proxy.spare()
    assert texts(await store.list_pending_turn_inputs("s")) == ["x"]
    assert len(await store.list_queued_work("s")) == 1


@pytest.mark.parametrize("lost", ["request", "answer"])
async def test_what_is_lost_before_commit_is_made_up_for(far: Lab, proxy: Proxy, lost: Cut) -> None:
    """A read, and the first of the two round trips of a write, are simply done again; it lands once."""
    store = await far.store()
    for text in ("a", "b", "c"):
        proxy.cut(lost, r"^\s*begin isolation level repeatable read")
        assert await store.list_queued_work("s") == []
        await store.enqueue_pending_turn_input(said(text))
    assert proxy.cuts == 3
    assert texts(await store.list_pending_turn_inputs("s")) == ["a", "b", "c"]
    again = await far.store("fresh")
    proxy.cut(lost, r"for update")
    await again.tombstone_nodes(["unknown"])
    assert proxy.cuts == 4
