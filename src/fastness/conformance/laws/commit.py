"""The laws of the commit: who may commit what, and in which order that is checked (C1 to C5, C7)."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from fastness.conformance.builders import (
    BOB,
    WHEN,
    append,
    chain,
    checkpoint,
    claim_inputs,
    claim_work,
    commit,
    content_id,
    intent,
    lane,
    loaded,
    node,
    node_ids,
    other_token,
    owner,
    release,
    revision,
    said,
    texts,
    turn,
    usage,
    work,
)
from fastness.conformance.lab import Lab, refused
from fastness.errors import (
    AttachmentNotInManifestError,
    GraphInvalidError,
    HeadRevisionConflictError,
    InvalidInputError,
    LeaseExpiredError,
    QueuedWorkClaimExpiredError,
    SessionBindingMismatchError,
    SessionDeletedError,
    TurnCommitConflictError,
    UnknownBlobRefError,
)
from fastness.model import (
    AgentFrameRecord,
    BlobRef,
    HydratedSessionCheckpoint,
    PersistedSessionConfig,
    PersistedTurnState,
    QueuedWorkCompletion,
    RuntimeCommit,
    Unchanged,
)


async def test_c1_a_commit_shows_all_that_it_carries(lab: Lab) -> None:
    """Every part of a commit is there after it, on this handle and on a reopened one."""
    store = await lab.store()
    await store.enqueue_pending_turn_input(said("hi"))
    await store.enqueue_queued_work(work())
    await store.record_intent(intent(content_id("a")))
    lease = await lane(store)
    inputs = await claim_inputs(store, lease, 5)
    batches = await claim_work(store, lease, 5)
    whole = (
        commit(
            lease,
            None,
            *chain("a", "b"),
            config=PersistedSessionConfig("openai", "gpt"),
            agent_frames=(AgentFrameRecord("f1", WHEN),),
            current_agent_frame_id="f1",
            checkpoint=checkpoint(1, tool_state=b"tools", plugin_snapshot=b"plugins"),
            usage_deltas=(usage(1, 2, 3, 4, 5),),
            release_session_execution_lease=lease.completion(),
        )
        .completing_turn_input_claim(inputs)
        .completing_queue_claim(batches)
        .with_committed_attachments((content_id("a"),))
        .with_outbox(said("later"))
        .with_turn_commit("t1")
    )
    result = await store.commit_runtime_state(whole)
    assert (result.head_revision, result.leaf_node_id, result.replayed) == (1, "b", False)
    async for handle in lab.handles(store):
        read = await loaded(handle)
        assert [found.node_id for found in read.graph.nodes] == ["a", "b"]
        assert (read.head.meta.revision, read.head.meta.leaf_node_id, read.head.meta.node_count) == (1, "b", 2)
        assert read.head.meta.config == PersistedSessionConfig("openai", "gpt")
        assert read.head.meta.current_agent_frame_id == "f1"
        assert read.head.meta.checkpoint_ref == result.checkpoint_ref
        assert read.head.agent_frames == (AgentFrameRecord("f1", WHEN),)
        assert read.head.ledger == (usage(1, 2, 3, 4, 5),)
        assert read.checkpoint == checkpoint(1, tool_state=b"tools", plugin_snapshot=b"plugins")
        assert texts(await handle.list_pending_turn_inputs("s")) == ["later"]
        assert await handle.list_queued_work("s") == []
        assert await handle.list_uncommitted(lab.now_ms) == []
        await release(handle, await lane(handle, BOB))
    await lab.assert_sound()


async def test_c1_a_reader_sees_a_commit_whole_or_not_at_all(lab: Lab) -> None:
    """While commits of two nodes run, every load shows twice as many nodes as the revision that it shows."""
    store = await lab.store()
    lease = await lane(store)
    await store.commit_runtime_state(commit(lease, None, *chain("0a", "0b")))

    async def write() -> None:
        """Commit pair after pair."""
        for at in range(1, 20):
            pair = chain(f"{at}a", f"{at}b", after=f"{at - 1}b")
            await store.commit_runtime_state(commit(lease, at, *pair))

    async def look() -> list[tuple[int, int]]:
        """Load over and over, beside it."""
        seen = []
        for _ in range(40):
            read = await loaded(store)
            seen.append((len(read.graph.nodes), read.head.meta.revision))
            await asyncio.sleep(0)
        return seen

    _, seen = await asyncio.gather(write(), look())
    assert [pair for pair in seen if pair[0] != 2 * pair[1]] == []
    assert len(await node_ids(await lab.reopen())) == 40


async def test_c2_a_handle_refuses_a_commit_for_another_session(lab: Lab) -> None:
    """A handle of one session does not settle a turn of another, even under that one's live lease."""
    store = await lab.store()
    await lab.store("other")
    lease = await lane(store, session_id="other")
    error = await refused(
        lab, SessionBindingMismatchError, store.commit_runtime_state(commit(lease, None, *chain("a")))
    )
    assert (error.bound_session_id, error.given_session_id) == ("s", "other")


