"""How fast turns are committed on PostgreSQL: against one function on the server, and over a network.

A server of its own is started for it, durable. Both sides work on it in turns, each in a schema with the tables that
the engine made, on sessions with the same rows. A rate is taken while all clients are at work: from the moment when
each has made its first turns (they open connections and have plans made) to the moment when the first one is done.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import statistics
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import psycopg
from tests.servers.postgres import PostgresServer
from tests.servers.proxy import Proxy

from bench.findings import Found, Part, Size, Spread, Table, Value
from bench.function import Limit
from bench.turns import Turns
from fastness.persistence import PostgresSessionStoreFactory, SessionStoreCreateRequest
from fastness.sql.program import Program, Read, Statement, Write

ROUNDS = {"short": 3, "full": 9}
TURNS = {1: 400, 8: 150}
"""How many turns each of so many clients makes in a round."""
COLD = 50
ONE_WAY_S = {"1_ms": 0.0005, "5_ms": 0.0025}
"""How long messages are held each way, by the round-trip time that this makes."""
OVER_NETWORK = {"short": 250, "full": 600}
_DURABLE = ("fsync", "synchronous_commit", "full_page_writes", "wal_sync_method")
SETTINGS = {"shared_buffers": "128MB"}
"""What PostgreSQL has by itself; the tests' servers have less."""

_fresh = multiprocessing.get_context("spawn")


class Worker:
    """A fresh process that prepares sessions, and commits their turns when it is told to."""

    def __init__(self, url: str, names: Sequence[str], turns: int) -> None:
        self._pipe, theirs = _fresh.Pipe()
        self._process = _fresh.Process(target=_work, args=(theirs, url, names, turns), daemon=True)
        self._process.start()

    def ready(self) -> None:
        """Return when everything is prepared."""
        self._pipe.recv()

    def begin(self) -> None:
        """Have it commit."""
        self._pipe.send(None)

    def stamps(self) -> list[list[float]]:
        """Wait for the end: when each turn was done, by session."""
        found: list[list[float]] = self._pipe.recv()
        self._process.join()
        return found


def against_one_function(folder: Path, size: Size) -> Found:
    """Commits per second of ours divided by calls per second of the function, at 1 and at 8 connections."""
    with PostgresServer(settings=SETTINGS) as server, server.database() as url:
        asyncio.run(make_schemas(url))
        limit = Limit(server, url, "bare", "ours", folder)
        bench = _Sides(url, limit)
        bench.warm_up()
        rounds = [bench.round() for _ in range(ROUNDS[size])]
        limit.close()
        settings = asyncio.run(durability(url, server.version))
    rates = {name: [found[name] for found in rounds] for name in rounds[0]}
    rows: dict[str, list[Value]] = {}
    for title, name in (
        ("1 connection", "1"),
        ("8 connections", "8"),
        ("8 connections in 2 processes", "2_processes"),
    ):
        ours, function = rates[f"ours_{name}"], rates[f"function_{name}"]
        rows[title] = [Spread.of(ours), Spread.of(function), Spread.of_ratios(ours, function)]
    figures: dict[str, Value] = {
        "ratio_1_connection": rows["1 connection"][2],
        "ratio_8_connections": rows["8 connections"][2],
        "ratio_8_connections_in_2_processes": rows["8 connections in 2 processes"][2],
    }
    return Found(
        figures,
        [
            Table("Turns per second", ("ours", "the function", "ratio"), rows),
            Table("What the last round has written, for each turn", bench.COLUMNS, bench.written),
        ],
        settings,
    )


async def durability(url: str, version: str) -> dict[str, str]:
    """Read back what decides durability, on a connection of the library; the function has the server's own settings."""

    def program() -> Program[list[str]]:
        """Ask, and write nothing."""
        rows = yield Read(*(Statement(f"select current_setting('{name}')") for name in _DURABLE))
        yield Write(last=True)
        return [row[0][0] for row in rows]

    async with PostgresSessionStoreFactory(url, schema="ours", pool_size=1) as factory:
        ours = await factory.engine.write(program)
    with psycopg.connect(url) as plain:
        theirs = [plain.execute(f"show {name}").fetchone() for name in _DURABLE]
    return {
        "PostgreSQL": version,
        "ours": ", ".join(f"{name}={value}" for name, value in zip(_DURABLE, ours, strict=True)),
        "the server": ", ".join(f"{name}={row[0]}" for name, row in zip(_DURABLE, theirs, strict=True) if row),
    }


