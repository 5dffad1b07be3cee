"""Laws of the worker whose handler does not await: threads run turns, and what was taken from them stays taken."""

from __future__ import annotations

import logging
import os
import signal
import threading
from datetime import timedelta
from typing import Any

import pytest

from fastness import RetryPolicy, sync
from fastness.errors import LeaseExpiredError, StoreError, TurnInterruptedError
from fastness.telemetry import TurnContextFilter
from tests.sync.conftest import PATIENCE_S, Place, Running, in_time, run_script, until

SOON = RetryPolicy(2, timedelta(milliseconds=10))


def last_of(db: sync.Database, session_id: str) -> str | None:
    """What was said last in a session."""
    view = db.read(session_id)
    return None if view is None or not view.messages else view.messages[-1].text


def test_a_plain_function_answers_on_threads(db: sync.Database) -> None:
    """Different sessions at once, each in order, and all of it lands."""
    together = threading.Barrier(3)

    def handler(turn: sync.Turn) -> str:
        """Answer when three are at it."""
        if turn.session_id != "after":
            together.wait(PATIENCE_S)
        return f"heard {turn.messages[-1].text}"

    with sync.Worker(db, handler, concurrency=3) as worker:
        for session_id in "abc":
            db.send(session_id, session_id.upper())
        until(lambda: worker.settled_count == 3)
        db.send("after", "that")
        until(lambda: worker.settled_count == 4)
    assert [last_of(db, each) for each in ("a", "b", "c", "after")] == ["heard A", "heard B", "heard C", "heard that"]
    assert (worker.running, worker.failed_count) == ((), 0)


def test_no_more_handlers_run_than_were_asked_for(db: sync.Database) -> None:
    """And they run on the same threads again."""
    now, most, threads, lock = 0, 0, set(), threading.Lock()

    def handler(turn: sync.Turn) -> None:
        """Count."""
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
            threads.add(threading.current_thread().name)
        turn.append("x")
        with lock:
            now -= 1

    for number in range(20):
        db.send(f"s{number}", "x")
    with sync.Worker(db, handler, concurrency=2) as worker:
        until(lambda: worker.settled_count == 20)
    assert most <= 2
    assert len(threads) <= 2


def test_a_handler_that_fails_is_tried_again_and_set_aside(db: sync.Database) -> None:
    """Whatever it raises, also what would end a process; the worker goes on."""
    raised = {"poison": KeyError("no"), "exit": SystemExit(3)}

    def handler(turn: sync.Turn) -> str:
        """Fail on some."""
        text = turn.messages[-1].text
        if text in raised:
            raise raised[text]
        return "fine"

    with sync.Worker(db, handler, retry=SOON) as worker:
        db.send("a", "poison")
        db.send("b", "exit")
        until(lambda: worker.failed_count == 4)
        until(lambda: len(list(db.quarantine())) == 2)
        db.send("a", "well")
        until(lambda: last_of(db, "a") == "fine")
    told = {row.session_id: (row.error, row.attempts) for row in db.quarantine()}
    assert told == {"a": ("KeyError: 'no'", 2), "b": ("RuntimeError: the handler was left by SystemExit", 2)}


def test_a_handler_that_is_interrupted_is_told_by_its_next_call(db: sync.Database) -> None:
    """Its turn is settled as interrupted at once, and nobody waits for the thread."""
    inside, go_on, told = threading.Event(), threading.Event(), []

    def handler(turn: sync.Turn) -> None:
        """Go on for longer than is wanted."""
        turn.append("half")
        inside.set()
        in_time(go_on)
        try:
            turn.append("more")
        except StoreError as error:
            told.append(error)
            raise

    db.send("s", "hello")
    with sync.Worker(db, handler) as worker:
        in_time(inside)
        db.interrupt("s", reason="enough")
        until(lambda: last_of(db, "s") == "hello")
        until(lambda: worker.running == ())
        go_on.set()
        until(lambda: bool(told))
    assert [type(error) for error in told] == [TurnInterruptedError]


def test_a_handler_that_takes_too_long_loses_its_turn_and_holds_up_nobody(db: sync.Database) -> None:
    """The next turn runs on another thread while the first is stuck, although one at a time was asked for."""
    go_on, told, tries = threading.Event(), [], []

    def handler(turn: sync.Turn) -> str:
        """Hang the first time."""
        tries.append(turn.attempts)
        if len(tries) == 1:
            in_time(go_on)
            try:
                turn.append("too late")
            except StoreError as error:
                told.append(error)
        return "in time"

    db.send("s", "hello")
    with sync.Worker(db, handler, concurrency=1, retry=SOON, turn_timeout=timedelta(seconds=2)) as worker:
        until(lambda: last_of(db, "s") == "in time")
        go_on.set()
        until(lambda: bool(told))
    assert (tries, worker.failed_count) == ([1, 2], 1)
    assert [type(error) for error in told] == [LeaseExpiredError]
    assert [record.revision for record in db.history("s")] == [1]


