"""Laws of the database as applications see it: saying something, waiting for a turn, reading what came of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from fastness.conformance.lab import Lab, refused
from fastness.errors import ContendedError, InputSourceKeyConflictError, RevisionNotReadableError
from fastness.model import (
    AlreadyCancelled,
    AlreadyClaimed,
    AlreadyCompleted,
    Cancelled,
    NotFound,
    StructuredItem,
    TextItem,
    TokenUsage,
    TurnInput,
    raw_json,
)
from fastness.runtime.database import Database, connect
from fastness.runtime.messages import Said
from fastness.runtime.turn import Turn
from tests.runtime.saying import at_once, exchange, heard, kinds_in, revisions, said_in, soon, spoken, texts, view
from tests.servers.postgres import shared_server


@pytest.fixture(params=["memory", "postgres", "sqlite"])
async def named(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    """A database by its url, on every engine, with the time as it is."""
    schema = f"d{abs(hash(tmp_path)):x}"
    urls = {"memory": "memory:", "sqlite": f"sqlite:////{tmp_path}/a.db"}
    url = urls.get(request.param) or f"{shared_server().url()}?fastness_schema={schema}"
    async with connect(url, owner_id="tests", attachments=tmp_path / "attachments") as made:
        yield made
    if request.param == "postgres":
        with shared_server().admin() as connection:
            connection.execute(f'drop schema if exists "{schema}" cascade')


# --- saying something ---


async def test_what_was_sent_is_answered_by_a_turn_and_read_by_anybody(named: Database) -> None:
    """An unknown session has nothing to read; the first thing that is said brings it to life."""
    db = named
    assert await db.read("chat-42") is None
    await db.send("chat-42", "Where is my order?", key="msg-7")
    async with db.turn("chat-42") as turn:
        assert texts(turn.messages) == ["Where is my order?"]
        turn.append("On its way.")
    assert texts((await view(db, "chat-42")).messages) == ["Where is my order?", "On its way."]
    await db.delete("chat-42")
    assert await db.read("chat-42") is None


async def test_what_is_said_twice_under_one_key_is_said_once(db: Database, other: Database) -> None:
    """Before it is answered and afterwards, from wherever; other content under the key is a conflict."""
    first = await db.send("s", "Where is my order?", key="msg-7")
    again = await other.send("s", "Where is my order?", key="msg-7", delay=60)
    assert again == first
    async with db.turn("s") as turn:
        assert heard(turn) == ["Where is my order?"]
    await db.send("s", "Where is my order?", key="msg-7")
    async with db.turn("s") as turn:
        assert heard(turn) == []


async def test_a_key_that_is_taken_says_nothing_else(lab: Lab, db: Database) -> None:
    """Nor the same thing for another turn; nothing is changed by the attempt."""
    await db.send("s", "one", key="k")
    await refused(lab, InputSourceKeyConflictError, db.send("s", "two", key="k"))
    await refused(lab, InputSourceKeyConflictError, db.send("s", "one", key="k", to="running_turn"))
    inputs, _ = await db.pending("s")
    assert said_in(inputs) == ["one"]


async def test_work_of_one_key_is_there_once(db: Database) -> None:
    """Whatever it says the second time, also when it is done."""
    first = await db.enqueue("s", "wake", {"n": 1}, key="k")
    assert (await db.enqueue("s", "other", {"n": 2}, key="k")).batch_id == first.batch_id
    async with db.turn("s") as turn:
        assert kinds_in(turn.work) == ["wake"]
    assert (await db.enqueue("s", "wake", {"n": 1}, key="k")).state == "completed"
    command = await db.command("s", {"do": "it"}, key="c")
    assert (await db.command("s", {"do": "it"}, key="c")).batch_id == command.batch_id


async def test_anything_that_can_be_typed_can_be_said(db: Database) -> None:
    """Text, several texts, items of an application's own, or an input as it is stored."""
    item = StructuredItem("form", raw_json({"n": 1}))
    said: list[Said] = ["one", ["two", TextItem("three")], ("four", item), TurnInput((TextItem("five"),)), []]
    for each in said:
        await db.send("s", each)
    async with db.turn("s") as turn:
        assert [[getattr(part, "content", None) for part in message.parts] for message in turn.messages] == [
            ["one"],
            ["two", "three"],
            ["four", None],
            ["five"],
            [],
        ]


