"""Laws of opening: what is refused, how it is told, and that a refusal changes nothing."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from fastness.engines import sqlite_open
from fastness.engines.sqlite import SqliteEngine
from fastness.engines.sqlite_mounts import file_system_of, is_network
from fastness.errors import (
    ContendedError,
    DatabaseFullError,
    DatabaseOpenError,
    DatabaseReadOnlyError,
    InvalidInputError,
    StoreError,
)
from fastness.sql.schema import SESSION_TABLES
from tests.engines.programs import add, add_many, query, refs

MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:40 / /home rw - nfs4 server:/home rw
31 30 0:41 / /home/local rw shared:2 master:3 - xfs /dev/vdb rw
32 22 0:42 / /with\\040space rw - cifs //server/share rw
33 22 0:43 / /twice rw - nfs server:/x rw
34 33 0:44 / /twice rw - tmpfs none rw
35 22 0:45 / /ssh rw - fuse.sshfs host: rw
this line is no mount
"""


async def opening(path: Path, **options: int) -> StoreError | None:
    """Open and close; give the error of the opening."""
    engine = SqliteEngine(path, **options)  # type: ignore[arg-type]
    try:
        await engine.start()
    except StoreError as error:
        return error
    finally:
        await engine.close()
    return None


async def made(path: Path) -> bytes:
    """Make a database with a row at the path; give its bytes."""
    engine = SqliteEngine(path)
    await engine.write(add_many(50, 1000))
    await engine.close()
    return path.read_bytes()


async def test_a_fresh_database_has_the_schema_and_survives_a_reopen(path: Path) -> None:
    """Opening where nothing is makes a database; its rows survive a reopen, and no file is left beside it."""
    engine = SqliteEngine(path)
    await engine.write(add("a"))
    tables = {name for (name,) in await engine.read(query("select name from sqlite_schema where type = 'table'"))}
    assert tables > {*SESSION_TABLES, "session", "blob", "fastness_migration"}
    assert await engine.read(query("pragma journal_mode")) == [("wal",)]
    assert await engine.verify() == []
    await engine.close()
    assert [entry.name for entry in path.parent.iterdir()] == ["store.db"]
    again = SqliteEngine(str(path))
    assert await again.read(refs) == ["a"]
    await again.close()


async def test_constructing_does_no_io(path: Path) -> None:
    """An engine that is never used touches nothing."""
    engine = SqliteEngine(path / "no" / "such" / "directory")
    await engine.close()
    assert list(path.parent.iterdir()) == []


async def test_the_connections_are_set_up_for_durability(path: Path) -> None:
    """Full sync and foreign keys on the connection that writes, or normal sync where that was chosen."""
    pragmas = "select synchronous, foreign_keys from pragma_synchronous, pragma_foreign_keys"
    for wanted, answer in (("full", 2), ("normal", 1)):
        engine = SqliteEngine(path, synchronous=wanted)  # type: ignore[arg-type]
        assert await engine.write(query(pragmas)) == [(answer, 1)]
        await engine.close()
    with pytest.raises(InvalidInputError, match="'full' or 'normal'"):
        SqliteEngine(path, synchronous="off")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "content", [b"this is no database, it is only a text of some length" * 30, b"\x00" * 8192, b"x"]
)
async def test_a_file_that_is_no_database_is_refused_unchanged(path: Path, content: bytes) -> None:
    """A file of something else is named as such, and not one byte of it changes."""
    path.write_bytes(content)
    error = await opening(path)
    assert type(error) is DatabaseOpenError
    assert str(path) in str(error)
    assert path.read_bytes() == content
    assert [entry.name for entry in path.parent.iterdir()] == ["store.db"]


@pytest.mark.parametrize("kept", [60, 1000, 4096, 50_000])
async def test_a_truncated_database_is_refused_unchanged(path: Path, kept: int) -> None:
    """A database whose end is missing is not opened, and what is left of it stays as it is."""
    content = await made(path)
    assert len(content) > 100_000
    path.write_bytes(content[:kept])
    error = await opening(path)
    assert type(error) is DatabaseOpenError
    assert path.read_bytes() == content[:kept]


async def test_a_database_of_something_else_is_refused_unchanged(path: Path) -> None:
    """A SQLite database with tables that are not ours is left alone, its journal mode included."""
    other = sqlite3.connect(path)
    other.execute("create table guests (name)")
    other.commit()
    other.close()
    content = path.read_bytes()
    error = await opening(path)
    assert type(error) is DatabaseOpenError
    assert "something else" in str(error)
    assert path.read_bytes() == content


