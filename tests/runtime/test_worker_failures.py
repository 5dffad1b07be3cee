"""Laws of turns that fail in a worker: they are tried again after a pause, and set aside when they fail too often."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest

from fastness.conformance.lab import Lab
from fastness.errors import BackendError
from fastness.liveness import mint_owner
from fastness.runtime.database import Database
from fastness.runtime.retry import RetryPolicy
from fastness.runtime.turn import Turn
from fastness.runtime.worker import Worker
from tests.runtime.saying import AT_ONCE, TTL_MS, kinds_in, revisions, said_in, soon, texts, until, view
from tests.runtime.workers import Handler, raising, settled

pytestmark = pytest.mark.usefixtures("often")


async def errors(db: Database, session_id: str | None = None) -> list[tuple[str, int, str]]:
    """What was set aside: its kind, how often it was tried, and why."""
    return sorted([(row.kind, row.attempts, row.error) async for row in db.quarantine(session_id)])


async def test_a_turn_that_failed_is_tried_again(db: Database) -> None:
    """With the same input, and the count of its attempts; what the failed ones made is nowhere."""

    async def third_time(turn: Turn, what: str) -> str:
        """Fail twice."""
        turn.append(f"attempt {turn.attempts}")
        if turn.attempts < 3:
            raise RuntimeError("not yet")
        return "done"

    handler = Handler(third_time)
    await db.send("s", "hello")
    async with Worker(db, handler, retry=AT_ONCE) as worker:
        await handler.until_done(1)
        await settled(db)
        assert (worker.failed_count, worker.settled_count) == (2, 1)
    assert handler.attempts == [1, 2, 3]
    assert texts((await view(db)).messages) == ["hello", "attempt 3", "done"]
    assert (await revisions(db), await errors(db)) == ([1], [])


async def test_what_fails_too_often_is_set_aside_with_its_error(db: Database) -> None:
    """And the session goes on with what stood behind it."""
    handler = Handler(raising)
    await db.send("s", "poison")
    await db.enqueue("s", "poisoned chore")
    await db.send("s", "fine")
    async with Worker(db, handler, retry=AT_ONCE):
        await handler.until_done(1)
        await settled(db)
    assert [what for _, what in handler.begun] == ["poison"] * 3 + ["poisoned chore"] * 3 + ["fine"]
    assert await errors(db, "s") == [
        ("input", 3, "RuntimeError: cannot digest poison"),
        ("work", 3, "RuntimeError: cannot digest poisoned chore"),
    ]
    assert texts((await view(db)).messages) == ["fine", "answer to fine"]


async def test_what_was_set_aside_is_tried_again_or_given_up(db: Database) -> None:
    """As somebody decides who has looked at it; once each."""
    healthy = False

    async def fail(turn: Turn, what: str) -> None:
        """Until somebody has seen to it."""
        if not healthy:
            raise RuntimeError("out of order")

    handler = Handler(fail)
    for text in ("one", "two"):
        await db.send(text, text)
    async with Worker(db, handler, retry=RetryPolicy(1)):
        await handler.until_begun(2)
        await until(lambda: _is_set_aside(db, 2))
        healthy = True
        one, two = sorted([row async for row in db.quarantine()], key=lambda row: row.session_id)
        assert (await db.discard(one), await db.retry(two)) == (True, True)
        await handler.until_done(1)
        await settled(db, "two")
        assert [await db.discard(one), await db.retry(one), await db.retry(two)] == [False, False, False]
    assert handler.done == [("two", "two")]
    assert handler.attempts[2:] == [1]
    assert await errors(db) == []


async def _is_set_aside(db: Database, count: int) -> bool:
    return len(await errors(db)) == count


async def test_a_session_waits_before_it_tries_again(lab: Lab, db: Database) -> None:
    """Half the pause at least, twice as long each time; others need not wait, and what is sent meanwhile does."""
    moments = []

    async def note(turn: Turn, what: str) -> None:
        """Note the time of the database, and fail."""
        if what == "poison":
            moments.append(lab.clock.now_ms)
            raise RuntimeError("not yet")

    handler = Handler(note)
    await db.send("s", "poison")
    policy = RetryPolicy(3, timedelta(seconds=60), timedelta(seconds=120))
    async with Worker(db, handler, retry=policy):
        await handler.until_begun(1)
        for step in range(40):
            await until(lambda: _is_free(db))
            if len(moments) == 3:
                break
            await db.send("s", f"meanwhile {step}")
            await db.send("t", f"{step}")
            await settled(db, "t")
            lab.clock.advance(5_000)
    first, second = (later - earlier for earlier, later in pairwise(moments))
    assert 30_000 <= first <= 70_000
    assert 60_000 <= second <= 130_000
    begun = [what for name, what in handler.begun if name == "s"]
    assert begun[:3] == ["poison", "poison", "poison"]


async def _is_free(db: Database) -> bool:
    return await db._any("s").observe_session_execution_lease("s") is None


async def test_what_failed_together_is_tried_one_by_one(db: Database) -> None:
    """So that only what is at fault is set aside."""
    handler = Handler(raising)
    for text in ("a", "poison", "b"):
        await db.send("s", text)
    async with Worker(db, handler, retry=AT_ONCE):
        await until(lambda: _is_set_aside(db, 1))
        await settled(db)
    assert handler.begun[0] == ("s", "a+poison+b")
    assert ("s", "poison") in handler.begun
    assert await errors(db) == [("input", 3, "RuntimeError: cannot digest poison")]
    said = [message.text for message in (await view(db)).messages if message.role == "user"]
    assert said == ["a", "b"]


async def test_input_whose_turns_all_die_is_set_aside_before_it_kills_another(lab: Lab, db: Database) -> None:
    """A process that dies counts an attempt, although it can say nothing."""
    await db.send("s", "poison")
    for number in range(3):
        begun = await db.factory.dispatch.begin_turn("s", mint_owner(f"dead {number}"), TTL_MS)
        assert begun.input_claim.inputs[0].attempts == number + 1  # type: ignore[union-attr]
        lab.clock.advance(TTL_MS)
    await db.send("s", "fine")
    handler = Handler(raising)
    async with Worker(db, handler, retry=AT_ONCE):
        await handler.until_done(1)
    assert handler.begun == [("s", "fine")]
    ((kind, attempts, error),) = await errors(db)
    assert (kind, attempts) == ("input", 3)
    assert "died" in error


async def test_a_turn_that_takes_too_long_has_failed(db: Database) -> None:
    """It is cancelled, and set aside as others are that fail."""
    cleaned = []

    async def sleep(turn: Turn, what: str) -> None:
        """For ever."""
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(what)

    handler = Handler(sleep)
    await db.send("s", "hello")
    policy = RetryPolicy(2, timedelta(0), timedelta(0))
    async with Worker(db, handler, retry=policy, turn_timeout=timedelta(milliseconds=20)):
        await until(lambda: _is_set_aside(db, 1))
    assert cleaned == ["hello", "hello"]
    assert await errors(db) == [("input", 2, "TimeoutError")]


@pytest.mark.parametrize(
    ("answer", "error"),
    [(7, "InvalidInputError: item must be text"), ("\udc80", "InvalidInputError: item contains a lone surrogate")],
    ids=["a number", "no text"],
)
async def test_an_answer_that_is_none_fails_the_turn(db: Database, answer: Any, error: str) -> None:
    """With an error that says what is wrong with it."""

    async def give(turn: Turn, what: str) -> Any:
        """Return it."""
        return answer

    await db.send("s", "hello")
    async with Worker(db, Handler(give), retry=RetryPolicy(1)):
        await until(lambda: _is_set_aside(db, 1))
    ((kind, attempts, found),) = await errors(db)
    assert (kind, attempts, found.startswith(error)) == ("input", 1, True)


class Odd(BaseException):
    """What libraries raise that do not want to be caught."""


@pytest.mark.parametrize("kind", [Odd, asyncio.CancelledError, GeneratorExit], ids=lambda kind: kind.__name__)
async def test_whatever_a_handler_raises_is_its_session_s_alone(db: Database, kind: type[BaseException]) -> None:
    """Also what is no ``Exception``, and a cancellation that nobody asked for: the worker goes on, and it counts."""

    async def fail(turn: Turn, what: str) -> None:
        """Not with an error."""
        if what == "poison":
            raise kind

    handler = Handler(fail)
    await db.send("s", "poison")
    async with Worker(db, handler, retry=AT_ONCE):
        await until(lambda: _is_set_aside(db, 1))
        await db.send("s", "fine")
        await handler.until_done(1)
    assert handler.attempts == [1, 2, 3, 1]
    assert await errors(db) == [("input", 3, f"RuntimeError: the handler raised {kind.__name__}")]


async def test_a_turn_whose_ground_cannot_be_read_has_failed(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although its handler was never called: it is set aside with what was wrong."""

    async def load(*_: object) -> None:
        """Fail."""
        raise BackendError("the transcript is on fire")

    async with db.turn("s") as turn:
        turn.append("hello")
    monkeypatch.setattr("fastness.runtime.ground.load_persisted_session_state_active_path", load)
    handler = Handler()
    fresh = Database(db.factory)
    await db.send("s", "poison")
    async with Worker(fresh, handler, retry=AT_ONCE):
        await until(lambda: _is_set_aside(db, 1))
    ((_, attempts, error),) = await errors(db)
    assert (handler.begun, attempts) == ([], 3)
    assert "the transcript is on fire" in error


