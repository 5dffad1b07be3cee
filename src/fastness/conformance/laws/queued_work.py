"""The laws of queued work (W1 to W6)."""

from __future__ import annotations

import pytest

from fastness.conformance.builders import chain, command, commit, kinds, lane, some, task, work
from fastness.conformance.lab import Lab, refused
from fastness.errors import InvalidInputError
from fastness.model import (
    DeliveryPolicy,
    Group,
    MergeKey,
    Never,
    PayloadDefault,
    ProcessWake,
    QueuedWorkBatch,
    QueuedWorkClaim,
    QueuedWorkItem,
    RuntimePersistence,
    SessionExecutionLease,
    Task,
    raw_json,
)

GROUP = Group("g")


async def claim(
    store: RuntimePersistence, lease: SessionExecutionLease, limit: int = 10, *, at_checkpoint: bool = False
) -> QueuedWorkClaim | None:
    """Claim ready work, when idle or at a checkpoint of a running turn."""
    boundary = "active_turn_checkpoint" if at_checkpoint else "idle"
    return await store.claim_ready_queued_work(
        "s",
        lease.fence(),
        boundary=boundary,  # type: ignore[arg-type]
        max_batches=limit,
    )


def taken(granted: QueuedWorkClaim | None) -> list[str]:
    """The kinds of the batches of a claim; nothing where nothing was granted."""
    return [] if granted is None else kinds(granted.batches)


async def fill(store: RuntimePersistence, *batches: tuple[str, MergeKey] | str, slot: str = "join") -> list[str]:
    """Enqueue batches of these kinds; a bare kind never merges. Gives their ids."""
    made = []
    for batch in batches:
        kind, merge = (batch, None) if isinstance(batch, str) else batch
        draft = work(task(kind), merge=merge, slot=slot)  # type: ignore[arg-type]
        made.append((await store.enqueue_queued_work(draft)).batch_id)
    return made


async def test_w1_a_batch_is_kept_as_it_was_made(lab: Lab) -> None:
    """A batch has the draft's payloads as numbered items, its policies, and the next admission number."""
    store = await lab.store()
    payloads = (Task("a", raw_json([1])), ProcessWake(raw_json({"pid": 7})))
    batch = await store.enqueue_queued_work(work(*payloads, merge=GROUP, key="k", at_ms=lab.start_ms + 5))
    wanted = QueuedWorkBatch(
        "s",
        batch.batch_id,
        1,
        "pending",
        "turn_work",
        "earliest_safe_boundary",
        "join",
        GROUP,
        (
            QueuedWorkItem(f"{batch.batch_id}/0", payloads[0]),
            QueuedWorkItem(f"{batch.batch_id}/1", payloads[1]),
        ),
        "k",
        lab.start_ms + 5,
        lab.start_ms,
    )
    assert batch == wanted
    async for handle in lab.handles(store):
        assert await handle.list_queued_work("s") == [wanted]
        assert await handle.list_pending_queued_work("s") == [wanted]


@pytest.mark.parametrize("state", ["pending", "claimed", "completed", "cancelled"])
async def test_w1_a_key_returns_the_original_batch_with_its_state(lab: Lab, state: str) -> None:
    """Whatever the new content is and whatever became of the batch, its key gives the batch, and nothing is added."""
    store = await lab.store()
    first = await store.enqueue_queued_work(work(task("first"), key="k"))
    lease = await lane(store)
    if state == "cancelled":
        assert await store.cancel_queued_work_batch("s", first.batch_id) is not None
    elif state != "pending":
        granted = some(await claim(store, lease))
        if state == "completed":
            await store.commit_runtime_state(commit(lease, None, *chain("a")).completing_queue_claim(granted))
    async with lab.unchanged():
        async for handle in lab.handles(store):
            again = await handle.enqueue_queued_work(work(command("other"), key="k"))
            assert (again.batch_id, again.state, again.items) == (first.batch_id, state, first.items)


async def test_w1_a_key_is_free_again_once_its_evidence_is_gone(lab: Lab) -> None:
    """After a vacuum of the evidence the key makes a new batch."""
    store = await lab.store()
    first = await store.enqueue_queued_work(work(key="k"))
    await store.cancel_queued_work_batch("s", first.batch_id)
    assert (await store.vacuum()).removed_queue_evidence_count == 1
    again = await store.enqueue_queued_work(work(key="k"))
    assert (again.state, again.admission_seq) == ("pending", 2)


