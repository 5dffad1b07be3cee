"""Faults while sessions are moved: an interruption, a death, a session that goes or comes meanwhile, a wrong bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fastness.conformance.builders import content_id, intent
from fastness.conformance.lab import START_MS
from fastness.errors import BackendError, DatabaseDamagedError, InvalidInputError
from fastness.model import SessionStoreCreateRequest
from fastness.persistence import SqliteSessionStoreFactory
from fastness.sql.program import Read, Write
from fastness.sql.schema import SESSION_TABLES
from fastness.transfer import TransferReport, copy
from tests.test_transfer import change, fill_small, image


class Stop(Exception):  # noqa: N818 - it is no error of ours
    """An interruption."""


class Countdown:
    """A hook that stops at the n-th batch."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __call__(self, batch: Read | Write | None) -> None:
        self.left -= 1
        if self.left == 0:
            raise Stop


async def interrupted_copy(source: Path, destination: Path, at: int) -> bool:
    """Copy until the n-th batch in the destination. False: it was done before."""
    async with (
        SqliteSessionStoreFactory(source) as old,
        SqliteSessionStoreFactory(destination, batch_hook=Countdown(at)) as new,
    ):
        try:
            await copy(old, new)
        except (Stop, BackendError):
            return True
    return False


@pytest.fixture
async def source(tmp_path: Path) -> Path:
    """A file with three sessions and a release."""
    path = tmp_path / "source.db"
    async with SqliteSessionStoreFactory(path, clock=lambda: START_MS) as factory:
        await fill_small(factory, "a", "b", "gone", "c")
        gone = await factory.create_store(SessionStoreCreateRequest("gone"))
        await gone.record_intent(intent(content_id("c"), session_id="gone"))
        await factory.delete_session("gone")
    return path


async def test_a_copy_that_was_interrupted_anywhere_ends_like_any_other(source: Path, tmp_path: Path) -> None:
    """Whatever batch in the destination fails: what is there then is sound, and another run completes it."""
    whole = tmp_path / "whole.db"
    assert not await interrupted_copy(source, whole, -1)
    wanted = await image(whole)
    at = 0
    is_interrupted = True
    while is_interrupted:
        at += 1
        destination = tmp_path / f"{at}.db"
        is_interrupted = await interrupted_copy(source, destination, at)
        half = await image(destination)
        sessions = {row[0] for row in half["session"]}
        assert len(half["node"]) == len(half["lane"]) == len(half["head"]) == len(sessions)
        assert not await interrupted_copy(source, destination, -1)
        assert await image(destination) == wanted
    assert at > 30


KILLED = """
import asyncio, os, signal, sys
from fastness.persistence import SqliteSessionStoreFactory
from fastness.transfer import copy

left = int(sys.argv[3])

def hook(batch):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    async with SqliteSessionStoreFactory(sys.argv[1]) as old:
        async with SqliteSessionStoreFactory(sys.argv[2], batch_hook=hook) as new:
            await copy(old, new)

asyncio.run(main())
"""


@pytest.mark.parametrize("at", [5, 12, 20, 27])
async def test_a_copy_that_was_killed_is_completed_by_another(source: Path, tmp_path: Path, at: int) -> None:
    """A process that dies leaves whole sessions and nothing else."""
    whole, destination = tmp_path / "whole.db", tmp_path / "killed.db"
    assert not await interrupted_copy(source, whole, -1)
    words = [sys.executable, "-c", KILLED, str(source), str(destination), str(at)]
    assert subprocess.run(words, check=False, timeout=60).returncode == -9
    half = await image(destination)
    assert len(half["session"]) < 3
    assert not await interrupted_copy(source, destination, -1)
    assert await image(destination) == await image(whole)


