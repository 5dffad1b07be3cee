"""Laws of a turn: it lands whole or not at all, once, whatever happens to its code, its lane or its answer."""

from __future__ import annotations

from typing import Any

import pytest

from fastness.conformance.builders import loaded, said
from fastness.conformance.lab import Lab
from fastness.errors import CommitOutcomeUnknownError, ContendedError, InvalidInputError, LeaseExpiredError
from fastness.liveness import mint_owner
from fastness.model import (
    ActiveTurn,
    Message,
    PendingTurnInputDraft,
    RuntimeCommit,
    RuntimePersistence,
    SessionReadView,
    TokenUsage,
    TurnInput,
)
from fastness.runtime.lane import LaneKeeper
from fastness.runtime.turn import Turn


async def run(store: RuntimePersistence, answer: str, **about: Any) -> Turn:
    """One turn that answers what was said."""
    async with LaneKeeper(store, "s") as lane:
        turn = await Turn.begin(store, lane)
        turn.append(answer, **about)
        await turn.settle()
    return turn


async def view(store: RuntimePersistence) -> SessionReadView:
    """What a reader sees."""
    return SessionReadView.of(await loaded(store))


def spoken(messages: tuple[Message, ...]) -> list[tuple[str, str]]:
    """Who said what."""
    return [(message.role, message.text) for message in messages]


async def test_a_turn_settles_all_that_it_did_at_once(lab: Lab) -> None:
    """Input, answer, usage and the lane; the next turn goes on from there, under a greater token."""
    store = await lab.store()
    await store.enqueue_pending_turn_input(said("where is my order?", input_id="a"))
    first = await run(store, "on its way", usage=TokenUsage(10, 5), model="m")
    await store.enqueue_pending_turn_input(said("thanks", input_id="b"))
    second = await run(store, "you are welcome", usage=TokenUsage(1, 1), model="m")
    assert (first.fencing_token, second.fencing_token) == (1, 2)
    async for handle in lab.handles(store):
        seen = await view(handle)
        assert spoken(seen.messages) == [
            ("user", "where is my order?"),
            ("assistant", "on its way"),
            ("user", "thanks"),
            ("assistant", "you are welcome"),
        ]
        assert (seen.turn_index, seen.usage) == (2, TokenUsage(11, 6))
        assert await handle.list_pending_turn_inputs("s") == []


async def test_a_turn_that_fails_leaves_nothing_but_its_input(lab: Lab) -> None:
    """What was said is there for the next turn, and the lane is free at once."""
    store = await lab.store()
    await store.enqueue_pending_turn_input(said("hello", input_id="a"))

    async def fail() -> None:
        async with LaneKeeper(store, "s") as lane:
            turn = await Turn.begin(store, lane)
            turn.append("half an answer")
            raise KeyError("the handler's own")

    with pytest.raises(KeyError):
        await fail()
    assert await store.load_head() is None
    await run(store, "hi")
    assert spoken((await view(store)).messages) == [("user", "hello"), ("assistant", "hi")]


class Forgetful:
    """A store whose first answers to a commit are lost, or which is busy; what was sent is kept."""

    def __init__(self, store: RuntimePersistence, *faults: str) -> None:
        self._store = store
        self._faults = list(faults)
        self.sent: list[RuntimeCommit] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def commit_runtime_state(self, commit: RuntimeCommit) -> Any:
        """Commit, and lose the answer; or refuse before anything happened."""
        self.sent.append(commit)
        fault = self._faults.pop(0) if self._faults else ""
        if fault == "busy":
            raise ContendedError("others were faster", 1)
        if fault == "never sent":
            raise CommitOutcomeUnknownError("the connection broke")
        result = await self._store.commit_runtime_state(commit)
        if fault == "answer lost":
            raise CommitOutcomeUnknownError("the connection broke")
        return result


