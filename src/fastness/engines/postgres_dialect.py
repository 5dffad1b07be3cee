"""The dialect of PostgreSQL: shared statements in its words, and several of them made into one.

It promises texts that depend on the shape of what is asked and never on values, so that a server prepares each of them
once. It is pure, and knows no connection and no table.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

from fastness.sql.program import Expected, Item, LockNames, Many, Param, Statement

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


def commands(items: Iterable[Item], clock: str) -> list[Command]:
    """Give the commands of a batch in order."""
    found: list[Command] = []
    for item in items:
        if isinstance(item, Many):
            found += _many(translate(item.sql, clock), item.rows)
        elif isinstance(item, LockNames):
            found += [Command(LOCK_NAME, (name,)) for name in item.names]
        else:
            found.append(Command(translate(item.sql, clock), item.params, isinstance(item, Statement)))
    return found


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


def fused(items: Iterable[Item], clock: str, *, gives_rows: bool = False) -> list[Command]:
    """Give writes that do not depend on each other as one statement: what it costs the server to begin one is saved.

    Too many of them are left as they are: such a text would not be seen again. The text is found by what makes it: by
    the statements and their numbers of rows and parameters. ``gives_rows``: the last one's are asked for.
    """
    shape: list[str | int | bool] = [clock, gives_rows]
    params: list[Value] = []
    for item in items:
        if type(item) is Statement:
            shape += item.sql, 0, len(item.params)
            params += item.params
        elif type(item) is Many and item.rows:
            shape += item.sql, len(item.rows), len(item.rows[0])
            for row in item.rows:
                params += row
    text = _fused(tuple(shape)) if len(shape) <= _MOST_FUSED * 3 else None
    return commands(items, clock) if text is None else [Command(text, tuple(params), gives_rows)]


@functools.lru_cache(maxsize=1024)
def _fused(shape: tuple[Any, ...]) -> str | None:
    parts: list[str] = []
    by = 0
    for sql, rows, width in zip(shape[2::3], shape[3::3], shape[4::3], strict=True):
        text, times, step = translate(sql, shape[0]), max(rows, 1), width
        if rows > _ROWS_AT_ONCE[0]:
            return None
        if rows > 1 and _is_insert(text):
            text, times, step = _block(text, rows, width), 1, rows * width
        for _ in range(times):
            parts.append(_shifted(text, by))
            by += step
    if not 1 < len(parts) <= _MOST_FUSED:
        return None
    last = parts.pop() if shape[1] else "select"
    return f"with {', '.join(f'w{at} as ({part})' for at, part in enumerate(parts))} {last}"


def requirement(items: Iterable[Item], expect: Iterable[Expected], clock: str) -> Command:
    """Give the statement that refuses the transaction unless the facts are the expected ones, in whatever order."""
    shape: list[str | int] = [clock]
    params: list[Value] = []
    expected = iter(expect)
    for item in items:
        if type(item) is not Statement:
            continue
        rows, implied = next(expected)
        if implied:
            continue
        shape += item.sql, len(item.params), len(rows), len(rows[0]) if rows else 0
        params += item.params
        for row in rows:
            params += row
    return Command(_requirement(tuple(shape)), tuple(params))


@functools.lru_cache(maxsize=1024)
def _requirement(shape: tuple[Any, ...]) -> str:
    parts, by = [], 0
    for sql, taken, count, columns in zip(shape[1::4], shape[2::4], shape[3::4], shape[4::4], strict=True):
        facts = _shifted(translate(sql, shape[0]), by)
        by += taken
        if not count:
            parts.append(f"not exists ({facts})")
            continue
        names = ", ".join(f"c{at}" for at in range(columns))
        rows = [", ".join(f"${by + row * columns + at + 1}" for at in range(columns)) for row in range(count)]
        by += count * columns
        if count == 1:
            # No row is null, and several are an error: both refuse, and one row is compared without counting.
            parts.append(f"(select row({names}) is not distinct from row({rows[0]}) from ({facts}) facts ({names}))")
            continue
        # A row of one column is not a row constructor by itself.
        tests = [f"count(*) filter (where row({names}) is not distinct from row({row})) = 1" for row in rows]
        parts.append(f"(select count(*) = {count} and {' and '.join(tests)} from ({facts}) facts ({names}))")
    return f"select fastness_require({' and '.join(parts) or 'true'})"
