"""Laws of the worker: what it runs, in what order, how much at once, and what wakes it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from fastness.conformance.lab import Lab
from fastness.errors import BackendError
from fastness.liveness import mint_owner
from fastness.model import LeaseTimings, LocalProcess, Message, TextPart
from fastness.runtime import worker as module
from fastness.runtime.database import Database
from fastness.runtime.turn import Turn
from fastness.runtime.worker import Worker
from tests.runtime.faults import KINDS, Faults
from tests.runtime.saying import AT_ONCE, exchange, revisions, said_in, soon, spoken, texts, until, view
from tests.runtime.workers import Handler, settled

pytestmark = pytest.mark.usefixtures("often")


# --- order and number ---


async def test_a_worker_answers_what_was_sent_before_and_meanwhile(db: Database, other: Database) -> None:
    """In the order in which it was sent; what it returns is the answer."""

    async def answer(turn: Turn, what: str) -> str:
        """Say so."""
        return f"answer to {what}"

    handler = Handler(answer)
    await db.send("s", "one")
    await db.send("s", "two")
    async with Worker(db, handler, max_inputs=1):
        await handler.until_done(2)
        await other.send("s", "three")
        await other.enqueue("s", "chore")
        await other.send("s", "four")
        await handler.until_done(5)
    assert [what for _, what in handler.begun] == ["one", "two", "three", "chore", "four"]
    assert texts((await view(db)).messages) == [
        "one",
        "answer to one",
        "two",
        "answer to two",
        "three",
        "answer to three",
        "answer to chore",
        "four",
        "answer to four",
    ]
    assert await revisions(db) == [1, 2, 3, 4, 5]


async def test_what_waits_together_is_heard_together(db: Database) -> None:
    """As much of it as one turn may take."""
    for text in ("a", "b", "c"):
        await db.send("s", text)
    handler = Handler()
    async with Worker(db, handler, max_inputs=2):
        await handler.until_done(2)
    assert handler.done == [("s", "a+b"), ("s", "c")]


async def test_different_sessions_run_side_by_side_up_to_the_concurrency(db: Database) -> None:
    """Three at once and never more; the turns of one session one after the other."""
    barrier = asyncio.Barrier(3)
    alone: dict[str, int] = {}

    async def meet(turn: Turn, what: str) -> None:
        """Wait for two others, of other sessions."""
        alone[turn.session_id] = alone.get(turn.session_id, 0) + 1
        assert alone[turn.session_id] == 1
        await barrier.wait()
        alone[turn.session_id] -= 1

    handler = Handler(meet)
    for session_id in "abcdef":
        for text in "12":
            await db.send(session_id, text)
    async with Worker(db, handler, concurrency=3, max_inputs=1):
        await handler.until_done(12)
    assert handler.most == 3
    for session_id in "abcdef":
        assert [what for name, what in handler.done if name == session_id] == ["1", "2"]


async def test_a_session_of_a_greater_priority_goes_first(db: Database) -> None:
    """Among equals the one that has waited longest."""
    for session_id, priority in (("a", 0), ("b", 5), ("c", 9), ("d", 5)):
        await db.describe(session_id, priority=priority)
        await db.send(session_id, "x")
    handler = Handler()
    async with Worker(db, handler, concurrency=1):
        await handler.until_done(4)
    assert [session_id for session_id, _ in handler.begun] == ["c", "b", "d", "a"]


async def test_a_label_bounds_what_runs_in_all_workers_together(db: Database, other: Database) -> None:
    """Sessions without it do not wait for those that have it; in the end all are done."""
    limited = most = 0

    async def count(turn: Turn, what: str) -> None:
        """Count those that are limited."""
        nonlocal limited, most
        if turn.session_id.startswith("slow"):
            limited += 1
            most = max(most, limited)
            await asyncio.sleep(0.02)
            limited -= 1

    handler = Handler(count)
    for number in range(6):
        await db.describe(f"slow{number}", labels=["slow", "all"])
        await db.send(f"slow{number}", "x")
        await db.send(f"free{number}", "x")
    limits = {"slow": 1, "unknown": 1}
    async with Worker(db, handler, label_limits=limits), Worker(other, handler, label_limits=limits):
        await handler.until_done(12)
    assert most == 1
    assert len(set(handler.done)) == 12


async def test_two_workers_run_each_turn_once(db: Database, other: Database) -> None:
    """Whichever is first."""
    for number in range(20):
        await db.send(f"s{number % 5}", f"{number}")
    handler = Handler()
    async with Worker(db, handler, max_inputs=1) as one, Worker(other, handler, max_inputs=1) as two:
        await handler.until_done(20)
        await until(lambda: one.settled_count + two.settled_count == 20)
    assert sorted(int(what) for _, what in handler.done) == list(range(20))
    for number in range(5):
        said = [what for name, what in handler.begun if name == f"s{number}"]
        assert said == [f"{number + step}" for step in (0, 5, 10, 15)]


# --- when ---


async def test_what_is_delayed_is_done_at_its_time(lab: Lab, db: Database) -> None:
    """Not before, and nobody has to send anything for it."""
    moments = []

    async def note(turn: Turn, what: str) -> None:
        """Note the time of the database."""
        moments.append(lab.clock.now_ms - lab.start_ms)

    handler = Handler(note)
    await db.send("s", "later", delay=60)
    await db.enqueue("t", "chore", delay=120)
    async with Worker(db, handler):
        await db.send("u", "now")
        await settled(db, "u")
        for session_id in ("s", "t"):
            lab.clock.advance(59_999)
            await db.send("u", "still now")
            await settled(db, "u")
            lab.clock.advance(1)
            await settled(db, session_id)
    assert handler.done == [("u", "now"), ("u", "still now"), ("s", "later"), ("u", "still now"), ("t", "chore")]
    assert moments == [0, 59_999, 60_000, 119_999, 120_000]


async def test_whatever_is_sent_from_elsewhere_wakes_an_idle_worker(
    db: Database, other: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once: it does not have to look by itself for that."""
    monkeypatch.setattr(module, "_LOOK_AGAIN_S", 3600)
    handler = Handler()
    async with Worker(db, handler):
        await db.send("s", "one")
        await handler.until_done(1)
        await settled(db)
        await other.send("s", "two")
        await handler.until_done(2)
        await settled(db)
        await other.enqueue("t", "three")
        await handler.until_done(3)
        await settled(db, "t")
        async with other.turn("u") as turn:
            turn.send("v", "four")
        await handler.until_done(4)
        await settled(db, "v")
        await other.describe("w", name="W")
        await other.command("w", {"do": "five"})
        await handler.until_done(5)
    assert [what for _, what in handler.done] == ["one", "two", "three", "four", "command"]


