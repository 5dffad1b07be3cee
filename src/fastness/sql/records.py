"""Rows to values: reading stored records, and saying clearly what is wrong with one that cannot be read."""

from __future__ import annotations

import zlib
from typing import TypeVar

import msgspec

from fastness.errors import DatabaseDamagedError, GraphInvalidError
from fastness.model.base import Record, decode_record, decoder_of, has_current_version
from fastness.model.transcript import SessionNodeRecord
from fastness.sql.program import Row

R = TypeVar("R", bound=Record)

_decode_node = decoder_of(SessionNodeRecord).decode


def body_crc(body: str) -> int:
    """Give the CRC-32 of a stored text. It finds what changed by accident; it is no proof against intent."""
    return zlib.crc32(body.encode())


def stored(kind: type[R], body: str | bytes, name: str = "") -> R:
    """Read a record from its column. Raises a ``RecordVersionError``, or ``DatabaseDamagedError``."""
    try:
        return decode_record(kind, body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DatabaseDamagedError(
            f"a stored {kind.__name__} {name}".rstrip() + f" is damaged: {error}",
            "restore it from a backup; 'check' lists what else is damaged",
        ) from None


def stored_nodes(session_id: str, rows: list[Row]) -> list[SessionNodeRecord]:
    """Read nodes from rows of body and checksum. A damaged one is a ``GraphInvalidError`` (law G3)."""
    nodes: list[SessionNodeRecord] = []
    fault = "undecodable"
    try:
        for body, crc in rows:
            if not has_current_version(body):
                decode_record(SessionNodeRecord, body)
            node = _decode_node(body)
            if zlib.crc32(body.encode()) != crc:
                fault = "checksum"
                break
            nodes.append(node)
        else:
            return nodes
    except (msgspec.DecodeError, UnicodeError):
        pass  # told below, with the node before it
    after = nodes[-1].node_id if nodes else None
    detail = f"a stored node (the one after {after!r}) is damaged; restore it from a backup, 'check' lists what else is"
    raise GraphInvalidError(session_id, fault, after, detail)
