"""Attachments as files: what comes in comes out, and whatever goes wrong leaves nothing behind."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from fastness.attachments.content import BLOCK_BYTES
from fastness.attachments.files import FileAttachmentStore
from fastness.errors import AttachmentDamagedError, AttachmentNotFoundError, AttachmentStoreError, InvalidInputError
from fastness.model.attachments import AttachmentSource
from fastness.model.protocols import AttachmentStore

HELLO = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
LARGE = bytes(range(256)) * 40_000
"""10,240,000 bytes: two blocks and a half."""
LARGE_ID = hashlib.sha256(LARGE).hexdigest()
FOR_EVER = 1 << 60


@pytest.fixture
def store(tmp_path: Path) -> FileAttachmentStore:
    """A store whose directory does not exist yet, nor the one above it."""
    return FileAttachmentStore(tmp_path / "above" / "store")


def files(store: FileAttachmentStore) -> list[str]:
    """All that is in a store, by the path in it."""
    return sorted(str(path.relative_to(store.root)) for path in store.root.rglob("*") if not path.is_dir())


def path_of(store: FileAttachmentStore, attachment_id: str) -> Path:
    """Where the layout says that content is."""
    return store.root / attachment_id[:2] / attachment_id


async def stream_of(*pieces: bytes) -> AsyncIterator[bytes]:
    """Give these pieces."""
    for piece in pieces:
        yield piece


async def gathered(blocks: AsyncIterator[bytes]) -> bytes:
    """All that a stream gives."""
    return b"".join([block async for block in blocks])


def a_file(folder: Path, content: bytes) -> Path:
    """A file to put."""
    path = folder / "source"
    path.write_bytes(content)
    return path


def open_files() -> int:
    """How many descriptors this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


SOURCES: dict[str, Callable[[bytes, Path], AttachmentSource]] = {
    "bytes": lambda content, folder: content,
    "bytearray": lambda content, folder: bytearray(content),
    "memoryview": lambda content, folder: memoryview(bytearray(content)),
    "numbers": lambda content, folder: memoryview(content).cast("H"),
    "path": lambda content, folder: a_file(folder, content),
    "one piece": lambda content, folder: stream_of(content),
    "pieces": lambda content, folder: stream_of(*(content[at : at + 997] for at in range(0, len(content), 997))),
}


def test_it_is_an_attachment_store_and_making_one_touches_nothing(store: FileAttachmentStore) -> None:
    """It has the protocol's methods, says that it is durable, and does no I/O before it is used."""
    assert isinstance(store, AttachmentStore)
    assert store.persistence == "durable"
    assert not store.root.parent.exists()


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("content", [b"", b"\0\xff", LARGE[:65_536], LARGE[:100_000], LARGE], ids=len)
async def test_what_is_put_comes_back(store: FileAttachmentStore, tmp_path: Path, kind: str, content: bytes) -> None:
    """Every kind of source of any size is read back, whole and in blocks, and the id is its sha256."""
    attachment_id = await store.put(SOURCES[kind](content, tmp_path))
    assert attachment_id == hashlib.sha256(content).hexdigest()
    assert await store.get(attachment_id, verify=True) == content
    assert await gathered(store.stream(attachment_id, verify=True)) == content
    assert await store.size(attachment_id) == len(content)
    assert files(store) == [f"{attachment_id[:2]}/{attachment_id}"]


async def test_ids_and_layout_are_what_they_were(store: FileAttachmentStore) -> None:
    """Known contents have known ids, stand in their shard, and only the owner may read them, also after a reopen."""
    assert await store.put(b"hello") == HELLO
    assert await store.put(b"", attachment_id=EMPTY) == EMPTY
    assert files(store) == [f"2c/{HELLO}", f"e3/{EMPTY}"]
    assert path_of(store, HELLO).stat().st_mode & 0o777 == 0o600
    assert {path.stat().st_mode & 0o777 for path in (store.root, store.root / "2c", store.root / "incoming")} == {0o700}
    assert await FileAttachmentStore(str(store.root)).get(HELLO) == b"hello"


