"""How a node is stored: what the columns of its row hold is not said again in its body. Pure.

A body is a JSON array: the record's version, the timestamp, the message, and where there is more to say what caused the
node, its frame, and the payload that is no message. The id, the place and the parent's place are columns. The checksum
covers the node's id and place and its parent's id as well, so that a byte that changed on disk is an error and not
another conversation (law G3).
"""

from __future__ import annotations

from typing import Any
from zlib import crc32

import msgspec

from fastness.model.base import RECORD_VERSION, Id, Timestamp, Value, encode
from fastness.model.transcript import Conversation, EventPayload, Message, NodePayload, SessionNodeRecord


class StoredNode(Value, frozen=True, array_like=True, tag=RECORD_VERSION):
    """A body as it is read back. A node has a message, or a payload of another kind."""

    timestamp: Timestamp
    message: Message | None
    caused_by: Id | None = None
    agent_frame_id: Id | None = None
    payload: NodePayload | None = None


BODY_PREFIX = b"[%d," % RECORD_VERSION
"""What a body begins with that this release can read."""


def node_body(node: SessionNodeRecord) -> str:
    """Give the body of a node that was checked. What is not said at its end is not there."""
    message = node.message
    said: tuple[Any, ...] = (RECORD_VERSION, node.timestamp, message)
    if message is None:
        said = (*said, node.caused_by, node.agent_frame_id, node.payload)
    elif node.caused_by is not None or node.agent_frame_id is not None:
        said = (*said, node.caused_by, node.agent_frame_id)
    return encode(said).decode()


def node_of(node_id: str, parent_node_id: str, found: StoredNode) -> SessionNodeRecord:
    """Make the node of what was stored. The id of no parent is empty."""
    message = found.message
    payload = found.payload if message is None else EventPayload(Conversation(message))
    if payload is None:  # the schema cannot say that one of the two has to be there
        raise msgspec.ValidationError("neither a message nor a payload")
    return SessionNodeRecord(
        node_id, parent_node_id or None, found.timestamp, payload, found.caused_by, found.agent_frame_id
    )


def node_crc(node_id: str, seq: int, parent_node_id: str, body: bytes) -> int:
    """Give the checksum of a node. It finds what changed by accident; it is no proof against intent.

    The id of the parent is in it and not its place: whatever leads to another parent is found, in the child's row, in
    the parent's, or in an index.
    """
    return crc32(body, crc32(parent_node_id.encode(), crc32(node_id.encode(), seq)))
