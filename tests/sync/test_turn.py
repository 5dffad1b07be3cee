"""Laws of a turn in the hands of a thread: it lands whole or not at all, and a thread that lost it is told."""

from __future__ import annotations

import asyncio
import logging
import threading
import traceback
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fastness import sync
from fastness.errors import (
    ContendedError,
    GraphInvalidError,
    InvalidInputError,
    LeaseExpiredError,
    SessionDeletedError,
    TurnInterruptedError,
)
from fastness.model import Message, TokenUsage
from fastness.telemetry import TurnContextFilter
from tests.sync.conftest import Place, Running, in_time, until


def spoken(db: sync.Database, session_id: str = "s") -> list[tuple[str, str]]:
    """Who said what in a session."""
    view = db.read(session_id)
    return [] if view is None else [(message.role, message.text) for message in view.messages]


def test_a_turn_takes_what_was_said_and_lands_as_one_commit(db: sync.Database, tmp_path: Path) -> None:
    """Input, checkpoints, work, attachments, state, usage and what it sends: the same as of a turn that awaits."""
    letter = db.attach("s", b"a letter", name="letter.txt")
    db.send("s", ["read this", letter], key="msg-1")
    db.send("s", ["read this", letter], key="msg-1")
    heard = []
    with db.turn("s") as turn:
        for more in turn.checkpoints():
            heard.append([message.text for message in more])
            if len(heard) == 1:
                db.send("s", "aloud", to="running_turn")
        assert turn.attachment(letter.attachment.attachment_id) == b"a letter"
        reply = turn.attach(b"an answer", name="answer.txt")
        first = turn.append("here it is", usage=TokenUsage(10, 3), model="m")
        turn.charge(TokenUsage(1, 1), model="m")
        turn.state = b"remembered"
        turn.enqueue("follow_up", {"days": 2})
        turn.send("other", "by the way")
        assert (turn.kind, turn.attempts, turn.fencing_token, turn.state) == ("input", 1, 1, b"remembered")
        assert turn.node(first) is None
    assert heard == [["read this"], ["aloud"]]
    assert turn.result is not None
    assert turn.result.head_revision == 1
    assert spoken(db) == [("user", "read this"), ("user", "aloud"), ("assistant", "here it is")]
    assert [(row.turn_id, row.usage[0].usage) for row in db.history("s")] == [("turn/1", TokenUsage(11, 4))]
    assert reply.name == "answer.txt"
    with db.turn("other") as turn:
        assert [message.text for message in turn.messages] == ["by the way"]
    with db.turn("s") as turn:
        assert (turn.kind, turn.state) == ("work", b"remembered")


def test_an_exception_in_the_block_leaves_nothing_of_the_turn(db: sync.Database) -> None:
    """It goes on as it is, with the traceback of where it came from, and what was said waits for the next turn."""
    db.send("s", "hello")
    error = KeyError("mine")

    def fail() -> None:
        with db.turn("s") as turn:
            turn.append("half")
            raise error

    with pytest.raises(KeyError) as caught:
        fail()
    assert caught.value is error
    functions = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    assert functions[-1] == "fail"
    assert "_hold" not in functions
    assert db.read("s") is None
    with db.turn("s") as turn:
        assert [message.text for message in turn.messages] == ["hello"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, StopIteration, asyncio.CancelledError, GeneratorExit])
def test_whatever_leaves_the_block_leaves_nothing_of_the_turn(place: Place, kind: type[BaseException]) -> None:
    """Also what is no ``Exception``, and would end an event loop: the lane is free behind it."""
    with place.connect() as db:

        def fail() -> None:
            with db.turn("s") as turn:
                turn.append("half")
                raise kind

        with pytest.raises(kind):
            fail()
        assert db.read("s") is None
        with db.turn("s", wait_s=0) as turn:
            turn.append("whole")
        assert spoken(db) == [("assistant", "whole")]


def test_errors_are_those_of_the_async_face_and_show_where_they_come_from(db: sync.Database) -> None:
    """Typed, raised in the caller's frame, and a turn survives one that is caught in its block."""
    with db.turn("s") as turn:
        with pytest.raises(InvalidInputError):
            turn.append(3)  # type: ignore[arg-type]
        turn.append("still here")
    with pytest.raises(GraphInvalidError) as caught:
        db.edit("s", "no such message", "x")
    functions = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert functions[0] == "test_errors_are_those_of_the_async_face_and_show_where_they_come_from"
    assert functions[-1] == "_node"
    assert spoken(db) == [("assistant", "still here")]


def test_two_threads_on_one_session_exclude_each_other(db: sync.Database) -> None:
    """The second waits for the first, or says that it did not."""
    inside, go_on = threading.Event(), threading.Event()

    def first() -> None:
        with db.turn("s") as turn:
            inside.set()
            in_time(go_on)
            turn.append("first")

    def second() -> None:
        with db.turn("s") as turn:
            assert [message.text for message in turn.messages] == ["first"]
            turn.append("second")

    one = Running(first)
    in_time(inside)
    with pytest.raises(ContendedError), db.turn("s", wait_s=0):
        pytest.fail("the lane was held")
    other = Running(second)
    go_on.set()
    one.come()
    other.come()
    assert spoken(db) == [("assistant", "first"), ("assistant", "second")]