async def test_a_newer_schema_is_refused_unchanged(path: Path) -> None:
    """Law M4: a database that a newer release has migrated is refused by number, and nothing changes."""
    await made(path)
    newer = apsw.Connection(str(path))
    newer.execute("insert into fastness_migration (version, name) values (9, 'later')")
    newer.close()
    content = path.read_bytes()
    error = await opening(path)
    assert type(error) is DatabaseOpenError
    assert "schema version 9" in str(error)
    assert path.read_bytes() == content


async def test_an_empty_file_becomes_a_database(path: Path) -> None:
    """A file of no bytes is a database without tables: it is made ours."""
    path.touch()
    assert await opening(path) is None
    assert path.stat().st_size > 0


async def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    """No directory, no database: the error names the directory, and none is made."""
    error = await opening(tmp_path / "missing" / "store.db")
    assert type(error) is DatabaseOpenError
    assert f"the directory {tmp_path / 'missing'} does not exist" in str(error)
    assert list(tmp_path.iterdir()) == []


async def test_a_directory_is_no_database(tmp_path: Path) -> None:
    """A path that names a directory is refused as such."""
    error = await opening(tmp_path)
    assert type(error) is DatabaseOpenError
    assert "is a directory" in str(error)


async def test_a_pipe_is_no_database(path: Path) -> None:
    """What is no regular file is refused before anybody would wait for it."""
    os.mkfifo(path)
    error = await opening(path)
    assert type(error) is DatabaseOpenError
    assert "no regular file" in str(error)


async def test_a_locked_database_is_waited_for_only_so_long(path: Path) -> None:
    """A lock that shuts everybody out is ``ContendedError`` after the time-out; when it goes, the same engine opens."""
    holder = apsw.Connection(str(path))
    holder.execute("begin exclusive")
    engine = SqliteEngine(path, busy_timeout_ms=60)
    with pytest.raises(ContendedError) as caught:
        await engine.start()
    assert caught.value.waited_ms >= 60
    holder.execute("rollback")
    holder.close()
    await engine.write(add("a"))
    assert await engine.read(refs) == ["a"]
    await engine.close()


async def test_an_open_that_failed_is_tried_again_by_the_next_call(tmp_path: Path) -> None:
    """A failed opening does not spoil the engine."""
    path = tmp_path / "later" / "store.db"
    engine = SqliteEngine(path)
    with pytest.raises(DatabaseOpenError):
        await engine.read(refs)
    path.parent.mkdir()
    assert await engine.read(refs) == []
    await engine.close()


# Files that cannot be written. Tests often run as root, whom permission bits do not stop: so the file system itself is
# made to refuse, where this process may do that.


