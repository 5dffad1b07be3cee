"""Laws of what is refused at opening: logs without a database, other people's files, tables that are not ours."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import apsw
import pytest

from fastness.engines import sqlite_open
from fastness.engines.engine import system_clock
from fastness.engines.sqlite import SqliteEngine
from fastness.engines.sqlite_verify import fresh_columns
from fastness.errors import DatabaseOpenError, InvalidInputError, StoreError
from fastness.factory import open_database
from tests.engines.programs import add, refs

JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")


async def opening(path: Path) -> StoreError | None:
    """Open and close; give the error of the opening."""
    engine = SqliteEngine(path)
    try:
        await engine.start()
    except StoreError as error:
        return error
    finally:
        await engine.close()
    return None


async def made(path: Path) -> None:
    """Make a database with one row."""
    engine = SqliteEngine(path)
    await engine.write(add("a"))
    await engine.close()


def by_hand(path: Path, *statements: str) -> None:
    """Do what somebody does with another tool."""
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def contents(directory: Path) -> dict[str, bytes]:
    """Everything in a directory."""
    return {entry.name: entry.read_bytes() for entry in directory.iterdir()}


async def with_log(path: Path) -> None:
    """Make a database whose last row is in its log only, as a crash leaves it."""
    scratch = path.parent / "scratch"
    scratch.mkdir()
    await made(scratch / path.name)
    writer = apsw.Connection(str(scratch / path.name))
    writer.execute("pragma wal_autocheckpoint=0")
    writer.execute("insert into blob (ref, body) values ('in the log', x'')")
    for suffix in ("", "-wal"):
        shutil.copy(scratch / f"{path.name}{suffix}", f"{path}{suffix}")
    writer.close()
    shutil.rmtree(scratch)


@pytest.fixture
def linked(path: Path) -> Path:
    """A symbolic link to the path."""
    link = path.with_name("link.db")
    link.symlink_to(path)
    return link


# Logs without a database.


async def test_a_database_with_its_log_is_opened(path: Path) -> None:
    """A log beside its database is recovered, as after any crash."""
    await with_log(path)
    engine = SqliteEngine(path)
    assert await engine.read(refs) == ["a", "in the log"]
    await engine.close()


async def test_a_log_without_its_database_is_refused_unchanged(path: Path) -> None:
    """Where the file is gone and its log is there, no new database is put beneath the log."""
    await with_log(path)
    path.unlink()
    before = contents(path.parent)
    error = await opening(path)
    assert type(error) is DatabaseOpenError
    assert f"{path} is missing and its log is still there" in str(error)
    assert f"{path}-wal" in str(error)
    assert contents(path.parent) == before


async def test_the_log_behind_a_link_counts(path: Path, linked: Path) -> None:
    """SQLite keeps the log beside the file that a link leads to: there it is looked for."""
    await with_log(path)
    path.write_bytes(b"")
    before = contents(path.parent)
    error = await opening(linked)
    assert type(error) is DatabaseOpenError
    assert "is empty and its log is still there" in str(error)
    assert contents(path.parent) == before


async def test_a_database_cut_to_nothing_with_its_log_is_refused_unchanged(path: Path) -> None:
    """An empty file beside a log is a lost database, not a new one: SQLite would delete the log."""
    await with_log(path)
    path.write_bytes(b"")
    before = contents(path.parent)
    error = await opening(path)
    assert type(error) is DatabaseOpenError
    assert f"{path} is empty and its log is still there" in str(error)
    assert contents(path.parent) == before


@pytest.mark.parametrize("is_there", [True, False])
async def test_a_journal_of_a_lost_database_is_refused_unchanged(path: Path, is_there: bool) -> None:
    """The same holds for a rollback journal that was begun on pages."""
    numbers = b"".join(number.to_bytes(4, "big") for number in (1, 0, 7, 512, 4096))
    Path(f"{path}-journal").write_bytes((JOURNAL_MAGIC + numbers).ljust(512, b"\0"))
    if is_there:
        path.touch()
    before = contents(path.parent)
    assert type(await opening(path)) is DatabaseOpenError
    assert contents(path.parent) == before


async def test_a_journal_begun_on_an_empty_file_loses_nothing(path: Path) -> None:
    """A journal of no pages beside an empty file is a database that was being made: it is made."""
    path.touch()
    numbers = b"".join(number.to_bytes(4, "big") for number in (0, 0, 0, 512, 4096))
    Path(f"{path}-journal").write_bytes((JOURNAL_MAGIC + numbers).ljust(512, b"\0"))
    assert await opening(path) is None
    assert list(contents(path.parent)) == ["store.db"]


@pytest.mark.parametrize("suffix", ["-wal", "-journal"])
async def test_an_empty_log_is_no_log(path: Path, suffix: str) -> None:
    """A log of no bytes holds nothing, so a new database may stand beside it."""
    Path(f"{path}{suffix}").touch()
    assert await opening(path) is None


async def test_a_database_made_meanwhile_owns_its_log(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who looks for the file before another process makes it, and for the log after, uses the other's database."""
    others = path.parent / "others"
    others.mkdir()
    await with_log(others / path.name)
    size = sqlite_open._size

    def late(asked: Path) -> int | None:
        if not path.exists():
            assert asked.name == "store.db-wal"
            for name in ("store.db-wal", "store.db"):
                (others / name).rename(path.with_name(name))
        return size(asked)

    monkeypatch.setattr(sqlite_open, "_size", late)
    engine = SqliteEngine(path)
    assert await engine.read(refs) == ["a", "in the log"]
    await engine.close()


