"""How fast turns are committed: against a bare script, under load, and as a session grows."""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path

from bench.bare import BareScript
from bench.turns import Turns
from fastness.persistence import SqliteSessionStoreFactory

ROUNDS = 9
TURNS = 400
WAITERS = 64
TURNS_EACH = 25
SUSTAINED = 12_000


async def _timed(path: Path, waiters: int, turns: int) -> float:
    """Seconds a commit takes with this many sessions committing at once."""
    async with SqliteSessionStoreFactory(path) as factory:
        sessions = [await Turns.prepare(factory, f"session-{at}", turns) for at in range(waiters)]

        async def drive(session: Turns) -> None:
            for _ in range(turns):
                await session.turn()

        started = time.perf_counter()
        await asyncio.gather(*(drive(session) for session in sessions))
        return (time.perf_counter() - started) / (waiters * turns)


def _bare(path: Path, turns: int) -> float:
    script = BareScript(path, turns)
    started = time.perf_counter()
    for at in range(turns):
        script.run(at)
    seconds = time.perf_counter() - started
    script.db.close()
    return seconds / turns


def against_the_bare_script(folder: Path) -> dict[str, object]:
    """Commits per second of the script divided into ours, at 1 and at 64 waiters, round by round."""
    bare, one, many = [], [], []
    for at in range(ROUNDS):
        bare.append(_bare(folder / f"bare-{at}.db", TURNS))
        one.append(asyncio.run(_timed(folder / f"one-{at}.db", 1, TURNS)))
        many.append(asyncio.run(_timed(folder / f"many-{at}.db", WAITERS, TURNS_EACH)))
    return {
        "bare_us": _us(bare),
        "one_waiter_us": _us(one),
        "many_waiters_us": _us(many),
        "ratio_one_waiter": statistics.median(b / o for b, o in zip(bare, one, strict=True)),
        "ratio_many_waiters": statistics.median(b / m for b, m in zip(bare, many, strict=True)),
    }


def under_load(folder: Path) -> dict[str, object]:
    """Latency of one waiter over many commits, and the largest log seen beside them."""
    path = folder / "load.db"
    log = folder / "load.db-wal"

    async def drive() -> tuple[list[float], int]:
        seconds, largest = [], 0
        async with SqliteSessionStoreFactory(path) as factory:
            # Many sessions, so that the waiting inputs of none of them are what is measured.
            sessions = [await Turns.prepare(factory, f"session-{at}", 40) for at in range(SUSTAINED // 40)]
            for _ in range(40):
                for session in sessions:
                    started = time.perf_counter()
                    await session.turn()
                    seconds.append(time.perf_counter() - started)
                largest = max(largest, log.stat().st_size)
        return seconds, largest

    seconds, largest = asyncio.run(drive())
    seconds.sort()
    p50, p99 = seconds[len(seconds) // 2], seconds[len(seconds) * 99 // 100]
    return {
        "commits": len(seconds),
        "p50_us": round(p50 * 1e6),
        "p99_us": round(p99 * 1e6),
        "worst_us": round(seconds[-1] * 1e6),
        "ratio_p99_p50": p99 / p50,
        "largest_wal_mib": largest / 2**20,
    }


def as_a_session_grows(folder: Path) -> dict[str, object]:
    """The same commit on a session of 100,000 nodes and on one of 100, in turns."""

    async def drive() -> tuple[list[float], list[float]]:
        small_s: list[float] = []
        large_s: list[float] = []
        async with SqliteSessionStoreFactory(folder / "grown.db") as factory:
            small = await Turns.prepare(factory, "small", ROUNDS * 100, nodes=100)
            large = await Turns.prepare(factory, "large", ROUNDS * 100, nodes=100_000)
            for _ in range(ROUNDS * 100):
                for session, taken in ((small, small_s), (large, large_s)):
                    started = time.perf_counter()
                    await session.turn()
                    taken.append(time.perf_counter() - started)
        return small_s, large_s

    small, large = asyncio.run(drive())
    return {
        "small_us": _us(small),
        "large_us": _us(large),
        "ratio": statistics.median(large) / statistics.median(small),
    }


def _us(seconds: list[float]) -> int:
    return round(statistics.median(seconds) * 1e6)
