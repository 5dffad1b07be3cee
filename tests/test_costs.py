"""What a full turn costs, asserted exactly: statements, rows, bytes and syncs. Time is for the benchmark to measure."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path

from bench.syncs import CountedSyncs
from bench.turns import Turns

from fastness.engines.sqlite import SqliteEngine
from fastness.factory import EngineSessionStoreFactory
from fastness.sql.program import Item, Lock, LockNames, Many, Param, Read, Write

READS = ["from lane", "from head", "from node", "from token_usage", "from turn_input"]
WRITES = [
    ("insert into node", 4),
    ("insert into blob", 2),
    ("insert into blob_holder", 2),
    ("update blob_holder", 2),
    ("insert into token_usage", 1),
    ("update head", 1),
    ("insert into commit_log", 1),
    ("insert into turn_input_evidence", 1),
    ("delete from turn_input", 1),
]


SIZE = 3_871
"""Bytes of what a turn of two digits asks and writes, the ids that are looked up included."""


def rows_of(item: Item) -> Sequence[tuple[Param, ...]]:
    """The parameters of a statement, once for each time that it runs."""
    assert not isinstance(item, LockNames)
    return item.rows if isinstance(item, Many) else [item.params]


def size_of(batch: Read | Write) -> int:
    """How many bytes the parameters of a batch have, eight for a number."""
    given = [value for item in batch.statements for row in rows_of(item) for value in row if value is not None]
    return sum(8 if isinstance(value, int) else len(value) for value in given)


def what(item: Item) -> str:
    """What a statement does first, and to which table."""
    assert not isinstance(item, LockNames)
    found = re.search(r"(insert into|delete from|update|from) \w+", item.sql)
    assert found is not None
    return found.group()


async def test_a_full_turn_reads_five_times_and_writes_what_it_adds(tmp_path: Path) -> None:
    """The hundredth turn of a session does what its tenth did, and brings as many bytes."""
    seen: list[Read | Write | None] = []
    engine = SqliteEngine(tmp_path / "store.db", before_batch=seen.append)
    async with EngineSessionStoreFactory(engine) as factory:
        session = await Turns.prepare(factory, "s", 100)
        sizes = []
        for _ in range(99):
            seen.clear()
            await session.turn()
            sizes.append(sum(size_of(batch) for batch in seen if batch is not None))
    read, write, end = seen
    assert isinstance(read, Read)
    assert isinstance(write, Write)
    assert end is None
    assert [what(item) for item in read.statements if not isinstance(item, Lock)] == READS
    assert [(what(item), len(rows_of(item))) for item in write.statements] == WRITES
    assert sizes[10:] == [SIZE] * 89


async def test_a_commit_is_synced_once(tmp_path: Path) -> None:
    """One sync for one commit, and one for all those that waited together."""
    with CountedSyncs() as syncs:
        engine = SqliteEngine(tmp_path / "store.db")
        groups: list[int] = []
        async with EngineSessionStoreFactory(engine) as factory:
            sessions = [await Turns.prepare(factory, f"s{at}", 4) for at in range(64)]
            for session in sessions:
                await session.turn()
            engine.tell_groups(groups.append)
            before = syncs.count
            await sessions[0].turn()
            alone = syncs.count - before
            before = syncs.count
            await asyncio.gather(*(session.turn() for session in sessions))
            together = syncs.count - before
    assert alone == 1
    assert groups[0] == 1
    assert sum(groups[1:]) == 64
    assert together == len(groups[1:]) <= 8
