"""How fast 1, 8, 64 and 256 sessions commit at once on PostgreSQL, through one pool of the size that it has by itself.

All sessions are prepared once. Every round has a copy of that database, in which each side has a schema of its own with
the same rows.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from tests.servers.postgres import PostgresServer

from bench.findings import Found, Part, Size, Spread, Table, Value
from bench.fleet import SETTINGS, create, drive, durability, make_schemas, prepare, require_alike
from bench.function import Limit
from bench.turns import Turns
from fastness.engines.postgres import DEFAULT_POOL_SIZE

TURNS = {1: 200, 8: 60, 64: 16, 256: 8}
"""How many turns each of so many sessions makes in a round."""
COLD = {1: 50, 8: 10, 64: 3, 256: 2}
"""How many of them are not counted: connections are opened, plans made, and no handle knows its session yet."""
WARM_UP = 64
"""How many sessions commit in a round before all others, which is not counted."""
ROUNDS = {"short": 2, "full": 9}


class Crowd(NamedTuple):
    """Sessions that commit at once, with all that they will commit, and the key of the first one."""

    first: int
    sessions: Sequence[Turns]


class Timed(NamedTuple):
    """A side in one round: turns per second, and what single sessions waited for a commit, in ms and in order."""

    rate: float
    waits_ms: Sequence[float]

    @classmethod
    def of(cls, stamps: Sequence[Sequence[float]]) -> Timed:
        """Sum up when turns were done, by session: a turn begins where the one before it has ended.

        Not all of them are done at once. The rate is that of the time in which all are warm, and enough of them still
        at work for all connections.
        """
        cold = COLD[len(stamps)]
        waits = (until - since for session in stamps for since, until in pairwise(session[cold - 1 :]))
        ends = sorted(session[-1] for session in stamps)
        since, until = max(session[cold - 1] for session in stamps), ends[-min(len(ends), DEFAULT_POOL_SIZE)]
        rate = sum(since < at <= until for session in stamps for at in session) / (until - since)
        return cls(rate, sorted(wait * 1e3 for wait in waits))

    def at(self, share: float) -> float:
        """Give the wait that so large a share of them does not exceed."""
        return self.waits_ms[min(len(self.waits_ms) - 1, int(len(self.waits_ms) * share))]


class Round(NamedTuple):
    """Both sides in one round."""

    ours: Timed
    function: Timed


def at_once(folder: Path, size: Size) -> Found:
    """Turns per second and waits of ours and of the function, at 1 to 256 sessions."""
    found: dict[int, list[Round]] = {count: [] for count in TURNS}
    with PostgresServer(settings=SETTINGS) as server:
        url = server.create_database("prepared")
        crowds = _prepare(server, url)
        settings = asyncio.run(durability(url, server.version))
        gc.collect()
        gc.freeze()  # what waits to be committed is the benchmark's, and the library is not to be measured walking it
        with _copied(server, url, folder / "warm_up") as (copy, limit):
            _measure(copy, limit, crowds[WARM_UP], ours_first=True)
        for number in range(ROUNDS[size]):
            with _copied(server, url, folder / f"round_{number}") as (copy, limit):
                for count, crowd in crowds.items():
                    found[count].append(_measure(copy, limit, crowd, ours_first=bool(number % 2)))
    figures: dict[str, Value] = {}
    for count, rounds in found.items():
        p50, p99 = _waits([each.ours for each in rounds])
        figures |= {f"ratio_{count}": _ratio(rounds), f"p50_{count}_ms": p50, f"p99_{count}_ms": p99}
    return Found(figures, [_table(found)], settings)


def _prepare(server: PostgresServer, url: str) -> dict[int, Crowd]:
    """Make all sessions. That is not timed, and the server is stopped after it, so it need not wait for the disk."""
    asyncio.run(make_schemas(url))
    with server.admin() as admin:
        admin.execute("alter system set fsync = off")
        admin.execute("select pg_reload_conf()")
    crowds, first = {}, 1
    for count, turns in TURNS.items():
        names = asyncio.run(create(url, first, count))
        crowds[count] = Crowd(first, asyncio.run(prepare(url, names, turns)))
        first += count
    with server.admin() as admin:
        admin.execute("alter system reset fsync")
    server.restart()
    return crowds


@contextmanager
def _copied(server: PostgresServer, url: str, folder: Path) -> Iterator[tuple[str, Limit]]:
    """Give a copy of the database, with the same sessions on the side of the function; gone at the end."""
    prepared = str(conninfo_to_dict(url)["dbname"])
    with server.admin() as admin:
        names = map(sql.Identifier, (folder.name, prepared))
        admin.execute(sql.SQL("create database {} template {}").format(*names))
    copy = server.url(folder.name)
    folder.mkdir()
    limit = Limit(server, copy, "bare", "ours", folder)
    limit.copy(1, sum(TURNS))
    limit.settle(analyze=True)
    try:
        yield copy, limit
    finally:
        limit.close()
        server.drop_database(folder.name)


def _measure(url: str, limit: Limit, crowd: Crowd, *, ours_first: bool) -> Round:
    """Have both sides make all turns, and see that they have written the same."""
    count = len(crowd.sessions)
    found = {}
    for is_ours in (ours_first, not ours_first):
        limit.settle()
        if is_ours:
            copies = [dataclasses.replace(session, waiting=deque(session.waiting)) for session in crowd.sessions]
            stamps = asyncio.run(drive(url, copies, DEFAULT_POOL_SIZE))
        else:
            stamps = limit.run(crowd.first, count, TURNS[count] - 1, min(count, DEFAULT_POOL_SIZE))
        found[is_ours] = Timed.of(stamps)
    require_alike(limit, crowd.first, count)
    return Round(found[True], found[False])


def _table(found: Mapping[int, Sequence[Round]]) -> Table:
    rows: dict[str, list[Value]] = {}
    for count, rounds in found.items():
        ours, function = [each.ours for each in rounds], [each.function for each in rounds]
        tail = Spread.of_ratios([each.at(0.99) for each in ours], [each.at(0.99) for each in function])
        sides = [value for side in (ours, function) for value in (_rate(side), *_waits(side))]
        rows[f"{count} sessions" if count > 1 else "1 session"] = [*sides, _ratio(rounds), tail]
    columns = ("ours, turns/s", "p50, ms", "p99, ms", "the function, turns/s", "p50, ms", "p99, ms", "rate", "p99")
    return Table("Ours, the function, and ours divided by the function's", columns, rows)


def _rate(side: Sequence[Timed]) -> Spread:
    return Spread.of([each.rate for each in side])


def _waits(side: Sequence[Timed]) -> tuple[Spread, Spread]:
    return Spread.of([each.at(0.5) for each in side]), Spread.of([each.at(0.99) for each in side])


def _ratio(rounds: Sequence[Round]) -> Spread:
    return Spread.of_ratios([each.ours.rate for each in rounds], [each.function.rate for each in rounds])


PARTS = (
    Part(
        "fleet_sessions",
        "PostgreSQL: many sessions on one pool, against one function on the server",
        at_once,
        f"""With n sessions, all of them commit full turns at once, each one turn after the other, in one process with
a pool of the size that it has by itself ({DEFAULT_POOL_SIZE} connections). The function (`bench/function.sql`) is
called by `pgbench -M prepared` on as many connections (on one for the one session), each of which has as many of the
sessions as the others, and goes from one to the next after each turn. Each round is on a fresh copy of one prepared
database; the part fails unless both have written as many values and bytes in every column. A session waits from the
end of its turn before to the end of this one, so for its turn on a connection, too. Rates are taken while all sessions
are warm and as many as there are connections still at work.""",
    ),
)