@pytest.mark.parametrize(
    ("start", "end", "found"),
    [(0, None, b"hello"), (1, 3, b"el"), (4, 99, b"o"), (5, None, b""), (10**30, None, b""), (3, 2, b""), (0, 0, b"")],
)
async def test_parts_are_slices(store: FileAttachmentStore, start: int, end: int | None, found: bytes) -> None:
    """A part is what a slice of the content gives, also beyond its end."""
    await store.put(b"hello")
    assert await store.get(HELLO, start=start, end=end) == found
    assert await gathered(store.stream(HELLO, start=start, end=end)) == found


async def test_a_part_may_span_blocks(store: FileAttachmentStore) -> None:
    """A part of large content begins and ends at the byte, and no block is larger than it may be."""
    await store.put(LARGE)
    blocks = [block async for block in store.stream(LARGE_ID, start=5, end=9_000_000)]
    assert b"".join(blocks) == LARGE[5:9_000_000]
    assert [len(block) for block in blocks] == [BLOCK_BYTES, BLOCK_BYTES, 611_387]
    assert await store.get(LARGE_ID, start=5, end=9_000_000) == LARGE[5:9_000_000]


@pytest.mark.parametrize("damage", ["flipped", "truncated", "longer"])
async def test_damage_shows_when_it_is_looked_for(store: FileAttachmentStore, damage: str) -> None:
    """A flipped byte, a lost tail and bytes too many are found by verify, and putting the content again heals them."""
    await store.put(LARGE)
    damaged = {"flipped": LARGE[:-1] + b"\0", "truncated": LARGE[:5_000_000], "longer": LARGE + b"x"}[damage]
    path_of(store, LARGE_ID).write_bytes(damaged)
    assert await store.get(LARGE_ID) == damaged
    with pytest.raises(AttachmentDamagedError):
        await store.get(LARGE_ID, verify=True)
    with pytest.raises(AttachmentDamagedError):
        await gathered(store.stream(LARGE_ID, verify=True))
    assert await store.put(LARGE, attachment_id=LARGE_ID) == LARGE_ID
    assert await store.get(LARGE_ID, verify=True) == LARGE
    assert files(store) == [f"{LARGE_ID[:2]}/{LARGE_ID}"]


async def test_small_damaged_content_is_healed_too(store: FileAttachmentStore) -> None:
    """Putting small content again replaces what is damaged, also where the size is right."""
    await store.put(b"hello")
    path_of(store, HELLO).write_bytes(b"hellO")
    await store.put(b"hello", attachment_id=HELLO)
    assert await store.get(HELLO, verify=True) == b"hello"


@pytest.mark.parametrize("content", [b"hello", LARGE], ids=len)
@pytest.mark.parametrize("kind", ["bytes", "path"])
async def test_what_is_there_is_not_written_again(
    store: FileAttachmentStore, tmp_path: Path, kind: str, content: bytes
) -> None:
    """A put that names its id leaves the file alone if its content is there; one that does not replaces it."""
    attachment_id = await store.put(content)
    before = path_of(store, attachment_id).stat().st_ino
    assert await store.put(SOURCES[kind](content, tmp_path), attachment_id=attachment_id) == attachment_id
    assert path_of(store, attachment_id).stat().st_ino == before
    await store.put(content)
    assert path_of(store, attachment_id).stat().st_ino != before


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("content", [b"hellO!", LARGE[2:]], ids=len)
@pytest.mark.parametrize("there", [False, True], ids=["new", "there"])
async def test_other_content_than_expected_is_refused(
    store: FileAttachmentStore, tmp_path: Path, kind: str, content: bytes, there: bool
) -> None:
    """Content that does not hash to the id it was given leaves nothing, whether or not that id is there already."""
    if there:
        await store.put(b"hello")
    with pytest.raises(InvalidInputError, match=f"and not to {HELLO}"):
        await store.put(SOURCES[kind](content, tmp_path), attachment_id=HELLO)
    assert files(store) == ([f"2c/{HELLO}"] if there else [])


@pytest.mark.parametrize("before", [0, 1, 3], ids=["at once", "in the first block", "in a later block"])
async def test_a_stream_that_fails_leaves_nothing(store: FileAttachmentStore, before: int) -> None:
    """What a stream raises comes through as it is, also if it looks like an error of the disk, and nothing is left."""

    async def broken() -> AsyncIterator[bytes]:
        for _ in range(before):
            yield LARGE[:2_000_000]
        raise OSError(errno.ENOSPC, "the sender's own")

    with pytest.raises(OSError, match="the sender's own"):
        await store.put(broken())
    assert files(store) == []


