"""Laws of a turn: what goes in, what comes out, and that it lands whole or not at all."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from fastness.conformance.lab import Lab
from fastness.errors import InputSourceKeyConflictError, InvalidInputError
from fastness.model import ActiveTurn, PendingTurnInputDraft, ProtocolEvent, TokenUsage, TurnInput
from fastness.runtime.database import Database
from tests.runtime.saying import TTL_MS, exchange, heard, kinds_in, revisions, said_in, spoken, texts, view


async def test_a_turn_settles_all_that_it_did_at_once(db: Database, other: Database) -> None:
    """Input, answer, usage and the lane; the next turn goes on from there, under a greater token."""
    first = await exchange(db, "where is my order?", "on its way", usage=TokenUsage(10, 5), model="m")
    second = await exchange(db, "thanks", "you are welcome", usage=TokenUsage(1, 1), model="m")
    assert (first.fencing_token, second.fencing_token) == (1, 2)
    for reader in (db, other):
        seen = await view(reader)
        assert spoken(seen.messages) == [
            ("user", "where is my order?"),
            ("assistant", "on its way"),
            ("user", "thanks"),
            ("assistant", "you are welcome"),
        ]
        assert (seen.turn_index, seen.usage) == (2, TokenUsage(11, 6))
        assert await reader.pending("s") == ((), ())


async def test_a_turn_that_fails_leaves_nothing_but_its_input(db: Database) -> None:
    """What was said is there for the next turn, and the lane is free at once."""

    async def fail() -> None:
        async with db.turn("s") as turn:
            turn.append("half an answer", usage=TokenUsage(1))
            turn.state = b"half"
            turn.configure(model="m")
            turn.send("t", "half")
            raise KeyError("the handler's own")

    await db.send("s", "hello")
    with pytest.raises(KeyError, match="the handler's own"):
        await fail()
    assert await db.read("s") is None
    assert await db.pending("t") == ((), ())
    async with db.turn("s", wait_s=0) as turn:
        assert (heard(turn), turn.state, turn.model) == (["hello"], None, "")


async def test_a_turn_that_does_nothing_leaves_nothing(db: Database) -> None:
    """But a free lane. What one that has nothing to do says all the same begins the conversation."""
    async with db.turn("s") as turn:
        assert (turn.kind, turn.attempts, turn.inputs, turn.work, turn.messages) == ("empty", 1, (), (), ())
    assert turn.result is None
    assert await db.read("s") is None
    async with db.turn("s", wait_s=0) as turn:
        turn.append("How may I help?")
    async with db.turn("s", wait_s=0) as turn:
        turn.configure(model="m")
    async with db.turn("s", wait_s=0) as turn:
        turn.state = None
    async with db.turn("s", wait_s=0) as turn:
        assert turn.messages != ()
    assert spoken((await view(db)).messages) == [("assistant", "How may I help?")]
    assert await revisions(db) == [1, 2, 3]


async def test_input_for_the_running_turn_joins_it_at_its_checkpoints(db: Database, other: Database) -> None:
    """First what the turn began with, then what came while the body ran, until nothing more comes."""
    await db.send("s", "one")
    rounds = []
    async with db.turn("s") as turn:
        async for fresh in turn.checkpoints():
            rounds.append(texts(fresh))
            turn.append(f"heard {len(rounds)}")
            if len(rounds) == 1:
                await other.send("s", "two", to="running_turn")
                await other.send("s", "three")
            if len(rounds) == 2:
                await other.send("s", "four", to="running_turn", boundary="before_completion")
                await other.send("s", "five", to="running_turn")
    assert rounds == [["one"], ["two"], ["four", "five"]]
    assert texts((await view(db)).messages) == ["one", "heard 1", "two", "heard 2", "four", "five", "heard 3"]
    inputs, _ = await db.pending("s")
    assert said_in(inputs) == ["three"]


async def test_input_waits_for_the_boundary_that_its_sender_chose(db: Database) -> None:
    """What may only join an answer that is complete is not told to one that is being made."""
    async with db.turn("s") as turn:
        await db.send("s", "patient", to="running_turn", boundary="before_completion")
        assert await turn.checkpoint() == ()
        assert texts(await turn.checkpoint("before_completion")) == ["patient"]
        assert await turn.checkpoint("before_completion") == ()
        assert turn.kind == "input"


async def test_input_for_a_running_turn_starts_the_next_where_none_runs(db: Database) -> None:
    """Neither the boundary nor the end of the turn that it was meant for keeps it from being answered."""
    await db.send("s", "nobody is there", to="running_turn", boundary="before_completion")
    async with db.turn("s") as turn:
        assert heard(turn) == ["nobody is there"]
        await db.send("s", "too late", to="running_turn")
    async with db.turn("s") as turn:
        assert heard(turn) == ["too late"]


async def test_input_for_another_turn_by_name_does_not_join(db: Database) -> None:
    """It is for the next one once its own cannot come any more."""
    store = db._any("s")
    async with db.turn("s") as turn:
        draft = PendingTurnInputDraft("s", ActiveTurn("another turn"), TurnInput.of_text("for another"))
        await store.enqueue_pending_turn_input(draft)
        assert await turn.checkpoint("before_completion") == ()
    async with db.turn("s") as turn:
        assert heard(turn) == ["for another"]


async def test_a_checkpoint_takes_as_much_as_a_turn_may(db: Database) -> None:
    """The oldest first, at its beginning and at each checkpoint; the rest is for the next turn."""
    for text in ("a", "b", "c"):
        await db.send("s", text)
    async with db.turn("s", max_inputs=2) as turn:
        assert heard(turn) == ["a", "b"]
        for text in ("d", "e", "f"):
            await db.send("s", text, to="running_turn")
        assert texts(await turn.checkpoint()) == ["d", "e"]
    async with db.turn("s") as turn:
        assert heard(turn) == ["c", "f"]


async def test_a_turn_without_claims_takes_nothing(db: Database) -> None:
    """What waits goes on waiting, and is no attempt of it."""
    await db.send("s", "hello")
    async with db.turn("s", claims=False) as turn:
        assert turn.kind == "empty"
    async with db.turn("s") as turn:
        assert (heard(turn), turn.attempts) == (["hello"], 1)


async def test_input_and_work_come_in_the_order_in_which_they_were_admitted(db: Database) -> None:
    """A turn begins with what leads the line: input that stands together, or one piece of work."""
    await db.enqueue("s", "first")
    await db.send("s", "second")
    await db.send("s", "third")
    await db.command("s", {"do": "fourth"})
    await db.enqueue("s", "fifth", {"n": 1})
    seen = []
    for _ in range(4):
        async with db.turn("s") as turn:
            seen.append((turn.kind, heard(turn), kinds_in(turn.work)))
    assert seen == [
        ("work", [], ["first"]),
        ("input", ["second", "third"], []),
        ("command", [], ["command"]),
        ("work", [], ["fifth"]),
    ]
    assert await db.pending("s") == ((), ())


async def test_a_running_turn_may_take_work_that_leads_the_line(db: Database) -> None:
    """It settles that as well; where input leads, there is none to take."""
    async with db.turn("s") as turn:
        assert await turn.take_work() == ()
        await db.enqueue("s", "errand")
        await db.enqueue("s", "another")
        assert kinds_in(await turn.take_work()) == ["errand"]
        assert kinds_in(turn.work) == ["errand"]
    _, work = await db.pending("s")
    assert kinds_in(work) == ["another"]


async def test_what_a_turn_sends_lands_with_its_commit(db: Database) -> None:
    """Input and work for this session or another are there when the turn has landed, and not before."""
    async with db.turn("s") as turn:
        turn.send("t", "from s", key="k")
        turn.enqueue("wake", {"n": 1})
        turn.enqueue("job", session_id="t")
        assert await db.pending("t") == ((), ())
    inputs, work = await db.pending("t")
    assert (said_in(inputs), kinds_in(work)) == (["from s"], ["job"])
    async with db.turn("s") as turn:
        assert (turn.kind, kinds_in(turn.work)) == ("work", ["wake"])
        turn.send("t", "from s", key="k")
    inputs, _ = await db.pending("t")
    assert said_in(inputs) == ["from s"]


async def test_a_turn_whose_sending_is_refused_does_not_land(db: Database) -> None:
    """Other content under a key that is taken refuses all of the commit, and what the turn took waits again."""

    async def answer() -> None:
        async with db.turn("s") as turn:
            turn.append("told them")
            turn.send("t", "other", key="k")

    await db.send("s", "tell t")
    await db.send("t", "one", key="k")
    with pytest.raises(InputSourceKeyConflictError):
        await answer()
    assert await db.read("s") is None
    inputs, _ = await db.pending("s")
    assert said_in(inputs) == ["tell t"]


async def test_what_a_turn_sends_for_later_is_not_there_before(lab: Lab, db: Database) -> None:
    """The delay counts from where it was asked for, by the database's clock."""
    async with db.turn("s") as turn:
        turn.send("s", "in an hour", delay=3600)
        turn.enqueue("in half an hour", delay=1800)
    inputs, work = await db.pending("s")
    assert inputs[0].available_at_ms - work[0].available_at_ms == 1_800_000
    assert 1_800_000 <= work[0].available_at_ms - lab.start_ms < 1_860_000
    seen = []
    for _ in range(3):
        async with db.turn("s") as turn:
            seen.append(turn.kind)
        lab.clock.advance(1_860_000)
    assert seen == ["empty", "work", "input"]


