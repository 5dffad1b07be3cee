"""Numbered migrations, one mechanism for every engine.

A migration runs in one transaction with the record that it ran. An engine holds its write lock while it asks
``missing`` what to do, so that many processes may start at once against an empty database.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fastness.errors import DatabaseOpenError
from fastness.sql.schema import Types
from fastness.sql.schema import steps as schema_steps

LEDGER_TABLE = "fastness_migration"
CREATE_LEDGER = f"create table if not exists {LEDGER_TABLE} (version integer not null primary key, name text not null)"
READ_LEDGER = f"select version from {LEDGER_TABLE} order by version"


class Migration(NamedTuple):
    """One step of the schema, with the statements that make it."""

    version: int
    name: str
    statements: tuple[str, ...]


def migrations(types: Types) -> tuple[Migration, ...]:
    """Every step there is, oldest first."""
    return tuple(Migration(version, *step) for version, step in enumerate(schema_steps(types), 1))


def script(steps: Sequence[Migration]) -> tuple[str, ...]:
    """Give the statements that run steps, each with the record that it ran, for an engine or for a person to run."""
    if not steps:
        return ()
    statements = [CREATE_LEDGER]
    for step in steps:
        name = step.name.replace("'", "''")
        statements += [
            *step.statements,
            f"insert into {LEDGER_TABLE} (version, name) values ({step.version}, '{name}')",
        ]
    return tuple(statements)


def missing(applied: Sequence[int], known: Sequence[Migration]) -> tuple[Migration, ...]:
    """Give the steps that a database lacks. Raises ``DatabaseOpenError`` for one that a newer release has migrated."""
    newest = known[-1].version
    found = max(applied, default=0)
    if found > newest:
        raise DatabaseOpenError(
            f"the database has schema version {found}, this release of fastness knows versions up to {newest}",
            "upgrade fastness; nothing was changed",
        )
    return tuple(step for step in known if step.version not in applied)