async def test_what_is_delayed_is_not_heard_before_its_time(lab: Lab, db: Database) -> None:
    """It waits where everybody sees it, and nothing behind it waits for it."""
    await db.send("s", "later", delay=60)
    await db.send("s", "much later", delay=timedelta(hours=1))
    await db.enqueue("s", "chore", delay=timedelta(minutes=1))
    await db.send("s", "now")
    inputs, work = await db.pending("s")
    assert (said_in(inputs), kinds_in(work)) == (["later", "much later", "now"], ["chore"])
    seen = []
    for ms in (59_999, 1, 0, 3_540_000):
        async with db.turn("s") as turn:
            seen.append((heard(turn), kinds_in(turn.work)))
        lab.clock.advance(ms)
    async with db.turn("s") as turn:
        seen.append((heard(turn), kinds_in(turn.work)))
    assert seen == [(["now"], []), ([], []), (["later"], []), ([], ["chore"]), (["much later"], [])]


async def test_what_no_turn_has_taken_can_be_taken_back(db: Database) -> None:
    """By its id or its key; what a turn has taken cannot, nor what is settled."""
    row = await db.send("s", "one")
    await db.send("s", "two", key="k")
    await db.send("s", "three", key="l")
    assert isinstance(await db.cancel("s", input_id=row.input_id), Cancelled)
    assert isinstance(await db.cancel("s", input_id=row.input_id), AlreadyCancelled)
    assert isinstance(await db.cancel("s", key="k"), Cancelled)
    assert isinstance(await db.cancel("s", key="unknown"), NotFound)
    async with db.turn("s") as turn:
        assert heard(turn) == ["three"]
        assert isinstance(await db.cancel("s", key="l"), AlreadyClaimed)
    assert isinstance(await db.cancel("s", key="l"), AlreadyCompleted)


# --- turns ---


async def test_turns_of_a_session_run_one_at_a_time(db: Database, other: Database) -> None:
    """Ten at once, of two processes, make ten revisions, none on top of another's beginning."""

    async def one(number: int) -> None:
        async with (db, other)[number % 2].turn("s") as turn:
            seen = len(turn.messages)
            await asyncio.sleep(0)
            turn.append(f"{number} after {seen}")

    await at_once(*(one(number) for number in range(10)))
    found = texts((await view(db)).messages)
    assert [text.partition(" after ")[2] for text in found] == [str(number) for number in range(10)]


async def test_a_wait_for_a_turn_may_be_bounded(db: Database, other: Database) -> None:
    """It ends with the name of the holder, and changes nothing for it."""
    async with db.turn("s") as turn:
        for wait_s in (0, 0.05):
            with pytest.raises(ContendedError, match="held by 'alice'"):
                async with other.turn("s", wait_s=wait_s):
                    raise AssertionError
        turn.append("undisturbed")
    assert texts((await view(db)).messages) == ["undisturbed"]


async def test_two_tabs_that_send_at_once_are_both_answered(db: Database, other: Database) -> None:
    """One turn runs at a time; what the other tab said joins it at a checkpoint, or is for the next, as it chose."""
    first_in, may_go_on = asyncio.Event(), asyncio.Event()
    running = 0

    async def tab(mine: Database, text: str, to: str) -> list[list[str]]:
        """Say something, then run a turn, as every tab does."""
        nonlocal running
        await mine.send("s", text, to=to)  # type: ignore[arg-type]
        rounds = []
        async with mine.turn("s") as turn:
            running += 1
            assert running == 1
            async for fresh in turn.checkpoints():
                rounds.append(texts(fresh))
                first_in.set()
                await may_go_on.wait()
                turn.append("answer to " + " and ".join(texts(fresh)))
            running -= 1
        return rounds

    one = asyncio.create_task(tab(db, "one", "next_turn"))
    await soon(first_in)
    two = asyncio.create_task(tab(other, "two", "running_turn"))
    three = asyncio.create_task(tab(other, "three", "next_turn"))
    while len((await db.pending("s"))[0]) < 2:
        await asyncio.sleep(0.001)
    may_go_on.set()
    rounds = await at_once(one, two, three)
    assert rounds[0] == [["one"], ["two"]]
    assert sorted(rounds[1:]) == [[[]], [["three"]]]
    said = [text for role, text in spoken((await view(db)).messages) if role == "user"]
    assert said == ["one", "two", "three"]
    assert await db.pending("s") == ((), ())


async def test_a_turn_may_go_on_from_any_node(db: Database) -> None:
    """It sees the branch that leads there, and the session stands on what it says; other branches are kept."""
    first = await exchange(db, "one", "answer one")
    leaf = first.messages[-1].id
    await exchange(db, "two", "answer two")
    async with db.turn("s", at=leaf) as turn:
        assert texts(turn.messages) == ["one", "answer one"]
        turn.append("on second thought")
    seen = await view(db)
    assert texts(seen.messages) == ["one", "answer one", "on second thought"]
    assert [entry.message.text for entry in seen.message_tree.entries] == [
        "one",
        "answer one",
        "two",
        "answer two",
        "on second thought",
    ]
    async with db.turn("s") as turn:
        assert texts(turn.messages) == ["one", "answer one", "on second thought"]