def test_many_threads_use_one_database_at_once(db: sync.Database) -> None:
    """Each runs turns of a session of its own, and of one that all share; nothing is lost or mixed up."""

    def work(number: int) -> None:
        for _ in range(3):
            with db.turn(f"own-{number}") as turn:
                turn.append(f"{number}")
            with db.turn("shared") as turn:
                turn.append(f"{number}")

    for each in [Running(lambda number=number: work(number)) for number in range(6)]:  # type: ignore[misc]
        each.come()
    for number in range(6):
        assert [text for _, text in spoken(db, f"own-{number}")] == [f"{number}"] * 3
    assert "".join(sorted(text for _, text in spoken(db, "shared"))) == "000111222333444555"


def test_several_threads_may_append_to_one_turn(db: sync.Database) -> None:
    """Each of their messages is there once, on one branch."""
    with db.turn("s") as turn:

        def say(number: int) -> None:
            for _ in range(20):
                turn.append(f"{number}")

        for each in [Running(lambda number=number: say(number)) for number in range(4)]:  # type: ignore[misc]
            each.come()
    assert sorted(text for _, text in spoken(db)) == ["0"] * 20 + ["1"] * 20 + ["2"] * 20 + ["3"] * 20


def test_a_thread_whose_lane_was_lost_is_told_and_writes_nothing(place: Place, clocked: sync.Database) -> None:
    """By every call from then on, and at the end of its block although it has caught the error of the call."""
    clocked.send("s", "hello")
    told: list[BaseException] = []

    def lose() -> None:
        with clocked.turn("s") as turn:
            turn.append("half")
            place.clock.advance(20_000)
            try:
                until(lambda: not turn.append("more"))
            except LeaseExpiredError as error:
                told.append(error)
            with pytest.raises(LeaseExpiredError):
                turn.require()
            with pytest.raises(LeaseExpiredError):
                turn.state = b"x"
            assert not turn.interrupted

    with pytest.raises(LeaseExpiredError) as caught:
        lose()
    assert [type(error) for error in told] == [LeaseExpiredError]
    assert caught.value.fencing_token == 1
    assert clocked.read("s") is None
    with clocked.turn("s") as turn:
        assert [message.text for message in turn.messages] == ["hello"]
        assert turn.fencing_token == 2


def test_a_call_that_runs_when_the_session_goes_ends_with_the_turn(db: sync.Database) -> None:
    """The thread waits for nothing any more; the error says that the session was deleted."""
    started = threading.Event()

    def lose() -> None:
        with db.turn("s") as turn:
            started.set()
            until(lambda: turn.checkpoint() != ())

    losing = Running(lose)
    in_time(started)
    db.delete("s")
    with pytest.raises(SessionDeletedError):
        losing.come()
    assert db.read("s") is None


def test_a_turn_is_interrupted_from_another_thread(db: sync.Database) -> None:
    """The block sees it, its next call and its end raise it, and what was said is settled without the answer."""
    db.send("s", "hello")
    inside = threading.Event()

    def work() -> None:
        with db.turn("s") as turn:
            turn.append("half")
            inside.set()
            until(lambda: turn.interrupted)
            with pytest.raises(TurnInterruptedError):
                until(lambda: turn.require() is not None)  # type: ignore[func-returns-value]
            with pytest.raises(TurnInterruptedError):
                turn.append("more")

    working = Running(work)
    in_time(inside)
    assert db.interrupt("s", reason="enough") is not None
    with pytest.raises(TurnInterruptedError) as caught:
        working.come()
    assert caught.value.reason == "enough"
    assert spoken(db) == [("user", "hello")]


def test_a_call_that_never_ends_does_when_the_turn_does(db: sync.Database) -> None:
    """It raises why, as every later call does."""
    begun = threading.Event()

    async def endless() -> AsyncIterator[bytes]:
        """Give the first bytes of something."""
        yield b"x"
        begun.set()
        await asyncio.Event().wait()

    def work() -> None:
        with db.turn("s") as turn:
            turn.attach(endless(), name="endless.bin")

    working = Running(work)
    in_time(begun)
    db.interrupt("s", reason="enough")
    with pytest.raises(TurnInterruptedError):
        working.come()
    with db.turn("s", wait_s=0) as turn:
        assert turn.messages == ()


def test_records_of_the_block_know_their_turn(db: sync.Database, caplog: pytest.LogCaptureFixture) -> None:
    """Those of the thread that runs it, and only within it."""
    caplog.handler.addFilter(TurnContextFilter())
    log = logging.getLogger("shop")
    with caplog.at_level(logging.INFO):
        with db.turn("s"):
            log.info("inside")
        log.info("outside")
    ours = [record for record in caplog.records if record.name == "shop"]
    assert [record.__dict__["turn_id"] for record in ours] == ["turn/1", None]


def test_texts_of_a_turn_can_be_read_behind_it(db: sync.Database) -> None:
    """What it was is no secret once it has landed."""
    with db.turn("s") as turn:
        turn.append("done")
    db.close()
    assert [(message.role, message.text) for message in turn.messages] == [("assistant", "done")]
    assert isinstance(turn.messages[0], Message)