@pytest.mark.parametrize("there", [False, True], ids=["while it waits", "while a thread writes"])
async def test_a_put_that_is_cancelled_leaves_nothing(
    store: FileAttachmentStore, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """A put that is cancelled waits for the thread that writes, and then nothing of it is left and nothing is open."""
    writing, go_on, written = asyncio.Event(), threading.Event(), []
    loop, write = asyncio.get_running_loop(), os.write

    def slow_write(descriptor: int, block: bytes) -> int:
        loop.call_soon_threadsafe(writing.set)
        assert go_on.wait(30)
        written.append(write(descriptor, block))
        return written[-1]

    async def endless() -> AsyncIterator[bytes]:
        yield LARGE[:BLOCK_BYTES]
        yield LARGE[:BLOCK_BYTES]
        await asyncio.Event().wait()

    opened = open_files()
    monkeypatch.setattr(os, "write", slow_write)
    putting = asyncio.create_task(store.put(endless()))
    await writing.wait()
    if not there:
        go_on.set()
        while sum(written) < 2 * BLOCK_BYTES:
            await asyncio.sleep(0.001)
    putting.cancel()
    await asyncio.sleep(0)
    putting.cancel()  # twice does not make it leave earlier
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await putting
    assert sum(written) == (1 if there else 2) * BLOCK_BYTES
    assert files(store) == []
    assert open_files() == opened


def test_a_loop_that_ends_amid_a_put_leaves_nothing(store: FileAttachmentStore) -> None:
    """A program that ends while a put is under way cancels it; nothing of it is left."""

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield LARGE[:BLOCK_BYTES]

    async def program() -> None:
        putting = asyncio.create_task(store.put(endless()))
        while not putting.done() and not files(store):
            await asyncio.sleep(0.001)

    asyncio.run(program())
    assert (store.root / "incoming").is_dir()
    assert files(store) == []


@pytest.mark.parametrize("kind", SOURCES)
async def test_content_over_the_limit_is_refused(tmp_path: Path, kind: str) -> None:
    """One byte more than the application's limit is refused and leaves nothing; the limit itself is taken."""
    for limit in (6, 5_000_000):
        store = FileAttachmentStore(tmp_path / "store", max_bytes=limit)
        with pytest.raises(InvalidInputError, match=f"more than the {limit} bytes"):
            await store.put(SOURCES[kind](LARGE[: limit + 2], tmp_path))
        assert files(store) == []
        assert await store.put(LARGE[:limit]) == hashlib.sha256(LARGE[:limit]).hexdigest()
        await store.delete(hashlib.sha256(LARGE[:limit]).hexdigest())


@pytest.mark.parametrize("limit", [0, -1, True, "5"])
def test_a_limit_is_a_positive_number(tmp_path: Path, limit: int) -> None:
    """A limit that is no positive number is refused."""
    with pytest.raises(InvalidInputError, match="max_bytes"):
        FileAttachmentStore(tmp_path, max_bytes=limit)


@pytest.mark.parametrize("root", ["", "a\0b", None, 5])
def test_a_root_is_a_path(root: str) -> None:
    """A root that names nothing is refused."""
    with pytest.raises(InvalidInputError, match="root"):
        FileAttachmentStore(root)


@pytest.mark.parametrize(
    "trick",
    [
        "",
        "..",
        "../" * 20 + "etc/passwd",
        "/etc/passwd",
        HELLO.upper(),
        HELLO[:63],
        HELLO + "0",
        HELLO + "\n",
        HELLO[:-1] + "\0",
        "../" + HELLO[3:],
        HELLO[:61] + "/..",
        None,
        HELLO.encode(),
    ],
)
async def test_an_id_is_a_hash_and_nothing_else(store: FileAttachmentStore, trick: str) -> None:
    """What is no sha256 in lower-case hexadecimal is refused by every method that takes an id."""
    calls = [store.get(trick), gathered(store.stream(trick)), store.size(trick), store.delete(trick)]
    calls += [store.put(b"hello", attachment_id=trick)] if trick is not None else []
    for call in calls:
        with pytest.raises(InvalidInputError):
            await call
    assert not store.root.exists()


@pytest.mark.parametrize("prepared", [False, True], ids=["no directory", "directory"])
async def test_what_is_not_there_is_not_found(store: FileAttachmentStore, prepared: bool) -> None:
    """An unknown id is not found, and where there is no directory the store is empty.

    To delete it frees nothing, but is refused where no put has ever been: what a sweep is told is gone it forgets, and
    the volume may only not be mounted.
    """
    if prepared:
        await store.put(b"")
    for call in (store.get(HELLO), gathered(store.stream(HELLO)), store.size(HELLO)):
        with pytest.raises(AttachmentNotFoundError):
            await call
    if prepared:
        assert await store.delete(HELLO) == 0
    else:
        with pytest.raises(AttachmentStoreError, match="is not there, or was never used"):
            await store.delete(HELLO)
    assert await store.list() == ([EMPTY] if prepared else [])
    assert await store.discard_unfinished(FOR_EVER) == 0
    assert store.root.exists() == prepared


async def test_deleting_says_what_it_frees_and_twice_is_fine(store: FileAttachmentStore) -> None:
    """The first deletion frees the content's bytes, the second none, and then it is not found."""
    await store.put(b"hello")
    assert await store.delete(HELLO) == 5
    assert await store.delete(HELLO) == 0
    with pytest.raises(AttachmentNotFoundError):
        await store.get(HELLO)


def put_link(path: Path, target: Path) -> None:
    """A symbolic link, to a file that holds what would be right."""
    target.write_bytes(b"hello")
    path.symlink_to(target)


def put_pipe(path: Path, target: Path) -> None:
    """A pipe that nobody writes to."""
    os.mkfifo(path)


def put_directory(path: Path, target: Path) -> None:
    """A directory."""
    path.mkdir()


@pytest.mark.parametrize("impostor", [put_link, put_pipe, put_directory])
async def test_only_a_file_is_content(
    store: FileAttachmentStore, tmp_path: Path, impostor: Callable[[Path, Path], None]
) -> None:
    """A link, a pipe or a directory in place of content is not followed, not waited for, not given and not listed."""
    await store.put(b"")
    impostor(path_of(store, HELLO), tmp_path / "target")
    for call in (store.get(HELLO), gathered(store.stream(HELLO)), store.size(HELLO)):
        with pytest.raises(AttachmentDamagedError, match="no regular file"):
            await call
    assert await store.list() == [EMPTY]


async def test_a_link_in_place_of_content_is_replaced(store: FileAttachmentStore, tmp_path: Path) -> None:
    """Putting content where a link stands replaces the link, and leaves what it points to alone."""
    await store.put(b"")
    put_link(path_of(store, HELLO), tmp_path / "target")
    await store.put(b"hello", attachment_id=HELLO)
    assert not path_of(store, HELLO).is_symlink()
    assert await store.get(HELLO) == b"hello"
    assert await store.delete(HELLO) == 5
    assert (tmp_path / "target").read_bytes() == b"hello"


async def test_a_source_that_is_none_is_refused(store: FileAttachmentStore, tmp_path: Path) -> None:
    """A directory, a missing file, a pipe, a NUL in a path, text and a stream of text are refused and leave nothing."""

    async def texts() -> AsyncIterator[str]:
        yield "hello"

    os.mkfifo(tmp_path / "pipe")
    paths = [tmp_path, tmp_path / "missing", tmp_path / "pipe", Path("a\0b"), Path("/dev/zero")]
    for source in (*paths, "hello", None, 5, [b"hello"], texts()):
        with pytest.raises(InvalidInputError, match="source"):
            await store.put(source)  # type: ignore[arg-type]
    assert files(store) == []


async def test_a_listing_goes_on_where_the_page_before_ended(store: FileAttachmentStore) -> None:
    """Pages of any size give every id once and in order, whatever else stands among the content."""
    ids = sorted([await store.put(b"%d" % number) for number in range(40)])
    for stray in ("notes.txt", ids[0][:2] + "/README", ids[0][:2] + "/" + "ff" * 32, ids[1][:2] + "/" + "A" * 64):
        (store.root / stray).write_bytes(b"")
    (store.root / "incoming" / ("ab" * 32)).write_bytes(b"")
    assert await store.list() == ids
    pages, after = [], ""
    while page := await store.list(after=after, limit=7):
        pages.append(list(page))
        after = page[-1]
    assert [len(page) for page in pages] == [7, 7, 7, 7, 7, 5]
    assert sum(pages, []) == ids  # noqa: RUF017 - six pages
    assert await store.list(after=ids[20][:10], limit=1) == [ids[20]]
    for limit in (0, -1, True):
        with pytest.raises(InvalidInputError, match="limit"):
            await store.list(limit=limit)


async def test_content_that_is_deleted_while_it_is_read_is_read_to_its_end(store: FileAttachmentStore) -> None:
    """A stream goes on over a file that lost its name."""
    await store.put(LARGE)
    reading = store.stream(LARGE_ID, verify=True)
    first = await anext(reading)
    assert await store.delete(LARGE_ID) == 10_240_000
    assert first + await gathered(reading) == LARGE


async def test_a_reader_that_stops_early_leaves_nothing_open(store: FileAttachmentStore) -> None:
    """A stream that is closed before its end closes its file, as one that was read to the end does."""
    await store.put(LARGE)
    opened = open_files()
    for verify in (False, True):
        reading = store.stream(LARGE_ID, verify=verify)
        assert isinstance(reading, AsyncIterator)
        await anext(reading)
        assert open_files() == opened + 1
        await reading.aclose()
        assert open_files() == opened


async def test_fifty_puts_at_once_leave_one_file(store: FileAttachmentStore) -> None:
    """The same bytes put 50 times at the same time, in both ways, are one file."""
    found = await asyncio.gather(*(store.put(LARGE[:100_000]) for _ in range(50)))
    found += await asyncio.gather(*(store.put(LARGE[:100_000], attachment_id=found[0]) for _ in range(50)))
    assert len(found) == 100
    assert len(set(found)) == 1
    assert files(store) == [f"{found[0][:2]}/{found[0]}"]
    assert await store.get(found[0], verify=True) == LARGE[:100_000]


async def test_a_shard_that_was_removed_is_made_again(store: FileAttachmentStore) -> None:
    """A store goes on when somebody tidies up its empty directories, or all of it."""
    await store.put(b"")
    for directory in ("2c", "incoming"):
        (store.root / directory).rmdir()
    await store.put(b"hello")
    (store.root / "2c" / HELLO).unlink()
    (store.root / "2c").rmdir()
    await store.put(b"hello")
    assert await store.list() == [HELLO, EMPTY]


async def test_a_root_that_is_no_directory_is_told(tmp_path: Path) -> None:
    """Where the root is a file, or below one, or a link to nowhere, puts say that the directory is missing."""
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for root in ("file", "file/below", "link"):
        store = FileAttachmentStore(tmp_path / root)
        with pytest.raises(AttachmentStoreError) as caught:
            await store.put(b"hello")
        assert caught.value.reason == "missing"
    store = FileAttachmentStore(tmp_path / "file")
    for call in (store.get(HELLO), store.size(HELLO), store.delete(HELLO), store.list(), store.discard_unfinished(1)):
        with pytest.raises(AttachmentStoreError) as caught:
            await call
        assert caught.value.reason == "missing"


async def test_memory_that_changes_meanwhile_does_no_harm(store: FileAttachmentStore) -> None:
    """A sender that uses one buffer for all its pieces, and changes it behind our back, gets content that is sound."""
    buffer = bytearray(LARGE[:BLOCK_BYTES])

    async def reused() -> AsyncIterator[bytes]:
        for number in range(4):
            buffer[:] = bytes([number]) * BLOCK_BYTES
            yield buffer  # type: ignore[misc]

    expected = b"".join(bytes([number]) * BLOCK_BYTES for number in range(4))
    assert await store.put(reused()) == hashlib.sha256(expected).hexdigest()
    assert await store.get(hashlib.sha256(expected).hexdigest(), verify=True) == expected


def test_several_loops_and_threads_may_use_one_store(store: FileAttachmentStore) -> None:
    """One store serves an event loop after the other, and several at the same time."""
    assert asyncio.run(store.put(b"hello")) == HELLO
    assert asyncio.run(store.get(HELLO)) == b"hello"

    async def elsewhere() -> list[str]:
        puts = (asyncio.to_thread(asyncio.run, store.put(b"hello")) for _ in range(3))
        return await asyncio.gather(*puts)

    assert asyncio.run(elsewhere()) == [HELLO, HELLO, HELLO]
    assert files(store) == [f"2c/{HELLO}"]
