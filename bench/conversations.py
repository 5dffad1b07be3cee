"""Recorded conversations of a tool-calling agent, from end to end: imported as durable turns, then verified.

They do not belong to the project. ``FASTNESS_BENCH_DATA`` names the folder that holds them; without it, it is
``../shared/data`` beside the checkout.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from tests.servers.postgres import PostgresServer

from bench.findings import Found, Part, Size, Spread, Table, Value
from bench.fleet import SETTINGS
from fastness.factory import EngineSessionStoreFactory, open_database
from fastness.persistence import FullGraph, SessionStoreCreateRequest
from fastness.replay import exported_records, import_file

FILE = "tau-bench-gpt-4o-airline.json"
DATA = "FASTNESS_BENCH_DATA"
"""The environment variable that names another folder."""
ROUNDS = {"short": 1, "full": 7}
_SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


class Replayed(NamedTuple):
    """What one import has made: turns, the seconds it took, and bytes on the disk when everything was closed."""

    turns: int
    seconds: float
    bytes_on_disk: int


def end_to_end(folder: Path, size: Size) -> Found:
    """Import the conversations on both engines in turns, read everything back, and compare it with the source."""
    source = Path(os.environ.get(DATA) or _SHARED) / FILE
    if not source.exists():
        return Found(missing={"the recorded conversations": f"{FILE} is not here; {DATA} names the folder that has it"})
    records: list[dict[str, Any]] = json.loads(source.read_bytes())
    message_bytes = sum(map(_size_of, (message for record in records for message in record["traj"])))
    found: dict[str, list[Replayed]] = {"sqlite": [], "postgres": []}
    with PostgresServer(settings=SETTINGS) as server:
        for at in range(ROUNDS[size]):
            for engine in list(found)[:: -1 if at % 2 else 1]:
                if engine == "sqlite":
                    replayed = _on_sqlite(folder / f"replayed-{at}.db", source, records)
                else:
                    with server.database() as url:
                        replayed = _on_postgres(url, source, records)
                found[engine].append(replayed)
    figures: dict[str, Value] = {
        "conversations": len(records),
        "messages": sum(len(record["traj"]) for record in records),
        "message_bytes": message_bytes,
        "turns": found["sqlite"][0].turns,
    }
    rows: dict[str, list[Value]] = {}
    for engine, rounds in found.items():
        rate = Spread.of([each.turns / each.seconds for each in rounds])
        share = Spread.of([each.bytes_on_disk / message_bytes for each in rounds])
        rows[engine] = [rate, Spread.of([each.seconds for each in rounds]), share]
        figures[f"{engine}_turns_per_s"] = rate
        figures[f"{engine}_bytes_per_message_byte"] = share
    table = Table("Imported", ("turns per second", "seconds for all", "bytes on disk per byte of message"), rows)
    return Found(figures, [table], {"PostgreSQL": server.version})


def _size_of(message: dict[str, Any]) -> int:
    return len(json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode())


def _on_sqlite(path: Path, source: Path, records: list[dict[str, Any]]) -> Replayed:
    turns, seconds = asyncio.run(_replay(f"sqlite:///{path}", source, records))
    return Replayed(turns, seconds, sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*")))


def _on_postgres(url: str, source: Path, records: list[dict[str, Any]]) -> Replayed:
    empty = _database_size(url)
    turns, seconds = asyncio.run(_replay(url, source, records))
    return Replayed(turns, seconds, _database_size(url) - empty)


def _database_size(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute("select pg_database_size(current_database())").fetchone()
    assert row is not None
    return int(row[0])


async def _replay(url: str, source: Path, records: list[dict[str, Any]]) -> tuple[int, float]:
    """Import the file, which is timed, and prove that it is there: ``RuntimeError`` where it is not."""
    async with open_database(url) as factory:
        started = time.perf_counter()
        report = await import_file(factory, source)
        seconds = time.perf_counter() - started
        checked = await factory.check()
        if checked.findings:
            raise RuntimeError(f"the database has faults after the import: {checked.findings[:3]}")
        if _sorted(await _exported(factory)) != _sorted(records):
            raise RuntimeError("what was read back is not what was imported")
    return report.turns_replayed, seconds


async def _exported(factory: EngineSessionStoreFactory) -> list[dict[str, Any]]:
    records = []
    cursor: str | None = None
    while True:
        page = await factory.list_sessions(cursor=cursor)
        for entry in page.sessions:
            store = await factory.open_existing_store(SessionStoreCreateRequest(entry.meta.session_id))
            assert store is not None
            read = await store.load_session(FullGraph())
            assert read is not None
            records += [json.loads(record) for record in exported_records(read.graph, session_id=entry.meta.session_id)]
        cursor = page.next_cursor
        if cursor is None:
            return records


def _sorted(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(records, key=lambda record: (record["task_id"], record["trial"]))


PARTS = (
    Part(
        "conversations",
        "Recorded conversations, end to end",
        end_to_end,
        """200 recorded conversations of a tool-calling agent are imported: their input is enqueued and claimed, and
each turn committed, durably, 16 conversations at a time. Afterwards the whole database is checked, and every record is
read back and compared with the source. Bytes on disk are those of the file once it is closed, or by which the database
has grown; a byte of message is one of its JSON without spaces.""",
    ),
)
