"""How fast turns are committed on SQLite: against a bare script, under load, and as a session grows."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import statistics
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bench.bare import BareScript, EncodedTurn, Recorder, contents
from bench.findings import Found, Part, Size, Spread, Table, Value
from bench.syncs import CountedSyncs
from bench.turns import Turns
from fastness.persistence import (
    RuntimeCommit,
    SessionExecutionLease,
    SessionStoreCreateRequest,
    SqliteSessionStoreFactory,
)
from fastness.sql.program import Program, Read, Statement, Write

TURNS = {1: 250, 8: 40, 64: 16, 256: 5}
"""How many turns each of so many sessions makes in a round."""
WARM = {1: 50, 8: 8, 64: 2, 256: 1}
"""How many of them are not counted: statements are compiled, pages read, statistics adapted to."""
ROUNDS = {"short": 4, "full": 11}
SUSTAINED = {"short": 6_000, "full": 24_000}
TURNS_EACH = 40
GROWN_ROUNDS = {"short": 500, "full": 1500}


class Prepared(NamedTuple):
    """A database in which sessions wait to commit their turns, what they will commit, and what that writes."""

    path: Path
    waiting: dict[str, tuple[SessionExecutionLease, list[RuntimeCommit]]]
    encoded: list[EncodedTurn]


class Timed(NamedTuple):
    """A side in one round: seconds for each turn at the rate of all, and what single callers waited, in order."""

    seconds: float
    latencies: list[float]

    def at(self, share: float) -> float:
        """Give the wait in milliseconds that so large a share of the callers did not exceed."""
        return self.latencies[min(len(self.latencies) - 1, int(len(self.latencies) * share))] * 1e3


async def prepare(folder: Path, sessions: int, turns: int) -> Prepared:
    """Prepare sessions, and have the library commit their turns one by one on a copy, to record what they write."""
    path = folder / f"prepared-{sessions}.db"
    async with SqliteSessionStoreFactory(path) as factory:
        names = [f"session-{at}" for at in range(sessions)]
        made = await asyncio.gather(*(Turns.prepare(factory, name, turns) for name in names))
        waiting = {name: (session.lease, list(session.waiting)) for name, session in zip(names, made, strict=True)}
    prepared = Prepared(path, waiting, [])
    reference = _copy(path, folder / f"reference-{sessions}.db")
    async with SqliteSessionStoreFactory(reference) as factory:
        opened = await _open(factory, prepared)
        recorder = Recorder(reference)
        for at in range(turns):
            for name, session in zip(names, opened, strict=True):
                (claim,) = session.waiting[0].completed_turn_input_claims
                await session.turn()
                prepared.encoded.append(recorder.turn(name, f"turn-{at + 1}", claim.claim_id))
        recorder.close()
    copy = _copy(path, folder / f"compared-{sessions}.db")
    script = BareScript(copy)
    for turn in prepared.encoded:
        script.run(turn)
    script.close()
    require_same(reference, copy)
    return prepared


def require_same(ours: Path, theirs: Path) -> None:
    """Refuse to compare two sides that do not write the same rows."""
    wrote, other = contents(ours), contents(theirs)
    differing = [table for table in wrote if wrote[table] != other.get(table)]
    if differing:
        raise RuntimeError(f"the script does not write what the library writes: {', '.join(differing)}")


def _copy(path: Path, to: Path) -> Path:
    shutil.copyfile(path, to)
    descriptor = os.open(to, os.O_RDWR)
    os.fsync(descriptor)  # else the first commits would have to wait for it
    os.close(descriptor)
    return to


async def _open(factory: SqliteSessionStoreFactory, prepared: Prepared) -> list[Turns]:
    sessions = []
    for name, (lease, commits) in prepared.waiting.items():
        store = await factory.open_existing_store(SessionStoreCreateRequest(name))
        assert store is not None
        sessions.append(Turns(store, lease, deque(commits)))
    return sessions


async def _ours(path: Path, prepared: Prepared) -> Timed:
    """Have all sessions commit at once, each its turns one after the other."""
    async with SqliteSessionStoreFactory(path) as factory:
        sessions = await _open(factory, prepared)
        latencies: list[float] = []

        async def drive(session: Turns, turns: int) -> None:
            for _ in range(turns):
                started = time.perf_counter()
                await session.turn()
                latencies.append(time.perf_counter() - started)

        warm = WARM[len(sessions)]
        await asyncio.gather(*(drive(session, warm) for session in sessions))
        latencies.clear()
        started = time.perf_counter()
        await asyncio.gather(*(drive(session, TURNS[len(sessions)] - warm) for session in sessions))
        seconds = (time.perf_counter() - started) / len(latencies)
    return Timed(seconds, sorted(latencies))


def _bare(path: Path, prepared: Prepared) -> Timed:
    """Run the turns of all sessions in turn, as if as many callers stood in one line and each came back at once.

    A caller's wait is then the time from the end of its turn before to the end of this one.
    """
    callers = len(prepared.waiting)
    script = BareScript(path)
    ends = []
    for turn in prepared.encoded:
        script.run(turn)
        ends.append(time.perf_counter())
    script.close()
    warm = WARM[callers] * callers
    latencies = [ends[at] - ends[at - callers] for at in range(warm, len(ends))]
    return Timed((ends[-1] - ends[warm - 1]) / (len(ends) - warm), sorted(latencies))


def _round(prepared: Prepared, at: int) -> tuple[Timed, Timed]:
    """Ours and the script, each on a copy of its own; who comes first takes turns."""
    ours_on, bare_on = (
        _copy(prepared.path, prepared.path.with_name(f"{side}-{len(prepared.waiting)}-{at}.db"))
        for side in ("ours", "bare")
    )
    if at % 2:
        ours, bare = asyncio.run(_ours(ours_on, prepared)), _bare(bare_on, prepared)
    else:
        bare, ours = _bare(bare_on, prepared), asyncio.run(_ours(ours_on, prepared))
    for path in (ours_on, bare_on):
        path.unlink()
    return ours, bare


def against_the_bare_script(folder: Path, size: Size) -> Found:
    """Commits per second of ours divided by the script's, and what single callers wait, at 1 to 256 sessions."""
    prepared = {count: asyncio.run(prepare(folder, count, turns)) for count, turns in TURNS.items()}
    gc.collect()
    gc.freeze()  # what waits to be committed is the benchmark's, and neither side is to be measured walking it
    found: dict[int, list[tuple[Timed, Timed]]] = {count: [] for count in TURNS}
    for at in range(-1, ROUNDS[size]):
        for count in TURNS:
            measured = _round(prepared[count], at)
            if at >= 0:
                found[count].append(measured)
    rows: dict[str, list[Value]] = {}
    ratios: dict[int, tuple[Spread, Spread]] = {}
    for count, rounds in found.items():
        ours, bare = [each[0] for each in rounds], [each[1] for each in rounds]
        rate = Spread.of_ratios([each.seconds for each in bare], [each.seconds for each in ours])
        tail = Spread.of_ratios([each.at(0.99) for each in ours], [each.at(0.99) for each in bare])
        ratios[count] = rate, tail
        sides: list[Value] = [value for side in (ours, bare) for value in _columns(side)]
        rows[f"{count} waiters" if count > 1 else "1 waiter"] = [*sides, rate, tail]
    figures: dict[str, Value] = {
        "ratio_one_waiter": ratios[1][0],
        "ratio_many_waiters": ratios[64][0],
        "ratio_p99_one": ratios[1][1],
        "ratio_p99_many": ratios[64][1],
    }
    columns = ("ours, µs a turn", "p50, ms", "p99, ms", "script, µs a turn", "p50, ms", "p99, ms", "rate", "p99")
    table = Table("Ours, the bare script, and ours divided by the script's", columns, rows)
    settings = asyncio.run(_settings(folder))
    return Found(figures | _syncs(folder, prepared), [table], settings)


