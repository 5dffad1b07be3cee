"""Laws of damage: what cannot be read is told as damage, and as nobody's fault who only asked."""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest

from fastness.engines.sqlite import SqliteEngine
from fastness.engines.sqlite_faults import open_error, store_error
from fastness.errors import BackendError, DatabaseDamagedError, DatabaseOpenError
from fastness.sql.program import Program, Read, Statement
from tests.engines.programs import ALL, add, add_many, query, refs

NO_TEXT = "insert into blob (ref, body) values (cast(x'ff' as text), x'')"
CODES = [
    apsw.SQLITE_CORRUPT,
    apsw.SQLITE_CORRUPT_INDEX,
    apsw.SQLITE_NOTADB,
    apsw.SQLITE_IOERR_CORRUPTFS,
    apsw.SQLITE_IOERR_DATA,
]


async def test_stored_text_that_is_no_text_is_damage(any_engine: SqliteEngine) -> None:
    """Text that is not UTF-8 is told as damage with the database's name, to readers and writers, and others go on."""
    await any_engine.write(query(NO_TEXT))
    place = "the in-memory database" if any_engine.path is None else str(any_engine.path)
    for call in (any_engine.read, any_engine.write):
        with pytest.raises(DatabaseDamagedError) as caught:
            await call(refs)
        assert f"{place} is damaged (contains text that is not UTF-8); run check" in str(caught.value)
        assert isinstance(caught.value.__cause__, UnicodeDecodeError)
    assert await any_engine.write(add("b")) == 1
    assert await any_engine.read(query("select ref from blob where ref = 'b'")) == [("b",)]


@pytest.mark.parametrize("parameter", ["\udcff", 2**70, object()])
async def test_a_parameter_that_does_not_fit_is_the_callers(any_engine: SqliteEngine, parameter: object) -> None:
    """A value that no column can hold is no damage: the caller is told so."""
    with pytest.raises(BackendError, match="fault of the caller") as caught:
        await any_engine.read(query("select $1", parameter))
    assert type(caught.value) is BackendError


async def test_a_program_that_cannot_decode_is_heard(any_engine: SqliteEngine) -> None:
    """What a program raises is passed on as it is, also where it is the same kind of error as the driver's."""

    def program() -> Program[str]:
        yield Read(Statement(ALL))
        return b"\xff".decode()

    with pytest.raises(UnicodeDecodeError):
        await any_engine.read(program)


async def test_a_page_that_cannot_be_read_is_damage(path: Path) -> None:
    """A page that was overwritten is told as damage by the statement that meets it."""
    engine = SqliteEngine(path)
    await engine.write(add_many(400, 1000))
    await engine.close()
    content = bytearray(path.read_bytes())
    content[-100_000:] = b"\xff" * 100_000
    path.write_bytes(content)
    engine = SqliteEngine(path)
    with pytest.raises(DatabaseDamagedError) as caught:
        await engine.read(query("select ref, body from blob"))
    assert f"{path} is damaged (SQLITE_CORRUPT" in str(caught.value)
    await engine.close()


@pytest.mark.parametrize("code", CODES)
def test_each_way_of_saying_damage_is_understood(code: int) -> None:
    """Damage is ``DatabaseDamagedError`` from a statement, and ``DatabaseOpenError`` while a database is opened."""
    error = apsw.exception_for(code)
    assert isinstance(error, apsw.Error)
    assert type(store_error(error, "x.db")) is DatabaseDamagedError
    assert type(open_error(error, "x.db")) is DatabaseOpenError


def test_a_disk_that_fails_is_not_damage() -> None:
    """An error of reading or writing says nothing about what is stored."""
    error = apsw.exception_for(apsw.SQLITE_IOERR_FSYNC)
    assert isinstance(error, apsw.Error)
    assert type(store_error(error, "x.db")) is BackendError
