"""Moving a session to another database: what its lane becomes, and when two copies are the same.

Pure: rows in, rows and digests out. Which tables and columns there are is told from outside.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

COPY_ADVANCE = 1
"""How far a copy moves the fencing token: the token of whoever held the lane is behind it from then on (law L3)."""

RESTORE_ADVANCE = 1_000_000_000
"""How far a restore moves the fencing token.

The database may have granted many more leases after the backup was taken, and the tokens that are granted after the
restore must be greater than all of those. At a grant a millisecond this is eleven days of work on one session, and nine
thousand million restores fit below the largest number of 63 bits.
"""

_FREE = {
    "owner_id": None,
    "incarnation_id": None,
    "liveness": None,
    "lease_token": None,
    "claimed_ms": 0,
    "expires_ms": 0,
    "backoff_ms": 0,
    "interrupt": None,
}
_READY = "ready_ms"
_TOKEN = "fencing_token"  # noqa: S105 - the name of a column
_MODULUS = 1 << 256

Row = Sequence[Any]


def free_lane(columns: Sequence[str], row: Row, advance: int) -> tuple[Any, ...]:
    """Give a lane's row with nobody in it and its fencing token moved on, to be looked at soon if anything waits there.

    All other columns stay as they are.
    """
    lane = dict(zip(columns, row, strict=True))
    lane |= _FREE | {_TOKEN: lane[_TOKEN] + advance, _READY: None if lane[_READY] is None else 0}
    return tuple(lane[column] for column in columns)


def lane_identity(columns: Sequence[str], row: Row) -> tuple[Any, ...]:
    """Give what of a lane counts when copies are compared: all but who holds it and the fencing token."""
    ignored = {*_FREE, _TOKEN, _READY}
    return tuple(value for column, value in zip(columns, row, strict=True) if column not in ignored)


class SessionDigest:
    """The sha256 of a session's rows, which may come in any order, some at a time.

    Databases sort text in different ways, so rows must not count by their place: each table has the number of its rows
    and the sum of their hashes. That finds what changed by accident; it is no proof against intent.
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[int, int]] = {}

    def add(self, table: str, rows: Iterable[Row]) -> None:
        """Take in rows of a table, without their surrogate key. Values are texts, integers, bytes or None."""
        count, total = self._sums.get(table, (0, 0))
        for row in rows:
            count += 1
            total += int.from_bytes(hashlib.sha256(msgspec.msgpack.encode(tuple(row))).digest(), "big")
        self._sums[table] = (count, total % _MODULUS)

    def hexdigest(self) -> str:
        """Give the digest of all that was taken in. A table without rows is like one that is not there."""
        found = hashlib.sha256()
        for table, (count, total) in sorted(self._sums.items()):
            if count:
                found.update(msgspec.msgpack.encode((table, count, total.to_bytes(32, "big"))))
        return found.hexdigest()
