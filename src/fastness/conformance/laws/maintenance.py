"""The laws of maintenance and of a session's life (M2 to M5)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from fastness.conformance.builders import (
    ALICE,
    BOB,
    TTL_MS,
    WHEN,
    chain,
    checkpoint,
    claim_inputs,
    claim_work,
    commit,
    content_id,
    intent,
    lane,
    node,
    node_ids,
    release,
    revision,
    said,
    some,
    texts,
    turn,
    work,
)
from fastness.conformance.lab import Lab, differences, refused
from fastness.conformance.subject import Power
from fastness.errors import (
    DatabaseOpenError,
    HeadRevisionConflictError,
    RecordVersionInvalidError,
    RecordVersionMissingError,
    RecordVersionUnsupportedError,
    SessionDeletedError,
    StoreError,
)
from fastness.model import (
    AgentFrameRecord,
    AttachmentIntent,
    Child,
    FullGraph,
    PersistedSessionConfig,
    Root,
    RuntimePersistence,
    SessionMeta,
    SessionStoreCreateRequest,
    VacuumReport,
)


async def evidence(lab: Lab) -> RuntimePersistence:
    """A session with two tombstoned nodes, three receipts, and settled input and work of two times."""
    store = await lab.store()
    for at in range(2):
        lease = await lane(store)
        await store.enqueue_pending_turn_input(said(f"{at}", key=f"k{at}"))
        await store.enqueue_queued_work(work(key=f"w{at}"))
        inputs = await claim_inputs(store, lease)
        batches = await claim_work(store, lease)
        settled = commit(lease, at or None, node(f"n{at}", "n0" if at else None)).completing_turn_input_claim(inputs)
        settled = settled.completing_queue_claim(batches).with_turn_commit(f"t{at}")
        await store.commit_runtime_state(settled)
        lab.clock.advance(100)
    lease = await lane(store)
    await store.commit_runtime_state(commit(lease, 2, *chain("x", "y", after="n1")).with_turn_commit("t2"))
    await store.tombstone_nodes(["x", "y"])
    await store.enqueue_pending_turn_input(said("waiting"))
    await store.enqueue_queued_work(work())
    await release(store, lease)
    return store


async def test_m2_vacuum_removes_tombstones_and_terminal_evidence(lab: Lab) -> None:
    """By default all evidence goes and no receipt; live rows stay; a second run removes nothing."""
    store = await evidence(lab)
    assert await store.vacuum() == VacuumReport(2, 2, 2, 0)
    again = await lab.reopen()
    assert await again.vacuum() == VacuumReport(0, 0, 0, 0)
    assert await node_ids(again) == ["n0", "n1"]
    assert texts(await again.list_pending_turn_inputs("s")) == ["waiting"]
    assert len(await again.list_queued_work("s")) == 1
    await lab.assert_sound()


async def test_m2_cut_offs_are_inclusive(lab: Lab) -> None:
    """What was settled at the cut-off goes, what was settled a millisecond later stays."""
    store = await evidence(lab)
    assert await store.vacuum(evidence_older_than_ms=lab.start_ms - 1) == VacuumReport(2, 0, 0, 0)
    assert await store.vacuum(evidence_older_than_ms=lab.start_ms) == VacuumReport(0, 1, 1, 0)
    assert await store.vacuum(evidence_older_than_ms=lab.start_ms + 99) == VacuumReport(0, 0, 0, 0)
    assert await store.vacuum(evidence_older_than_ms=lab.start_ms, receipts_older_than_ms=lab.start_ms) == VacuumReport(
        0, 0, 0, 1
    )
    assert await store.vacuum(receipts_older_than_ms=lab.start_ms + 200) == VacuumReport(0, 1, 1, 2)


async def test_m2_after_its_receipt_is_gone_a_replay_is_a_revision_conflict(lab: Lab) -> None:
    """A turn without a receipt is like any other commit on an old revision: it does not land twice."""
    store = await lab.store()
    lease = await lane(store)
    stamped = commit(lease, None, *chain("a")).with_turn_commit("t1")
    await store.commit_runtime_state(stamped)
    assert (await store.vacuum(receipts_older_than_ms=lab.start_ms)).removed_receipt_count == 1
    store = await lab.reopen()
    await refused(lab, HeadRevisionConflictError, store.commit_runtime_state(stamped))
    await lab.assert_sound()


async def test_m2_vacuum_is_of_this_session(lab: Lab) -> None:
    """Another session's tombstones and evidence stay."""
    await evidence(lab)
    other = await lab.store("other")
    assert await other.vacuum(receipts_older_than_ms=lab.start_ms + 10_000) == VacuumReport(0, 0, 0, 0)


