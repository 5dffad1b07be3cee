"""Laws of interrupts: a turn that is asked to end, from wherever, ends as one that was asked to."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from fastness.conformance.lab import Lab
from fastness.errors import TurnInterruptedError
from fastness.model import ProtocolEvent, SessionReadView, TokenUsage
from fastness.persistence import SessionStore
from fastness.runtime.database import Database
from fastness.runtime.turn import Turn
from tests.runtime.saying import exchange, heard, kinds_in, revisions, said_in, soon, spoken, texts, view


def told(seen: SessionReadView) -> list[tuple[str, bytes]]:
    """The events of a session: whose, and what."""
    return [(event.plugin_id, bytes(event.payload)) for event in seen.events]


async def interrupted(db: Database, other: Database, about: Any, *, reason: str | None = "a better question") -> Any:
    """A turn that does something and then waits, until another process interrupts it; its error."""
    cleaned = asyncio.Event()

    async def run() -> None:
        async with db.turn("s") as turn:
            await about(turn)
            lease = await other.interrupt("s", reason=reason)
            assert lease is not None
            assert (lease.owner.owner_id, lease.fencing_token) == ("alice", turn.fencing_token)
            try:
                await asyncio.Event().wait()
            finally:
                cleaned.set()

    with pytest.raises(TurnInterruptedError) as caught:
        await run()
    assert cleaned.is_set()
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]
    return caught.value


async def test_a_turn_is_interrupted_from_another_process(db: Database, other: Database) -> None:
    """What it took and spent is settled with an event that says why; what it was making is dropped."""

    async def work(turn: Turn) -> None:
        """All that a turn can do."""
        turn.append("half an answer", usage=TokenUsage(10, 3), model="m")
        turn.append(ProtocolEvent("tests", msgspec.Raw(b"1")))
        turn.state = b"half"
        turn.configure(model="another")
        turn.send("t", "half")
        turn.enqueue("half")

    await exchange(db, "first", "answer")
    await db.send("s", "hello")
    error = await interrupted(db, other, work)
    assert (error.session_id, error.fencing_token, error.reason) == ("s", 2, "a better question")
    seen = await view(other)
    assert spoken(seen.messages) == [("user", "first"), ("assistant", "answer"), ("user", "hello")]
    assert told(seen) == [
        ("fastness", b'{"type":"turn_interrupted","turn_id":"turn/2","reason":"a better question"}'),
    ]
    assert (seen.usage, seen.turn_index, seen.config.model) == (TokenUsage(10, 3), 2, "")
    assert await db.pending("s") == ((), ())
    assert await db.pending("t") == ((), ())
    async with other.turn("s", wait_s=0) as turn:
        assert (heard(turn), turn.state) == ([], None)
        assert texts(turn.messages) == ["first", "answer", "hello"]


async def test_what_was_said_to_an_interrupted_turn_is_for_the_next(db: Database, other: Database) -> None:
    """What it had taken at a checkpoint is settled with it and not answered again; the rest starts the next turn."""

    async def listen(turn: Turn) -> None:
        """Hear one thing, and not the next."""
        await other.send("s", "two", to="running_turn")
        assert texts(await turn.checkpoint()) == ["two"]
        await other.send("s", "three", to="running_turn")
        await other.send("s", "four")

    await db.send("s", "one")
    await interrupted(db, other, listen)
    assert texts((await view(db)).messages) == ["one", "two"]
    inputs, _ = await db.pending("s")
    assert said_in(inputs) == ["three", "four"]
    async with db.turn("s") as turn:
        assert heard(turn) == ["three", "four"]


async def test_work_of_an_interrupted_turn_is_not_done_again(db: Database, other: Database) -> None:
    """It is settled as input is."""

    async def nothing(turn: Turn) -> None:
        """It has work."""
        assert kinds_in(turn.work) == ["chore"]

    await db.enqueue("s", "chore")
    await interrupted(db, other, nothing, reason=None)
    assert told(await view(db)) == [("fastness", b'{"type":"turn_interrupted","turn_id":"turn/1","reason":null}')]
    assert await db.pending("s") == ((), ())


async def test_a_turn_that_takes_the_interrupt_for_a_wish_commits_what_it_has(db: Database, other: Database) -> None:
    """It returns in spite of it: its answer lands on purpose, and what it has not heard is for the next turn."""
    await db.send("s", "hello")
    async with db.turn("s") as turn:
        turn.append("so far", usage=TokenUsage(1))
        flags = [turn.interrupted]
        await other.send("s", "more", to="running_turn")
        await other.interrupt("s")
        with pytest.raises(asyncio.CancelledError):
            await asyncio.Event().wait()
        with pytest.raises(TurnInterruptedError):
            await turn.checkpoint()
        turn.append("and no further")
        flags.append(turn.interrupted)
    seen = await view(db)
    assert flags == [False, True]
    assert texts(seen.messages) == ["hello", "so far", "and no further"]
    assert told(seen) == []
    async with db.turn("s") as after:
        assert (heard(after), after.interrupted) == (["more"], False)


async def test_an_interrupt_while_a_turn_settles_changes_nothing(
    db: Database, other: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit is on its way already; the next turn does not hear of it."""
    commit_runtime_state, renew = SessionStore.commit_runtime_state, SessionStore.renew_session_execution_lease
    seen = asyncio.Event()

    async def commit(store: SessionStore, given: Any) -> Any:
        """Be slow, until a renewal has brought the interrupt."""
        await other.interrupt("s", reason="too late")
        await soon(seen)
        return await commit_runtime_state(store, given)

    async def renewing(store: SessionStore, *given: Any) -> Any:
        """Tell when it was seen."""
        lease = await renew(store, *given)
        if lease.interrupt is not None:
            asyncio.get_running_loop().call_soon(seen.set)
        return lease

    monkeypatch.setattr(SessionStore, "renew_session_execution_lease", renewing)
    monkeypatch.setattr(SessionStore, "commit_runtime_state", commit)
    async with db.turn("s") as turn:
        turn.append("in time")
    monkeypatch.undo()
    found = await view(db)
    assert (texts(found.messages), told(found)) == (["in time"], [])
    async with db.turn("s") as after:
        after.append("undisturbed")
    assert texts((await view(db)).messages) == ["in time", "undisturbed"]


