"""Laws of backups: one moment of the whole database, under its name only when it is complete, and restored past every
token that was ever granted.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from pathlib import Path

import apsw
import pytest

from fastness.conformance.builders import ALICE, BOB, commit, lane, node, owner, release, revision, said
from fastness.conformance.lab import START_MS
from fastness.errors import (
    BackendError,
    DatabaseDamagedError,
    DatabaseOpenError,
    InvalidInputError,
    LeaseExpiredError,
    StoreError,
)
from fastness.model import SessionStoreCreateRequest
from fastness.persistence import InMemorySessionStoreFactory, SqliteSessionStoreFactory
from fastness.transfer import TransferReport, backup, copy, restore
from tests.test_transfer import FREE, IDLE, WAITS, change, fill, fill_small, image
from tests.test_transfer_faults import Countdown, Stop


@pytest.fixture
async def source(tmp_path: Path) -> Path:
    """A file with three small sessions and a rich one, whose lane is held."""
    path = tmp_path / "source.db"
    async with SqliteSessionStoreFactory(path, clock=lambda: START_MS) as factory:
        await fill_small(factory, "a", "b")
        await fill(factory, "rich")
        await fill_small(factory, "c")
    return path


async def kept(source: Path, file: Path) -> TransferReport:
    """Back a file up."""
    async with SqliteSessionStoreFactory(source) as factory:
        return await backup(factory, file)


async def restored(file: Path, destination: Path) -> TransferReport:
    """Restore a backup into a file."""
    async with SqliteSessionStoreFactory(destination) as factory:
        return await restore(file, factory)


def names(directory: Path) -> list[str]:
    """What is in a directory."""
    return sorted(path.name for path in directory.iterdir())


async def test_a_backup_is_a_database_with_every_row(source: Path, tmp_path: Path) -> None:
    """It is one file, sound, and has all that the source has; lanes are free, with their tokens as they were."""
    file = tmp_path / "kept" / "backup.db"
    file.parent.mkdir()
    report = await kept(source, file)
    assert report == TransferReport(copied_count=4, node_count=604, blob_count=11)
    assert names(file.parent) == ["backup.db"]
    wanted, found = await image(source), await image(file)
    assert [row[:2] for row in wanted["lane"]] == [row[:2] for row in found["lane"]] == [(0, 1), (0, 1), (0, 1), (6, 4)]
    assert {row[2:] for row in found["lane"]} == {(*FREE, *WAITS), (*FREE, *IDLE)}
    assert wanted | {"lane": found["lane"]} == found
    assert names(file.parent) == ["backup.db"]


async def test_a_backup_shows_one_moment_of_a_database_in_use(source: Path, tmp_path: Path) -> None:
    """What is written while sessions are read is in none of them, also in those that are read later."""
    wanted = await image(source)

    def write(doing: str, done: int, _total: int) -> None:
        if (doing, done) == ("copying", 1):
            change(source, "update token_usage set input_tokens = 99", "delete from turn_input")

    async with SqliteSessionStoreFactory(source) as factory:
        await backup(factory, tmp_path / "backup.db", progress=write)
    found = await image(tmp_path / "backup.db")
    assert found["token_usage"] == wanted["token_usage"]
    assert found["turn_input"] == wanted["turn_input"]
    assert (await image(source))["turn_input"] == []


async def test_a_backup_beside_a_busy_writer_never_splits_a_commit(source: Path, tmp_path: Path) -> None:
    """A commit and the input that it hands to another session are both in the backup, or neither is."""
    async with SqliteSessionStoreFactory(source) as factory:
        store = await factory.create_store(SessionStoreCreateRequest("a"))
        lease = await lane(store, BOB, session_id="a")

        async def write() -> None:
            for at in range(10_000):
                made = commit(lease, await revision(store), node(f"w{at}", "a"))
                await store.commit_runtime_state(made.with_outbox(said(f"w{at}", session_id="b")))
                landed.set()

        landed = asyncio.Event()
        writing = asyncio.create_task(write())
        for at in range(3):
            # However slow the disk is, there is more in each than in the one before.
            landed.clear()
            await landed.wait()
            await backup(factory, tmp_path / f"{at}.db")
        writing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await writing
    sizes = []
    for at in range(3):
        found = await image(tmp_path / f"{at}.db")
        handed_over = [row for row in found["turn_input"] if str(row[1]) not in {"held", "waiting"}]
        written = [row for row in found["node"] if str(row[1]).startswith("w")]
        assert len(handed_over) == len(written)
        sizes.append(len(written))
    assert sizes == sorted(set(sizes)), "nobody wrote while the backups were taken: nothing was shown"


async def test_nobody_from_before_a_restore_can_write(source: Path, tmp_path: Path) -> None:
    """Neither who held the lane when the backup was taken, nor who was granted it later, nor with the same identity.

    The next grant has a greater token than all of those, and gets the input that the lost holder had claimed.
    """
    file = tmp_path / "backup.db"
    async with SqliteSessionStoreFactory(source, clock=lambda: START_MS) as factory:
        store = await factory.create_store(SessionStoreCreateRequest("rich"))
        at_backup = await lane(store, ALICE, session_id="rich")
        await backup(factory, file)
        await release(store, at_backup)
        later = [at_backup]
        for at in range(5):
            later.append(await lane(store, owner("later", str(at)), session_id="rich"))
            if at < 4:
                await release(store, later[-1])
    assert [lease.fencing_token for lease in later] == [4, 5, 6, 7, 8, 9]

    async with SqliteSessionStoreFactory(tmp_path / "new.db", clock=lambda: START_MS) as factory:
        report = await restore(file, factory)
        assert report == TransferReport(copied_count=4, node_count=604, blob_count=11)
        there = await factory.create_store(SessionStoreCreateRequest("rich"))
        before = await there.load_head()
        for lease in later:
            with pytest.raises(LeaseExpiredError):
                await there.renew_session_execution_lease(lease.fence(), 30_000)
            with pytest.raises(LeaseExpiredError):
                await there.commit_runtime_state(commit(lease, 3, node("x", "n0")))
            with pytest.raises(LeaseExpiredError):
                await there.claim_next_turn_inputs("rich", lease.fence(), max_inputs=1)
            await there.release_session_execution_lease(lease.completion())
        assert await there.load_head() == before
        granted = await lane(there, ALICE, session_id="rich")
        assert granted.fencing_token == 1_000_000_005
        with pytest.raises(LeaseExpiredError):
            await there.commit_runtime_state(commit(at_backup, 3, node("x", "n0")))
        claim = await there.claim_next_turn_inputs("rich", granted.fence(), max_inputs=5)
        assert claim is not None
        assert [row.input_id for row in claim.inputs] == ["held", "waiting"]


async def test_a_restored_database_has_every_row(source: Path, tmp_path: Path) -> None:
    """What comes back is what went in, but for who held lanes and their tokens; the backup is as it was."""
    file = tmp_path / "backup.db"
    await kept(source, file)
    before = file.read_bytes()
    await restored(file, tmp_path / "new.db")
    wanted, found = await image(source), await image(tmp_path / "new.db")
    assert [row[:2] for row in found["lane"]] == [(0, 1_000_000_001)] * 3 + [(6, 1_000_000_004)]
    assert wanted | {"lane": found["lane"]} == found
    assert file.read_bytes() == before


# --- what is refused, and what is left then ---


async def test_a_backup_never_takes_the_place_of_a_file(source: Path, tmp_path: Path) -> None:
    """Not of a backup, not of an empty file, not of a link that leads nowhere, not of the database itself."""
    (tmp_path / "empty").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("empty", "link", "source.db"):
        with pytest.raises(InvalidInputError, match="exists; a backup is written to a new file"):
            await kept(source, tmp_path / name)
    assert names(tmp_path) == ["empty", "link", "source.db"]
    with pytest.raises(DatabaseOpenError, match="does not exist"):
        await kept(source, tmp_path / "no" / "backup.db")


async def test_a_name_that_is_taken_meanwhile_is_not_taken_away(source: Path, tmp_path: Path) -> None:
    """Two backups of one name: the second one to finish gives way."""
    file = tmp_path / "backup.db"

    def take_the_name(*_done: object) -> None:
        file.write_text("mine")

    async with SqliteSessionStoreFactory(source) as factory:
        with pytest.raises(InvalidInputError, match="was made by somebody else meanwhile"):
            await backup(factory, file, progress=take_the_name)
    assert file.read_text() == "mine"
    assert names(tmp_path) == ["backup.db", "source.db"]


@pytest.mark.parametrize("at", [("copying", 1), ("copying", 4), ("checking", 1), ("checking", 4)])
async def test_a_backup_that_fails_leaves_nothing(source: Path, tmp_path: Path, at: tuple[str, int]) -> None:
    """Whatever stops it, and wherever: nothing is under the name, and no draft stays behind."""

    def stop(doing: str, done: int, _total: int) -> None:
        if (doing, done) == at:
            raise Stop

    async with SqliteSessionStoreFactory(source) as factory:
        with pytest.raises(Stop):
            await backup(factory, tmp_path / "backup.db", progress=stop)
    assert names(tmp_path) == ["source.db"]


async def test_a_cancelled_backup_leaves_nothing(source: Path, tmp_path: Path) -> None:
    """The one who waits goes away in the midst of it; the database stays usable."""
    async with SqliteSessionStoreFactory(source) as factory:
        running: asyncio.Task[TransferReport]

        def cancel(_doing: str, done: int, _total: int) -> None:
            if done == 2:
                running.cancel()

        running = asyncio.create_task(backup(factory, tmp_path / "backup.db", progress=cancel))
        with pytest.raises(asyncio.CancelledError):
            await running
        assert (await factory.check()).findings == ()
    assert names(tmp_path) == ["source.db"]


KILLED = """
import asyncio, os, signal, sys
from fastness.persistence import SqliteSessionStoreFactory
from fastness.transfer import backup