async def test_w2_a_command_at_the_head_blocks_turn_work(lab: Lab) -> None:
    """Behind a session command no turn work is granted; commands come one at a time."""
    store = await lab.store()
    await store.enqueue_queued_work(work(command("a"), command("b"), merge=GROUP))
    await store.enqueue_queued_work(work(command("c"), merge=GROUP))
    await fill(store, "work")
    lease = await lane(store)
    assert await claim(store, lease) is None
    first = some(await store.claim_leading_ready_session_command("s", lease.fence()))
    assert [len(batch.items) for batch in first.batches] == [2]
    # While it is held it is not in the ready queue, whose head is the next command.
    assert await claim(store, lease) is None
    second = await store.claim_leading_ready_session_command("s", lease.fence())
    assert taken(second) == ["command"]
    assert await store.claim_leading_ready_session_command("s", lease.fence()) is None
    assert taken(await claim(store, lease)) == ["work"]


async def test_w2_turn_work_at_the_head_blocks_commands(lab: Lab) -> None:
    """A command behind turn work has to wait for it."""
    store = await lab.store()
    await fill(store, "work")
    await store.enqueue_queued_work(work(command()))
    lease = await lane(store)
    assert await store.claim_leading_ready_session_command("s", lease.fence()) is None
    assert taken(await claim(store, lease)) == ["work"]
    assert taken(await store.claim_leading_ready_session_command("s", lease.fence())) == ["command"]


@pytest.mark.parametrize("policy", ["earliest_safe_boundary", "after_current_turn_commit"])
async def test_w3_a_checkpoint_admits_only_work_for_the_earliest_boundary(lab: Lab, policy: DeliveryPolicy) -> None:
    """Inside a turn, work for after its commit waits, and what is behind it with it; when idle either goes."""
    store = await lab.store()
    await store.enqueue_queued_work(work(task("head"), delivery=policy))
    await store.enqueue_queued_work(work(task("behind")))
    lease = await lane(store)
    admitted = policy == "earliest_safe_boundary"
    assert taken(await claim(store, lease, at_checkpoint=True)) == (["head"] if admitted else [])
    if not admitted:
        assert taken(await claim(store, lease)) == ["head"]
    assert taken(await claim(store, lease, at_checkpoint=True)) == ["behind"]


async def test_w4_an_exclusive_head_is_claimed_alone(lab: Lab) -> None:
    """Exclusive work shares its claim with nobody, whatever its merge key."""
    store = await lab.store()
    await fill(store, ("a", GROUP), ("b", GROUP), slot="exclusive")
    await fill(store, ("c", GROUP))
    lease = await lane(store)
    assert [taken(await claim(store, lease)) for _ in range(4)] == [["a"], ["b"], ["c"], []]


async def test_w4_a_joinable_head_takes_those_that_follow_with_its_policy_and_key(lab: Lab) -> None:
    """The run ends at the first batch of another key, and at the limit; nothing is skipped."""
    store = await lab.store()
    await fill(store, ("a", GROUP), ("b", GROUP), ("c", GROUP), ("d", Group("h")), ("e", GROUP))
    lease = await lane(store)
    assert taken(await claim(store, lease, 2)) == ["a", "b"]
    assert taken(await claim(store, lease)) == ["c"]
    assert taken(await claim(store, lease)) == ["d"]
    assert taken(await claim(store, lease)) == ["e"]


@pytest.mark.parametrize("stop", ["exclusive", "policy", "command", "default", "never"])
async def test_w4_a_run_ends_where_a_batch_cannot_join(lab: Lab, stop: str) -> None:
    """An exclusive batch, another delivery policy, a command and another kind of key each end the run."""
    store = await lab.store()
    await fill(store, ("a", GROUP))
    odd = {
        "exclusive": work(task("x"), merge=GROUP, slot="exclusive"),
        "policy": work(task("x"), merge=GROUP, delivery="after_current_turn_commit"),
        "command": work(command(), merge=GROUP),
        "default": work(task("x"), merge=PayloadDefault()),
        "never": work(task("x"), merge=Never()),
    }
    await store.enqueue_queued_work(odd[stop])
    await fill(store, ("b", GROUP))
    assert taken(await claim(store, await lane(store))) == ["a"]


async def test_w4_never_merges_with_nothing(lab: Lab) -> None:
    """Not even with another that never merges."""
    store = await lab.store()
    await fill(store, "a", "b")
    assert taken(await claim(store, await lane(store))) == ["a"]


async def test_w4_the_payload_default_merges_with_itself(lab: Lab) -> None:
    """Batches of the default key share a claim."""
    store = await lab.store()
    await fill(store, ("a", PayloadDefault()), ("b", PayloadDefault()))
    assert taken(await claim(store, await lane(store))) == ["a", "b"]