async def test_an_agent_wakes_itself(db: Database) -> None:
    """Work that a turn leaves to its own session is the next turn's."""

    async def again(turn: Turn, what: str) -> None:
        """Three times."""
        count = int(turn.state or b"0") + 1
        turn.state = str(count).encode()
        if count < 3:
            turn.enqueue(f"wake {count}")

    handler = Handler(again)
    await db.send("s", "go")
    async with Worker(db, handler):
        await handler.until_done(3)
    assert [what for _, what in handler.done] == ["go", "wake 1", "wake 2"]


async def test_what_is_said_to_a_running_turn_joins_it(db: Database, other: Database) -> None:
    """Which it hears at its checkpoints; what came too late starts the next one."""

    async def listen(turn: Turn, what: str) -> str:
        """Until nobody says more."""
        rounds = []
        async for fresh in turn.checkpoints():
            rounds.append("+".join(texts(fresh)))
            if rounds == ["one"]:
                await other.send("s", "two", to="running_turn")
        if what == "one":
            await other.send("s", "three", to="running_turn")
        return ", ".join(rounds)

    handler = Handler(listen)
    await db.send("s", "one")
    async with Worker(db, handler):
        await handler.until_done(2)
    assert [text for role, text in spoken((await view(db)).messages) if role == "assistant"] == ["one, two", "three"]