async def make_schemas(url: str) -> None:
    """Have the engine make its tables in a schema for each side."""
    for schema in ("ours", "bare"):
        async with PostgresSessionStoreFactory(url, schema=schema) as factory:
            await factory.list_sessions()


class _Sides:
    """The two sides on one server, and what was measured of them."""

    COLUMNS = ("rows", "bytes of rows", "bytes of the server's log", "syncs of the log")

    def __init__(self, url: str, limit: Limit) -> None:
        self._url = url
        self._limit = limit
        self._next = 1
        self._odd = False
        self.written: dict[str, list[Value]] = {}

    def warm_up(self) -> None:
        """Fill the tables of both sides, so that plans are made for tables that are not empty."""
        first, workers = self._prepared(8, 1, 60)
        self._limit.run(first, 8, 59)
        commit(workers)

    def round(self) -> dict[str, float]:
        """Measure every row once, in another order each time."""
        self._odd = not self._odd
        found: dict[str, float] = {}
        for clients, turns in TURNS.items():
            first, workers = self._prepared(clients, 1, turns)
            cost: dict[str, tuple[float, float]] = {}
            for side in ("ours", "function") if self._odd else ("function", "ours"):
                self._limit.settle()
                before, synced = self._limit.log_position(), self._limit.log_syncs()
                stamps = commit(workers) if side == "ours" else self._limit.run(first, clients, turns - 1)
                made = clients * (turns - 1)
                cost[side] = (
                    (self._limit.log_position() - before) / made,
                    (self._limit.log_syncs() - synced) / made,
                )
                found[f"{side}_{clients}"] = steady_rate(stamps)
            self._compare(first, clients, turns, cost)
        # For information: the same sessions on the other side, too, so that the tables of both stay equally large.
        first, workers = self._prepared(8, 2, TURNS[8])
        self._limit.settle()
        found["function_2_processes"] = steady_rate(self._limit.run(first, 8, TURNS[8] - 1))
        self._limit.settle()
        found["ours_2_processes"] = steady_rate(commit(workers))
        return found

    def _prepared(self, count: int, processes: int, turns: int) -> tuple[int, list[Worker]]:
        """Prepare sessions for so many turns in fresh processes, and copy them to the other side."""
        first, self._next = self._next, self._next + count
        names = asyncio.run(create(self._url, first, count))
        workers = [Worker(self._url, names[at::processes], turns) for at in range(processes)]
        for worker in workers:
            worker.ready()
        self._limit.copy(first, count)
        self._limit.settle(analyze=True)
        return first, workers

    def _compare(self, first: int, clients: int, turns: int, cost: dict[str, tuple[float, float]]) -> None:
        require_alike(self._limit, first, clients)
        for side, schema in (("ours", "ours"), ("function", "bare")):
            rows, size = self._limit.written(schema, first, clients)
            made = clients * turns
            self.written[f"{side}, {clients} at once"] = [rows / made, size / made, *cost[side]]


def require_alike(limit: Limit, first: int, sessions: int) -> None:
    """Refuse to compare two sides that have not written as many values and bytes."""
    if unlike := limit.unlike(first, sessions):
        raise RuntimeError(f"the function does not write what the library writes: {'; '.join(unlike)}")


async def create(url: str, first: int, count: int) -> list[str]:
    """Make sessions that are named by their keys, by which the function knows them."""
    async with PostgresSessionStoreFactory(url, schema="ours") as factory:
        names = [f"session-{key}" for key in range(first, first + count)]
        for name in names:
            await factory.create_store(SessionStoreCreateRequest(name))
    return names


def commit(workers: Sequence[Worker]) -> list[list[float]]:
    """Have all workers commit at once: when each turn was done, by session."""
    for worker in workers:
        worker.begin()
    return [stamps for worker in workers for stamps in worker.stamps()]


def _work(pipe: Connection, url: str, names: Sequence[str], turns: int) -> None:
    sessions = asyncio.run(prepare(url, names, turns))
    gc.collect()
    gc.freeze()  # what waits to be committed is the benchmark's, and the library is not to be measured walking it
    pipe.send(None)
    pipe.recv()
    pipe.send(asyncio.run(drive(url, sessions)))


async def prepare(url: str, names: Sequence[str], turns: int) -> list[Turns]:
    """Prepare the turns of sessions, and make the first one of each."""
    async with PostgresSessionStoreFactory(url, schema="ours") as factory:
        sessions = await asyncio.gather(*(Turns.prepare(factory, name, turns) for name in names))
        for session in sessions:
            await session.turn()
    return sessions


