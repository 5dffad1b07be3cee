"""Rows to values: reading stored records, and saying clearly what is wrong with one that cannot be read."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from fastness.errors import DatabaseDamagedError, GraphInvalidError, StoreError
from fastness.model.base import Record, decode_record, decoder_of, has_current_version
from fastness.model.transcript import SessionNodeRecord

R = TypeVar("R", bound=Record)

_decode_node = decoder_of(SessionNodeRecord).decode


def stored(kind: type[R], body: str | bytes) -> R:
    """Read a record from its column. Raises a ``RecordVersionError``, or ``BackendError`` where it is damaged."""
    try:
        return decode_record(kind, body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DatabaseDamagedError(
            f"a stored {kind.__name__} is damaged: {error}",
            "restore it from a backup; 'check' lists what else is damaged",
        ) from None


def stored_nodes(session_id: str, bodies: list[str]) -> list[SessionNodeRecord]:
    """Read nodes. A damaged one is a ``GraphInvalidError``, never a shorter conversation (law G3)."""
    nodes: list[SessionNodeRecord] = []
    try:
        for body in bodies:
            if not has_current_version(body):
                nodes.append(decode_record(SessionNodeRecord, body))
            else:
                nodes.append(_decode_node(body))
    except StoreError:
        raise
    except (msgspec.DecodeError, UnicodeError) as error:
        after = nodes[-1].node_id if nodes else None
        detail = f"a stored node (the one after {after!r}) cannot be read: {error}; restore it from a backup"
        raise GraphInvalidError(session_id, "undecodable", after, detail) from None
    return nodes
