"""Laws of turns that lose something: their lane, the answer to their commit, or the database for a while."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from typing import Any

import pytest

from fastness.conformance.lab import Lab
from fastness.errors import BackendError, CommitOutcomeUnknownError, LeaseExpiredError, TurnInputClaimExpiredError
from fastness.liveness import mint_owner
from fastness.model import LeaseTimings, LocalProcess, TokenUsage
from fastness.persistence import SessionStore
from fastness.runtime.database import Database
from fastness.runtime.waiting import all_given_back
from tests.runtime.faults import KINDS, Faults
from tests.runtime.saying import TTL_MS, Asked, exchange, heard, revisions, soon, spoken, texts, view


async def lane_of(db: Database) -> str | None:
    """Who holds the lane of the session ``s``."""
    lease = await db._any("s").observe_session_execution_lease("s")
    return None if lease is None else lease.owner.owner_id


async def test_a_block_that_lost_its_lane_is_cancelled_and_told_by_whom(
    lab: Lab, db: Database, other: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is written; the successor has all of the input, and answers it once."""
    renew = SessionStore.renew_session_execution_lease
    taken, cleaned = asyncio.Event(), asyncio.Event()

    async def renewing(store: SessionStore, *given: Any) -> Any:
        """Reach the database only when the successor is there."""
        await soon(taken)
        return await renew(store, *given)

    async def overtaken() -> None:
        async with db.turn("s") as turn:
            turn.append("too late")
            lab.clock.advance(TTL_MS)
            asyncio.get_running_loop().create_task(succeed())
            try:
                await asyncio.Event().wait()
            finally:
                cleaned.set()

    async def succeed() -> None:
        async with other.turn("s", wait_s=0) as turn:
            assert (heard(turn), turn.attempts) == (["hello"], 2)
            taken.set()
            await soon(cleaned)
            turn.append("in time")
        done.set()

    done = asyncio.Event()
    monkeypatch.setattr(SessionStore, "renew_session_execution_lease", renewing)
    await db.send("s", "hello")
    with pytest.raises(LeaseExpiredError) as caught:
        await overtaken()
    assert cleaned.is_set()
    assert (caught.value.fencing_token, caught.value.successor_owner_id) == (1, "bob")
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]
    await soon(done)
    assert spoken((await view(db)).messages) == [("user", "hello"), ("assistant", "in time")]
    assert await revisions(db) == [1]


async def test_a_commit_behind_a_successor_is_refused_with_its_name(lab: Lab, other: Database) -> None:
    """Also where the block came to its end before anybody noticed."""
    # No renewal comes in between that might find the lease expired while nobody has it yet.
    db = Database(lab.factory, timings=LeaseTimings(timedelta(hours=1), timedelta(minutes=20)))

    async def overtaken() -> None:
        async with db.turn("s") as turn:
            turn.append("too late")
            lab.clock.advance(3_600_000)
            taken = other.turn("s", wait_s=0)
            holding.append(taken)
            successor = await taken.__aenter__()
            assert heard(successor) == ["hello"]
            successor.append("in time")

    holding: list[Any] = []
    await db.send("s", "hello")
    with pytest.raises(LeaseExpiredError, match="now held by 'bob'"):
        await overtaken()
    await holding[0].__aexit__(None, None, None)
    assert texts((await view(db)).messages) == ["hello", "in time"]


async def test_a_lane_of_a_dead_process_is_taken_over_at_once(lab: Lab, db: Database) -> None:
    """Long before its lease ends, with what the dead one had claimed, and counted as the second attempt."""
    here = mint_owner("crashed")
    assert isinstance(here.liveness, LocalProcess)
    dead = LocalProcess(here.liveness.host_id, here.liveness.boot_id, 1, "0")
    lab.bury(dead)
    await db.send("s", "hello")
    crashed = type(here)("crashed", "x", dead)
    await db.factory.dispatch.begin_turn("s", crashed, 3_600_000)
    assert await lane_of(db) == "crashed"
    async with db.turn("s", wait_s=0) as turn:
        assert (heard(turn), turn.attempts, turn.fencing_token) == (["hello"], 2, 2)


@pytest.mark.parametrize("kind", KINDS, ids=", ".join)
async def test_a_commit_whose_answer_was_lost_lands_once(db: Database, faults: Faults, kind: tuple[str, ...]) -> None:
    """The same stamped commit is sent again until there is an answer; what it sends elsewhere is sent once."""
    await db.send("s", "hello")
    async with db.turn("s") as turn:
        turn.append("hi", usage=TokenUsage(3))
        turn.send("t", "news")
        faults.next = list(kind)
    assert turn.result is not None
    assert turn.result.head_revision == 1
    assert len({commit.turn_commit for commit in faults.sent}) == 1
    assert len(faults.sent) == len(kind) + 1
    seen = await view(db)
    assert (spoken(seen.messages), seen.usage) == ([("user", "hello"), ("assistant", "hi")], TokenUsage(3))
    assert len((await db.pending("t"))[0]) == 1
    assert await lane_of(db) is None


