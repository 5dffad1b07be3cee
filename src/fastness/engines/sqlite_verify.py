"""What SQLite itself can say about a database: its pages and keys, and whether its schema is the one we made.

It promises findings, never an error for a fault that it found. It knows that there is a schema, and no table of it.
"""

from __future__ import annotations

import functools
import json

import apsw

from fastness.sql.migrations import migrations
from fastness.sql.program import Program, Read, Statement
from fastness.sql.schema import SQLITE_TYPES

SCHEMA = "select type, name, sql from sqlite_schema where name not like 'sqlite_%' and sql is not null"

COLUMNS = """select t.name, c.name from sqlite_schema t join pragma_table_info(t.name) c
where t.type = 'table' and t.name in (select value from json_each(?1))"""


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
    connection = _fresh_database()
    try:
        return {(kind, name): sql for kind, name, sql in connection.execute(SCHEMA)}
    finally:
        connection.close()


@functools.cache
def fresh_columns() -> dict[str, frozenset[str]]:
    """Give the columns of each table of ours; not to be changed, for it is worked out once."""
    connection = _fresh_database()
    try:
        tables = [name for kind, name, _ in connection.execute(SCHEMA) if kind == "table"]
        return _by_table(list(connection.execute(COLUMNS, (json.dumps(tables),))))
    finally:
        connection.close()


def _fresh_database() -> apsw.Connection:
    connection = apsw.Connection(":memory:")
    for step in migrations(SQLITE_TYPES):
        for statement in step.statements:
            connection.execute(statement)
    return connection


def _by_table(rows: list[tuple[str, str]]) -> dict[str, frozenset[str]]:
    tables: dict[str, set[str]] = {}
    for table, column in rows:
        tables.setdefault(table, set()).add(column)
    return {table: frozenset(columns) for table, columns in tables.items()}


def column_findings(cursor: apsw.Cursor) -> list[str]:
    """Say which tables and columns a database lacks, without which statements of ours would be refused.

    Far cheaper than a verification, and without a lock that anybody waits for. Columns, tables and indexes that
    somebody added are no finding, nor is an index that is gone: programs work all the same.
    """
    expected = fresh_columns()
    found = _by_table(list(cursor.execute(COLUMNS, (json.dumps(list(expected)),))))
    findings = []
    for table, columns in expected.items():
        if table not in found:
            findings.append(f"the table {table} is missing")
        else:
            findings += [f"the table {table} has no column {name}" for name in sorted(columns - found[table])]
    return findings


def schema_findings(found: dict[tuple[str, str], str], expected: dict[tuple[str, str], str]) -> list[str]:
    """Say which tables and indexes are missing or were changed by hand. What somebody added is none of our business."""
    findings = []
    for (kind, name), sql in expected.items():
        if (kind, name) not in found:
            findings.append(f"the {kind} {name} is missing")
        elif found[kind, name] != sql:
            findings.append(f"the {kind} {name} is not as it was made")
    return findings
