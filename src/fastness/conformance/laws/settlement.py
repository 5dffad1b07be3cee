"""The laws of what a commit leaves behind: failures, usage, cost, lost answers, the outbox (C8, C10 to C14)."""

from __future__ import annotations

import asyncio

import msgspec

from fastness.conformance.builders import (
    ALICE,
    BOB,
    WHEN,
    append,
    chain,
    checkpoint,
    claim_inputs,
    claim_work,
    commit,
    kinds,
    lane,
    loaded,
    node,
    node_ids,
    said,
    texts,
    turn,
    usage,
    work,
)
from fastness.conformance.lab import Lab, differences, refused, sql_of
from fastness.conformance.subject import Power
from fastness.errors import (
    GraphInvalidError,
    InputSourceKeyConflictError,
    LeaseExpiredError,
    StoreError,
)
from fastness.model import (
    AgentFrameRecord,
    Append,
    PersistedSessionConfig,
    SessionStoreCreateRequest,
    TokenUsage,
)
from fastness.sql.program import Many, Read, Write


async def test_c8_a_failed_commit_leaves_its_claims_held(lab: Lab) -> None:
    """After a commit that failed, its claims are still live and the corrected commit settles them."""
    store = await lab.store()
    await store.enqueue_pending_turn_input(said("hi"))
    await store.enqueue_queued_work(work())
    lease = await lane(store)
    inputs = await claim_inputs(store, lease)
    batches = await claim_work(store, lease)
    wrong = (
        commit(lease, None, node("a", "nowhere")).completing_turn_input_claim(inputs).completing_queue_claim(batches)
    )
    await refused(lab, GraphInvalidError, store.commit_runtime_state(wrong))
    assert await store.list_pending_turn_inputs("s") == []
    assert await store.list_pending_queued_work("s") == []
    right = msgspec.structs.replace(wrong, graph=append(*chain("a")))
    assert (await store.commit_runtime_state(right)).head_revision == 1


class CutError(Exception):
    """The fault that the kit puts before a batch."""