async def test_c3_a_replayed_stamp_returns_the_recorded_result(lab: Lab) -> None:
    """The same stamped commit sent again changes nothing and answers what it answered, marked as replayed."""
    store = await lab.store()
    lease = await lane(store)
    stamped = commit(lease, None, *chain("a"), checkpoint=checkpoint(), usage_deltas=(usage(7),))
    stamped = stamped.with_turn_commit("t1")
    first = await store.commit_runtime_state(stamped)
    async with lab.unchanged():
        again = await store.commit_runtime_state(stamped)
    assert first.replayed is False
    assert again == msgspec.structs.replace(first, replayed=True)
    assert await (await lab.reopen()).commit_runtime_state(stamped) == again


async def test_c3_a_replay_needs_neither_lease_nor_revision(lab: Lab) -> None:
    """A recorded turn is answered to a sender whose lease is gone and whose revision was overtaken."""
    store = await lab.store()
    lease = await lane(store)
    stamped = commit(lease, None, *chain("a")).with_turn_commit("t1")
    first = await store.commit_runtime_state(stamped)
    await release(store, lease)
    await turn(store, node("b", "a"))
    lab.clock.advance(10 * 30_000)
    bare = msgspec.structs.replace(stamped, session_execution_lease=None, expected_head_revision=77)
    again = await (await lab.reopen()).commit_runtime_state(bare)
    assert again == msgspec.structs.replace(first, replayed=True)
    assert again.leaf_node_id == "a"


async def test_c3_a_replay_releases_the_lease_that_it_still_names(lab: Lab) -> None:
    """A replay that carries a release gives the lane back if the release names the lease, and leaves it otherwise."""
    store = await lab.store()
    lease = await lane(store)
    stamped = commit(lease, None, *chain("a")).with_turn_commit("t1")
    await store.commit_runtime_state(stamped)
    await store.commit_runtime_state(stamped.releasing_session_execution_lease(lease.completion()))
    bob = await lane(store, BOB)
    await store.commit_runtime_state(stamped.releasing_session_execution_lease(lease.completion()))
    renewed = await store.renew_session_execution_lease(bob.fence(), 30_000)
    assert renewed.fencing_token == 2


async def test_c3_a_receipt_stays_readable_after_collection(lab: Lab) -> None:
    """The recorded result, manifest included, outlives the checkpoint that it speaks of."""
    store = await lab.store()
    lease = await lane(store)
    stamped = commit(lease, None, checkpoint=checkpoint(1, tool_state=b"old")).with_turn_commit("t1")
    first = await store.commit_runtime_state(stamped)
    await store.commit_runtime_state(commit(lease, 1, checkpoint=checkpoint(2, tool_state=b"new")))
    report = await store.gc_unreachable()
    assert report.deleted_blob_count == 2
    again = await (await lab.reopen()).commit_runtime_state(stamped)
    assert again == msgspec.structs.replace(first, replayed=True)
    assert again.manifest is not None
    assert again.manifest.turn_state == PersistedTurnState(1)


