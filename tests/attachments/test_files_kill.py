"""Attachments as files beside other processes, beside sweeps, on a disk that refuses, and under kills at any moment."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from fastness.attachments.content import BLOCK_BYTES
from fastness.attachments.files import FileAttachmentStore
from fastness.errors import AttachmentStoreError
from tests.attachments.test_files import (
    EMPTY,
    FOR_EVER,
    HELLO,
    LARGE,
    LARGE_ID,
    a_file,
    files,
    open_files,
    put_directory,
    put_link,
    put_pipe,
)

KILLS = 30


@pytest.fixture
def store(tmp_path: Path) -> FileAttachmentStore:
    """A store whose directory does not exist yet, nor the one above it."""
    return FileAttachmentStore(tmp_path / "above" / "store")


PUT_OVER_AND_OVER = """
import asyncio, sys
from fastness.attachments.files import FileAttachmentStore
async def main():
    for number in range(40):
        print(await FileAttachmentStore(sys.argv[1]).put(b"%d" % number * 5000))
asyncio.run(main())
"""


def child(program: str, *arguments: str | Path) -> subprocess.Popen[str]:
    """A process of its own."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)


async def test_processes_may_put_the_same_content_at_once(store: FileAttachmentStore) -> None:
    """Three processes that begin a new store and put the same content into it all succeed, and it is there once."""
    children = [child(PUT_OVER_AND_OVER, store.root) for _ in range(3)]
    said = [process.communicate()[0].split() for process in children]
    assert [process.returncode for process in children] == [0, 0, 0]
    assert said[0] == said[1] == said[2]
    assert await store.list() == sorted(said[0])
    assert files(store) == sorted(f"{name[:2]}/{name}" for name in said[0])


async def test_a_sweep_takes_what_the_dead_left_and_leaves_the_living_alone(store: FileAttachmentStore) -> None:
    """A file that nobody holds is removed when it is old enough; that of a put under way is not, however old it is."""
    go_on = asyncio.Event()

    async def waiting() -> AsyncIterator[bytes]:
        yield LARGE[:BLOCK_BYTES]
        yield LARGE[:BLOCK_BYTES]
        yield b"the second block lets the first be written"
        await go_on.wait()

    putting = asyncio.create_task(store.put(waiting()))
    while not files(store):
        await asyncio.sleep(0.001)
    (live,) = files(store)
    dead, young = store.root / "incoming" / "dead", store.root / "incoming" / "young"
    dead.write_bytes(b"123")
    young.write_bytes(b"12345")
    os.utime(dead, ns=(0, 1_000_000_999_999))
    os.utime(young, ns=(0, 1_000_001_000_000))
    os.utime(store.root / live, ns=(0, 0))
    assert await store.discard_unfinished(999_999) == 0
    assert await store.discard_unfinished(1_000_000) == 3
    assert files(store) == sorted([live, "incoming/young"])
    go_on.set()
    content = 2 * LARGE[:BLOCK_BYTES] + b"the second block lets the first be written"
    assert await putting == hashlib.sha256(content).hexdigest()
    assert await store.discard_unfinished(FOR_EVER) == 5
    assert files(store) == [f"{await putting}"[:2] + "/" + await putting]


