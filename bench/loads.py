"""How fast a session is loaded, and how much memory an import takes."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import apsw
import msgspec

from bench.turns import Turns
from fastness.persistence import ActivePath, FullGraph, SessionNodeRecord, SqliteSessionStoreFactory

NODES = 10_000
ROUNDS = 9


def against_raw_rows(folder: Path) -> dict[str, object]:
    """Loading 10,000 nodes through the API against reading the rows and decoding them, round by round."""
    path = folder / "loaded.db"

    async def drive() -> tuple[list[float], list[float], list[float]]:
        ours, paths, raw = [], [], []
        async with SqliteSessionStoreFactory(path) as factory:
            session = await Turns.prepare(factory, "session", 0, nodes=NODES)
            for _ in range(ROUNDS):
                started = time.perf_counter()
                read = await session.store.load_session(FullGraph())
                ours.append(time.perf_counter() - started)
                assert read is not None
                assert len(read.graph.nodes) == NODES
                started = time.perf_counter()
                await session.store.load_session(ActivePath())
                paths.append(time.perf_counter() - started)
                del read
                raw.append(_raw(path))
        return ours, paths, raw

    ours, paths, raw = asyncio.run(drive())
    return {
        "raw_rows_and_decoding_ms": _ms(raw),
        "load_full_graph_ms": _ms(ours),
        "load_active_path_ms": _ms(paths),
        "ratio": statistics.median(o / r for o, r in zip(ours, raw, strict=True)),
    }


def _raw(path: Path) -> float:
    decode = msgspec.json.Decoder(SessionNodeRecord).decode
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    started = time.perf_counter()
    nodes = [decode(body) for (body,) in db.execute("select body from node where sid = 1 order by seq")]
    seconds = time.perf_counter() - started
    assert len(nodes) == NODES
    db.close()
    return seconds


def memory_of_an_import(folder: Path) -> dict[str, object]:
    """Peak memory of importing a file that fills the database's page cache, and of one five times as long."""
    peaks = {}
    for name, count in (("small", 1000), ("large", 5000)):
        source = folder / f"{name}.jsonl"
        # Line by line: a child's peak begins with what its parent held when it was forked.
        with source.open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(_conversation(at)) + "\n" for at in range(count))
        command = [
            sys.executable,
            "-m",
            "fastness",
            "--database",
            f"sqlite:///{folder / name}.db",
            "import",
            str(source),
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0, command
        peaks[name] = (source.stat().st_size, usage.ru_maxrss / 1024)
    return {
        "small_file_mib": peaks["small"][0] / 2**20,
        "small_peak_mib": peaks["small"][1],
        "large_file_mib": peaks["large"][0] / 2**20,
        "large_peak_mib": peaks["large"][1],
        "ratio": peaks["large"][1] / peaks["small"][1],
    }


def _conversation(at: int) -> dict[str, object]:
    messages = [{"role": "system", "content": "You answer questions about the weather. " * 40}]
    for turn in range(5):
        messages.append({"role": "user", "content": f"Question {turn} of conversation {at}: will it rain? " * 8})
        messages.append({"role": "assistant", "content": f"Answer {turn}: it may rain in the evening. " * 20})
    return {"id": at, "messages": messages}


def _ms(seconds: list[float]) -> float:
    return round(statistics.median(seconds) * 1e3, 2)
