"""Laws of snapshots: several reads see one moment, writes go on meanwhile, and a lost moment is never replaced."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fastness.engines.sqlite import SqliteEngine
from fastness.errors import BackendError, HandleUnusableError
from fastness.sql.program import Program, Read, Statement, Write


def count() -> Program[int]:
    """How many blobs there are."""
    (((found,),),) = yield Read(Statement("select count(*) from blob"))
    return int(found)


def add() -> Program[None]:
    """Add a blob."""
    yield Write(Statement("insert into blob (ref, body) values (lower(hex(randomblob(8))), x'00')"))


def end_transaction() -> Program[None]:
    """Do to a snapshot what a fault might."""
    yield Read(Statement("rollback"))


async def test_all_reads_of_a_snapshot_see_the_moment_it_was_opened(tmp_path: Path) -> None:
    """That moment is the opening and not the first read; other reads see what was written since."""
    engine = SqliteEngine(tmp_path / "a.db")
    await engine.write(add)
    async with engine.snapshot() as snapshot:
        await engine.write(add)
        assert await snapshot.read(count) == 1
        await engine.write(add)
        assert await snapshot.read(count) == 1
        assert await engine.read(count) == 3
        async with engine.snapshot() as other:
            assert (await snapshot.read(count), await other.read(count)) == (1, 3)
    await engine.close()


async def test_many_snapshots_do_not_keep_reads_waiting(tmp_path: Path) -> None:
    """Each has a connection of its own, however many there are."""
    engine = SqliteEngine(tmp_path / "a.db")
    held = [engine.snapshot() for _ in range(5)]
    for snapshot in held:
        await snapshot.__aenter__()
    assert await asyncio.wait_for(engine.read(count), 30) == 0
    for snapshot in held:
        await snapshot.__aexit__(None, None, None)
    await engine.close()


async def test_a_snapshot_that_has_ended_or_was_lost_refuses_reads(tmp_path: Path) -> None:
    """It never goes on at a later moment."""
    engine = SqliteEngine(tmp_path / "a.db")
    async with engine.snapshot() as snapshot:
        await snapshot.read(end_transaction)
        with pytest.raises(BackendError, match="was lost"):
            await snapshot.read(count)
    with pytest.raises(HandleUnusableError, match="is a snapshot that has ended"):
        await snapshot.read(count)
    await engine.close()


async def test_a_snapshot_does_not_write_and_survives_a_program_that_fails(tmp_path: Path) -> None:
    """An attempt to write is an error of its own, and so is a statement that is refused; the snapshot stays."""
    engine = SqliteEngine(tmp_path / "a.db")
    async with engine.snapshot() as snapshot:
        with pytest.raises(BackendError, match="asked for a Write"):
            await snapshot.read(add)
        assert await snapshot.read(count) == 0
    await engine.close()


async def test_closing_the_engine_ends_its_snapshots(tmp_path: Path) -> None:
    """Nothing is left open: the log is gone with the last connection."""
    engine = SqliteEngine(tmp_path / "a.db")
    await engine.write(add)
    async with engine.snapshot() as snapshot:
        await snapshot.read(count)
        await engine.close()
        with pytest.raises(HandleUnusableError, match="is closed"):
            await snapshot.read(count)
    assert [path.name for path in tmp_path.iterdir()] == ["a.db"]


async def test_a_database_in_memory_has_no_snapshots() -> None:
    """It says what to do instead."""
    engine = SqliteEngine(None)
    with pytest.raises(BackendError, match="a database in memory has no snapshots; read it session by session"):
        async with engine.snapshot():
            pass
    await engine.close()