@pytest.mark.parametrize(
    "faults",
    [("answer lost",), ("never sent",), ("busy",), ("busy", "never sent", "answer lost", "answer lost")],
    ids=", ".join,
)
async def test_a_commit_whose_answer_was_lost_lands_once(lab: Lab, faults: tuple[str, ...]) -> None:
    """The same stamped commit is sent again until there is an answer."""
    store = await lab.store()
    await store.enqueue_pending_turn_input(said("hello", input_id="a"))
    forgetful = Forgetful(store, *faults)
    turn = await run(forgetful, "hi", usage=TokenUsage(3))
    assert turn.result is not None
    assert turn.result.head_revision == 1
    assert len({commit.turn_commit for commit in forgetful.sent}) == 1
    seen = await view(store)
    assert (spoken(seen.messages), seen.usage) == ([("user", "hello"), ("assistant", "hi")], TokenUsage(3))


async def test_a_turn_whose_lane_was_lost_writes_nothing(lab: Lab) -> None:
    """Its commit is refused with the name of the successor, and the successor has all of the input."""
    store = await lab.store()
    await store.enqueue_pending_turn_input(said("hello", input_id="a"))

    async def overtaken() -> None:
        async with LaneKeeper(store, "s", owner_id="alice") as lane:
            turn = await Turn.begin(store, lane)
            turn.append("too late")
            lab.clock.advance(30_000)
            await store.try_claim_session_execution_lease("s", mint_owner("bob"), 1)
            await turn.settle()

    with pytest.raises(LeaseExpiredError, match="now held by 'bob'"):
        await overtaken()
    assert await store.load_head() is None
    lab.clock.advance(1)
    await run(store, "in time")
    assert spoken((await view(store)).messages) == [("user", "hello"), ("assistant", "in time")]


async def test_input_for_the_running_turn_joins_it_at_its_checkpoints(lab: Lab) -> None:
    """First what the turn began with, then what came while the body ran, until nothing more comes."""
    store = await lab.store()
    await store.enqueue_pending_turn_input(said("one", input_id="1"))
    rounds = []
    async with LaneKeeper(store, "s") as lane:
        turn = await Turn.begin(store, lane)
        async for fresh in turn.checkpoints():
            rounds.append([message.text for message in fresh])
            turn.append(f"heard {len(rounds)}")
            if len(rounds) == 1:
                for text, to in (("two", ActiveTurn(turn.turn_id)), ("three", ActiveTurn("another turn"))):
                    draft = PendingTurnInputDraft("s", to, TurnInput.of_text(text))
                    await store.enqueue_pending_turn_input(draft)
        await turn.settle()
    assert rounds == [["one"], ["two"]]
    assert spoken((await view(store)).messages) == [
        ("user", "one"),
        ("assistant", "heard 1"),
        ("user", "two"),
        ("assistant", "heard 2"),
    ]
    (left,) = await store.list_pending_turn_inputs("s")
    assert left.input == TurnInput.of_text("three")


async def test_state_is_kept_until_a_turn_sets_another(lab: Lab) -> None:
    """A turn that leaves it alone carries it by reference; None takes it away."""
    store = await lab.store()
    seen = []
    for change in (b"one", ..., b"two", None, ...):
        async with LaneKeeper(store, "s") as lane:
            turn = await Turn.begin(store, lane)
            seen.append(turn.state)
            if change is not ...:
                turn.state = change
            turn.append("x")
            await turn.settle()
    assert seen == [None, b"one", b"one", b"two", None]


async def test_a_provider_message_goes_in_as_it_came(lab: Lab) -> None:
    """A dictionary in the form of chat completions is read; anything else is refused before it is appended."""
    store = await lab.store()
    call = {"id": "c", "type": "function", "function": {"name": "find", "arguments": "{}"}}
    async with LaneKeeper(store, "s") as lane:
        turn = await Turn.begin(store, lane)
        turn.append({"role": "assistant", "content": None, "tool_calls": [call]})
        turn.append({"role": "tool", "tool_call_id": "c", "content": "found"})
        with pytest.raises(InvalidInputError, match="must be text, a message or a dictionary"):
            turn.append(7)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="state"):
            turn.state = "text"  # type: ignore[assignment]
        await turn.settle()
    assert [message.role for message in (await view(store)).messages] == ["assistant", "tool"]