def _columns(side: Sequence[Timed]) -> list[Value]:
    return [
        Spread.of([each.seconds * 1e6 for each in side]),
        Spread.of([each.at(0.5) for each in side]),
        Spread.of([each.at(0.99) for each in side]),
    ]


def _syncs(folder: Path, prepared: dict[int, Prepared]) -> dict[str, Value]:
    """Count the syncs of each side for each turn, with the first turns and all, in a run that is not timed."""
    figures: dict[str, Value] = {}
    with CountedSyncs() as syncs:
        for count in (1, 64):
            turns = len(prepared[count].encoded)
            before = syncs.count
            asyncio.run(_ours(_copy(prepared[count].path, folder / f"synced-{count}.db"), prepared[count]))
            figures[f"fsyncs_per_turn_{count}_waiters"] = (syncs.count - before) / turns
            before = syncs.count
            _bare(_copy(prepared[count].path, folder / f"synced-bare-{count}.db"), prepared[count])
            figures[f"fsyncs_per_turn_script_{count}_callers"] = (syncs.count - before) / turns
    return figures


async def _settings(folder: Path) -> dict[str, str]:
    """Read back what decides durability, on the very connections that write."""

    def program() -> Program[list[object]]:
        """Ask, and write nothing."""
        names = ("journal_mode", "synchronous", "wal_autocheckpoint")
        rows = yield Read(*(Statement(f"pragma {name}") for name in names))
        yield Write(last=True)
        return [row[0][0] for row in rows]

    async with SqliteSessionStoreFactory(folder / "settings.db") as factory:
        ours = await factory.engine.write(program)
    script = BareScript(folder / "settings.db")
    theirs = [
        next(iter(script.db.execute(f"pragma {name}")))[0]
        for name in ("journal_mode", "synchronous", "wal_autocheckpoint")
    ]
    script.close()
    return {
        name: f"journal_mode={mode}, synchronous={synchronous} (2 is FULL), wal_autocheckpoint={pages}"
        for name, (mode, synchronous, pages) in (("ours", ours), ("the bare script", theirs))
    }


