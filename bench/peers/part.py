"""One durable turn as a session grows, and many sessions at once: ours beside every peer.

Our turn is the full one; the peers store the same four messages and nothing else. Each contestant is a process of its
own that does what it is told, so that rounds of all of them alternate on one disk and one PostgreSQL server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from tests.servers.postgres import PostgresServer

from bench.findings import Found, Part, Size, Spread, Table, Value
from bench.fleet import SETTINGS
from bench.peers.contestants import SIDES, Running
from bench.peers.ring import Ring
from bench.peers.syncs import count_syncs

COMPARED = 400
"""How many turns a session has where the ratios are taken; every contestant is driven that far."""
MARKS = (50, 100, COMPARED, 1_000, 10_000)
SIZED = (COMPARED, 1_000, 10_000)
TURNS = {50: 4, 100: 6}
"""How many turns a contestant makes in a round at a mark; beyond, ``TURNS_BEYOND``."""
TURNS_BEYOND = 12
CROWDS = (1, 8, 64, 256)
CROWD_TURNS = 128
"""How many turns a crowd makes together in a round: one each where it has more sessions."""
CROWDED = ("ours_sqlite", "openai_sqlite", "openai_sqlalchemy_sqlite", "ours_postgres", "openai_sqlalchemy_postgres")
RATIOS = {
    "ratio_openai_sqlite": ("openai_sqlite", "ours_sqlite"),
    "ratio_openai_sqlalchemy_sqlite": ("openai_sqlalchemy_sqlite", "ours_sqlite"),
    "ratio_openai_sqlalchemy_postgres": ("openai_sqlalchemy_postgres", "ours_postgres"),
    "ratio_langgraph_sqlite_400": ("langgraph_sqlite", "ours_sqlite"),
    "ratio_langgraph_postgres_400": ("langgraph_postgres", "ours_postgres"),
    "ratio_langgraph_delta_sqlite_400": ("langgraph_delta_sqlite", "ours_sqlite"),
    "ratio_langgraph_delta_postgres_400": ("langgraph_delta_postgres", "ours_postgres"),
    "ratio_adk_sqlite": ("adk_sqlite", "ours_sqlite"),
    "ratio_adk_postgres": ("adk_postgres", "ours_postgres"),
    "ratio_bare_sqlite": ("bare_sqlite", "ours_sqlite"),
}
"""Whose time of a turn is divided by whose."""
BYTES = {
    "ratio_langgraph_bytes_sqlite": ("ours_sqlite", "langgraph_sqlite"),
    "ratio_langgraph_bytes_postgres": ("ours_postgres", "langgraph_postgres"),
}
"""Whose bytes are divided by whose."""


class _Plan(NamedTuple):
    rounds: int
    loads: int
    budget_s: float
    crowd_rounds: int


PLANS: Mapping[Size, _Plan] = {"short": _Plan(4, 3, 4.0, 3), "full": _Plan(9, 5, 40.0, 7)}
"""``budget_s``: how long a contestant may take to grow from one mark to the next, beyond the compared one."""


@dataclass
class _Measured:
    """What was measured of a contestant, by the number of turns that its session had."""

    turn_s: dict[int, list[float]] = field(default_factory=dict)
    load_s: dict[int, list[float]] = field(default_factory=dict)
    open_bytes: dict[int, int] = field(default_factory=dict)
    closed_bytes: dict[int, int] = field(default_factory=dict)
    turns: int = 0
    was_filled: bool = False


def as_a_session_grows(folder: Path, size: Size) -> Found:
    """Time, bytes and loading by the number of turns; ratios where a session has ``COMPARED`` of them."""
    plan, found = PLANS[size], Found()
    measured = {side.name: _Measured() for side in SIDES}
    with PostgresServer(settings=SETTINGS) as server:
        found.settings["PostgreSQL"] = server.version
        with Ring(folder, server, found, "grown") as ring:
            ring.enter(SIDES)
            there = list(ring.running)
            for mark in MARKS:
                budget_s = None if mark <= COMPARED else plan.budget_s
                there = _grow(ring, there, measured, mark, budget_s)
                _measure(ring, there, measured, mark, plan)
            count_syncs(ring, server)
    for name, (theirs, ours) in RATIOS.items():
        one, other = measured[theirs].turn_s.get(COMPARED), measured[ours].turn_s.get(COMPARED)
        found.figures[name] = Spread.of_ratios(one, other) if one and other else None
    for name, (ours, theirs) in BYTES.items():
        smaller, larger = (measured[side].closed_bytes.get(COMPARED) for side in (ours, theirs))
        found.figures[name] = smaller / larger if smaller and larger else None
    found.tables = _tables(measured)
    return found


def _grow(
    ring: Ring, some: list[Running], measured: Mapping[str, _Measured], mark: int, budget_s: float | None
) -> list[Running]:
    """Grow everybody's session. Who does not get to the mark in time stays behind for good; give who does.

    Where time is what ends it, each has the machine to itself.
    """
    there = []
    if budget_s is None:
        answers = ring.together("grow", some, to=mark, budget_s=None)
    else:
        answers = ring.each(lambda one: one.ask("grow", to=mark, budget_s=budget_s), some)
    for one, answer in answers:
        seen = measured[one.side.name]
        seen.turns, seen.was_filled = answer["turns"], seen.was_filled or answer["filled"]
        if seen.turns >= mark:
            there.append(one)
    return there


def _measure(ring: Ring, there: list[Running], measured: Mapping[str, _Measured], mark: int, plan: _Plan) -> None:
    """Measure loading, bytes, and the turns that follow."""
    for _ in range(plan.loads):
        for one, answer in ring.each(lambda one: one.ask("load"), there):
            measured[one.side.name].load_s.setdefault(mark, []).append(answer["seconds"])
    if mark in SIZED:
        for one, (while_open, closed) in ring.each(partial(_sizes, ring), there):
            measured[one.side.name].open_bytes[mark] = while_open
            measured[one.side.name].closed_bytes[mark] = closed
    ring.calm()
    count = TURNS.get(mark, TURNS_BEYOND)
    for number in range(plan.rounds + 1):
        # Every other round the other way round, and the first one is not counted.
        for one, answer in ring.each(
            lambda one: one.ask("turns", count=count, is_ready=False), there[:: (-1) ** number]
        ):
            seen = measured[one.side.name]
            seen.turns += count
            if number:
                seen.turn_s.setdefault(mark, []).append(fmean(answer["seconds"]))


def _sizes(ring: Ring, one: Running) -> tuple[int, int]:
    """Give a contestant's bytes while it is open, and after it has closed its store."""
    while_open = ring.size(one)
    one.ask("close")
    closed = ring.size(one)
    one.ask("open")
    return while_open, closed