async def test_a_log_that_appears_while_a_database_is_made_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last look for a log is after the new database is complete, just before it gets its name."""
    build = sqlite_open._build

    def slow(settings: sqlite_open.Settings, draft: Path) -> None:
        build(settings, draft)
        Path(f"{path}-wal").write_bytes(b"x")

    monkeypatch.setattr(sqlite_open, "_build", slow)
    assert type(await opening(path)) is DatabaseOpenError
    assert contents(path.parent) == {"store.db-wal": b"x"}


def test_a_file_that_vanishes_is_not_made_anew(path: Path) -> None:
    """SQLite itself never makes the file: one that vanished after it was looked at is an error."""
    settings = sqlite_open.Settings(path, system_clock, "full", 100, False)
    with pytest.raises(DatabaseOpenError):
        sqlite_open.open_writer(settings)
    assert list(path.parent.iterdir()) == []


# Other people's files.


@pytest.mark.parametrize(
    "statement",
    [
        "create view guests as select 1 as name",
        "pragma application_id = 7",
        "pragma user_version = 7",
        "create table fastness_migrations (version)",
        "create view fastness_migration as select 1 as version",
    ],
)
async def test_what_somebody_else_began_is_refused_unchanged(path: Path, statement: str) -> None:
    """A SQLite database with anything in it that is not ours, be it only a view or a number, is left alone."""
    by_hand(path, statement)
    before = contents(path.parent)
    error = await opening(path)
    assert type(error) is DatabaseOpenError
    assert "something else" in str(error)
    assert contents(path.parent) == before


async def test_a_number_on_a_database_of_ours_is_harmless(path: Path) -> None:
    """Who numbers a database of ours by hand can go on using it."""
    await made(path)
    by_hand(path, "pragma application_id = 7", "pragma user_version = 7")
    assert await opening(path) is None


# Tables that are not ours.


@pytest.mark.parametrize(
    ("statements", "told"),
    [
        (["alter table commit_log drop column changed_frames"], "the table commit_log has no column changed_frames"),
        (["alter table head rename column checkpoint to other"], "the table head has no column checkpoint"),
        (["drop table attachment_mark"], "the table attachment_mark is missing"),
        (["drop table head", "create view head as select 1 as sid"], "the table head is missing"),
        (
            ["drop table head", "drop table lane", "drop table blob", "drop table node", "drop table agent_frame"],
            "the table lane is missing, the table head is missing, the table node is missing, and 2 more",
        ),
    ],
)
async def test_a_database_without_a_column_of_ours_is_refused_unchanged(
    path: Path, statements: list[str], told: str
) -> None:
    """A ledger that is current over tables that are not is refused by name at opening, not by some statement later."""
    await made(path)
    by_hand(path, *statements)
    before = contents(path.parent)
    error = await opening(path)
    assert type(error) is DatabaseOpenError
    assert f"({told})" in str(error)
    assert contents(path.parent) == before
    engine = SqliteEngine(path)
    assert await engine.verify() == [error.detail]
    await engine.close()


async def test_what_somebody_added_is_harmless(path: Path) -> None:
    """Columns and tables that were added by hand, and an index that is gone, do not keep a database from opening."""
    await made(path)
    by_hand(path, "alter table head add column mine text", "create table mine (x)", "drop index node_by_id")
    assert await opening(path) is None


@pytest.mark.parametrize(
    "change",
    [
        "name = cast(x'ff' as text)",
        "name = cast(x'ff' as text), sql = cast(replace(cast(sql as blob), 'mine', x'ff') as text)",
    ],
)
async def test_a_name_that_is_not_text_is_told_at_opening(path: Path, change: str) -> None:
    """A name in the schema that cannot be read is damage, whether SQLite notices or only who decodes it."""
    await made(path)
    by_hand(
        path,
        "create view mine as select 1",
        "pragma writable_schema = on",
        f"update sqlite_schema set {change} where name = 'mine'",
    )
    error = await opening(path)
    assert type(error) is DatabaseOpenError
    assert f"{path} is truncated or damaged" in str(error)


def test_our_tables_have_columns() -> None:
    """The columns that an opening looks for are those of every table of ours."""
    assert fresh_columns()["blob"] == {"ref", "body"}
    assert {"session", "lane", "head", "node", "commit_log"} < set(fresh_columns())


# Paths.


def test_a_path_that_is_no_utf8_is_refused_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite takes names in UTF-8: another name is refused at once, also if only the working directory has it."""
    with pytest.raises(InvalidInputError, match="UTF-8"):
        SqliteEngine(tmp_path / "\udcff.db")
    with pytest.raises(InvalidInputError, match="UTF-8"):
        open_database("sqlite:///\udcff")
    odd = tmp_path / "\udcff"
    odd.mkdir()
    monkeypatch.chdir(odd)
    with pytest.raises(InvalidInputError, match="UTF-8"):
        SqliteEngine("store.db")


