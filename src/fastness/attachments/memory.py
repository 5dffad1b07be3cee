"""Attachments in memory, gone with the process: for tests, and for sessions that are themselves in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

from fastness.attachments.content import (
    BLOCK_BYTES,
    DEFAULT_MAX_BYTES,
    Digest,
    blocks,
    check_max_bytes,
    check_part,
    verified,
)
from fastness.decide import limits
from fastness.errors import AttachmentNotFoundError
from fastness.model import AttachmentPersistence, AttachmentSource


class InMemoryAttachmentStore:
    """Content by its hash in a dictionary. ``max_bytes`` bounds one attachment."""

    persistence: AttachmentPersistence = "inline"

    def __init__(self, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._max_bytes = check_max_bytes(max_bytes)
        self._contents: dict[str, bytes] = {}

    async def put(self, source: AttachmentSource, *, attachment_id: str | None = None) -> str:
        """Keep content and give its id. Raises ``InvalidInputError``, also for other content than was expected."""
        if attachment_id is not None:
            limits.check_attachment_id("attachment_id", attachment_id)
        digest = Digest()
        gathered = bytearray()
        async with aclosing(blocks(source, self._max_bytes)) as pieces:
            async for piece in pieces:
                kept = bytes(piece)  # the application may write to its memory while this is hashed
                gathered += kept
                await digest.add(kept)
        found = digest.require(attachment_id)
        self._contents[found] = bytes(gathered)
        return found

    async def get(self, attachment_id: str, *, start: int = 0, end: int | None = None, verify: bool = False) -> bytes:
        """Give content, or the part of it from ``start`` up to ``end``. Raises ``AttachmentNotFoundError``."""
        part = self.stream(attachment_id, start=start, end=end, verify=verify)
        return b"".join([block async for block in part])

    async def stream(
        self, attachment_id: str, *, start: int = 0, end: int | None = None, verify: bool = False
    ) -> AsyncIterator[bytes]:
        """Give content in blocks. Raises ``AttachmentNotFoundError``, and at its end ``AttachmentDamagedError``."""
        check_part(start, end, verify=verify)
        part = _in_blocks(self._content(attachment_id)[start:end])
        async for block in verified(attachment_id, part) if verify else part:
            yield block

    async def size(self, attachment_id: str) -> int:
        """Give the number of bytes. Raises ``AttachmentNotFoundError``."""
        return len(self._content(attachment_id))

    async def delete(self, attachment_id: str) -> int:
        """Forget content, and give how many bytes that freed: 0 where there is none."""
        limits.check_attachment_id("attachment_id", attachment_id)
        return len(self._contents.pop(attachment_id, b""))

    async def list(self, *, after: str = "", limit: int = 1000) -> Sequence[str]:
        """Give a page of ids, in their order."""
        limits.check_text("after", after)
        limits.check_positive("limit", limit)
        return sorted(each for each in self._contents if each > after)[:limit]

    async def discard_unfinished(self, older_than_epoch_ms: int) -> int:
        """There is nothing unfinished to be found in memory."""
        limits.check_int63("older_than_epoch_ms", older_than_epoch_ms)
        return 0

    def _content(self, attachment_id: str) -> bytes:
        limits.check_attachment_id("attachment_id", attachment_id)
        try:
            return self._contents[attachment_id]
        except KeyError:
            raise AttachmentNotFoundError(attachment_id) from None


async def _in_blocks(content: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(content), BLOCK_BYTES):
        yield content[at : at + BLOCK_BYTES]