# --- what comes of it ---


@pytest.mark.parametrize(
    "answer",
    ["hi", {"role": "assistant", "content": "hi"}, Message("m", "assistant", (TextPart("hi"),)), None],
    ids=["text", "dictionary", "message", "nothing"],
)
async def test_what_a_handler_returns_is_its_answer(db: Database, answer: Any) -> None:
    """In every form that a turn can append; nothing at all is fine."""

    async def give(turn: Turn, what: str) -> Any:
        """Return it."""
        return answer

    handler = Handler(give)
    await db.send("s", "hello")
    async with Worker(db, handler):
        await handler.until_done(1)
    said = spoken((await view(db)).messages)
    assert said == [("user", "hello"), *([] if answer is None else [("assistant", "hi")])]


async def test_commands_are_applied_in_order_with_all_else(db: Database) -> None:
    """The library's own by itself, all others by the handler; input behind one is answered with it in effect."""

    async def note(turn: Turn, what: str) -> str:
        """Say which model answers."""
        return f"{turn.kind} on {turn.model}"

    await exchange(db, "zero", "answer zero")
    leaf = (await view(db)).messages[-1].id
    handler = Handler(note)
    await db.send("s", "one")
    await db.command("s", {"fastness": "configure", "model": "large"})
    await db.send("s", "two")
    await db.command("s", {"do": "something"})
    await db.command("s", {"fastness": "switch", "node": leaf})
    await db.send("s", "three")
    async with Worker(db, handler):
        await handler.until_done(4)
    assert [what for _, what in handler.done] == ["one", "two", "command", "three"]
    seen = await view(db)
    assert texts(seen.messages) == ["zero", "answer zero", "three", "input on large"]
    assert [entry.message.text for entry in seen.message_tree.entries][2:6] == [
        "one",
        "input on ",
        "two",
        "input on large",
    ]


async def test_a_command_that_cannot_be_read_is_set_aside(db: Database) -> None:
    """With what is wrong with it, and the session goes on."""
    await db.command("s", {"fastness": "switch", "nodule": "x"})
    await db.command("s", {"fastness": "explode"})
    await db.send("s", "hello")
    handler = Handler()
    async with Worker(db, handler, retry=AT_ONCE):
        await handler.until_done(1)
    found = [row async for row in db.quarantine("s")]
    assert [row.kind for row in found] == ["work", "work"]
    assert sorted(row.error.partition(" cannot be read")[0] for row in found) == [
        "InvalidInputError: command 'explode'",
        "InvalidInputError: command 'switch'",
    ]
    assert handler.done == [("s", "hello")]


@pytest.mark.parametrize("kind", KINDS, ids=", ".join)
async def test_a_commit_whose_answer_was_lost_lands_once_also_in_a_worker(
    db: Database, faults: Faults, kind: tuple[str, ...]
) -> None:
    """It is sent again as it was; the handler is not called twice."""

    async def answer(turn: Turn, what: str) -> str:
        """Send something along."""
        if turn.session_id == "s":
            turn.send("t", "news")
        return "hi"

    handler = Handler(answer)
    faults.next = list(kind)
    await db.send("s", "hello")
    async with Worker(db, handler) as worker:
        await handler.until_done(2)
        await settled(db)
        await until(lambda: worker.settled_count == 2)
    assert handler.done[0] == ("s", "hello")
    assert texts((await view(db)).messages) == ["hello", "hi"]
    assert [name for name, _ in handler.begun].count("s") == 1
    assert [commit.session_id for commit in faults.sent].count("s") == len(kind) + 1
    assert await revisions(db) == [1]