def _tables(measured: Mapping[str, _Measured]) -> list[Table]:
    def rows(values: Callable[[_Measured], Sequence[Value]], engine: str = "") -> dict[str, Sequence[Value]]:
        sides = [side for side in SIDES if engine in side.engine]
        return {side.title: values(measured[side.name]) for side in sides if measured[side.name].turn_s}

    def spreads(by_mark: Mapping[int, Sequence[float]], marks: Sequence[int]) -> list[Value]:
        return [Spread.of([s * 1e3 for s in by_mark[mark]]) if mark in by_mark else None for mark in marks]

    def megabytes(by_mark: Mapping[int, int]) -> list[Value]:
        return [by_mark[mark] / 1e6 if mark in by_mark else None for mark in SIZED]

    marks, sized = [f"{mark:,} turns" for mark in MARKS], [f"{mark:,} turns" for mark in SIZED]
    return [
        Table("ms for a turn, as the session grows", marks, rows(lambda seen: spreads(seen.turn_s, MARKS))),
        Table("ms to load the whole session", marks, rows(lambda seen: spreads(seen.load_s, MARKS))),
        Table("MB on the disk, after the store was closed", sized, rows(lambda seen: megabytes(seen.closed_bytes))),
        Table(
            "SQLite: MB with the log, while it is open", sized, rows(lambda seen: megabytes(seen.open_bytes), "sqlite")
        ),
        Table(
            "How far it came in its time",
            ["turns", "stored in bulk between the marks"],
            rows(lambda seen: [seen.turns, "yes" if seen.was_filled else "no"]),
        ),
    ]


