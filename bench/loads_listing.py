"""How long a page of a list of 100,000 sessions takes, by each filter, whether it fits many, few or none.

The directory is filled by bulk inserts straight into the tables: sessions with a description, a lane, a head and their
labels. Their transcripts are left out, which no listing reads. Sessions are spread over a thousand users by their ids;
one in a hundred has a parent; all have the label ``all``, every other one ``even``, every hundredth ``some``, ten of
them ``few``. The filters take turns, page by page, on both engines.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path

import apsw
import psycopg

from bench.dispatch.part import places
from bench.findings import Found, Part, Size, Spread, Table, Value
from fastness.factory import EngineSessionStoreFactory, open_database
from fastness.model import SessionFilter
from fastness.sql.program import Param, Program, Statement, Write

SESSIONS = 100_000
CHUNK = 10_000
FIRST_MS = 1_700_000_000_000
EVERY_MS = 1000
"""A session began so long after the one before."""
LIMIT = 100
ROUNDS = {"short": 15, "full": 100}
WARM_UP = 3
DEEP = SESSIONS * 9 // 10

_NUMBERS = "with recursive n (i) as (select cast($1 as bigint) + 1 union all select i + 1 from n where i < $2)"
_META = (
    """'{"v":1,"session_id":"user-' || (i % 1000) || '-' || i || '","session_name":"About the flight on the """
    """fourteenth","created_at":"2026-05-01T12:00:00.000Z","model":"model-1","cwd":"/srv/agents/support",'"""
    """ || '"labels":["all","support"],"custom":{"tenant":"north","plan":"team"}}'"""
)
ADD_SESSIONS = f"""
    insert into session (session_id, created_ms, parent_session_id, meta)
    {_NUMBERS} select 'user-' || (i % 1000) || '-' || i, {FIRST_MS} + i * {EVERY_MS},
        case when i % 100 = 0 then 'user-' || (i % 10) end, {_META} from n"""
ADD_LANES = "insert into lane (sid) select sid from session where sid > $1 and sid <= $2"
ADD_HEADS = f"""
    insert into head (sid, revision, leaf_node_id, node_count, next_seq, config, updated_ms)
    select sid, 7, null, 28, 29, '{{"v":1}}', {FIRST_MS} from session where sid > $1 and sid <= $2"""
ADD_LABELS = """
    insert into session_label (sid, label)
    select sid, '{label}' from session where sid % {every} = 0 and sid > $1 and sid <= $2"""
LABELS = {"all": 1, "even": 2, "some": 100, "few": 10_000}

