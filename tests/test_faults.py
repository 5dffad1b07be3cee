"""A fault before any batch of any operation, and before its COMMIT, leaves no trace; sent again, the call succeeds."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fastness.conformance.builders import (
    ALICE,
    BOB,
    TTL_MS,
    WHEN,
    chain,
    checkpoint,
    command,
    commit,
    content_id,
    intent,
    lane,
    node,
    owner,
    release,
    said,
    said_now,
    turn,
    usage,
    work,
)
from fastness.conformance.lab import START_MS, Lab, differences
from fastness.errors import StoreError
from fastness.model import (
    AgentFrameRecord,
    AttachmentReclaimGrant,
    ByInputId,
    Child,
    FullGraph,
    LeaseOwnerIdentity,
    LocalProcess,
    QueuedWorkClaim,
    RuntimePersistence,
    SessionExecutionLease,
    SessionMeta,
    SessionStoreCreateRequest,
    TurnInputClaim,
    process_execution_env_ref,
)
from fastness.model.protocols import ProcessExecutionEnvStore, SessionStoreFactory
from fastness.sql.program import Read, Write

DEAD = LocalProcess("host", "boot", 1, "1")


class Injected(Exception):  # noqa: N818 - it is no error of ours
    """The fault."""


class Fault:
    """Raises at one point, counted from 0, and lets all others pass."""

    def __init__(self, point: int) -> None:
        self.left = point
        self.came = False

    def __call__(self, _batch: Read | Write | None) -> None:
        if self.left == 0:
            self.came = True
            raise Injected
        self.left -= 1


class Scene:
    """A session in the middle of a turn, with something for every operation to do."""

    def __init__(self, lab: Lab, store: RuntimePersistence) -> None:
        self.lab = lab
        self.store = store
        self.lease: SessionExecutionLease
        self.crashed: SessionExecutionLease
        self.inputs: TurnInputClaim
        self.work: QueuedWorkClaim
        self.batch_id = ""
        self.grant: AttachmentReclaimGrant

    async def set(self) -> Scene:
        """Set the scene."""
        store = self.store
        lease = await lane(store)
        await store.commit_runtime_state(
            commit(lease, None, *chain("a", "b", "c"), checkpoint=checkpoint(1, tool_state=b"old")).with_turn_commit(
                "t0"
            )
        )
        await store.commit_runtime_state(commit(lease, 1, *chain("d", after="a"), checkpoint=checkpoint(2)))
        await store.tombstone_nodes(["d"])
        await store.enqueue_pending_turn_input(said("gone", input_id="gone"))
        await store.cancel_pending_turn_input("s", "gone")
        self.lease = lease
        await store.enqueue_pending_turn_input(said("held", key="k"))
        await store.enqueue_queued_work(work())
        inputs = await store.claim_next_turn_inputs("s", lease.fence(), max_inputs=1)
        batches = await store.claim_ready_queued_work("s", lease.fence(), boundary="idle", max_batches=1)
        assert inputs is not None
        assert batches is not None
        self.inputs, self.work = inputs, batches
        await store.enqueue_pending_turn_input(said("next", input_id="next"))
        await store.enqueue_pending_turn_input(said_now("now"))
        self.batch_id = (await store.enqueue_queued_work(work())).batch_id
        await store.record_intent(intent(content_id("a")))
        await store.record_intent(intent(content_id("b")))
        self.grant = await store.begin_reclaim([content_id("b")], older_than_epoch_ms=START_MS)
        self.crashed = await lane(store, owner("crashed", "1", DEAD), session_id="crashed")
        await store.enqueue_queued_work(work(command(), session_id="crashed"))
        self.lab.dead.add(DEAD)
        return self

    def settlement(self) -> Any:
        """A commit with all that a commit can have."""
        fields = {
            "agent_frames": (AgentFrameRecord("f", WHEN),),
            "current_agent_frame_id": "f",
            "checkpoint": checkpoint(3, tool_state=b"new"),
            "usage_deltas": (usage(1, 2, 3, 4, 5),),
            "release_session_execution_lease": self.lease.completion(),
        }
        made = commit(self.lease, 3, node("e", "c"), **fields)
        made = made.completing_turn_input_claim(self.inputs).completing_queue_claim(self.work)
        made = made.deferring_interrupted_turn_inputs("t1").with_committed_attachments((content_id("a"),))
        return made.with_outbox(said("x"), work(session_id="new")).with_turn_commit("t1")


Operation = Callable[[Scene], Awaitable[object]]

STORE: dict[str, Operation] = {
    "load_session": lambda at: at.store.load_session(FullGraph()),
    "load_node": lambda at: at.store.load_node("a"),
    "commit_runtime_state": lambda at: at.store.commit_runtime_state(at.settlement()),
    "save_session_meta": lambda at: at.store.save_session_meta(SessionMeta("s", "n", WHEN, "m")),
    "load_session_meta": lambda at: at.store.load_session_meta(),
    "load_head": lambda at: at.store.load_head(),
    "record_intent": lambda at: at.store.record_intent(intent(content_id("c"), session_id="new")),
    "commit_refs": lambda at: at.store.commit_refs("s", [content_id("a")]),
    "holds_ref": lambda at: at.store.holds_ref("s", content_id("a")),
    "list_uncommitted": lambda at: at.store.list_uncommitted(START_MS),
    "begin_reclaim": lambda at: at.store.begin_reclaim([content_id("a")], older_than_epoch_ms=START_MS),
    "reclaim_left_ms": lambda at: at.store.reclaim_left_ms(at.grant),
    "finish_reclaim": lambda at: at.store.finish_reclaim(at.grant),
    "find_attachment": lambda at: at.store.find_attachment("s", content_id("a")),
    "list_attachments": lambda at: at.store.list_attachments(session_id="s"),
    "list_reclaimable": lambda at: at.store.list_reclaimable([content_id("c")], older_than_epoch_ms=START_MS),
    "release_unnamed": lambda at: at.store.release_unnamed([content_id("nobody's")]),
    "forget": lambda at: at.store.forget("s", content_id("a")),
    "try_claim_session_execution_lease": lambda at: at.store.try_claim_session_execution_lease("new", BOB, TTL_MS),
    "reclaim_session_execution_lease": lambda at: at.store.reclaim_session_execution_lease(
        "crashed", LeaseOwnerIdentity("bob", "2"), at.crashed.fence(), TTL_MS
    ),
    "renew_session_execution_lease": lambda at: at.store.renew_session_execution_lease(at.lease.fence(), 2 * TTL_MS),
    "release_session_execution_lease": lambda at: at.store.release_session_execution_lease(at.lease.completion()),
    "enqueue_pending_turn_input": lambda at: at.store.enqueue_pending_turn_input(said("x", session_id="new", key="x")),
    "list_pending_turn_inputs": lambda at: at.store.list_pending_turn_inputs("s"),
    "cancel_pending_turn_input": lambda at: at.store.cancel_pending_turn_input("s", "next"),
    "cancel_pending_turn_inputs": lambda at: at.store.cancel_pending_turn_inputs("s", [ByInputId("next")]),
    "cancel_pending_turn_input_suffix": lambda at: at.store.cancel_pending_turn_input_suffix("s", ByInputId("next")),
    "claim_active_turn_inputs": lambda at: at.store.claim_active_turn_inputs(
        "s", at.lease.fence(), turn_id="t1", checkpoint="after_work", max_inputs=5
    ),
    "claim_next_turn_inputs": lambda at: at.store.claim_next_turn_inputs("s", at.lease.fence(), max_inputs=5),
    "renew_turn_input_claim": lambda at: at.store.renew_turn_input_claim(at.inputs),
    "abandon_turn_input_claim": lambda at: at.store.abandon_turn_input_claim(at.inputs),
    "enqueue_queued_work": lambda at: at.store.enqueue_queued_work(work(session_id="new", key="x")),
    "claim_leading_ready_session_command": lambda at: at.store.claim_leading_ready_session_command(
        "crashed", at.crashed.fence()
    ),
    "claim_ready_queued_work": lambda at: at.store.claim_ready_queued_work(
        "s", at.lease.fence(), boundary="idle", max_batches=5
    ),
    "claim_ready_queued_work_by_batch_ids": lambda at: at.store.claim_ready_queued_work_by_batch_ids(
        "s", at.lease.fence(), boundary="idle", batch_ids=[at.batch_id]
    ),
    "renew_queued_work_claim": lambda at: at.store.renew_queued_work_claim(at.work),
    "abandon_queued_work_claim": lambda at: at.store.abandon_queued_work_claim(at.work),
    "cancel_queued_work_batch": lambda at: at.store.cancel_queued_work_batch("s", at.batch_id),
    "list_queued_work": lambda at: at.store.list_queued_work("s"),
    "list_pending_queued_work": lambda at: at.store.list_pending_queued_work("s"),
    "tombstone_nodes": lambda at: at.store.tombstone_nodes(["b", "c"]),
    "vacuum": lambda at: at.store.vacuum(receipts_older_than_ms=START_MS),
    "gc_unreachable": lambda at: at.store.gc_unreachable(),
}
FACTORY: dict[str, Operation] = {
    "create_store": lambda at: at.lab.factory.create_store(SessionStoreCreateRequest("new", Child("s"))),
    "open_existing_store": lambda at: at.lab.factory.open_existing_store(SessionStoreCreateRequest("s")),
    "delete_session": lambda at: at.lab.factory.delete_session("s"),
    "list_sessions": lambda at: at.lab.factory.list_sessions(),
}
ENVIRONMENT = b'{"cwd": "/srv"}'
ENVIRONMENTS: dict[str, Operation] = {
    "put_process_execution_env": lambda at: at.lab.factory.process_execution_envs.put_process_execution_env(
        process_execution_env_ref(ENVIRONMENT), ENVIRONMENT
    ),
    "get_process_execution_env": lambda at: at.lab.factory.process_execution_envs.get_process_execution_env("e"),
}
OPERATIONS = {**STORE, **FACTORY, **ENVIRONMENTS}
IN_PARTS = {"gc_unreachable"}
"""What works in several transactions, so that none of them is long: a fault leaves what was done before it."""
CHANGE_NOTHING = {
    name
    for name in OPERATIONS
    if name == "reclaim_left_ms"
    or name.startswith(("load_", "list_", "find_", "get_", "holds_", "open_", "renew_turn", "renew_queued"))
}


def coroutines_of(protocol: type) -> set[str]:
    """The names of all coroutines that a protocol asks for."""
    return {name for name, member in inspect.getmembers(protocol, inspect.iscoroutinefunction)}


def test_every_operation_of_the_protocols_is_faulted() -> None:
    """An operation that is added to a protocol has to be added here: the lists are the same."""
    assert set(STORE) == coroutines_of(RuntimePersistence)
    assert set(FACTORY) == coroutines_of(SessionStoreFactory)
    assert set(ENVIRONMENTS) == coroutines_of(ProcessExecutionEnvStore)


async def points_of(lab: Lab, operation: Operation) -> int:
    """How many points of failure an operation has: its batches and its COMMIT. It runs once to count them."""
    scene = await Scene(lab, await lab.store()).set()
    count = 0

    def note(_batch: Read | Write | None) -> None:
        nonlocal count
        count += 1

    lab.on_batch = note
    await operation(scene)
    lab.on_batch = None
    return count


async def start_over(lab: Lab) -> None:
    """Delete what a scene made."""
    for session_id in ("s", "crashed", "new"):
        await lab.factory.delete_session(session_id)
    for table in ("attachment_release", "attachment_mark", "environment"):
        await lab.execute_raw(f"delete from {table}")


@pytest.mark.parametrize("name", sorted({*OPERATIONS} - IN_PARTS))
async def test_a_fault_at_any_point_leaves_no_trace(lab: Lab, name: str) -> None:
    """Wherever the fault comes, every row stays as it was, and the same call then does what it would have done."""
    operation = OPERATIONS[name]
    points = await points_of(lab, operation)
    assert points >= 1
    for point in range(points):
        await start_over(lab)
        scene = await Scene(lab, await lab.store()).set()
        before = await lab.dump()
        fault = Fault(point)
        lab.on_batch = fault
        with pytest.raises((Injected, StoreError)):
            await operation(scene)
        lab.on_batch = None
        assert fault.came, f"point {point} of {name} was never reached"
        assert differences(before, await lab.dump()) == {}, f"a fault at point {point} of {points} left a trace"
        await operation(scene)
        changed = differences(before, await lab.dump()) != {}
        assert changed == (name not in CHANGE_NOTHING), f"{name} after a fault at point {point}: changed is {changed}"
    await lab.assert_sound()


async def test_a_collection_that_is_broken_off_at_any_point_is_completed_by_the_next(lab: Lab) -> None:
    """What sessions hold is as it was, and after another run the same rows are left as if nothing had happened."""
    points = await points_of(lab, OPERATIONS["gc_unreachable"])
    wanted = await lab.dump()
    assert points > 4
    for point in range(points):
        await start_over(lab)
        scene = await Scene(lab, await lab.store()).set()
        before = await scene.store.load_session(FullGraph())
        lab.on_batch = fault = Fault(point)
        with pytest.raises((Injected, StoreError)):
            await scene.store.gc_unreachable()
        lab.on_batch = None
        assert fault.came, f"point {point} was never reached"
        assert await scene.store.load_session(FullGraph()) == before
        await lab.assert_sound()
        await scene.store.gc_unreachable()
        left = await lab.dump()
        assert [ref for ref, _ in left["blob"]] == [ref for ref, _ in wanted["blob"]]
        assert len(left["blob_holder"]) == len(wanted["blob_holder"])


async def test_a_fault_in_one_program_does_not_touch_its_neighbours(lab: Lab) -> None:
    """Of many writes that are committed together, only the one that fails is refused, whichever it is."""
    store = await lab.store()
    lease = await lane(store, ALICE)
    await release(store, lease)
    await turn(store, *chain("root"))

    def fail(batch: Read | Write | None) -> None:
        if isinstance(batch, Write) and any("poison" in str(statement) for statement in batch.statements):
            raise Injected("poison")

    lab.on_batch = fail
    texts = [f"poison {at}" if at % 5 == 2 else f"good {at}" for at in range(20)]
    answers = await asyncio.gather(
        *(store.enqueue_pending_turn_input(said(text)) for text in texts), return_exceptions=True
    )
    lab.on_batch = None
    assert [isinstance(found, Injected) for found in answers] == ["poison" in text for text in texts]
    rows = await (await lab.reopen()).list_pending_turn_inputs("s")
    assert [row.admission_seq for row in rows] == list(range(1, 17))
    await lab.assert_sound()