class Cut:
    """Lets so many batches pass and raises before the next, and before every one after it."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __call__(self, _batch: Read | Write | None) -> None:
        self.left -= 1
        if self.left < 0:
            raise CutError


async def test_c8_a_commit_that_is_cut_off_anywhere_leaves_no_trace(lab: Lab) -> None:
    """Before any of its batches and before COMMIT: nothing of it is there, and sent again it lands."""
    lab.needs(Power.BATCHES)
    landed = None
    for point in range(100):
        store = await lab.store(f"s{point}")
        lease = await lane(store, session_id=f"s{point}")
        whole = commit(lease, None, *chain("a", "b"), usage_deltas=(usage(1),), checkpoint=checkpoint(1))
        whole = whole.with_outbox(said("later", session_id=f"s{point}")).with_turn_commit("t1")
        before = await lab.snapshot()
        lab.on_batch = Cut(point)
        try:
            landed = await store.commit_runtime_state(whole)
            break
        except (CutError, StoreError):
            assert differences(before, await lab.snapshot()) == {}, f"cut off at point {point}, and something is there"
        finally:
            lab.on_batch = None
        again = await store.commit_runtime_state(whole)
        assert (again.head_revision, again.replayed) == (1, False)
    assert landed is not None
    assert landed.replayed is False
    assert point >= 1, "no batch of the commit was seen"


async def test_c10_usage_adds_up_per_source_and_model_in_all_five_counters(lab: Lab) -> None:
    """Deltas of one pair add up within a commit and across commits; other pairs stay apart."""
    store = await lab.store()
    lease = await lane(store)
    first = (usage(1, 2, 3, 4, 5), usage(10, 20, 30, 40, 50), usage(1, source="compaction"))
    await store.commit_runtime_state(commit(lease, None, usage_deltas=first))
    await store.commit_runtime_state(
        commit(lease, 1, usage_deltas=(usage(100, 200, 300, 400, 500), usage(2, model="n")))
    )
    async for handle in lab.handles(store):
        read = await loaded(handle)
        found = {(entry.source, entry.model): entry.usage for entry in read.head.ledger}
        assert found == {
            ("turn", "m"): TokenUsage(111, 222, 333, 444, 555),
            ("compaction", "m"): TokenUsage(1),
            ("turn", "n"): TokenUsage(2),
        }


def cost_of(batches: list[Read | Write]) -> tuple[int, int]:
    """How many statements and how many rows of parameters some batches send."""
    statements = [statement for batch in batches for statement in batch.statements]
    return len(statements), sum(len(item.rows) if isinstance(item, Many) else 1 for item in statements)


async def test_c11_a_commit_costs_the_same_on_a_short_and_on_a_long_session(lab: Lab) -> None:
    """The same turn sends as many statements and rows to a session of 2 nodes as to one of 600, and counts nothing."""
    costs = {}
    for session_id, length in (("short", 2), ("long", 600)):
        store = await lab.store(session_id)
        ids = [f"n{at}" for at in range(length)]
        frames = tuple(AgentFrameRecord(f"f{at}", WHEN) for at in range(length // 2))
        await turn(store, *chain(*ids), session_id=session_id, agent_frames=frames)
        lease = await lane(store, session_id=session_id)
        lab.seen.clear()
        await store.commit_runtime_state(
            commit(lease, 1, node("new", ids[-1]), usage_deltas=(usage(1),), checkpoint=checkpoint(2))
        )
        costs[session_id] = cost_of(lab.seen)
        assert [item for batch in lab.seen for item in batch.statements if "count(" in sql_of(item)] == []
    assert costs["short"] == costs["long"]


async def test_c12_a_commit_whose_answer_was_lost_lands_once(lab: Lab) -> None:
    """A holder that lost the answer re-enters, sends the stamped commit under the new fence, and it is there once."""
    store = await lab.store()
    lease = await lane(store)
    stamped = commit(lease, None, *chain("a"), usage_deltas=(usage(7),)).with_turn_commit("t1")
    await store.commit_runtime_state(stamped)
    again = await lab.reopen()
    entry = await lane(again, ALICE)
    result = await again.commit_runtime_state(
        stamped.with_session_execution_lease(entry.fence()).releasing_session_execution_lease(entry.completion())
    )
    assert (result.head_revision, result.replayed) == (1, True)
    read = await loaded(again)
    assert read.head.ledger == (usage(7),)
    assert (await lane(again, BOB)).fencing_token == 2


async def test_c12_a_commit_that_never_arrived_lands_under_the_new_fence(lab: Lab) -> None:
    """A stamped commit that did not land the first time lands under the fence of the next entry."""
    store = await lab.store()
    lease = await lane(store)
    stamped = commit(lease, None, *chain("a")).with_turn_commit("t1")
    entry = await lane(store)
    await refused(lab, LeaseExpiredError, store.commit_runtime_state(stamped))
    result = await store.commit_runtime_state(stamped.with_session_execution_lease(entry.fence()))
    assert (result.head_revision, result.replayed) == (1, False)


async def test_c13_a_cancelled_commit_is_whole_or_absent_and_can_be_sent_again(lab: Lab) -> None:
    """Whenever the caller is cancelled, the commit lands whole or not at all, and sending it again lands once."""
    store = await lab.store()
    lease = await lane(store, ttl_ms=10_000_000)
    above: str | None = None
    for at in range(25):
        pair = (node(f"{at}a", above), node(f"{at}b", f"{at}a"))
        stamped = commit(lease, at or None, *pair, usage_deltas=(usage(1),)).with_turn_commit(f"t{at}")
        waiting = asyncio.create_task(store.commit_runtime_state(stamped))
        for _ in range(at % 5):
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert len(await node_ids(store)) in (2 * at, 2 * at + 2)
        result = await store.commit_runtime_state(stamped)
        assert result.head_revision == at + 1
        above = f"{at}b"
    read = await loaded(await lab.reopen())
    assert (len(read.graph.nodes), read.head.ledger) == (50, (usage(25),))


async def test_c14_the_outbox_is_enqueued_with_the_commit(lab: Lab) -> None:
    """Drafts for this session, another one and an unknown one are there after the commit, in their order."""
    store = await lab.store()
    await lab.store("other")
    lease = await lane(store)
    drafts = (said("mine"), said("theirs", session_id="other"), work(session_id="new"), said("mine too"))
    await store.commit_runtime_state(commit(lease, None, *chain("a")).with_outbox(*drafts))
    again = await lab.reopen()
    assert texts(await again.list_pending_turn_inputs("s")) == ["mine", "mine too"]
    assert texts(await again.list_pending_turn_inputs("other")) == ["theirs"]
    assert kinds(await again.list_queued_work("new")) == ["task"]
    await lab.assert_sound()


async def test_c14_the_outbox_of_a_failed_commit_is_not_enqueued(lab: Lab) -> None:
    """A commit that fails, also one that fails for its outbox, wakes no session and enqueues nothing."""
    store = await lab.store()
    await store.enqueue_pending_turn_input(said("first", session_id="other", key="k"))
    lease = await lane(store)
    dangling = commit(lease, None, node("a", "nowhere")).with_outbox(said("x"), work(session_id="new"))
    await refused(lab, GraphInvalidError, store.commit_runtime_state(dangling))
    conflicting = commit(lease, None, *chain("a")).with_outbox(said("x"), said("y", session_id="other", key="k"))
    await refused(lab, InputSourceKeyConflictError, store.commit_runtime_state(conflicting))


async def test_c14_a_replay_does_not_enqueue_again(lab: Lab) -> None:
    """The outbox of a turn that was settled before is not enqueued a second time."""
    store = await lab.store()
    lease = await lane(store)
    stamped = commit(lease, None, *chain("a")).with_outbox(said("x"), work()).with_turn_commit("t1")
    await store.commit_runtime_state(stamped)
    await store.commit_runtime_state(stamped)
    assert texts(await store.list_pending_turn_inputs("s")) == ["x"]
    assert len(await store.list_queued_work("s")) == 1


async def test_c14_a_replay_brings_no_session_back_to_life(lab: Lab) -> None:
    """A session that was woken by a turn and deleted since stays away when the turn is sent again."""
    store = await lab.store()
    lease = await lane(store)
    stamped = commit(lease, None, *chain("a")).with_outbox(said("x", session_id="woken")).with_turn_commit("t1")
    await store.commit_runtime_state(stamped)
    await lab.factory.delete_session("woken")
    assert (await store.commit_runtime_state(stamped)).replayed is True
    assert await lab.factory.open_existing_store(SessionStoreCreateRequest("woken")) is None


async def test_c1_a_commit_keeps_what_it_does_not_name(lab: Lab) -> None:
    """Config, current frame and checkpoint stay as the head has them where a commit leaves them out."""
    store = await lab.store()
    lease = await lane(store)
    config = PersistedSessionConfig("openai", "gpt")
    await store.commit_runtime_state(
        commit(
            lease,
            None,
            *chain("a"),
            config=config,
            agent_frames=(AgentFrameRecord("f1", WHEN),),
            current_agent_frame_id="f1",
            checkpoint=checkpoint(1, tool_state=b"x"),
        )
    )
    await store.commit_runtime_state(commit(lease, 1, graph=Append((node("b", "a"),), "b")))
    read = await loaded(await lab.reopen())
    assert read.head.meta.config == config
    assert read.head.meta.current_agent_frame_id == "f1"
    assert read.checkpoint == checkpoint(1, tool_state=b"x")
