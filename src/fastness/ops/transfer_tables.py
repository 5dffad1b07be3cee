"""What is moved with a session: its tables, their columns and keys, and the statements that read and write them.

All of it is worked out from the schema, so that a column or table that is added there is moved without a word here.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from fastness.sql.program import Row
from fastness.sql.schema import SESSION_TABLES, SQLITE_TYPES, create_tables

_TABLE = re.compile(r"\s*create table (\w+) \((.*)\)[^()]*", re.DOTALL | re.IGNORECASE)
_UNIQUE = re.compile(r"\s*create unique index \w+ on (\w+) \(([^()]*)\)\s*", re.IGNORECASE)
_PRIMARY = re.compile(r"primary key \(([^()]*)\)", re.IGNORECASE)
_BETWEEN_COLUMNS = re.compile(r",(?![^(]*\))")
_CONSTRAINTS = frozenset({"primary", "unique", "check", "foreign", "constraint"})
_SID = "sid"


class Table(NamedTuple):
    """A table with its columns, the surrogate key of the session left out.

    ``key`` names a row among those of its session: pages follow it. It is empty where a session has one row.
    """

    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    of_session: bool

    @property
    def first_page(self) -> str:
        """Read from the beginning: the session's key where it has one, then how many rows."""
        where, limit = (f" where {_SID} = $1", 2) if self.of_session else ("", 1)
        return f"select {', '.join(self.columns)} from {self.name}{where}{self._order} limit ${limit}"

    @property
    def next_page(self) -> str:
        """Read on: the session's key where it has one, the key of the last row, then how many rows."""
        before = int(self.of_session)
        where = f"{_SID} = $1 and " if self.of_session else ""
        behind = ", ".join(f"${before + at}" for at in range(1, len(self.key) + 1))
        limit = before + len(self.key) + 1
        return (
            f"select {', '.join(self.columns)} from {self.name}"
            f" where {where}({', '.join(self.key)}) > ({behind}){self._order} limit ${limit}"
        )

    @property
    def insert(self) -> str:
        """Add a row: the session's key where it has one, then the columns."""
        columns = (_SID, *self.columns) if self.of_session else self.columns
        values = ", ".join(f"${at}" for at in range(1, len(columns) + 1))
        return f"insert into {self.name} ({', '.join(columns)}) values ({values})"

    @property
    def _order(self) -> str:
        return f" order by {', '.join(self.key)}" if self.key else ""

    def key_of(self, row: Row) -> Row:
        """Give the key of a row."""
        return tuple(row[self.columns.index(column)] for column in self.key)


def _tables() -> dict[str, Table]:
    statements = create_tables(SQLITE_TYPES)  # the names are the same in every dialect
    made = [found for ddl in statements if (found := _TABLE.fullmatch(ddl))]
    keys = {found[1]: _names(found[2]) for ddl in reversed(statements) if (found := _UNIQUE.fullmatch(ddl))}
    return {found[1]: _table(found[1], found[2], keys.get(found[1], ())) for found in made}


def _table(name: str, body: str, unique: tuple[str, ...]) -> Table:
    words = [part.split()[0] for part in _BETWEEN_COLUMNS.split(body)]
    columns = tuple(word for word in words if word.lower() not in _CONSTRAINTS)
    primary = _PRIMARY.search(body)
    key = _names(primary[1]) if primary else unique
    return Table(name, _without_sid(columns), _without_sid(key), name in SESSION_TABLES)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _without_sid(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if name != _SID)


TABLES = _tables()
"""Every table of the schema, by name."""

MOVED = tuple(TABLES[name] for name in SESSION_TABLES)
"""What belongs to a session and goes where it goes."""
