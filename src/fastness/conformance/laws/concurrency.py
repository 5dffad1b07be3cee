"""Laws that are about calls at the same time: whatever the order, what comes out is as if they came one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import TypeVar

import pytest

from fastness.conformance.builders import (
    TTL_MS,
    chain,
    checkpoint,
    commit,
    content_id,
    intent,
    lane,
    loaded,
    node,
    owner,
    said,
    texts,
    usage,
    work,
)
from fastness.conformance.lab import Lab
from fastness.conformance.rows import ROWS, Rows, held
from fastness.errors import AttachmentNotInManifestError, HeadRevisionConflictError, StoreError
from fastness.model import Acquired, Busy, FullGraph, RuntimeCommitResult, RuntimePersistence

T = TypeVar("T")

TIMES = 8
LATER_MS = 2**53


async def at_once(calls: Sequence[Awaitable[T]]) -> tuple[list[T], list[StoreError]]:
    """Make calls at the same time; give what they answered, and the errors."""
    answers = await asyncio.gather(*calls, return_exceptions=True)
    unexpected = [
        answer for answer in answers if isinstance(answer, BaseException) and not isinstance(answer, StoreError)
    ]
    assert unexpected == []
    refusals = [answer for answer in answers if isinstance(answer, StoreError)]
    return [answer for answer in answers if not isinstance(answer, BaseException)], refusals


async def test_c5_of_commits_that_race_on_one_revision_one_lands(lab: Lab) -> None:
    """The others learn that the head has moved, and leave nothing behind."""
    store = await lab.store()
    lease = await lane(store)
    await store.commit_runtime_state(commit(lease, None, *chain("root")))
    made = [
        commit(lease, 1, node(f"n{at}", "root"), usage_deltas=(usage(1),)).with_turn_commit(f"t{at}")
        for at in range(TIMES)
    ]
    handles = [store, await lab.beside()]
    landed, refused = await at_once([handles[at % 2].commit_runtime_state(one) for at, one in enumerate(made)])
    assert [result.head_revision for result in landed] == [2]
    assert [type(error) for error in refused] == [HeadRevisionConflictError] * (TIMES - 1)
    read = await store.load_session(FullGraph())
    assert read is not None
    assert (len(read.graph.nodes), read.head.ledger) == (2, (usage(1),))


async def test_c3_a_stamped_commit_that_is_sent_many_times_at_once_lands_once(lab: Lab) -> None:
    """One answer is of the commit itself, all others are the same result, replayed."""
    store = await lab.store()
    lease = await lane(store)
    stamped = commit(lease, None, *chain("a", "b"), usage_deltas=(usage(1),)).with_outbox(said("x", session_id="o"))
    stamped = stamped.with_turn_commit("t1")
    handles = [store, await lab.beside()]
    landed, refused = await at_once([handles[at % 2].commit_runtime_state(stamped) for at in range(TIMES)])
    assert refused == []
    assert sorted(result.replayed for result in landed) == [False] + [True] * (TIMES - 1)
    assert {(result.head_revision, result.leaf_node_id) for result in landed} == {(1, "b")}
    assert texts(await store.list_pending_turn_inputs("o")) == ["x"]


@pytest.mark.parametrize("rows", ROWS, ids=lambda rows: rows.table)
async def test_c6_a_claim_that_two_turns_complete_at_once_is_settled_by_one(lab: Lab, rows: Rows) -> None:
    """Whichever comes second is refused, and its nodes are not there."""
    store = await lab.store()
    lease = await lane(store)
    claim = (await held(store, lease, rows, "ab", 2)).claim
    handles = [store, await lab.beside()]
    made = [rows.settle(commit(lease, None, node(f"n{at}")), claim) for at in range(2)]
    landed, refused = await at_once([handles[at].commit_runtime_state(one) for at, one in enumerate(made)])
    assert (len(landed), [type(error) for error in refused]) == (1, [HeadRevisionConflictError])
    read = await store.load_session(FullGraph())
    assert read is not None
    assert len(read.graph.nodes) == 1
    assert await rows.waiting(store) == []


async def test_k2_of_claims_that_race_each_row_is_granted_once(lab: Lab) -> None:
    """Claims at the same time share the rows out; none is granted twice, and none is left."""
    store = await lab.store()
    lease = await lane(store)
    for at in range(20):
        await store.enqueue_pending_turn_input(said(f"{at}"))
    handles = [store, await lab.beside()]
    claims, refused = await at_once(
        [handles[at % 2].claim_next_turn_inputs("s", lease.fence(), max_inputs=5) for at in range(TIMES)]
    )
    assert refused == []
    granted = [text for claim in claims if claim is not None for text in texts(claim.inputs)]
    assert sorted(granted, key=int) == [f"{at}" for at in range(20)]


async def test_i1_the_same_submission_many_times_at_once_makes_one_row(lab: Lab) -> None:
    """All answers name one row, and one row is there; the same holds for work."""
    store = await lab.store()
    handles = [store, await lab.beside()] * (TIMES // 2)
    inputs, _ = await at_once([handle.enqueue_pending_turn_input(said("x", key="k")) for handle in handles])
    batches, _ = await at_once([handle.enqueue_queued_work(work(key="k")) for handle in handles])
    assert (len(inputs), len({row.input_id for row in inputs})) == (TIMES, 1)
    assert (len(batches), len({batch.batch_id for batch in batches})) == (TIMES, 1)
    assert len(await store.list_pending_turn_inputs("s")) == len(await store.list_queued_work("s")) == 1


async def test_i2_admission_numbers_of_enqueues_at_once_have_no_gap(lab: Lab) -> None:
    """Input and work that come at once, also to a session that just comes to life, are numbered through."""
    handles = [await lab.store(), await lab.beside()] * (TIMES // 2)
    inputs, _ = await at_once([handle.enqueue_pending_turn_input(said("x", session_id="new")) for handle in handles])
    batches, _ = await at_once([handle.enqueue_queued_work(work(session_id="new")) for handle in handles])
    numbers = [row.admission_seq for row in inputs] + [batch.admission_seq for batch in batches]
    assert sorted(numbers) == list(range(1, 2 * TIMES + 1))


async def test_l1_of_claims_from_two_processes_one_wins(lab: Lab) -> None:
    """Of claims that come at once through both, one is granted, and all others are shown that holder."""
    handles = [await lab.store(), await lab.beside()] * (TIMES // 2)
    outcomes, refused = await at_once(
        [handle.try_claim_session_execution_lease("s", owner(f"o{at}"), TTL_MS) for at, handle in enumerate(handles)]
    )
    assert refused == []
    (won,) = [outcome.lease for outcome in outcomes if isinstance(outcome, Acquired)]
    assert [outcome.holder for outcome in outcomes if isinstance(outcome, Busy)] == [won] * (TIMES - 1)


async def test_m1_collections_and_deletions_beside_commits_of_two_processes(lab: Lab) -> None:
    """Sessions that share contents are committed, deleted and collected at once; what stays is whole."""
    handles = [await lab.store("a"), await lab.beside("b")]

    async def commits(store: RuntimePersistence, name: str) -> None:
        """Commit turns whose contents come and go, the same ones in both sessions."""
        lease = await lane(store, session_id=name)
        revision = None
        for at in range(12):
            made = commit(lease, revision, node(f"n{at}"), checkpoint=checkpoint(at, tool_state=b"%d" % (at % 3)))
            revision = (await store.commit_runtime_state(made)).head_revision

    async def deletions() -> None:
        """Make sessions with the same contents, and delete them."""
        for at in range(6):
            store = await lab.store(f"gone-{at}")
            lease = await lane(store, session_id=f"gone-{at}")
            await store.commit_runtime_state(commit(lease, None, node("n"), checkpoint=checkpoint(1, tool_state=b"1")))
            await lab.factory.delete_session(f"gone-{at}")

    async def sweeps(store: RuntimePersistence) -> None:
        """Collect again and again."""
        for _ in range(12):
            await store.gc_unreachable()

    await asyncio.gather(
        commits(handles[0], "a"), commits(handles[1], "b"), deletions(), sweeps(handles[0]), sweeps(handles[1])
    )
    for handle in handles:
        read = await loaded(handle)
        assert read.checkpoint == checkpoint(11, tool_state=b"2")
    await lab.assert_sound()


async def test_a4_a_sweep_beside_commits_takes_nothing_that_was_stamped(lab: Lab) -> None:
    """A commit that stamped its content finds it held afterwards; where the sweep was first, the commit is refused."""
    store, other = await lab.store(), await lab.beside()
    lease = await lane(store)
    revision = None
    for at in range(10):
        attachment_id = content_id(f"content {at}")
        await store.record_intent(intent(attachment_id))
        made = commit(lease, revision, node(f"n{at}")).with_committed_attachments([attachment_id])
        outcome, grant = await asyncio.gather(
            store.commit_runtime_state(made),
            other.begin_reclaim([attachment_id], older_than_epoch_ms=LATER_MS),
            return_exceptions=True,
        )
        assert not isinstance(grant, BaseException)
        if isinstance(outcome, RuntimeCommitResult):
            revision = outcome.head_revision
            assert grant.attachment_ids == ()
            assert await store.holds_ref("s", attachment_id)
        else:
            assert isinstance(outcome, AttachmentNotInManifestError)
            assert grant.attachment_ids == (attachment_id,)
        await store.finish_reclaim(grant)
    await lab.assert_sound()