# --- reading ---


async def test_a_session_is_read_as_a_commit_left_it(db: Database, other: Database) -> None:
    """Whatever came afterwards; a revision that there is not is an error that says so."""
    await exchange(db, "one", "answer one", usage=TokenUsage(1))
    await exchange(db, "two", "answer two", usage=TokenUsage(10))
    first, second = [await other.read("s", at_revision=revision) for revision in (1, 2)]
    assert first is not None
    assert second is not None
    assert (texts(first.messages), first.usage, first.turn_index) == (["one", "answer one"], TokenUsage(1), 1)
    assert (texts(second.messages)[2:], second.usage) == (["two", "answer two"], TokenUsage(11))
    assert second == await db.read("s")
    with pytest.raises(RevisionNotReadableError):
        await db.read("s", at_revision=3)
    assert await db.read("t", at_revision=1) is None


async def test_the_end_of_a_session_is_read_alone(db: Database, other: Database) -> None:
    """Of the branch that it stands on, with what is known of the session as a whole."""
    await exchange(db, "one", "answer one", usage=TokenUsage(1))
    await exchange(db, "two", "answer two", usage=TokenUsage(10))
    seen = await other.read("s", last=3)
    assert seen is not None
    assert (texts(seen.messages), seen.usage, seen.turn_index) == (
        ["answer one", "two", "answer two"],
        TokenUsage(11),
        2,
    )
    whole = await other.read("s", last=50)
    assert whole is not None
    assert whole.messages == (await view(db)).messages
    assert await db.read("t", last=3) is None


async def test_a_history_tells_every_commit(lab: Lab, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its revision, its turn, when it was and what it cost, page by page; of an unknown session there is none."""
    monkeypatch.setattr("fastness.runtime.database._PAGE", 2)
    for number in range(5):
        lab.clock.advance(1000)
        await exchange(db, "x", "y", usage=TokenUsage(number))
    found = [record async for record in db.history("s")]
    assert [(record.revision, record.turn_id, record.kind) for record in found] == [
        (1, "turn/1", "turn"),
        (2, "turn/2", "turn"),
        (3, "turn/3", "turn"),
        (4, "turn/4", "turn"),
        (5, "turn/5", "turn"),
    ]
    assert [record.committed_at_epoch_ms - lab.start_ms for record in found] == [1000, 2000, 3000, 4000, 5000]
    assert [entry.usage.input_tokens for record in found for entry in record.usage] == [0, 1, 2, 3, 4]
    assert [record.revision async for record in db.history("s", after_revision=3)] == [4, 5]
    assert await revisions(db, "unknown") == []


async def test_whoever_watches_sees_every_commit_of_anybody(db: Database, other: Database) -> None:
    """Those from where one begins, then each as it is made; a watch begins behind what there is."""
    await exchange(db, "one", "1")
    seen = []

    async def watch() -> None:
        """Until three were seen."""
        async for record in other.watch("s", after_revision=0):
            seen.append(record.revision)
            first.set()
            if len(seen) == 3:
                return

    first = asyncio.Event()
    watching = asyncio.create_task(watch())
    await soon(first)
    later = asyncio.ensure_future(anext(other.watch("s")))
    await exchange(db, "two", "2")
    await exchange(db, "three", "3")
    await at_once(watching)
    assert seen == [1, 2, 3]
    while not later.done():
        await exchange(db, "more", "4")
    assert (await later).revision > 1


async def test_a_watch_may_end_at_any_time(db: Database) -> None:
    """Whoever has seen enough stops, and nothing is left running."""
    before = asyncio.all_tasks()
    waiting = asyncio.ensure_future(anext(db.watch("unknown")))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await exchange(db, "one", "1")
    commits = db.watch("s", after_revision=0)
    assert (await anext(commits)).revision == 1
    await commits.aclose()  # type: ignore[attr-defined]
    assert {task for task in asyncio.all_tasks() - before if task.get_name().startswith("lane")} == set()


async def test_the_turn_says_what_it_is(db: Database) -> None:
    """Its name is that of its grant, and what it was given has the ids that it was sent under."""
    row = await db.send("s", "hello")
    async with db.turn("s") as turn:
        assert isinstance(turn, Turn)
        assert (turn.session_id, turn.turn_id, turn.fencing_token) == ("s", "turn/1", 1)
        assert [message.id for message in turn.messages] == [row.input_id]
        node_id = turn.append("hi")
    assert turn.result is not None
    assert (turn.result.head_revision, turn.result.leaf_node_id) == (1, node_id)
