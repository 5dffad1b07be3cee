"""Attachments as files: one file for each content, named by its hash, whole or not there at all (law A5).

It promises that content is on the disk, and the way to it as well, when a put gives its id; that whatever else happens
nothing under that id is anything but the whole content; and that many processes, threads and event loops may use one
directory, since nothing is remembered outside of it. It knows no session and no manifest.

    root/3f/3f79bb7b…       content, in a shard named by the first two digits
    root/incoming/9c1f…     a put under way, locked by who writes it
"""

from __future__ import annotations

import _thread
import asyncio
import errno
import fcntl
import hashlib
import heapq
import os
import re
import stat
import threading
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from fastness.attachments.content import (
    BLOCK_BYTES,
    DEFAULT_MAX_BYTES,
    SMALL_BYTES,
    Block,
    Digest,
    Step,
    blocks,
    bytes_of,
    chained,
    check_max_bytes,
    check_part,
    in_thread,
    over_limit,
    path_of,
    require_id,
    verified,
)
from fastness.attachments.disk import (
    DIRECTORY_MODE,
    READ,
    Follower,
    discard_dead,
    make_directory,
    pieces_of,
    read_whole,
    sync_directory,
)
from fastness.decide import limits
from fastness.errors import AttachmentDamagedError, AttachmentNotFoundError, AttachmentStoreError, InvalidInputError
from fastness.model.attachments import AttachmentPersistence, AttachmentSource

# Where puts write until they are done. It is made last of all directories: where it is, the others are durable.
INCOMING = "incoming"

_SHARDS = tuple(f"{number:02x}" for number in range(256))
_CONTENT_NAME = re.compile(r"[0-9a-f]{64}")
_FILE_MODE = 0o600

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_NO_FILE = "what stands in its place is no regular file"
_REASONS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "full"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "permission"),
    **dict.fromkeys((errno.ENOTDIR, errno.ENOENT), "missing"),
}
_MORE_FILES = "raise the limit of open files (ulimit -n), or put fewer at once, and make the same call again"
_REMEDIES = {
    "full": "free space there, or raise the quota, and make the same call again",
    "permission": "let this process read and write that directory and all below it, and make the same call again",
    "missing": "see that this path names a directory, or one that can be made, and make the same call again",
    "io": "look at the disk and at what else uses that directory, and make the same call again",
}


