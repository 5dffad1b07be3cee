"""What a session of 40,000 messages takes on the disk for each byte of message, and which tables that goes to.

The turns are those of ``bench.turns``, each with its input, checkpoint, usage and receipt. A byte of message is a byte
of the message's own JSON, without the envelope of its node. Maintenance is a collection and a vacuum of the session,
receipts included; what that leaves free within the file is used again by the next turns, and given back to the disk by
SQLite's VACUUM alone, which a host runs where it wants to. All steps are told one by one.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import apsw

from bench.findings import Found, Part, Size, Table, Value
from bench.turns import Turns
from fastness.model.base import MAX_INT, encode
from fastness.persistence import FullGraph, SessionStore, SqliteSessionStoreFactory

MESSAGES = 40_000
A_TURN = 4
"""Messages that a turn adds."""

_TABLES = "select name, sum(pgsize), sum(payload) from dbstat group by 1 order by 2 desc limit 8"


def size_of_a_session(folder: Path, size: Size) -> Found:
    """Bytes of the file, before and after maintenance, divided by those of the messages."""
    del size
    path = folder / "size.db"
    message_bytes, settled, maintained = asyncio.run(_fill(path))
    found = Found({"messages": MESSAGES, "bytes_per_message": message_bytes / MESSAGES})
    kept, _ = _compacted(path)
    asyncio.run(_forget_receipts(path))
    compact, taken = _compacted(path)
    found.figures |= {
        "bytes_per_message_byte_40k": compact / message_bytes,
        "with_all_receipts_kept": kept / message_bytes,
        "with_what_is_free_within_the_file": maintained / message_bytes,
        "before_maintenance": settled / message_bytes,
    }
    rows: dict[str, list[Value]] = {name: [size, payload, size / message_bytes] for name, size, payload in taken}
    columns = ["table or index", "bytes", "of that content", "per byte of message"]
    found.tables.append(Table("Where the bytes are, after maintenance", columns, rows))
    return found


async def _fill(path: Path) -> tuple[int, int, int]:
    """Settle the turns and maintain the database. Gives the bytes of all messages, of the file before and after."""
    # How it is synced does not change what is written.
    async with SqliteSessionStoreFactory(path, synchronous="normal") as factory:
        session = await Turns.prepare(factory, "session", MESSAGES // A_TURN)
        while session.waiting:
            await session.turn()
        read = await session.store.load_session(FullGraph())
        assert read is not None
        assert len(read.graph.nodes) == MESSAGES
        message_bytes = sum(len(encode(node.message)) for node in read.graph.nodes)
    settled = path.stat().st_size
    async with SqliteSessionStoreFactory(path) as factory:
        await SessionStore(factory.engine, "session").vacuum()
        await factory.gc_unreachable()
    return message_bytes, settled, path.stat().st_size


async def _forget_receipts(path: Path) -> None:
    async with SqliteSessionStoreFactory(path) as factory:
        await SessionStore(factory.engine, "session").vacuum(receipts_older_than_ms=MAX_INT)


def _compacted(path: Path) -> tuple[int, list[tuple[str, int, int]]]:
    """Have SQLite give back what is free, and tell the size of the file and what takes most of it."""
    connection = apsw.Connection(str(path))
    connection.execute("vacuum")
    connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    tables = list(connection.execute(_TABLES))
    connection.close()
    return path.stat().st_size, tables


PARTS = (Part("size", "Bytes on disk", size_of_a_session),)