async def test_w4_held_and_future_batches_are_not_in_the_ready_queue(lab: Lab) -> None:
    """A run passes over what is held and what is not ready yet; at its very time a batch is ready."""
    store = await lab.store()
    await fill(store, ("a", GROUP))
    lease = await lane(store)
    held = await claim(store, lease)
    assert taken(held) == ["a"]
    await fill(store, ("b", GROUP))
    await store.enqueue_queued_work(work(task("future"), merge=Group("h"), at_ms=lab.start_ms + 10))
    await fill(store, ("c", GROUP))
    assert taken(await claim(store, lease)) == ["b", "c"]
    lab.clock.advance(9)
    assert await claim(store, lease) is None
    lab.clock.advance(1)
    assert taken(await claim(store, lease)) == ["future"]


async def test_w5_an_exact_claim_gets_all_the_ids_in_order_or_none(lab: Lab) -> None:
    """The ids have to be what leads the ready queue; a hole, another order or an unknown id grants nothing."""
    store = await lab.store()
    a, b, c = await fill(store, ("a", GROUP), ("b", GROUP), ("c", GROUP))
    lease = await lane(store)
    async with lab.unchanged():
        for ids in ([b], [b, c], [a, c], [b, a], [a, a], [a, "unknown"], ["unknown"]):
            got = await store.claim_ready_queued_work_by_batch_ids("s", lease.fence(), boundary="idle", batch_ids=ids)
            assert got is None, f"{ids} of {[a, b, c]} were granted as {got}"
    got = await store.claim_ready_queued_work_by_batch_ids("s", lease.fence(), boundary="idle", batch_ids=[a, b])
    assert taken(got) == ["a", "b"]
    assert kinds(await (await lab.reopen()).list_pending_queued_work("s")) == ["c"]


async def test_w5_an_exact_claim_never_skips_earlier_work(lab: Lab) -> None:
    """Work behind another batch, a command or a head that the boundary does not admit is not granted by name."""
    store = await lab.store()
    await store.enqueue_queued_work(work(task("later"), delivery="after_current_turn_commit"))
    (second,) = await fill(store, "second")
    lease = await lane(store)
    for boundary in ("active_turn_checkpoint", "idle"):
        got = await store.claim_ready_queued_work_by_batch_ids(
            "s",
            lease.fence(),
            boundary=boundary,
            batch_ids=[second],
        )
        assert got is None


async def test_w6_cancel_removes_only_what_no_live_claim_holds(lab: Lab) -> None:
    """A waiting batch goes and is returned as cancelled; a held, cancelled, completed or unknown one is None."""
    store = await lab.store()
    held, free = await fill(store, "held", "free")
    lease = await lane(store)
    granted = some(await claim(store, lease))
    assert await store.cancel_queued_work_batch("s", held) is None
    gone = some(await store.cancel_queued_work_batch("s", free))
    assert (gone.batch_id, gone.state) == (free, "cancelled")
    assert await store.cancel_queued_work_batch("s", free) is None
    assert await store.cancel_queued_work_batch("s", "unknown") is None
    assert await store.cancel_queued_work_batch("no such session", held) is None
    await store.commit_runtime_state(commit(lease, None, *chain("a")).completing_queue_claim(granted))
    async for handle in lab.handles(store):
        assert await handle.cancel_queued_work_batch("s", held) is None
        assert await handle.list_queued_work("s") == []


async def test_w6_an_empty_or_mixed_batch_is_refused(lab: Lab) -> None:
    """A batch has at least one item, and all of one class."""
    store = await lab.store()
    empty = work()
    await refused(
        lab, InvalidInputError, store.enqueue_queued_work(type(empty)("s", "earliest_safe_boundary", "join", ()))
    )
    await refused(lab, InvalidInputError, store.enqueue_queued_work(work(task(), command())))


async def test_w1_work_shows_in_lists_as_what_it_is(lab: Lab) -> None:
    """The full list has held batches, marked as claimed; the pending one does not; settled ones are in neither."""
    store = await lab.store()
    await fill(store, "a", "b")
    lease = await lane(store)
    await claim(store, lease)
    async for handle in lab.handles(store):
        full = await handle.list_queued_work("s")
        assert [(batch.state, batch.items[0].payload) for batch in full] == [
            ("claimed", task("a")),
            ("pending", task("b")),
        ]
        assert kinds(await handle.list_pending_queued_work("s")) == ["b"]
    lab.clock.advance(30_000)
    assert [batch.state for batch in await (await lab.reopen()).list_queued_work("s")] == ["pending", "pending"]