LAST_MS = FIRST_MS + SESSIONS * EVERY_MS
FILTERS: Mapping[str, SessionFilter] = {
    "none": SessionFilter(),
    "prefix of all": SessionFilter(id_prefix="user-"),
    "prefix of 1 in 9": SessionFilter(id_prefix="user-1"),
    "prefix of 100": SessionFilter(id_prefix="user-77-"),
    "prefix of none": SessionFilter(id_prefix="nobody"),
    "parent of 1,000": SessionFilter(parent_session_id="user-0"),
    "parent of none": SessionFilter(parent_session_id="nobody"),
    "from the first on": SessionFilter(created_from_ms=FIRST_MS),
    "last 30 of 100": SessionFilter(created_from_ms=LAST_MS - SESSIONS * 3 // 10 * EVERY_MS),
    "last 1,000": SessionFilter(created_from_ms=LAST_MS - 1000 * EVERY_MS),
    "10 in the middle": SessionFilter(
        created_from_ms=FIRST_MS + DEEP * EVERY_MS, created_until_ms=FIRST_MS + (DEEP + 10) * EVERY_MS
    ),
    "after the last": SessionFilter(created_from_ms=LAST_MS + 1),
    "before the first": SessionFilter(created_until_ms=FIRST_MS - 1),
    "label of all": SessionFilter(labels=("all",)),
    "label of 10": SessionFilter(labels=("few",)),
    "label of none": SessionFilter(labels=("nobody",)),
    "labels of half and 1 in 100": SessionFilter(labels=("even", "some")),
    "labels of all and 10": SessionFilter(labels=("all", "few")),
    "label of half, last 1,000": SessionFilter(labels=("even",), created_from_ms=LAST_MS - 1000 * EVERY_MS),
    "label of half, prefix of 100": SessionFilter(labels=("even",), id_prefix="user-77-"),
    "prefix of 1 in 9, last 1,000": SessionFilter(id_prefix="user-1", created_from_ms=LAST_MS - 1000 * EVERY_MS),
    "label of 1 in 100, prefix of none": SessionFilter(labels=("some",), id_prefix="nobody"),
}


def listing(folder: Path, size: Size) -> Found:
    """The median time of a page by each filter, and of pages deep in the list."""
    found = Found()
    taken: dict[str, dict[str, Spread]] = {}
    with places(folder) as made:
        for engine, place in made.items():
            with place.database() as url:
                taken[engine] = asyncio.run(_measure(url, ROUNDS[size]))
    for engine, spreads in taken.items():
        slowest = max(spreads, key=lambda name: spreads[name].median)
        suffix = "" if engine == "sqlite" else f"_{engine}"
        found.figures[f"page_filtered{suffix}_ms"] = spreads[slowest]
        found.figures[f"slowest_filter{suffix}"] = slowest
    rows: dict[str, list[Value]] = {name: [taken[engine][name] for engine in taken] for name in taken["sqlite"]}
    title = f"A page of {LIMIT} of {SESSIONS:,} sessions, ms"
    found.tables.append(Table(title, ["filter", *(f"{engine}, ms" for engine in taken)], rows))
    return found


async def _measure(url: str, rounds: int) -> dict[str, Spread]:
    async with open_database(url) as factory:
        await fill(factory)
        await asyncio.to_thread(_take_statistics, url)
        deep = await _deep_cursors(factory)
        asked = {name: (filters, None) for name, filters in FILTERS.items()} | deep
        taken: dict[str, list[float]] = {name: [] for name in asked}
        for at in range(rounds + WARM_UP):
            for name, (filters, cursor) in asked.items():
                started = time.perf_counter()
                await factory.list_sessions(limit=LIMIT, cursor=cursor, filters=filters)
                if at >= WARM_UP:
                    taken[name].append((time.perf_counter() - started) * 1e3)
    return {name: Spread.of(values) for name, values in taken.items()}


async def _deep_cursors(
    factory: EngineSessionStoreFactory,
) -> dict[str, tuple[SessionFilter, str | None]]:
    """Cursors of pages that begin behind nine tenths of the list."""
    page = await factory.list_sessions(limit=1, filters=FILTERS["10 in the middle"])
    assert page.next_cursor is not None
    wanted = ("none", "label of all", "prefix of 1 in 9")
    return {f"{name}, behind {DEEP:,}": (FILTERS[name], page.next_cursor) for name in wanted}


async def fill(factory: EngineSessionStoreFactory, sessions: int = SESSIONS) -> None:
    """Fill the directory of an empty database. The keys of sessions are drawn from one on."""
    for first in range(0, sessions, CHUNK):
        last = first + CHUNK
        await _write(factory, ADD_SESSIONS, first, last)
        await _write(factory, ADD_LANES, first, last)
        await _write(factory, ADD_HEADS, first, last)
        for label, every in LABELS.items():
            await _write(factory, ADD_LABELS.format(label=label, every=every), first, last)


async def _write(factory: EngineSessionStoreFactory, statement: str, *params: Param) -> None:
    def program() -> Program[None]:
        yield Write(Statement(statement, params))

    await factory.engine.write(program)


def _take_statistics(url: str) -> None:
    """Have the server look at what came in, as its autovacuum does; SQLite goes without, as it comes."""
    if url.startswith("postgres"):
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute("vacuum analyze")
    else:
        apsw.Connection(url.removeprefix("sqlite:///")).close()


PARTS = (Part("listing", "A page of 100,000 sessions", listing),)
