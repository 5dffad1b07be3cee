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

from bench.function import Limit
from bench.turns import Turns
from fastness.persistence import PostgresSessionStoreFactory, SessionStoreCreateRequest

ROUNDS = 5
TURNS = {1: 800, 8: 300}
"""How many turns each of so many clients makes in a round."""
COLD = 50
ONE_WAY_S = 0.0005
OVER_NETWORK = 400
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


def against_one_function(folder: Path) -> dict[str, object]:
    """Commits per second of ours divided by calls per second of the function, at 1 and at 8 connections."""
    with PostgresServer(settings=SETTINGS) as server, server.database() as url:
        asyncio.run(_make_schemas(url))
        limit = Limit(server, url, "bare", "ours", folder)
        bench = _Side(url, limit)
        bench.warm_up()
        rounds = [bench.round() for _ in range(ROUNDS)]
        size = bench.sizes
        limit.close()
        version = server.version
    rates = {name: [found[name] for found in rounds] for name in rounds[0]}
    return {
        "server": f"PostgreSQL {version}, fsync on",
        "driver": f"psycopg {psycopg.__version__}, libpq {psycopg.pq.version()}",
        "script": "bench/function.sql, called by pgbench -M prepared",
        **{f"{name}_per_s": round(statistics.median(found)) for name, found in rates.items()},
        "ratio_1_connection": _ratio(rates["ours_1"], rates["function_1"]),
        "ratio_8_connections": _ratio(rates["ours_8"], rates["function_8"]),
        "ratio_8_connections_in_2_processes": _ratio(rates["ours_2_processes"], rates["function_2_processes"]),
        "noise_function_1": _spread(rates["function_1"]),
        "noise_function_8": _spread(rates["function_8"]),
        **size,
    }


async def _make_schemas(url: str) -> None:
    for schema in ("ours", "bare"):
        async with PostgresSessionStoreFactory(url, schema=schema) as factory:
            await factory.list_sessions()


class _Side:
    """The two sides on one server, and what was measured of them."""

    def __init__(self, url: str, limit: Limit) -> None:
        self._url = url
        self._limit = limit
        self._next = 1
        self._odd = False
        self.sizes: dict[str, object] = {}

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
            logged: dict[str, float] = {}
            for side in ("ours", "function") if self._odd else ("function", "ours"):
                self._limit.settle()
                before = self._limit.log_position()
                stamps = commit(workers) if side == "ours" else self._limit.run(first, clients, turns - 1)
                logged[side] = (self._limit.log_position() - before) / (clients * (turns - 1))
                found[f"{side}_{clients}"] = steady_rate(stamps)
            self._compare(first, clients, turns, logged)
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
        names = asyncio.run(_create(self._url, first, count))
        workers = [Worker(self._url, names[at::processes], turns) for at in range(processes)]
        for worker in workers:
            worker.ready()
        self._limit.copy(first, count)
        self._limit.settle(analyze=True)
        return first, workers

    def _compare(self, first: int, clients: int, turns: int, logged: dict[str, float]) -> None:
        for side, schema in (("ours", "ours"), ("function", "bare")):
            rows, size = self._limit.written(schema, first, clients)
            self.sizes[f"{side}_{clients}_rows_per_turn"] = rows / clients / turns
            self.sizes[f"{side}_{clients}_bytes_per_turn"] = size / clients / turns
            self.sizes[f"{side}_{clients}_log_bytes_per_turn"] = logged[side]


async def _create(url: str, first: int, count: int) -> list[str]:
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


async def drive(url: str, sessions: Sequence[Turns]) -> list[list[float]]:
    """Commit all turns of all sessions at once in this process, each session on a connection of its own."""
    async with PostgresSessionStoreFactory(url, schema="ours", pool_size=len(sessions)) as factory:

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


def over_a_network(folder: Path) -> dict[str, object]:
    """What a commit takes behind a proxy that holds every message for half a millisecond each way."""
    del folder
    with PostgresServer(settings=SETTINGS) as server, server.database() as url:
        asyncio.run(_make_schemas(url))
        sessions = asyncio.run(prepare(url, ("one", "other"), OVER_NETWORK))
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute("vacuum analyze")
        with Proxy.spawn(url, delay_s=ONE_WAY_S) as proxy:
            return asyncio.run(_over(proxy, proxy.url(url), sessions))


async def _over(proxy: Proxy, url: str, sessions: Sequence[Turns]) -> dict[str, object]:
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
    return {
        "select_1_ms": round(call * 1e3, 3),
        "commit_ms": whole * 1e3,
        "commit_ms_p90": round(statistics.quantiles(commits[COLD:], n=10)[-1] * 1e3, 2),
        "round_trips_of_a_commit": max(trips[COLD:]),
        "round_trips_of_a_commit_without_a_hint": unknown,
    }


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))


def _spread(rates: Sequence[float]) -> float:
    """How far rounds lay apart: the largest divided by the smallest."""
    return max(rates) / min(rates)
