"""``SessionAttachmentStore``: sources of every kind, what it refuses, what it leaves behind, and what it shares."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fastness.attachments.content import BLOCK_BYTES
from fastness.attachments.files import FileAttachmentStore
from fastness.attachments.memory import InMemoryAttachmentStore
from fastness.attachments.session import SessionAttachmentStore
from fastness.conformance import Lab
from fastness.conformance.builders import turn
from fastness.errors import (
    AttachmentNotFoundError,
    AttachmentNotInManifestError,
    AttachmentStoreError,
    InvalidInputError,
)
from fastness.model import AttachmentRef, AttachmentSource, RuntimePersistence
from tests.attachments.test_media import PNG

HELLO = b"hello"
HELLO_ID = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
EMPTY_ID = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
LARGE = bytes(range(256)) * 4 * 4096 * 2 + b"and a little more"
assert len(LARGE) > BLOCK_BYTES
LARGE_ID = hashlib.sha256(LARGE).hexdigest()


class Broke(Exception):  # noqa: N818 - it stands for an error of the application
    """A stream that fails."""


async def pieces(*content: bytes) -> AsyncIterator[bytes]:
    """A stream of these pieces."""
    for piece in content:
        yield piece


async def breaking(*content: bytes) -> AsyncIterator[bytes]:
    """A stream that fails behind these pieces."""
    for piece in content:
        yield piece
    raise Broke


def in_blocks(content: bytes) -> AsyncIterator[bytes]:
    """A stream of content in pieces of 1 MiB."""
    return pieces(*(content[at : at + 2**20] for at in range(0, len(content), 2**20)))


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    """Where streams wait. Whatever happens, nothing may be left in it."""
    path = tmp_path / "spool"
    path.mkdir()
    return path


def attachments(store: RuntimePersistence, of_bytes: Any, spool: Path, **options: Any) -> SessionAttachmentStore:
    """The attachments of session ``s``."""
    return SessionAttachmentStore(store, of_bytes, "s", spool_directory=spool, **options)


SOURCES = ["bytes", "bytearray", "memoryview", "memoryview of numbers", "path", "stream", "stream of one piece"]


def source_of(kind: str, content: bytes, folder: Path) -> AttachmentSource:
    """Some content as a source of a kind."""
    if kind == "path":
        (folder / "source").write_bytes(content)
        return folder / "source"
    if kind == "memoryview of numbers":
        return memoryview(content + bytes(-len(content) % 4)).cast("I") if content else memoryview(b"")
    made: dict[str, AttachmentSource] = {
        "bytes": content,
        "bytearray": bytearray(content),
        "memoryview": memoryview(content),
        "stream": in_blocks(content),
        "stream of one piece": pieces(content),
    }
    return made[kind]


@pytest.mark.parametrize("content", [b"", HELLO + b"lo!", LARGE + b"ab"], ids=["nothing", "little", "much"])
@pytest.mark.parametrize("kind", SOURCES)
async def test_content_is_kept_from_a_source_of_any_kind(
    lab: Lab, kind: str, content: bytes, tmp_path: Path, spool: Path
) -> None:
    """It comes back as it was, the next commit is told of it, and nothing is left where it waited."""
    content = content[: len(content) // 4 * 4]
    of_bytes = InMemoryAttachmentStore()
    store = await lab.store()
    mine = attachments(store, of_bytes, spool)
    reference = await mine.put(source_of(kind, content, tmp_path), name="some.bin", media_type="a/b")
    attachment_id = hashlib.sha256(content).hexdigest()
    assert reference == AttachmentRef(attachment_id, "some.bin", "a/b", len(content))
    assert mine.pending == (attachment_id,)
    assert await mine.get(attachment_id, verify=True) == content
    assert b"".join([block async for block in mine.stream(attachment_id)]) == content
    assert await mine.get(attachment_id, start=1, end=3) == content[1:3]
    assert await of_bytes.list() == [attachment_id]
    assert list(spool.iterdir()) == []


async def test_a_reference_tells_what_the_content_is(lab: Lab, spool: Path) -> None:
    """Literally: id, name, media type, size, and the pixels of an image; the second name is another reference."""
    mine = attachments(await lab.store(), InMemoryAttachmentStore(), spool)
    image = await mine.put(PNG, name="a.png")
    assert (image.media_type, image.size, image.width, image.height) == ("image/png", len(PNG), 3, 2)
    assert await mine.put(HELLO, name="a.txt") == AttachmentRef(HELLO_ID, "a.txt", "text/plain", 5)
    assert await mine.put(HELLO, name="b.csv") == AttachmentRef(HELLO_ID, "b.csv", "text/csv", 5)
    assert await mine.put(b"", name="") == AttachmentRef(EMPTY_ID, "", "text/plain", 0)
    assert mine.pending == (image.attachment_id, HELLO_ID, EMPTY_ID)


async def test_a_commit_refers_to_all_that_is_pending(lab: Lab, spool: Path) -> None:
    """A stamp names what the commit does not name yet; once it has landed nothing is pending."""
    store = await lab.store()
    mine = attachments(store, InMemoryAttachmentStore(), spool)
    await mine.put(HELLO, name="a")
    await mine.put(b"", name="b")
    landed = []

    class Stamping:
        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

        async def commit_runtime_state(self, commit: Any) -> Any:
            stamped = mine.stamp(commit)
            landed.append(stamped)
            return await store.commit_runtime_state(stamped)

    stamping: Any = Stamping()
    await turn(stamping, committed_attachment_ids=(EMPTY_ID,))
    assert landed[0].committed_attachment_ids == (EMPTY_ID, HELLO_ID)
    assert mine.pending == (HELLO_ID, EMPTY_ID)
    mine.settled(landed[0])
    assert list(mine.pending) == []
    assert mine.stamp(landed[0]) is landed[0]
    assert [entry.state for entry in await mine.list()] == ["committed", "committed"]


async def test_what_is_forgotten_is_not_pending_and_not_readable(lab: Lab, spool: Path) -> None:
    """Letting go of content before the commit leaves nothing to stamp."""
    mine = attachments(await lab.store(), InMemoryAttachmentStore(), spool)
    await mine.put(HELLO, name="a")
    await mine.forget(HELLO_ID)
    assert mine.pending == ()
    with pytest.raises(AttachmentNotInManifestError):
        await mine.get(HELLO_ID)


class Reading:
    """A byte store that, before it takes content, has something happen."""

    def __init__(self, happens: Any) -> None:
        self.inner = InMemoryAttachmentStore()
        self.happens = happens

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def put(self, source: AttachmentSource, *, attachment_id: str | None = None) -> str:
        self.happens()
        return await self.inner.put(source, attachment_id=attachment_id)


@pytest.mark.parametrize("after", [b"HELLO", b"hello!", b""])
async def test_a_path_that_changes_between_its_two_readings_is_refused(
    lab: Lab, after: bytes, tmp_path: Path, spool: Path
) -> None:
    """The bytes are not what the intent named: they are refused, there is nothing to refer to, and nothing is kept."""
    path = tmp_path / "source"
    path.write_bytes(HELLO)
    of_bytes = Reading(lambda: path.write_bytes(after))
    mine = attachments(await lab.store(), of_bytes, spool)
    with pytest.raises(InvalidInputError, match="changed meanwhile"):
        await mine.put(path, name="a")
    assert mine.pending == ()
    assert await of_bytes.list() == []
    with pytest.raises(AttachmentNotFoundError):
        await mine.get(HELLO_ID)


async def test_a_path_that_goes_between_its_two_readings_is_refused(lab: Lab, tmp_path: Path, spool: Path) -> None:
    """A file that was removed meanwhile is no source."""
    path = tmp_path / "source"
    path.write_bytes(HELLO)
    of_bytes = Reading(path.unlink)
    mine = attachments(await lab.store(), of_bytes, spool)
    with pytest.raises(InvalidInputError, match="cannot be read"):
        await mine.put(path, name="a")
    assert mine.pending == ()


async def test_a_stream_that_fails_leaves_nothing(lab: Lab, spool: Path) -> None:
    """Its own error comes through; nothing was written to the database or to the store, and no file is left."""
    of_bytes = InMemoryAttachmentStore()
    mine = attachments(await lab.store(), of_bytes, spool)
    async with lab.unchanged():
        for stream in (
            breaking(),
            breaking(HELLO),
            breaking(*(LARGE[at : at + 2**20] for at in range(0, 2**23, 2**20))),
        ):
            with pytest.raises(Broke):
                await mine.put(stream, name="a")
            assert list(spool.iterdir()) == []
    assert await of_bytes.list() == []
    assert mine.pending == ()


async def test_a_store_that_fails_leaves_no_file_and_nothing_pending(lab: Lab, spool: Path) -> None:
    """Where the bytes cannot be kept the spooled stream is gone as well, and there is nothing to refer to."""

    def fail() -> None:
        raise AttachmentStoreError("full", "the bucket is full", "empty it")

    mine = attachments(await lab.store(), Reading(fail), spool)
    for source in (in_blocks(LARGE), HELLO):
        with pytest.raises(AttachmentStoreError, match="the bucket is full"):
            await mine.put(source, name="a")
    assert list(spool.iterdir()) == []
    assert mine.pending == ()


class NoRoom:
    """A temporary file on a disk without room."""

    def __init__(self, file: Any, code: int) -> None:
        self._file = file
        self._code = code

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, _: bytes) -> int:
        """There is no room."""
        raise OSError(self._code, os.strerror(self._code))


@pytest.mark.parametrize(
    ("code", "reason"), [(errno.ENOSPC, "full"), (errno.EDQUOT, "full"), (errno.EIO, "io"), (errno.EACCES, "io")]
)
async def test_a_full_spool_is_told(
    lab: Lab, spool: Path, monkeypatch: pytest.MonkeyPatch, code: int, reason: str
) -> None:
    """A stream for which there is no room to wait is refused with the reason; nothing was written anywhere."""
    real = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **given: NoRoom(real(**given), code))
    of_bytes = InMemoryAttachmentStore()
    mine = attachments(await lab.store(), of_bytes, spool)
    async with lab.unchanged():
        with pytest.raises(AttachmentStoreError, match=errno.errorcode[code]) as caught:
            await mine.put(in_blocks(LARGE), name="a")
    assert caught.value.reason == reason
    assert list(spool.iterdir()) == []
    assert await of_bytes.list() == []


async def test_what_waits_has_no_name_that_a_crash_could_leave(lab: Lab, spool: Path) -> None:
    """While the bytes of a long stream go to their store from where they waited, that directory shows nothing."""
    seen: list[list[Path]] = []

    class Looking(InMemoryAttachmentStore):
        async def put(self, source: AttachmentSource, *, attachment_id: str | None = None) -> str:
            """Look before it is put."""
            assert isinstance(source, Path)
            seen.append(list(spool.iterdir()))
            return await super().put(source, attachment_id=attachment_id)

    mine = attachments(await lab.store(), Looking(), spool)
    assert (await mine.put(in_blocks(LARGE), name="a")).size == len(LARGE)
    assert seen == [[]]


async def test_a_spool_that_is_not_there_is_told(lab: Lab, tmp_path: Path) -> None:
    """It is an error of the store, not a traceback of the system."""
    mine = attachments(await lab.store(), InMemoryAttachmentStore(), tmp_path / "nowhere")
    with pytest.raises(AttachmentStoreError, match="ENOENT"):
        await mine.put(in_blocks(LARGE), name="a")
    assert (await mine.put(HELLO, name="a")).size == 5


@pytest.mark.parametrize("kind", SOURCES)
async def test_content_beyond_the_limit_is_refused(lab: Lab, kind: str, tmp_path: Path, spool: Path) -> None:
    """As many bytes as the limit are taken; one more is refused before anything is written."""
    of_bytes = InMemoryAttachmentStore()
    mine = attachments(await lab.store(), of_bytes, spool, max_bytes=8)
    async with lab.unchanged():
        with pytest.raises(InvalidInputError, match="more than the 8 bytes"):
            await mine.put(source_of(kind, b"x" * 12, tmp_path), name="a")
    assert await of_bytes.list() == []
    assert (await mine.put(source_of(kind, b"x" * 8, tmp_path), name="a")).size == 8


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, None, "8"])
async def test_a_limit_is_a_positive_number(lab: Lab, limit: Any, spool: Path) -> None:
    """Anything else is refused when the store is made."""
    with pytest.raises(InvalidInputError, match="max_bytes"):
        attachments(await lab.store(), InMemoryAttachmentStore(), spool, max_bytes=limit)


async def test_what_is_no_source_is_refused(lab: Lab, tmp_path: Path, spool: Path) -> None:
    """Text, a directory, a file that is not there, a pipe, a stream of texts: nothing is written."""
    os.mkfifo(tmp_path / "pipe")

    async def texts() -> AsyncIterator[Any]:
        yield "text"

    mine = attachments(await lab.store(), InMemoryAttachmentStore(), spool)
    wrong: list[Any] = [
        "text",
        None,
        5,
        [b"x"],
        tmp_path,
        tmp_path / "nowhere",
        tmp_path / "pipe",
        Path("a\0b"),
        texts(),
    ]
    async with lab.unchanged():
        for source in wrong:
            with pytest.raises(InvalidInputError, match="source"):
                await mine.put(source, name="a")


LONE = "a\ud800b"


@pytest.mark.parametrize(
    ("name", "media_type", "what"),
    [
        (LONE, None, "name"),
        ("a", LONE, "media_type"),
        (b"a", None, "name"),
        (None, None, "name"),
        ("a", 5, "media_type"),
    ],
)
async def test_what_is_no_text_is_no_name(lab: Lab, name: Any, media_type: Any, what: str, spool: Path) -> None:
    """A lone surrogate, bytes, nothing: refused before the source is read or anything is written."""
    of_bytes = InMemoryAttachmentStore()
    mine = attachments(await lab.store(), of_bytes, spool)
    async with lab.unchanged():
        with pytest.raises(InvalidInputError) as caught:
            await mine.put(breaking(), name=name, media_type=media_type)
    assert caught.value.what == what
    assert await of_bytes.list() == []


@pytest.mark.parametrize("name", ["a\0b", "x" * 4096, "../../etc/passwd", "", "\u202e", "😀" * 100])
async def test_any_text_is_a_name(lab: Lab, name: str, spool: Path) -> None:
    """A name is for people and belongs to the reference: NUL and 4 KB of it come back as they were."""
    mine = attachments(await lab.store(), InMemoryAttachmentStore(), spool)
    reference = await mine.put(HELLO, name=name)
    assert reference.name == name
    (entry,) = await mine.list()
    assert entry.reference == reference


@pytest.mark.parametrize(
    ("name", "media_type", "what"),
    [
        ("x" * 4097, None, "at most 4096 bytes"),
        ("\u00e9" * 2049, None, "at most 4096 bytes"),
        ("a", "nonsense", "like image/png"),
        ("a", "", "like image/png"),
        ("a", "text/plain\nX: y", "like image/png"),
        ("a", "text/" + "x" * 251, "at most 255 characters"),
    ],
)
async def test_names_and_media_types_have_bounds(
    lab: Lab, spool: Path, name: str, media_type: str | None, what: str
) -> None:
    """A name of more than 4 KB and what is no media type are refused before anything is written."""
    of_bytes = InMemoryAttachmentStore()
    mine = attachments(await lab.store(), of_bytes, spool)
    async with lab.unchanged():
        with pytest.raises(InvalidInputError, match=what):
            await mine.put(HELLO, name=name, media_type=media_type)
    assert await of_bytes.list() == []
    assert mine.pending == ()


# --- sharing ---


async def test_sharing_within_one_store_moves_no_bytes(lab: Lab, spool: Path) -> None:
    """The other session holds the content from its commit on, also when the first one lets go of it."""
    of_bytes = InMemoryAttachmentStore()
    mine = attachments(await lab.store(), of_bytes, spool)
    other_store = await lab.store("t")
    other = SessionAttachmentStore(other_store, of_bytes, "t")
    reference = await mine.put(HELLO, name="a.txt")
    with pytest.raises(AttachmentNotInManifestError):
        await other.get(HELLO_ID)
    assert await other.share(reference, mine) == reference
    assert other.pending == (HELLO_ID,)
    await turn(other_store, session_id="t", committed_attachment_ids=other.pending)
    await mine.forget(HELLO_ID)
    assert await other.get(HELLO_ID, verify=True) == HELLO


@pytest.mark.parametrize("content", [HELLO, LARGE], ids=["little", "much"])
async def test_sharing_between_stores_copies_the_bytes(lab: Lab, content: bytes, tmp_path: Path, spool: Path) -> None:
    """They are in both, each sound; sharing once more finds them there."""
    theirs, ours = FileAttachmentStore(tmp_path / "theirs"), InMemoryAttachmentStore()
    mine = attachments(await lab.store(), theirs, spool)
    reference = await mine.put(content, name="a")
    await lab.store("t")
    other = SessionAttachmentStore(await lab.store("t"), ours, "t")
    await other.share(reference, mine)
    await other.share(reference, mine)
    assert await ours.get(reference.attachment_id, verify=True) == content
    assert await theirs.get(reference.attachment_id, verify=True) == content
    assert list(spool.iterdir()) == []


async def test_only_what_the_other_session_holds_can_be_shared(lab: Lab, spool: Path) -> None:
    """Knowing a hash is not enough, also where the bytes are there: nothing is written."""
    of_bytes = InMemoryAttachmentStore()
    await of_bytes.put(HELLO)
    mine = attachments(await lab.store(), of_bytes, spool)
    other = SessionAttachmentStore(await lab.store("t"), of_bytes, "t")
    async with lab.unchanged():
        with pytest.raises(AttachmentNotInManifestError):
            await other.share(AttachmentRef(HELLO_ID, "a", "text/plain", 5), mine)
    assert other.pending == ()


async def test_bytes_that_the_other_store_lost_cannot_be_shared(lab: Lab, spool: Path) -> None:
    """Where the manifest holds what no store has, the sharing fails and there is nothing to refer to."""
    of_bytes, elsewhere = InMemoryAttachmentStore(), InMemoryAttachmentStore()
    mine = attachments(await lab.store(), of_bytes, spool)
    reference = await mine.put(HELLO, name="a")
    await of_bytes.delete(HELLO_ID)
    for ours in (of_bytes, elsewhere):
        other = SessionAttachmentStore(await lab.store("t"), ours, "t")
        with pytest.raises(AttachmentNotFoundError):
            await other.share(reference, mine)
        assert other.pending == ()
    assert await elsewhere.list() == []
