"""``copy``, ``backup`` and ``restore`` as commands: what they print, what they leave behind, and how they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_cli import Shell, filled, shell

__all__ = ["filled", "shell"]  # fixtures of the command line

HERE = "sqlite:///fastness.db"


def files(directory: Path) -> list[str]:
    """What is in a directory."""
    return sorted(path.name for path in directory.iterdir())


def test_copy_says_what_it_did_and_a_second_one_adds_nothing(filled: Shell) -> None:
    """The copy exports what the original does."""
    assert filled.done("copy", HERE, "sqlite:///b.db") == "copied 2 sessions (9 nodes, 2 blobs), verified\n"
    assert filled.done("copy", HERE, "sqlite:///b.db") == "nothing to copy: 2 sessions were there, the same\n"
    exported = filled.done("export", "--all")
    assert filled.done("export", "--all", "--database", "sqlite:///b.db") == exported
    assert exported.count("\n") == 3
    assert filled.done("check", "--database", "sqlite:///b.db").endswith(": no fault found\n")


def test_copy_names_conflicts_and_says_what_to_do(filled: Shell) -> None:
    """Exit status 1; the rest is copied, and what is there stays."""
    filled.done("import", "talks.json", "--limit", "1", "--session-id", "talks-a", "--database", "sqlite:///b.db")
    before = filled.done("export", "--all", "--database", "sqlite:///b.db")
    result = filled("copy", HERE, "sqlite:///b.db")
    assert (result.status, result.err) == (1, "")
    assert result.out.splitlines() == [
        "session talks-a: is in the destination with other content, and was left alone",
        (
            "copied 1 session (2 nodes, 1 blob), verified; 1 session left out: delete what is there in their place"
            " ('fastness delete') and run this again, or name an empty database"
        ),
    ]
    assert filled.done("export", "talks-a", "--database", "sqlite:///b.db") == before
    assert json.loads(filled("copy", HERE, "sqlite:///b.db", "--json").out)["conflicting"] == ["talks-a"]


def test_backup_and_restore_bring_everything_back(filled: Shell) -> None:
    """The file is a database; the restored one exports what the original does."""
    assert filled.done("backup", "kept.db") == "backed up 2 sessions (9 nodes, 2 blobs), verified\n"
    assert files(filled.directory) == ["fastness.db", "kept.db", "talks.json"]
    exported = filled.done("export", "--all")
    assert filled.done("export", "--all", "--database", "sqlite:///kept.db") == exported
    restore = ("restore", "kept.db", "--database", "sqlite:///new.db")
    assert filled.done(*restore) == "restored 2 sessions (9 nodes, 2 blobs), verified\n"
    assert filled.done("export", "--all", "--database", "sqlite:///new.db") == exported
    assert filled.done(*restore) == "nothing to restore: 2 sessions were there, the same\n"
    assert json.loads(filled.done(*restore, "--json")) == {
        "copied_count": 0,
        "present_count": 2,
        "vanished_count": 0,
        "node_count": 0,
        "blob_count": 0,
        "release_count": 0,
        "environment_count": 0,
        "conflicting": [],
    }


def test_a_database_without_sessions_is_moved_too(shell: Shell) -> None:
    """It is no failure, and the backup is there."""
    shell.done("import", "talks.json", "--limit", "1")
    shell.done("delete", "talks-0", "--yes")
    assert shell.done("backup", "kept.db") == "nothing to back up\n"
    assert shell.done("restore", "kept.db", "--database", "sqlite:///new.db") == "nothing to restore\n"
    assert shell.done("copy", HERE, "sqlite:///b.db") == "nothing to copy\n"


WRONG = [
    (("copy", HERE, HERE), "the destination is the source itself; name another database"),
    (("copy", HERE, "sqlite:///./fastness.db"), "the destination is the source itself; name another database"),
    (("copy", "sqlite:///no.db", "sqlite:///b.db"), "there is no database at 'no.db'"),
    (("copy", "memory:", "sqlite:///b.db"), "memory: is private to the process that uses it"),
    (("copy", HERE, "memory:"), "memory: is private to the process that uses it"),
    (("copy", HERE, "b.db"), "database must be "),
    (("copy", HERE, ""), "database must be "),
    (("copy", HERE, "sqlite:///talks.json"), "talks.json is not a SQLite database"),
    (("copy", HERE, "sqlite:///no/b.db"), "no does not exist; create it"),
    (("copy", HERE), "Missing argument 'DST'"),
    (("backup", "fastness.db"), "file 'fastness.db' exists; a backup is written to a new file"),
    (("backup", "no/kept.db"), "no does not exist; create it"),
    (("backup", "."), "file '.' exists"),
    (("backup", "kept.db", "--database", "sqlite:///no.db"), "there is no database at 'no.db'"),
    (("backup", "kept.db", "--database", "memory:"), "memory: is private to the process that uses it"),
    (("backup", "x" * 300), "cannot be written (ENAMETOOLONG)"),
    (("backup", "x" * 250), "cannot be opened (ENAMETOOLONG)"),
    (("restore", "no.db", "--database", "sqlite:///new.db"), "there is no backup at 'no.db'"),
    (("restore", "talks.json", "--database", "sqlite:///new.db"), "talks.json is not a SQLite database"),
    (("restore", ".", "--database", "sqlite:///new.db"), "is a directory; name a file"),
    (("restore", "fastness.db"), "the destination is the source itself"),
    (("restore", "fastness.db", "--database", "memory:"), "memory: is private to the process that uses it"),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=[" ".join(words)[:60] for words, _ in WRONG])
def test_wrong_uses_are_refused_in_one_line(filled: Shell, words: tuple[str, ...], message: str) -> None:
    """Exit status 2, one line that says what to do, and nothing is made or changed."""
    before = (filled.directory / "talks.json").read_bytes(), filled.done("export", "--all")
    result = filled(*words)
    assert (result.status, result.out) == (2, "")
    assert message in result.err
    assert result.err.startswith("fastness: ")
    assert result.err.count("\n") == 1
    assert files(filled.directory) == ["fastness.db", "talks.json"]
    assert ((filled.directory / "talks.json").read_bytes(), filled.done("export", "--all")) == before


def test_a_restore_into_a_database_in_use_is_refused(filled: Shell) -> None:
    """The database keeps its sessions; the message says how it can be had all the same."""
    filled.done("backup", "kept.db")
    result = filled("restore", "kept.db")
    assert (result.status, result.out) == (2, "")
    assert "holds sessions that this restore did not bring there, such as 'talks-a'" in result.err
    assert "name an empty database" in result.err
