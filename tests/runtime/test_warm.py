"""Laws of what a process remembers of the sessions it has worked on: it is never older than the database."""

from __future__ import annotations

import random
from typing import Any

import pytest

from fastness.conformance.builders import WHEN, chain, checkpoint, node, some, turn
from fastness.conformance.lab import Lab
from fastness.errors import NodeIdCollisionError
from fastness.model import (
    AgentFrameRecord,
    FullGraph,
    PersistedSessionConfig,
    PersistedSessionRead,
    ReplaceFull,
    SessionGraph,
    SessionReadScope,
    SessionStoreCreateRequest,
    TokenUsage,
    Unchanged,
)
from fastness.runtime.database import Database
from fastness.runtime.ground import Ground, Warm, WarmSession, load_ground
from fastness.state import load_persisted_session_state_active_path
from fastness.store import SessionStore
from tests.runtime.saying import exchange, heard, texts, view


async def test_a_process_sees_what_another_has_committed_in_between(db: Database, other: Database) -> None:
    """Messages, state, configuration and usage, although it knows the session as it left it."""
    await exchange(db, "one", "1", usage=TokenUsage(1), model="m")
    await db.send("s", "two")
    async with other.turn("s") as turn:
        turn.append("2", usage=TokenUsage(10), model="m")
        turn.state = b"other"
        turn.configure(model="other")
    async with db.turn("s") as turn:
        assert texts(turn.messages) == ["one", "1", "two", "2"]
        assert (turn.state, turn.model) == (b"other", "other")
        turn.append("3", usage=TokenUsage(100), model="m")
    seen = await view(other)
    assert (texts(seen.messages), seen.usage, seen.turn_index) == (["one", "1", "two", "2", "3"], TokenUsage(111), 3)
    assert seen.snapshot.turn_state.token_usage == TokenUsage(111)


