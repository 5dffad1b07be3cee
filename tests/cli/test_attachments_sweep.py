"""Attachments in ``maintain``, on other databases and in other stores; and what ``copy`` says of environments."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from fastness.persistence import (
    open_attachments,
    open_database,
    process_execution_env_ref,
)
from tests.cli.test_attachments import HELLO, STORE, UNKNOWN, content_file, held, intend, refused
from tests.cli.test_cli import Shell, filled, shell
from tests.servers.postgres import shared_server
from tests.servers.s3 import CREDENTIALS, S3Server

__all__ = ["filled", "held", "shell"]  # fixtures of the command line

NOT_SWEPT = "attachments: not looked at; --attachments names their store"
SWEEP = ("maintain", "--attachments-older-than", "0s")


def test_maintain_takes_what_nobody_needs_any_more(held: Shell) -> None:
    """The dry run says it and changes nothing; what a session holds, and what is younger than a day, stays."""
    (held.directory / "big").write_bytes(b"x" * 5000)
    held.done("attachments", "put", "talks-b", "big")
    held.done("delete", "talks-b", "--yes")
    assert ", 0 attachments (0 bytes); --apply does it\n" in held.done("maintain")
    for _ in range(2):
        assert held.done(*SWEEP).endswith(", 1 attachment (5,000 bytes); --apply does it\n")
    assert held.done("maintain", "--apply").endswith(", 0 attachments (0 bytes)\n")
    assert held.done(*SWEEP, "--apply").endswith(", 1 attachment (5,000 bytes)\n")
    assert held.done(*SWEEP, "--apply").endswith(", 0 attachments (0 bytes)\n")
    assert held.done("attachments", "verify") == "1 attachment (6 bytes) ok, 0 missing, 0 damaged\n"


def test_maintain_reports_attachments_as_json(held: Shell) -> None:
    """Dry or not, the report of the sweep stands beside the others."""
    held.done("delete", "talks-a", "--yes")
    swept: dict[str, Any] = {
        "reclamation": {
            "scanned_intent_count": 1,
            "reclaimed_count": 1,
            "skipped_count": 0,
            "freed_byte_count": 6,
            "absent_count": 0,
            "dry_run": True,
        },
        "released_unnamed_count": 0,
    }
    preview = json.loads(held.done(*SWEEP, "--json"))
    assert preview["attachments"] == swept
    assert preview["tombstoned_node_count"] == 0
    done = json.loads(held.done(*SWEEP, "--json", "--apply"))
    assert sorted(done) == ["attachments", "collection", "vacuum"]
    assert done["attachments"]["reclamation"] == swept["reclamation"] | {"dry_run": False}


def test_maintain_sweeps_nothing_where_the_store_is_not_known(filled: Shell) -> None:
    """The manifest would forget what the real store still has; that store is swept when it is named."""
    (filled.directory / "hello.txt").write_text("hello\n")
    filled.done("attachments", "put", "talks-a", "hello.txt", "--attachments", "elsewhere")
    filled.done("delete", "talks-a", "--yes")
    assert filled.done(*SWEEP).splitlines()[1:] == [NOT_SWEPT]
    assert filled.done(*SWEEP, "--apply").splitlines()[1:] == [NOT_SWEPT]
    assert json.loads(filled.done(*SWEEP, "--apply", "--json"))["attachments"] is None
    assert not (filled.directory / STORE).exists()
    named = filled.done(*SWEEP, "--apply", "--attachments", "elsewhere")
    assert named.endswith(", 1 attachment (6 bytes)\n")
    assert not content_file(filled.directory, HELLO, "elsewhere").exists()


def test_maintain_does_not_take_another_directory_for_the_store(held: Shell) -> None:
    """One that is not there, or that has nothing of what sessions refer to, is refused before anything is done."""
    (held.directory / "empty").mkdir()
    settled = "2 settled inputs"
    assert settled in held.done("maintain")
    for place, reason in (
        ("nix", "the place named for attachments is no directory"),
        ("hello.txt", "the place named for attachments is no directory"),
        ("empty", "the place named for attachments holds no attachment, while sessions refer to some"),
        ("memory:", "memory: is private to the process"),
        ("", "attachments must be named by a directory or a url"),
    ):
        for apply in ((), ("--apply",)):
            assert reason in refused(held(*SWEEP, *apply, "--attachments", place))
    assert settled in held.done("maintain")


def test_maintain_has_nothing_to_sweep_before_the_first_put(filled: Shell) -> None:
    """A place that is named and not made yet is no mistake while the database knows of no attachments."""
    place = ("--attachments", "later")
    assert filled.done(*SWEEP, "--apply", *place).endswith(", 0 attachments (0 bytes)\n")
    assert not (filled.directory / "later").exists()
    filled.done("attachments", "put", "talks-a", "talks.json")
    filled.done("delete", "talks-a", "--yes")
    told = refused(filled(*SWEEP, "--apply", *place))
    assert told == "fastness: the place named for attachments is no directory; name the one that is in use\n"


def test_maintain_does_not_take_an_empty_default_directory_for_the_store(held: Shell) -> None:
    """Where sessions refer to content and the directory beside the database has none, the store is elsewhere."""
    (held.directory / STORE).rename(held.directory / "moved")
    (held.directory / STORE).mkdir()
    intend(UNKNOWN)
    assert held.done(*SWEEP, "--apply").splitlines()[1:] == [NOT_SWEPT]
    assert held.done(*SWEEP, "--apply", "--attachments", "moved").endswith(
        ", 1 attachment (0 bytes; 1 had no bytes here)\n"
    )


def test_maintain_tells_what_had_no_bytes_where_it_looked(held: Shell) -> None:
    """What was put into another place is let go of without a byte freed, dry or not; the help says so before."""
    (held.directory / "big").write_bytes(b"x" * 5000)
    held.done("attachments", "put", "talks-b", "big", "--attachments", "elsewhere")
    held.done("delete", "talks-b", "--yes")
    told = ", 1 attachment (0 bytes; 1 had no bytes here)"
    assert held.done(*SWEEP).endswith(f"{told}; --apply does it\n")
    assert held.done(*SWEEP, "--apply").endswith(f"{told}\n")
    assert "All attachments of a database belong in one place" in held.done("maintain", "--help")


def test_maintain_finds_what_nothing_names_only_when_it_is_told_to(held: Shell) -> None:
    """A dry run releases nothing; what is released goes when it is old enough, and what is held stays."""
    asyncio.run(open_attachments(held.directory / STORE).put(b"stray"))
    assert held.done(*SWEEP, "--apply").endswith(", 0 attachments (0 bytes)\n")
    assert held.done("maintain", "--unnamed-attachments").endswith(", 0 attachments (0 bytes); --apply does it\n")
    told = held.done("maintain", "--unnamed-attachments", "--apply").splitlines()
    assert told[0].endswith(", 0 attachments (0 bytes)")
    assert told[1:] == ["released 1 attachment that nothing named"]
    assert held.done(*SWEEP, "--apply").endswith(", 1 attachment (5 bytes)\n")
    assert held.done("attachments", "verify") == "1 attachment (6 bytes) ok, 0 missing, 0 damaged\n"


@pytest.mark.parametrize("text", ["", "24", "h", "-1h", "1.5h", "1w", "1h30m", " 1h", "1h\n", "²h", "9999999999d"])
def test_an_age_that_is_none_is_refused(held: Shell, text: str) -> None:
    """A number and s, m, h or d, and nothing else."""
    told = refused(held("maintain", f"--attachments-older-than={text}"))
    assert "is no duration such as 30m, 24h or 7d" in told


@pytest.mark.parametrize("text", ["86400s", "1440m", "24h", "1d", "999999999d"])
def test_an_age_of_a_day_or_more_spares_what_was_just_let_go_of(held: Shell, text: str) -> None:
    """All units count."""
    held.done("delete", "talks-a", "--yes")
    told = held.done("maintain", "--apply", "--attachments-older-than", text)
    assert told.endswith(", 0 attachments (0 bytes)\n")


def test_postgres_has_no_default_place(filled: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has to be named, and maintain sweeps nothing until then; named, all commands do what they do on SQLite."""
    (filled.directory / "hello.txt").write_text("hello\n")
    with shared_server().database() as url:
        monkeypatch.setenv("FASTNESS_DATABASE", url)
        filled.done("import", "talks.json", "--branch-by", "task")
        for words in (("put", "talks-a", "hello.txt"), ("get", "talks-a", HELLO), ("verify",)):
            assert refused(filled("attachments", *words)) == (
                "fastness: attachments of this database have no default place; name it with --attachments PLACE\n"
            )
        assert filled.done("maintain", "--apply").splitlines()[1:] == [NOT_SWEPT]
        monkeypatch.setenv("FASTNESS_ATTACHMENTS", "bytes")
        assert filled.done("attachments", "put", "talks-a", "hello.txt") == f"{HELLO}\n"
        assert len(filled.done("attachments", "list").splitlines()) == 2
        assert filled.done("attachments", "get", "talks-a", HELLO[:6]) == "hello\n"
        assert filled.done("attachments", "verify") == "1 attachment (6 bytes) ok, 0 missing, 0 damaged\n"
        filled.done("delete", "talks-a", "--yes")
        assert filled.done(*SWEEP, "--apply").endswith(", 1 attachment (6 bytes)\n")
        assert not content_file(filled.directory, HELLO, "bytes").exists()


