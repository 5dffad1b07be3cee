"""Content on its way in and out: sources as blocks of bounded size, hashes, and the part of it that was asked for.

It promises that no more than a block or two of a source is in memory at a time, and that the event loop never hashes or
reads much by itself. It knows no store and no session.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import stat
import threading
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from pathlib import Path
from typing import TypeAlias, TypeVar

from fastness.errors import AttachmentDamagedError, InvalidInputError
from fastness.model.attachments import AttachmentSource

BLOCK_BYTES = 4 * 1024 * 1024
"""How much is read, hashed and written at a time: a thread is woken for each block, so they must not be small."""

SMALL_BYTES = 64 * 1024
"""What is hashed where it is: waking a thread for it would take longer."""

DEFAULT_MAX_BYTES = 5 * 1024**3
"""The largest attachment that is taken, unless the application says otherwise: 5 GiB."""

T = TypeVar("T")

Block: TypeAlias = "bytes | bytearray | memoryview"


def check_max_bytes(max_bytes: int) -> int:
    """Take the application's limit for one attachment, in bytes."""
    if not isinstance(max_bytes, int) or isinstance(max_bytes, bool) or max_bytes < 1:
        raise InvalidInputError("max_bytes", "must be a positive number of bytes")
    return max_bytes


async def blocks(source: AttachmentSource, max_bytes: int) -> AsyncGenerator[Block, None]:
    """Give the content of a source in blocks of at most ``BLOCK_BYTES``, all but the last about that long.

    Raises ``InvalidInputError`` for what is no source, a file that cannot be read, and content beyond ``max_bytes``.
    What a stream raises is the application's own and goes through as it is.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        found = _of_memory(source)
    elif isinstance(source, os.PathLike):
        found = _of_file(path_of(source))
    elif isinstance(source, AsyncIterable):
        found = _of_stream(source)
    else:
        raise InvalidInputError(
            "source", f"must be bytes, a path (pathlib.Path) or an async stream, not {type(source).__name__}"
        )
    size = 0
    async with aclosing(found):
        async for block in found:
            size += len(block)
            if size > max_bytes:
                raise over_limit(max_bytes)
            yield block


async def chained(begun: Iterable[Block], rest: AsyncIterator[Block]) -> AsyncIterator[Block]:
    """Give what was fetched already, and then the rest."""
    for block in begun:
        yield block
    async for block in rest:
        yield block


def path_of(source: os.PathLike[str]) -> Path:
    """Give a path as one of text. Raises ``InvalidInputError`` for one of bytes."""
    try:
        return Path(source)
    except TypeError:
        raise InvalidInputError("source", "must be a path of text") from None


async def _of_memory(content: Block) -> AsyncGenerator[Block, None]:
    view = bytes_of(content)
    for at in range(0, len(view), BLOCK_BYTES):
        yield view[at : at + BLOCK_BYTES]


def bytes_of(content: Block) -> memoryview:
    """Look at memory as bytes. Raises ``InvalidInputError`` for a view that is not contiguous, or was released."""
    try:
        return memoryview(content).cast("B")
    except (TypeError, ValueError):
        raise InvalidInputError("source", "must be contiguous memory that is still there") from None


async def _of_file(path: Path) -> AsyncGenerator[Block, None]:
    try:
        opening = in_thread(open_regular, path)
        try:
            file = await opening
            while block := await in_thread(file.read, BLOCK_BYTES):
                yield block
        finally:
            # Who is cancelled while the file is opened never gets to see it.
            if opening.done() and opening.exception() is None:
                opening.result().close()
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: Exception) -> InvalidInputError:
    """Give the error for a file that cannot be read."""
    said = getattr(error, "strerror", None) or str(error)
    return InvalidInputError("source", f"cannot be read: {str(path)!r}: {said}")


def over_limit(max_bytes: int) -> InvalidInputError:
    """Give the error for content that is too large."""
    return InvalidInputError("source", f"has more than the {max_bytes} bytes that an attachment may have")


def open_regular(path: Path) -> io.FileIO:
    """Open a file to be read. Raises ``InvalidInputError`` for what is none, such as a pipe, and waits for nothing."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    # By the descriptor: under the name there may be something else by now.
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InvalidInputError("source", f"names no regular file that can be read: {str(path)!r}")
    return io.FileIO(descriptor)


