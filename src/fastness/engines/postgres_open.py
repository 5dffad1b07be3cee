"""Opening a PostgreSQL database: connecting, creating and migrating the schema, and looking at what is there.

It promises that any number of processes may start at once, that a database that is current is opened without writing,
that a newer or a changed one is refused by name, and that a session is set up so that an acknowledged commit is
durable. It knows migrations, and no program.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import psycopg
from psycopg import pq, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from fastness.engines.postgres_dialect import LOCK_NAME
from fastness.engines.postgres_faults import explain, unreachable
from fastness.errors import DatabaseOpenError, DatabaseReadOnlyError, InvalidInputError, StoreError
from fastness.sql.migrations import CREATE_LEDGER, LEDGER_TABLE, READ_LEDGER, RECORD, migrations, missing
from fastness.sql.schema import POSTGRES_TYPES, create_tables

_CONNECT_TIMEOUT_S = 10
_DEFAULTS: Mapping[str, str | int] = {
    # A peer that is gone without a word is noticed, and after a fail-over the server that can be written is found.
    "connect_timeout": _CONNECT_TIMEOUT_S,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
    "target_session_attrs": "read-write",
    "application_name": "fastness",
}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_MAX_FINDINGS = 3


class Place(NamedTuple):
    """Where a database is, without anything secret, and how to connect to it."""

    conninfo: str
    schema: str
    name: str


def place_of(conninfo: str, schema: str) -> Place:
    """Read a connection string. Raises ``InvalidInputError`` for one that libpq cannot read, or a strange schema."""
    if not isinstance(schema, str) or not _NAME.fullmatch(schema):
        raise InvalidInputError("schema", "must be a name of letters, digits and underscores, at most 63 of them")
    try:
        given = conninfo_to_dict(conninfo)
        full = make_conninfo("", **{**_DEFAULTS, **{name: value for name, value in given.items() if value is not None}})
    except (psycopg.Error, ValueError, TypeError, UnicodeError) as error:
        # What libpq says may repeat the string, and that may hold a password.
        reason = f"is no connection string that libpq reads ({type(error).__name__})"
        raise InvalidInputError("database", reason) from None
    host = given.get("host") or given.get("hostaddr") or "the local socket"
    user = given.get("user") or "the default user"
    return Place(full, schema, f"database {given.get('dbname') or user} on {host} as {user}")


def session_settings(schema: str, lock_timeout_ms: int, patience_ms: int) -> tuple[tuple[str, str], ...]:
    """What holds in every transaction of ours.

    Our statements look rows up by key, also in tables that the planner still takes for empty: hence no sequential
    scans. A holder of a lane's lock that stops talking is cut off by the server, so that it does not hold up others.
    """
    return (
        ("search_path", f'"{schema}"'),
        ("lock_timeout", str(lock_timeout_ms)),
        ("idle_in_transaction_session_timeout", str(patience_ms)),
        ("enable_seqscan", "off"),
        ("client_encoding", "UTF8"),
        ("synchronous_commit", "on"),
    )


async def connect(place: Place) -> psycopg.AsyncConnection[Any]:
    """Open a connection of one's own. Raises ``DatabaseOpenError`` or ``DatabaseReadOnlyError``, saying why."""
    try:
        return await psycopg.AsyncConnection.connect(place.conninfo, autocommit=True, prepare_threshold=None)
    except psycopg.Error as error:
        raise unreachable(said(error), place.name) from None