async def drive(url: str, sessions: Sequence[Turns], pool_size: int | None = None) -> list[list[float]]:
    """Commit all turns of all sessions at once in this process: when each turn was done, by session.

    The sessions share so many connections; where it is not said how many, each has one of its own.
    """
    async with PostgresSessionStoreFactory(url, schema="ours", pool_size=pool_size or len(sessions)) as factory:

        async def all_turns(session: Turns) -> list[float]:
            await reopen(factory, session)
            stamps = []
            while session.waiting:
                await session.turn()
                stamps.append(time.time())
            return stamps

        return await asyncio.gather(*map(all_turns, sessions))


async def reopen(factory: PostgresSessionStoreFactory, session: Turns) -> None:
    """Go on with a session on fresh connections, and with a handle that knows nothing yet."""
    store = await factory.open_existing_store(SessionStoreCreateRequest(session.store.session_id))
    assert store is not None
    session.store = store


def steady_rate(stamps: Sequence[Sequence[float]]) -> float:
    """Give the turns per second while all clients are warm and at work."""
    since, until = max(client[COLD - 1] for client in stamps), min(client[-1] for client in stamps)
    return sum(since < at <= until for client in stamps for at in client) / (until - since)


def over_a_network(folder: Path, size: Size) -> Found:
    """What a commit takes behind a proxy that holds every message for half the round-trip time each way."""
    del folder
    figures: dict[str, Value] = {}
    with PostgresServer(settings=SETTINGS) as server, server.database() as url:
        asyncio.run(make_schemas(url))
        for name, one_way_s in ONE_WAY_S.items():
            sessions = asyncio.run(prepare(url, (f"one {name}", f"other {name}"), OVER_NETWORK[size]))
            with psycopg.connect(url, autocommit=True) as admin:
                admin.execute("vacuum analyze")
            with Proxy.spawn(url, delay_s=one_way_s) as proxy:
                found = asyncio.run(_over(proxy, proxy.url(url), sessions))
            figures |= {f"{figure}_{name}": value for figure, value in found.items()}
        settings = asyncio.run(durability(url, server.version))
    return Found(figures, settings=settings)


async def _over(proxy: Proxy, url: str, sessions: Sequence[Turns]) -> dict[str, Value]:
    commits, calls, trips = [], [], []
    async with (
        await psycopg.AsyncConnection.connect(url, autocommit=True) as plain,
        PostgresSessionStoreFactory(url, schema="ours", pool_size=1) as factory,
    ):
        turns, other = sessions
        for session in sessions:
            await reopen(factory, session)
        await turns.turn()
        proxy.reset()
        await other.turn()
        unknown = proxy.round_trips
        while turns.waiting:
            proxy.reset()
            started = time.perf_counter()
            await turns.turn()
            commits.append(time.perf_counter() - started)
            trips.append(proxy.round_trips)
            started = time.perf_counter()
            await plain.execute("select 1", prepare=True)
            calls.append(time.perf_counter() - started)
    call, whole = statistics.median(calls[COLD:]), statistics.median(commits[COLD:])
    p90 = statistics.quantiles(commits[COLD:], n=10)[-1]
    return {
        "commit": whole * 1e3,
        "commit_p90": p90 * 1e3,
        "select_1": call * 1e3,
        "round_trips": max(trips[COLD:]),
        "round_trips_without_a_hint": unknown,
    }


PARTS = (
    Part(
        "fleet",
        "PostgreSQL: commits against one function on the server",
        against_one_function,
        """The function (`bench/function.sql`) does on the server what a full turn commit does, and is called by
`pgbench -M prepared` with 1 and 8 clients; the library has 1 and 8 connections in one process. Both work on one server
in turns, on sessions with the same rows; the part fails unless both have written as many values and bytes in every
column. Rates are taken while all clients are warm. The syncs of the log are those of the clients' own processes on the
server.""",
    ),
    Part(
        "network",
        "PostgreSQL: a commit over a network",
        over_a_network,
        """A proxy in a process of its own holds everything for half of the round-trip time each way; `select 1` on a
plain connection of its own goes through it after each commit, and shows what one round trip takes. Milliseconds, but
for the round trips. "Without a hint" is the first commit of a handle that knows nothing of its session.""",
    ),
)
