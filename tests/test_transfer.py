"""Laws of moving and keeping: a session arrives whole or not at all, and nobody who held it before can write to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from fastness.conformance.builders import (
    ALICE,
    BOB,
    chain,
    checkpoint,
    claim_inputs,
    commit,
    content_id,
    intent,
    lane,
    node,
    release,
    said,
    turn,
    usage,
    work,
)
from fastness.conformance.lab import TABLES, Dump, Lab
from fastness.errors import (
    BackendError,
    LeaseExpiredError,
)
from fastness.model import AgentFrameRecord, Child, RuntimePersistence, SessionMeta, SessionStoreCreateRequest
from fastness.ops.transfer import read_session
from fastness.ops.transfer_tables import MOVED
from fastness.ops.transfer_tables import TABLES as MOVED_OR_NOT
from fastness.persistence import SqliteSessionStoreFactory, process_execution_env_ref
from fastness.sql.schema import SESSION_TABLES, SQLITE_TYPES, create_tables
from fastness.transfer import TransferReport, copy
from fastness.transfer.spool import Spool
from tests.lab import ENGINES

NOW = "2026-01-01T00:00:00Z"
WITH_SID = {*SESSION_TABLES, "session"}
FREE = (None, None, None, None, 0, 0)
"""What a lane says of its holder when it has none."""
WAITS, IDLE = (0, 0, 3, None), (None, 0, 0, None)
"""What a lane that was moved says of the agenda, of a session with something to do and of one without."""


async def fill(factory: Any, session_id: str = "s") -> RuntimePersistence:
    """Make a session with rows in every table that can have some, more than a page in several, and its lane held."""
    store: RuntimePersistence = await factory.create_store(SessionStoreCreateRequest(session_id))
    await store.save_session_meta(
        SessionMeta(session_id, "Name", NOW, "m", relation=Child("parent"), labels=("blue", "red"), priority=3)
    )
    first = chain(*(f"n{at}" for at in range(600)))
    await turn(
        store,
        *first,
        session_id=session_id,
        checkpoint=checkpoint(1, tool_state=b"tools", execution_state=b"running"),
        usage_deltas=tuple(usage(at, source=f"s{at}", model=f"m\u00e4{at}") for at in range(1, 301)),
        agent_frames=(AgentFrameRecord("f", NOW),),
        current_agent_frame_id="f",
    )
    await store.tombstone_nodes(["n599"])
    await store.record_intent(intent(content_id("a"), session_id=session_id))
    await store.record_intent(intent(content_id("b"), session_id=session_id))
    await store.enqueue_pending_turn_input(said("settled", session_id=session_id, input_id="settled", key="k1"))
    dropped = await store.enqueue_queued_work(work(session_id=session_id, key="k2"))
    await store.cancel_queued_work_batch(session_id, dropped.batch_id)
    lease = await lane(store, BOB, session_id=session_id)
    claim = await store.claim_next_turn_inputs(session_id, lease.fence(), max_inputs=1)
    assert claim is not None
    await store.commit_runtime_state(
        commit(lease, 2, node("last", "n0"), checkpoint=checkpoint(2, tool_state=b"other tools"))
        .completing_turn_input_claim(claim)
        .with_committed_attachments([content_id("a")])
        .with_turn_commit("turn-2")
    )
    await release(store, lease)
    await store.enqueue_pending_turn_input(said("spoiled", session_id=session_id, input_id="spoiled"))
    begun = await factory.dispatch.begin_turn(session_id, BOB, 30_000)
    await factory.dispatch.fail_turn(
        begun.lease.completion(), input_claims=[begun.input_claim], error="no", max_attempts=1
    )
    await store.enqueue_pending_turn_input(said("held", session_id=session_id, input_id="held"))
    await store.enqueue_queued_work(work(session_id=session_id, key="k3"))
    held = await lane(store, ALICE, session_id=session_id)
    assert await store.claim_next_turn_inputs(session_id, held.fence(), max_inputs=1) is not None
    await store.enqueue_pending_turn_input(said("waiting", session_id=session_id, input_id="waiting", key="k4"))
    return store


async def fill_small(factory: Any, *session_ids: str) -> None:
    """Make sessions of one turn each."""
    for session_id in session_ids:
        store = await factory.create_store(SessionStoreCreateRequest(session_id))
        state = checkpoint(1, tool_state=session_id.encode())
        await turn(store, node("a"), session_id=session_id, checkpoint=state, usage_deltas=(usage(1),))


def portable(dump: Dump) -> Dump:
    """What a dump says apart from surrogate keys."""
    return {
        table: sorted((tuple(row[1:]) if table in WITH_SID else tuple(row) for row in rows), key=repr)
        for table, rows in dump.items()
    }


async def image(path: Path) -> Dump:
    """Give what is in a file apart from surrogate keys, and expect it to be sound."""
    async with SqliteSessionStoreFactory(path) as factory:
        assert (await factory.check()).findings == ()
    connection = apsw.Connection(str(path))
    try:
        return portable({table: list(connection.execute(f"select * from {table}")) for table in TABLES})
    finally:
        connection.close()


def change(path: Path, *statements: str) -> None:
    """Change a file behind the library's back, in one transaction."""
    connection = apsw.Connection(str(path))
    try:
        with connection:
            for sql in statements:
                connection.execute(sql)
    finally:
        connection.close()