async def test_a_commit_that_never_gets_an_answer_says_so(db: Database, faults: Faults) -> None:
    """After six attempts; what came of it is for whoever reads the session to see."""

    async def answer() -> None:
        async with db.turn("s") as turn:
            turn.append("hi")
            faults.next = ["never sent"] * 6

    await db.send("s", "hello")
    with pytest.raises(CommitOutcomeUnknownError):
        await answer()
    assert len(faults.sent) == 6
    assert await db.read("s") is None
    async with db.turn("s", wait_s=0) as turn:
        assert heard(turn) == ["hello"]


@pytest.mark.parametrize("landed", [True, False], ids=["it had landed", "it had not"])
async def test_a_lease_that_ran_out_before_the_answer_came(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, landed: bool
) -> None:
    """A commit that had landed says so, however late; of one that had not, nothing is there and all waits again."""
    # No renewal comes in between that might have seen the time before.
    db = Database(lab.factory, timings=LeaseTimings(timedelta(hours=1), timedelta(minutes=20)))
    commit_runtime_state = SessionStore.commit_runtime_state
    sent: list[object] = []

    async def commit(store: SessionStore, given: Any) -> Any:
        """Lose the first answer, and so much time that the lease ends."""
        sent.append(given)
        if len(sent) == 1:
            if landed:
                await commit_runtime_state(store, given)
            lab.clock.advance(3_600_000)
            raise CommitOutcomeUnknownError("the connection broke")
        return await commit_runtime_state(store, given)

    async def answer() -> None:
        async with db.turn("s") as turn:
            turn.append("hi")

    await db.send("s", "hello")
    monkeypatch.setattr(SessionStore, "commit_runtime_state", commit)
    with contextlib.nullcontext() if landed else pytest.raises(TurnInputClaimExpiredError):
        await answer()
    assert len(sent) == (2 if landed else 3)
    assert await lane_of(db) is None
    assert await revisions(db) == ([1] if landed else [])
    async with db.turn("s", wait_s=0) as turn:
        assert texts(turn.messages) == (["hello", "hi"] if landed else ["hello"])


async def test_a_renewal_that_fails_for_a_while_ends_nothing(
    lab: Lab, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that comes back before the lease ends has missed nothing."""
    renew = SessionStore.renew_session_execution_lease
    failed, renewed = asyncio.Event(), asyncio.Event()

    async def renewing(store: SessionStore, *given: Any) -> Any:
        """Fail once."""
        if not failed.is_set():
            failed.set()
            raise BackendError("the database is away")
        lease = await renew(store, *given)
        renewed.set()
        return lease

    monkeypatch.setattr(SessionStore, "renew_session_execution_lease", renewing)
    async with db.turn("s") as turn:
        await soon(renewed)
        turn.append("undisturbed")
    assert failed.is_set()
    assert texts((await view(db)).messages) == ["undisturbed"]


async def test_a_database_that_is_away_when_a_turn_is_to_begin_is_said(lab: Lab, db: Database) -> None:
    """By its own error, and the next attempt finds everything as it was."""

    def away(_: object) -> None:
        """Nothing can be asked."""
        raise BackendError("the database is away")

    await db.send("s", "hello")
    lab.on_batch = away
    with pytest.raises(BackendError):
        async with db.turn("s"):
            raise AssertionError
    lab.on_batch = None
    async with db.turn("s") as turn:
        assert (heard(turn), turn.attempts) == (["hello"], 1)


async def test_a_cancellation_from_outside_gives_the_lane_back(db: Database) -> None:
    """It stays a cancellation; nothing is written, and what was taken waits for the next turn."""
    entered = asyncio.Event()

    async def run() -> None:
        async with db.turn("s") as turn:
            turn.append("half")
            entered.set()
            await asyncio.Event().wait()

    await db.send("s", "hello")
    running = asyncio.create_task(run())
    await soon(entered)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await lane_of(db) is None
    assert await db.read("s") is None
    async with db.turn("s", wait_s=0) as turn:
        assert heard(turn) == ["hello"]


async def test_a_time_limit_of_the_application_is_its_own(db: Database) -> None:
    """A block that runs into it raises ``TimeoutError`` as ever, and the lane is free."""
    await exchange(db, "one", "1")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), db.turn("s"):
            await asyncio.Event().wait()
    await all_given_back()
    assert await lane_of(db) is None


async def test_whoever_does_not_wait_for_a_lane_does_not_have_it(lab: Lab, db: Database) -> None:
    """Cancelled while it was being granted: it is given back, and was no attempt."""
    await db.send("s", "hello")
    asked = Asked(lab)
    waiting = asyncio.create_task(db.turn("s").__aenter__())
    await asked.once()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await all_given_back()
    assert await lane_of(db) is None
    async with db.turn("s", wait_s=0) as turn:
        assert (heard(turn), turn.attempts) == (["hello"], 1)
