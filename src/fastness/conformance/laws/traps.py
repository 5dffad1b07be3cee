"""The traps: faults that systems of this kind have shipped, one test for each that no other law already is."""

from __future__ import annotations

import asyncio

import pytest

from fastness.conformance.builders import (
    BOB,
    TTL_MS,
    chain,
    claim_inputs,
    claim_work,
    commit,
    content_id,
    intent,
    lane,
    loaded,
    node,
    node_ids,
    release,
    said,
    said_now,
    some,
    task,
    texts,
    turn,
    usage,
    work,
)
from fastness.conformance.lab import Lab, refused, sql_of
from fastness.errors import LeaseExpiredError, SessionDeletedError, TurnCommitConflictError, TurnInputClaimExpiredError
from fastness.model import ActivePath, TokenUsage, Unchanged
from fastness.persistence import load_persisted_session_state, load_persisted_session_state_active_path
from fastness.sql.program import Many, Read, Write


async def test_c3_trap_the_next_append_after_a_replay_hangs_on_what_was_written(lab: Lab) -> None:
    """A runtime that adopts the replayed leaf appends to a node that is there; the path is whole."""
    store = await lab.store()
    lease = await lane(store)
    await store.commit_runtime_state(commit(lease, None, *chain("a", "b")).with_turn_commit("t1"))
    rerun = await store.commit_runtime_state(commit(lease, None, *chain("x", "y")).with_turn_commit("t1"))
    await store.commit_runtime_state(commit(lease, rerun.head_revision, node("c", rerun.leaf_node_id)))
    read = some(await (await lab.reopen()).load_session(ActivePath()))
    assert [found.node_id for found in read.graph.nodes] == ["a", "b", "c"]


async def test_k4_trap_held_rows_do_not_hide_later_work(lab: Lab) -> None:
    """Behind 33 batches and 33 inputs that are held, and 33 that are not ready, the next ones are found."""
    store = await lab.store()
    lease = await lane(store)
    for _ in range(33):
        await store.enqueue_queued_work(work())
        await store.enqueue_pending_turn_input(said("held"))
        await claim_work(store, lease)
        await claim_inputs(store, lease)
        await store.enqueue_queued_work(work(at_ms=lab.start_ms + 1))
    await store.enqueue_queued_work(work(task("found")))
    await store.enqueue_pending_turn_input(said("found"))
    batch = await claim_work(store, lease)
    row = await claim_inputs(store, lease)
    assert batch.batches[0].items[0].payload == task("found")
    assert texts(row.inputs) == ["found"]


async def test_k1_trap_a_slow_live_turn_commits_its_own_work(lab: Lab) -> None:
    """A turn that only renewed its lease, for many lifetimes of it, still owns its claims."""
    store = await lab.store()
    await store.enqueue_pending_turn_input(said("hi"))
    await store.enqueue_queued_work(work())
    lease = await lane(store)
    inputs = await claim_inputs(store, lease)
    batches = await claim_work(store, lease)
    for _ in range(20):
        lab.clock.advance(20_000)
        await store.renew_session_execution_lease(lease.fence(), TTL_MS)
    done = commit(lease, None, *chain("a")).completing_turn_input_claim(inputs).completing_queue_claim(batches)
    assert (await store.commit_runtime_state(done)).head_revision == 1


async def test_i4_trap_accepted_input_of_a_crashed_turn_is_found_by_every_query(lab: Lab) -> None:
    """It is listed, claimed by the idle claim, and cancellable: no state is a dead end."""
    store = await lab.store()
    lease = await lane(store)
    await store.enqueue_pending_turn_input(said_now("one", input_id="one"))
    await store.enqueue_pending_turn_input(said_now("two", input_id="two"))
    some(await store.claim_active_turn_inputs("s", lease.fence(), turn_id="t1", checkpoint="after_work", max_inputs=2))
    lab.clock.advance(30_000)
    store = await lab.reopen()
    assert texts(await store.list_pending_turn_inputs("s")) == ["one", "two"]
    assert type(await store.cancel_pending_turn_input("s", "one")).__name__ == "Cancelled"
    bob = await lane(store, BOB)
    claim = some(await store.claim_next_turn_inputs("s", bob.fence(), max_inputs=5))
    assert texts(claim.inputs) == ["two"]