def many_sessions(folder: Path, size: Size) -> Found:
    """Turns per second of so many sessions in one process, all at once."""
    found = Found()
    per_s: dict[str, dict[int, list[float]]] = {}
    sides = [side for side in SIDES if side.name in CROWDED]
    with PostgresServer(settings=SETTINGS) as server, Ring(folder, server, found, "crowd") as ring:
        found.settings["PostgreSQL"] = server.version
        ring.enter(sides)
        for number in range(PLANS[size].crowd_rounds + 1):
            # The round that is not counted gets everybody warm; the largest crowd needs no other warmth, but much time.
            for crowd in CROWDS if number else CROWDS[:-1]:
                ring.calm()
                for one, rate in ring.each(partial(_crowd, crowd=crowd, name=f"of-{crowd}-round-{number}")):
                    if number:
                        per_s.setdefault(one.side.name, {}).setdefault(crowd, []).append(rate)
    for theirs in (name for name in CROWDED if not name.startswith("ours")):
        ours = f"ours_{theirs.rpartition('_')[2]}"
        for crowd in CROWDS:
            fast, slow = (per_s.get(name, {}).get(crowd) for name in (ours, theirs))
            found.figures[f"ratio_{theirs}_{crowd}"] = Spread.of_ratios(fast, slow) if fast and slow else None
    rows = {
        side.title: [Spread.of(rates) for rates in per_s[side.name].values()] for side in sides if side.name in per_s
    }
    found.tables.append(Table("Turns per second", [f"{crowd} sessions" for crowd in CROWDS], rows))
    return found


def _crowd(one: Running, crowd: int, name: str) -> float:
    turns = max(1, CROWD_TURNS // crowd)
    seconds = float(one.ask("crowd", name=name, sessions=crowd, turns=turns)["seconds"])
    # What was opened for these sessions is closed with the store.
    one.ask("close")
    one.ask("open")
    return crowd * turns / seconds


PARTS = (
    Part(
        "peers",
        "One durable turn as a session grows, beside the peers",
        as_a_session_grows,
        """
Our turn is the full one (four messages, a checkpoint, usage, one input consumed), the peers' has the same four
messages and nothing else. OpenAI: one `add_items`. LangGraph: one `aput` of a checkpoint whose channel has all
messages; with the delta channel, `aput_writes` of the four and `aput` of a checkpoint, with a snapshot as often as its
default says. ADK: four `append_event`. All are durable, as the settings say that were read back on their own
connections; the journal is the one that the peer sets. The turns of a mark are those that follow it; a figure is the
mean of a round's turns, and the median of the rounds. Ratios are taken at 400 turns (1,600 messages), and are the
peer's time divided by ours: above 1, ours is faster. What a turn needs is built before it; our input is enqueued and
claimed before, too. OpenAI's sessions are filled with `add_items` of a hundred turns at once, which leaves the same
rows; all others are driven turn by turn, beyond 400 turns until their time is up. Loading gives what the application
works with: typed nodes, dictionaries, messages, events.""",
    ),
    Part(
        "peers_sessions",
        "Many sessions in one process, beside the peers",
        many_sessions,
        f"""
{CROWD_TURNS} turns together in a round, or one of each session where there are more, each session one after the other,
on one store; new sessions in each round. The ratio is our rate divided by the peer's.""",
    ),
)
