"""What commits pay for maintenance beside them: vacuum, the collection of blobs, and checkpoints.

Eight sessions of one process commit; another process maintains the same database, as ``fastness maintain`` beside a
worker does. Rounds without maintenance alternate with rounds of each kind. Before a round the maintainer makes the
litter that it will find, so that it has work for the whole round; only commits that fall into that time count.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import multiprocessing
import os
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import apsw
import psycopg
from tests.servers.postgres import PostgresServer

from bench.findings import Found, Part, Size, Spread, Table
from bench.fleet import SETTINGS
from bench.turns import Turns
from fastness.engines.sqlite import SqliteEngine
from fastness.engines.sqlite_wal import passive_checkpoint
from fastness.persistence import (
    EngineSessionStoreFactory,
    SessionStoreCreateRequest,
    open_database,
)
from fastness.sql.program import Many, Param, Program, Read, Statement, Write

SESSIONS = 8
TURNS = {"short": 100, "full": 400}
"""How many turns each session makes in a round, at most."""
ROUNDS = {"short": 2, "full": 7}
LITTERED = 2
NODES = 5_000
EVIDENCE = 5_000
BLOBS = 8_000
BLOB_BYTES = 1_000
_PAUSE_S = 0.02
"""Between two checkpoints."""

_QUIET = "quiet"
_KINDS = (_QUIET, "vacuum", "collection", "checkpoint")
_fresh = multiprocessing.get_context("spawn")

_ADD_EVIDENCE = """
    insert into turn_input_evidence (sid, seq, input_id, source_key, state, enqueued_ms, settled_ms, body)
    select sid, $2, $3, $4, 'completed', 0, 0, $5 from session where session_id = $1"""
_ADD_BLOB = "insert into blob (ref, body) values ($1, $2)"
_BODY = "x" * 250


class Stretch(NamedTuple):
    """From when until when something lasted, by the clock that all processes of the machine share, in s."""

    began: float
    ended: float

    def meets(self, other: Stretch) -> bool:
        """Whether there was a time when both were."""
        return self.began < other.ended and other.began < self.ended


class Round(NamedTuple):
    """What was seen of one round."""

    latencies_ms: Sequence[float]
    wal_mib: float
    maintained_s: float


def beside(folder: Path, size: Size) -> Found:
    """Measure both engines."""
    found = Found()
    with PostgresServer(settings=SETTINGS) as server, server.database() as url:
        found.settings["postgres"] = f"PostgreSQL {server.version}, {_durability(url)}"
        for engine, place in (("sqlite", f"sqlite:///{folder / 'kept.db'}"), ("postgres", url)):
            if engine == "sqlite":
                found.settings["sqlite"] = asyncio.run(_settings(place))
            _sum_up(found, engine, asyncio.run(_measure(place, size)))
    return found


def _sum_up(found: Found, engine: str, rounds: dict[str, list[Round]]) -> None:
    rows = {}
    p99s = {kind: [_quantile(one.latencies_ms, 0.99) for one in seen] for kind, seen in rounds.items()}
    for kind, seen in rounds.items():
        p50 = Spread.of([_quantile(one.latencies_ms, 0.5) for one in seen])
        p99 = Spread.of(p99s[kind])
        ratio = Spread.of_ratios(p99s[kind], p99s[_QUIET])
        name = "quiet" if kind == _QUIET else f"beside_{kind}"
        found.figures[f"p50_{name}_{engine}_ms"] = p50
        found.figures[f"p99_{name}_{engine}_ms"] = p99
        if kind != _QUIET:
            found.figures[f"ratio_p99_{name}_{engine}"] = ratio
        rows[kind] = (
            p50,
            p99,
            max(max(one.latencies_ms) for one in seen),
            None if kind == _QUIET else ratio,
            sum(len(one.latencies_ms) for one in seen),
            Spread.of([one.maintained_s for one in seen]) if kind != _QUIET else None,
            max(one.wal_mib for one in seen) if engine == "sqlite" else None,
        )
    if engine == "sqlite":
        found.figures["largest_wal_mib"] = max(one.wal_mib for seen in rounds.values() for one in seen)
    heads = ("p50, ms", "p99, ms", "worst, ms", "p99 / quiet", "commits", "maintained for, s", "largest log, MiB")
    found.tables.append(Table(f"Commits of {SESSIONS} sessions beside maintenance, {engine}", heads, rows))


async def _measure(url: str, size: Size) -> dict[str, list[Round]]:
    found: dict[str, list[Round]] = {kind: [] for kind in _KINDS}
    async with open_database(url) as factory:
        await _round(factory, None, "warm-up", TURNS[size] // 4)
        maintainer = _Maintainer(url)
        for at in range(ROUNDS[size]):
            for kind in _KINDS:
                name = f"{kind}-{at}"
                if kind != _QUIET:
                    maintainer.litter(kind, name)
                found[kind].append(await _round(factory, None if kind == _QUIET else maintainer, name, TURNS[size]))
        maintainer.close()
    return found


async def _round(factory: EngineSessionStoreFactory, maintainer: _Maintainer | None, name: str, turns: int) -> Round:
    sessions = await asyncio.gather(*(Turns.prepare(factory, f"{name}-{at}", turns) for at in range(SESSIONS)))
    done: list[Stretch] = []
    log = _Log(factory)
    log.start_over()

    async def commit(session: Turns) -> None:
        for _ in range(turns):
            began = time.monotonic()
            await session.turn()
            done.append(Stretch(began, time.monotonic()))
            log.look()

    if maintainer is not None:
        maintainer.begin()
    began = time.monotonic()
    await asyncio.gather(*(commit(session) for session in sessions))
    meanwhile = Stretch(began, time.monotonic())
    if maintainer is not None:
        meanwhile = await asyncio.to_thread(maintainer.end)
    counted = [(one.ended - one.began) * 1e3 for one in done if one.meets(meanwhile)]
    return Round(counted, log.largest / 2**20, meanwhile.ended - meanwhile.began)


class _Log:
    """The largest size of SQLite's log so far; of PostgreSQL there is nothing to see here."""

    def __init__(self, factory: EngineSessionStoreFactory) -> None:
        self.largest = 0
        engine = factory.engine
        self._path = f"{engine.path}-wal" if isinstance(engine, SqliteEngine) else None

    def start_over(self) -> None:
        """Empty it: the file keeps the size that it once had, and what was done before is not to be seen."""
        if self._path is not None:
            db = apsw.Connection(self._path.removesuffix("-wal"))
            db.execute("select count(*) from session").fetchall()  # before its first read it knows of no log
            while True:
                with contextlib.suppress(apsw.BusyError):  # somebody is at a checkpoint still
                    db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
                    break
                time.sleep(_PAUSE_S)
            db.close()

    def look(self) -> None:
        """Look at it."""
        if self._path is not None:
            self.largest = max(self.largest, Path(self._path).stat().st_size)