class Pair:
    """Two databases, each on some engine."""

    def __init__(self, source: Lab, destination: Lab) -> None:
        self.source = source
        self.destination = destination


@pytest.fixture(params=[(one, other) for one in sorted(ENGINES) for other in sorted(ENGINES)], ids=" to ".join)
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    """From every engine to every engine."""
    places = (tmp_path / "source", tmp_path / "destination")
    for place in places:
        place.mkdir()
    labs = [Lab(ENGINES[name], place) for name, place in zip(request.param, places, strict=True)]
    async with labs[0] as source, labs[1] as destination:
        yield Pair(source, destination)


async def test_every_row_of_every_table_arrives(pair: Pair) -> None:
    """A copy has all rows of the session, its blobs and the releases, but for marks; the lane is free and one token on.

    The workers that run turns on the source say nothing of the destination.
    The surrogate key is another one: the source had a session before it that is gone.
    """
    gone = await pair.source.store("gone")
    await gone.record_intent(intent(content_id("c"), session_id="gone"))
    await pair.source.factory.delete_session("gone")
    await fill(pair.source.factory)
    environment = b'{"cwd": "/srv"}'
    await pair.source.factory.process_execution_envs.put_process_execution_env(
        process_execution_env_ref(environment), environment
    )
    await pair.source.execute_raw("insert into attachment_mark values ($1, 'sweep', 1, 2)", content_id("c"))
    await pair.source.execute_raw("insert into worker values ('w', 1, '{}')")
    before = await pair.source.dump()
    assert [table for table in TABLES if not before[table]] == [], "a table without rows proves nothing"

    report = await copy(pair.source.factory, pair.destination.factory)

    assert report == TransferReport(copied_count=1, node_count=601, blob_count=5, release_count=1, environment_count=1)
    wanted, found = portable(before), portable(await pair.destination.dump())
    ((admission, token, *_),) = wanted["lane"]
    assert (admission, token) == (6, 4)
    assert wanted | {"lane": [(6, 5, *FREE, *WAITS)], "attachment_mark": [], "worker": []} == found
    assert before["session"][0][0] != (await pair.destination.dump())["session"][0][0]
    await pair.destination.assert_sound()
    assert portable(await pair.source.dump()) == wanted, "the source was changed"


def test_every_table_is_moved_or_stays_for_a_reason() -> None:
    """A table that is added to the schema belongs to a session, or somebody says here what becomes of it."""
    assert set(TABLES) - set(SESSION_TABLES) == {
        "session",
        "blob",
        "attachment_release",
        "attachment_mark",
        "environment",
        "worker",
    }


def test_columns_and_keys_are_those_of_the_database() -> None:
    """What is read from the statements that make the tables is what the database makes of them."""
    connection = apsw.Connection(":memory:")
    for ddl in create_tables(SQLITE_TYPES):
        connection.execute(ddl)
    for name, table in MOVED_OR_NOT.items():
        columns = [row[0] for row in connection.execute("select name from pragma_table_info(?)", (name,))]
        assert list(table.columns) == [column for column in columns if column != "sid"]
    unique = """select l.name from pragma_index_list(?1) l where l."unique" and not l.partial"""
    for table in MOVED:
        keys = {
            tuple(row[0] for row in connection.execute("select name from pragma_index_info(?)", (index,)))
            for (index,) in connection.execute(unique, (table.name,))
        }
        if table.key:
            assert ("sid", *table.key) in keys, f"pages of {table.name} could lose rows"
        else:
            assert table.name in {"lane", "head"}, "only these have one row for each session"
    connection.close()


async def test_a_second_copy_adds_nothing(pair: Pair) -> None:
    """What is there with the same content is passed over, whoever held the lane in between."""
    store = await fill(pair.source.factory)
    await copy(pair.source.factory, pair.destination.factory)
    await release(store, await lane(store, ALICE))
    before = await pair.destination.dump()
    assert await copy(pair.source.factory, pair.destination.factory) == TransferReport(present_count=1)
    assert await pair.destination.dump() == before