async def test_a_worker_outlives_a_database_that_is_away(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks again until it is back, and has missed nothing."""
    away = {"read_agenda": 3, "begin_turn": 2}
    tried = asyncio.Event()
    for name in tuple(away):
        original = getattr(type(db.factory.dispatch), name)

        async def fail(self: Any, *given: Any, name: str = name, original: Any = original, **about: Any) -> Any:
            """Fail so often, then work."""
            if away[name]:
                away[name] -= 1
                tried.set()
                raise BackendError("the database is away")
            return await original(self, *given, **about)

        monkeypatch.setattr(type(db.factory.dispatch), name, fail)
    handler = Handler()
    await db.send("s", "hello")
    async with Worker(db, handler):
        await soon(tried)
        await handler.until_done(1)
    assert away == {"read_agenda": 0, "begin_turn": 0}
    assert handler.attempts == [1]


async def test_a_worker_takes_over_at_once_from_a_process_that_is_dead(lab: Lab, db: Database) -> None:
    """Long before its lease ends: what it had taken is taken again."""
    here = mint_owner("crashed")
    assert isinstance(here.liveness, LocalProcess)
    dead = LocalProcess(here.liveness.host_id, here.liveness.boot_id, 1, "0")
    await db.send("s", "hello")
    await db.factory.dispatch.begin_turn("s", type(here)("crashed", "x", dead), 3_600_000)
    handler = Handler()
    async with Worker(db, handler):
        await db.send("t", "alive")
        await handler.until_done(1)
        assert handler.done == [("t", "alive")]
        lab.bury(dead)
        await handler.until_done(2)
    assert (handler.done[1], handler.attempts[1]) == (("s", "hello"), 2)


async def test_an_interrupt_reaches_a_turn_of_a_worker_before_its_renewal(lab: Lab, other: Database) -> None:
    """With the agenda: the lease is not renewed for minutes. The turn ends as interrupted, and the next one runs."""
    db = Database(lab.factory, timings=LeaseTimings(timedelta(hours=1), timedelta(minutes=20)))

    async def wait(turn: Turn, what: str) -> str:
        """For ever, the first time."""
        turn.append("half")
        if what == "one":
            await asyncio.Event().wait()
        return "whole"

    handler = Handler(wait)
    await db.send("s", "one")
    async with Worker(db, handler) as worker:
        await handler.until_begun(1)
        lease = await other.interrupt("s", reason="enough")
        assert lease is not None
        assert lease.owner.owner_id == worker.worker_id
        await settled(db)
        await other.send("s", "two")
        await handler.until_done(1)
        await settled(db)
    seen = await view(db)
    assert texts(seen.messages) == ["one", "two", "half", "whole"]
    assert [bytes(event.payload) for event in seen.events] == [
        b'{"type":"turn_interrupted","turn_id":"turn/1","reason":"enough"}'
    ]
    assert [row async for row in db.quarantine()] == []


async def test_whoever_asks_sees_the_workers_and_what_they_hold(db: Database, other: Database) -> None:
    """As long as they are there."""
    leave = asyncio.Event()

    async def wait(turn: Turn, what: str) -> None:
        """Until it may go."""
        await leave.wait()

    handler = Handler(wait)
    await db.send("s", "hello")
    registry = other.factory.workers
    async with Worker(db, handler, name="w1", concurrency=5) as worker:
        await handler.until_begun(1)
        await until(registry.list_workers)
        (record,) = await registry.list_workers()
        assert (record.worker_id, record.concurrency, record.state) == ("w1", 5, "running")
        (held,) = await registry.list_held_lanes(owner_id="w1")
        assert (held.session_id, worker.running) == ("s", ("s",))
        leave.set()
    assert await registry.list_workers() == []
    assert await registry.list_held_lanes() == []
    assert said_in((await other.pending("s"))[0]) == []
