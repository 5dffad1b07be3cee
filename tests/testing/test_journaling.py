"""Laws of the journals of the runtime: they say what happened to every turn and input, and change none of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import fastness
from fastness.errors import BackendError, CommitOutcomeUnknownError, InputSourceKeyConflictError, TurnInterruptedError
from fastness.model import InterruptRequest
from fastness.testing import (
    KINDS,
    AnyEvent,
    Committed,
    Counts,
    Finding,
    Interrupted,
    Journal,
    JournalSender,
    JournalTelemetry,
    Report,
    Sent,
    TurnFailed,
    TurnStarted,
    check,
    read_final,
    read_journals,
    text_hash,
)


@pytest.fixture
async def told(tmp_path: Path) -> AsyncIterator[JournalTelemetry]:
    """A telemetry with a journal in the test's directory."""
    with Journal.create_in(tmp_path) as journal:
        yield JournalTelemetry(journal)


@pytest.fixture
async def db(told: JournalTelemetry) -> AsyncIterator[fastness.Database]:
    """A database that tells it."""
    async with fastness.connect("memory:", telemetry=told) as made:
        yield made


def written(told: JournalTelemetry) -> list[AnyEvent]:
    """What the journal says so far, without its stamps."""
    events, findings = read_journals(told.journal.path.parent)
    assert findings == []
    return [type(event)(**{**_fields(event), "writer": "", "pid": 0, "sequence": 0, "wall_ms": 0}) for event in events]


def _fields(event: AnyEvent) -> dict[str, Any]:
    return {name: getattr(event, name) for name in event.__struct_fields__}


async def test_a_turn_is_told_from_its_beginning_to_its_commit(db: fastness.Database, told: JournalTelemetry) -> None:
    """What was sent, on which revision the turn stood, which inputs it began with, and which it has settled."""
    sender = JournalSender(db, told.journal)
    first = await sender.send("s", "one", key="k1")
    async with db.turn("s") as turn:
        told.begun(turn)
        second = await sender.send("s", "two", key="k2", to="running_turn")
        await turn.checkpoint()
        turn.append("both")
    assert written(told) == [
        Sent(session_id="s", key="k1", text_hash=text_hash("one")),
        Sent(session_id="s", key="k1", text_hash=text_hash("one"), input_id=first, acknowledged=True),
        TurnStarted(session_id="s", turn_id="turn/1", fencing_token=1, input_ids=(first,), head_revision=0),
        Sent(session_id="s", key="k2", text_hash=text_hash("two"), ordered=False),
        Sent(session_id="s", key="k2", text_hash=text_hash("two"), input_id=second, acknowledged=True, ordered=False),
        Committed(session_id="s", turn_id="turn/1", fencing_token=1, revision=1, input_ids=(first, second)),
    ]
    events, _ = read_journals(told.journal.path.parent)
    assert check(events, await read_final(db.factory)).ok


async def test_a_turn_that_fails_is_told_with_its_error_and_without_its_text(
    db: fastness.Database, told: JournalTelemetry
) -> None:
    """The text of an error may hold what a user said."""
    with pytest.raises(ValueError, match="secret"):
        async with db.turn("s"):
            raise ValueError("secret")
    assert written(told) == [TurnFailed(session_id="s", turn_id="turn/1", fencing_token=1, error="ValueError")]


async def test_a_turn_that_nobody_announced_is_announced_before_its_commit(
    db: fastness.Database, told: JournalTelemetry
) -> None:
    """It is not known then what it stood on, nor what it took."""
    async with db.turn("s") as turn:
        turn.append("hello")
    assert written(told) == [
        TurnStarted(session_id="s", turn_id="turn/1", fencing_token=1),
        Committed(session_id="s", turn_id="turn/1", fencing_token=1, revision=1),
    ]


async def test_an_interrupted_turn_claims_no_answers(db: fastness.Database, told: JournalTelemetry) -> None:
    """Its commit settles what it took, and has no answer to it: neither is the checker to ask for one."""
    sent = await JournalSender(db, told.journal).send("s", "wait", key="k")

    async def wait_for_it() -> None:
        """Run a turn until somebody wants it to end."""
        async with db.turn("s") as turn:
            told.begun(turn)
            db.runner.lanes["s"].request_interrupt(InterruptRequest("enough"))
            await asyncio.sleep(60)

    with pytest.raises(TurnInterruptedError):
        await wait_for_it()
    assert written(told)[2:] == [
        TurnStarted(session_id="s", turn_id="turn/1", fencing_token=1, input_ids=(sent,), head_revision=0),
        Committed(session_id="s", turn_id="turn/1", fencing_token=1, revision=1),
        Interrupted(session_id="s", turn_id="turn/1", fencing_token=1),
    ]
    events, _ = read_journals(told.journal.path.parent)
    assert check(events, await read_final(db.factory)).ok


async def test_a_worker_tells_every_attempt(db: fastness.Database, told: JournalTelemetry) -> None:
    """One that failed, then one that landed; the worker is named."""
    done = asyncio.Event()

    async def handler(turn: fastness.Turn) -> str:
        """Fail once."""
        if turn.attempts == 1:
            raise RuntimeError
        done.set()
        return "answer"

    retry = fastness.RetryPolicy(3, timedelta(0), timedelta(0))
    await JournalSender(db, told.journal).send("s", "hello", key="k")
    async with fastness.Worker(db, told.handler(handler), name="w", retry=retry):
        await done.wait()
    found = [type(event).__name__ for event in written(told)]
    assert found == ["Sent", "Sent", "TurnStarted", "TurnFailed", "TurnStarted", "Committed"]
    assert [event.worker for event in written(told) if isinstance(event, TurnStarted)] == ["w", "w"]


@pytest.mark.parametrize("error", [BackendError("gone"), CommitOutcomeUnknownError("s")], ids=["away", "lost"])
async def test_a_sender_insists_under_the_same_key(
    db: fastness.Database, told: JournalTelemetry, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Whatever became of the first attempt, the input is there once, and acknowledged once."""
    send, calls = db.send, 0

    async def lossy(*args: Any, **named: Any) -> Any:
        """Lose the first answer."""
        nonlocal calls
        calls += 1
        row = await send(*args, **named)
        if calls == 1:
            raise error
        return row

    monkeypatch.setattr(db, "send", lossy)
    input_id = await JournalSender(db, told.journal).send("s", "hello", key="k")
    inputs, _ = await db.pending("s")
    assert [row.input_id for row in inputs] == [input_id]
    assert [event.acknowledged for event in written(told) if isinstance(event, Sent)] == [False, True]


async def test_a_sender_does_not_insist_on_what_is_refused(db: fastness.Database, told: JournalTelemetry) -> None:
    """Other content under a key that is taken is the caller's mistake."""
    sender = JournalSender(db, told.journal)
    await sender.send("s", "hello", key="k")
    with pytest.raises(InputSourceKeyConflictError):
        await sender.send("s", "goodbye", key="k")


def test_a_verdict_counts_every_finding_once() -> None:
    """What is missing is lost, what is there too often is duplicated, and all the rest is torn."""
    findings = tuple(Finding(kind, "s", "") for kind in KINDS)
    report = Report(Counts(), findings)
    assert report.verdict == "4 lost, 7 duplicated, 15 torn"
    assert report.lost + report.duplicated + report.torn == len(KINDS)
    assert Report(Counts()).verdict == "0 lost, 0 duplicated, 0 torn"
