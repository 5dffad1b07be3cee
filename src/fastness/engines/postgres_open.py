"""Opening a PostgreSQL database: connecting, creating and migrating the schema, and looking at what is there.

It promises that any number of processes may start at once, that a database that is current is opened without writing,
that a newer or a changed one is refused by name, and that a session is set up so that an acknowledged commit is
durable. It knows migrations, and no program.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import tuple_row
from psycopg_pool import AsyncConnectionPool

from fastness.engines.postgres_faults import explain, unreachable
from fastness.engines.postgres_wire import Refused
from fastness.errors import DatabaseOpenError, DatabaseReadOnlyError, InvalidInputError, StoreError
from fastness.sql.migrations import LEDGER_TABLE, READ_LEDGER, migrations, missing, script
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


@dataclass(frozen=True, slots=True)
class Place:
    """Where a database is, and how to connect to it. What is shown of it holds nothing secret."""

    conninfo: str = field(repr=False)
    schema: str
    name: str


def place_of(conninfo: str, schema: str, *, what: str = "database") -> Place:
    """Read a connection string. Raises ``InvalidInputError`` for one that libpq cannot read, or a strange schema.

    ``what`` is what the error calls the string.
    """
    if not isinstance(schema, str) or not _NAME.fullmatch(schema):
        raise InvalidInputError("schema", "must be a name of letters, digits and underscores, at most 63 of them")
    if schema.lower().startswith("pg_"):
        raise InvalidInputError("schema", "must not begin with pg_: PostgreSQL keeps such names for itself")
    if not isinstance(conninfo, str):
        raise InvalidInputError(what, "must be a url or a connection string")
    try:
        given = conninfo_to_dict(conninfo)
        if _is_cut_up(given):
            raise InvalidInputError(what, "is cut at the wrong place: percent-encode what is special in a password")
        full = make_conninfo("", **{**_DEFAULTS, **{name: value for name, value in given.items() if value is not None}})
    except (psycopg.Error, ValueError, TypeError, UnicodeError) as error:
        # What libpq says may repeat the string, and that may hold a password.
        reason = f"is no connection string that libpq reads ({type(error).__name__})"
        raise InvalidInputError(what, reason) from None
    host = given.get("host") or given.get("hostaddr") or "the local socket"
    user = given.get("user") or "the default user"
    return Place(full, schema, f"database {given.get('dbname') or user} on {host} as {user}")


async def place_of_pool(pool: AsyncConnectionPool[Any], schema: str) -> Place:
    """Read where a pool leads, whether its parts were given as text, as arguments, or by a function."""
    conninfo, arguments = await _given(pool.conninfo), await _given(pool.kwargs)
    keywords = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    known = {name: value for name, value in (arguments or {}).items() if name in keywords}
    try:
        return place_of(make_conninfo(conninfo or "", **known), schema, what="pool")
    except psycopg.Error as error:
        raise InvalidInputError("pool", f"has no connection string that libpq reads ({type(error).__name__})") from None


async def _given(value: Any) -> Any:
    if callable(value):
        value = value()
    return await value if inspect.isawaitable(value) else value


def _is_cut_up(given: Mapping[str, Any]) -> bool:
    """Whether a part of a password has ended up in what is shown, since it held a mark that means something."""
    hosts = str(given.get("host") or "").split(",")
    ports = str(given.get("port") or "").split(",")
    strange = "@" in str(given.get("dbname") or "") or any("@" in host[1:] for host in hosts)
    return strange or not all(not port or port.isdecimal() for port in ports)


def session_settings(schema: str, lock_timeout_ms: int, patience_ms: int) -> tuple[tuple[str, str], ...]:
    """What holds in every transaction of ours.

    Our statements look rows up by key, also in tables that the planner still takes for empty: hence no sequential
    scans. Nor any by bitmap, which pass over what is dead time and again, where a plain scan of an index marks it: a
    claim would pay for all that was settled since the last vacuum. A holder of a lane's lock that stops talking is cut
    off by the server, so that it does not hold up others.
    """
    return (
        ("search_path", f'"{schema}", pg_temp'),  # last, so that nothing temporary stands before ours
        ("lock_timeout", str(lock_timeout_ms)),
        ("idle_in_transaction_session_timeout", str(patience_ms)),
        ("enable_seqscan", "off"),
        ("enable_bitmapscan", "off"),
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


_OF_TRANSACTIONS = (("default_transaction_isolation", "read committed"), ("default_transaction_read_only", "off"))
"""What a transaction is that nobody began by a word, whatever the database or the role says."""


LONGEST_TRANSACTION_MS = 300_000
"""When a server ends a transaction that said no word of taking longer. It knows only here that its client, which had a
lock taken in the midst of a pipeline, stands still; no commit takes nearly as long."""


def bounds_transactions(connection: psycopg.AsyncConnection[Any]) -> bool:
    """Whether the server can be told how long a transaction may take."""
    return connection.info.server_version >= 170_000


async def set_up(connection: psycopg.AsyncConnection[Any], settings: Iterable[tuple[str, str]]) -> bool:
    """Set a connection of our own up for its whole life; False behind a pooler, where nothing stays set."""
    if not await is_direct(connection):
        return False
    bound = [("transaction_timeout", str(LONGEST_TRANSACTION_MS))] if bounds_transactions(connection) else []
    for name, value in (*settings, *_OF_TRANSACTIONS, *bound):
        await _one(connection, "select set_config($1, $2, false)", name, value)
    return True


async def bring_up_to_date(connection: psycopg.AsyncConnection[Any], place: Place, *, create: bool = True) -> None:
    """Look first, and write only what is lacking: a current database is opened without a lock or a right to create.

    Without ``create``, a schema that is not there is an error.
    """
    try:
        await _require_primary(connection, place)
        applied = await _applied(connection, place.schema)
        if not applied and not create:
            raise DatabaseOpenError(
                f"there are no sessions in schema {place.schema!r} of {place.name}",
                "name a database that has some, or import something first",
            )
        if missing(applied, migrations(POSTGRES_TYPES)):
            await _migrate(connection, place)
        else:
            await _refuse_drift(connection, place)
    except psycopg.Error as error:
        raise translated(error, place) from None


async def _refuse_drift(connection: psycopg.AsyncConnection[Any], place: Place) -> None:
    """Refuse a schema whose ledger is current and whose tables are not: statements on them would fail."""
    findings = await drift(connection, place.schema)
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
    return explain(Refused(result, 0, 1), place.schema)


async def _require_primary(connection: psycopg.AsyncConnection[Any], place: Place) -> None:
    row = await _one(connection, "select pg_is_in_recovery() or current_setting('transaction_read_only') = 'on'")
    if row[0]:
        raise DatabaseReadOnlyError(
            f"{place.name} cannot be written", "name the primary server: a replica cannot keep sessions"
        )


_HAS_TABLE = """
    select exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where n.nspname = $1 and c.relname = $2)"""


async def _applied(connection: psycopg.AsyncConnection[Any], schema: str) -> list[int]:
    ledger = f'"{schema}".{LEDGER_TABLE}'
    # By a query over the catalog: what a name stands for may be remembered from before the lock was waited for.
    row = await _one(connection, _HAS_TABLE, schema, LEDGER_TABLE)
    if not row[0]:
        return []
    return [version for (version,) in await _rows(connection, READ_LEDGER.replace(LEDGER_TABLE, ledger))]


async def _migrate(connection: psycopg.AsyncConnection[Any], place: Place) -> None:
    """Take the lock, look again (another process may have been faster), and run what is still missing."""
    schema = place.schema
    await connection.rollback()  # an application's connection may have begun by itself
    async with connection.transaction():
        # Whatever the default is here: what others did before the lock was granted has to be seen.
        await _rows(connection, "set transaction isolation level read committed read write")
        # Two locks of one kind: names of schemas and names in a schema cannot be the same.
        await _rows(connection, "select pg_advisory_xact_lock(hashtextextended($1, 0))", f"fastness schema {schema}")
        for statement in await _lacking(connection, schema):
            await _rows(connection, statement)
        # Before it counts: what was changed by hand stays as it was, for the build that can read it.
        await _refuse_drift(connection, place)


async def _lacking(connection: psycopg.AsyncConnection[Any], schema: str) -> list[str]:
    steps = missing(await _applied(connection, schema), migrations(POSTGRES_TYPES))
    if not steps:
        return []
    there = await _one(connection, "select exists (select from pg_namespace where nspname = $1)", schema)
    create = [] if there[0] else [f'create schema "{schema}"']
    return [*create, f'set local search_path to "{schema}"', *script(steps)]


async def migration_script(place: Place) -> list[str]:
    """Give the statements that a database lacks to be up to date, for a person to run. Changes nothing."""
    connection = await connect(place)
    try:
        statements = await _lacking(connection, place.schema)
    except psycopg.Error as error:
        raise translated(error, place) from None
    finally:
        await connection.close()
    return ["begin", *statements, "commit"] if statements else []


_TABLE = re.compile(r"create table (?:if not exists )?(\w+) \((.*)\)", re.DOTALL)
_COLUMN = re.compile(r"^    (\w+) (bigint|text|bytea|integer)\b", re.MULTILINE)
_INDEX = re.compile(r"create (unique )?index (\w+) on (\w+)")
_UNIQUE = re.compile(r"^    (\w+) .*\bunique\b", re.MULTILINE)
_FUNCTION = re.compile(r"create function (\w+)")


class Expected(NamedTuple):
    """What a schema of ours consists of: (table, column) to type, index to whether it is unique, and functions."""

    columns: dict[tuple[str, str], str]
    indexes: dict[str, bool]
    functions: tuple[str, ...]


def expected_schema() -> Expected:
    """Read it off the statements that make it."""
    columns: dict[tuple[str, str], str] = {}
    indexes: dict[str, bool] = {}
    for ddl in create_tables(POSTGRES_TYPES):
        if table := _TABLE.search(ddl):
            name, body = table.groups()
            columns.update({(name, column): kind for column, kind in _COLUMN.findall(body)})
            # PostgreSQL names the indexes of constraints after table and column.
            indexes.update({f"{name}_{column}_key": True for column in _UNIQUE.findall(body)})
            if "primary key" in body:
                indexes[f"{name}_pkey"] = True
        elif index := _INDEX.search(ddl):
            indexes[index.group(2)] = index.group(1) is not None
    functions = tuple(name for ddl in POSTGRES_TYPES.functions for name in _FUNCTION.findall(ddl))
    return Expected(columns, indexes, functions)


_COLUMNS = """
    select c.relname, a.attname, format_type(a.atttypid, null) from pg_class c
    join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    where c.relnamespace = to_regnamespace($1) and c.relkind in ('r', 'p')"""
_INDEXES = """
    select c.relname, i.indisvalid, i.indisunique from pg_class c join pg_index i on i.indexrelid = c.oid
    where c.relnamespace = to_regnamespace($1)"""
_FUNCTIONS = "select proname from pg_proc where pronamespace = to_regnamespace($1)"


async def drift(connection: psycopg.AsyncConnection[Any], schema: str) -> list[str]:
    """Say which tables, columns and functions are missing or changed. What somebody added is none of our business."""
    found = {(table, column): kind for table, column, kind in await _rows(connection, _COLUMNS, f'"{schema}"')}
    functions = {name for (name,) in await _rows(connection, _FUNCTIONS, f'"{schema}"')}
    expected = expected_schema()
    gone = [f"the function {name} is missing" for name in expected.functions if name not in functions]
    return column_findings(found, expected.columns) + gone


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
    indexes = {name: state for name, *state in await _rows(connection, _INDEXES, f'"{schema}"')}
    for name, unique in expected_schema().indexes.items():
        is_valid, is_unique = indexes.get(name, (None, None))
        if is_valid is None:
            findings.append(f"the index {name} is missing")
        elif not is_valid:
            findings.append(f"the index {name} is invalid: rebuild it with reindex")
        elif unique and not is_unique:
            findings.append(f"the index {name} is not unique")
    return findings


async def _rows(connection: psycopg.AsyncConnection[Any], statement: str, *params: object) -> list[tuple[Any, ...]]:
    # An application's connections may give rows in a form of their own.
    async with psycopg.AsyncRawCursor(connection, row_factory=tuple_row) as cursor:
        await cursor.execute(statement, params)
        return await cursor.fetchall() if cursor.pgresult and cursor.pgresult.status == pq.ExecStatus.TUPLES_OK else []


async def _one(connection: psycopg.AsyncConnection[Any], statement: str, *params: object) -> tuple[Any, ...]:
    return (await _rows(connection, statement, *params))[0]
