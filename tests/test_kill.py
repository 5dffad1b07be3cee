"""Real processes, killed at random points, raced for a lane, and stopped past the end of their lease."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from fastness.conformance.builders import chain, commit, owner, texts
from fastness.model import Acquired, FullGraph, SessionStoreCreateRequest, TurnInput
from fastness.model.turn_input import NextTurn, PendingTurnInputDraft
from fastness.persistence import SqliteSessionStoreFactory
from fastness.sql.program import Program, Read, Statement
from tests.mortals import SESSIONS, TTL_MS

KILLS = 600
ROUNDS = 60
Line = tuple[str, int, str, str]
"""What happened, to whom, in which session, and what: see ``tests.mortals``."""


class Nursery:
    """The process that the mortals are forked from, and what they say."""

    def __init__(self, database: Path) -> None:
        command = [sys.executable, "-m", "tests.mortals", str(database)]
        root = Path(__file__).parents[1]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root, start_new_session=True
        )
        self.heard: list[Line] = []
        self.living: list[int] = []

    def order(self, *words: object) -> int:
        """Have a child born; gives its process id."""
        assert self.process.stdin is not None
        self.process.stdin.write((" ".join(map(str, words)) + "\n").encode())
        self.process.stdin.flush()
        while True:
            line = self.listen()
            if line[0] == "born":
                self.living.append(line[1])
                return line[1]

    def listen(self) -> Line:
        """The next line that anybody says."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        assert line.endswith("\n"), f"the nursery is gone, after {self.heard[-3:]}"
        what, pid, *rest = line.split()
        heard = (what, int(pid), *rest) if rest else (what, int(pid), "-", "-")
        self.heard.append(heard)  # type: ignore[arg-type]
        return self.heard[-1]

    def wait_for(self, pid: int, *kinds: str) -> Line:
        """The next line of one process that is of one of these kinds."""
        while True:
            line = self.listen()
            if line[1] == pid and line[0] in kinds:
                return line

    def kill(self, pid: int) -> None:
        """Kill one child, wherever it is."""
        self.living.remove(pid)
        os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        """Kill all that is left of them, and hear what they said last."""
        for pid in list(self.living):
            self.kill(pid)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        for line in self.process.stdout:
            what, speaker, session_id, text = line.decode().split()
            self.heard.append((what, int(speaker), session_id, text))
        self.process.stdout.close()
        assert self.process.wait(timeout=60) == 0

    def told(self, kind: str, session_id: str) -> list[str]:
        """All that was said of one kind about a session."""
        return [text for what, _, where, text in self.heard if (what, where) == (kind, session_id)]


@pytest.fixture
def nursery(tmp_path: Path) -> Iterator[Nursery]:
    """A nursery over a fresh database. Whatever happens, nobody outlives the test."""
    made = Nursery(tmp_path / "mortal.db")
    yield made
    if made.process.poll() is None:
        made.close()


async def audit(nursery: Nursery, path: Path) -> None:
    """Compare what was acknowledged with what is there: all of it, once."""
    async with SqliteSessionStoreFactory(path) as factory:
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


def test_hundreds_of_kills_lose_double_and_tear_nothing(nursery: Nursery, tmp_path: Path) -> None:
    """Workers on the same sessions die by SIGKILL at random points; all that was acknowledged is there, once."""
    chance = random.Random(20_240_501)
    nursery.order("work")
    for _ in range(KILLS):
        nursery.order("work")
        time.sleep(chance.choice((0.0, 0.005, 0.02, 0.05)) * chance.random())
        nursery.kill(chance.choice(nursery.living))
    assert len(nursery.living) == 1
    # The last one alive shows that the lanes of the dead can be had.
    for session_id in SESSIONS:
        while nursery.wait_for(nursery.living[0], "done")[2] != session_id:
            pass
    nursery.close()
    asyncio.run(audit(nursery, tmp_path / "mortal.db"))
    assert sum(len(nursery.told("done", session_id)) for session_id in SESSIONS) > KILLS // 4, "hardly a turn was run"
    last_words = {line[1]: line[0] for line in nursery.heard}
    assert list(last_words.values()).count("lane") > KILLS // 50, "hardly anybody died with a turn in hand"
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


async def succeed(path: Path) -> None:
    """Wait until the lane can be had, and settle a turn in it."""
    async with SqliteSessionStoreFactory(path) as factory:
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


async def submit(path: Path) -> None:
    """Say something to the session."""
    async with SqliteSessionStoreFactory(path) as factory:
        store = await factory.create_store(SessionStoreCreateRequest("a"))
        await store.enqueue_pending_turn_input(PendingTurnInputDraft("a", NextTurn(), TurnInput.of_text("hello")))


async def nodes_of(path: Path) -> list[str]:
    """The ids of the nodes of the session."""
    async with SqliteSessionStoreFactory(path) as factory:
        assert (await factory.check()).findings == ()
        store = await factory.open_existing_store(SessionStoreCreateRequest("a"))
        assert store is not None
        read = await store.load_session(FullGraph())
        assert read is not None
        return [found.node_id for found in read.graph.nodes]


def test_a_zombie_that_slept_past_its_lease_commits_nothing(nursery: Nursery, tmp_path: Path) -> None:
    """A process that is stopped with a commit in hand and wakes up after its successor has settled is refused."""
    database, orders = tmp_path / "mortal.db", tmp_path / "orders"
    asyncio.run(submit(database))
    os.mkfifo(orders)
    pid = nursery.order("zombie", orders)
    assert nursery.wait_for(pid, "lane")[3] == "1"
    with orders.open("w") as pipe:
        os.kill(pid, signal.SIGSTOP)
        pipe.write("commit\n")
        pipe.flush()
        asyncio.run(succeed(database))
        os.kill(pid, signal.SIGCONT)
        assert nursery.wait_for(pid, "lost", "done")[3] == "LeaseExpiredError"
    nursery.close()
    assert asyncio.run(nodes_of(database)) == ["successor"]