async def test_c3_a_turn_id_names_one_turn(lab: Lab) -> None:
    """A recorded turn id with other content is a conflict, and so is a stamp for another session."""
    store = await lab.store()
    lease = await lane(store)
    await store.commit_runtime_state(commit(lease, None, *chain("a")).with_turn_commit("t1"))
    other = commit(lease, 1, node("b", "a", "something else")).with_turn_commit("t1")
    await refused(lab, TurnCommitConflictError, store.commit_runtime_state(other))
    stamped = commit(lease, 1, node("b", "a")).with_turn_commit("t2")
    assert stamped.turn_commit is not None
    foreign = msgspec.structs.replace(
        stamped, turn_commit=msgspec.structs.replace(stamped.turn_commit, session_id="other")
    )
    await refused(lab, TurnCommitConflictError, store.commit_runtime_state(foreign))


async def test_c3_a_rerun_with_new_ids_is_told_the_leaf_that_was_written(lab: Lab) -> None:
    """A turn that is run again mints new ids and times; the answer names the node that the first run wrote."""
    store = await lab.store()
    lease = await lane(store)
    await store.commit_runtime_state(commit(lease, None, *chain("a", "b")).with_turn_commit("t1"))
    rerun = (node("x", None, when="2025-01-01T00:00:00Z"), node("y", "x", when="2025-01-01T00:00:01Z"))
    again = await store.commit_runtime_state(commit(lease, None, *rerun).with_turn_commit("t1"))
    assert (again.replayed, again.leaf_node_id) == (True, "b")
    assert await node_ids(store) == ["a", "b"]


@pytest.mark.parametrize("fault", ["missing", "token", "fencing", "incarnation", "owner", "expired", "released", "old"])
async def test_c4_a_commit_needs_the_live_lease(lab: Lab, fault: str) -> None:
    """A fence that differs from the live lease in any part, or whose lease is no longer live, settles nothing."""
    store = await lab.store()
    lease = await lane(store)
    fence = lease.fence()
    fences: dict[str, Any] = {
        "missing": None,
        "token": other_token(fence),
        "fencing": msgspec.structs.replace(fence, fencing_token=2),
        "incarnation": msgspec.structs.replace(fence, owner=owner("alice", "alice-2")),
        "owner": msgspec.structs.replace(fence, owner=owner("mallory", "alice-1")),
    }
    if fault == "expired":
        lab.clock.advance(30_000)
    if fault == "released":
        await release(store, lease)
    if fault == "old":
        await lane(store)
    attempt = commit(lease, None, *chain("a"), session_execution_lease=fences.get(fault, fence))
    await refused(lab, LeaseExpiredError, store.commit_runtime_state(attempt))
    assert await (await lab.reopen()).load_head() is None


async def test_c4_a_lease_is_live_until_the_millisecond_of_its_expiry(lab: Lab) -> None:
    """One millisecond before the expiry the commit lands; at the expiry it does not."""
    store = await lab.store()
    lease = await lane(store)
    lab.clock.advance(29_999)
    await store.commit_runtime_state(commit(lease, None, *chain("a")))
    lab.clock.advance(1)
    await refused(lab, LeaseExpiredError, store.commit_runtime_state(commit(lease, 1, node("b", "a"))))


@pytest.mark.parametrize("wrong", [None, 0, 1, 3])
async def test_c5_the_expected_revision_must_be_the_head(lab: Lab, wrong: int | None) -> None:
    """A revision behind or before the head is a conflict, and None does not skip the check."""
    store = await lab.store()
    await turn(store, *chain("a"))
    await turn(store, node("b", "a"))
    lease = await lane(store)
    error = await refused(
        lab, HeadRevisionConflictError, store.commit_runtime_state(commit(lease, wrong, node("c", "b")))
    )
    assert (error.expected, error.actual) == (wrong, 2)


