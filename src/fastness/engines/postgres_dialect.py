"""The dialect of PostgreSQL: shared statements in its words, and several of them made into one.

It promises texts that depend on the shape of what is asked and never on values, so that a server prepares each of them
once. It is pure, and knows no connection and no table.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

from fastness.sql.program import Expected, Item, Lock, LockNames, Many, Param, Statement

SERVER_CLOCK = "(extract(epoch from clock_timestamp()) * 1000)::bigint"
GIVEN_CLOCK = "current_setting('fastness.now_ms')::bigint"
"""The time as a setting of the transaction: the seam for tests that move the clock."""

LOCK_NAME = "select pg_advisory_xact_lock(hashtextextended(current_schema() || '.' || $1, 0))"

Value: TypeAlias = "Param | bool"

_PARAMETER = re.compile(r"\$(\d+)")
_NOW = re.compile(r"\bnow_ms\(\)", re.IGNORECASE)
_ANY_OF = re.compile(r"\bin\s+any_of\(\s*\$(\d+)\s*\)", re.IGNORECASE)
_UTF8 = re.compile(r"\butf8\(\s*([\w.]+)\s*\)", re.IGNORECASE)
_VALUES = re.compile(r"\bvalues\s*(\(\s*\$1[^()]*\))", re.IGNORECASE)

_ROWS_AT_ONCE = (64, 16, 4, 1)
_MOST_FUSED = 24


class Command(NamedTuple):
    """One statement for the server, and whether its rows are asked for."""

    sql: str
    params: tuple[Value, ...]
    gives_rows: bool = False


@functools.lru_cache(maxsize=4096)
def translate(sql: str, clock: str) -> str:
    """Give a shared statement in the words of PostgreSQL. Locks for update are its own already."""
    text = _NOW.sub(clock, sql)
    text = _ANY_OF.sub(r"= any(array(select json_array_elements_text($\1::json)))", text)
    return _UTF8.sub(r"convert_to(\1, 'UTF8')", text)


def commands(items: Sequence[Item], clock: str) -> Iterator[Command]:
    """Give the commands of a batch in order."""
    for item in items:
        if isinstance(item, Many):
            yield from _many(translate(item.sql, clock), item.rows)
        elif isinstance(item, LockNames):
            for name in item.names:
                yield Command(LOCK_NAME, (name,))
        else:
            yield Command(translate(item.sql, clock), item.params, isinstance(item, Statement))


def _many(sql: str, rows: Sequence[tuple[Param, ...]]) -> Iterator[Command]:
    """Insert many rows with few statements: in blocks of fixed sizes, so that there are few texts to prepare."""
    if len(rows) == 1 or not _is_insert(sql):
        for row in rows:
            yield Command(sql, row)
        return
    at = 0
    for size in _ROWS_AT_ONCE:
        while len(rows) - at >= size:
            block = rows[at : at + size]
            yield Command(_block(sql, size, len(block[0])), tuple(value for row in block for value in row))
            at += size


@functools.lru_cache(maxsize=1024)
def _is_insert(sql: str) -> bool:
    return _VALUES.search(sql) is not None


@functools.lru_cache(maxsize=1024)
def _block(sql: str, size: int, width: int) -> str:
    def rows(found: re.Match[str]) -> str:
        one = found.group(1)
        return "values " + ", ".join(_shifted(one, at * width) for at in range(size))

    return _VALUES.sub(rows, sql)


def _shifted(sql: str, by: int) -> str:
    return _PARAMETER.sub(lambda found: f"${int(found.group(1)) + by}", sql) if by else sql


def fused(items: Sequence[Command]) -> list[Command]:
    """Make writes that do not depend on each other into one statement: what it costs the server to begin one is saved.

    Too many of them are left as they are: such a text would not be seen again.
    """
    if not 1 < len(items) <= _MOST_FUSED:
        return list(items)
    text = _fused(tuple((item.sql, len(item.params)) for item in items))
    return [Command(text, tuple(value for item in items for value in item.params))]


@functools.lru_cache(maxsize=1024)
def _fused(parts: tuple[tuple[str, int], ...]) -> str:
    names, by = [], 0
    for at, (sql, width) in enumerate(parts):
        names.append(f"w{at} as ({_shifted(sql, by)})")
        by += width
    return f"with {', '.join(names)} select"


class _Shape(NamedTuple):
    sql: str
    params: int
    rows: int
    columns: int


def requirement(items: Sequence[Item], expect: Sequence[Expected], clock: str) -> Command:
    """Give the statement that refuses the transaction unless the facts are the expected ones, in whatever order."""
    shapes: list[_Shape] = []
    params: list[Value] = []
    statements = [item for item in items if not isinstance(item, Lock | LockNames | Many)]
    for item, (rows, implied) in zip(statements, expect, strict=True):
        if implied:
            continue
        shapes.append(_Shape(translate(item.sql, clock), len(item.params), len(rows), len(rows[0]) if rows else 0))
        params += item.params
        for row in rows:
            params += row
    return Command(_requirement(tuple(shapes)), tuple(params))


@functools.lru_cache(maxsize=1024)
def _requirement(shapes: tuple[_Shape, ...]) -> str:
    parts, by = [], 0
    for shape in shapes:
        facts = _shifted(shape.sql, by)
        by += shape.params
        if not shape.rows:
            parts.append(f"not exists ({facts})")
            continue
        names = ", ".join(f"c{at}" for at in range(shape.columns))
        if shape.rows == 1:
            # No row is null, and several are an error: both refuse, and one row is compared without counting.
            values = ", ".join(f"${by + at + 1}" for at in range(shape.columns))
            by += shape.columns
            parts.append(f"(select row({names}) is not distinct from row({values}) from ({facts}) facts ({names}))")
            continue
        tests = [f"count(*) = {shape.rows}"]
        for _ in range(shape.rows):
            values = ", ".join(f"${by + at + 1}" for at in range(shape.columns))
            by += shape.columns
            # A row of one column is not a row constructor by itself.
            tests.append(f"count(*) filter (where row({names}) is not distinct from row({values})) = 1")
        parts.append(f"(select {' and '.join(tests)} from ({facts}) facts ({names}))")
    return f"select fastness_require({' and '.join(parts) or 'true'})"
