"""What PostgreSQL's refusals mean to a caller: which may be tried again, and one typed error for each of the others.

It promises that messages carry what the server said in its primary line, which names tables and roles and no values,
and never a password. It knows no connection and no transaction.
"""

from __future__ import annotations

import re

from fastness.engines.postgres_wire import Refused
from fastness.errors import (
    BackendError,
    DatabaseDamagedError,
    DatabaseFullError,
    DatabaseOpenError,
    DatabaseReadOnlyError,
    StoreError,
)

SERIALIZATION_FAILURE = "40001"
DEADLOCK = "40P01"
LOCK_TIMEOUT = "55P03"
REFERENCE_GONE = "23503"
STALE_STATEMENT = frozenset({"26000", "42P05", "0A000"})
"""What a statement that was prepared comes to where somebody discarded or replaced it, or its plan's rows changed."""

TRANSIENT = frozenset({SERIALIZATION_FAILURE, DEADLOCK, LOCK_TIMEOUT, REFERENCE_GONE}) | STALE_STATEMENT
"""The same program may succeed when it is run anew.

A missing reference is among them: a collection took a blob between the moment that a commit found it there and the
moment that it was to be held; the next try writes it again.
"""

READ_ONLY = "25006"
STARTING = frozenset({"57P01", "57P02", "57P03", "57P05", "53300", "25P03", "25P04"})
"""The server is going away, coming up, has no room for a connection or cut us off: another connection may do."""

_SCHEMA = frozenset({"3F000", "42P01", "42703", "42883", "42P10", "42804", "23502"})
_RIGHTS = frozenset({"42501", "28000", "28P01"})
_FULL = frozenset({"53100", "53200", "54000"})


def ends_connection(refused: Refused) -> bool:
    """Whether a refusal is about the connection and not about the program."""
    return refused.ends_connection or refused.sqlstate in STARTING or refused.sqlstate == READ_ONLY


def explain(refused: Refused, schema: str) -> StoreError:
    """Give the typed error for a refusal that no retry mends."""
    said = f"PostgreSQL says: {refused} (SQLSTATE {refused.sqlstate})"
    state = refused.sqlstate
    if state in _SCHEMA:
        said = f"the tables in schema {schema!r} are not as this release made them; {said}"
    if state == "42501" and "for database" in str(refused):
        return DatabaseOpenError(said, f"grant this role create on the database, or have its owner make {schema!r}")
    for states, kind, remedy in _KINDS:
        if state in states:
            return kind(said, remedy)
    if state.startswith("XX"):
        return DatabaseDamagedError(said, "look into the server's log, and restore the database from a backup")
    return BackendError(said)


_KINDS: tuple[tuple[frozenset[str], type[BackendError], str], ...] = (
    (
        frozenset({READ_ONLY}),
        DatabaseReadOnlyError,
        "name the primary server: a replica or a read-only database cannot keep sessions",
    ),
    (
        _RIGHTS,
        DatabaseOpenError,
        "grant this role usage of the schema, and select, insert, update and delete on its tables",
    ),
    (
        _SCHEMA,
        DatabaseOpenError,
        "run 'fastness check' to see what was changed, and undo it or restore a backup",
    ),
    (_FULL, DatabaseFullError, "make room on the server, then retry the same call"),
    (
        frozenset({"57014"}),
        BackendError,
        "retry the same call; raise statement_timeout if that stopped it",
    ),
)

_PASSING = re.compile(r"starting up|shutting down|not yet accepting|recovery mode", re.IGNORECASE)
_PLACES = (
    (_PASSING, "wait until the server is up, then retry"),
    (re.compile(r"the pool .* (not open|closed)"), "open the pool before it is handed in, and close it last"),
    (re.compile(r"couldn't get a connection after"), "give the pool more connections or more time"),
    (
        re.compile(r"password authentication failed|no password supplied|SCRAM", re.IGNORECASE),
        "check user and password",
    ),
    (re.compile(r"could not translate host name|Name or service not known", re.IGNORECASE), "check the host's name"),
    (re.compile(r"database .* does not exist", re.IGNORECASE), "create the database, or name one that is there"),
    (re.compile(r"role .* does not exist", re.IGNORECASE), "create the role, or name one that is there"),
    (
        re.compile(r"too many (clients|connections)|remaining connection slots", re.IGNORECASE),
        "lower pool_size, put a pooler in front, or raise max_connections",
    ),
    (
        re.compile(r"read-only|in recovery|standby|hot standby", re.IGNORECASE),
        "name the primary server: a replica cannot keep sessions",
    ),
    (re.compile(r"no pg_hba.conf entry|not permitted to log in", re.IGNORECASE), "let this role in on the server"),
    (re.compile(r"unsupported startup parameter", re.IGNORECASE), "have the pooler ignore that parameter"),
    (re.compile(r"SSL|certificate", re.IGNORECASE), "check sslmode and the certificates"),
    (
        re.compile(r"refused|No such file|timeout|timed out|closed the connection", re.IGNORECASE),
        "check host and port, and start the server",
    ),
)


def is_passing(message: str) -> bool:
    """Whether a server that did not let us in says itself that it will before long."""
    return _PASSING.search(message) is not None


def unreachable(message: str, place: str) -> StoreError:
    """Give the error for a server that did not let us in. libpq tells why in words alone."""
    remedy = next((remedy for words, remedy in _PLACES if words.search(message)), "check the url and the server's log")
    if remedy.startswith("name the primary"):
        return DatabaseReadOnlyError(f"{place} cannot be written ({message})", remedy)
    return DatabaseOpenError(f"{place} cannot be opened ({message})", remedy)
