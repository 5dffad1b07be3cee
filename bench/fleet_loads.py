"""How fast a session is loaded from PostgreSQL, against psycopg's raw rows and decoding.

Each side is measured in a fresh interpreter, one after the other, round by round: connect, load once to get warm, then
load some more times. The raw side reads the same columns in binary, bodies as bytes, and decodes them the fastest way
there is; it checks nothing.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import psycopg
from tests.servers.postgres import PostgresServer

from bench import raw
from bench.findings import Found, Part, Size, Spread, Value
from bench.fleet import SETTINGS
from bench.turns import Turns
from fastness.persistence import (
    FullGraph,
    PostgresSessionStoreFactory,
    SessionNodeRecord,
    SessionStoreCreateRequest,
)

NODES = 10_000
ROUNDS = {"short": 5, "full": 11}
TIMES = 5

_ROWS = """
    select node_id, coalesce(parent_seq, 0), convert_to(body, 'UTF8') from fastness.node
    where sid = 1 and tombstoned = 0 order by seq"""


def against_raw_rows(folder: Path, size: Size) -> Found:
    """Loading 10,000 nodes through the API against reading the rows and decoding them."""
    del folder
    sides = {"ours": _ours, "raw_as_one_array": _raw_as_one_array, "raw_one_by_one": _raw_one_by_one}
    found: dict[str, list[float]] = {name: [] for name in sides}
    with PostgresServer(settings=SETTINGS) as server, server.database() as url:
        asyncio.run(_fill(url))
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute("vacuum analyze")
        for at in range(ROUNDS[size]):
            for name, side in list(sides.items())[:: -1 if at % 2 else 1]:
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
                    found[name].append(fresh.submit(_run, side, url).result() * 1e3)
        version = server.version
    faster = min(("raw_as_one_array", "raw_one_by_one"), key=lambda name: statistics.median(found[name]))
    figures: dict[str, Value] = {f"{name}_ms": Spread.of(taken) for name, taken in found.items()}
    return Found(figures | {"ratio": Spread.of_ratios(found["ours"], found[faster])}, settings={"PostgreSQL": version})


async def _fill(url: str) -> None:
    async with PostgresSessionStoreFactory(url) as factory:
        await Turns.prepare(factory, "session", 0, nodes=NODES)


def _run(side: Callable[[str], Awaitable[float]], url: str) -> float:
    return asyncio.run(side(url))  # type: ignore[arg-type]


async def _ours(url: str) -> float:
    async with PostgresSessionStoreFactory(url, pool_size=1) as factory:
        store = await factory.open_existing_store(SessionStoreCreateRequest("session"))
        assert store is not None

        async def load() -> int:
            read = await store.load_session(FullGraph())
            return len(read.graph.nodes) if read else 0

        return await _timed(load)


async def _raw(url: str, decode: Callable[[list[raw.Row]], list[SessionNodeRecord]]) -> float:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute("set enable_seqscan = off")  # as the engine has it: rows come in order from the index

        async def load() -> int:
            async with connection.cursor(binary=True) as cursor:
                await cursor.execute(_ROWS, prepare=True)
                rows = await cursor.fetchall()
            return len(decode(rows))

        return await _timed(load)


async def _raw_as_one_array(url: str) -> float:
    return await _raw(url, raw.as_one_array)


async def _raw_one_by_one(url: str) -> float:
    return await _raw(url, raw.one_by_one)


async def _timed(load: Callable[[], Awaitable[int]]) -> float:
    seconds = []
    for _ in range(TIMES + 1):
        started = time.perf_counter()
        count = await load()
        seconds.append(time.perf_counter() - started)
        assert count == NODES
    return statistics.median(seconds[1:])


PARTS = (
    Part(
        "fleet_reading",
        "PostgreSQL: loading 10,000 nodes",
        against_raw_rows,
        """Against psycopg's raw rows in binary, made nodes of in two ways, not checked; the ratio is to the faster one.
Each side in a fresh interpreter: one load to get warm, then the median of five.""",
    ),
)
