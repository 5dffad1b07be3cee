"""How fast a worker picks up what was sent, how many turns it makes, and what it costs to wait: ours beside its peers.

Every system gets the same: one process that sends, one process with one worker, a database of its own that is new, on
the same disk or on the same server. On SQLite each has the durability that it comes with.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeAlias

import psycopg
from tests.servers.postgres import PostgresServer

from bench.dispatch.peers import (
    CONCURRENCY,
    SMALLEST_POLL_S,
    Side,
    dbos,
    installed,
    ours,
    procrastinate,
    settle,
    versions,
)
from bench.findings import Found, Part, Size, Spread, Table, Value
from bench.fleet import SETTINGS

ENGINES = ("sqlite", "postgres")
SENDS = {"short": 30, "full": 220}
WARM_UP = 10
TURNS = 800
ROUNDS = {"short": 1, "full": 5}
IDLE_S = {"short": 3.0, "full": 20.0}
TICK_S = 1.0
"""How often DBOS polls if nothing else is said."""

_DURABLE = ("server_version", "fsync", "synchronous_commit", "full_page_writes")
_LIMITED = ("dbos", "dbos_1_ms")
_COUNTS = {"dbos": 40, "dbos_1_ms": 400, "dbos_unlimited": 600}
"""How many jobs a system gets that would take too long over ``TURNS``: eight per second, or slow to be sent to.

In a short run everybody gets half of it.
"""


def sides_for(engine: str, *sides: Side) -> list[Side]:
    """Leave out what does not run on an engine."""
    return [side for side in sides if engine == "postgres" or side.module != "dispatch.procrastinate"]


@contextmanager
def places(folder: Path) -> Iterator[Mapping[str, _Place]]:
    """Give for each engine where new databases are made."""
    with PostgresServer(settings=SETTINGS) as server:
        yield {"sqlite": _Files(folder), "postgres": server}


def _settings(made: Mapping[str, _Place]) -> dict[str, str]:
    """Say which peers there are, and how durable the server is that all share."""
    with made["postgres"].database() as url, psycopg.connect(url) as connection:
        rows = [connection.execute(f"show {name}").fetchone() for name in _DURABLE]
    told = ", ".join(f"{name}={row[0]}" for name, row in zip(_DURABLE, rows, strict=True) if row)
    return {**versions(), "PostgreSQL": told, "SQLite": "each system has what it comes with"}


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


def pickup(folder: Path, size: Size) -> Found:
    """Milliseconds from the call that sends, in one process, to the handler's first line in another one.

    What the call itself took, with its commit, is given beside it.
    """
    figures: dict[str, Value] = {"sends": SENDS[size] - WARM_UP}
    rows: dict[str, list[Value]] = {}
    missing: dict[str, str] = {}
    with places(folder) as made:
        settings = _settings(made)
        for engine in ENGINES:
            # DBOS without a limit: eight a second would not be picked up while the worker is idle.
            for side in sides_for(engine, *_waiting(size, None)):
                if not installed(side):
                    missing |= _not_installed(side)
                    continue
                found = _pickup(side, made[engine], SENDS[size])
                p50, p99 = _at(found.pickup, 0.5), _at(found.pickup, 0.99)
                rows[f"{side.name}, {engine}"] = [_at(found.sending, 0.5), p50, p99]
                figures[f"{side.name}_{engine}_p50_ms"] = p50
                figures[f"{side.name}_{engine}_p99_ms"] = p99
    table = Table("Milliseconds", ("the sending call, p50", "to the handler, p50", "to the handler, p99"), rows)
    return Found(figures, [table], settings, missing)


def _waiting(size: Size, limit: int | None) -> Sequence[Side]:
    """Give those whose workers wait for something; how DBOS does when it is asked all the time is for full runs."""
    polled = (dbos("dbos_1_ms", SMALLEST_POLL_S, limit),) if size == "full" else ()
    return (ours(), dbos("dbos", TICK_S, limit), *polled, procrastinate("procrastinate"))


def _not_installed(side: Side) -> dict[str, str]:
    return {side.name: f"not installed ({side.module} needs it in the peers' environment)"}


class Latencies(NamedTuple):
    """Milliseconds, in order: what the sending calls took, and from their beginning to the handler's."""

    sending: list[float]
    pickup: list[float]


def _pickup(side: Side, place: _Place, sends: int) -> Latencies:
    with place.database() as url:
        side.call("prepare", url)
        worker = side.start("work", url)
        sender = side.call("send", url, count=sends, seed=1)
        time.sleep(3 * TICK_S)
        heard: dict[str, int] = worker.last_answer()["heard"]
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