def die(doing, done, total):
    if (doing, done) == ("copying", 2):
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    async with SqliteSessionStoreFactory(sys.argv[1]) as factory:
        await backup(factory, sys.argv[2], progress=die)

asyncio.run(main())
"""


async def test_a_killed_backup_has_no_name(source: Path, tmp_path: Path) -> None:
    """What is left of it hides under another name, and the next backup does not mind."""
    file = tmp_path / "backup.db"
    words = [sys.executable, "-c", KILLED, str(source), str(file)]
    assert subprocess.run(words, check=False, timeout=60).returncode == -9
    assert not file.exists()
    await kept(source, file)
    assert len((await image(file))["session"]) == 4


async def test_a_damaged_database_gets_no_backup(source: Path, tmp_path: Path) -> None:
    """A backup that could not be restored is worse than none: the error names the session."""
    change(source, "update node set body = replace(body, 'hello', 'hallo') where sid = 2")
    with pytest.raises(
        DatabaseDamagedError, match=r"has faults \(1\), the first one: session 'b': node 'a' is damaged"
    ):
        await kept(source, tmp_path / "backup.db")
    assert names(tmp_path) == ["source.db"]


async def test_a_database_in_memory_gets_no_backup_and_can_be_copied(tmp_path: Path) -> None:
    """It has no snapshots; a copy goes session by session."""
    async with InMemorySessionStoreFactory() as factory:
        await fill_small(factory, "a")
        with pytest.raises(BackendError, match="a database in memory has no snapshots"):
            await backup(factory, tmp_path / "backup.db")
        assert names(tmp_path) == []
        async with SqliteSessionStoreFactory(tmp_path / "copy.db") as other:
            assert (await copy(factory, other)).copied_count == 1


@pytest.mark.parametrize("content", [None, b"", b"no database at all", b"x" * 5000])
async def test_only_a_database_of_ours_is_restored(tmp_path: Path, content: bytes | None) -> None:
    """A file that is missing, empty, or something else is refused, and neither file is changed."""
    file = tmp_path / "backup.db"
    if content is not None:
        file.write_bytes(content)
    async with SqliteSessionStoreFactory(tmp_path / "new.db") as factory:
        with pytest.raises(DatabaseOpenError):
            await restore(file, factory)
    assert names(tmp_path) == ([] if content is None else ["backup.db"])
    assert content is None or file.read_bytes() == content


async def test_a_database_of_something_else_is_not_restored(tmp_path: Path) -> None:
    """It says so, and stays as it was."""
    connection = apsw.Connection(str(tmp_path / "backup.db"))
    connection.execute("create table things (name text)")
    connection.close()
    with pytest.raises(DatabaseOpenError, match="is a SQLite database of something else"):
        await restored(tmp_path / "backup.db", tmp_path / "new.db")


async def test_a_damaged_backup_is_not_restored(source: Path, tmp_path: Path) -> None:
    """It is verified before anything is written."""
    file = tmp_path / "backup.db"
    await kept(source, file)
    change(file, "update node set body = replace(body, 'hello', 'hallo') where sid = 4")
    with pytest.raises(DatabaseDamagedError, match="has faults"):
        await restored(file, tmp_path / "new.db")
    assert names(tmp_path) == ["backup.db", "source.db"]


@pytest.mark.parametrize("content", ["stranger", "copied", "worked on", "added to"])
async def test_only_an_empty_database_is_restored_into(source: Path, tmp_path: Path, content: str) -> None:
    """Sessions that no restore of this backup has brought are a refusal, and nothing is written.

    That holds for one of another id, for one that was copied (its token is not far enough ahead), and for one that was
    brought by a restore and then granted to somebody, or got new input.
    """
    file = tmp_path / "backup.db"
    await kept(source, file)
    async with SqliteSessionStoreFactory(tmp_path / "new.db") as factory:
        if content == "stranger":
            await fill_small(factory, "z")
        elif content == "copied":
            async with SqliteSessionStoreFactory(file) as other:
                await copy(other, factory)
        else:
            await restore(file, factory)
            store = await factory.create_store(SessionStoreCreateRequest("a"))
            if content == "worked on":
                await lane(store, ALICE, session_id="a")
            else:
                await store.enqueue_pending_turn_input(said("new", session_id="a"))
    before = await image(tmp_path / "new.db")
    with pytest.raises(InvalidInputError, match="holds sessions that this restore did not bring there, such as"):
        await restored(file, tmp_path / "new.db")
    assert await image(tmp_path / "new.db") == before


async def test_a_backup_is_not_restored_into_itself(source: Path, tmp_path: Path) -> None:
    """The file and the destination are two databases."""
    file = tmp_path / "backup.db"
    await kept(source, file)
    with pytest.raises(InvalidInputError, match="is the source itself"):
        await restored(file, file)


async def test_a_restore_that_was_interrupted_anywhere_is_completed_by_another(source: Path, tmp_path: Path) -> None:
    """What it brought is passed over, and the end is the same as that of any other."""
    file = tmp_path / "backup.db"
    await kept(source, file)
    await restored(file, tmp_path / "whole.db")
    wanted = await image(tmp_path / "whole.db")
    for at in (3, 9, 15, 16, 22, 24, 40):
        new = tmp_path / f"{at}.db"
        hook = Countdown(at)
        async with SqliteSessionStoreFactory(new, batch_hook=hook) as factory:
            with pytest.raises((Stop, StoreError)):
                await restore(file, factory)
        there = len((await image(new))["session"])
        report = await restored(file, new)
        assert (report.present_count, report.copied_count) == (there, 4 - there)
        assert await image(new) == wanted


async def test_a_finished_restore_run_again_changes_nothing(source: Path, tmp_path: Path) -> None:
    """It finds everything there, tokens included."""
    file, new = tmp_path / "backup.db", tmp_path / "new.db"
    await kept(source, file)
    await restored(file, new)
    before = await image(new)
    assert await restored(file, new) == TransferReport(present_count=4)
    assert await image(new) == before
