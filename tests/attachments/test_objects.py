"""The object store over memory and over a directory: what is kept, what is refused, and what never shows."""

from __future__ import annotations

import asyncio
import builtins
import hashlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import LocalStore, MemoryStore, S3Store

from fastness.attachments.content import BLOCK_BYTES
from fastness.attachments.objects import ObjectAttachmentStore
from fastness.errors import (
    AttachmentDamagedError,
    AttachmentNotFoundError,
    AttachmentStoreError,
    InvalidInputError,
)
from fastness.model.attachments import AttachmentSource
from fastness.model.protocols import AttachmentStore

HELLO = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
UNKNOWN = "0" * 64
LARGE = bytes(range(256)) * (9 * 4096) + b"and a rest"
"""A bit more than 9 MiB: three blocks and two parts."""
LARGE_ID = hashlib.sha256(LARGE).hexdigest()

Backing = LocalStore | MemoryStore


@pytest.fixture(params=["memory", "directory"])
def backing(request: pytest.FixtureRequest, tmp_path: Path) -> Backing:
    """The library's store below the one under test."""
    return MemoryStore() if request.param == "memory" else LocalStore(tmp_path / "objects", mkdir=True)


@pytest.fixture
def store(backing: Backing, tmp_path: Path) -> ObjectAttachmentStore:
    """The store under test."""
    spool = tmp_path / "spool"
    spool.mkdir()
    return ObjectAttachmentStore(backing, prefix="some/where", spool_directory=spool)


async def stream(content: bytes, piece: int = 1_000_000) -> AsyncIterator[bytes]:
    """Content in pieces."""
    for at in range(0, len(content), piece):
        yield content[at : at + piece]


async def broken(content: bytes) -> AsyncIterator[bytes]:
    """Content whose stream fails at its end."""
    async for piece in stream(content):
        yield piece
    raise PermissionError("the application's own")


def sources(content: bytes, directory: Path) -> dict[str, AttachmentSource]:
    """The same content as every kind of source."""
    path = directory / "source"
    path.write_bytes(content)
    return {"bytes": content, "path": path, "stream": stream(content)}


async def names(backing: Backing) -> list[str]:
    """All keys below the store, in order."""
    return sorted([entry["path"] async for page in obstore.list(backing) for entry in page])


def files(directory: Path) -> list[str]:
    """All files below a directory, those too that the library does not show."""
    return sorted(path.name for path in directory.rglob("*") if path.is_file())


def test_it_is_an_attachment_store(store: ObjectAttachmentStore) -> None:
    """It has the whole protocol."""
    assert isinstance(store, AttachmentStore)


def test_only_memory_dies_with_the_process(tmp_path: Path) -> None:
    """Persistence is told apart: a directory and a bucket outlive the process, memory does not."""
    assert ObjectAttachmentStore(MemoryStore()).persistence == "inline"
    assert ObjectAttachmentStore(LocalStore(tmp_path)).persistence == "durable"
    assert ObjectAttachmentStore(S3Store("bucket", region="eu-west-1")).persistence == "durable"


@pytest.mark.parametrize("kind", ["bytes", "path", "stream"])
@pytest.mark.parametrize("content", [b"", b"hello", b"x" * BLOCK_BYTES, LARGE], ids=["0", "5", "a block", "9 MiB"])
@pytest.mark.parametrize("known", [False, True], ids=["unknown id", "known id"])
async def test_what_was_put_is_read_back(
    store: ObjectAttachmentStore, tmp_path: Path, content: bytes, kind: str, known: bool
) -> None:
    """Any content from any kind of source is kept under its hash and comes back as it was."""
    expected = hashlib.sha256(content).hexdigest()
    source = sources(content, tmp_path)[kind]
    assert await store.put(source, attachment_id=expected if known else None) == expected
    assert await store.get(expected, verify=True) == content
    assert await store.size(expected) == len(content)
    assert files(tmp_path / "spool") == []


async def test_any_memory_is_a_source(store: ObjectAttachmentStore) -> None:
    """Bytes that can change and views of bytes are kept like bytes, small and large."""
    for content in (b"hello", LARGE):
        attachment_id = hashlib.sha256(content).hexdigest()
        for source in (bytearray(content), memoryview(content)):
            assert await store.put(source) == attachment_id
            assert await store.get(attachment_id, verify=True) == content
            assert await store.delete(attachment_id) == len(content)