async def test_l5_trap_an_old_completion_does_not_release_a_newer_entry(lab: Lab) -> None:
    """After re-entry with the same fencing token, the first entry's late release leaves the lane held."""
    store = await lab.store()
    old = await lane(store)
    new = await lane(store)
    assert old.fencing_token == new.fencing_token
    await release(store, old)
    assert (await store.renew_session_execution_lease(new.fence(), TTL_MS)).fencing_token == 1


async def test_c4_trap_a_zombie_that_is_paused_between_check_and_write_writes_nothing(lab: Lab) -> None:
    """A commit that is held up before its transaction, while the lease passes on, is refused inside it."""
    store = await lab.store()
    lease = await lane(store)
    zombie = commit(lease, None, *chain("zombie"))
    await store.renew_session_execution_lease(lease.fence(), TTL_MS)
    lab.clock.advance(30_000)
    bob = await lane(store, BOB)
    await store.commit_runtime_state(commit(bob, None, *chain("bob")))
    await refused(lab, LeaseExpiredError, store.commit_runtime_state(zombie))
    assert await node_ids(await lab.reopen()) == ["bob"]


async def test_c4_trap_the_lane_is_locked_before_anything_else_is_read(lab: Lab) -> None:
    """The first statement of every commit is the lane's own row, and no later batch reads it again."""
    store = await lab.store()
    lease = await lane(store)
    lab.seen.clear()
    await store.commit_runtime_state(commit(lease, None, *chain("a"), usage_deltas=(usage(1),)))
    first = sql_of(lab.seen[0].statements[0])
    assert type(lab.seen[0]) is Read
    assert first.startswith("select")
    assert "from lane" in first
    assert first.endswith(("for update", "for update of lane"))
    assert [type(batch) for batch in lab.seen[1:]].count(Read) <= 1


async def test_c6_trap_a_commit_owns_all_the_rows_it_deletes(lab: Lab) -> None:
    """If a row of a claim was taken behind the store's back, the completion fails instead of deleting fewer rows."""
    store = await lab.store()
    for text in ("a", "b"):
        await store.enqueue_pending_turn_input(said(text, input_id=text))
    lease = await lane(store)
    claim = await claim_inputs(store, lease, 2)
    await lab.execute_raw("delete from turn_input where input_id = 'b'")
    attempt = commit(lease, None, *chain("n")).completing_turn_input_claim(claim)
    await refused(lab, TurnInputClaimExpiredError, store.commit_runtime_state(attempt))


async def test_c10_trap_usage_of_only_reasoning_tokens_counts_and_counts_once(lab: Lab) -> None:
    """A turn that only thought is not dropped, and a retry does not count it again."""
    store = await lab.store()
    lease = await lane(store)
    stamped = commit(lease, None, usage_deltas=(usage(0, 0, 0, 0, 9),)).with_turn_commit("t1")
    for _ in range(3):
        await store.commit_runtime_state(stamped)
    read = await loaded(await lab.reopen())
    assert [entry.usage for entry in read.head.ledger] == [TokenUsage(0, 0, 0, 0, 9)]


async def test_a4_trap_one_sessions_clean_up_keeps_the_others_bytes(lab: Lab) -> None:
    """Two sessions put the same bytes; when one is deleted, or forgets them, a sweep takes nothing."""
    shared = content_id("shared")
    store = await lab.store()
    await lab.store("other")
    for session_id in ("s", "other"):
        await store.record_intent(intent(shared, session_id=session_id))
        await store.commit_refs(session_id, [shared])
    await lab.factory.delete_session("other")
    grant = await store.begin_reclaim([shared], older_than_epoch_ms=lab.start_ms)
    assert grant.attachment_ids == ()
    assert await store.holds_ref("s", shared) is True


