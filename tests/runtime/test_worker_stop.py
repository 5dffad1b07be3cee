"""Laws of a worker's end: what runs is finished or given back, and nothing is begun any more."""

from __future__ import annotations

import asyncio
import os
import signal
from datetime import timedelta

import pytest

from fastness.runtime.database import Database
from fastness.runtime.turn import Turn
from fastness.runtime.waiting import all_given_back
from fastness.runtime.worker import Worker
from tests.runtime.saying import heard, said_in, soon, texts, until, view
from tests.runtime.workers import Handler, settled

pytestmark = pytest.mark.usefixtures("often")


class Gate:
    """A handler that waits until it may go on."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.cleaned: list[str] = []

    async def __call__(self, turn: Turn, what: str) -> str:
        """Wait."""
        try:
            await self.open.wait()
        finally:
            self.cleaned.append(what)
        return f"answer to {what}"


async def test_a_worker_that_is_stopped_finishes_what_runs_and_begins_nothing(db: Database, other: Database) -> None:
    """What is sent meanwhile is for another worker."""
    gate = Gate()
    handler = Handler(gate)
    await db.send("s", "one")
    worker = Worker(db, handler)
    running = asyncio.create_task(worker.run())
    await handler.until_begun(1)
    worker.stop()
    await other.send("s", "two")
    await other.send("t", "three")
    gate.open.set()
    await running
    assert handler.begun == [("s", "one")]
    assert texts((await view(db)).messages) == ["one", "answer to one"]
    assert said_in((await db.pending("s"))[0]) == ["two"]
    assert await db.factory.workers.list_held_lanes() == []


async def test_what_does_not_end_in_time_is_given_back_and_was_no_attempt(db: Database) -> None:
    """At once, for whoever comes next; nothing of it is written."""
    handler = Handler(Gate())
    await db.send("s", "one")
    await db.enqueue("t", "chore")
    async with Worker(db, handler, drain=timedelta(0)):
        await handler.until_begun(2)
    assert handler.done == []
    assert await db.factory.workers.list_held_lanes() == []
    assert await db.read("s") is None
    for session_id, kind in (("s", "input"), ("t", "work")):
        async with db.turn(session_id, wait_s=0) as turn:
            assert (turn.kind, turn.attempts) == (kind, 1)


async def test_a_worker_that_is_cancelled_gives_back_what_it_has(db: Database) -> None:
    """As at the end of its patience."""
    gate = Gate()
    handler = Handler(gate)
    await db.send("s", "one")
    running = asyncio.create_task(Worker(db, handler).run())
    await handler.until_begun(1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert gate.cleaned == ["one"]
    assert await db.factory.workers.list_workers() == []
    async with db.turn("s", wait_s=0) as turn:
        assert (heard(turn), turn.attempts) == (["one"], 1)


async def test_a_worker_that_is_stopped_while_a_turn_begins_gives_that_back(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lane is free, and it was no attempt."""
    dispatch = type(db.factory.dispatch)
    begin, begun, go_on = dispatch.begin_turn, asyncio.Event(), asyncio.Event()

    async def slowly(*given: object, **about: object) -> object:
        """Have it granted, and answer late."""
        outcome = await begin(*given, **about)  # type: ignore[arg-type]
        begun.set()
        await go_on.wait()
        return outcome

    monkeypatch.setattr(dispatch, "begin_turn", slowly)
    handler = Handler()
    await db.send("s", "one")
    async with Worker(db, handler, drain=timedelta(0)):
        await soon(begun)
    monkeypatch.undo()
    go_on.set()
    await all_given_back()
    assert handler.begun == []
    async with db.turn("s", wait_s=0) as turn:
        assert (heard(turn), turn.attempts) == (["one"], 1)


async def test_a_worker_that_has_nothing_to_do_ends_at_once(db: Database) -> None:
    """Also one that is stopped before it began, and twice."""
    async with Worker(db, Handler()) as worker:
        worker.stop()
        worker.stop()
    await worker.run()
    assert worker.running == ()
    assert await db.factory.workers.list_workers() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_a_worker_as_asked(db: Database, number: signal.Signals) -> None:
    """What runs is finished; afterwards the process hears its signals as before."""
    before = signal.getsignal(number)
    gate = Gate()
    handler = Handler(gate)
    await db.send("s", "one")
    worker = Worker(db, handler)
    running = asyncio.create_task(worker.run(handle_signals=True))
    await handler.until_begun(1)
    os.kill(os.getpid(), number)
    await until(worker._stopping.is_set)
    gate.open.set()
    await running
    await settled(db)
    assert texts((await view(db)).messages) == ["one", "answer to one"]
    assert signal.getsignal(number) is before


async def test_an_error_in_the_block_stops_the_worker_as_well(db: Database) -> None:
    """And comes through."""
    gate = Gate()
    gate.open.set()
    handler = Handler(gate)
    await db.send("s", "one")

    async def block() -> None:
        async with Worker(db, handler):
            await handler.until_done(1)
            raise KeyError

    with pytest.raises(KeyError):
        await block()
    assert await db.factory.workers.list_workers() == []
    assert texts((await view(db)).messages) == ["one", "answer to one"]
