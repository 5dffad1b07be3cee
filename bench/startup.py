"""What it costs to begin: importing the package, starting the command line, and the memory that sessions take.

Every start is a fresh interpreter, timed from outside until it has ended, with the bytecode of all modules at hand as
an installation has it. The contestants take turns, round by round.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import resource
import subprocess
import sys
import sysconfig
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeAlias

from tests.servers.postgres import PostgresServer

from bench.findings import Found, Part, Size, Spread, Table
from bench.fleet import SETTINGS
from bench.turns import Turns
from fastness.model.base import encode
from fastness.persistence import (
    ActivePath,
    EngineSessionStoreFactory,
    FullGraph,
    SessionStore,
    SessionStoreCreateRequest,
    open_database,
)

ROUNDS = {"short": 11, "full": 60}
SESSIONS = {"short": 1_000, "full": 10_000}
NODES = 10_000
WARM_UP = 100

Grown: TypeAlias = dict[str, float]
"""Amounts of memory by name, each with its unit."""

_SHORT, _LONG = "short", "long"
_STARTS = {
    "python -c pass": "pass",
    "import sqlite3, asyncio, json": "import sqlite3, asyncio, json",
    "import fastness": "import fastness",
    "import fastness; fastness.connect": "import fastness; fastness.connect",
    "import typer": "import typer",
}
_BARE, _THEIRS, _OURS, _CONNECT = list(_STARTS)[:4]
_HELP, _VERSION, _COMMAND = "fastness --help", "fastness --version", "fastness sessions --help"


def starts(folder: Path, size: Size) -> Found:
    """Import the package, and start the command line, in fresh interpreters."""
    commands = {name: [sys.executable, "-c", code] for name, code in _STARTS.items()}
    program = str(Path(sysconfig.get_path("scripts")) / "fastness")
    commands |= {name: [program, *name.split()[1:]] for name in (_HELP, _VERSION, _COMMAND)}
    surroundings = dict(os.environ)
    # As where it is installed: the first start, which is not counted, writes the bytecode for all others.
    surroundings.pop("PYTHONDONTWRITEBYTECODE", None)
    surroundings["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
    took: dict[str, list[float]] = {name: [] for name in commands}
    for at in range(-1, ROUNDS[size]):
        for name, command in commands.items():
            started = time.perf_counter()
            subprocess.run(command, env=surroundings, stdout=subprocess.DEVNULL, check=True)
            if at >= 0:
                took[name].append((time.perf_counter() - started) * 1e3)
    net = {name: [one - bare for one, bare in zip(found, took[_BARE], strict=True)] for name, found in took.items()}
    return Found(
        figures={
            "ratio_import": Spread.of_ratios(took[_OURS], took[_THEIRS]),
            "ratio_import_net": Spread.of(net[_OURS]).median / Spread.of(net[_THEIRS]).median,
            "import_ms": Spread.of(took[_OURS]),
            "import_net_ms": Spread.of(net[_OURS]),
            "help_ms": Spread.of(took[_HELP]),
            "connect_first_use_ms": Spread.of(
                [one - import_ for one, import_ in zip(took[_CONNECT], took[_OURS], strict=True)]
            ),
        },
        tables=[
            Table(
                "A fresh interpreter, from start to end",
                ("ms", "fastest, ms", "beyond python -c pass, ms"),
                {
                    name: (Spread.of(found), min(found), Spread.of(net[name]).median if name != _BARE else None)
                    for name, found in took.items()
                },
            )
        ],
        settings={"bytecode": "of all modules at hand, written by a first start that is not counted"},
    )


def memory(folder: Path, size: Size) -> Found:
    """What a thousand open sessions take, and a load of 10,000 nodes, each in a fresh process."""
    found = Found()
    count = SESSIONS[size]
    rows: dict[str, dict[str, float]] = {}
    with PostgresServer(settings=SETTINGS) as server, server.database() as url:
        found.settings["postgres"] = f"PostgreSQL {server.version}"
        for name, place in (("sqlite", f"sqlite:///{folder / 'memory.db'}"), ("postgres", url)):
            # What fills the database leaves memory behind that would be used again, and so not be seen to grow.
            filled = _alone(_fill, place, count)
            rows[name] = {
                "opened_1000_sessions_mib": _alone(_open_sessions, place, count)["opened_mib"] * 1000 / count,
                "used_1000_sessions_mib": _alone(_use_sessions, place, count)["used_mib"] * 1000 / count,
                **filled,
                **_alone(_load_resident, place, 0),
                **_alone(_load_traced, place, 0),
            }
    for name, row in rows.items():
        for key, value in row.items():
            what, _, unit = key.rpartition("_")
            found.figures[f"{what}_{name}_{unit}"] = value
        for kind in ("resident", "objects", "peak"):
            found.figures[f"ratio_load_{kind}_{name}"] = row[f"load_{kind}_mib"] / row["load_messages_mib"]
    heads = [key.removesuffix("_mib").replace("_", " ") for key in rows["sqlite"]]
    found.tables.append(Table("Memory, MiB", heads, {name: list(row.values()) for name, row in rows.items()}))
    return found


def _alone(work: Callable[[EngineSessionStoreFactory, int], Awaitable[Grown]], url: str, count: int) -> Grown:
    """Have a fresh process do it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(_run, work, url, count).result()


