"""Laws of going on from elsewhere: editing, answering anew, switching branches, forking."""

from __future__ import annotations

import asyncio

import pytest

from fastness.conformance.lab import Lab
from fastness.errors import GraphInvalidError, RevisionNotReadableError, SessionIdTakenError, SessionNotFoundError
from fastness.model import Child, TokenUsage
from fastness.runtime.branches import REGENERATE
from fastness.runtime.database import Database
from tests.runtime.saying import Asked, exchange, heard, kinds_in, revisions, said_in, texts, view


async def conversation(db: Database) -> list[str]:
    """Two questions and their answers; the ids of the four."""
    await exchange(db, "one", "answer one")
    await exchange(db, "two", "answer two")
    return [message.id for message in (await view(db)).messages]


async def branches(db: Database) -> list[tuple[str, str | None]]:
    """Every message of every branch, with what it follows."""
    tree = (await view(db)).message_tree
    text = {entry.node_id: entry.message.text for entry in tree.entries}
    return [(text[entry.node_id], text.get(entry.parent_node_id or "")) for entry in tree.entries]


async def test_an_edit_says_something_else_in_the_place_of_a_message(db: Database) -> None:
    """The next turn answers that, and sees nothing of what came instead; the branch that was is kept."""
    _, _, second, last = await conversation(db)
    await db.edit("s", second, "two, in other words", key="edit-1")
    assert texts((await view(db)).messages) == ["one", "answer one"]
    async with db.turn("s") as turn:
        assert texts(turn.messages) == ["one", "answer one", "two, in other words"]
        turn.append("another answer")
    assert await branches(db) == [
        ("one", None),
        ("answer one", "one"),
        ("two", "answer one"),
        ("answer two", "two"),
        ("two, in other words", "answer one"),
        ("another answer", "two, in other words"),
    ]
    await db.switch("s", last)
    assert texts((await view(db)).messages) == ["one", "answer one", "two", "answer two"]


async def test_the_first_message_can_be_edited(db: Database) -> None:
    """The conversation begins anew beside the one that was."""
    first, *_ = await conversation(db)
    await db.edit("s", first, "uno")
    assert texts((await view(db)).messages) == []
    await db.send("s", "due")
    async with db.turn("s") as turn:
        assert texts(turn.messages) == ["uno", "due"]
        turn.append("risposta")
    assert texts((await view(db)).messages) == ["uno", "due", "risposta"]
    assert [root.message.text for root in (await view(db)).message_tree.roots] == ["one", "uno"]


async def test_an_edit_is_there_whole_or_not_at_all(db: Database) -> None:
    """A key that is taken refuses the new branch along with what was to be said on it."""
    first, *_ = await conversation(db)
    await db.send("s", "waiting", key="k")
    with pytest.raises(Exception, match="'k'"):
        await db.edit("s", first, "uno", key="k")
    assert texts((await view(db)).messages) == ["one", "answer one", "two", "answer two"]
    inputs, _ = await db.pending("s")
    assert said_in(inputs) == ["waiting"]


async def test_an_answer_is_made_anew_from_what_it_answered(db: Database) -> None:
    """By default the last one; the next turn finds work that says so, and the answer that was is kept."""
    _, answer_one, _, _ = await conversation(db)
    await db.regenerate("s")
    async with db.turn("s") as turn:
        assert (turn.kind, kinds_in(turn.work)) == ("work", [REGENERATE])
        assert texts(turn.messages) == ["one", "answer one", "two"]
        turn.append("better answer two")
    await db.regenerate("s", answer_one)
    async with db.turn("s") as turn:
        assert texts(turn.messages) == ["one"]
        turn.append("better answer one")
    assert texts((await view(db)).messages) == ["one", "better answer one"]
    assert await branches(db) == [
        ("one", None),
        ("answer one", "one"),
        ("two", "answer one"),
        ("answer two", "two"),
        ("better answer two", "two"),
        ("better answer one", "one"),
    ]


async def test_an_answer_of_several_messages_is_made_anew_as_a_whole(db: Database) -> None:
    """A call, its result and the text that came of it: the branch begins behind what was asked."""
    await db.send("s", "find it")
    call = {"id": "c", "type": "function", "function": {"name": "find", "arguments": "{}"}}
    async with db.turn("s") as turn:
        turn.append({"role": "assistant", "content": None, "tool_calls": [call]})
        turn.append({"role": "tool", "tool_call_id": "c", "content": "found"})
        turn.append("here it is")
    await db.regenerate("s")
    assert texts((await view(db)).messages) == ["find it"]