async def test_a_put_begins_anew_when_a_sweep_comes_before_its_lock(
    store: FileAttachmentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that a sweep removes or holds just before it is locked is given up for another one."""
    await store.put(b"")
    flock, held = fcntl.flock, list[int]()

    def late_flock(descriptor: int, how: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if not held:
            held.append(os.open(path, os.O_RDONLY))
            flock(held[0], fcntl.LOCK_EX)
        elif len(held) == 1:
            held.append(-1)
            path.unlink()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late_flock)
    assert await store.put(b"hello") == HELLO
    os.close(held[0])
    assert len(held) == 2
    assert files(store) == [f"2c/{HELLO}", f"e3/{EMPTY}"]


async def test_strangers_in_incoming_are_left_alone(store: FileAttachmentStore, tmp_path: Path) -> None:
    """A sweep of unfinished puts removes files only: no link, no pipe, no directory."""
    await store.put(b"")
    put_link(store.root / "incoming" / "link", tmp_path / "target")
    put_pipe(store.root / "incoming" / "pipe", tmp_path)
    put_directory(store.root / "incoming" / "directory", tmp_path)
    assert await store.discard_unfinished(FOR_EVER) == 0
    assert len(list((store.root / "incoming").iterdir())) == 3


@pytest.mark.parametrize("content", [b"hello", LARGE], ids=len)
async def test_content_is_durable_before_it_is_visible_and_its_name_before_the_put_ends(
    store: FileAttachmentStore, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    """The file is synced, then renamed, then its directory is synced; a new directory is in its parent before that."""
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def recorded_fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink().relative_to(store.root.parent.parent)
        done.append(f"sync {path.parent if path.parent.name == 'incoming' else path}")
        fsync(descriptor)

    def recorded_rename(old: str, new: str) -> None:
        done.append(f"rename {Path(new).relative_to(store.root)}")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "rename", recorded_rename)
    name = await store.put(content)
    in_place = ["sync above/store/incoming", f"rename {name[:2]}/{name}", f"sync above/store/{name[:2]}"]
    assert done == ["sync .", "sync above", "sync above/store", *in_place]
    done.clear()
    await store.put(content)
    assert done == in_place
    done.clear()
    await store.put(content, attachment_id=name)
    await store.delete(name)
    await store.delete(name)
    assert done == [f"sync above/store/{name[:2]}"] * 3


def failing(number: int) -> Callable[..., int]:
    """A system call that fails."""

    def fail(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
@pytest.mark.parametrize("content", [b"hello", LARGE[:1_000_000], LARGE], ids=len)
@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "full"),
        (errno.EDQUOT, "full"),
        (errno.EIO, "io"),
        (errno.EROFS, "permission"),
        (errno.EPERM, "permission"),
    ],
)
async def test_a_system_call_that_fails_leaves_nothing_and_says_why(
    store: FileAttachmentStore, monkeypatch: pytest.MonkeyPatch, call: str, content: bytes, number: int, reason: str
) -> None:
    """Whichever step of a put the system refuses, nothing is left, and the error has reason, place and remedy."""
    await store.put(b"")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing(number))
        with pytest.raises(AttachmentStoreError, match="and make the same call again") as caught:
            await store.put(content)
    assert caught.value.reason == reason
    assert str(store.root) in str(caught.value)
    assert os.strerror(number) in str(caught.value)
    assert files(store) == [f"e3/{EMPTY}"]
    assert await store.put(content) == hashlib.sha256(content).hexdigest()


async def test_a_disk_that_does_not_give_content_back_is_told(
    store: FileAttachmentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the disk amid a read ends the stream, and closes its file, after the blocks that were read."""
    await store.put(LARGE)
    pread = os.pread

    def fails_later(descriptor: int, size: int, at: int) -> bytes:
        if at:
            raise OSError(errno.EIO, "Input/output error")
        return pread(descriptor, size, at)

    monkeypatch.setattr(os, "pread", fails_later)
    opened = open_files()
    reading = store.stream(LARGE_ID)
    assert await anext(reading) == LARGE[:BLOCK_BYTES]
    with pytest.raises(AttachmentStoreError, match="could not read content: Input/output error") as caught:
        await anext(reading)
    assert caught.value.reason == "io"
    assert open_files() == opened


SHORT_OF_SPACE = """
import asyncio, os, resource, sys
from pathlib import Path
from fastness.attachments.files import FileAttachmentStore
from fastness.errors import AttachmentStoreError
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
store = FileAttachmentStore(sys.argv[1])
async def pieces():
    for _ in range(3):
        yield bytes(5_000_000)
async def main():
    for source in (bytes(1_000_001), bytes(5_000_000), Path(sys.argv[2]), pieces()):
        try:
            print(await store.put(source))
        except AttachmentStoreError as error:
            print(error.reason)
    await store.put(bytes(1_000_000))
asyncio.run(main())
"""


async def test_a_file_that_may_not_grow_leaves_nothing(store: FileAttachmentStore, tmp_path: Path) -> None:
    """Where the system lets files grow to 1 MB only, larger puts fail half way as full, and what fits is taken."""
    process = child(SHORT_OF_SPACE, store.root, a_file(tmp_path, LARGE))
    assert process.communicate()[0].split() == ["full"] * 4
    assert process.returncode == 0
    (name,) = await store.list()
    assert files(store) == [f"{name[:2]}/{name}"]
    assert await store.size(name) == 1_000_000


NOBODY = """
import asyncio, os, sys
from fastness.attachments.files import FileAttachmentStore
from fastness.errors import AttachmentStoreError
store, name = FileAttachmentStore(sys.argv[1]), sys.argv[2]
async def main():
    await asyncio.to_thread(int)  # what is imported late may be out of reach then
    if os.getuid() == 0:
        os.setuid(65534)
    for call in (store.put(b"x"), store.get(name), store.delete(name), store.list(), store.size(name)):
        try:
            print(await call)
        except AttachmentStoreError as error:
            print(error.reason)
asyncio.run(main())
"""


async def test_who_may_not_look_is_told_so(store: FileAttachmentStore) -> None:
    """A process without rights on the directory is told of the permission, and never that content is not there."""
    await store.put(b"hello")
    store.root.chmod(0)
    try:
        process = child(NOBODY, store.root, HELLO)
        said = process.communicate()[0].split()
    finally:
        store.root.chmod(0o700)
    assert said == ["permission"] * 5
    assert files(store) == [f"2c/{HELLO}"]


PUTTER = """
import asyncio, os, random, sys
from pathlib import Path
from fastness.attachments.files import FileAttachmentStore

SIZES = (0, 1_000, 60_000, 300_000, 5_000_000)

async def pieces(content):
    for at in range(0, len(content), 100_000):
        yield content[at : at + 100_000]

async def main():
    store = FileAttachmentStore(sys.argv[1])
    source = Path(sys.argv[2])
    while True:
        content = os.urandom(random.choice(SIZES))
        source.write_bytes(content)
        print("begun", flush=True)
        print("done", await store.put(random.choice((content, source, pieces(content)))), flush=True)

asyncio.run(main())
"""


async def test_kills_at_any_moment_lose_and_tear_nothing(tmp_path: Path) -> None:
    """After 30 kills what was acknowledged is there, what is visible is whole, and a sweep removes all the rest."""
    chance = random.Random(20_240_502)
    store = FileAttachmentStore(tmp_path / "store")
    acknowledged: set[str] = set()
    left = 0
    for _ in range(KILLS):
        said = kill_one(store.root, tmp_path / "source", chance.random())
        acknowledged |= {line.split()[1] for line in said if line.startswith("done ")}
        left += len(list((store.root / "incoming").iterdir())) > 0
        if left % 3 == 0:  # whoever comes next may find what others left
            await store.discard_unfinished(time.time_ns() // 1_000_000)
    visible = {path.name: path for path in store.root.glob("??/*")}
    assert acknowledged - set(visible) == set(), "an acknowledged put is lost"
    assert len(acknowledged) > KILLS, "hardly anything was put"
    assert left > KILLS // 10, "hardly anybody died amid a put"
    for name, path in visible.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == name, "half a content is visible"
    assert list(await store.list()) == sorted(visible)
    unfinished = list((store.root / "incoming").iterdir())
    size = sum(path.stat().st_size for path in unfinished)
    assert await store.discard_unfinished(time.time_ns() // 1_000_000) == size
    assert list((store.root / "incoming").iterdir()) == []


def kill_one(root: Path, source: Path, share: float) -> list[str]:
    """Let one process put for a while from its first put on, kill it, and give all the lines that it wrote whole.

    It lives for a share of a time in which several puts are done, however slow the disk is.
    """
    command = [sys.executable, "-c", PUTTER, str(root), str(source)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline()]
        begun = time.monotonic()
        said.append(process.stdout.readline())
        time.sleep(share * max(0.15, 4 * (time.monotonic() - begun)))
        process.kill()
        said += process.stdout
    assert process.returncode == -9
    return [line for line in said if line.endswith("\n")]