class FileAttachmentStore:
    """An ``AttachmentStore`` in a directory, which is made on first use. Any number of processes may share it.

    ``max_bytes`` is the largest content that is taken. What the file system refuses is an ``AttachmentStoreError``.
    A put that is cancelled is over when it raises: nothing of it is left, or all, if it was about to give its id.
    """

    persistence: AttachmentPersistence = "durable"

    def __init__(self, root: str | Path, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        if not isinstance(root, str | Path) or not str(root) or "\0" in str(root):
            raise InvalidInputError("root", "must be the path of a directory")
        self.root = Path(root).absolute()
        self._max_bytes = check_max_bytes(max_bytes)
        self._folder = _Folder(self.root)

    async def put(self, source: AttachmentSource, *, attachment_id: str | None = None) -> str:
        """Keep content and give its id. With ``attachment_id``, other content is refused by ``InvalidInputError``.

        Where that id is given and its content is there already and sound, nothing is written; what is there and damaged
        is replaced.
        """
        expected = None if attachment_id is None else limits.check_attachment_id("attachment_id", attachment_id)
        whole: bytes | Path | None = path_of(source) if isinstance(source, os.PathLike) else None
        if isinstance(source, bytes | bytearray | memoryview) and len(view := bytes_of(source)) <= BLOCK_BYTES:
            whole = bytes(view)
        if whole is not None:
            name = await in_thread(self._folder.put_whole, whole, expected, self._max_bytes)
            if name is not None:
                return name
        # A stream can be read only once, so that it is written before anybody knows whether it had to be.
        if expected is not None and not isinstance(source, AsyncIterable) and await self._holds(source, expected):
            return expected
        if isinstance(whole, Path):
            stop = threading.Event()
            return await in_thread(self._folder.put_file, whole, expected, self._max_bytes, stop, stop=stop)
        async with aclosing(blocks(source, self._max_bytes)) as pieces:
            first, second = bytes(await anext(pieces, b"")), await anext(pieces, None)
            if second is not None:
                return await self._put_blocks((first, second), pieces, expected)
        # A file is open only while a thread works on it: thousands of slow streams may be on their way at once.
        name = await in_thread(self._folder.put_whole, first, expected, self._max_bytes)
        assert name is not None  # it is no longer than a block, and within the limit
        return name

    async def _put_blocks(self, begun: Iterable[Block], pieces: AsyncIterator[Block], expected: str | None) -> str:
        """Write and hash one block, each in a thread, while the next one is fetched."""
        incoming, digest = _Incoming(self._folder), hashlib.sha256()
        steps: list[Step[Any]] = [in_thread(incoming.create)]
        try:
            async for piece in chained(begun, pieces):
                block = _frozen(piece)
                for step in steps:
                    await step
                steps = [in_thread(incoming.write, block), in_thread(digest.update, block)]
            for step in steps:
                await step
            name = require_id(digest.hexdigest(), expected)
            for last in (incoming.sync, partial(incoming.publish, name)):
                steps = [in_thread(last)]
                await steps[0]
        finally:
            await _leave(incoming, steps)
        return name

    async def _holds(self, source: AttachmentSource, expected: str) -> bool:
        """Whether this content is here and sound. Other content is refused, as it is where nothing is here."""
        if not await asyncio.to_thread(self._folder.keeps, expected):
            return False
        digest = Digest()
        async with aclosing(blocks(source, self._max_bytes)) as pieces:
            async for block in pieces:
                await digest.add(block)
        digest.require(expected)
        return True

    async def get(self, attachment_id: str, *, start: int = 0, end: int | None = None, verify: bool = False) -> bytes:
        """Give the bytes from ``start`` up to ``end``. Raises ``AttachmentNotFoundError`` for an unknown id."""
        name = limits.check_attachment_id("attachment_id", attachment_id)
        check_part(start, end, verify=verify)
        content = await asyncio.to_thread(self._folder.read, name, start, end)
        if verify:
            digest = Digest()
            await digest.add(content)
            digest.require_sound(name)
        return content

    async def stream(
        self, attachment_id: str, *, start: int = 0, end: int | None = None, verify: bool = False
    ) -> AsyncGenerator[bytes, None]:
        """Give the bytes from ``start`` up to ``end`` in blocks. What is deleted meanwhile is still read to its end."""
        name = limits.check_attachment_id("attachment_id", attachment_id)
        check_part(start, end, verify=verify)
        async with aclosing(self._read_blocks(name, start, end)) as found:
            async for block in verified(name, found) if verify else found:
                yield block

    async def _read_blocks(self, name: str, start: int, end: int | None) -> AsyncGenerator[bytes, None]:
        opening = in_thread(self._folder.open, name)
        try:
            file = await opening
            at, stop = start, _stop(file, end)
            with self._folder.telling("read content"):
                while at < stop and (block := await in_thread(os.pread, file, min(BLOCK_BYTES, stop - at), at)):
                    at += len(block)
                    yield block
        finally:
            if opening.exception() is None:
                os.close(opening.result())

    async def size(self, attachment_id: str) -> int:
        """Give the size of the content in bytes. Raises ``AttachmentNotFoundError`` for an unknown id."""
        name = limits.check_attachment_id("attachment_id", attachment_id)
        return await asyncio.to_thread(self._folder.size, name)

    async def delete(self, attachment_id: str) -> int:
        """Remove content for good, and give how many bytes that freed: 0 where there is none.

        Where the directory is not there at all, nothing is known of its content: that is an ``AttachmentStoreError``.
        """
        name = limits.check_attachment_id("attachment_id", attachment_id)
        # Unlike a put, it may be given up as long as no thread has begun: a sweep's time for it is limited.
        return await asyncio.to_thread(self._folder.delete, name)

    async def discard_unfinished(self, older_than_epoch_ms: int) -> int:
        """Remove what puts of dead processes left, untouched since then. Gives how many bytes that freed."""
        limits.check_int63("older_than_epoch_ms", older_than_epoch_ms)
        return await in_thread(self._folder.discard_unfinished, older_than_epoch_ms)

    async def list(self, *, after: str = "", limit: int = 1000) -> Sequence[str]:
        """Give a page of ids, in their order, from behind ``after``."""
        limits.check_text("after", after)
        limits.check_positive("limit", limit)
        return await asyncio.to_thread(self._folder.page, after, limit)


class _Folder:
    """The directory, and what is done with it by whichever thread. What the system refuses is told as our error."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)  # paths are put together by hand: a Path costs as much as what is done with it

    def path(self, name: str) -> str:
        """Where content of that id is."""
        return f"{self.root}/{name[:2]}/{name}"

    @contextmanager
    def telling(self, doing: str) -> Iterator[None]:
        """Raise what the system refuses as an ``AttachmentStoreError``."""
        try:
            yield
        except OSError as error:
            reason = _REASONS.get(error.errno or 0, "io")
            detail = f"the attachment store in {self.root!r} could not {doing}: {error.strerror or error}"
            remedy = _MORE_FILES if error.errno in {errno.EMFILE, errno.ENFILE} else _REMEDIES[reason]
            raise AttachmentStoreError(reason, detail, remedy) from error

    def require(self) -> None:
        """Refuse a directory that is not there, or that no put has made ready: a volume may not be mounted."""
        if not os.path.isdir(f"{self.root}/{INCOMING}"):  # noqa: PTH112
            raise AttachmentStoreError(
                "missing",
                f"the attachment store in {self.root!r} is not there, or was never used",
                "see that its volume is mounted, or name the directory that is in use",
            )

    def prepare(self) -> None:
        """Make the directories that are missing, durably. Raises ``OSError``."""
        make_directory(Path(self.root))
        for shard in _SHARDS:
            Path(self.root, shard).mkdir(DIRECTORY_MODE, exist_ok=True)
        sync_directory(self.root)
        Path(self.root, INCOMING).mkdir(DIRECTORY_MODE, exist_ok=True)

    def put_whole(self, source: bytes | Path, expected: str | None, max_bytes: int) -> str | None:
        """Put content of at most a block in one go: waking a thread for each step would take longer than the step.

        None for what is no such content: reading it block by block takes it, or says what is wrong with it.
        """
        content = read_whole(source) if isinstance(source, Path) else source
        if content is None or len(content) > max_bytes:
            return None
        digest = hashlib.sha256()
        if expected is not None and self.keeps(expected):
            digest.update(content)
            return require_id(digest.hexdigest(), expected)
        incoming = _Incoming(self)
        try:
            incoming.create()
            hashed = _begin(digest, content)
            incoming.write(content)
            incoming.sync()
            hashed()
            name = require_id(digest.hexdigest(), expected)
            incoming.publish(name)
            return name
        finally:
            incoming.discard()

    def put_file(self, path: Path, expected: str | None, max_bytes: int, stop: threading.Event) -> str:
        """Copy a file piece by piece, until somebody says stop. Another thread hashes what was written, behind it.

        So what is hashed is what is kept, whatever becomes of the source meanwhile, and neither waits for the other.
        """
        incoming = _Incoming(self)
        try:
            incoming.create()
            with Follower(incoming.path) as written:
                for size, piece in pieces_of(path):
                    if size > max_bytes or stop.is_set():
                        raise over_limit(max_bytes)  # where it was stopped, the cancellation is what is seen of it
                    incoming.write(piece)
                    written.upto(size)
                incoming.sync()
                with self.telling("read content again"):
                    name = require_id(written.attachment_id(), expected)
            incoming.publish(name)
            return name
        finally:
            incoming.discard()

    def keeps(self, name: str) -> bool:
        """Whether content of that id is here and hashes to its id. If so, its entry is durable after this."""
        try:
            with self.telling("read content"), os.fdopen(self.open(name), "rb", buffering=0) as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != name:
                    return False
                sync_directory(os.path.dirname(self.path(name)))  # noqa: PTH120
                return True
        except (AttachmentNotFoundError, AttachmentDamagedError):
            return False

    def open(self, name: str) -> int:
        """Give a descriptor of that content, never one of a link's target or of anything but a file."""
        with self.telling("open content"):
            try:
                descriptor = os.open(self.path(name), READ)
            except FileNotFoundError:
                raise AttachmentNotFoundError(name) from None
            except OSError as error:
                if error.errno in {errno.ELOOP, errno.ENXIO}:  # a symbolic link; a socket
                    raise AttachmentDamagedError(name, _NO_FILE) from None
                raise
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.close(descriptor)
                raise AttachmentDamagedError(name, _NO_FILE)
            return descriptor

    def read(self, name: str, start: int, end: int | None) -> bytes:
        """Give a part of some content."""
        with self.telling("read content"), os.fdopen(self.open(name), "rb") as file:
            stop = _stop(file.fileno(), end)
            file.seek(min(start, stop))
            return file.read(max(0, stop - start))

    def size(self, name: str) -> int:
        """Give the size of some content in bytes."""
        with os.fdopen(self.open(name), "rb", buffering=0) as file:
            return os.fstat(file.fileno()).st_size

    def delete(self, name: str) -> int:
        """Remove content, and give the bytes freed."""
        path, freed = Path(self.path(name)), 0
        with self.telling("delete content"):
            try:
                found = path.lstat()
                path.unlink()
                freed = found.st_size if stat.S_ISREG(found.st_mode) else 0
            except FileNotFoundError:
                self.require()
            # Also where there was nothing: whoever deleted it may have died before the deletion was durable.
            with suppress(FileNotFoundError):
                sync_directory(path.parent)
        return freed

    def page(self, after: str, limit: int) -> Sequence[str]:
        """Give the ids behind ``after``, at most ``limit`` of them, in their order."""
        page: list[str] = []
        for shard in _SHARDS:
            if shard >= after[:2] and len(page) < limit:
                names = (entry.name for entry in self._files(shard) if _CONTENT_NAME.fullmatch(entry.name))
                behind = (name for name in names if name > after and name.startswith(shard))
                page += heapq.nsmallest(limit - len(page), behind)
        return page

    def discard_unfinished(self, older_than_epoch_ms: int) -> int:
        """Remove what nobody writes any more, and give the bytes freed."""
        with self.telling("remove unfinished puts"):
            return sum(discard_dead(Path(entry.path), older_than_epoch_ms) for entry in self._files(INCOMING))

    def _files(self, directory: str) -> Iterator[os.DirEntry[str]]:
        with self.telling("list it"), suppress(FileNotFoundError), os.scandir(f"{self.root}/{directory}") as found:
            yield from (entry for entry in found if entry.is_file(follow_symlinks=False))


class _Incoming:
    """A file that is being written. Its steps come one after the other, each in whichever thread.

    As long as it is open it is locked, so that a sweep in any process sees that somebody is at it.
    """

    def __init__(self, folder: _Folder) -> None:
        self._folder = folder
        self._path = ""
        self._descriptor = -1

    @property
    def path(self) -> str:
        """Where it is, until it is in its place."""
        return self._path

    def create(self) -> None:
        """Make the file, and the directories where they are missing."""
        with self._folder.telling("begin a put"):
            try:
                self._create()
            except FileNotFoundError:
                self._folder.prepare()
                self._create()

    def _create(self) -> None:
        while True:
            self._path = f"{self._folder.root}/{INCOMING}/{os.urandom(16).hex()}"
            self._descriptor = os.open(self._path, _CREATE, _FILE_MODE)
            # A sweep may have come between the two, and taken the file for one that nobody writes.
            with suppress(BlockingIOError):
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(self._descriptor).st_nlink:
                    return
            self.discard()

    def write(self, block: Block) -> None:
        """Append a block."""
        with self._folder.telling("write content"):
            rest = memoryview(block)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]

    def sync(self) -> None:
        """Make what was written durable."""
        with self._folder.telling("sync content"):
            os.fsync(self._descriptor)

    def publish(self, name: str) -> None:
        """Make the content visible under its id, durably."""
        path = self._folder.path(name)
        with self._folder.telling("put content in its place"):
            try:
                os.rename(self._path, path)  # noqa: PTH104
            except FileNotFoundError:  # somebody removed the shard
                self._folder.prepare()
                os.rename(self._path, path)  # noqa: PTH104
            self._path = ""
            sync_directory(os.path.dirname(path))  # noqa: PTH120
        self.discard()

    def discard(self) -> None:
        """Close the file, and remove it unless it is in its place. Once is enough."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            if self._path:
                with suppress(OSError):  # a sweep takes it when it is not locked any more
                    Path(self._path).unlink()
            os.close(descriptor)


def _begin(digest: hashlib._Hash, content: bytes) -> Callable[[], None]:
    """Begin to hash, in a thread of its own if that is worth it. What is given waits for the end of that."""
    if len(content) <= SMALL_BYTES:
        digest.update(content)
        return lambda: None
    done = SimpleQueue[None]()

    def run() -> None:
        digest.update(content)
        done.put(None)

    # No threading.Thread: whoever starts one sleeps until it runs, which is a good part of a put of 1 MB.
    _thread.start_new_thread(run, ())
    return done.get


async def _leave(incoming: _Incoming, steps: list[Step[Any]]) -> None:
    """Leave nothing of a put that did not come to its end."""
    try:
        # A thread that still writes would write to a descriptor that was closed, and maybe given to somebody else.
        for step in steps:
            with suppress(Exception):  # it is being raised, or comes second to what is
                await step
    finally:
        await in_thread(incoming.discard)


def _frozen(block: Block) -> bytes | memoryview:
    """Take a block out of the reach of who gave it: it must not change between being hashed and being written."""
    if isinstance(block, memoryview) and isinstance(block.obj, bytes):
        return block
    return bytes(block)


def _stop(descriptor: int, end: int | None) -> int:
    size = os.fstat(descriptor).st_size
    return size if end is None else min(end, size)
