"""Rows to values: reading stored records, and saying clearly what is wrong with one that cannot be read."""

from __future__ import annotations

from itertools import chain
from typing import TypeVar
from zlib import crc32

import msgspec

from fastness.decide.packing import unpacked
from fastness.errors import DatabaseDamagedError, GraphInvalidError
from fastness.model.base import Record, decode_record, list_decoder_of, sha256_hex
from fastness.model.transcript import SessionNodeRecord
from fastness.sql.program import Row

R = TypeVar("R", bound=Record)

_AT_ONCE = 250
"""How many nodes are decoded as one array: few enough that their bodies are still in the caches."""

_decode_nodes = list_decoder_of(SessionNodeRecord).decode


def body_crc(body: str) -> int:
    """Give the CRC-32 of a stored text. It finds what changed by accident; it is no proof against intent."""
    return crc32(body.encode())


def stored(kind: type[R], body: str | bytes, name: str = "") -> R:
    """Read a record from its column. Raises a ``RecordVersionError``, or ``DatabaseDamagedError``."""
    try:
        return decode_record(kind, body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DatabaseDamagedError(
            f"a stored {kind.__name__} {name}".rstrip() + f" is damaged: {error}",
            "restore it from a backup; 'check' lists what else is damaged",
        ) from None


def stored_content(ref: str, body: bytes | None) -> bytes | None:
    """Give the content of a stored blob; None where it is missing or is not what its name says."""
    content = None if body is None else unpacked(bytes(body))
    return content if content is not None and sha256_hex(content) == ref else None


def stored_nodes(session_id: str, rows: list[Row]) -> list[SessionNodeRecord]:
    """Read nodes from rows that begin with body, as bytes, and checksum. ``GraphInvalidError`` if damaged (law G3)."""
    nodes: list[SessionNodeRecord] = []
    for start in range(0, len(rows), _AT_ONCE):
        nodes += _stored_slice(session_id, rows if len(rows) <= _AT_ONCE else rows[start : start + _AT_ONCE])
    return nodes


def _stored_slice(session_id: str, rows: list[Row]) -> list[SessionNodeRecord]:
    width = len(rows[0])
    columns = list(chain.from_iterable(rows))
    bodies = columns[::width]
    if list(map(crc32, bodies)) == columns[1::width]:
        try:
            # A body that has its checksum is as it was written, its version included: one more look at that is for
            # the slow way, which tells what is wrong and with which node.
            return _decode_nodes(b"[%b]" % b",".join(bodies))
        except (msgspec.DecodeError, UnicodeError):
            pass
    raise _damage(session_id, rows)


def _damage(session_id: str, rows: list[Row]) -> GraphInvalidError:
    """Find the first node that is damaged. Raises a ``RecordVersionError`` for one of another version."""
    after: str | None = None
    fault = "checksum"
    for body, checksum, *_ in rows:
        try:
            node = decode_record(SessionNodeRecord, body)
        except (msgspec.DecodeError, UnicodeError):
            fault = "undecodable"
            break
        if crc32(body) != checksum:
            break
        after = node.node_id
    detail = f"a stored node (the one after {after!r}) is damaged; restore it from a backup, 'check' lists what else is"
    return GraphInvalidError(session_id, fault, after, detail)