async def test_m3_creating_a_session_fills_in_what_is_missing(lab: Lab) -> None:
    """A new session is named by its id, has the given model and relation, and the time of now."""
    lab.needs(Power.CLOCK)
    request = SessionStoreCreateRequest("s", Child("parent", "call-1"), PersistedSessionConfig("openai", "gpt"))
    store = await lab.factory.create_store(request)
    wanted = SessionMeta("s", "s", "2023-11-14T22:13:20.000Z", "gpt", None, Child("parent", "call-1"))
    async for handle in lab.handles(store):
        assert await handle.load_session_meta() == wanted


async def test_m3_creating_again_never_overwrites(lab: Lab) -> None:
    """A second creation with other facts gives the same session with the metadata that it had."""
    store = await lab.store()
    meta = SessionMeta("s", "My trip", "2020-01-01T00:00:00Z", "gpt", "/work", Root())
    await store.save_session_meta(meta)
    await turn(store, *chain("a"))
    lab.clock.advance(5)
    again = await lab.factory.create_store(SessionStoreCreateRequest("s", Child("p"), PersistedSessionConfig("x", "y")))
    assert await again.load_session_meta() == meta
    assert await node_ids(again) == ["a"]


async def test_m3_creating_fills_a_session_that_an_enqueue_brought_to_life(lab: Lab) -> None:
    """What nobody has described yet is described by the creation, and what waits there stays."""
    lab.needs(Power.CLOCK)
    other = await lab.store("other")
    await other.enqueue_pending_turn_input(said("hi"))
    lab.clock.advance(5_000)
    request = SessionStoreCreateRequest("s", Child("other"), PersistedSessionConfig("openai", "gpt"))
    store = await lab.factory.create_store(request)
    wanted = SessionMeta("s", "s", "2023-11-14T22:13:20.000Z", "gpt", None, Child("other"))
    async for handle in lab.handles(store):
        assert await handle.load_session_meta() == wanted
        assert texts(await handle.list_pending_turn_inputs("s")) == ["hi"]


async def test_m3_opening_an_unknown_session_is_none(lab: Lab) -> None:
    """And it does not come to life by it."""
    async with lab.unchanged():
        assert await lab.factory.open_existing_store(SessionStoreCreateRequest("s")) is None


BIRTHS: dict[str, Callable[[RuntimePersistence], Awaitable[object]]] = {
    "input": lambda store: store.enqueue_pending_turn_input(said("hi", session_id="new")),
    "work": lambda store: store.enqueue_queued_work(work(session_id="new")),
    "lease": lambda store: store.try_claim_session_execution_lease("new", ALICE, TTL_MS),
    "intent": lambda store: store.record_intent(intent(content_id("a"), session_id="new")),
}
READS: dict[str, Callable[[RuntimePersistence], Awaitable[object]]] = {
    "inputs": lambda store: store.list_pending_turn_inputs("new"),
    "work": lambda store: store.list_queued_work("new"),
    "pending work": lambda store: store.list_pending_queued_work("new"),
    "cancel input": lambda store: store.cancel_pending_turn_input("new", "i"),
    "cancel work": lambda store: store.cancel_queued_work_batch("new", "b"),
    "holds": lambda store: store.holds_ref("new", content_id("a")),
    "forget": lambda store: store.forget("new", content_id("a")),
}