async def test_ids_are_known_hashes_and_keys_are_sharded(store: ObjectAttachmentStore, backing: Backing) -> None:
    """The id is the sha256, and the key is the prefix, two digits of it, and all of it."""
    assert await store.put(b"hello") == HELLO
    assert await store.put(b"") == EMPTY
    assert await names(backing) == [f"some/where/2c/{HELLO}", f"some/where/e3/{EMPTY}"]


async def test_ranges_are_slices(store: ObjectAttachmentStore) -> None:
    """A part is what a slice gives: nothing behind the end, nothing where the end is not behind the start."""
    await store.put(b"hello")
    await store.put(b"")
    assert await store.get(HELLO, start=1, end=3) == b"el"
    assert await store.get(HELLO, start=1) == b"ello"
    assert await store.get(HELLO, end=2) == b"he"
    assert await store.get(HELLO, start=3, end=99) == b"lo"
    assert await store.get(HELLO, end=2**70) == b"hello"
    for start, end in ((5, None), (5, 9), (9, None), (9, 12), (2, 2), (3, 1), (0, 0), (2**70, None)):
        assert await store.get(HELLO, start=start, end=end) == b""
    for start, end in ((0, None), (0, 5), (1, None), (1, 5)):
        assert await store.get(EMPTY, start=start, end=end) == b""


async def test_a_part_across_blocks_comes_whole(store: ObjectAttachmentStore) -> None:
    """A part of large content is the slice of it, from a stream as from get."""
    await store.put(LARGE)
    part = b"".join([block async for block in store.stream(LARGE_ID, start=4_000_001, end=9_000_000)])
    assert part == LARGE[4_000_001:9_000_000]
    assert await store.get(LARGE_ID, start=4_000_001) == LARGE[4_000_001:]


@pytest.mark.parametrize(("start", "end"), [(0, None), (0, 5), (3, None), (2, 2), (2**70, None)])
async def test_an_unknown_id_is_not_found(store: ObjectAttachmentStore, start: int, end: int | None) -> None:
    """Whatever is asked of an id that nothing is kept under, the answer is the typed not-found."""
    with pytest.raises(AttachmentNotFoundError):
        await store.get(UNKNOWN, start=start, end=end)
    with pytest.raises(AttachmentNotFoundError):
        await store.size(UNKNOWN)


@pytest.mark.parametrize(
    "bad", ["", "..", "2c/../../etc/passwd", HELLO.upper(), HELLO[:-1], HELLO + "0", HELLO + "\n", "\0" * 64, 7, None]
)
async def test_an_id_is_nothing_but_a_hash(store: ObjectAttachmentStore, backing: Backing, bad: Any) -> None:
    """Nothing but 64 hexadecimal digits in lower case reaches a key."""
    await store.put(b"hello")
    asked = [store.get(bad), store.size(bad), store.delete(bad)]
    if bad is not None:
        asked.append(store.put(b"hello", attachment_id=bad))
    for question in asked:
        with pytest.raises(InvalidInputError):
            await question
    assert await names(backing) == [f"some/where/2c/{HELLO}"]


@pytest.mark.parametrize("content", [b"hello!", LARGE], ids=["small", "large"])
@pytest.mark.parametrize("kind", ["bytes", "path", "stream"])
async def test_other_content_than_expected_never_shows(
    store: ObjectAttachmentStore, backing: Backing, tmp_path: Path, content: bytes, kind: str
) -> None:
    """Content that does not hash to the expected id is refused, and nothing of it remains."""
    with pytest.raises(InvalidInputError, match="hashes to"):
        await store.put(sources(content, tmp_path)[kind], attachment_id=UNKNOWN)
    assert await names(backing) == []
    assert files(tmp_path) == ["source"]


@pytest.mark.parametrize("content", [b"hello", LARGE], ids=["small", "large"])
@pytest.mark.parametrize("kind", ["bytes", "path", "stream"])
async def test_other_content_is_refused_for_what_is_there_too(
    store: ObjectAttachmentStore, tmp_path: Path, content: bytes, kind: str
) -> None:
    """That an id is kept already excuses no other content, and harms not what is there."""
    attachment_id = await store.put(content)
    with pytest.raises(InvalidInputError, match="hashes to"):
        await store.put(sources(content + b"!", tmp_path)[kind], attachment_id=attachment_id)
    assert await store.get(attachment_id, verify=True) == content