async def _of_stream(stream: AsyncIterable[Block]) -> AsyncGenerator[Block, None]:
    """Gather what comes in small pieces, and cut what comes in large ones."""
    gathered = bytearray()
    async for piece in stream:
        if not isinstance(piece, bytes | bytearray | memoryview):
            raise InvalidInputError("source", f"must be a stream of bytes, and gave {type(piece).__name__}")
        view = bytes_of(piece)
        for at in range(0, len(view), BLOCK_BYTES):
            gathered += view[at : at + BLOCK_BYTES]
            if len(gathered) >= BLOCK_BYTES:
                yield bytes(gathered[:BLOCK_BYTES])
                del gathered[:BLOCK_BYTES]
    if gathered:
        yield gathered


class Step(asyncio.Future[T]):
    """What a thread does, and cannot be stopped from: who awaits it and is cancelled hears of that when it is done.

    So nothing is closed or removed while a thread still works on it. ``stop`` is set then, for a step that looks at it.
    """

    stop: threading.Event | None = None

    def cancel(self, msg: object = None) -> bool:
        """Refuse. The task that waits is then cancelled when this is done."""
        if self.stop is not None:
            self.stop.set()
        return False


def in_thread(step: Callable[..., T], *arguments: object, stop: threading.Event | None = None) -> Step[T]:
    """Do something in a thread, from now on."""
    loop = asyncio.get_running_loop()
    done: Step[T] = Step(loop=loop)
    done.stop = stop

    def run() -> None:
        try:
            result = step(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is raised where this is awaited
            loop.call_soon_threadsafe(done.set_exception, error)
        else:
            loop.call_soon_threadsafe(done.set_result, result)

    loop.run_in_executor(None, run)
    return done


class Digest:
    """The sha256 of blocks that come one after the other."""

    def __init__(self) -> None:
        self.size = 0
        self._hash = hashlib.sha256()

    async def add(self, block: Block) -> None:
        """Take in a block. No other one may come before this is done."""
        self.size += len(block)
        if len(block) <= SMALL_BYTES:
            self._hash.update(block)
        else:
            await asyncio.to_thread(self._hash.update, block)

    @property
    def attachment_id(self) -> str:
        """The id of all that was taken in."""
        return self._hash.hexdigest()

    def require(self, attachment_id: str | None) -> str:
        """Give the id. Raises ``InvalidInputError`` if another one was expected."""
        return require_id(self.attachment_id, attachment_id)

    def require_sound(self, attachment_id: str) -> None:
        """Raise ``AttachmentDamagedError`` if what was taken in is not what a store should have under this id."""
        if self.attachment_id != attachment_id:
            raise AttachmentDamagedError(attachment_id, f"{self.size} bytes hash to {self.attachment_id}")


def require_id(found: str, expected: str | None) -> str:
    """Give the id of content that was read. Raises ``InvalidInputError`` if another one was expected."""
    if expected is not None and found != expected:
        raise InvalidInputError(
            "source", f"hashes to {found} and not to {expected}: other content, or cut short, or changed meanwhile"
        )
    return found


def check_part(start: int, end: int | None, *, verify: bool) -> None:
    """Take the part of some content that is asked for. Only the whole can be verified."""
    for what, at in (("start", start), ("end", end)):
        if at is not None and (not isinstance(at, int) or isinstance(at, bool) or at < 0):
            raise InvalidInputError(what, "must be a number of bytes, 0 or more")
    if verify and (start > 0 or end is not None):
        raise InvalidInputError("verify", "needs the whole content: leave start and end out")


async def verified(attachment_id: str, content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Pass content through, and raise ``AttachmentDamagedError`` at its end if it is not what its id says."""
    digest = Digest()
    async for block in content:
        await digest.add(block)
        yield block
    digest.require_sound(attachment_id)
