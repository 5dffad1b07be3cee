"""Laws of a worker in odd states: what cannot begin, what is limited, what is full, and answers that nobody heard."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from fastness.errors import BackendError, InvalidInputError
from fastness.persistence import SessionStore
from fastness.runtime import worker as module
from fastness.runtime.database import Database
from fastness.runtime.turn import Turn
from fastness.runtime.worker import Worker
from tests.runtime.saying import AT_ONCE, heard, said_in, soon, texts, until, view
from tests.runtime.workers import Handler, settled


async def test_a_session_of_which_no_turn_can_begin_is_left_alone_for_a_while(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays on the agenda, and is not tried again at once; the others go on."""
    begin, tried = type(db.factory.dispatch).begin_turn, []

    async def refuse(dispatch: Any, session_id: str, *given: Any, **about: Any) -> Any:
        """Have one session be spoiled."""
        tried.append(session_id)
        if session_id == "spoiled":
            raise BackendError("its record cannot be read", "restore it")
        return await begin(dispatch, session_id, *given, **about)

    monkeypatch.setattr(type(db.factory.dispatch), "begin_turn", refuse)
    monkeypatch.setattr(module, "_FIRST_REST_S", 3600.0)
    handler = Handler()
    await db.send("spoiled", "x")
    async with Worker(db, handler):
        for number in range(5):
            await db.send("s", f"{number}")
            await handler.until_done(number + 1)
    assert tried.count("spoiled") == 1


async def test_a_limited_label_has_room_again_as_soon_as_a_turn_of_this_worker_ends(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for the time after which a worker would look whether another has ended one."""
    monkeypatch.setattr(module, "_SATURATED_S", 3600)
    monkeypatch.setattr(module, "_LOOK_AGAIN_S", 3600)
    for number in range(6):
        await db.describe(f"s{number}", labels=["slow"])
        await db.send(f"s{number}", "x")
    handler = Handler()
    async with Worker(db, handler, label_limits={"slow": 1}):
        await handler.until_done(6)
    assert len(set(handler.done)) == 6


async def test_an_interrupt_is_heard_where_there_is_no_room_for_another_turn(db: Database, other: Database) -> None:
    """The worker looks for it, however long it is until the lease is renewed."""
    handler = Handler(lambda turn, what: asyncio.Event().wait())
    slow = Database(db.factory, owner_id="carol")  # renews every ten seconds, by a clock that stands still here
    await db.send("s", "one")
    async with Worker(slow, handler, concurrency=1):
        await handler.until_begun(1)
        await other.interrupt("s")
        await handler.until(lambda: handler.running == 0)
        await settled(db)
    assert handler.done == []
    assert texts((await view(db)).messages) == ["one"]


async def test_a_turn_that_began_with_a_commit_whose_answer_nobody_heard_is_given_back(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that is stopped just then leaves no lane held, and the next turn was no attempt."""
    commit, committed = SessionStore.commit_and_begin, asyncio.Event()

    async def slowly(*given: Any, **about: Any) -> Any:
        """Have it land, and never answer."""
        await commit(*given, **about)
        committed.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(SessionStore, "commit_and_begin", slowly)
    handler = Handler()
    for said in ("one", "two"):
        await db.send("s", said)
    async with Worker(db, handler, drain=timedelta(0), max_inputs=1):
        await soon(committed)
    assert texts((await view(db)).messages) == ["one"]
    assert said_in((await db.pending("s"))[0]) == ["two"]
    async with db.turn("s", wait_s=0) as turn:
        assert (heard(turn), turn.attempts) == (["two"], 1)


async def test_what_failed_in_the_turn_that_it_joined_joins_no_other(db: Database) -> None:
    """So only itself is set aside in the end, and nothing that was said after it goes before it."""

    async def listen(turn: Turn, what: str) -> None:
        """Hear what was said meanwhile, and fail for the poison."""
        if what == "innocent" and turn.attempts == 1:
            for said in ("poison", "later"):
                await db.send("s", said, to="running_turn")
        joined = texts(await turn.checkpoint())
        if "poison" in (what, *joined):
            raise RuntimeError("cannot digest it")

    handler = Handler(listen)
    await db.send("s", "innocent")

    async def set_aside() -> list[int]:
        """How often each row was tried that is tried no more."""
        return [row.attempts async for row in db.quarantine("s")]

    async with Worker(db, handler, retry=AT_ONCE):
        await until(set_aside)
        await settled(db)
    assert handler.begun[:2] == [("s", "innocent"), ("s", "innocent")]
    assert await set_aside() == [3]
    assert texts((await view(db)).messages) == ["innocent", "later"]


async def test_a_turn_cannot_be_run_inside_a_turn_of_the_same_session(db: Database) -> None:
    """It would wait for itself; another session's can."""
    async with db.turn("s") as turn:
        with pytest.raises(InvalidInputError, match="wait for itself"):
            await db.switch("s", None)
        async with db.turn("t") as inner:
            inner.append("inner")
        turn.append("outer")
    assert texts((await view(db)).messages) == ["outer"]
    assert texts((await view(db, "t")).messages) == ["inner"]
