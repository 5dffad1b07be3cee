"""Copying the bytes of attachments from one store to another: what a copied or restored database still lacks.

It promises that what arrives is what its id says, that the source is not touched, and that a copy that was broken off
goes on where it was. It goes by the manifest: what no session holds stays behind.
"""

from __future__ import annotations

from contextlib import aclosing

from fastness.attachments.holdings import holdings
from fastness.errors import AttachmentNotFoundError
from fastness.model import AttachmentManifest, AttachmentStore
from fastness.model.base import Value


class AttachmentTransferReport(Value, frozen=True):
    """What a copy of attachments did: contents, each counted once however many sessions hold it, and bytes copied.

    ``missing`` are those whose bytes are not in the source though a session has committed a reference to them.
    """

    copied_count: int = 0
    present_count: int = 0
    copied_byte_count: int = 0
    missing: tuple[str, ...] = ()


async def copy_attachments(
    manifest: AttachmentManifest, source: AttachmentStore, destination: AttachmentStore
) -> AttachmentTransferReport:
    """Copy the bytes of all attachments that the sessions of a database hold and the destination lacks.

    Intents count as held, and may have no bytes yet. Raises ``AttachmentDamagedError`` where the source's bytes are not
    what their id says, and what the stores raise. What was copied by then stays, and is passed over by the next run.
    """
    copied = present = size = 0
    missing: list[str] = []
    async with aclosing(holdings(manifest)) as contents:
        async for holding in contents:
            each = holding.reference.attachment_id
            if await _is_in(destination, each):
                present += 1
            elif await _is_in(source, each):
                await destination.put(source.stream(each, verify=True), attachment_id=each)
                copied, size = copied + 1, size + await destination.size(each)
            elif holding.committed:
                missing.append(each)
    return AttachmentTransferReport(copied, present, size, tuple(missing))


async def _is_in(store: AttachmentStore, attachment_id: str) -> bool:
    try:
        await store.size(attachment_id)
    except AttachmentNotFoundError:
        return False
    return True