def test_a_bucket_serves_as_well(held: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """An S3 service that the usual environment variables name; a bucket that is not there is one line."""
    with S3Server() as service:
        for name, value in {
            "AWS_ENDPOINT": service.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": CREDENTIALS["access_key_id"],
            "AWS_SECRET_ACCESS_KEY": CREDENTIALS["secret_access_key"],
        }.items():
            monkeypatch.setenv(name, value)
        place = ("--attachments", f"s3://{service.bucket()}/some/where")
        assert held.done("attachments", "put", "talks-b", "hello.txt", *place) == f"{HELLO}\n"
        assert held.done("attachments", "get", "talks-b", HELLO, *place) == "hello\n"
        assert held.done("attachments", "verify", *place) == "1 attachment (6 bytes) ok, 0 missing, 0 damaged\n"
        for session_id in ("talks-a", "talks-b"):
            held.done("delete", session_id, "--yes")
        nowhere = ("--attachments", "s3://nowhere-at-all")
        assert "the bucket or directory of the attachments does not exist" in refused(held(*SWEEP, "--apply", *nowhere))
        assert held.done(*SWEEP, "--apply", *place).endswith(", 1 attachment (6 bytes)\n")
        told = refused(held("attachments", "get", "talks-b", HELLO, *place))
        assert "session 'talks-b' does not exist" in told


def test_copy_says_how_many_environments_it_brought_along(filled: Shell) -> None:
    """They are counted beside nodes and blobs, where there are any."""

    async def keep() -> None:
        async with open_database("sqlite:///fastness.db") as factory:
            data = b'{"PATH":"/bin"}'
            await factory.process_execution_envs.put_process_execution_env(process_execution_env_ref(data), data)

    asyncio.run(keep())
    told = filled.done("copy", "sqlite:///fastness.db", "sqlite:///b.db")
    assert told == "copied 2 sessions (9 nodes, 2 blobs, 1 environment), verified\n"
