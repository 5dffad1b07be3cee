"""Laws of sessions as a whole: how they are described, listed and deleted."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from fastness.conformance.lab import Lab, refused
from fastness.errors import SessionDeletedError, SessionNotFoundError
from fastness.model import Root, SessionFilter
from fastness.runtime.database import Database
from tests.runtime.saying import exchange, heard, revisions, texts


async def test_a_session_is_described_as_far_as_something_is_given(db: Database, other: Database) -> None:
    """All else stays; a description brings an unknown session to life, a question does not."""
    with pytest.raises(SessionNotFoundError):
        await db.describe("s")
    assert await other.read("s") is None
    await db.describe("s", name="My trip", labels=["vip", "blue", "vip"])
    await other.describe("s", priority=7, custom={"a": [1, 2]})
    meta = await db.describe("s")
    assert (meta.session_name, meta.labels, meta.priority, meta.relation) == ("My trip", ("blue", "vip"), 7, Root())
    assert bytes(meta.custom) == b'{"a":[1,2]}'
    meta = await db.describe("s", labels=[], priority=0, custom=None)
    assert (meta.session_name, meta.labels, meta.priority) == ("My trip", (), 0)
    assert bytes(meta.custom) == b"null"
    assert await other.describe("s") == meta


async def test_what_a_description_gives_is_what_is_kept(db: Database) -> None:
    """Labels are a set, in the order of their bytes, also in the answer to whoever named them."""
    given = await db.describe("s", labels=["b", "a", "b"])
    assert given.labels == ("a", "b")


async def test_sessions_are_listed_oldest_first_a_page_at_a_time(
    lab: Lab, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever brought them to life."""
    await db.send("c", "hello")
    lab.clock.advance(1)
    await db.describe("b", name="B")
    lab.clock.advance(1)
    await exchange(db, "hello", "hi", "a")
    page = await db.list(limit=2)
    assert [summary.meta.session_id for summary in page.sessions] == ["c", "b"]
    rest = await db.list(limit=2, cursor=page.next_cursor)
    assert [(summary.meta.session_id, summary.revision, summary.node_count) for summary in rest.sessions] == [
        ("a", 1, 2)
    ]
    assert rest.next_cursor is None
    monkeypatch.setattr(db, "list", partial(db.list, limit=1))
    assert [summary.meta.session_id async for summary in db.sessions()] == ["c", "b", "a"]


async def test_a_listing_shows_what_its_filters_let_through(lab: Lab, db: Database) -> None:
    """Labels, a prefix of the id, the session that one was forked from, and when it came to life."""
    await exchange(db, "hello", "hi", "chat-1")
    lab.clock.advance(1000)
    await db.fork("chat-1", "fork-1")
    await db.describe("chat-2", labels=["vip", "blue"])
    await db.describe("chat-1", labels=["vip"])

    async def shown(**wanted: object) -> list[str]:
        """The ids of a listing."""
        page = await db.list(filters=SessionFilter(**wanted))  # type: ignore[arg-type]
        found = [summary.meta.session_id for summary in page.sessions]
        assert found == [summary.meta.session_id async for summary in db.sessions(SessionFilter(**wanted))]  # type: ignore[arg-type]
        return found

    assert await shown(labels=("vip",)) == ["chat-1", "chat-2"]
    assert await shown(labels=("blue", "vip")) == ["chat-2"]
    assert await shown(id_prefix="chat-") == ["chat-1", "chat-2"]
    assert await shown(parent_session_id="chat-1") == ["fork-1"]
    assert await shown(created_until_ms=lab.start_ms) == ["chat-1"]
    assert await shown(labels=("unknown",)) == []


async def test_a_session_that_is_deleted_ends_its_turn(db: Database, other: Database) -> None:
    """Its block is cancelled, what it made is written nowhere, and the error says that the session is gone."""
    cleaned = asyncio.Event()

    async def run() -> None:
        async with db.turn("s") as turn:
            turn.append("never")
            await other.delete("s")
            try:
                await asyncio.Event().wait()
            finally:
                cleaned.set()

    await exchange(db, "hello", "hi")
    with pytest.raises(SessionDeletedError):
        await run()
    assert cleaned.is_set()
    assert await db.read("s") is None
    await db.delete("s")


async def test_a_turn_that_ends_behind_the_deletion_writes_nothing(db: Database, other: Database) -> None:
    """Also where a session of that name was made anew meanwhile: it is another one, and begins at the beginning."""

    async def run() -> None:
        async with db.turn("s") as turn:
            turn.append("of the old one")
            await other.delete("s")
            await other.send("s", "of the new one")

    await exchange(db, "hello", "hi")
    with pytest.raises(SessionDeletedError):
        await run()
    async with db.turn("s") as turn:
        assert (turn.fencing_token, heard(turn)) == (1, ["of the new one"])
        assert texts(turn.messages) == ["of the new one"]
    assert await revisions(db) == [1]


async def test_reading_brings_nothing_to_life(lab: Lab, db: Database) -> None:
    """Nor does asking, watching, cancelling, interrupting or deleting."""
    await refused(lab, SessionNotFoundError, db.describe("s"))
    async with lab.unchanged():
        assert await db.read("s") is None
        assert await db.pending("s") == ((), ())
        assert await revisions(db) == []
        assert await db.interrupt("s") is None
        await db.cancel("s", key="k")
        await db.delete("s")
        assert [row async for row in db.quarantine("s")] == []
