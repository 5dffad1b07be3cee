"""Laws of records: what is stored reads back as itself, alone and in a list."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastness.decide.limits import check_id, check_optional_id
from fastness.errors import InvalidInputError
from fastness.model.base import MAX_ID_BYTES, MAX_TIMESTAMP_BYTES, checked, checked_bodies
from fastness.persistence import Message, PluginPayload, SessionNodeRecord, TextPart, message_node

NOW = "2026-01-01T00:00:00Z"


def look(node: SessionNodeRecord) -> None:
    """Look at the ids of a node one by one."""
    check_id("node_id", node.node_id)
    check_id("timestamp", node.timestamp)
    for optional in (node.parent_node_id, node.caused_by, node.agent_frame_id):
        check_optional_id("id", optional)
    if node.message is not None:
        check_id("message.id", node.message.id)
    if len(node.timestamp) > MAX_TIMESTAMP_BYTES:
        raise InvalidInputError("timestamp", "is too long")


def noted(node_id: str, body: bytes = b"{}") -> SessionNodeRecord:
    """A node with foreign JSON."""
    return SessionNodeRecord(node_id, None, NOW, PluginPayload("note", msgspec.Raw(body)))


def test_several_records_are_encoded_as_one_by_one() -> None:
    """The cheap way gives what the careful way gives."""
    nodes = [noted("a", b"[1e2,1e2]"), noted("b", b'{"k":1,"k":2}'), noted("c", b'"\\u0000"')]
    one_by_one = [checked(SessionNodeRecord, node)[1] for node in nodes]
    assert checked_bodies(SessionNodeRecord, nodes, look) == one_by_one
    assert checked_bodies(SessionNodeRecord, [], look) == []


SMUGGLED = (
    b'1}},{"v":1,"node_id":"evil","parent_node_id":null,"timestamp":"t",'
    b'"payload":{"type":"plugin","plugin_type":"x","body":2'
)


@pytest.mark.parametrize("bad", [SMUGGLED, b"", b"{", b'"', b"1 ", b"\xff", b'1,"x":2', b"1}"])
def test_foreign_json_cannot_break_out_of_its_record(bad: bytes) -> None:
    """Alone, or among others, at any place: what is not exactly one value is refused."""
    for nodes in ([noted("a", bad)], [noted("a", bad), noted("b")], [noted("a"), noted("b", bad)]):
        with pytest.raises(InvalidInputError):
            checked_bodies(SessionNodeRecord, nodes, look)


IDS = st.one_of(
    st.sampled_from(["a", "", "a\0b", "\0", "\\u0000", "é", "\ud800", "é" * 256, "é" * 257]),
    st.sampled_from(["a" * MAX_ID_BYTES, "a" * (MAX_ID_BYTES + 1), "a" * 64, "a" * 65]),
    st.text(max_size=4),
)


@given(IDS, st.none() | IDS, IDS, IDS, st.none() | IDS)
def test_the_quick_look_finds_what_the_careful_one_finds(
    node_id: str, parent: str | None, timestamp: str, message_id: str, frame: str | None
) -> None:
    """A record passes exactly if each of its ids does, whatever the rest of it is."""
    node = message_node(
        node_id,
        parent,
        timestamp,
        Message(message_id, "user", (TextPart("text"),)),
        caused_by=frame,
        agent_frame_id=frame,
    )

    def passes(check: Callable[[], object]) -> bool:
        try:
            check()
        except InvalidInputError:
            return False
        return True

    quick = passes(lambda: checked_bodies(SessionNodeRecord, [noted("first"), node], look))
    assert quick == passes(lambda: look(node))


class Named(StrEnum):
    """A text that is a member of an enumeration."""

    A = "a"


@pytest.mark.parametrize("bad", [b"abc", UUID(int=5), Named.A, datetime(2026, 1, 1, tzinfo=UTC)])
@pytest.mark.parametrize("field", ["node_id", "parent_node_id", "timestamp", "caused_by", "agent_frame_id"])
def test_an_id_that_only_becomes_a_text_in_json_is_none(field: str, bad: object) -> None:
    """It would be bound to a statement as what it is, and be another one there than in its body."""
    node = msgspec.structs.replace(noted("n"), **{field: bad})
    with pytest.raises(InvalidInputError, match="must be text"):
        checked_bodies(SessionNodeRecord, [noted("first"), node], look)
