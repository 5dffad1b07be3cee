"""The laws of bytes alone: how content is named, and that it is there whole or not at all (A1, A5)."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from fastness.conformance.builders import pieces, reached, some
from fastness.conformance.lab import AttachmentLab, refused
from fastness.conformance.subject import Power
from fastness.errors import AttachmentDamagedError, AttachmentNotFoundError, InvalidInputError
from fastness.model import AttachmentSource, AttachmentStore

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
HELLO = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
UNKNOWN = "0" * 64
LARGE = b"".join(number.to_bytes(4) for number in range(9_000_000 // 4)) + b"and a rest"
"""More than any store takes in one piece, and no two parts of it are alike."""

SOURCES: dict[str, Callable[[bytes, Path], AttachmentSource]] = {
    "bytes": lambda content, _: content,
    "bytearray": lambda content, _: bytearray(content),
    "memoryview": lambda content, _: memoryview(content),
    "path": lambda content, path: (path.write_bytes(content) and path) or path,
    "stream": lambda content, _: pieces(content[:1], b"", content[1:3], content[3:]),
}
of_all_sources = pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
STRANGE_IDS = (
    "",
    "../../etc/passwd",
    "/etc/passwd",
    "a" * 63,
    "a" * 65,
    "A" * 64,
    "g" * 64,
    "a" * 63 + "\0",
    "\u0660" * 64,
)
READS: dict[str, Callable[[AttachmentStore, str], Awaitable[object]]] = {
    "get": lambda store, each: store.get(each),
    "part": lambda store, each: store.get(each, start=0, end=0),
    "stream": lambda store, each: streamed(store, each),  # noqa: PLW0108 - it is defined below
    "size": lambda store, each: store.size(each),
}


async def put_as(store: AttachmentStore, attachment_id: str) -> str:
    """Put something under a name."""
    return await store.put(b"hello", attachment_id=attachment_id)


async def streamed(
    store: AttachmentStore, attachment_id: str, *, start: int = 0, end: int | None = None, verify: bool = False
) -> bytes:
    """What a stream gives, in one piece."""
    return b"".join([block async for block in store.stream(attachment_id, start=start, end=end, verify=verify)])


class Halted:
    """A stream that gives what it has, says so, and comes to its end once it may. It may end with an error."""

    def __init__(self, *given: bytes, error: Exception | None = None) -> None:
        self.given = given
        self.error = error
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.given:
            yield piece
        self.reached.set()
        await self.go_on.wait()
        if self.error is not None:
            raise self.error


@of_all_sources
@pytest.mark.parametrize(("content", "name"), [(b"hello", HELLO), (b"", EMPTY)], ids=["hello", "empty"])
async def test_a1_content_is_named_by_its_sha256(
    attachments: AttachmentLab, source: Callable[..., AttachmentSource], content: bytes, name: str
) -> None:
    """The id is the same wherever the bytes come from, and under it they are there; a stream may come in odd pieces."""
    store = attachments.store
    assert await store.put(source(content, attachments.directory.parent / "source")) == name
    assert await store.put(source(content, attachments.directory.parent / "source"), attachment_id=name) == name
    again = await attachments.reopen()
    assert (await again.get(name, verify=True), await again.size(name)) == (content, len(content))
    assert await streamed(again, name, verify=True) == content
    assert await attachments.ids() == [name]


async def test_a1_content_put_at_the_same_time_is_there_once(attachments: AttachmentLab) -> None:
    """Twenty puts of the same bytes, through two instances, all give the one id."""
    stores = (attachments.store, await attachments.second())
    puts = [stores[at % 2].put(b"hello" if at % 4 else pieces(b"hel", b"lo")) for at in range(20)]
    assert await asyncio.gather(*puts) == [HELLO] * 20
    assert await attachments.ids() == [HELLO]
    assert [await store.get(HELLO, verify=True) for store in stores] == [b"hello"] * 2


@of_all_sources
async def test_a1_content_that_is_not_what_was_expected_is_refused(
    attachments: AttachmentLab, source: Callable[..., AttachmentSource]
) -> None:
    """And nothing is there under either name; nor does it touch what is there under the expected one."""
    store, path = attachments.store, attachments.directory.parent / "source"
    for name in (UNKNOWN, EMPTY):
        await refused(attachments, InvalidInputError, store.put(source(b"hello", path), attachment_id=name))
        await store.put(b"")
    assert await attachments.ids() == [EMPTY]


async def test_a5_what_is_no_source_is_refused(attachments: AttachmentLab) -> None:
    """Text, nothing at all, a path that names nothing or a directory."""
    missing = attachments.directory.parent / "missing"
    for source in ("hello", None, 7, missing, attachments.directory):
        await refused(attachments, InvalidInputError, attachments.store.put(source))  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [b"hel", LARGE], ids=["early", "late"])
async def test_a5_a_stream_that_fails_leaves_nothing(attachments: AttachmentLab, given: bytes) -> None:
    """Its own error comes out of the put, and nothing of it is there; the same content can be put after it."""
    failing = Halted(given, error=LookupError("the application's own"))
    failing.go_on.set()
    async with attachments.unchanged():
        with pytest.raises(LookupError) as caught:
            await attachments.store.put(failing)
        assert caught.value is failing.error
    name = await attachments.store.put(given)
    assert await (await attachments.reopen()).get(name, verify=True) == given


@pytest.mark.parametrize("given", [b"hello", LARGE], ids=["small", "large"])
@pytest.mark.parametrize("told", [True, False], ids=["id known", "id unknown"])
async def test_a5_a_put_shows_nothing_before_its_end(attachments: AttachmentLab, given: bytes, told: bool) -> None:
    """Neither while it waits for the last of a stream, nor after it was cancelled there."""
    name = hashlib.sha256(given).hexdigest()
    halted = Halted(given)
    putting = asyncio.ensure_future(attachments.store.put(halted, attachment_id=name if told else None))
    await reached(halted.reached, putting)
    assert await (await attachments.second()).list() == []
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting
    await attachments.reopen()
    assert await attachments.ids() == []
    halted.go_on.set()
    assert await attachments.store.put(halted) == name
    assert await attachments.ids() == [name]


async def test_a5_a_part_is_what_a_slice_is(attachments: AttachmentLab) -> None:
    """From ``start`` up to ``end``, whatever lies beyond the end of the content, also for empty content."""
    for content in (b"hello", b""):
        name = await attachments.store.put(content)
        for start, end in [
            (0, None),
            (1, 3),
            (4, 5),
            (3, 3),
            (3, 1),
            (2, None),
            (0, 99),
            (5, None),
            (9, 12),
            (99, None),
        ]:
            found = await attachments.store.get(name, start=start, end=end)
            assert found == await streamed(attachments.store, name, start=start, end=end)
            assert found == content[start:end], (content, start, end)


@of_all_sources
async def test_a5_content_of_many_blocks_is_kept_whole(
    attachments: AttachmentLab, source: Callable[..., AttachmentSource]
) -> None:
    """Nine megabytes come back as they went in, and so does a part from the middle, and the last bytes."""
    name = await attachments.store.put(source(LARGE, attachments.directory.parent / "source"))
    store = await attachments.reopen()
    assert name == hashlib.sha256(LARGE).hexdigest()
    assert await store.size(name) == len(LARGE)
    assert await streamed(store, name, verify=True) == LARGE
    assert await store.get(name, start=4_100_001, end=8_500_003) == LARGE[4_100_001:8_500_003]
    assert await store.get(name, start=len(LARGE) - 4) == b"rest"


@pytest.mark.parametrize("damage", [b"jello", b"hel", b"hello, world", b""], ids=["other", "short", "long", "empty"])
async def test_a5_damage_is_found_on_request(attachments: AttachmentLab, damage: bytes) -> None:
    """Bytes that do not hash to their id are an error where they are verified, for a stream at its end."""
    await attachments.store.put(b"hello")
    await attachments.damage(HELLO, damage)
    for read in (attachments.store.get, lambda each, verify: streamed(attachments.store, each, verify=verify)):
        with pytest.raises(AttachmentDamagedError) as caught:
            await read(HELLO, verify=True)
        assert caught.value.attachment_id == HELLO


@pytest.mark.parametrize("read", READS)
async def test_a5_unknown_content_is_told_as_such(attachments: AttachmentLab, read: str) -> None:
    """Every read of what was never put is an error that names it, also the read of no bytes."""
    await attachments.store.put(b"hello")
    error = await refused(attachments, AttachmentNotFoundError, READS[read](attachments.store, UNKNOWN))
    assert error.attachment_id == UNKNOWN


async def test_a5_deleted_content_is_gone(attachments: AttachmentLab) -> None:
    """Deleting says how many bytes it freed, none the second time, and takes nothing else; it can be put anew."""
    store = attachments.store
    await store.put(b"hello")
    await store.put(b"")
    assert [await store.delete(each) for each in (HELLO, HELLO, EMPTY, UNKNOWN)] == [5, 0, 0, 0]
    store = await attachments.reopen()
    for read in READS.values():
        with pytest.raises(AttachmentNotFoundError):
            await read(store, HELLO)
    assert await attachments.ids() == []
    assert await store.put(b"hello") == HELLO
    assert await store.get(HELLO) == b"hello"


async def test_a5_content_is_listed_in_pages(attachments: AttachmentLab) -> None:
    """All of it once, in the order of the ids, however small the page; nothing else is listed."""
    names = [await attachments.store.put(b"%d" % at) for at in range(40)]
    await attachments.reopen()
    for limit in (1, 7, 40, 1000):
        assert await attachments.ids(limit=limit) == sorted(names)
    assert len(await attachments.store.list(limit=7)) == 7
    assert await attachments.store.list(after=max(names)) == []
    with pytest.raises(InvalidInputError):
        await attachments.store.list(limit=0)


async def test_a5_an_id_that_is_no_hash_is_refused_everywhere(attachments: AttachmentLab) -> None:
    """Nothing that could be taken for a path, nor any other text, is looked for, and nothing is written."""
    store = attachments.store
    calls = {**READS, "delete": lambda store, each: store.delete(each), "put": put_as}
    async with attachments.unchanged():
        for wrong, (name, call) in itertools.product(STRANGE_IDS, calls.items()):
            with pytest.raises(InvalidInputError):
                assert await call(store, wrong) is None, f"{name} took {wrong!r}"


async def test_a5_content_outlives_a_reopening(attachments: AttachmentLab) -> None:
    """What a put has named is there for whoever opens the same place, and such a store says that it is durable."""
    attachments.needs(Power.REOPENING)
    await attachments.store.put(b"hello")
    assert await (await attachments.reopen()).get(HELLO, verify=True) == b"hello"
    assert attachments.store.persistence == "durable"


async def test_a5_two_instances_see_one_place(attachments: AttachmentLab) -> None:
    """What one has put or deleted, the other finds or misses at once."""
    attachments.needs(Power.SHARED)
    store, other = attachments.store, some(await attachments.second())
    await store.put(b"hello")
    assert (await other.get(HELLO), await other.list()) == (b"hello", [HELLO])
    assert await other.delete(HELLO) == 5
    await refused(attachments, AttachmentNotFoundError, store.get(HELLO))


async def test_a5_discarding_what_is_unfinished_takes_nothing_finished(attachments: AttachmentLab) -> None:
    """However late the cut-off: content stays, and where every put came to its end, no byte is freed."""
    await attachments.store.put(b"hello")
    await attachments.store.put(LARGE)
    async with attachments.unchanged():
        assert await attachments.store.discard_unfinished(2**53) == 0