@pytest.fixture
def read_only_mount(tmp_path: Path) -> Iterator[Path]:
    """A directory seen through a read-only mount; its other name is ``tmp_path / 'real'``."""
    real, view = tmp_path / "real", tmp_path / "view"
    real.mkdir()
    view.mkdir()
    if not _mount("--bind", str(real), str(view)):
        pytest.skip("this process may not mount file systems")
    _mount("-o", "remount,bind,ro", str(view))
    yield view
    subprocess.run(["umount", "--lazy", str(view)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if not _mount("-t", "tmpfs", "-o", "size=1m", "none", str(disk)):
        pytest.skip("this process may not mount file systems")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def _mount(*arguments: str) -> bool:
    if shutil.which("mount") is None or os.geteuid() != 0:
        return False
    return subprocess.run(["mount", *arguments], check=False, capture_output=True).returncode == 0


async def test_a_read_only_place_is_told_as_such(read_only_mount: Path) -> None:
    """A directory that cannot be written, with and without a database in it, is ``DatabaseReadOnlyError``."""
    assert type(await opening(read_only_mount / "store.db")) is DatabaseReadOnlyError
    await made(read_only_mount.parent / "real" / "store.db")
    assert type(await opening(read_only_mount / "store.db")) is DatabaseReadOnlyError


async def test_a_read_only_file_is_told_as_such(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that may not be written is ``DatabaseReadOnlyError``, whether the check notices or SQLite itself."""
    await made(path)
    monkeypatch.setattr(sqlite_open, "_ANY_USE", apsw.SQLITE_OPEN_READONLY)
    assert type(await opening(path)) is DatabaseReadOnlyError
    monkeypatch.undo()
    refuse_writing = os.access
    monkeypatch.setattr(os, "access", lambda name, mode: mode != os.W_OK and refuse_writing(name, mode))
    assert type(await opening(path)) is DatabaseReadOnlyError


async def test_a_full_disk_leaves_nothing_under_the_path(small_disk: Path) -> None:
    """A database that does not fit is not begun: the directory is as it was."""
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * (1024 * 1024 - 100 * 1024))
    assert type(await opening(small_disk / "store.db")) is DatabaseFullError
    assert [entry.name for entry in small_disk.iterdir()] == ["filler"]
    filler.unlink()
    assert await opening(small_disk / "store.db") is None


async def test_a_write_that_does_not_fit_is_told_and_leaves_no_trace(small_disk: Path) -> None:
    """On a full disk a write fails as such, alone; small ones go on, and the database stays sound."""
    engine = SqliteEngine(small_disk / "store.db")
    await engine.write(add("a"))
    with pytest.raises(DatabaseFullError):
        await engine.write(add_many(400, 4000))
    await engine.write(add("b"))
    assert await engine.read(refs) == ["a", "b"]
    assert await engine.verify() == []
    await engine.close()


async def test_a_write_over_the_page_limit_fails_alone() -> None:
    """SQLITE_FULL rolls the whole transaction back; the engine notices and goes on (in memory, with a page limit)."""
    engine = SqliteEngine(None)
    await engine.write(add("a"))
    await engine.write(query("pragma max_page_count = 80"))
    with pytest.raises(DatabaseFullError):
        await engine.write(add_many(400, 4000))
    await engine.write(add("b"))
    assert await engine.read(refs) == ["a", "b"]
    await engine.close()


async def test_a_file_system_without_hard_links_is_served(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a draft cannot be linked into place, the database is made where it stands."""

    def refuse(*_names: object) -> None:
        raise OSError(95, "not supported")

    monkeypatch.setattr(os, "link", refuse)
    assert await opening(path) is None
    assert [entry.name for entry in path.parent.iterdir()] == ["store.db"]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/store.db", "ext4"),
        ("/home/me", "nfs4"),
        ("/home/local/x", "xfs"),
        ("/homely", "ext4"),
        ("/with space/x", "cifs"),
        ("/twice/x", "tmpfs"),
        ("/ssh/x", "fuse.sshfs"),
    ],
)
def test_the_longest_and_latest_mount_decides(path: str, kind: str) -> None:
    """The file system of a path is that of the deepest mount above it, the later one where two are equal."""
    assert file_system_of(MOUNTS, path) == kind


def test_a_table_that_says_nothing_gives_none() -> None:
    """Without a line that fits, the kind is unknown, and unknown is not a network."""
    assert file_system_of("", "/x") is None
    assert not is_network(None)


def test_network_file_systems_are_known() -> None:
    """What several machines may have in use, a host and its guests included, is told from what is local."""
    for kind in ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "fuse.sshfs"):
        assert is_network(kind), kind
    for kind in ("drvfs", "fuse.grpcfuse", "fuse.vmhgfs-fuse", "prl_fs", "vboxsf", "virtiofs", "vmhgfs", "wekafs"):
        assert is_network(kind), kind
    for name in ("alluxio", "blobfuse2", "gcsfuse", "hdfs", "mountpoint-s3", "rclone", "s3fs"):
        assert is_network(f"fuse.{name}"), name
    for kind in ("ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs", "apfs", "fuse.gocryptfs", "fuseblk"):
        assert not is_network(kind), kind


async def test_a_network_file_system_is_refused_unless_allowed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database over a network is refused with a remedy, and nothing is made; who insists is served."""
    table = path.with_name("mounts")
    table.write_text("1 0 0:1 / / rw - nfs4 server:/ rw\n")
    monkeypatch.setattr(sqlite_open, "MOUNT_TABLE", str(table))
    error = await opening(path)
    assert type(error) is DatabaseOpenError
    assert "file system (nfs4)" in str(error)
    assert not path.exists()
    assert await opening(path, allow_network_filesystem=True) is None


async def test_verify_tells_what_is_damaged(path: Path) -> None:
    """A damaged page and a dangling reference are findings, not exceptions."""
    content = bytearray(await made(path))
    loose = apsw.Connection(str(path))
    loose.execute("insert into blob_holder (sid, holder, ref) values (1, 'head', 'nowhere')")
    loose.close()
    engine = SqliteEngine(path)
    assert await engine.verify() == ["blob_holder row 1 refers to a missing row of blob"]
    await engine.close()
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 20_000] = b"\xff" * 20_000
    path.write_bytes(content)
    engine = SqliteEngine(path)
    assert await engine.verify() != []
    await engine.close()