async def test_usage_is_charged_to_the_model_that_was_used(db: Database) -> None:
    """By name, or to the one that the session is configured for, or to nobody known; it adds up over the turns."""
    for number in range(2):
        async with db.turn("s") as turn:
            turn.charge(TokenUsage(1))
            turn.configure(model="large")
            turn.append("hello", usage=TokenUsage(10, 5))
            turn.append("hello", usage=TokenUsage(100, 50, 1, 2, 3), model="small")
            assert turn.model == "large"
        totals = {(entry.source, entry.model): entry.usage for entry in (await view(db)).snapshot.ledger}
        assert (
            totals
            == [
                {
                    ("turn", "unknown"): TokenUsage(1),
                    ("turn", "large"): TokenUsage(10, 5),
                    ("turn", "small"): TokenUsage(100, 50, 1, 2, 3),
                },
                {
                    ("turn", "unknown"): TokenUsage(1),
                    ("turn", "large"): TokenUsage(21, 10),
                    ("turn", "small"): TokenUsage(200, 100, 2, 4, 6),
                },
            ][number]
        )
    assert [sum(entry.usage.input_tokens for entry in record.usage) async for record in db.history("s")] == [111, 111]


async def test_state_is_kept_until_a_turn_sets_another(db: Database, other: Database) -> None:
    """A turn that leaves it alone carries it on, whichever process runs it; None takes it away."""
    seen = []
    for number, change in enumerate((b"one", ..., b"two", ..., None, ...)):
        async with (db, other)[number // 2 % 2].turn("s") as turn:
            seen.append(turn.state)
            if change is not ...:
                turn.state = change
            turn.append("x")
    assert seen == [None, b"one", b"one", b"two", b"two", None]


async def test_configuration_is_kept_until_a_turn_sets_another(db: Database, other: Database) -> None:
    """Model and provider each for itself."""
    async with db.turn("s") as turn:
        turn.configure(model="large")
    async with other.turn("s") as turn:
        turn.configure(provider_id="somebody")
        assert turn.model == "large"
    async with db.turn("s") as turn:
        assert turn.model == "large"
        turn.configure(model="")
    config = (await view(db)).config
    assert (config.provider_id, config.model) == ("somebody", "")


async def test_a_provider_message_goes_in_as_it_came(db: Database) -> None:
    """A dictionary in the form of chat completions is read, an event stands beside the messages."""
    call = {"id": "c", "type": "function", "function": {"name": "find", "arguments": "{}"}}
    async with db.turn("s") as turn:
        turn.append({"role": "assistant", "content": None, "tool_calls": [call]})
        turn.append(ProtocolEvent("tests", msgspec.Raw(b'{"n":1}')))
        turn.append({"role": "tool", "tool_call_id": "c", "content": "found"})
    seen = await view(db)
    assert [message.role for message in seen.messages] == ["assistant", "tool"]
    assert [(event.plugin_id, bytes(event.payload)) for event in seen.events] == [("tests", b'{"n":1}')]


async def test_what_a_turn_cannot_keep_is_refused_where_it_is_said(db: Database) -> None:
    """The turn goes on without it, and lands."""
    async with db.turn("s") as turn:
        turn.append("hello")
        for wrong in (7, None, b"bytes", ["text"], {"content": object()}, "\udc80"):
            with pytest.raises(InvalidInputError):
                turn.append(wrong)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="state"):
            turn.state = "text"  # type: ignore[assignment]
        for usage in (7, TokenUsage(-1), TokenUsage("many")):  # type: ignore[arg-type]
            with pytest.raises(InvalidInputError, match="usage"):
                turn.append("more", usage=usage)  # type: ignore[arg-type]
            with pytest.raises(InvalidInputError, match="usage"):
                turn.charge(usage)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="model"):
            turn.charge(TokenUsage(1), model=7)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="model"):
            turn.configure(model=7)  # type: ignore[arg-type]
        for delay in (-1, "soon", float("nan"), float("inf"), True):
            with pytest.raises(InvalidInputError, match="delay"):
                turn.send("s", "x", delay=delay)  # type: ignore[arg-type]
            with pytest.raises(InvalidInputError, match="delay"):
                turn.enqueue("x", delay=delay)  # type: ignore[arg-type]
        for session_id in ("", 7, "a\0"):
            with pytest.raises(InvalidInputError, match="session_id"):
                turn.send(session_id, "x")  # type: ignore[arg-type]
            with pytest.raises(InvalidInputError, match="session_id"):
                turn.enqueue("x", session_id=session_id)  # type: ignore[arg-type]
        for said in (b"bytes", 7, {"text": "x"}, [7], "\udc80"):
            with pytest.raises(InvalidInputError):
                turn.send("t", said)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError):
            turn.enqueue(7)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="not JSON"):
            turn.enqueue("x", object())
        with pytest.raises(InvalidInputError, match="checkpoint"):
            await turn.checkpoint("sometime")  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="max_batches"):
            await turn.take_work(0)
        with pytest.raises(InvalidInputError, match="attachments"):
            await Database(db.factory).attach("s", b"x", name="a.txt")
    assert texts((await view(db)).messages) == ["hello"]
    assert await db.pending("t") == ((), ())
    assert await db.pending("s") == ((), ())


async def test_a_turn_that_waits_for_its_model_is_in_nobodys_way(lab: Lab, db: Database, other: Database) -> None:
    """What it took is no more to be had, and everything else is."""
    await db.send("s", "hello")
    async with db.turn("s") as turn:
        await other.send("s", "more")
        await exchange(other, "elsewhere", "there", "t")
        lab.clock.advance(TTL_MS // 2)
        inputs, _ = await other.pending("s")
        assert (heard(turn), said_in(inputs)) == (["hello"], ["more"])
        await asyncio.sleep(0)
    assert texts((await view(db)).messages) == ["hello"]
