"""What SQLite itself can say about a database: its pages and keys, and whether its schema is the one we made.

It promises findings, never an error for a fault that it found. It knows that there is a schema, and no table of it.
"""

from __future__ import annotations

import apsw

from fastness.sql.migrations import migrations
from fastness.sql.program import Program, Read, Statement
from fastness.sql.schema import SQLITE_TYPES

SCHEMA = "select type, name, sql from sqlite_schema where name not like 'sqlite_%' and sql is not null"


def verification() -> Program[list[str]]:
    """Check pages, indexes, types and foreign keys, and compare the schema with a fresh one."""
    pages, keys, schema = yield Read(
        Statement("pragma integrity_check"), Statement("pragma foreign_key_check"), Statement(SCHEMA)
    )
    findings = [text for (text,) in pages if text != "ok"]
    findings += [f"{table} row {rowid} refers to a missing row of {parent}" for table, rowid, parent, _ in keys]
    return findings + schema_findings({(kind, name): sql for kind, name, sql in schema}, fresh_schema())


def fresh_schema() -> dict[tuple[str, str], str]:
    """Give the schema of a database that was made just now: (type, name) to the statement that makes it."""
    connection = apsw.Connection(":memory:")
    try:
        for step in migrations(SQLITE_TYPES):
            for statement in step.statements:
                connection.execute(statement)
        return {(kind, name): sql for kind, name, sql in connection.execute(SCHEMA)}
    finally:
        connection.close()


def schema_findings(found: dict[tuple[str, str], str], expected: dict[tuple[str, str], str]) -> list[str]:
    """Say which tables and indexes are missing or were changed by hand. What somebody added is none of our business."""
    findings = []
    for (kind, name), sql in expected.items():
        if (kind, name) not in found:
            findings.append(f"the {kind} {name} is missing")
        elif found[kind, name] != sql:
            findings.append(f"the {kind} {name} is not as it was made")
    return findings
