"""Nodes come out of their stored rows as they went in, and a row that changed comes out as damage."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fastness.decide.commit_input import prepare
from fastness.decide.stored_node import node_body, node_crc
from fastness.errors import (
    GraphInvalidError,
    InvalidInputError,
    RecordVersionInvalidError,
    RecordVersionMissingError,
    RecordVersionUnsupportedError,
)
from fastness.model.transcript import EventPayload
from fastness.persistence import (
    Append,
    Message,
    PluginPayload,
    Protocol,
    ProtocolEvent,
    RuntimeCommit,
    SessionNodeRecord,
    TextPart,
    ToolCallPart,
    message_node,
    raw_json,
)
from fastness.sql.program import Row
from fastness.sql.records import stored_node, stored_nodes

NOW = "2026-05-01T12:00:00.000Z"
ids = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
texts = st.text(st.characters(codec="utf-8"), max_size=40)
foreign = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
).map(raw_json)
parts = st.builds(TextPart, texts) | st.builds(ToolCallPart, texts, foreign, st.none() | texts)
messages = st.builds(Message, ids, st.sampled_from(["user", "assistant"]), st.lists(parts, max_size=3).map(tuple))
payloads = st.one_of(
    st.builds(lambda event: EventPayload(Protocol(event)), st.builds(ProtocolEvent, ids, foreign)),
    st.builds(PluginPayload, ids, foreign),
)


@st.composite
def graphs(draw: st.DrawFn) -> list[tuple[SessionNodeRecord, int]]:
    """Nodes, parents first, each with the place of its parent; places are counted from 1, and 0 is none."""
    names = draw(st.lists(ids, min_size=1, max_size=6, unique=True))
    made: list[tuple[SessionNodeRecord, int]] = []
    for at, name in enumerate(names):
        parent = draw(st.integers(0, at))
        above = names[parent - 1] if parent else None
        caused, frame = draw(st.none() | ids), draw(st.none() | ids)
        if draw(st.booleans()):
            node = message_node(name, above, NOW, draw(messages), caused_by=caused, agent_frame_id=frame)
        else:
            node = SessionNodeRecord(name, above, NOW, draw(payloads), caused, frame)
        made.append((node, parent))
    return made


def row(node: SessionNodeRecord, seq: int, parent: int) -> Row:
    """The row of a node as it is read."""
    body = node_body(node).encode()
    return body, node_crc(node.node_id, seq, node.parent_node_id or "", body), node.node_id, seq, parent


def rows_of(graph: list[tuple[SessionNodeRecord, int]]) -> list[Row]:
    """The rows of all nodes, in their order."""
    return [row(node, seq, parent) for seq, (node, parent) in enumerate(graph, 1)]


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(graphs())
def test_nodes_come_out_as_they_went_in(graph: list[tuple[SessionNodeRecord, int]]) -> None:
    """Of every kind, also what a commit lets pass, with the ids of their parents."""
    nodes = tuple(node for node, _ in graph)
    given_ = prepare(RuntimeCommit("s", None, None, graph=Append(nodes, nodes[-1].node_id)), 1 << 20)
    assert given_.node_bodies == [node_body(node) for node in nodes]
    assert stored_nodes("s", rows_of(graph)) == list(nodes)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(graphs(), st.data())
def test_what_changed_in_a_row_is_damage(graph: list[tuple[SessionNodeRecord, int]], data: st.DataObject) -> None:
    """Another id, place or parent, one bit of the body, a column of another type: never another conversation (G3)."""
    rows = rows_of(graph)
    at = data.draw(st.integers(0, len(rows) - 1))
    body, crc, node_id, seq, parent = rows[at]
    match data.draw(st.sampled_from(["id", "place", "places", "parent", "body", "crc", "type"])):
        case "id":
            rows[at] = (body, crc, data.draw(ids.filter(lambda other: other != node_id)), seq, parent)
        case "place":
            rows[at] = (body, crc, node_id, data.draw(st.integers(-9, 9).filter(lambda other: other != seq)), parent)
        case "places":
            assume(len(rows) > 1)
            other = data.draw(st.integers(0, len(rows) - 1).filter(lambda place: place != at))
            rows[at], rows[other] = (*rows[at][:3], other + 1, parent), (*rows[other][:3], at + 1, rows[other][4])
        case "type":
            column = data.draw(st.sampled_from([0, 2, 3, 4]))
            strange = data.draw(st.sampled_from([None, "x", b"x", 1.5]).filter(lambda value: value != rows[at][column]))
            rows[at] = (*rows[at][:column], strange, *rows[at][column + 1 :])
        case "parent":
            rows[at] = (body, crc, node_id, seq, data.draw(st.integers(0, 9).filter(lambda other: other != parent)))
        case "body":
            bit = data.draw(st.integers(0, 8 * len(body) - 1))
            changed = bytearray(body)
            changed[bit // 8] ^= 1 << bit % 8
            rows[at] = (bytes(changed), crc, node_id, seq, parent)
        case _:
            rows[at] = (body, crc ^ 1, node_id, seq, parent)
    with pytest.raises((GraphInvalidError, RecordVersionMissingError, RecordVersionUnsupportedError)):
        stored_nodes("s", rows)


def test_a_parent_that_is_not_there_is_damage() -> None:
    """It is neither among the rows nor known."""
    node = message_node("b", "a", NOW, Message("m", "user", ()))
    with pytest.raises(GraphInvalidError, match="the parent of the stored node 'b', at place 1, is not there") as told:
        stored_nodes("s", [row(node, 2, 1)])
    assert told.value.node_id == "b"
    assert stored_nodes("s", [row(node, 2, 1)], {1: "a"}) == [node]
    with pytest.raises(GraphInvalidError, match=r"the stored node 'b' \(2\) is damaged"):
        stored_nodes("s", [row(node, 2, 1)], {1: "another"})


def test_the_node_that_is_damaged_is_named() -> None:
    """And none of the sound ones before and behind it."""
    above = {"a": None, "b": "a", "c": "b", "d": "c"}
    nodes = [message_node(name, parent, NOW, Message("m", "user", ())) for name, parent in above.items()]
    rows = [row(node, seq, seq - 1) for seq, node in enumerate(nodes, 1)]
    body, crc, *rest = rows[2]
    with pytest.raises(GraphInvalidError) as told:
        stored_nodes("s", [*rows[:2], (body, crc + 1, *rest), rows[3]])
    assert (told.value.node_id, told.value.fault) == ("c", "checksum")
    with pytest.raises(RecordVersionUnsupportedError):
        stored_nodes("s", [*rows[:2], (b"[2" + body[2:], crc, *rest), rows[3]])


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b'[2,"x"]', RecordVersionUnsupportedError),
        (b'["1"]', RecordVersionInvalidError),
        (b"[0]", RecordVersionInvalidError),
        (b"[true]", RecordVersionInvalidError),
        (b"[]", RecordVersionMissingError),
    ],
)
def test_a_body_of_another_version_is_refused_by_number(body: bytes, error: type[Exception]) -> None:
    """Whatever else it holds (law M4)."""
    with pytest.raises(error):
        stored_node(body)


@pytest.mark.parametrize("body", [b"[1]", b'[1,"x",null]', b'[1,"x",null,null,null,null]', b'[1,"x",{}]', b'{"v":1}'])
def test_a_body_that_says_too_little_is_damaged(body: bytes) -> None:
    """A node has a time, and a message or a payload."""
    assert stored_node(body) is None


def test_an_ordinary_message_is_stored_without_what_its_columns_hold() -> None:
    """Version, time, message; what caused it and its frame only where there are any."""
    message = Message("m", "user", (TextPart("hello"),))
    said = '{"id":"m","role":"user","parts":[{"type":"text","content":"hello"}]}'
    plain = message_node("b", "a", NOW, message)
    framed = message_node("b", "a", NOW, message, agent_frame_id="f")
    plugin = SessionNodeRecord("b", "a", NOW, PluginPayload("p", raw_json([1])), "c")
    assert node_body(plain) == f'[1,"{NOW}",{said}]'
    assert node_body(framed) == f'[1,"{NOW}",{said},null,"f"]'
    assert node_body(plugin) == f'[1,"{NOW}",null,"c",null,{{"type":"plugin","plugin_type":"p","body":[1]}}]'


def test_the_ids_of_nodes_count_for_the_budget() -> None:
    """As their messages do: all of it is stored."""
    nodes = [message_node(f"{at:0512}", None, NOW, Message("m", "user", ())) for at in range(20)]
    given_ = RuntimeCommit("s", None, None, graph=Append(tuple(nodes), nodes[-1].node_id))
    with pytest.raises(InvalidInputError, match="over the configured budget of 10000"):
        prepare(given_, 10_000)
    assert len(prepare(given_, 20_000).nodes) == 20


@pytest.mark.parametrize("ends_early", [b'1],["x"', b'1,"x":2', b"1]", b" 1", b"1 "])
def test_foreign_json_that_is_not_one_value_does_not_reach_a_body(ends_early: bytes) -> None:
    """It could end the array that it stands in, or read back as something else."""
    message = Message("m", "assistant", (ToolCallPart("t", type(raw_json(1))(ends_early), "c"),))
    node = message_node("a", None, NOW, message)
    with pytest.raises(InvalidInputError):
        prepare(RuntimeCommit("s", None, None, graph=Append((node,), "a")), 1 << 20)
