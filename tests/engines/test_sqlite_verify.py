"""What ``verify`` finds in a file, and that it is quiet about a sound one."""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest

from fastness.engines.sqlite import SqliteEngine
from fastness.engines.sqlite_verify import fresh_schema, schema_findings


async def made(path: Path) -> None:
    """Make a database."""
    engine = SqliteEngine(path)
    await engine.start()
    await engine.close()


def by_hand(path: Path, sql: str) -> None:
    """Do what somebody does with another tool."""
    connection = apsw.Connection(str(path))
    connection.execute(sql)
    connection.close()


@pytest.mark.parametrize(
    ("sql", "findings"),
    [
        ("select 1", []),
        ("create table mine (x)", []),
        ("drop index node_by_id", ["the index node_by_id is missing"]),
        ("alter table head add column extra text", ["the table head is not as it was made"]),
    ],
)
async def test_a_schema_that_was_changed_by_hand_is_found(tmp_path: Path, sql: str, findings: list[str]) -> None:
    """Verification names what is missing from our schema or was altered; what was added is left alone."""
    path = tmp_path / "a.db"
    await made(path)
    by_hand(path, sql)
    engine = SqliteEngine(path)
    assert await engine.verify() == findings
    await engine.close()


def test_the_fresh_schema_differs_from_nothing_but_itself() -> None:
    """A schema has no findings against itself, and one for each thing against an empty one."""
    fresh = fresh_schema()
    assert schema_findings(fresh, fresh) == []
    assert len(schema_findings({}, fresh)) == len(fresh) > 20