@pytest.mark.parametrize("birth", BIRTHS)
async def test_m3_enqueue_lease_and_intent_bring_a_session_to_life(lab: Lab, birth: str) -> None:
    """After it the session can be opened, and has a name and a time."""
    lab.needs(Power.CLOCK)
    store = await lab.store()
    await BIRTHS[birth](store)
    meta = some(await (await lab.reopen("new")).load_session_meta())
    assert (meta.session_name, meta.created_at) == ("new", "2023-11-14T22:13:20.000Z")
    await lab.assert_sound()


@pytest.mark.parametrize("read", READS)
async def test_m3_reads_bring_nothing_to_life(lab: Lab, read: str) -> None:
    """Looking at an unknown session, or cancelling in it, makes none."""
    store = await lab.store()
    async with lab.unchanged():
        await READS[read](store)


async def test_m3_deleting_a_session_removes_all_of_it(lab: Lab) -> None:
    """No table has a row of it afterwards, except its attachments as releases; twice is fine; others stay."""
    await (await lab.store("other")).enqueue_pending_turn_input(said("hi", session_id="other"))
    untouched = await lab.dump()
    store = await evidence(lab)
    await store.record_intent(intent(content_id("a")))
    await turn(store, checkpoint=checkpoint(tool_state=b"x"), agent_frames=(AgentFrameRecord("f", WHEN),))
    await lab.factory.delete_session("s")
    await lab.factory.delete_session("s")
    await lab.factory.delete_session("never was")
    assert set(differences(untouched, await lab.dump())) == {"attachment_release", "blob"}
    assert await lab.factory.open_existing_store(SessionStoreCreateRequest("s")) is None
    assert (await (await lab.reopen("other")).gc_unreachable()).deleted_blob_count == 2
    await lab.assert_sound()


HANDLE_CALLS: dict[str, Callable[[RuntimePersistence], Awaitable[object]]] = {
    "load": lambda store: store.load_session(FullGraph()),
    "load node": lambda store: store.load_node("a"),
    "load head": lambda store: store.load_head(),
    "load meta": lambda store: store.load_session_meta(),
    "save meta": lambda store: store.save_session_meta(SessionMeta("s", "n", WHEN, "m")),
    "enqueue input": lambda store: store.enqueue_pending_turn_input(said("hi")),
    "list input": lambda store: store.list_pending_turn_inputs("s"),
    "cancel input": lambda store: store.cancel_pending_turn_input("s", "i"),
    "enqueue work": lambda store: store.enqueue_queued_work(work()),
    "list work": lambda store: store.list_queued_work("s"),
    "cancel work": lambda store: store.cancel_queued_work_batch("s", "b"),
    "claim lease": lambda store: store.try_claim_session_execution_lease("s", BOB, TTL_MS),
    "intent": lambda store: store.record_intent(AttachmentIntent("s", intent(content_id("a")).reference)),
    "holds": lambda store: store.holds_ref("s", content_id("a")),
    "tombstone": lambda store: store.tombstone_nodes(["a"]),
    "vacuum": lambda store: store.vacuum(),
}


@pytest.mark.parametrize("anew", [False, True], ids=["gone", "created anew"])
async def test_m3_a_handle_from_before_a_deletion_neither_reads_nor_writes(lab: Lab, anew: bool) -> None:
    """Whatever it is asked, it says that the session was deleted, also when a session of that name exists again."""
    store = await lab.store()
    await turn(store, *chain("a"))
    lease = await lane(store)
    await lab.factory.delete_session("s")
    if anew:
        await turn(await lab.store(), *chain("b"))
    for name, call in HANDLE_CALLS.items():
        error = await refused(lab, SessionDeletedError, call(store))
        assert error.session_id == "s", name
    await refused(lab, SessionDeletedError, store.commit_runtime_state(commit(lease, 1, node("c", "a"))))
    await refused(lab, SessionDeletedError, store.renew_session_execution_lease(lease.fence(), TTL_MS))


async def test_m3_a_new_session_of_the_same_id_starts_over(lab: Lab) -> None:
    """It has no head, nothing waits, and its first fencing token is 1."""
    store = await evidence(lab)
    await lab.factory.delete_session("s")
    await lab.store()
    again = await lab.reopen()
    assert await again.load_head() is None
    assert await again.list_pending_turn_inputs("s") == []
    lease = await lane(again)
    assert lease.fencing_token == 1
    assert (await again.enqueue_pending_turn_input(said("hi"))).admission_seq == 1
    assert (await again.commit_runtime_state(commit(lease, None, *chain("a")))).head_revision == 1
    assert store is not again


