"""What the library is held against does the same work: the bare script and the function write what a commit writes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import apsw
import pytest
from bench.bare import contents
from bench.function import Limit
from bench.syncs import CountedSyncs

from bench import commits, fleet, fleet_sessions
from tests.servers.postgres import PostgresServer


async def test_the_bare_script_leaves_the_very_rows_that_the_library_leaves(tmp_path: Path) -> None:
    """Three turns of two sessions, of four nodes and one input each, recorded and run again on a copy."""
    prepared = await commits.prepare(tmp_path, 2, 3)
    assert [(turn.sid, turn.turn_id) for turn in prepared.encoded] == [
        (1, "turn-1"),
        (2, "turn-1"),
        (1, "turn-2"),
        (2, "turn-2"),
        (1, "turn-3"),
        (2, "turn-3"),
    ]
    rows = contents(tmp_path / "compared-2.db")
    counts = {table: len(rows[table]) for table in ("node", "commit_log", "head", "turn_input", "turn_input_evidence")}
    assert counts == {"node": 24, "commit_log": 6, "head": 2, "turn_input": 0, "turn_input_evidence": 6}
    assert rows == contents(tmp_path / "reference-2.db")


def test_a_script_that_writes_something_else_is_no_limit(tmp_path: Path) -> None:
    """The tables that differ are named."""
    for name, values in (("ours", "(1), (2)"), ("theirs", "(1)")):
        db = apsw.Connection(str(tmp_path / name))
        db.execute(f"create table node (a); insert into node values {values}; create table head (a)")
        db.close()
    with pytest.raises(RuntimeError, match=r"^the script does not write what the library writes: node$"):
        commits.require_same(tmp_path / "ours", tmp_path / "theirs")


def test_every_sync_of_a_database_is_counted(tmp_path: Path) -> None:
    """One for each transaction in a log that has begun, and none outside the block."""
    with CountedSyncs() as syncs:
        db = apsw.Connection(str(tmp_path / "synced.db"))
        for statement in ("pragma journal_mode=wal", "pragma synchronous=full", "create table t (a)"):
            db.execute(statement)
        before = syncs.count
        for _ in range(5):
            db.execute("insert into t values (1)")
        assert syncs.count - before == 5
        db.close()
    before = syncs.count
    db = apsw.Connection(str(tmp_path / "uncounted.db"))
    db.execute("create table t (a)")
    db.close()
    assert syncs.count == before


def test_the_function_writes_as_many_values_and_bytes_as_the_library(tmp_path: Path) -> None:
    """In every column, for four turns of two sessions."""
    with PostgresServer(fsync=False) as server, server.database() as url:
        asyncio.run(fleet.make_schemas(url))
        limit = Limit(server, url, "bare", "ours", tmp_path)
        sessions = asyncio.run(fleet.prepare(url, ("session-1", "session-2"), 4))
        limit.copy(1, 2)
        limit.run(1, 2, 3)
        assert "node.node_id: (8, 72) and (32, 288)" in limit.unlike(1, 2)
        asyncio.run(fleet.drive(url, sessions))
        assert limit.unlike(1, 2) == []
        rows, size = limit.written("bare", 1, 2)
        assert (rows, size) == limit.written("ours", 1, 2)
        limit.close()


def test_clients_share_the_sessions_of_the_function_evenly(tmp_path: Path) -> None:
    """Two clients, four sessions, two turns of each: the same rows as the library leaves on three connections."""
    with PostgresServer(fsync=False) as server, server.database() as url:
        asyncio.run(fleet.make_schemas(url))
        limit = Limit(server, url, "bare", "ours", tmp_path)
        names = asyncio.run(fleet.create(url, 1, 4))
        sessions = asyncio.run(fleet.prepare(url, names, 3))
        limit.copy(1, 4)
        assert [len(stamps) for stamps in limit.run(1, 4, 2, 2)] == [2, 2, 2, 2]
        with pytest.raises(RuntimeError, match=r"the library writes: node.sid: \(16, 128\) and \(48, 384\); "):
            fleet.require_alike(limit, 1, 4)
        assert [len(stamps) for stamps in asyncio.run(fleet.drive(url, sessions, 3))] == [2, 2, 2, 2]
        fleet.require_alike(limit, 1, 4)
        limit.close()


def test_a_rate_is_taken_while_all_are_warm_and_enough_of_them_at_work() -> None:
    """64 sessions are warm after 2 s and end one each second from then on: the last seven have too much room."""
    timed = fleet_sessions.Timed.of([[0, 1, 2, 3 + at] for at in range(64)])
    assert (timed.rate, timed.at(0.5), timed.at(0.99)) == (1.0, 33_000, 64_000)
