"""How fast a session is loaded, whole or in part, and how much memory an import takes."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import apsw

from bench import loads_listing, loads_size, raw
from bench.findings import Found, Part, Size, Spread, Table
from bench.turns import Turns
from fastness.persistence import (
    ActivePath,
    FullGraph,
    SessionNodeRecord,
    SessionReadScope,
    SessionStore,
    SessionStoreCreateRequest,
    SqliteSessionStoreFactory,
)

NODES = 10_000
LONG = 100_000
LAST = 50
LENGTHS = (400, 4_000, 40_000)
ROUNDS = {"short": 15, "full": 60}
LAST_ROUNDS = {"short": 60, "full": 400}
WARM_UP = 3

_ROWS = "select node_id, coalesce(parent_seq, 0), {} from node where sid = 1 order by seq"


def reading(folder: Path, size: Size) -> Found:
    """Loads of sessions of several lengths: all nodes, the branch it stands on, the end of that."""
    found = Found()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        # In an interpreter of its own, so that nothing of the longer sessions is left in its memory.
        against = fresh.submit(_against_raw_rows, folder / "loaded.db", ROUNDS[size]).result()
    faster = min(("raw_one_by_one", "raw_as_one_array"), key=lambda name: statistics.median(against[name]))
    found.figures["ratio_load_10k"] = Spread.of_ratios(against["all"], against[faster])
    found.figures["load_full_graph_ms"] = Spread.of(against["all"])
    found.figures["load_active_path_ms"] = Spread.of(against["path"])
    rows = {name: [Spread.of(taken)] for name, taken in against.items()}
    found.tables.append(Table(f"{NODES:,} nodes, SQLite, ms", ["what", "ms"], rows))
    lengths = {f"{length:,}": _by_length(folder / f"{length}.db", length, size) for length in (*LENGTHS, LONG)}
    found.figures["last_50_of_100k_ms"] = lengths[f"{LONG:,}"][-1]
    title = "Sessions of several lengths, SQLite, ms"
    found.tables.append(Table(title, ["nodes", "whole", "active path", f"last {LAST}"], lengths))
    return found


def _against_raw_rows(path: Path, rounds: int) -> dict[str, list[float]]:
    """Load through the API and by a bare script, round by round. Milliseconds."""

    async def drive() -> dict[str, list[float]]:
        taken: dict[str, list[float]] = {"all": [], "path": [], "raw_one_by_one": [], "raw_as_one_array": []}
        async with SqliteSessionStoreFactory(path) as factory:
            session = await Turns.prepare(factory, "session", 0, nodes=NODES)
            for at in range(rounds + WARM_UP):
                one = {
                    "all": await _loaded(session.store, FullGraph(), NODES),
                    "path": await _loaded(session.store, ActivePath(), NODES),
                    "raw_one_by_one": _raw(path, "body", raw.one_by_one),
                    "raw_as_one_array": _raw(path, "cast(body as blob)", raw.as_one_array),
                }
                if at >= WARM_UP:
                    for name, ms in one.items():
                        taken[name].append(ms)
        return taken

    return asyncio.run(drive())


def _by_length(path: Path, nodes: int, size: Size) -> list[Spread]:
    """Load a session of a length whole, its branch, and the end of that."""

    async def drive() -> list[Spread]:
        async with SqliteSessionStoreFactory(path) as factory:
            await Turns.prepare(factory, "session", 0, nodes=nodes)
            store = await factory.open_existing_store(SessionStoreCreateRequest("session"))
            assert store is not None
            whole_rounds = max(3, ROUNDS[size] * NODES // max(NODES, nodes))
            spreads = []
            for scope, count, rounds in (
                (FullGraph(), nodes, whole_rounds),
                (ActivePath(), nodes, whole_rounds),
                (ActivePath(last=LAST), LAST, LAST_ROUNDS[size]),
            ):
                taken = [await _loaded(store, scope, count) for _ in range(rounds + WARM_UP)]
                spreads.append(Spread.of(taken[WARM_UP:]))
            return spreads

    return asyncio.run(drive())


async def _loaded(store: SessionStore, scope: SessionReadScope, count: int) -> float:
    started = time.perf_counter()
    read = await store.load_session(scope)
    ms = (time.perf_counter() - started) * 1e3
    assert read is not None
    assert len(read.graph.nodes) == count
    del read
    # The event loop holds the answer until its next round: letting go of it is no part of the next load.
    await asyncio.sleep(0)
    return ms


def _raw(path: Path, column: str, decode: Callable[[list[raw.Row]], list[SessionNodeRecord]]) -> float:
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    started = time.perf_counter()
    nodes = decode(list(db.execute(_ROWS.format(column))))
    ms = (time.perf_counter() - started) * 1e3
    assert len(nodes) == NODES
    db.close()
    return ms


def memory_of_an_import(folder: Path, size: Size) -> Found:
    """Peak memory of importing a file that fills the database's page cache, and of one five times as long."""
    del size
    peaks = {}
    for name, count in (("small", 1000), ("large", 5000)):
        source = folder / f"{name}.jsonl"
        # Line by line: a child's peak begins with what its parent held when it was forked.
        with source.open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(_conversation(at)) + "\n" for at in range(count))
        database = f"sqlite:///{folder / name}.db"
        command = [sys.executable, "-m", "fastness", "--database", database, "import", str(source)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0, command
        peaks[name] = (source.stat().st_size / 2**20, usage.ru_maxrss / 1024)
    found = Found({"ratio": peaks["large"][1] / peaks["small"][1]})
    for name, (file_mib, peak_mib) in peaks.items():
        found.figures |= {f"{name}_file_mib": file_mib, f"{name}_peak_mib": peak_mib}
    return found


def _conversation(at: int) -> dict[str, object]:
    messages = [{"role": "system", "content": "You answer questions about the weather. " * 40}]
    for turn in range(5):
        messages.append({"role": "user", "content": f"Question {turn} of conversation {at}: will it rain? " * 8})
        messages.append({"role": "assistant", "content": f"Answer {turn}: it may rain in the evening. " * 20})
    return {"id": at, "messages": messages}


PARTS = (
    Part(
        "reading",
        "Loading a session",
        reading,
        "The raw side reads the rows, makes the same nodes of them the faster of two ways and checks nothing; ours also"
        " checks the checksum of each node and that the graph is whole.",
    ),
    *loads_listing.PARTS,
    *loads_size.PARTS,
    Part("import", "Memory of an import", memory_of_an_import, in_short=False),
)
