"""Laws of the verification: every kind of damage is a finding of its own kind, and a sound database has none."""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest

from fastness.conformance.builders import begin, checkpoint, content_id, intent, lane, node, said, some, turn
from fastness.persistence import (
    AgentFrameRecord,
    CheckReport,
    SessionStoreCreateRequest,
    SqliteSessionStoreFactory,
    TokenLedgerEntry,
    TokenUsage,
    process_execution_env_ref,
)

NOW = "2026-01-01T00:00:00Z"


@pytest.fixture
async def sound(tmp_path: Path) -> Path:
    """A database with two turns, a branch, a frame, a tombstone, and input that waits, is claimed and is set aside."""
    path = tmp_path / "a.db"
    async with SqliteSessionStoreFactory(path) as factory:
        store = await factory.create_store(SessionStoreCreateRequest("s"))
        await turn(
            store,
            node("a"),
            node("b", "a"),
            node("c", "b"),
            checkpoint=checkpoint(1, tool_state=b"tools"),
            usage_deltas=(TokenLedgerEntry("turn", "model", TokenUsage(1)),),
            agent_frames=(AgentFrameRecord("f", NOW),),
            current_agent_frame_id="f",
        )
        await store.tombstone_nodes(["c"])
        await store.record_intent(intent(content_id("cat")))
        await factory.process_execution_envs.put_process_execution_env(process_execution_env_ref(b"{}"), b"{}")
        await turn(store, node("d", "a"))
        await store.enqueue_pending_turn_input(said("spoiled", input_id="spoiled", key="spoiled"))
        begun = await begin(factory.dispatch, max_inputs=9)
        claims = [some(begun.input_claim)]
        await factory.dispatch.fail_turn(begun.lease.completion(), input_claims=claims, error="no", max_attempts=1)
        await store.enqueue_pending_turn_input(said("held", input_id="held"))
        lease = await lane(store)
        await store.claim_next_turn_inputs("s", lease.fence(), max_inputs=1)
        await store.enqueue_pending_turn_input(said("waiting", input_id="waiting", key="k"))
    return path


async def checked(path: Path) -> CheckReport:
    """Verify a database."""
    async with SqliteSessionStoreFactory(path) as factory:
        return await factory.check()


async def test_a_sound_database_has_no_findings(sound: Path) -> None:
    """The report counts what is there, tombstoned nodes included, and finds nothing."""
    report = await checked(sound)
    assert report == CheckReport(
        session_count=1,
        node_count=4,
        commit_count=3,
        blob_count=3,
        pending_input_count=2,
        queued_batch_count=0,
        findings=(),
    )


DAMAGE = [
    ("update node set body = 'x' where node_id = 'b'", "graph", "node 'b' is damaged"),
    ("update node set body = cast(x'7bff' as text) where node_id = 'b'", "graph", "node 'b' is damaged"),
    ("update node set body = replace(body, 'hello', 'hallo') where node_id = 'b'", "graph", "node 'b' is damaged"),
    ("update node set node_id = 'z' where node_id = 'b'", "graph", "node 'z' is damaged"),
    ("update node set parent_seq = null where node_id = 'b'", "graph", "node 'b' is damaged"),
    ("delete from node where node_id = 'a'", "graph", "node 'b' has no parent at place 1"),
    ("update node set seq = 9 where node_id = 'b'", "graph", "node 'b' is damaged"),
    ("update node set tombstoned = 1 where node_id = 'a'", "graph", "is live and hangs on the tombstoned node 'a'"),
    ("delete from node where node_id = 'b'", "counts", "the head counts 3 nodes, 2 are there"),
    ("update head set leaf_node_id = 'c'", "graph", "the head's leaf 'c' is not there"),
    ("update head set next_seq = 2", "counts", "the next node's place is taken"),
    ("update head set agent_frame_id = 'nowhere'", "frames", "the head's frame 'nowhere' is missing"),
    ("delete from head", "log", "there are 3 commits and no head"),
    ("delete from commit_log where revision = 2", "log", "the head is at revision 3, the log has 2 rows up to 3"),
    ("update commit_log set leaf_node_id = 'a' where revision = 3", "log", "the newest commit ends on another leaf"),
    ("update blob set body = x'00'", "blob", "is missing or is not what its name says"),
    ("update head set checkpoint = 'x'", "blob", "the checkpoint of head cannot be read"),
    ("delete from blob_holder where rowid = 1", "refs", "what the checkpoint of head needs and what is held"),
    ("update session set meta = '{}'", "record", "the metadata or configuration cannot be read"),
    ("update turn_input set body = 'x'", "record", "input 'waiting' cannot be read"),
    ("update lane set admission_seq = 1", "claims", "input 'waiting' has a place the lane has not given out yet"),
    ("update lane set fencing_token = 1", "claims", "input 'held' was granted under a token the lane has not drawn"),
    (
        """insert into turn_input_evidence select sid, seq, 'other', 'k', 'completed', 0, 0, body from turn_input
        where input_id = 'waiting'""",
        "claims",
        "input 'waiting' waits and is settled at once",
    ),
    ("delete from lane", "lane", "the session has no lane"),
    ("update lane set ready_ms = null", "agenda", "has something to do and is not on the agenda"),
    (f"update lane set ready_ms = {2**60}", "agenda", "later than it has something to do"),
    ("delete from quarantine", "quarantine", "input 'spoiled' is set aside without its reason"),
    (
        "update turn_input_evidence set state = 'cancelled'",
        "quarantine",
        "input 'spoiled' is set aside without its reason, or its reason without it",
    ),
    ("update attachment set reference = '{}'", "record", "cannot be read, or names other content"),
    (
        "update environment set ref = 'other'",
        "environment",
        "environment other is missing or is not",
    ),
    ("delete from session", "orphans", "table node has 4 rows of sessions that are gone"),
]


@pytest.mark.parametrize(("sql", "rule", "detail"), DAMAGE, ids=[sql for sql, _, _ in DAMAGE])
async def test_damage_is_a_finding_of_its_kind(sound: Path, sql: str, rule: str, detail: str) -> None:
    """One row that was altered behind the library's back is found, with the rule that it breaks."""
    connection = apsw.Connection(str(sound))
    connection.execute(sql)
    assert connection.total_changes() >= 1
    connection.close()
    report = await checked(sound)
    assert any(finding.rule == rule and detail in finding.detail for finding in report.findings), report.findings


async def test_text_that_is_none_is_a_finding_and_the_rest_is_looked_at(sound: Path) -> None:
    """Damage below the level of records names its session; the others are verified all the same."""
    async with SqliteSessionStoreFactory(sound) as factory:
        other = await factory.create_store(SessionStoreCreateRequest("other"))
        await turn(other, node("a"), session_id="other")
    connection = apsw.Connection(str(sound))
    connection.execute("update node set node_id = cast(x'7bff' as text) where node_id = 'b'")
    connection.close()
    report = await checked(sound)
    assert [(finding.rule, finding.session_id) for finding in report.findings] == [("file", "s")]
    assert report.session_count == 2
