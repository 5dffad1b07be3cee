"""Rows to values: reading stored records, and saying clearly what is wrong with one that cannot be read."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any, TypeVar
from zlib import crc32

import msgspec

from fastness.decide.packing import unpacked
from fastness.decide.stored_node import BODY_PREFIX, StoredNode, node_crc, node_of
from fastness.errors import DatabaseDamagedError, GraphInvalidError
from fastness.model.base import Record, check_version, decode_record, decoder_of, list_decoder_of, sha256_hex
from fastness.model.transcript import SessionNodeRecord
from fastness.sql.program import Row

R = TypeVar("R", bound=Record)

_AT_ONCE = 250
"""How many nodes are decoded as one array: few enough that their bodies are still in the caches."""

_decode_nodes = list_decoder_of(StoredNode).decode

NODE_COLUMNS = "n.crc, n.node_id, n.seq, coalesce(n.parent_seq, 0)"
NODE_ROW = f"utf8(n.body), {NODE_COLUMNS}"
"""What ``stored_nodes`` reads of a node ``n``. No node has the place 0."""


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


K = TypeVar("K", int, tuple[Any, ...])


def page_end(after: K, last: K) -> K:
    """Give the key that a page ended with, and behind which the next one begins.

    Raises ``DatabaseDamagedError`` where it did not come behind the page before: whoever followed a damaged index would
    go round in circles.
    """
    try:
        moved_on = after < last
    except TypeError:  # a key of a type that was never written
        moved_on = False
    if not moved_on:
        raise DatabaseDamagedError(
            "rows that are read by their key come in another order", "run 'check', restore from a backup"
        )
    return last


def stored_nodes(session_id: str, rows: list[Row], ids: dict[int, str] | None = None) -> list[SessionNodeRecord]:
    """Read nodes from rows that begin with ``NODE_ROW``, parents first.

    ``ids`` are those of their parents, by place, as far as they are not among the rows; what was read is added to it.
    Raises ``GraphInvalidError`` for a node that is damaged or whose parent is not there (law G3).
    """
    known: dict[int, str] = {} if ids is None else ids
    known[0] = ""
    nodes: list[SessionNodeRecord] = []
    for start in range(0, len(rows), _AT_ONCE):
        part = rows if len(rows) <= _AT_ONCE else rows[start : start + _AT_ONCE]
        nodes += _stored_slice(session_id, part, known)
    return nodes


def _stored_slice(session_id: str, rows: list[Row], known: dict[int, str]) -> list[SessionNodeRecord]:
    width = len(rows[0])
    columns = list(chain.from_iterable(rows))
    bodies, checksums, ids, seqs = (columns[at::width] for at in range(4))
    known.update(zip(seqs, ids, strict=True))
    parents: list[Any] = list(map(known.get, columns[4::width]))  # None is one that is not there
    try:
        places = map(crc32, map(str.encode, ids), seqs)
        if list(map(crc32, bodies, map(crc32, map(str.encode, parents), places))) == checksums:
            # A body that has its checksum is as it was written, its version included: one more look at that is for
            # the slow way, which tells what is wrong and with which node.
            return list(map(node_of, ids, parents, _decode_nodes(b"[%b]" % b",".join(bodies))))
    except (msgspec.DecodeError, UnicodeError, TypeError, OverflowError):
        pass  # also a column of a type that was never written
    raise _damage(session_id, rows, known)


def _damage(session_id: str, rows: list[Row], known: Mapping[int, str]) -> GraphInvalidError:
    """Find the first node that is damaged. Raises a ``RecordVersionError`` for one of another version."""
    advice = "restore it from a backup, 'check' lists what else is damaged"
    for row in rows:
        body, checksum, node_id, seq, parent_seq, *_ = row
        if readable_node(body, node_id, seq, parent_seq) is None:
            fault = "undecodable"
        elif not isinstance(known.get(parent_seq), str):
            detail = f"the parent of the stored node {node_id!r}, at place {parent_seq}, is not there; {advice}"
            return GraphInvalidError(session_id, "dangling_parent", node_id, detail)
        elif node_crc(node_id, seq, known[parent_seq], body) != checksum:
            fault = "checksum"
        else:
            continue
        name = node_id if isinstance(node_id, str) else None
        return GraphInvalidError(session_id, fault, name, f"the stored node {name!r} ({seq!r}) is damaged; {advice}")
    return GraphInvalidError(session_id, "undecodable", None, f"stored nodes are damaged; {advice}")


def readable_node(body: object, node_id: object, seq: object, parent_seq: object) -> StoredNode | None:
    """Read a node's body as ``stored_node`` does; None also where a column is of a type that was never written."""
    places = isinstance(seq, int) and isinstance(parent_seq, int)
    return stored_node(body) if isinstance(body, bytes) and isinstance(node_id, str) and places else None


def stored_node(body: bytes) -> StoredNode | None:
    """Read a node's body; None for one that is damaged. Raises a ``RecordVersionError`` for another version."""
    try:
        if not body.startswith(BODY_PREFIX):
            check_version(SessionNodeRecord, body)
        found = decoder_of(StoredNode).decode(body)
        node_of("", "", found)
    except (msgspec.DecodeError, UnicodeError):
        return None
    return found
