"""Laws of the dialect: the shared words mean the same on SQLite."""

from __future__ import annotations

import pytest

from fastness.engines.sqlite import SqliteEngine
from fastness.engines.sqlite_run import translate
from fastness.sql.program import Lock, Many, Program, Read, Rows, Statement, Write
from tests.engines.programs import ADD, add, query


@pytest.mark.parametrize(
    ("shared", "ours"),
    [
        ("select $2, $1, $12", "select ?2, ?1, ?12"),
        ("select 1 from t where x in any_of($3)", "select 1 from t where x in (select value from json_each(?3))"),
        ("select 1 from t where a = $1 for update", "select 1 from t where a = ?1"),
        ("select 1 from t\n  FOR  UPDATE\n", "select 1 from t"),
        ("select 1 from wait_for updates", "select 1 from wait_for updates"),
        ("select now_ms()", "select now_ms()"),
    ],
)
def test_shared_words_are_translated(shared: str, ours: str) -> None:
    """``$n`` is bound by number, ``any_of`` looks into a JSON array, and rows need no lock of their own."""
    assert translate(shared) == ours


async def test_parameters_are_bound_by_number(any_engine: SqliteEngine) -> None:
    """``$2`` before ``$1`` still is the second parameter."""
    assert await any_engine.read(query("select $2, $1, $2", "a", "b")) == [("b", "a", "b")]


async def test_any_of_is_a_set_of_texts(any_engine: SqliteEngine) -> None:
    """``any_of`` finds what the JSON array names, however many, and nothing in an empty one."""
    await any_engine.write(add("a", "b", "c"))
    wanted = "select ref from blob where ref in any_of($1) order by ref for update"
    assert await any_engine.read(query(wanted, '["c", "a", "x"]')) == [("a",), ("c",)]
    assert await any_engine.read(query(wanted, "[]")) == []


async def test_each_statement_of_a_batch_has_its_rows(any_engine: SqliteEngine) -> None:
    """A read and a last write answer rows for each statement that is no lock; another write answers nothing."""
    seen: list[Rows] = []

    def program() -> Program[Rows]:
        seen.append((yield Write(Many(ADD, [("a", b"1"), ("b", b"2")]))))
        seen.append((yield Read(Lock("select 1"), Statement("select ref from blob order by ref"))))
        return (
            yield Write(
                Many(ADD, [("c", b"1")]),
                Many(ADD, []),
                Statement("update blob set body = $1 where ref = 'a' returning ref, body", (b"3",)),
                Statement("delete from blob where ref = 'none'"),
                last=True,
            )
        )

    assert await any_engine.write(program) == [[], [], [("a", b"3")], []]
    assert seen == [[], [[("a",), ("b",)]]]


async def test_a_program_without_batches_is_run(any_engine: SqliteEngine) -> None:
    """A program may decide that there is nothing to do."""

    def program() -> Program[str]:
        yield from ()
        return "nothing to do"

    assert await any_engine.write(program) == "nothing to do"
    assert await any_engine.read(program) == "nothing to do"