def said(error: BaseException) -> str:
    """What libpq said, in one line. It names hosts, roles and databases, and no password."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "; ".join(dict.fromkeys(lines)) or type(error).__name__


async def is_direct(connection: psycopg.AsyncConnection[Any]) -> bool:
    """Whether one server process is at the other end for good.

    A pooler hands out a process for each transaction, and cannot know the number of the one that will serve us.
    """
    row = await _one(connection, "select pg_backend_pid()")
    return bool(row[0] == connection.pgconn.backend_pid)


async def set_up(connection: psycopg.AsyncConnection[Any], settings: Iterable[tuple[str, str]]) -> bool:
    """Set a connection of our own up for its whole life; False behind a pooler, where nothing stays set."""
    if not await is_direct(connection):
        return False
    for name, value in settings:
        await _one(connection, "select set_config($1, $2, false)", name, value)
    return True


async def bring_up_to_date(connection: psycopg.AsyncConnection[Any], place: Place) -> None:
    """Look first, and write only what is lacking: a current database is opened without a lock or a right to create."""
    try:
        await _require_primary(connection, place)
        if missing(await _applied(connection, place.schema), migrations(POSTGRES_TYPES)):
            await _migrate(connection, place.schema)
        findings = await drift(connection, place.schema)
    except psycopg.Error as error:
        raise translated(error, place) from None
    if findings:
        more = len(findings) - _MAX_FINDINGS
        told = ", ".join(findings[:_MAX_FINDINGS]) + (f", and {more} more" if more > 0 else "")
        raise DatabaseOpenError(
            f"schema {place.schema!r} of {place.name} does not have the tables that this release made in it ({told})",
            "undo the change or restore a backup; nothing was changed now",
        )


def translated(error: psycopg.Error, place: Place) -> StoreError:
    """Give the typed error for what psycopg raised outside of a program."""
    result = error.pgresult
    if result is None:
        return unreachable(said(error), place.name)
    from fastness.engines.postgres_wire import Refused  # noqa: PLC0415

    return explain(Refused(result, 0, 1), place.schema)


async def _require_primary(connection: psycopg.AsyncConnection[Any], place: Place) -> None:
    row = await _one(connection, "select pg_is_in_recovery() or current_setting('transaction_read_only') = 'on'")
    if row[0]:
        raise DatabaseReadOnlyError(
            f"{place.name} cannot be written", "name the primary server: a replica cannot keep sessions"
        )


async def _applied(connection: psycopg.AsyncConnection[Any], schema: str) -> list[int]:
    ledger = f'"{schema}".{LEDGER_TABLE}'
    row = await _one(connection, "select to_regclass($1) is not null", ledger)
    if not row[0]:
        return []
    return [version for (version,) in await _rows(connection, READ_LEDGER.replace(LEDGER_TABLE, ledger))]


async def _migrate(connection: psycopg.AsyncConnection[Any], schema: str) -> None:
    """Take the lock, look again (another process may have been faster), and run what is still missing."""
    async with connection.transaction():
        await _one(connection, "select set_config('search_path', $1, true)", f'"{schema}"')
        await _rows(connection, LOCK_NAME.replace("current_schema() || '.' || ", ""), f"fastness.{schema}")
        for statement in await _lacking(connection, schema):
            await connection.execute(sql.SQL(statement))


async def _lacking(connection: psycopg.AsyncConnection[Any], schema: str) -> list[str]:
    steps = missing(await _applied(connection, schema), migrations(POSTGRES_TYPES))
    there = await _one(connection, "select to_regnamespace($1) is not null", f'"{schema}"')
    statements = [] if there[0] else [f'create schema "{schema}"']
    return statements + [statement for step in steps for statement in step_statements(step)]


def step_statements(step: Any) -> list[str]:
    """Give a migration with the record that it ran, as statements without parameters."""
    record = RECORD.replace("$1", str(step.version)).replace("$2", "'" + step.name.replace("'", "''") + "'")
    return [CREATE_LEDGER, *step.statements, record]


_TABLE = re.compile(r"create table (?:if not exists )?(\w+) \((.*)\)", re.DOTALL)
_COLUMN = re.compile(r"^    (\w+) (bigint|text|bytea|integer)\b", re.MULTILINE)
_INDEX = re.compile(r"create (?:unique )?index (\w+) on (\w+)")


class Expected(NamedTuple):
    """What a schema of ours consists of: (table, column) to type, and index to table."""

    columns: dict[tuple[str, str], str]
    indexes: dict[str, str]


def expected_schema() -> Expected:
    """Read it off the statements that make it."""
    columns: dict[tuple[str, str], str] = {}
    indexes: dict[str, str] = {}
    for ddl in create_tables(POSTGRES_TYPES):
        if table := _TABLE.search(ddl):
            columns.update({(table.group(1), name): kind for name, kind in _COLUMN.findall(table.group(2))})
        elif index := _INDEX.search(ddl):
            indexes[index.group(1)] = index.group(2)
    return Expected(columns, indexes)


_COLUMNS = """
    select c.relname, a.attname, format_type(a.atttypid, null) from pg_class c
    join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    where c.relnamespace = to_regnamespace($1) and c.relkind in ('r', 'p')"""
_INDEXES = """
    select c.relname, i.indisvalid from pg_class c join pg_index i on i.indexrelid = c.oid
    where c.relnamespace = to_regnamespace($1)"""


async def drift(connection: psycopg.AsyncConnection[Any], schema: str) -> list[str]:
    """Say which tables and columns are missing or of another type. What somebody added is none of our business."""
    found = {(table, column): kind for table, column, kind in await _rows(connection, _COLUMNS, f'"{schema}"')}
    return column_findings(found, expected_schema().columns)


def column_findings(found: Mapping[tuple[str, str], str], expected: Mapping[tuple[str, str], str]) -> list[str]:
    """Compare columns with how they were made."""
    tables = {table for table, _ in found}
    findings = [
        f"the table {table} is missing"
        for table in dict.fromkeys(table for table, _ in expected)
        if table not in tables
    ]
    for (table, column), kind in expected.items():
        if table in tables and (table, column) not in found:
            findings.append(f"the table {table} has no column {column}")
        elif table in tables and found[table, column] != kind:
            findings.append(f"the column {column} of {table} is {found[table, column]} and not {kind}")
    return findings


async def schema_findings(connection: psycopg.AsyncConnection[Any], schema: str) -> list[str]:
    """Compare the whole schema, its indexes included, with how it was made."""
    findings = await drift(connection, schema)
    indexes = dict(await _rows(connection, _INDEXES, f'"{schema}"'))
    for name in expected_schema().indexes:
        if name not in indexes:
            findings.append(f"the index {name} is missing")
        elif not indexes[name]:
            findings.append(f"the index {name} is invalid: rebuild it with reindex")
    return findings


async def _rows(connection: psycopg.AsyncConnection[Any], statement: str, *params: object) -> list[tuple[Any, ...]]:
    async with psycopg.AsyncRawCursor(connection) as cursor:
        await cursor.execute(statement, params)
        return await cursor.fetchall() if cursor.pgresult and cursor.pgresult.status == pq.ExecStatus.TUPLES_OK else []


async def _one(connection: psycopg.AsyncConnection[Any], statement: str, *params: object) -> tuple[Any, ...]:
    return (await _rows(connection, statement, *params))[0]