def under_load(folder: Path, size: Size) -> Found:
    """Latency of one waiter over many commits, and the largest log seen beside them."""
    path = folder / "load.db"
    log = folder / "load.db-wal"

    async def drive() -> tuple[list[float], int]:
        seconds, largest = [], 0
        async with SqliteSessionStoreFactory(path) as factory:
            # Many sessions, so that the waiting inputs of none of them are what is measured.
            names = [f"session-{at}" for at in range(SUSTAINED[size] // TURNS_EACH)]
            sessions = await asyncio.gather(*(Turns.prepare(factory, name, TURNS_EACH) for name in names))
            for _ in range(TURNS_EACH):
                for session in sessions:
                    started = time.perf_counter()
                    await session.turn()
                    seconds.append(time.perf_counter() - started)
                largest = max(largest, log.stat().st_size)
        return seconds, largest

    seconds, largest = asyncio.run(drive())
    seconds.sort()
    p50, p99 = seconds[len(seconds) // 2], seconds[len(seconds) * 99 // 100]
    return Found(
        {
            "commits": len(seconds),
            "p50_us": round(p50 * 1e6),
            "p99_us": round(p99 * 1e6),
            "worst_us": round(seconds[-1] * 1e6),
            "ratio_p99_p50": p99 / p50,
            "largest_wal_mib": largest / 2**20,
        }
    )


def as_a_session_grows(folder: Path, size: Size) -> Found:
    """The same commit on a session of 100,000 nodes and on one of 100, in turns."""
    rounds = GROWN_ROUNDS[size]

    async def drive() -> tuple[list[float], list[float]]:
        small_s: list[float] = []
        large_s: list[float] = []
        async with SqliteSessionStoreFactory(folder / "grown.db") as factory:
            small = await Turns.prepare(factory, "small", rounds, nodes=100)
            large = await Turns.prepare(factory, "large", rounds, nodes=100_000)
            for at in range(rounds):
                sides = ((small, small_s), (large, large_s))
                for session, taken in sides if at % 2 else sides[::-1]:
                    started = time.perf_counter()
                    await session.turn()
                    taken.append(time.perf_counter() - started)
        return small_s, large_s

    small, large = asyncio.run(drive())
    return Found(
        {
            "commits_each": rounds,
            "small_us": round(statistics.median(small) * 1e6),
            "large_us": round(statistics.median(large) * 1e6),
            "ratio": statistics.median(large) / statistics.median(small),
        }
    )


PARTS = (
    Part(
        "commit",
        "SQLite: commits against a bare script, at 1 to 256 sessions",
        against_the_bare_script,
        """A full turn is four messages, a checkpoint whose tool state changed, usage, and one input consumed. The
script (`bench/bare.py`) runs one transaction for each turn, one after the other; its rows were recorded from the
library's own run, so everything is encoded and hashed before its clock starts, and the part fails unless both leave
the same database behind, row by row. With n waiters, n sessions commit at once, each one turn after the other. The
script is given the same turns, one of each session in turn, as if n callers stood in one line: a caller waits from the
end of its turn before to the end of this one. The syncs were counted by a VFS in a run of their own.""",
    ),
    Part(
        "load",
        "SQLite: commits in a row",
        under_load,
        """One waiter, the next session each time; the log is looked at once in each pass over the sessions.""",
    ),
    Part(
        "growth",
        "SQLite: a commit as its session grows",
        as_a_session_grows,
        """On a session of 100,000 nodes (large) and on one of 100 (small), in turns, in one file.""",
    ),
)
