"""What the sessions of a database hold of attachments, content by content."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import msgspec

from fastness.model import AttachmentManifest, AttachmentManifestEntry, AttachmentRef


class Holding(msgspec.Struct, frozen=True):
    """One content: the reference that one of its sessions has, whether any committed it, and how many hold it."""

    reference: AttachmentRef
    committed: bool
    session_count: int


async def holdings(manifest: AttachmentManifest, session_id: str | None = None) -> AsyncGenerator[Holding, None]:
    """Go through the contents that a session holds, or all sessions, in the order of their ids, a page in memory."""
    found: Holding | None = None
    last: AttachmentManifestEntry | None = None
    while page := await manifest.list_attachments(session_id=session_id, after=last):
        last = page[-1]
        for entry in page:
            assert entry.reference is not None  # only releases have none, and nobody holds those
            committed = entry.state == "committed"
            if found is not None and found.reference.attachment_id == entry.attachment_id:
                found = Holding(found.reference, found.committed or committed, found.session_count + 1)
                continue
            if found is not None:
                yield found
            found = Holding(entry.reference, committed, 1)
    if found is not None:
        yield found