async def test_a_worker_that_lost_its_lane_leaves_its_turn_to_the_successor(
    lab: Lab, db: Database, other: Database
) -> None:
    """The handler is cancelled, nothing of it is written, and the worker goes on."""
    cleaned = asyncio.Event()

    async def wait(turn: Turn, what: str) -> str:
        """The first time for ever."""
        turn.append("half")
        if what == "one" and not cleaned.is_set():
            try:
                await asyncio.Event().wait()
            finally:
                cleaned.set()
        return "whole"

    handler = Handler(wait)
    await db.send("s", "one")
    async with Worker(db, handler):
        await handler.until_begun(1)
        lab.clock.advance(TTL_MS)
        await soon(cleaned)
        await handler.until_done(1)
        await settled(db)
        await other.send("s", "two")
        await handler.until_done(2)
    assert texts((await view(other)).messages) == ["one", "half", "whole", "two", "half", "whole"]


async def test_a_session_that_is_deleted_meanwhile_is_no_failure_of_the_worker(db: Database, other: Database) -> None:
    """Its handler is cancelled, and the next session has its turn."""
    cleaned = asyncio.Event()

    async def wait(turn: Turn, what: str) -> None:
        """Where it is to be deleted."""
        if turn.session_id == "s":
            try:
                await asyncio.Event().wait()
            finally:
                cleaned.set()

    handler = Handler(wait)
    await db.send("s", "one")
    async with Worker(db, handler):
        await handler.until_begun(1)
        await other.delete("s")
        await soon(cleaned)
        await other.send("t", "two")
        await handler.until_done(1)
    assert handler.done == [("t", "two")]
    assert await errors(db) == []
    assert await db.read("s") is None


async def test_a_failed_turn_that_took_work_on_the_way_gives_all_of_it_back(db: Database) -> None:
    """Input that joined at a checkpoint, and work that it took: the next turn finds it, in order."""

    async def take(turn: Turn, what: str) -> None:
        """More and more, and fail the first time."""
        if turn.attempts == 1 and what == "one":
            await db.send("s", "two", to="running_turn")
            await turn.checkpoint()
            await db.enqueue("s", "chore")
            assert kinds_in(await turn.take_work()) == ["chore"]
            raise RuntimeError("not yet")

    handler = Handler(take)
    await db.send("s", "one")
    async with Worker(db, handler, retry=AT_ONCE):
        await handler.until_done(2)
        await settled(db)
    assert sorted({part for _, what in handler.done for part in what.split("+")}) == ["chore", "one", "two"]
    assert said_in((await db.pending("s"))[0]) == []