@pytest.mark.parametrize("content", [b"hello", LARGE], ids=["small", "large"])
@pytest.mark.parametrize("known", [False, True], ids=["unknown id", "known id"])
async def test_a_stream_that_fails_leaves_nothing(
    store: ObjectAttachmentStore, backing: Backing, tmp_path: Path, content: bytes, known: bool
) -> None:
    """What a stream raises comes through as it is, and nothing remains, neither shown nor hidden."""
    attachment_id = hashlib.sha256(content).hexdigest() if known else None
    with pytest.raises(PermissionError, match="the application's own"):
        await store.put(broken(content), attachment_id=attachment_id)
    assert await names(backing) == []
    assert files(tmp_path) == []


@pytest.mark.parametrize("known", [False, True], ids=["unknown id", "known id"])
async def test_a_put_that_is_cancelled_leaves_nothing(
    store: ObjectAttachmentStore, backing: Backing, tmp_path: Path, known: bool
) -> None:
    """Cancelling a put in the middle of a stream calls it off."""
    reached = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield LARGE
        reached.set()
        await asyncio.Event().wait()

    put = asyncio.create_task(store.put(endless(), attachment_id=LARGE_ID if known else None))
    await reached.wait()
    put.cancel()
    with pytest.raises(asyncio.CancelledError):
        await put
    assert await names(backing) == []
    assert files(tmp_path) == []


@pytest.mark.parametrize("kind", ["bytes", "path", "stream"])
async def test_the_limit_on_size_holds_for_every_source(backing: Backing, tmp_path: Path, kind: str) -> None:
    """Content beyond max_bytes is refused, also where only its stream shows how long it is; the limit itself fits."""
    store = ObjectAttachmentStore(backing, max_bytes=len(LARGE) - 1)
    with pytest.raises(InvalidInputError, match="may have"):
        await store.put(sources(LARGE, tmp_path)[kind], attachment_id=LARGE_ID)
    assert await names(backing) == []
    assert await store.put(sources(LARGE[:-1], tmp_path)[kind])


@pytest.mark.parametrize("content", [b"hello", LARGE], ids=["small", "large"])
async def test_damage_shows_when_it_is_asked_for(
    store: ObjectAttachmentStore, backing: Backing, content: bytes
) -> None:
    """Bytes changed behind the store's back are an error with verify, until they are deleted and put again."""
    attachment_id = await store.put(content)
    key = f"some/where/{attachment_id[:2]}/{attachment_id}"
    await obstore.put_async(backing, key, b"X" + content[1:])
    with pytest.raises(AttachmentDamagedError):
        await store.get(attachment_id, verify=True)
    with pytest.raises(AttachmentDamagedError):
        async for _ in store.stream(attachment_id, verify=True):
            pass
    await store.put(content)
    assert (await store.get(attachment_id))[:1] == b"X"
    await store.delete(attachment_id)
    await store.put(content)
    assert await store.get(attachment_id, verify=True) == content


@pytest.mark.parametrize("content", [b"hello", LARGE], ids=["small", "large"])
@pytest.mark.parametrize("kind", ["bytes", "path", "stream"])
@pytest.mark.parametrize("known", [False, True], ids=["unknown id", "known id"])
async def test_a_put_mends_what_was_cut_short(
    store: ObjectAttachmentStore, backing: Backing, tmp_path: Path, content: bytes, kind: str, known: bool
) -> None:
    """An object of the wrong size under an id is replaced when its content is put again."""
    attachment_id = await store.put(content)
    await obstore.put_async(backing, f"some/where/{attachment_id[:2]}/{attachment_id}", content[:3])
    await store.put(sources(content, tmp_path)[kind], attachment_id=attachment_id if known else None)
    assert await store.get(attachment_id, verify=True) == content


@pytest.mark.parametrize("source", [7, "a string", None, ["bytes"]])
async def test_what_is_no_source_is_refused(store: ObjectAttachmentStore, source: Any) -> None:
    """A source is bytes, a path or an async stream."""
    with pytest.raises(InvalidInputError):
        await store.put(source)


