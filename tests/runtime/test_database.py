"""Laws of the database as applications see it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fastness.errors import ContendedError, InputSourceKeyConflictError, InvalidInputError
from fastness.model import Message
from fastness.runtime.database import Database, connect
from tests.servers.postgres import shared_server


@pytest.fixture(params=["memory", "postgres", "sqlite"])
async def db(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    """A database by its url, on every engine."""
    schema = f"d{abs(hash(tmp_path)):x}"
    urls = {"memory": "memory:", "sqlite": f"sqlite:////{tmp_path}/a.db"}
    url = urls.get(request.param) or f"{shared_server().url()}?fastness_schema={schema}"
    async with connect(url, owner_id="tests") as made:
        yield made
    if request.param == "postgres":
        with shared_server().admin() as connection:
            connection.execute(f'drop schema if exists "{schema}" cascade')


def texts(messages: tuple[Message, ...]) -> list[str]:
    """What was said, by whomever."""
    return [message.text for message in messages]


async def test_what_was_sent_is_answered_by_a_turn_and_read_by_anybody(db: Database) -> None:
    """An unknown session has nothing to read; the first thing that is said brings it to life."""
    assert await db.read("chat-42") is None
    await db.send("chat-42", "Where is my order?", key="msg-7")
    await db.send("chat-42", "Where is my order?", key="msg-7")
    with pytest.raises(InputSourceKeyConflictError):
        await db.send("chat-42", "Something else", key="msg-7")
    async with db.turn("chat-42") as turn:
        assert texts(turn.messages) == ["Where is my order?"]
        turn.append("On its way.")
    view = await db.read("chat-42")
    assert view is not None
    assert texts(view.messages) == ["Where is my order?", "On its way."]
    await db.delete("chat-42")
    assert await db.read("chat-42") is None


async def test_a_turn_that_raises_leaves_its_input_to_the_next(db: Database) -> None:
    """Nothing of it is written."""

    async def fail() -> None:
        async with db.turn("s") as turn:
            turn.append("half")
            raise KeyError("the handler's own")

    await db.send("s", "hello")
    with pytest.raises(KeyError, match="the handler's own"):
        await fail()
    assert await db.read("s") is None
    async with db.turn("s") as turn:
        assert texts(turn.messages) == ["hello"]


async def test_turns_of_a_session_run_one_at_a_time(db: Database) -> None:
    """Ten at once make ten revisions, none on top of another's beginning."""

    async def one(number: int) -> None:
        async with db.turn("s") as turn:
            seen = len(turn.messages)
            await asyncio.sleep(0.001)
            turn.append(f"{number} after {seen}")

    await asyncio.gather(*(one(number) for number in range(10)))
    view = await db.read("s")
    assert view is not None
    assert [text.partition(" after ")[2] for text in texts(view.messages)] == [str(number) for number in range(10)]


async def test_a_wait_for_a_turn_may_be_bounded(db: Database) -> None:
    """It ends with the name of the holder."""
    async with db.turn("s"):
        with pytest.raises(ContendedError, match="held by 'tests'"):
            async with db.turn("s", wait_s=0.05):
                raise AssertionError


async def test_what_is_no_text_and_no_url_is_refused(db: Database) -> None:
    """Before anything is written."""
    with pytest.raises(InvalidInputError, match="said"):
        await db.send("s", b"bytes")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="database"):
        connect("mysql://somewhere")
    assert await db.read("s") is None
