"""Real processes, killed at random points, raced for a lane, and stopped past the end of their lease."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from fastness.conformance.builders import chain, commit, owner, texts
from fastness.model import Acquired, FullGraph, SessionStoreCreateRequest, TurnInput
from fastness.model.turn_input import NextTurn, PendingTurnInputDraft
from fastness.persistence import open_database
from fastness.sql.program import Program, Read, Statement
from tests.mortals import SESSIONS, TTL_MS
from tests.nursery import SHARED, Line, Nursery, database_of, nursery_over

ROUNDS = 60


class Pace(NamedTuple):
    """How many are killed, how many are left alive by it, and the longest pause before a kill in seconds."""

    kills: int
    crew: int
    pause_s: float


PACES = {"sqlite": Pace(400, 1, 0.05), "postgresql": Pace(160, 4, 0.1)}
"""A worker that has to get to know a server first lives longer, so that it dies at its work."""


@pytest.fixture(params=SHARED)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A fresh database of one engine after the other."""
    with database_of(request.param, tmp_path) as found:
        yield found


@pytest.fixture
def nursery(url: str) -> Iterator[Nursery]:
    """A nursery over that database."""
    with nursery_over(url) as made:
        yield made


async def audit(nursery: Nursery, url: str) -> None:
    """Compare what was acknowledged with what is there: all of it, once."""
    async with open_database(url) as factory:
        report = await factory.check()
        assert report.findings == ()
        for session_id in SESSIONS:
            store = await factory.open_existing_store(SessionStoreCreateRequest(session_id))
            assert store is not None
            read = await store.load_session(FullGraph())
            assert read is not None
            there = [found.node_id for found in read.graph.nodes]
            held = await factory.engine.read(partial(unsettled, session_id))
            twice = [text for text, count in Counter(there + held).items() if count > 1]
            assert twice == [], "an input was settled twice, or waits and is settled at once"
            said = set(nursery.told("said", session_id))
            assert said - set(there) - set(held) == set(), "an acknowledged submission is lost"
            done = {text for line in nursery.told("done", session_id) for text in line.split(",")}
            assert done - set(there) == set(), "an acknowledged commit is lost"
            assert [found.node_id for found in read.graph.active_path()] == there, "the turns are no single line"
            assert read.head.ledger[0].usage.input_tokens == len(there), "usage and turns disagree"
            tokens = [int(token) for token in nursery.told("lane", session_id)]
            assert len(tokens) == len(set(tokens)), "a fencing token was granted twice"


def unsettled(session_id: str) -> Program[list[str]]:
    """A program that reads the source keys of all input that is not settled, held or not."""
    sql = "select source_key from turn_input where sid = (select sid from session where session_id = $1)"
    (rows,) = yield Read(Statement(sql, (session_id,)))
    return [key for (key,) in rows]


def test_hundreds_of_kills_lose_double_and_tear_nothing(nursery: Nursery, url: str) -> None:
    """Workers on the same sessions die by SIGKILL at random points; all that was acknowledged is there, once."""
    chance = random.Random(20_240_501)
    pace = PACES[url.partition(":")[0]]
    for _ in range(pace.crew):
        nursery.order("work")
    for number in range(pace.kills):
        nursery.order("work")
        if number % 2:
            # However slow the machine is, they get somewhere.
            nursery.wait_for_any("done")
        time.sleep(chance.choice((0.0, 0.1, 0.4, 1.0)) * chance.random() * pace.pause_s)
        nursery.kill(chance.choice(nursery.living))
    assert len(nursery.living) == pace.crew
    # Those still alive show that the lanes of the dead can be had.
    for session_id in SESSIONS:
        while nursery.wait_for_any("done", *nursery.living)[2] != session_id:
            pass
    nursery.close()
    asyncio.run(audit(nursery, url))
    last_words = {line[1]: line[0] for line in nursery.heard}
    assert list(last_words.values()).count("lane") > pace.kills // 50, "hardly anybody died with a turn in hand"
    assert {line[3] for line in nursery.heard if line[0] == "lost"} <= {"LeaseExpiredError", "ContendedError"}


def test_of_two_processes_that_race_for_a_lane_one_wins_each_round(nursery: Nursery, tmp_path: Path) -> None:
    """In every round exactly one process gets the lane, and the fencing tokens go up by one from round to round."""
    pipes = []
    racers = []
    for name in ("one", "two"):
        os.mkfifo(tmp_path / name)
        racers.append(nursery.order("race", tmp_path / name))
        pipes.append((tmp_path / name).open("w"))

    def order() -> list[Line]:
        for pipe in pipes:
            pipe.write("go\n")
            pipe.flush()
        lines = [nursery.listen(), nursery.listen()]
        assert {line[1] for line in lines} == set(racers)
        return lines

    for number in range(1, ROUNDS + 1):
        assert sorted((line[0], line[3]) for line in order()) == [("lane", str(number)), ("lost", "Busy")]
        assert {line[0] for line in order()} == {"free"}
    for pipe in pipes:
        pipe.close()
    winners = {line[1] for line in nursery.heard if line[0] == "lane"}
    assert winners <= set(racers)


async def succeed(url: str) -> None:
    """Wait until the lane can be had, and settle a turn in it."""
    async with open_database(url) as factory:
        store = await factory.create_store(SessionStoreCreateRequest("a"))
        while True:
            outcome = await store.try_claim_session_execution_lease("a", owner("successor"), TTL_MS)
            if isinstance(outcome, Acquired):
                break
            await asyncio.sleep(0.02)
        claim = await store.claim_next_turn_inputs("a", outcome.lease.fence(), max_inputs=5)
        assert claim is not None
        assert texts(claim.inputs) == ["hello"]
        done = commit(outcome.lease, None, *chain("successor")).completing_turn_input_claim(claim)
        await store.commit_runtime_state(done)


async def submit(url: str) -> None:
    """Say something to the session."""
    async with open_database(url) as factory:
        store = await factory.create_store(SessionStoreCreateRequest("a"))
        await store.enqueue_pending_turn_input(PendingTurnInputDraft("a", NextTurn(), TurnInput.of_text("hello")))


async def nodes_of(url: str) -> list[str]:
    """The ids of the nodes of the session."""
    async with open_database(url) as factory:
        assert (await factory.check()).findings == ()
        store = await factory.open_existing_store(SessionStoreCreateRequest("a"))
        assert store is not None
        read = await store.load_session(FullGraph())
        assert read is not None
        return [found.node_id for found in read.graph.nodes]


def test_a_zombie_that_slept_past_its_lease_commits_nothing(nursery: Nursery, url: str, tmp_path: Path) -> None:
    """A process that is stopped with a commit in hand and wakes up after its successor has settled is refused."""
    orders = tmp_path / "orders"
    asyncio.run(submit(url))
    os.mkfifo(orders)
    pid = nursery.order("zombie", orders)
    assert nursery.wait_for(pid, "lane")[3] == "1"
    with orders.open("w") as pipe:
        os.kill(pid, signal.SIGSTOP)
        pipe.write("commit\n")
        pipe.flush()
        asyncio.run(succeed(url))
        os.kill(pid, signal.SIGCONT)
        assert nursery.wait_for(pid, "lost", "done")[3] == "LeaseExpiredError"
    nursery.close()
    assert asyncio.run(nodes_of(url)) == ["successor"]