async def test_an_interrupt_where_no_turn_runs_is_for_nobody(lab: Lab, db: Database) -> None:
    """It says so, and the turn that begins next is not meant."""
    await exchange(db, "one", "1")
    async with lab.unchanged():
        assert await db.interrupt("s") is None
        assert await db.interrupt("unknown") is None
    async with db.turn("s") as turn:
        turn.append("undisturbed")
        assert not turn.interrupted
    assert await revisions(db) == [1, 2]


async def test_a_turn_that_fails_after_an_interrupt_fails(db: Database, other: Database) -> None:
    """Its own error comes through, nothing is written, and what it took is tried again."""

    async def fail() -> None:
        async with db.turn("s") as turn:
            turn.append("half")
            await other.interrupt("s")
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise KeyError("the clean-up broke") from None

    await db.send("s", "hello")
    with pytest.raises(KeyError, match="the clean-up broke"):
        await fail()
    assert await db.read("s") is None
    async with db.turn("s") as turn:
        assert heard(turn) == ["hello"]


async def test_a_cancellation_beside_an_interrupt_is_a_cancellation(db: Database, other: Database) -> None:
    """Whoever cancels the task has no turn settled in its name; the input waits."""
    seen = asyncio.Event()

    async def run() -> None:
        async with db.turn("s"):
            await other.interrupt("s")
            try:
                await asyncio.Event().wait()
            finally:
                seen.set()
                with pytest.raises(asyncio.CancelledError):
                    await asyncio.Event().wait()

    await db.send("s", "hello")
    running = asyncio.create_task(run())
    await soon(seen)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await db.read("s") is None
    async with db.turn("s", wait_s=0) as turn:
        assert heard(turn) == ["hello"]
