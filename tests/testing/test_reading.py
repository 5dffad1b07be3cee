"""Laws of reading the final state: what the database holds in the end is what a check looks at."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fastness.conformance.builders import ALICE, claim_inputs, commit, lane, said, task, work
from fastness.conformance.lab import Lab
from fastness.model import (
    Append,
    Message,
    MessageOrigin,
    RuntimePersistence,
    SessionNodeRecord,
    TextPart,
    ToolCallPart,
    ToolCallResponsePart,
    TurnBegun,
    message_node,
    raw_json,
)
from fastness.testing import (
    AnyEvent,
    Committed,
    FinalCommit,
    FinalInput,
    FinalNode,
    FinalSession,
    Finding,
    Sent,
    TurnStarted,
    check,
    read_final,
    reading,
    text_hash,
)
from fastness.testing.reading import final_node

WHEN = "2026-01-01T00:00:00Z"


async def answered(store: RuntimePersistence, turn_id: str) -> Committed:
    """A turn of ``s`` that answers one input, and gives the lane back; what its worker hears of it."""
    lease = await lane(store)
    claim = await claim_inputs(store, lease)
    (row,) = claim.inputs
    head = await store.load_head()
    leaf, revision = (None, None) if head is None else (head.leaf_node_id, head.revision)
    asked = Message(row.input_id, "user", (TextPart("hello"),), MessageOrigin("turn_input", row.input_id))
    answer = Message(f"{turn_id}/n", "assistant", (TextPart("hi"),))
    nodes = (message_node(asked.id, leaf, WHEN, asked), message_node(answer.id, asked.id, WHEN, answer))
    made = commit(lease, revision, graph=Append(nodes, answer.id), release_session_execution_lease=lease.completion())
    result = await store.commit_runtime_state(made.completing_turn_input_claim(claim).with_turn_commit(turn_id))
    return Committed("s", turn_id, lease.fencing_token, result.head_revision, (row.input_id,))


async def test_turns_are_proved_healthy(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sent, answered and read back, a page at a time: nothing is found, and the final state is this, word by word."""
    monkeypatch.setattr(reading, "_PAGE", 1)
    store = await lab.store()
    for number in (1, 2, 3):
        await store.enqueue_pending_turn_input(said("hello", input_id=f"i{number}"))
    events: list[AnyEvent] = [Sent("s", f"k{number}", f"i{number}", text_hash("hello"), True) for number in (1, 2, 3)]
    for number in (1, 2):
        done = await answered(store, f"t{number}")
        events += [TurnStarted("s", done.turn_id, done.fencing_token, done.input_ids, "w", number - 1), done]
    final = await read_final(lab.factory)
    hello, hi = text_hash("hello"), text_hash("hi")
    assert final.sessions == (
        FinalSession(
            "s",
            2,
            "t2/n",
            (FinalCommit(1, "t1", 1, "turn", "t1/n"), FinalCommit(2, "t2", 2, "turn", "t2/n")),
            (
                FinalNode("i1", None, "user", "i1", hello),
                FinalNode("t1/n", "i1", "assistant", None, hi),
                FinalNode("i2", "t1/n", "user", "i2", hello),
                FinalNode("t2/n", "i2", "assistant", None, hi),
            ),
            (FinalInput("i3", hello),),
        ),
    )
    assert check(events, final).findings == (Finding("pending", "s", "input 'i3' (key 'k3') waits"),)
    assert check(events, final, allow=("pending",)).ok


async def test_a_faulty_history_of_a_real_database_is_found(lab: Lab) -> None:
    """What was acknowledged and cancelled behind the sender's back is lost to it."""
    store = await lab.store()
    for number in (1, 2):
        await store.enqueue_pending_turn_input(said("hello", input_id=f"i{number}"))
    await store.cancel_pending_turn_input("s", "i2")
    done = await answered(store, "t1")
    events: list[AnyEvent] = [Sent("s", f"k{number}", f"i{number}", None, True) for number in (1, 2)]
    events += [TurnStarted("s", "t1", 1), done, msgspec.structs.replace(done, fencing_token=2)]
    report = check(events, await read_final(lab.factory))
    assert [finding.kind for finding in report.findings] == ["lost_input", "commit_disagrees"]


async def test_what_was_set_aside_is_read(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Input only, by its id, a page at a time."""
    monkeypatch.setattr(reading, "_PAGE", 1)
    store = await lab.store()
    for name in ("x", "y"):
        await store.enqueue_pending_turn_input(said("hello", input_id=name))
    await store.enqueue_queued_work(work(task()))
    for _ in range(2):
        begun = await lab.factory.dispatch.begin_turn("s", ALICE, 1000)
        assert isinstance(begun, TurnBegun)
        await lab.factory.dispatch.fail_turn(
            begun.lease.completion(),
            input_claims=[] if begun.input_claim is None else [begun.input_claim],
            work_claims=[] if begun.work_claim is None else [begun.work_claim],
            error="KeyError",
            max_attempts=1,
        )
    final = await read_final(lab.factory)
    assert final.sessions == (FinalSession("s", quarantined=("x", "y")),)
    assert [finding.kind for finding in check([Sent("s", "k", "x", None, True)], final).findings] == ["quarantined"]


async def test_sessions_are_read_by_name_or_all(lab: Lab) -> None:
    """One that is not there is left out, and one that is named twice is there once; a held lane is seen."""
    for name in ("b", "a"):
        await lane(await lab.store(name), session_id=name)
    both = FinalSession("b", lane_holder="alice"), FinalSession("a", lane_holder="alice")
    assert (await read_final(lab.factory)).sessions == both
    assert (await read_final(lab.factory, ["a", "nobody", "a"])).sessions == both[1:]


def message(role: Any, *parts: Any, origin: MessageOrigin | None = None) -> SessionNodeRecord:
    """A node with a message."""
    return message_node("n", None, WHEN, Message("m", role, parts, origin))


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (message("user", TextPart("a"), TextPart("b")), FinalNode("n", None, "user", "m", text_hash("ab"))),
        (
            message("user", TextPart("a"), origin=MessageOrigin("turn_input", "i")),
            FinalNode("n", None, "user", "i", text_hash("a")),
        ),
        (
            message("user", TextPart("a"), origin=MessageOrigin("queued_work", "b")),
            FinalNode("n", None, "user", None, text_hash("a")),
        ),
        (
            message("assistant", ToolCallPart("f", id="c"), ToolCallPart("g")),
            FinalNode("n", None, "assistant", None, text_hash(""), ("c", None)),
        ),
        (
            message("tool", ToolCallResponsePart(raw_json(1), "c")),
            FinalNode("n", None, "tool", None, text_hash(""), (), ("c",)),
        ),
    ],
    ids=["a user", "an input", "no input", "calls", "a result"],
)
def test_a_node_is_read_for_what_a_check_needs(node: SessionNodeRecord, expected: FinalNode) -> None:
    """Who speaks, which input it was, its text, its calls and results."""
    assert final_node(node) == expected