def test_a_working_directory_that_is_gone_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path below a directory that was removed is a database that cannot be opened."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(DatabaseOpenError, match="ENOENT"):
        SqliteEngine("store.db")


async def test_links_in_a_circle_are_refused(path: Path) -> None:
    """A link that leads to itself is no database, and no new one is made beside it."""
    path.symlink_to(path)
    error = await opening(path)
    assert type(error) is DatabaseOpenError
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(DatabaseOpenError, match="ELOOP"):
        open_database(f"sqlite:///{path}", existing_only=True)


async def test_a_name_that_is_too_long_is_told(tmp_path: Path) -> None:
    """What the file system does not even look up is a database that cannot be opened."""
    path = tmp_path / ("x" * 300)
    assert type(await opening(path)) is DatabaseOpenError
    with pytest.raises(DatabaseOpenError, match="ENAMETOOLONG"):
        open_database(f"sqlite:///{path}", existing_only=True)


def test_a_directory_that_may_not_be_searched_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system does not let this process look, the database cannot be opened."""

    def refuse(*_arguments: object, **_options: object) -> os.stat_result:
        raise PermissionError(13, "refused")

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(DatabaseOpenError, match="EACCES"):
        open_database(f"sqlite:///{path}", existing_only=True)


async def test_an_empty_file_is_no_existing_database(path: Path) -> None:
    """Who asks for a database that exists is not given an empty file; who may make one is."""
    with pytest.raises(DatabaseOpenError, match="there is no database at"):
        open_database(f"sqlite:///{path}", existing_only=True)
    path.touch()
    with pytest.raises(DatabaseOpenError, match="there is no database at"):
        open_database(f"sqlite:///{path}", existing_only=True)
    assert path.read_bytes() == b""
    factory = open_database(f"sqlite:///{path}")
    await factory.engine.write(add("a"))
    await factory.close()
    factory = open_database(f"sqlite:///{path}", existing_only=True)
    assert await factory.engine.read(refs) == ["a"]
    await factory.close()