def rates(folder: Path, size: Size) -> Found:
    """No-op turns per second over a backlog, from the first handler's begin to the moment when all are settled."""
    found: dict[str, list[float]] = {}
    missing: dict[str, str] = {}
    with places(folder) as made:
        settings = _settings(made)
        for number in range(ROUNDS[size]):
            for engine in ENGINES:
                sides = sides_for(engine, *_rated(size))
                for side in sides[number % len(sides) :] + sides[: number % len(sides)]:
                    if installed(side):
                        rate = _rate(side, made[engine], size)
                        found.setdefault(f"{side.name}_{engine}", []).append(rate)
                    else:
                        missing |= _not_installed(side)
    rows: dict[str, list[Value]] = {
        name: [_count(name.rpartition("_")[0], size), Spread.of(measured)] for name, measured in found.items()
    }
    return Found(_ratios(found), [Table("Turns or jobs", ("how many", "per second"), rows)], settings, missing)


def _rated(size: Size) -> Sequence[Side]:
    rivals = (
        ours(),
        dbos("dbos", TICK_S),
        dbos("dbos_1_ms", SMALLEST_POLL_S),
        procrastinate("procrastinate_fetch_finish_1", 1, bare=True),
        procrastinate("procrastinate_fetch_finish_8", CONCURRENCY, bare=True),
    )
    if size == "short":
        return rivals
    return (
        *rivals,
        ours("ours_new_sessions", sessions=None),
        dbos("dbos_unlimited", TICK_S, None),
        procrastinate("procrastinate_worker"),
    )


def _count(side: str, size: Size) -> int:
    count = _COUNTS.get(side, TURNS)
    return count // 2 if size == "short" else count


def _rate(side: Side, place: _Place, size: Size) -> float:
    count = _count(side.name, size)
    with place.database() as url:
        side.call("prepare", url)
        side.call("fill", url, count=count)
        rate = float(side.call("finish", url, count=count)["per_s"])
    settle()
    return rate


def _ratios(found: Mapping[str, Sequence[float]]) -> dict[str, Value]:
    """Ours against the faster setting of each peer that is there, round by round, each on its own engine."""
    figures: dict[str, Value] = {}
    for engine in ENGINES:
        against = {
            "dbos": [f"{name}_{engine}" for name in _LIMITED],
            "dbos_unlimited": [f"dbos_unlimited_{engine}"],
            "fetch_finish": [f"procrastinate_fetch_finish_{count}_{engine}" for count in (1, CONCURRENCY)],
        }
        for name, rivals in against.items():
            there = [found[rival] for rival in rivals if rival in found]
            if there:
                best = [max(rates) for rates in zip(*there, strict=True)]
                figures[f"ratio_{name}_{engine}"] = Spread.of_ratios(found[f"ours_{engine}"], best)
    return figures


# --- what waiting costs ---


def idle(folder: Path, size: Size) -> Found:
    """Processor time, user and system, of a process whose worker has nothing to do, in percent of one core."""
    figures: dict[str, Value] = {"seconds": IDLE_S[size]}
    missing: dict[str, str] = {}
    with places(folder) as made:
        settings = _settings(made)
        for engine in ENGINES:
            for side in sides_for(engine, *_waiting(size, CONCURRENCY)):
                if not installed(side):
                    missing |= _not_installed(side)
                    continue
                with made[engine].database() as url:
                    side.call("prepare", url)
                    share = float(side.call("idle", url, seconds=IDLE_S[size])["share"])
                figures[f"{side.name}_{engine}_percent"] = share * 100
    return Found(figures, settings=settings, missing=missing)


PARTS = (
    Part(
        "pickup",
        "Dispatch: from sending to the handler",
        pickup,
        f"""One process sends, another has one idle worker, the database is new. Pauses of 50 to 150 ms between sends,
the first {WARM_UP} of which do not count. From before the sending call, which is durable when it returns, to the
handler's first line, on one clock of the machine. DBOS has no limit on its queue here; `dbos` polls each second, as it
comes, and `dbos_1_ms`, which only full runs have, as often as it lets one ask. procrastinate runs on PostgreSQL only.
On SQLite each has the durability that it comes with.""",
    ),
    Part(
        "turns",
        "Dispatch: no-op turns per second",
        rates,
        """A backlog is sent before; the time runs from the first handler's beginning until the database says that all
are settled. Ours: 8 sessions, one input a turn, 8 at a time; in full runs also `ours_new_sessions`, a session for each
input. The peers have jobs of their own without an order. DBOS has a queue of 8 at a time, polled as it comes and each
millisecond, and, in full runs, one without a limit, which takes the whole backlog at once. procrastinate's rates are
those of fetch and finish alone on 1 and 8 connections, and in full runs of its worker; ratios are to the faster
setting of each.""",
    ),
    Part(
        "idle",
        "Dispatch: an idle worker",
        idle,
        """Processor time of a worker's process with nothing to do, in percent of one core.""",
    ),
)