async def test_a_session_with_other_content_is_named_and_left_alone(pair: Pair) -> None:
    """A conflict stops nobody else, and nothing in the destination is changed by it."""
    await fill_small(pair.source.factory, "a", "b", "c")
    await fill_small(pair.destination.factory, "b")
    await turn(await pair.destination.store("b"), node("b", "a"), session_id="b")
    before = await pair.destination.dump()
    report = await copy(pair.source.factory, pair.destination.factory)
    assert report == TransferReport(copied_count=2, node_count=2, blob_count=4, conflicting=("b",))
    after = await pair.destination.dump()
    assert [row for row in before["node"] if row not in after["node"]] == []
    assert len(after["node"]) == 4


async def test_equal_blobs_of_two_sessions_are_there_once(pair: Pair) -> None:
    """Blobs are content addressed in the destination as well: what is there is used."""
    await fill(pair.source.factory, "a")
    await fill(pair.source.factory, "b")
    report = await copy(pair.source.factory, pair.destination.factory)
    assert (report.copied_count, report.blob_count) == (2, 10)
    assert len((await pair.destination.dump())["blob"]) == 5


async def test_what_the_holder_of_the_source_has_means_nothing_in_the_copy(pair: Pair) -> None:
    """A copied lane is free: the old fence is stale there, its claim dead, and the next grant has a greater token."""
    store = await fill(pair.source.factory)
    held = await lane(store, ALICE)  # re-entered
    await copy(pair.source.factory, pair.destination.factory)
    there = await pair.destination.store("s")
    with pytest.raises(LeaseExpiredError, match="is stale"):
        await there.renew_session_execution_lease(held.fence(), 30_000)
    granted = await lane(there, ALICE)
    assert (held.fencing_token, granted.fencing_token) == (4, 6)
    claim = await claim_inputs(there, granted, 5)
    assert [row.input_id for row in claim.inputs] == ["held", "waiting"]


# --- more than a page ---


async def test_more_blobs_releases_and_sessions_than_a_page_arrive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages are put together without a gap: 25 superseded checkpoints, 600 releases, five sessions by twos."""
    monkeypatch.setattr("fastness.transfer.copying._SESSIONS_PER_PAGE", 2)
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    async with SqliteSessionStoreFactory(old) as factory:
        await fill_small(factory, "a", "b", "c", "d", "e")
        store = await factory.create_store(SessionStoreCreateRequest("c"))
        for at in range(25):
            await turn(store, session_id="c", checkpoint=checkpoint(1, tool_state=b"%d" % at))
    numbers = "with recursive n (i) as (select 1 union all select i + 1 from n where i < 600)"
    change(old, f"insert into attachment_release {numbers} select i % 7, 's' || i, i from n")
    async with SqliteSessionStoreFactory(old) as one, SqliteSessionStoreFactory(new) as other:
        report = await copy(one, other)
        assert report == TransferReport(copied_count=5, node_count=5, blob_count=60, release_count=600)
    wanted, found = await image(old), await image(new)
    assert wanted | {"lane": found["lane"]} == found
    assert (len(found["blob"]), len(found["attachment_release"])) == (60, 600)


async def test_of_two_releases_the_later_one_stays(tmp_path: Path) -> None:
    """A sweep of the destination waits for the longer of two."""
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    async with SqliteSessionStoreFactory(old) as one, SqliteSessionStoreFactory(new) as other:
        assert await copy(one, other) == TransferReport()
        change(old, "insert into attachment_release values ('x', 's', 5), ('y', 's', 5)")
        change(new, "insert into attachment_release values ('x', 's', 9), ('y', 's', 1)")
        await copy(one, other)
    assert (await image(new))["attachment_release"] == [("x", "s", 9), ("y", "s", 5)]


async def test_a_session_that_is_read_again_is_spooled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine may run the reading program anew: the pages are those of one run, in memory or in a file."""
    async with SqliteSessionStoreFactory(tmp_path / "a.db") as factory:
        await fill(factory)
        found = []
        for in_memory_bytes in (1 << 30, 1000):
            monkeypatch.setattr("fastness.transfer.spool._IN_MEMORY_BYTES", in_memory_bytes)
            with Spool() as spool:
                for _ in range(2):
                    await factory.engine.read(lambda spool=spool: read_session(1, spool))  # type: ignore[misc]
                    found.append(list(spool.pages()))
    assert found[0] == found[1] == found[2] == found[3]
    assert sum(len(rows) for table, rows in found[0] if table == "node") == 601


def test_a_full_temporary_directory_is_an_error_that_says_so() -> None:
    """No traceback of the operating system, and what to do."""
    with Spool() as spool:
        spool._file.close()
        full = Path("/dev/full").open("r+b", buffering=0)  # noqa: SIM115 - the spool closes it
        spool._file = full  # type: ignore[assignment]
        with pytest.raises(BackendError, match=r"temporary file of a session cannot be written \(ENOSPC\).*TMPDIR"):
            spool.put("node", [(1,)])
