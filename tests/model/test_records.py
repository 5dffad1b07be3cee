"""Laws of records: what is stored reads back as itself, alone and in a list."""

from __future__ import annotations

import msgspec
import pytest

from fastness.errors import InvalidInputError
from fastness.model.base import checked, checked_bodies
from fastness.persistence import PluginPayload, SessionNodeRecord

NOW = "2026-01-01T00:00:00Z"


def noted(node_id: str, body: bytes = b"{}") -> SessionNodeRecord:
    """A node with foreign JSON."""
    return SessionNodeRecord(node_id, None, NOW, PluginPayload("note", msgspec.Raw(body)))


def test_several_records_are_encoded_as_one_by_one() -> None:
    """The cheap way gives what the careful way gives."""
    nodes = [noted("a", b"[1e2,1e2]"), noted("b", b'{"k":1,"k":2}'), noted("c", b'"\\u0000"')]
    assert checked_bodies(SessionNodeRecord, nodes) == [checked(SessionNodeRecord, node)[1] for node in nodes]
    assert checked_bodies(SessionNodeRecord, []) == []


SMUGGLED = (
    b'1}},{"v":1,"node_id":"evil","parent_node_id":null,"timestamp":"t",'
    b'"payload":{"type":"plugin","plugin_type":"x","body":2'
)


@pytest.mark.parametrize("bad", [SMUGGLED, b"", b"{", b'"', b"1 ", b"\xff", b'1,"x":2', b"1}"])
def test_foreign_json_cannot_break_out_of_its_record(bad: bytes) -> None:
    """Alone, or among others, at any place: what is not exactly one value is refused."""
    for nodes in ([noted("a", bad)], [noted("a", bad), noted("b")], [noted("a"), noted("b", bad)]):
        with pytest.raises(InvalidInputError):
            checked_bodies(SessionNodeRecord, nodes)