def _run(work: Callable[[EngineSessionStoreFactory, int], Awaitable[Grown]], url: str, count: int) -> Grown:
    async def drive() -> Grown:
        async with open_database(url) as factory:
            return await work(factory, count)

    return asyncio.run(drive())


async def _fill(factory: EngineSessionStoreFactory, count: int) -> Grown:
    """Make the sessions, and the long one; give the bytes of the messages of that, as JSON."""
    waiting = iter(_names(WARM_UP + count))

    async def make() -> None:
        for name in waiting:
            await Turns.prepare(factory, name, 0, nodes=10)

    await asyncio.gather(*(make() for _ in range(16)))
    await Turns.prepare(factory, _SHORT, 0, nodes=100)
    long = await Turns.prepare(factory, _LONG, 0, nodes=NODES)
    read = await long.store.load_session(FullGraph())
    assert read is not None
    assert len(read.graph.nodes) == NODES
    return {"load_messages_mib": sum(len(encode(node.message)) for node in read.graph.nodes) / 2**20}


async def _open_sessions(factory: EngineSessionStoreFactory, count: int) -> Grown:
    """Open sessions and keep them."""
    kept = [await _open(factory, name) for name in _names(WARM_UP)]
    before = _resident_mib()
    kept += [await _open(factory, name) for name in _names(WARM_UP + count)[WARM_UP:]]
    return {"opened_mib": _resident_mib() - before}


async def _use_sessions(factory: EngineSessionStoreFactory, count: int) -> Grown:
    """Open sessions, load each, drop what was loaded and keep the session."""
    kept = []
    before = 0.0
    for at, name in enumerate(_names(WARM_UP + count)):
        if at == WARM_UP:
            before = _resident_mib()
        kept.append(await _open(factory, name))
        await kept[-1].load_session(ActivePath())
    return {"used_mib": _resident_mib() - before}


async def _load_resident(factory: EngineSessionStoreFactory, _: int) -> Grown:
    """Load the long session: by how much the process has grown with it in hand, and at most meanwhile."""
    store = await _warm(factory)
    before = _resident_mib()
    read = await store.load_session(FullGraph())
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    after = _resident_mib()
    assert read is not None
    return {"load_resident_mib": after - before, "load_resident_peak_mib": largest - before}


async def _load_traced(factory: EngineSessionStoreFactory, _: int) -> Grown:
    """Load the long session: what Python holds of it then, and what it held at most."""
    store = await _warm(factory)
    tracemalloc.start()
    read = await store.load_session(FullGraph())
    kept, peak = tracemalloc.get_traced_memory()
    assert read is not None
    return {"load_objects_mib": kept / 2**20, "load_peak_mib": peak / 2**20}


async def _warm(factory: EngineSessionStoreFactory) -> SessionStore:
    """Load a short session, so that what only the first load makes is there; give the long one."""
    await (await _open(factory, _SHORT)).load_session(FullGraph())
    return await _open(factory, _LONG)


async def _open(factory: EngineSessionStoreFactory, session_id: str) -> SessionStore:
    store = await factory.open_existing_store(SessionStoreCreateRequest(session_id))
    assert store is not None
    return store


def _names(count: int) -> list[str]:
    return [f"session-{at}" for at in range(count)]


def _resident_mib() -> float:
    """How much of this process is in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize() / 2**20


PARTS: tuple[Part, ...] = (
    Part(
        "startup",
        "Importing the package and starting the command line",
        starts,
        "Each start is a fresh interpreter that has the bytecode of all modules, from its start to its end. Net:"
        " without what one takes that does nothing, in the same round. First use of `connect`: beyond the import.",
    ),
    Part(
        "memory",
        "Memory of open sessions and of a long load",
        memory,
        f"A session is opened and kept; used: also loaded once. The load is of {NODES:,} nodes, held against the bytes"
        " of its messages as JSON: resident is what the process grew by, objects what Python holds of it, peak what it"
        " held at most, each in a fresh process that has loaded a short session before. SQLite's page cache is part of"
        " what a process grows by, up to the same size however many sessions there are.",
    ),
)