async def test_c11_trap_a_commit_writes_only_what_it_adds(lab: Lab) -> None:
    """A turn of one node on a session of 300 writes one node, no frame, and no more than a handful of rows."""
    store = await lab.store()
    ids = [f"n{at}" for at in range(300)]
    await turn(store, *chain(*ids))
    lease = await lane(store)
    lab.seen.clear()
    await store.commit_runtime_state(commit(lease, 1, node("new", "n299")))
    written = [item for batch in lab.seen if type(batch) is Write for item in batch.statements]
    rows = sum(len(item.rows) if isinstance(item, Many) else 1 for item in written)
    assert rows <= 8, [sql_of(item) for item in written]


@pytest.mark.parametrize("late", ["commit", "release", "enqueue", "abandon"])
async def test_m3_trap_late_writes_do_not_resurrect_a_deleted_session(lab: Lab, late: str) -> None:
    """Whatever a runner still sends after the deletion, the session stays gone."""
    store = await lab.store()
    await store.enqueue_pending_turn_input(said("hi"))
    lease = await lane(store)
    claim = await claim_inputs(store, lease)
    await lab.factory.delete_session("s")
    calls = {
        "commit": lambda: store.commit_runtime_state(commit(lease, None, *chain("a"))),
        "release": lambda: store.release_session_execution_lease(lease.completion()),
        "enqueue": lambda: store.enqueue_pending_turn_input(said("late")),
        "abandon": lambda: store.abandon_turn_input_claim(claim),
    }
    await refused(lab, SessionDeletedError, calls[late]())  # type: ignore[no-untyped-call]
    assert (await lab.factory.list_sessions()).sessions == ()


async def test_c9_trap_a_switch_of_branch_is_not_a_replay(lab: Lab) -> None:
    """Two commits that add nothing and stand on different nodes are different turns."""
    store = await lab.store()
    await turn(store, *chain("a", "b"))
    lease = await lane(store)
    await store.commit_runtime_state(commit(lease, 1, graph=Unchanged("a")).with_turn_commit("t1"))
    other = commit(lease, 2, graph=Unchanged("b")).with_turn_commit("t1")
    await refused(lab, TurnCommitConflictError, store.commit_runtime_state(other))


async def test_i2_trap_admission_numbers_follow_the_order_of_commits(lab: Lab) -> None:
    """Numbers are drawn without a gap under the lane's lock: a refused or replayed submission draws none."""
    store = await lab.store()
    await asyncio.gather(*(store.enqueue_pending_turn_input(said(f"{at}", key=f"{at % 5}")) for at in range(5)))
    await asyncio.gather(*(store.enqueue_pending_turn_input(said(f"{at}", key=f"{at}")) for at in range(5)))
    await store.enqueue_queued_work(work())
    rows = await (await lab.reopen()).list_pending_turn_inputs("s")
    assert [row.admission_seq for row in rows] == [1, 2, 3, 4, 5]
    assert [batch.admission_seq for batch in await (await lab.reopen()).list_queued_work("s")] == [6]


async def test_g2_trap_what_a_turn_starts_from_is_what_the_last_one_left(lab: Lab) -> None:
    """A loaded state knows the revision to build on; before the first commit there is none to load."""
    store = await lab.store()
    assert await load_persisted_session_state(store) is None
    await turn(store, *chain("a", "b"))
    await turn(store, node("c", "a"))
    again = await lab.reopen()
    state = some(await load_persisted_session_state(again))
    path = some(await load_persisted_session_state_active_path(again, "b"))
    assert (state.observed_head_revision, [one.node_id for one in state.settled.graph.nodes]) == (2, ["a", "b", "c"])
    assert (path.settled.graph.leaf_node_id, len(path.settled.graph.nodes)) == ("b", 2)
