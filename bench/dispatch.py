"""How fast a worker picks up what was sent, how many turns it makes, and what it costs to wait: ours beside its peers.

Every system gets the same: one process that sends, one process with one worker, a database of its own that is new, on
the same disk or on the same server. On SQLite each has the durability that it comes with.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeAlias

from tests.servers.postgres import PostgresServer

from bench.dispatch_peers import (
    CONCURRENCY,
    NOT_INSTALLED,
    SMALLEST_POLL_S,
    Side,
    dbos,
    installed,
    ours,
    procrastinate,
    settle,
    versions,
)
from bench.fleet import SETTINGS

Figures: TypeAlias = "dict[str, object]"

ENGINES = ("sqlite", "postgres")
SENDS = 120
WARM_UP = 20
TURNS = 800
ROUNDS = 3
IDLE_S = 10.0
TICK_S = 1.0
"""How often DBOS polls if nothing else is said."""

_LIMITED = ("dbos", "dbos_1_ms")
_COUNTS = {"dbos": 40, "dbos_1_ms": 400, "dbos_unlimited": 600}
"""How many jobs a system gets that would take too long over ``TURNS``: eight per second, or slow to be sent to."""


def sides_for(engine: str, *sides: Side) -> list[Side]:
    """Leave out what does not run on an engine."""
    return [side for side in sides if engine == "postgres" or side.module != "dispatch_procrastinate"]


@contextmanager
def places(folder: Path) -> Iterator[Mapping[str, _Place]]:
    """Give for each engine where new databases are made."""
    with PostgresServer(settings=SETTINGS) as server:
        yield {"sqlite": _Files(folder), "postgres": server}


class _Files:
    """New SQLite files in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    @contextmanager
    def database(self) -> Iterator[str]:
        """The URL of a new file that is removed at the end."""
        self._count += 1
        place = self._folder / f"dispatch-{self._count}"
        place.mkdir()
        try:
            yield f"sqlite:///{place}/bench.db"
        finally:
            for path in place.iterdir():
                path.unlink()
            place.rmdir()


_Place: TypeAlias = "_Files | PostgresServer"


# --- from sending to the handler ---


def pickup(folder: Path) -> Figures:
    """Milliseconds from the call that sends, in one process, to the handler's first line in another one.

    What the call itself took, with its commit, is given beside it.
    """
    figures: Figures = {**versions(), "sends": SENDS - WARM_UP}
    with places(folder) as made:
        for engine in ENGINES:
            for side in sides_for(
                engine,
                ours(),
                # Without a limit: eight a second would not be picked up while the worker is idle.
                dbos("dbos", TICK_S, None),
                dbos("dbos_1_ms", SMALLEST_POLL_S, None),
                procrastinate("procrastinate"),
            ):
                found = _pickup(side, made[engine]) if installed(side) else None
                name = f"{side.name}_{engine}"
                figures[f"{name}_send_p50_ms"] = _at(found.sending, 0.5) if found else NOT_INSTALLED
                figures[f"{name}_p50_ms"] = _at(found.pickup, 0.5) if found else NOT_INSTALLED
                figures[f"{name}_p99_ms"] = _at(found.pickup, 0.99) if found else NOT_INSTALLED
    return figures


class Latencies(NamedTuple):
    """Milliseconds, in order: what the sending calls took, and from their beginning to the handler's."""

    sending: list[float]
    pickup: list[float]


def _pickup(side: Side, place: _Place) -> Latencies:
    with place.database() as url:
        side.call("prepare", url)
        worker = side.start("work", url)
        sender = side.call("send", url, count=SENDS, seed=1)
        time.sleep(3 * TICK_S)
        heard: dict[str, int] = worker.answer()["heard"]
    settle()
    sent: dict[str, int] = sender["sent"]
    if heard.keys() != sent.keys():
        raise RuntimeError(f"{side.name}: {len(sent)} were sent and {len(heard)} heard: this is no measurement")
    measured = list(sent.items())[WARM_UP:]
    return Latencies(
        sorted(sender["took_ns"][key] / 1e6 for key, _ in measured),
        sorted((heard[key] - at) / 1e6 for key, at in measured),
    )


def _at(ordered: Sequence[float], share: float) -> float:
    """Give the value that so large a share of all values does not exceed."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


# --- how many ---


def rates(folder: Path) -> Figures:
    """No-op turns per second over a backlog, from the first handler's begin to the moment when all are settled."""
    found: dict[str, list[float]] = {}
    with places(folder) as made:
        for number in range(ROUNDS):
            for engine in ENGINES:
                sides = sides_for(engine, *_rated())
                for side in sides[number % len(sides) :] + sides[: number % len(sides)]:
                    if installed(side):
                        rate = _rate(side, made[engine])
                        found.setdefault(f"{side.name}_{engine}", []).append(rate)
    figures: Figures = {**versions(), "turns": TURNS, **{f"{name}_jobs": count for name, count in _COUNTS.items()}}
    for engine in ENGINES:
        for side in sides_for(engine, *_rated()):
            name = f"{side.name}_{engine}"
            figures[f"{name}_per_s"] = round(statistics.median(found[name])) if name in found else NOT_INSTALLED
    return figures | _ratios(found)


def _rated() -> Sequence[Side]:
    return (
        ours(),
        ours("ours_new_sessions", sessions=None),
        dbos("dbos", TICK_S),
        dbos("dbos_1_ms", SMALLEST_POLL_S),
        dbos("dbos_unlimited", TICK_S, None),
        procrastinate("procrastinate_worker"),
        procrastinate("procrastinate_fetch_finish_1", 1, bare=True),
        procrastinate("procrastinate_fetch_finish_8", CONCURRENCY, bare=True),
    )


def _rate(side: Side, place: _Place) -> float:
    count = _COUNTS.get(side.name, TURNS)
    with place.database() as url:
        side.call("prepare", url)
        side.call("fill", url, count=count)
        rate = float(side.call("finish", url, count=count)["per_s"])
    settle()
    return rate


def _ratios(found: Mapping[str, Sequence[float]]) -> Figures:
    """Ours against the faster setting of each peer, round by round. Procrastinate has no other engine."""
    figures: Figures = {}
    for engine in ENGINES:
        against = {
            "dbos": [f"{name}_{engine}" for name in _LIMITED],
            "dbos_unlimited": [f"dbos_unlimited_{engine}"],
            "fetch_finish": [f"procrastinate_fetch_finish_{count}_postgres" for count in (1, CONCURRENCY)],
        }
        for name, rivals in against.items():
            there = [found[rival] for rival in rivals if rival in found]
            best = [max(rates) for rates in zip(*there, strict=True)]
            mine = found[f"ours_{engine}"]
            figures[f"ratio_{name}_{engine}"] = (
                statistics.median(one / other for one, other in zip(mine, best, strict=True)) if best else NOT_INSTALLED
            )
    return figures


# --- what waiting costs ---


def idle(folder: Path) -> Figures:
    """Processor time, user and system, of a process whose worker has nothing to do, in percent of one core."""
    figures: Figures = {**versions(), "seconds": IDLE_S}
    with places(folder) as made:
        for engine in ENGINES:
            for side in sides_for(
                engine,
                ours(),
                dbos("dbos"),
                dbos("dbos_1_ms", SMALLEST_POLL_S),
                procrastinate("procrastinate"),
            ):
                name = f"{side.name}_{engine}_percent"
                if not installed(side):
                    figures[name] = NOT_INSTALLED
                    continue
                with made[engine].database() as url:
                    side.call("prepare", url)
                    figures[name] = float(side.call("idle", url, seconds=IDLE_S)["share"]) * 100
    return figures