def test_run_ends_when_any_thread_says_stop(db: sync.Database) -> None:
    """Also the handler's own; what runs is finished first."""

    def handler(turn: sync.Turn) -> str:
        """Answer, and have enough."""
        worker.stop()
        return "last"

    worker = sync.Worker(db, handler)
    db.send("s", "hello")
    Running(worker.run).come()
    assert last_of(db, "s") == "last"
    assert worker.settled_count == 1


def test_stop_gives_back_what_does_not_end_in_time(db: sync.Database) -> None:
    """The input is there for the next worker, and did not count as an attempt."""
    inside, go_on = threading.Event(), threading.Event()

    def handler(turn: sync.Turn) -> None:
        """Hang."""
        inside.set()
        in_time(go_on)

    db.send("s", "hello")
    worker = sync.Worker(db, handler, drain=timedelta(milliseconds=10))
    running = Running(worker.run)
    in_time(inside)
    worker.stop()
    running.come()
    go_on.set()
    with db.turn("s", wait_s=0) as turn:
        assert (turn.messages[-1].text, turn.attempts) == ("hello", 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_drain_where_they_are_to_be_handled(place: Place, number: signal.Signals) -> None:
    """What runs is finished, ``run`` returns, and the process' own handlers are back."""
    before = signal.getsignal(number)

    def handler(turn: sync.Turn) -> str:
        """Answer after the signal."""
        os.kill(os.getpid(), number)
        until(worker._over._stopping.is_set)
        return "finished"

    with place.connect() as db:
        worker = sync.Worker(db, handler)
        db.send("s", "hello")
        worker.run(handle_signals=True)
        assert last_of(db, "s") == "finished"
    assert signal.getsignal(number) is before


def test_ctrl_c_in_run_drains_and_goes_on_as_itself(place: Place) -> None:
    """What runs is finished before."""

    def handler(turn: sync.Turn) -> str:
        """Answer after Ctrl-C."""
        os.kill(os.getpid(), signal.SIGINT)
        until(worker._over._stopping.is_set)
        return "finished"

    with place.connect() as db:
        worker = sync.Worker(db, handler)
        db.send("s", "hello")
        with pytest.raises(KeyboardInterrupt):
            worker.run()
        assert last_of(db, "s") == "finished"


def test_ctrl_c_while_run_begins_drains_as_well(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker may be at work by then, although its thread does not know of it yet."""
    inside = threading.Event()

    def handler(turn: sync.Turn) -> str:
        """Answer after Ctrl-C."""
        inside.set()
        until(worker._over._stopping.is_set)
        return "finished"

    with place.connect() as db:
        worker = sync.Worker(db, handler)
        db.send("s", "hello")
        loop, post = worker._loop, worker._loop._post

        def interrupted(*given: Any) -> None:
            """Post it, and never come back."""
            monkeypatch.setattr(loop, "_post", post)
            post(*given)
            in_time(inside)
            raise KeyboardInterrupt

        monkeypatch.setattr(loop, "_post", interrupted)
        with pytest.raises(KeyboardInterrupt):
            worker.run()
        assert last_of(db, "s") == "finished"


def test_records_of_a_handler_know_their_turn(db: sync.Database, caplog: pytest.LogCaptureFixture) -> None:
    """Although its thread was there before the turn, and has run another."""
    caplog.handler.addFilter(TurnContextFilter())
    log = logging.getLogger("shop")

    def handler(turn: sync.Turn) -> str:
        """Say something."""
        log.info("inside")
        return "x"

    with caplog.at_level(logging.INFO), sync.Worker(db, handler, concurrency=1) as worker:
        db.send("a", "x")
        until(lambda: worker.settled_count == 1)
        db.send("b", "x")
        until(lambda: worker.settled_count == 2)
    ours = [record.__dict__ for record in caplog.records if record.name == "shop"]
    assert [(each["session_id"], each["turn_id"]) for each in ours] == [("a", "turn/1"), ("b", "turn/1")]


def test_a_process_ends_although_a_handler_does_not(place: Place) -> None:
    """Its thread holds up nobody."""
    script = f"""
import threading
from datetime import timedelta
from fastness import sync
inside = threading.Event()
def handler(turn):
    inside.set()
    threading.Event().wait()
with sync.connect({place.url!r}) as db:
    db.send("s", "hello")
    with sync.Worker(db, handler, drain=timedelta(0)):
        inside.wait()
print("over")
"""
    done = run_script(script)
    assert (done.stdout, done.returncode) == ("over\n", 0), done.stderr
