"""The limit of a load: rows that were read become nodes, and nothing is checked.

A row is the node's id, the place of its parent (0 for none) and its body. Places are counted from 1 without a gap, as
they are in a session that nothing was taken from.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import msgspec

from fastness.decide.stored_node import StoredNode
from fastness.model.transcript import Conversation, EventPayload
from fastness.persistence import SessionNodeRecord

Row: TypeAlias = "tuple[str, int, str | bytes]"

_one_by_one = msgspec.json.Decoder(StoredNode).decode
_all_at_once = msgspec.json.Decoder(list[StoredNode]).decode


def one_by_one(rows: list[Row]) -> list[SessionNodeRecord]:
    """Decode each body by itself."""
    return _nodes(rows, (_one_by_one(body) for _, _, body in rows))


def as_one_array(rows: list[Row]) -> list[SessionNodeRecord]:
    """Decode the bodies, which are bytes, as one array."""
    return _nodes(rows, _all_at_once(b"[%b]" % b",".join([body for _, _, body in rows])))  # type: ignore[misc]


def _nodes(rows: list[Row], bodies: Iterable[StoredNode]) -> list[SessionNodeRecord]:
    ids = [None, *(node_id for node_id, _, _ in rows)]
    nodes = []
    for (node_id, parent, _), body in zip(rows, bodies, strict=True):
        assert body.message is not None
        payload = EventPayload(Conversation(body.message))
        nodes.append(SessionNodeRecord(node_id, ids[parent], body.timestamp, payload))
    return nodes