@pytest.mark.parametrize(
    ("part", "what"), [({"start": -1}, "start"), ({"end": True}, "end"), ({"start": 1, "verify": True}, "verify")]
)
async def test_a_part_that_makes_no_sense_is_refused(
    store: ObjectAttachmentStore, part: dict[str, Any], what: str
) -> None:
    """Positions are numbers from 0 on, and only the whole can be verified."""
    await store.put(b"hello")
    with pytest.raises(InvalidInputError) as raised:
        await store.get(HELLO, **part)
    assert raised.value.what == what


async def test_delete_is_idempotent_and_says_what_it_freed(store: ObjectAttachmentStore) -> None:
    """The first delete gives the bytes that it freed, the next one 0, and the content is gone."""
    await store.put(b"hello")
    assert await store.delete(HELLO) == 5
    assert await store.delete(HELLO) == 0
    with pytest.raises(AttachmentNotFoundError):
        await store.get(HELLO)


async def test_pages_are_in_order_and_skip_strangers(store: ObjectAttachmentStore, backing: Backing) -> None:
    """Pages put together are all ids in their order; objects of other names, or in the wrong place, are left out."""
    put = sorted([await store.put(str(number).encode()) for number in range(40)])
    for stranger in (
        "some/where/readme",
        "some/where/2c/readme",
        f"some/where/{HELLO}",
        f"some/where/ff/{HELLO}",
        f"some/where/2c/{HELLO}.bak",
        f"some/where/2c/deeper/2c/{HELLO}",
        f"some/where/2c/{HELLO.upper()}",
        f"elsewhere/2c/{HELLO}",
        f"2c/{HELLO}",
    ):
        await obstore.put_async(backing, stranger, b"hello")
    found: builtins.list[str] = []
    while page := await store.list(after=found[-1] if found else "", limit=7):
        assert len(page) <= 7
        found += page
    assert found == put
    assert await store.list() == put
    assert await store.list(after=put[9], limit=2) == put[10:12]


async def test_an_empty_store_has_an_empty_page(store: ObjectAttachmentStore) -> None:
    """No attachments are an empty page, and a limit that is no number of ids is refused."""
    assert await store.list() == []
    for limit in (0, -1, True, "7"):
        with pytest.raises(InvalidInputError):
            await store.list(limit=limit)  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [b"hello", LARGE], ids=["small", "large"])
async def test_the_same_bytes_at_once_are_one_object(
    store: ObjectAttachmentStore, backing: Backing, content: bytes
) -> None:
    """Many puts of the same bytes at once all succeed, and leave one whole object."""
    times = 50 if len(content) < 100 else 6
    ids = await asyncio.gather(*(store.put(content) for _ in range(times)))
    assert len(set(ids)) == 1
    assert await names(backing) == [f"some/where/{ids[0][:2]}/{ids[0]}"]
    assert await store.get(ids[0], verify=True) == content


async def test_nothing_unfinished_is_seen(store: ObjectAttachmentStore) -> None:
    """The library cannot see unfinished uploads: none are said to be removed, and what is whole stays."""
    await store.put(b"hello")
    assert await store.discard_unfinished(2**62) == 0
    assert await store.get(HELLO) == b"hello"