async def test_a_process_goes_on_from_where_it_was_without_reading(
    lab: Lab, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as nobody else was there; the first turn of each process reads."""
    loads = []

    async def loading(*given: Any) -> Any:
        """Count."""
        loads.append(given)
        return await load_persisted_session_state_active_path(*given)

    monkeypatch.setattr("fastness.runtime.ground.load_persisted_session_state_active_path", loading)
    for number in range(3):
        turn = await exchange(db, f"{number}", f"answer {number}")
    assert texts(turn.messages) == ["0", "answer 0", "1", "answer 1", "2", "answer 2"]
    assert len(loads) == 0
    await exchange(Database(lab.factory), "3", "answer 3")
    assert len(loads) == 1


async def test_only_what_another_process_has_committed_is_read(
    db: Database, other: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nodes behind the leaf that is known; what this process has settled itself it does not read again."""
    await exchange(db, "one", "1")
    await exchange(other, "two", "2")
    read: list[list[str]] = []
    load = SessionStore.load_session

    async def loading(store: SessionStore, scope: SessionReadScope) -> PersistedSessionRead | None:
        """Write down what is read."""
        found = await load(store, scope)
        read.append(texts(some(found).graph.active_messages()))
        return found

    monkeypatch.setattr(SessionStore, "load_session", loading)
    for number in (3, 4):
        answered = await exchange(db, f"{number}", f"answer {number}")
    assert read == [["two", "2"]]
    assert texts(answered.messages) == ["one", "1", "two", "2", "3", "answer 3", "4", "answer 4"]


STEPS = ("append", "append", "append", "branch", "hide", "vacuum", "replace", "frame", "describe")


async def step(store: SessionStore, dice: random.Random, at: int) -> None:
    """Change a session in one of the ways in which it may change; ids of nodes come back as soon as they may."""
    head = await store.load_head()
    read = await store.load_session(FullGraph())
    live = [] if read is None else [each.node_id for each in read.graph.nodes]
    leaf, frame = (None, None) if head is None else (head.leaf_node_id, head.current_agent_frame_id)
    free = [name for name in "abcdefgh" if name not in live]
    kind = dice.choice(STEPS)
    if kind == "append" and free:
        await turn(store, node(free[0], leaf, f"said {at}", frame=frame), checkpoint=checkpoint(at))
    elif kind == "branch" and live:
        await turn(store, graph=Unchanged(dice.choice(live)))
    elif kind == "hide" and live:
        at_node = dice.choice(live)
        graph = some(read).graph
        await store.tombstone_nodes(
            [name for name in live if at_node in {each.node_id for each in graph.active_path(name)}]
        )
    elif kind == "vacuum":
        await store.vacuum()
    elif kind == "replace":
        nodes = tuple(node(each.node_id, each.parent_node_id, f"again {at}", frame=frame) for each in chain("a", "b"))
        await turn(store, graph=ReplaceFull(SessionGraph(nodes, "b")))
    elif kind == "frame" and head is not None:
        name = dice.choice(["f", "g"])
        await turn(store, agent_frames=(AgentFrameRecord(name, WHEN),), current_agent_frame_id=name)
    else:
        parts = {"execution_state": f"state {at}".encode(), "tool_state": b"tools"}
        await turn(store, config=PersistedSessionConfig("p", f"model {at}"), checkpoint=checkpoint(at, **parts))


@pytest.mark.parametrize("seed", range(12))
async def test_what_is_kept_and_what_came_since_are_what_a_fresh_load_gives(lab: Lab, seed: int) -> None:
    """However the session has changed in between: branches, hidden and replaced nodes, frames, states."""
    dice = random.Random(seed)
    store = some(await lab.factory.create_store(SessionStoreCreateRequest("s")))
    kept: list[Ground] = []
    for at in range(25):
        try:
            await step(store, dice, at)
        except NodeIdCollisionError:
            continue  # its id is hidden and not vacuumed yet
        fresh = await load_ground(store)
        for ground in kept[-6:]:
            assert await load_ground(store, kept=ground) == fresh
        kept.append(fresh)
    assert len({ground.revision for ground in kept}) > 8


async def test_a_session_that_was_deleted_and_made_anew_is_another_one(db: Database, other: Database) -> None:
    """Also where it stands at the same revision as the one that is remembered."""
    async with db.turn("s") as turn:
        turn.state = b"old"
        turn.append("of the old one")
    await other.delete("s")
    await exchange(other, "of the new one", "indeed")
    assert (await view(db)).snapshot.turn_state.turn_index == 1
    async with db.turn("s") as turn:
        assert (texts(turn.messages), turn.state, turn.fencing_token) == (["of the new one", "indeed"], None, 2)
        turn.append("and on")
    assert texts((await view(other)).messages) == ["of the new one", "indeed", "and on"]


async def test_a_session_that_was_deleted_is_not_remembered(db: Database, other: Database) -> None:
    """The next turn begins with nothing, and lands."""
    await exchange(db, "one", "1")
    await other.delete("s")
    async with db.turn("s") as turn:
        assert (turn.messages, turn.fencing_token) == ((), 1)
        turn.append("hello")
    assert texts((await view(db)).messages) == ["hello"]


async def test_what_was_hidden_in_between_is_not_remembered(db: Database, other: Database) -> None:
    """A branch that was taken away is gone from the next turn's messages, and nothing is built on it."""
    await exchange(db, "one", "1")
    await exchange(db, "two", "2")
    hidden = [message.id for message in (await view(db)).messages][2:]
    store = await other.factory.open_existing_store(SessionStoreCreateRequest("s"))
    assert store is not None
    await store.tombstone_nodes(hidden)
    async with db.turn("s") as turn:
        assert texts(turn.messages) == ["one", "1"]
        turn.append("instead of 2")
    assert texts((await view(other)).messages) == ["one", "1", "instead of 2"]


async def test_a_branch_that_was_switched_is_not_remembered(db: Database, other: Database) -> None:
    """By this process or by another."""
    await exchange(db, "one", "1")
    first = (await view(db)).messages[-1].id
    await exchange(db, "two", "2")
    for who in (db, other):
        await who.switch("s", first)
        async with db.turn("s") as turn:
            assert texts(turn.messages) == ["one", "1"]
            turn.append("on")


async def test_a_turn_that_failed_is_not_remembered(db: Database) -> None:
    """What it had appended and set is not there for the next."""

    async def fail() -> None:
        async with db.turn("s") as turn:
            turn.append("half")
            turn.state = b"half"
            turn.configure(model="half")
            raise KeyError

    await exchange(db, "one", "1")
    with pytest.raises(KeyError):
        await fail()
    async with db.turn("s") as turn:
        assert (texts(turn.messages), turn.state, turn.model) == (["one", "1"], None, "")


async def test_two_sessions_are_not_mixed_up(db: Database, other: Database) -> None:
    """Each has its own messages, in whatever order their turns come."""
    for number in range(3):
        for session_id in ("s", "t"):
            turn = await exchange((db, other)[number % 2], f"{session_id}{number}", "ok", session_id)
            assert heard(turn) == [f"{session_id}{number}"]
    assert texts((await view(db, "s")).messages) == ["s0", "ok", "s1", "ok", "s2", "ok"]
    assert texts((await view(db, "t")).messages) == ["t0", "ok", "t1", "ok", "t2", "ok"]


async def test_only_so_many_sessions_are_remembered(db: Database) -> None:
    """The least recently settled is forgotten first; one is given once, and only as what it was left as."""
    warm = Warm(most=2)
    for key, name in enumerate("abc", 1):
        warm.put(name, WarmSession(key, db._any(name), Ground(revision=key)))
    assert warm.take("a", 1) is None
    assert warm.take("b", 2) is not None
    assert warm.take("b", 2) is None
    assert warm.take("c", 4) is None
    warm.put("c", WarmSession(3, db._any("c"), Ground(revision=3)))
    kept = warm.take("c", 3)
    assert kept is not None
    assert kept.ground == Ground(revision=3)
    assert warm.take("c", 3) is None
