"""What a recorded conversation means as turns, without a store."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from fastness.errors import InvalidInputError
from fastness.formats.records import ConversationRecord, Frame
from fastness.formats.values import Place
from fastness.model import NextTurn, PluginPayload, TokenUsage
from fastness.model.turn_input import StructuredItem, TextItem
from fastness.replay import Replay, plan_replay

SYSTEM = {"role": "system", "content": "Be kind."}
HELLO = {"role": "user", "content": "Hello"}
MORE = {"role": "user", "content": [{"type": "text", "text": "And?"}]}
REPLY = {"role": "assistant", "content": "Hi."}
TOOL = {"role": "tool", "tool_call_id": "c", "content": "1"}


def plan(*messages: Any, rest: str = "{}", index: int = 0) -> Replay:
    """Plan a conversation of these messages."""
    raw = tuple(msgspec.Raw(json.dumps(message).encode()) for message in messages)
    frame = Frame("messages", 0, msgspec.Raw(rest.encode()))
    return plan_replay(ConversationRecord(index, Place(1, 0), frame, raw), "s")


def roles(replay: Replay) -> list[list[str]]:
    """The roles of the messages of each turn; the record's own node is ``record``."""
    return [
        [node.record.message.role if node.record.message else "record" for node in turn.nodes] for turn in replay.turns
    ]


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([], [["record"]]),
        ([SYSTEM], [["system", "record"]]),
        ([REPLY, TOOL], [["assistant", "tool", "record"]]),
        ([HELLO], [["user", "record"]]),
        ([SYSTEM, HELLO, REPLY], [["system", "user", "assistant", "record"]]),
        ([REPLY, HELLO, REPLY], [["assistant", "user", "assistant", "record"]]),
        ([HELLO, MORE, REPLY, HELLO], [["user", "user", "assistant"], ["user", "record"]]),
        ([HELLO, REPLY, TOOL, REPLY, HELLO], [["user", "assistant", "tool", "assistant"], ["user", "record"]]),
        ([HELLO, SYSTEM, HELLO], [["user", "system"], ["user", "record"]]),
    ],
)
def test_a_turn_is_what_the_user_says_and_all_that_follows(messages: list[Any], expected: list[list[str]]) -> None:
    """User messages in a row begin a turn; what precedes the first belongs to it; the record ends the branch."""
    assert roles(plan(*messages)) == expected


def test_every_user_message_is_one_input_named_by_its_node() -> None:
    """Input is keyed by its node, so that a run that follows a crash finds what was enqueued."""
    first, second = plan(HELLO, MORE, REPLY, HELLO).turns
    assert [draft.source_key for draft in first.inputs] == [node.record.node_id for node in first.nodes[:2]]
    assert [draft.input.items for draft in first.inputs] == [
        (TextItem("Hello"),),
        (StructuredItem("openai.chat", msgspec.Raw(json.dumps(MORE).replace(", ", ",").replace(": ", ":").encode())),),
    ]
    assert [draft.ingress for draft in first.inputs] == [NextTurn(), NextTurn()]
    assert len(second.inputs) == 1
    message = first.nodes[0].record.message
    assert message is not None
    assert message.origin is not None
    assert (message.origin.kind, message.origin.ref) == ("turn_input", first.nodes[0].record.node_id)


def test_nodes_are_named_by_what_they_say_and_by_all_before_them() -> None:
    """Equal beginnings have equal nodes; behind a difference nothing is shared, not even equal messages."""
    one, other = plan(SYSTEM, HELLO, REPLY, HELLO).node_ids, plan(SYSTEM, HELLO, HELLO, HELLO).node_ids
    assert one[:2] == other[:2]
    assert set(one[2:]).isdisjoint(other[2:])
    assert one == plan(SYSTEM, HELLO, REPLY, HELLO).node_ids
    # The rule is for ever: with another one, a second import would add everything again.
    assert one[0] == "e629d2a9f18ab0ac4413c65521732e9c"


def test_the_record_of_a_branch_is_kept_whole() -> None:
    """The last node holds which record it was, the key of its messages and everything else, byte for byte."""
    node = plan(HELLO, rest='{"reward":1.50}', index=7).turns[-1].nodes[-1].record
    assert isinstance(node.payload, PluginPayload)
    assert node.payload.plugin_type == "fastness.import"
    assert bytes(node.payload.body) == b'{"index":7,"frame":{"key":"messages","rest":{"reward":1.50}}}'


def test_equal_conversations_of_two_records_share_all_but_the_record() -> None:
    """A conversation that stands in a file twice is two branches that part at the very end."""
    one, other = plan(HELLO, REPLY, index=0), plan(HELLO, REPLY, index=1)
    assert one.node_ids[:-1] == other.node_ids[:-1]
    assert one.turns[-1].turn_id != other.turns[-1].turn_id


USAGE = {"prompt_tokens": 10, "completion_tokens": 3, "completion_tokens_details": {"reasoning_tokens": 1}}


def test_usage_is_counted_where_it_is_recorded() -> None:
    """Usage beside messages counts for their turns and adds up along the branch; odd counters count as zero."""
    odd = {"prompt_tokens": -1, "completion_tokens": "3", "prompt_tokens_details": {"cached_tokens": 2}}
    first, second = plan(
        HELLO,
        {**REPLY, "model": "m1", "usage": USAGE},
        HELLO,
        {**REPLY, "usage": odd},
        rest=json.dumps({"usage": USAGE}),
    ).turns
    assert [node.usage for node in first.nodes] == [
        None,
        ("m1", TokenUsage(input_tokens=10, output_tokens=3, reasoning_output_tokens=1)),
    ]
    assert [node.usage for node in second.nodes] == [None, ("", TokenUsage(cache_read_tokens=2)), None]
    assert first.usage == TokenUsage(input_tokens=10, output_tokens=3, reasoning_output_tokens=1)
    assert second.usage == TokenUsage(10, 3, 2, 0, 1)


def test_usage_of_a_whole_record_counts_with_its_end() -> None:
    """A record that counts only as a whole is charged to its last turn."""
    replay = plan(HELLO, REPLY, rest=json.dumps({"model": "m1", "usage": USAGE}))
    assert replay.model == "m1"
    assert replay.turns[-1].nodes[-1].usage == ("m1", TokenUsage(10, 3, 0, 0, 1))


def test_a_message_that_is_none_is_named() -> None:
    """The error says which message of which record is wrong."""
    with pytest.raises(InvalidInputError, match=r"^record 1 \(line 1, byte 0\), message 2 is not a JSON object$"):
        plan(HELLO, "Hi.")