async def test_m3_sessions_are_listed_in_pages(lab: Lab) -> None:
    """Every session comes once, oldest first, however small the page."""
    for at in range(5):
        await lab.store(f"s{at}")
        lab.clock.advance(1)
    await turn(await lab.factory.create_store(SessionStoreCreateRequest("s3")), *chain("a", "b"), session_id="s3")
    found, cursor = [], None
    while True:
        page = await lab.factory.list_sessions(limit=2, cursor=cursor)
        found += [(one.meta.session_id, one.revision, one.node_count) for one in page.sessions]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert found == [("s0", 0, 0), ("s1", 0, 0), ("s2", 0, 0), ("s3", 1, 2), ("s4", 0, 0)]


RECORDS: dict[str, tuple[str, Callable[[RuntimePersistence], Awaitable[object]]]] = {
    "node": ("update node set body = $1", lambda store: store.load_session(FullGraph())),
    "one node": ("update node set body = $1", lambda store: store.load_node("a")),
    "config": ("update head set config = $1", lambda store: store.load_head()),
    "frame": ("update agent_frame set body = $1", lambda store: store.load_session(FullGraph())),
    "meta": ("update session set meta = $1", lambda store: store.load_session_meta()),
    "input": ("update turn_input set body = $1", lambda store: store.list_pending_turn_inputs("s")),
    "work": ("update queued_work set body = $1", lambda store: store.list_queued_work("s")),
}
BODIES: dict[str, type[StoreError]] = {
    '{"v":2,"x":1}': RecordVersionUnsupportedError,
    '{"v":"1"}': RecordVersionInvalidError,
    '{"v":0}': RecordVersionInvalidError,
    '{"x":1}': RecordVersionMissingError,
}


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("record", RECORDS)
async def test_m4_a_record_of_an_unknown_version_is_refused(lab: Lab, record: str, body: str) -> None:
    """Every kind of stored record is refused by a version that is unknown, invalid or missing, and says which."""
    store = await lab.store()
    await turn(store, *chain("a"), agent_frames=(AgentFrameRecord("f", WHEN),))
    await store.enqueue_pending_turn_input(said("hi"))
    await store.enqueue_queued_work(work())
    sql, read = RECORDS[record]
    await lab.execute_raw(sql, body)
    error: Any = await refused(lab, BODIES[body], read(store))
    if body.startswith('{"v":2'):
        assert (error.version, error.supported) == (2, (1,))


async def test_m4_a_newer_database_is_refused(lab: Lab) -> None:
    """A database that a later release has migrated is refused by number."""
    lab.needs(Power.REOPENING)
    await lab.store()
    await lab.execute_raw("insert into fastness_migration (version, name) values (999, 'from the future')")
    with pytest.raises(DatabaseOpenError, match="999"):
        await lab.reopen()


async def test_m5_reports_count_what_the_call_did(lab: Lab) -> None:
    """The counts of a collection and of a vacuum are the rows that went, by number."""
    store = await evidence(lab)
    await turn(store, checkpoint=checkpoint(1, tool_state=b"12345"))
    await turn(store, checkpoint=checkpoint(1))
    before = await lab.dump()
    vacuumed = await store.vacuum(receipts_older_than_ms=lab.start_ms + 10_000)
    collected = await store.gc_unreachable()
    gone = {table: len(rows[0]) for table, rows in differences(before, await lab.dump()).items()}
    assert gone["node"] == vacuumed.removed_node_count == 2
    assert gone["turn_input_evidence"] == vacuumed.removed_pending_turn_input_tombstone_count == 2
    assert gone["queued_work_evidence"] == vacuumed.removed_queue_evidence_count == 2
    assert vacuumed.removed_receipt_count == 3
    assert gone["blob"] == collected.deleted_blob_count == 2
    assert await revision(store) == 6
    assert msgspec.structs.asdict(collected)["retained_blob_count"] == 1