async def test_an_answer_that_there_is_not_cannot_be_made_anew(db: Database) -> None:
    """In a session of which nobody knows, or that nobody has answered; what waits goes on waiting."""
    await db.send("s", "hello")
    with pytest.raises(GraphInvalidError, match="no answer") as caught:
        await db.regenerate("s")
    assert caught.value.fault == "no_answer"
    async with db.turn("s") as turn:
        assert (heard(turn), turn.attempts) == (["hello"], 1)


@pytest.mark.parametrize("act", ["switch", "edit", "regenerate", "turn"])
async def test_a_node_that_is_not_there_is_an_error_that_names_it(db: Database, act: str) -> None:
    """The session stands where it stood, and its lane is free."""

    async def turn() -> None:
        async with db.turn("s", at="nowhere"):
            raise AssertionError

    await conversation(db)
    calls = {
        "switch": lambda: db.switch("s", "nowhere"),
        "edit": lambda: db.edit("s", "nowhere", "x"),
        "regenerate": lambda: db.regenerate("s", "nowhere"),
        "turn": turn,
    }
    with pytest.raises(GraphInvalidError) as caught:
        await calls[act]()
    assert (caught.value.node_id, caught.value.fault) in {("nowhere", "unknown_node"), ("nowhere", "dangling_leaf")}
    assert await revisions(db) == [1, 2]
    async with db.turn("s", wait_s=0) as after:
        assert texts(after.messages) == ["one", "answer one", "two", "answer two"]


async def test_a_branch_is_switched_to_and_fro(db: Database) -> None:
    """Each turn goes on from where the session stands; before the first node, it begins anew."""
    _, first, _, last = await conversation(db)
    seen = []
    for node_id in (first, last, None):
        await db.switch("s", node_id)
        async with db.turn("s") as turn:
            seen.append(texts(turn.messages))
    assert seen == [["one", "answer one"], ["one", "answer one", "two", "answer two"], []]


async def test_a_new_session_stands_before_its_first_node_already(db: Database) -> None:
    """To be sent there is nothing new."""
    await db.switch("s", None)
    async with db.turn("s") as turn:
        assert turn.messages == ()
        turn.append("hello")
    assert texts((await view(db)).messages) == ["hello"]


async def test_whoever_branches_waits_for_the_turn_that_runs(lab: Lab, db: Database, other: Database) -> None:
    """What is made anew is the answer that this turn was still making."""
    async with db.turn("s") as turn:
        asked = Asked(lab)
        waiting = asyncio.create_task(other.regenerate("s"))
        await asked.once()
        turn.append("the first answer")
    await waiting
    assert texts((await view(db)).messages) == []
    async with db.turn("s") as turn:
        assert kinds_in(turn.work) == [REGENERATE]
        turn.append("the second answer")
    assert await branches(db) == [("the first answer", None), ("the second answer", None)]


async def test_a_fork_begins_as_its_source_was(db: Database, other: Database) -> None:
    """At its head, at a node, or at a revision; from then on each goes its own way, and no usage comes along."""
    _, first, _, _ = await conversation(db)
    async with db.turn("s") as turn:
        turn.state = b"state of three"
        turn.append("three", usage=TokenUsage(5))
    meta = await db.fork("s", "head")
    await db.fork("s", "node", at_node=first)
    await db.fork("s", "revision", at_revision=2, name="As it was")
    assert (meta.session_id, meta.relation) == ("head", Child("s", (await view(db)).messages[-1].id))
    assert (await db.describe("revision")).session_name == "As it was"
    found = {name: texts((await view(other, name)).messages) for name in ("head", "node", "revision")}
    assert found == {
        "head": ["one", "answer one", "two", "answer two", "three"],
        "node": ["one", "answer one"],
        "revision": ["one", "answer one", "two", "answer two"],
    }
    async with other.turn("head") as turn:
        assert (turn.state, texts(turn.messages)[-1]) == (b"state of three", "three")
        turn.append("four")
    assert texts((await view(db)).messages)[-1] == "three"
    assert (await view(db, "head")).usage == TokenUsage()


async def test_a_fork_is_made_while_a_turn_of_its_source_runs(db: Database) -> None:
    """Of what is settled: neither what the turn took nor what it makes comes along."""
    await conversation(db)
    await db.send("s", "three")
    async with db.turn("s") as turn:
        turn.append("answer three")
        await db.fork("s", "t")
    assert texts((await view(db, "t")).messages) == ["one", "answer one", "two", "answer two"]
    assert await db.pending("t") == ((), ())


async def test_a_fork_that_cannot_be_made_says_why(db: Database) -> None:
    """No such source, no such revision, or an id that is taken."""
    await conversation(db)
    with pytest.raises(SessionNotFoundError):
        await db.fork("unknown", "t")
    with pytest.raises(RevisionNotReadableError):
        await db.fork("s", "t", at_revision=7)
    await db.fork("s", "t")
    with pytest.raises(SessionIdTakenError):
        await db.fork("s", "t")
