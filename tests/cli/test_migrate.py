"""``fastness migrate``: what a database lacks is printed, or run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import apsw
import pytest

from fastness.cli.main import main
from tests.servers.postgres import shared_server


def lines(capture: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """Run a command that succeeds, and give what it printed."""
    assert main(words) == 0
    return capture.readouterr().out.splitlines()


def test_what_is_shown_makes_a_sqlite_database(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The statements that are printed for a file that is not there make one that lacks nothing, and make no file."""
    path = tmp_path / "a.db"
    shown = lines(capsys, "migrate", "--show", "--database", f"sqlite:///{path}")
    assert not path.exists()
    apsw.Connection(str(path)).execute("\n".join(shown))
    assert lines(capsys, "migrate", "--show", "--database", f"sqlite:///{path}") == ["-- up to date: nothing to run"]
    assert lines(capsys, "check", "--database", f"sqlite:///{path}")[-1].endswith("no fault found")


def test_what_is_shown_makes_a_postgresql_schema(capsys: pytest.CaptureFixture[str]) -> None:
    """psql runs it as it stands, also for another schema; afterwards nothing is lacking."""
    server = shared_server()
    with server.database() as url:
        named = f"{url}{'&' if '?' in url else '?'}fastness_schema=elsewhere"
        shown = "\n".join(lines(capsys, "migrate", "--show", "--database", named))
        subprocess.run([server.bin("psql"), "-q", "-v", "ON_ERROR_STOP=1", url], input=shown, text=True, check=True)
        assert lines(capsys, "migrate", "--database", named) == ["up to date"]
        assert lines(capsys, "check", "--database", named)[-1].endswith("no fault found")


def test_a_migration_that_is_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first time it makes the tables, the second time there is nothing to do."""
    url = f"sqlite:///{tmp_path / 'a.db'}"
    assert lines(capsys, "migrate", "--database", url)[0].startswith("migrated: ")
    assert lines(capsys, "migrate", "--database", url) == ["up to date"]


def test_a_core_install_says_which_extra_postgresql_needs(tmp_path: Path) -> None:
    """Without the driver, the url is answered with what to install."""
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from fastness.cli.main import main\n"
        "sys.exit(main(['migrate', '--database', 'postgresql://localhost/x']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'fastness[postgres]'" in done.stderr
