"""Laws of sources: what is read is what is kept, and nothing that is named can make a put wait."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from pathlib import Path

import pytest

from fastness.attachments.content import open_regular
from fastness.persistence import AttachmentStore, FileAttachmentStore, InMemoryAttachmentStore, InvalidInputError


@pytest.fixture(params=["memory", "files"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> AttachmentStore:
    """Stores that read what the application gives them by themselves."""
    return InMemoryAttachmentStore() if request.param == "memory" else FileAttachmentStore(tmp_path / "store")


async def test_memory_that_changes_during_a_put_is_kept_as_it_was_hashed(store: AttachmentStore) -> None:
    """Whatever of the change the put saw, its id is the hash of what it keeps."""
    content = bytearray(9 * 1024 * 1024)
    putting = asyncio.create_task(store.put(content))
    while not putting.done():
        content[-1] ^= 1
        content[0] ^= 1
        await asyncio.sleep(0)
    kept = await store.get(await putting)
    assert hashlib.sha256(kept).hexdigest() == await putting


def test_a_pipe_is_refused_without_waiting_for_its_other_end(tmp_path: Path) -> None:
    """It is told by what was opened, so that it does not matter when it came into the place of a file."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidInputError, match="names no regular file"):
        open_regular(tmp_path / "pipe")


class InBytes(os.PathLike[str]):
    """A path that does not say text."""

    def __fspath__(self) -> str:
        return b"name"  # type: ignore[return-value]


async def test_odd_sources_are_invalid_input_in_every_store(store: AttachmentStore) -> None:
    """A path of bytes, memory that was released, and memory with gaps are refused by name, not by accident."""
    released = memoryview(b"gone")
    released.release()
    with_gaps = memoryview(b"abcdef")[::2]
    for source in (InBytes(), released, with_gaps):
        with pytest.raises(InvalidInputError, match="source"):
            await store.put(source)  # type: ignore[arg-type]
    assert await store.list() == []


async def test_a_put_of_a_file_that_is_cancelled_stops_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not go on to the end of a large file before it hears of it."""
    source = tmp_path / "source"
    source.write_bytes(b"x" * 64 * 1024 * 1024)
    store = FileAttachmentStore(tmp_path / "store")
    written: list[int] = []
    write, begun, go_on, loop = os.write, asyncio.Event(), threading.Event(), asyncio.get_running_loop()

    def slow(descriptor: int, block: bytes) -> int:
        loop.call_soon_threadsafe(begun.set)
        assert go_on.wait(30)
        written.append(write(descriptor, block))
        return written[-1]

    monkeypatch.setattr(os, "write", slow)
    putting = asyncio.create_task(store.put(source))
    await begun.wait()
    putting.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await putting
    assert sum(written) < 64 * 1024 * 1024
    assert await store.list() == []
    assert list((store.root / "incoming").iterdir()) == []


async def test_a_file_that_changes_while_it_is_put_is_kept_as_it_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hash is that of what was written, whatever somebody does to the source meanwhile."""
    source = tmp_path / "source"
    source.write_bytes(b"x" * 16 * 1024 * 1024)
    store = FileAttachmentStore(tmp_path / "store")
    write = os.write

    def meddling(descriptor: int, block: bytes) -> int:
        done = write(descriptor, block)
        with source.open("r+b") as file:
            file.write(os.urandom(16 * 1024 * 1024))
        return done

    monkeypatch.setattr(os, "write", meddling)
    name = await store.put(source)
    monkeypatch.undo()
    assert hashlib.sha256(await store.get(name)).hexdigest() == name
    assert await store.get(name, verify=True)
