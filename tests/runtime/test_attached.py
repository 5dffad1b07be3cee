"""Laws of attachments as turns and users know them."""

from __future__ import annotations

import asyncio

import pytest

from fastness.conformance.lab import Lab
from fastness.errors import AttachmentNotInManifestError, InvalidInputError, TurnInterruptedError
from fastness.model import AttachmentItem, AttachmentRef, FilePart, Message, SessionStoreCreateRequest, TextPart
from fastness.runtime.database import Database
from fastness.runtime.messages import message_of
from tests.runtime.saying import heard, said_in, view

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 16


async def held(db: Database, attachment_id: str, session_id: str = "s") -> tuple[bool, int]:
    """Whether a session holds an attachment, and how many of the database nobody has committed."""
    store = await db.factory.open_existing_store(SessionStoreCreateRequest(session_id))
    assert store is not None
    uncommitted = await db.factory.attachment_manifest.list_uncommitted(2**62)
    return await store.holds_ref(session_id, attachment_id), len(uncommitted)


async def test_what_a_turn_attaches_lands_with_its_commit(db: Database, other: Database) -> None:
    """Its content is there for the turns that follow, in whatever process."""
    async with db.turn("s") as turn:
        reference = await turn.attach(b"content", name="a.txt", media_type="text/plain")
        turn.append(Message("m", "assistant", (FilePart(reference.attachment_id, "text/plain", "text"),)))
        assert await held(db, reference.attachment_id) == (True, 1)
    assert await held(db, reference.attachment_id) == (True, 0)
    async with other.turn("s") as turn:
        assert await turn.attachment(reference.attachment_id) == b"content"


async def test_what_a_failed_turn_attached_is_no_part_of_the_session(db: Database) -> None:
    """It stays an intent, which a sweep takes one day."""

    async def fail() -> None:
        async with db.turn("s") as turn:
            kept.append(await turn.attach(b"content", name="a.txt"))
            raise KeyError

    kept: list[AttachmentRef] = []
    with pytest.raises(KeyError):
        await fail()
    assert await held(db, kept[0].attachment_id) == (True, 1)
    assert await db.read("s") is None


async def test_what_an_interrupted_turn_attached_is_dropped_with_its_answer(db: Database, other: Database) -> None:
    """What the user attached is settled with what the user said."""
    item = await db.attach("s", b"of the user", name="a.txt")
    await db.send("s", item)

    async def attach() -> None:
        async with db.turn("s") as turn:
            made.append(await turn.attach(b"of the turn", name="b.txt"))
            await other.interrupt("s")
            await asyncio.Event().wait()

    made: list[AttachmentRef] = []
    with pytest.raises(TurnInterruptedError):
        await attach()
    uncommitted = await db.factory.attachment_manifest.list_uncommitted(2**62)
    assert [entry.attachment_id for entry in uncommitted] == [made[0].attachment_id]


async def test_what_a_user_attaches_is_made_last_by_the_turn_that_takes_it(db: Database, other: Database) -> None:
    """Until then it is an intent; the turn finds it in the message, and can read it."""
    item = await db.attach("s", PNG, name="photo.png")
    attachment_id = item.attachment.attachment_id
    await db.send("s", ["what is this?", item])
    assert await held(db, attachment_id) == (True, 1)
    async with other.turn("s") as turn:
        (message,) = turn.messages
        assert message.parts == (TextPart("what is this?"), FilePart(attachment_id, "image/png", "image"))
        assert await turn.attachment(attachment_id) == PNG
    assert await held(db, attachment_id) == (True, 0)
    assert (await view(db)).messages == (message,)


async def test_an_attachment_alone_is_something_to_say(db: Database) -> None:
    """Also to a running turn."""
    async with db.turn("s") as turn:
        item = await db.attach("s", b"late", name="late.txt")
        await db.send("s", item, to="running_turn")
        (message,) = await turn.checkpoint()
        assert [type(part) for part in message.parts] == [FilePart]
    assert await held(db, item.attachment.attachment_id) == (True, 0)


async def test_an_attachment_that_nobody_has_put_fails_the_turn(db: Database) -> None:
    """However well it was described; what was said waits, for somebody to cancel or to set aside."""

    async def answer() -> None:
        async with db.turn("s") as turn:
            with pytest.raises(AttachmentNotInManifestError):
                await turn.attachment(unknown.attachment_id)
            turn.append("a nice picture")

    unknown = AttachmentRef("0" * 64, "a.png", "image/png", 3)
    await db.send("s", ["look", AttachmentItem(unknown)])
    with pytest.raises(AttachmentNotInManifestError):
        await answer()
    assert await db.read("s") is None
    inputs, _ = await db.pending("s")
    assert said_in(inputs) == ["look ?"]


async def test_a_session_reads_no_attachment_of_another(db: Database) -> None:
    """However well it guesses the hash."""
    item = await db.attach("s", b"secret", name="a.txt")
    async with db.turn("t") as turn:
        with pytest.raises(AttachmentNotInManifestError):
            await turn.attachment(item.attachment.attachment_id)


async def test_without_a_place_a_turn_has_no_attachments(lab: Lab) -> None:
    """Whoever asks for one is told which argument was missing."""
    db = Database(lab.factory)
    async with db.turn("s") as turn:
        for call in (turn.attach(b"x", name="a.txt"), turn.attachment("0" * 64)):
            with pytest.raises(InvalidInputError, match="attachments="):
                await call
        assert heard(turn) == []


def test_what_a_turn_appends_is_read_in_three_forms() -> None:
    """Text is the assistant's; a dictionary is a provider's, and a message is what it is."""
    message = Message("m", "user", (TextPart("hello"),))
    assert message_of("hi", "n") == Message("n", "assistant", (TextPart("hi"),))
    assert message_of(message, "n") is message
    assert message_of({"role": "user", "content": "hello"}, "m").parts == (TextPart("hello"),)