async def test_a_session_that_vanishes_while_others_are_copied_is_passed_over(source: Path, tmp_path: Path) -> None:
    """It was listed, and is gone when its turn comes: that is counted and no error."""

    def vanish(_doing: str, done: int, _total: int) -> None:
        if done == 1:
            tables = [f"delete from {table} where sid = 2" for table in SESSION_TABLES]
            change(source, *tables, "delete from session where sid = 2")

    async with (
        SqliteSessionStoreFactory(source) as old,
        SqliteSessionStoreFactory(tmp_path / "new.db") as new,
    ):
        report = await copy(old, new, progress=vanish)
    assert (report.copied_count, report.vanished_count) == (2, 1)


async def test_a_session_that_somebody_makes_there_meanwhile_is_a_conflict(source: Path, tmp_path: Path) -> None:
    """It was not there when it was looked for, and is when it is to be written: it stays as it is."""
    destination = tmp_path / "new.db"

    def make(batch: Read | Write | None) -> None:
        if isinstance(batch, Read) and len(batch.statements) > len(SESSION_TABLES):
            change(
                destination,
                "insert into session (session_id, created_ms) values ('a', 1) on conflict do nothing",
                "insert into lane (sid) select sid from session where session_id = 'a' on conflict do nothing",
            )

    async with (
        SqliteSessionStoreFactory(source, batch_hook=make) as old,
        SqliteSessionStoreFactory(destination) as new,
    ):
        assert await copy(old, new) == TransferReport(
            copied_count=2, node_count=2, blob_count=4, release_count=1, conflicting=("a",)
        )
    assert (await image(destination))["session"][0] == ("a", 1, None, None, None)


async def test_what_reads_back_otherwise_is_an_error(source: Path, tmp_path: Path) -> None:
    """The digest is taken from what the destination holds after the commit, not from what was sent."""
    destination = tmp_path / "new.db"
    committed = False

    def lose_a_bit(batch: Read | Write | None) -> None:
        nonlocal committed
        if committed:
            change(destination, "update node set body = replace(body, 'hello', 'hallo')")
        committed = batch is None

    async with (
        SqliteSessionStoreFactory(source) as old,
        SqliteSessionStoreFactory(destination, batch_hook=lose_a_bit) as new,
    ):
        with pytest.raises(BackendError, match="session 'a' reads back from the destination other than"):
            await copy(old, new)


async def test_a_session_that_is_worked_on_at_once_is_no_fault_of_the_copy(source: Path, tmp_path: Path) -> None:
    """A worker of the destination may take a session as soon as it is there."""
    destination = tmp_path / "new.db"
    committed = False

    def work_on_it(batch: Read | Write | None) -> None:
        nonlocal committed
        if committed:
            change(destination, "update lane set fencing_token = fencing_token + 1", "delete from token_usage")
        committed = batch is None

    async with (
        SqliteSessionStoreFactory(source) as old,
        SqliteSessionStoreFactory(destination, batch_hook=work_on_it) as new,
    ):
        assert (await copy(old, new)).copied_count == 3


@pytest.mark.parametrize("damage", ["update blob set body = x'00'", "delete from blob"])
async def test_a_blob_that_is_not_what_its_name_says_is_not_passed_on(
    source: Path, tmp_path: Path, damage: str
) -> None:
    """The copy stops at a session that cannot be read whole, and writes nothing of it."""
    change(source, "pragma defer_foreign_keys = on", damage)
    async with (
        SqliteSessionStoreFactory(source) as old,
        SqliteSessionStoreFactory(tmp_path / "new.db") as new,
    ):
        with pytest.raises(DatabaseDamagedError, match="a blob that session 'a' needs is missing or damaged"):
            await copy(old, new)
        assert (await new.list_sessions()).sessions == ()


async def test_a_database_is_not_copied_onto_itself(source: Path, tmp_path: Path) -> None:
    """One factory, one file, or another name of the file: all of them are refused."""
    link = tmp_path / "link.db"
    link.symlink_to(source)
    async with SqliteSessionStoreFactory(source) as one:
        for other in (one, SqliteSessionStoreFactory(source), SqliteSessionStoreFactory(link)):
            with pytest.raises(InvalidInputError, match="the destination is the source itself"):
                await copy(one, other)