class _Maintainer:
    """A process that maintains the database when it is told to."""

    def __init__(self, url: str) -> None:
        self._pipe, theirs = _fresh.Pipe()
        self._process = _fresh.Process(target=_maintain, args=(theirs, url), daemon=True)
        self._process.start()

    def litter(self, kind: str, name: str) -> None:
        """Have it make what there will be to do. Blocks until it is there."""
        self._pipe.send((kind, name))
        self._pipe.recv()

    def begin(self) -> None:
        """Have it begin."""
        self._pipe.send(None)

    def end(self) -> Stretch:
        """Wait until it has done all there is to do; what has no end is told to end."""
        self._pipe.send(None)
        found: Stretch = self._pipe.recv()
        return found

    def close(self) -> None:
        """End the process."""
        self._pipe.send(None)
        self._process.join()


def _maintain(pipe: Connection, url: str) -> None:
    asyncio.run(_maintaining(pipe, url))


async def _maintaining(pipe: Connection, url: str) -> None:
    async with open_database(url) as factory:
        while (told := await asyncio.to_thread(pipe.recv)) is not None:
            kind, name = told
            if kind == "vacuum":
                await _leave_rows(factory, name)
            elif kind == "collection":
                await _leave_blobs(factory, name)
            pipe.send(None)
            pipe.recv()
            began = time.monotonic()
            if kind == "vacuum":
                await _vacuum(factory)
            elif kind == "collection":
                await factory.gc_unreachable()
            else:
                await asyncio.to_thread(_checkpoints, pipe, url)
            ended = time.monotonic()
            if kind != "checkpoint":
                pipe.recv()
            pipe.send(Stretch(began, ended))


