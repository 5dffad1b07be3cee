"""The command line on PostgreSQL: the same commands with the same answers, and one line for what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.cli.test_cli import Shell, filled, lines_of, shell
from tests.servers.postgres import shared_server

__all__ = ["filled", "shell"]  # fixtures of the command line

HERE = "sqlite:///fastness.db"
IMPORT = ("import", "talks.json", "--branch-by", "task", "--concurrency", "1")
"""One after the other, so that the sessions are made in the same order everywhere."""


@pytest.fixture
def url() -> Iterator[str]:
    """An empty PostgreSQL database."""
    with shared_server().database() as found:
        yield found


@pytest.fixture
def pg(shell: Shell, url: str, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A shell whose default database is on PostgreSQL and holds the talks."""
    monkeypatch.setenv("FASTNESS_DATABASE", url)
    shell.done(*IMPORT)
    return shell


def schemas_of(url: str) -> list[str]:
    """The schemas that somebody made."""
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "select nspname from pg_namespace where nspname !~ '^pg_|^information_schema$|^public$'"
        )
        return [name for (name,) in rows]


def test_every_command_says_what_it_says_on_sqlite(pg: Shell) -> None:
    """Import, list, show, queue, export, check, maintain, delete: word for word, but for times."""
    commands = (
        IMPORT,
        ("show", "talks-a"),
        ("queue", "talks-a"),
        ("export", "--all"),
        ("check",),
        ("maintain",),
        ("maintain", "--apply"),
        ("delete", "talks-a", "--yes"),
        ("export", "--all"),
        ("check",),
    )
    pg.done(*IMPORT, "--database", HERE)
    for words in commands:
        assert pg.done(*words) == pg.done(*words, "--database", HERE), words
    (listed,) = json.loads(pg.done("sessions", "--json"))["sessions"]
    assert listed["meta"]["session_id"] == "talks-b"


def test_a_copy_to_postgres_and_back_exports_the_same(filled: Shell, url: str) -> None:
    """Nothing is lost on the way, in either direction."""
    exported = filled.done("export", "--all")
    assert filled.done("copy", HERE, url) == "copied 2 sessions (9 nodes, 2 blobs), verified\n"
    assert filled.done("export", "--all", "--database", url) == exported
    assert filled.done("copy", url, "sqlite:///back.db") == "copied 2 sessions (9 nodes, 2 blobs), verified\n"
    assert filled.done("export", "--all", "--database", "sqlite:///back.db") == exported
    assert filled.done("check", "--database", "sqlite:///back.db").endswith(": no fault found\n")


def test_a_backup_of_postgres_is_restored_into_an_empty_database(pg: Shell) -> None:
    """The file is a SQLite database; the restored one exports what the original does."""
    exported = pg.done("export", "--all")
    assert pg.done("backup", "kept.db") == "backed up 2 sessions (9 nodes, 2 blobs), verified\n"
    assert pg.done("export", "--all", "--database", "sqlite:///kept.db") == exported
    with shared_server().database() as empty:
        assert (
            pg.done("restore", "kept.db", "--database", empty) == "restored 2 sessions (9 nodes, 2 blobs), verified\n"
        )
        assert pg.done("export", "--all", "--database", empty) == exported
    result = pg("restore", "kept.db")
    assert (result.status, result.out) == (2, "")
    assert "holds sessions that this restore did not bring there, such as 'talks-a'" in result.err


def test_two_schemas_of_a_database_are_two_databases(pg: Shell, url: str) -> None:
    """``fastness_schema`` in the url names another one."""
    other = f"{url}?fastness_schema=other"
    pg.done("import", "talks.json", "--limit", "1", "--database", other)
    assert len(lines_of(pg.done("export", "--all", "--database", other))) == 1
    assert len(lines_of(pg.done("export", "--all"))) == 3
    assert sorted(schemas_of(url)) == ["fastness", "other"]


@pytest.mark.parametrize("words", [("sessions",), ("check",), ("backup", "kept.db"), ("show", "a"), ("delete", "a")])
def test_looking_at_an_empty_database_makes_nothing(shell: Shell, url: str, words: tuple[str, ...]) -> None:
    """Only what writes sessions makes tables, as on SQLite only that makes a file."""
    result = shell(*words, "--database", url)
    assert (result.status, result.out) == (2, "")
    assert "import something first" in result.err
    assert result.err.count("\n") == 1
    assert schemas_of(url) == []
    assert sorted(path.name for path in shell.directory.iterdir()) == ["talks.json"]


def refused(shell: Shell, url: str) -> str:
    """What a command says that cannot open its database."""
    result = shell("sessions", "--database", url)
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith("fastness: ")
    assert result.err.count("\n") == 1
    return result.err


def test_a_wrong_password_is_refused_and_repeated_nowhere(shell: Shell, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the wrong one nor the right one is in what is said, or in a log."""
    server = shared_server()
    server.create_role("clerk", "right-s3cret")
    try:
        told = refused(shell, server.url("postgres", "clerk", "wrong-s3cret"))
    finally:
        server.drop_role("clerk")
    assert "check user and password" in told
    assert "s3cret" not in told + caplog.text


def test_an_unknown_database_is_named(shell: Shell) -> None:
    """The message says what to do."""
    told = refused(shell, shared_server().url("nowhere"))
    assert 'database "nowhere" does not exist' in told
    assert "create the database, or name one that is there" in told


def test_a_server_that_is_not_there_is_one_line(shell: Shell) -> None:
    """Nobody listens on that port."""
    told = refused(shell, "postgresql://me:s3cret@127.0.0.1:1/db")
    assert "check host and port, and start the server" in told
    assert "s3cret" not in told


def test_a_url_that_libpq_cannot_read_is_not_repeated(shell: Shell) -> None:
    """It may hold a password."""
    assert "s3cret" not in refused(shell, "postgresql://me:s3cret@host:port/db")


def test_a_missing_driver_is_named_with_its_remedy(tmp_path: Path) -> None:
    """Without the extra, the rest works, and PostgreSQL says what to install."""
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from fastness.cli.main import main\n"
        "sys.exit(main(['sessions', '--database', 'postgresql://localhost/db']))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (found.returncode, found.stdout) == (2, "")
    assert "run: pip install 'fastness[postgres]'" in found.stderr
    assert found.stderr.count("\n") == 1