async def test_c5_a_revision_where_there_is_no_head_is_a_conflict(lab: Lab) -> None:
    """Before the first commit only None is right."""
    store = await lab.store()
    lease = await lane(store)
    for wrong in (0, 1):
        await refused(lab, HeadRevisionConflictError, store.commit_runtime_state(commit(lease, wrong, *chain("a"))))
    assert (await store.commit_runtime_state(commit(lease, None, *chain("a")))).head_revision == 1


FAULTS: dict[str, type[Exception]] = {
    "limits": InvalidInputError,
    "binding": SessionBindingMismatchError,
    "stamp": TurnCommitConflictError,
    "lease": LeaseExpiredError,
    "revision": HeadRevisionConflictError,
    "claims": QueuedWorkClaimExpiredError,
    "graph": GraphInvalidError,
    "blobs": UnknownBlobRefError,
    "attachments": AttachmentNotInManifestError,
}
"""The checks of a commit, in the order in which they are made, and what each raises."""


def broken(base: RuntimeCommit, faults: tuple[str, ...], turn_id: str) -> RuntimeCommit:
    """The commit with all these faults in it at once."""
    fields: dict[str, Any] = {"graph": append(node("new", "a"))}
    if "limits" in faults:
        fields["usage_deltas"] = (usage(-1),)
    if "binding" in faults:
        fields["session_id"] = "other"
    if "lease" in faults:
        fields["session_execution_lease"] = None
    if "revision" in faults:
        fields["expected_head_revision"] = 9
    if "claims" in faults:
        fields["completed_queue_claims"] = (QueuedWorkCompletion("s", "nobody's", 1, ("no-batch",)),)
    if "graph" in faults:
        fields["graph"] = append(node("new", "no such parent"))
    if "blobs" in faults:
        fields["checkpoint"] = HydratedSessionCheckpoint(PersistedTurnState(), tool_state=BlobRef("0" * 64))
    if "attachments" in faults:
        fields["committed_attachment_ids"] = (content_id("nowhere"),)
    made = msgspec.structs.replace(base, **fields)
    return made.with_turn_commit("taken" if "stamp" in faults else turn_id)


async def test_c7_the_first_check_that_fails_is_the_error(lab: Lab) -> None:
    """Of a commit that is wrong in every way at once, the error is the first in order; each writes nothing (C8)."""
    store = await lab.store()
    await lab.store("other")
    lease = await lane(store)
    await store.commit_runtime_state(commit(lease, None, *chain("a")).with_turn_commit("taken"))
    base = commit(lease, 1)
    names = tuple(FAULTS)
    for at, name in enumerate(names):
        attempt = broken(base, names[at:], "t2")
        await refused(lab, FAULTS[name], store.commit_runtime_state(attempt))  # type: ignore[type-var]
    assert (await store.commit_runtime_state(broken(base, (), "t2"))).head_revision == 2
    await lab.factory.delete_session("s")
    await refused(lab, InvalidInputError, store.commit_runtime_state(broken(base, names, "t3")))
    await refused(lab, SessionDeletedError, store.commit_runtime_state(broken(base, names[1:], "t3")))


async def test_c7_the_revision_advances_by_exactly_one(lab: Lab) -> None:
    """However much or little a commit carries, the head's revision goes up by one."""
    store = await lab.store()
    lease = await lane(store)
    revisions = []
    for at, nodes in enumerate((chain("a", "b", "c"), (), (node("d", "c"),))):
        graph = append(*nodes) if nodes else Unchanged("c")
        revisions.append((await store.commit_runtime_state(commit(lease, at or None, graph=graph))).head_revision)
    assert revisions == [1, 2, 3]
    assert await revision(await lab.reopen()) == 3