async def test_a_file_that_changes_meanwhile_is_refused(
    backing: Backing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is read once for its hash and once to be sent; if that is not the same content, nothing is kept."""
    path = tmp_path / "source"
    path.write_bytes(LARGE)
    store = ObjectAttachmentStore(backing)
    asked = store._size

    async def changed(attachment_id: str) -> int | None:
        path.write_bytes(LARGE[:-1] + b"!")
        return await asked(attachment_id)

    monkeypatch.setattr(store, "_size", changed)
    with pytest.raises(InvalidInputError, match="changed meanwhile"):
        await store.put(path)
    assert await names(backing) == []


async def test_a_spool_that_does_not_exist_is_said(backing: Backing, tmp_path: Path) -> None:
    """Where large streams cannot be kept while they are hashed, the error says so; small ones need no file."""
    store = ObjectAttachmentStore(backing, spool_directory=tmp_path / "nowhere")
    with pytest.raises(AttachmentStoreError, match="spool_directory") as raised:
        await store.put(stream(LARGE))
    assert raised.value.reason == "io"
    assert await store.put(stream(b"hello")) == HELLO


async def test_a_directory_that_is_gone_is_missing_and_not_empty(tmp_path: Path) -> None:
    """Without its directory a store has no answer: not that there is nothing, and not that this one is not there."""
    root = tmp_path / "objects"
    store = ObjectAttachmentStore(LocalStore(root, mkdir=True))
    assert await store.list() == []
    root.rmdir()
    for question in (store.list(), store.get(HELLO), store.size(HELLO), store.delete(HELLO)):
        with pytest.raises(AttachmentStoreError) as raised:
            await question
        assert raised.value.reason == "missing"


async def test_urls_name_directories_and_memory(tmp_path: Path) -> None:
    """A store in a directory is reopened by its URL with what it kept; one in memory begins empty."""
    url = tmp_path.as_uri()
    assert await ObjectAttachmentStore.from_url(url).put(b"hello") == HELLO
    again = ObjectAttachmentStore.from_url(url, max_bytes=5)
    assert await again.get(HELLO) == b"hello"
    assert again.persistence == "durable"
    memory = ObjectAttachmentStore.from_url("memory:///")
    assert memory.persistence == "inline"
    assert await memory.list() == []


@pytest.mark.parametrize("url", ["s3://bucket/some/where", "gs://bucket", "az://container/some/where"])
def test_urls_name_buckets(url: str) -> None:
    """The services are told by the URL's scheme; nothing is asked of them yet."""
    config: dict[str, Any] = {"account_name": "someone"} if url.startswith("az") else {}
    assert ObjectAttachmentStore.from_url(url, **config).persistence == "durable"


@pytest.mark.parametrize("url", ["", "bucket", "http://host/bucket", "ftp://host", "/a/path", None, 7])
def test_other_urls_are_refused(url: Any) -> None:
    """A URL that is none of ours is refused, and the error does not repeat it."""
    with pytest.raises(InvalidInputError, match="must begin with one of s3://"):
        ObjectAttachmentStore.from_url(url)


def test_a_url_error_keeps_secrets(tmp_path: Path) -> None:
    """What the library says about a wrong configuration is not repeated; a directory that is not there is missing."""
    misspelt: dict[str, Any] = {"secret_access_ky": "hush"}
    with pytest.raises(InvalidInputError) as refused:
        ObjectAttachmentStore.from_url("s3://bucket", **misspelt)
    assert "hush" not in repr(refused.value)
    assert refused.value.__context__ is None
    with pytest.raises(AttachmentStoreError) as missing:
        ObjectAttachmentStore.from_url((tmp_path / "nowhere").as_uri())
    assert missing.value.reason == "missing"


@pytest.mark.parametrize("prefix", ["..", "a/../b", "a//b", "./a", "a\0b", "a\nb", 7])
def test_a_prefix_is_plain_names(prefix: Any) -> None:
    """A prefix of keys can be no way out."""
    with pytest.raises(InvalidInputError):
        ObjectAttachmentStore(MemoryStore(), prefix=prefix)


@pytest.mark.parametrize("prefix", ["", "/", "a", "/a/", "a/b", "with space/and ä"])
async def test_a_prefix_may_be_written_with_its_slashes(prefix: str) -> None:
    """Slashes around a prefix mean nothing, and any name that can be printed does."""
    store = ObjectAttachmentStore(MemoryStore(), prefix=prefix)
    await store.put(b"hello")
    assert await store.list() == [HELLO]


def test_limits_that_make_no_sense_are_refused() -> None:
    """The largest size and the patience are positive numbers."""
    for wrong in ({"max_bytes": 0}, {"max_bytes": True}, {"patience_ms": 0}, {"patience_ms": -1}):
        with pytest.raises(InvalidInputError):
            ObjectAttachmentStore(MemoryStore(), **wrong)
        with pytest.raises(InvalidInputError):
            ObjectAttachmentStore.from_url("memory:///", **wrong)


def test_without_the_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the optional library is missing, the error names it and the command that installs it."""
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(AttachmentStoreError, match=r"pip install 'fastness\[objects\]'") as raised:
        ObjectAttachmentStore.from_url("memory:///")
    assert raised.value.reason == "missing"