async def _leave_rows(factory: EngineSessionStoreFactory, name: str) -> None:
    """Leave sessions with nodes that are hidden and with evidence of inputs."""
    for at in range(LITTERED):
        session_id = f"{name}-littered-{at}"
        session = await Turns.prepare(factory, session_id, 0, nodes=NODES)
        await session.store.tombstone_nodes([f"old-{node}" for node in range(NODES)])
        rows: list[tuple[Param, ...]] = [
            (session_id, seq, f"{seq:032x}", f"key-{seq}", _BODY) for seq in range(EVIDENCE)
        ]
        await _write(factory, Many(_ADD_EVIDENCE, rows))


async def _leave_blobs(factory: EngineSessionStoreFactory, name: str) -> None:
    """Leave content that nobody needs."""
    rows: list[tuple[Param, ...]] = []
    for at in range(BLOBS):
        content = f"{name} {at} ".encode() + os.urandom(BLOB_BYTES)
        rows.append((hashlib.sha256(content).hexdigest(), content))
    await _write(factory, Many(_ADD_BLOB, rows))


async def _write(factory: EngineSessionStoreFactory, many: Many) -> None:
    def program() -> Program[None]:
        """Write all of them."""
        yield Write(many)

    await factory.engine.write(program)


async def _vacuum(factory: EngineSessionStoreFactory) -> None:
    """Vacuum every session, as ``fastness maintain`` does."""
    async for session_id in factory.session_ids():
        store = await factory.open_existing_store(SessionStoreCreateRequest(session_id))
        assert store is not None
        await store.vacuum()


def _checkpoints(pipe: Connection, url: str) -> None:
    """Checkpoint again and again until told to end."""
    if url.startswith("sqlite"):
        db = apsw.Connection(url.removeprefix("sqlite:///"))
        db.execute("select count(*) from session").fetchall()  # before its first read it knows of no log
        while not pipe.poll(_PAUSE_S):
            passive_checkpoint(db)
        db.close()
    else:
        with psycopg.connect(url, autocommit=True) as admin:
            while not pipe.poll(_PAUSE_S):
                admin.execute("checkpoint")
    pipe.recv()


async def _settings(url: str) -> str:
    """Read back what decides durability."""

    def program() -> Program[str]:
        """Read what the connections of the library have."""
        names = ("journal_mode", "synchronous")
        read = yield Read(*(Statement(f"pragma {name}") for name in names))
        return ", ".join(f"{name}={rows[0][0]}" for name, rows in zip(names, read, strict=True))

    async with open_database(url) as factory:
        return await factory.engine.read(program)


def _durability(url: str) -> str:
    with psycopg.connect(url) as admin:
        names = ("fsync", "synchronous_commit", "full_page_writes")
        found = [(name, admin.execute(f"show {name}").fetchone()) for name in names]
    return ", ".join(f"{name}={row[0]}" for name, row in found if row is not None)


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


PARTS: tuple[Part, ...] = (
    Part(
        "maintenance",
        "Commits beside maintenance",
        beside,
        f"{SESSIONS} sessions of one process commit full turns while another process maintains the database, in rounds"
        f" that alternate. Vacuum: every session is vacuumed, {LITTERED} of them have {NODES:,} hidden nodes and"
        f" {EVIDENCE:,} pieces of evidence each. Collection: {BLOBS:,} blobs of {BLOB_BYTES:,} bytes that nobody needs."
        " Checkpoint: one after the other, from outside; the library's own run in every round. Only commits"
        " that overlap with the maintenance count.",
    ),
)
