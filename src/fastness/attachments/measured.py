"""Content whose hash is known before it is kept, and that can be read again.

A put has to name its content before the first byte of it goes anywhere. What is in memory or in a file is read twice; a
stream, which is read once, waits in memory while it is short, else in a temporary file without a name where the system
has such: nobody else can open it, and nothing is left of it when the process dies.
"""

from __future__ import annotations

import asyncio
import errno
import os
import tempfile
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import IO, NamedTuple, Self

from fastness.attachments.content import Block, Digest, blocks, path_of
from fastness.errors import AttachmentStoreError
from fastness.model import AttachmentSource

HEAD_BYTES = 1024 * 1024
"""How much of the beginning is kept, for whoever wants to know what it is: photographs open with previews."""


class Measured(NamedTuple):
    """Content that can be read again, with what its first reading told: ``size`` in bytes and its first ``head``."""

    content: bytes | bytearray | memoryview | Path
    attachment_id: str
    size: int
    head: bytes


@asynccontextmanager
async def measured(
    source: AttachmentSource, max_bytes: int, spool_directory: Path | None = None
) -> AsyncIterator[Measured]:
    """Read a source for its hash; at the end of the context a stream's temporary file is gone.

    Raises what ``blocks`` raises, and ``AttachmentStoreError`` where there is no room for a stream to wait.
    """
    if isinstance(source, AsyncIterable):
        with _Spool(spool_directory) as spool:
            yield await _read(source, max_bytes, spool)
    else:
        yield await _read(source, max_bytes, None)


async def _read(source: AttachmentSource, max_bytes: int, spool: _Spool | None) -> Measured:
    digest = Digest()
    head = bytearray()
    async with aclosing(blocks(source, max_bytes)) as pieces:
        async for piece in pieces:
            await digest.add(piece)
            head += piece[: max(0, HEAD_BYTES - len(head))]
            if spool is not None:
                await spool.add(piece)
    content = await spool.content() if spool is not None else source
    if isinstance(content, os.PathLike):
        content = path_of(content)
    assert not isinstance(content, AsyncIterable)
    return Measured(content, digest.attachment_id, digest.size, bytes(head))


class _Spool:
    """Where a stream waits: its first block in memory, and a file as soon as there is a second one."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._first: bytes | None = None
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    async def add(self, block: Block) -> None:
        """Take in a block."""
        if self._first is None:
            self._first = bytes(block)
        else:
            await asyncio.to_thread(self._write, block)

    async def content(self) -> bytes | Path:
        """Give all that was taken in."""
        if self._file is None:
            return self._first or b""
        await asyncio.to_thread(self._file.flush)
        return Path(self._file.name) if isinstance(self._file.name, str) else _by_descriptor(self._file)

    def _write(self, block: Block) -> None:
        try:
            if self._file is None:
                self._file = _temporary_file(self._directory)
                self._file.write(self._first or b"")
                self._first = b""
            self._file.write(block)
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, "unknown error")
            raise AttachmentStoreError(
                "full" if name in {"ENOSPC", "EDQUOT"} else "io",
                f"the temporary file of a stream cannot be written ({name})",
                "free some space there, or name another spool_directory; nothing was kept, so put it again",
            ) from error


def _temporary_file(directory: Path | None) -> IO[bytes]:
    """Make a file that can be read again, by a path, while it is open."""
    file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 - closed at the end of the context
    if _by_descriptor(file).exists():
        return file
    file.close()
    return tempfile.NamedTemporaryFile(dir=directory, prefix="fastness-")


def _by_descriptor(file: IO[bytes]) -> Path:
    return Path(f"/proc/self/fd/{file.fileno()}")
