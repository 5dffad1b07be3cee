"""The attachments of one session: the only face of them that whoever runs a session needs (laws A1 to A3).

It promises that an intent is durable before a byte of the content is, that nothing is read which this session's own
manifest does not hold, and that the next commit is told what to refer to. It knows no database and no kind of store.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path

from fastness.attachments.content import DEFAULT_MAX_BYTES, check_max_bytes
from fastness.attachments.measured import Measured, measured
from fastness.attachments.media import describe
from fastness.decide import limits
from fastness.errors import (
    AttachmentNotFoundError,
    AttachmentNotInManifestError,
    ContendedError,
    InvalidInputError,
)
from fastness.model import (
    AttachmentIntent,
    AttachmentManifest,
    AttachmentManifestEntry,
    AttachmentProof,
    AttachmentRef,
    AttachmentSource,
    AttachmentStore,
    RuntimeCommit,
)

_TRIES = 5
"""How often a put starts over because a sweep took its intent: its cut-off was later than the put's beginning."""


class SessionAttachmentStore:
    """Puts and reads the attachments of a session.

    ``manifest`` is a store of the session's database, ``store`` keeps the bytes. ``max_bytes`` bounds one attachment.
    A stream that is larger than a few megabytes waits in a temporary file until its hash is known, in
    ``spool_directory`` or the system's own.
    """

    def __init__(
        self,
        manifest: AttachmentManifest,
        store: AttachmentStore,
        session_id: str,
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
        spool_directory: Path | None = None,
    ) -> None:
        self.session_id = limits.check_id("session_id", session_id)
        self._manifest = manifest
        self._store = store
        self._max_bytes = check_max_bytes(max_bytes)
        self._spool_directory = spool_directory
        self._pending: dict[str, AttachmentProof] = {}

    # --- writing ---

    async def put(self, source: AttachmentSource, *, name: str, media_type: str | None = None) -> AttachmentRef:
        """Keep content and give the reference to it, which the next commit has to stamp.

        A path is read twice, and refused if it changed in between. ``media_type`` is told from the content where it is
        not given; images have their size in pixels. Of content that the session holds already, the manifest keeps the
        name and media type that it has; the reference has the new ones.

        Raises ``InvalidInputError`` for a source that cannot be read or is too large, ``AttachmentStoreError`` where
        the bytes cannot be kept, ``ContendedError`` where sweeps are in the way. Then there is nothing to refer to.
        """
        limits.check_attachment_name("name", name)
        if media_type is not None:
            limits.check_media_type("media_type", media_type)
        async with measured(source, self._max_bytes, self._spool_directory) as found:
            reference = await _reference(found, name, media_type)

            async def put_bytes() -> None:
                """Write the content."""
                await self._store.put(found.content, attachment_id=reference.attachment_id)

            await self._under_intent(reference, put_bytes)
        return reference

    async def share(self, reference: AttachmentRef, source: SessionAttachmentStore) -> AttachmentRef:
        """Take over content that another session holds; the next commit of this one has to stamp it.

        The bytes stay where they are, if both sessions keep them in one store, which only sessions of one database may
        do. Raises ``AttachmentNotInManifestError``
        where the other session does not hold it, and ``InvalidInputError`` for a reference of another size.
        """
        limits.check_attachment_ref("reference", reference)
        attachment_id = reference.attachment_id
        await source.require_held(attachment_id)

        async def have_bytes() -> None:
            """See that the content is there, and bring it from the other store where it is not."""
            try:
                size = await self._store.size(attachment_id)
            except AttachmentNotFoundError:
                if source._store is self._store:
                    raise
                await self._store.put(source._store.stream(attachment_id), attachment_id=attachment_id)
                size = await self._store.size(attachment_id)
            if size != reference.size:
                raise InvalidInputError("reference.size", f"says {reference.size} bytes, the content has {size}")

        await self._under_intent(reference, have_bytes)
        return reference

    async def _under_intent(self, reference: AttachmentRef, have_bytes: Callable[[], Awaitable[None]]) -> None:
        """Record the intent, see to the bytes, and see that no sweep came in between: else start over."""
        intent = AttachmentIntent(self.session_id, reference)
        attachment_id = reference.attachment_id
        started = asyncio.get_running_loop().time()
        for _ in range(_TRIES):
            await self._manifest.record_intent(intent)
            before = await self._manifest.find_attachment(self.session_id, attachment_id)
            await have_bytes()
            after = await self._manifest.find_attachment(self.session_id, attachment_id)
            if before is not None and after is not None and before.intent_id == after.intent_id:
                self._pending[attachment_id] = after.proof()
                return
        waited_ms = int((asyncio.get_running_loop().time() - started) * 1000)
        raise ContendedError("sweeps with too late a cut-off took the attachment again and again", waited_ms)

    async def forget(self, attachment_id: str) -> None:
        """Let go of content; a later sweep takes its bytes if nobody else holds them."""
        limits.check_attachment_id("attachment_id", attachment_id)
        await self._manifest.forget(self.session_id, attachment_id)
        self._pending.pop(attachment_id, None)

    # --- what the next commit says of it ---

    @property
    def pending(self) -> tuple[str, ...]:
        """The ids of what was put or shared since, oldest first, and has to be stamped by the next commit."""
        return tuple(self._pending)

    def stamp(self, commit: RuntimeCommit) -> RuntimeCommit:
        """Have a commit of this session refer to all that is pending; do it before ``with_turn_commit``."""
        named = set(commit.committed_attachment_ids)
        proven = {proof.attachment_id for proof in commit.attachment_proofs}
        missing = [each for each in self._pending if each not in named]
        proofs = [proof for each, proof in self._pending.items() if each not in proven]
        return commit.with_committed_attachments(missing, proofs) if missing or proofs else commit

    async def commit_refs(self) -> None:
        """Refer to all that is pending at once, outside of a turn. Raises ``AttachmentNotInManifestError``."""
        pending = dict(self._pending)
        if pending:
            await self._manifest.commit_refs(self.session_id, tuple(pending), proofs=tuple(pending.values()))
        self._forget_pending(pending.values())

    def settled(self, commit: RuntimeCommit) -> None:
        """Say that a commit has landed: what it refers to is no longer pending."""
        self._forget_pending(commit.attachment_proofs)

    def _forget_pending(self, proofs: Iterable[AttachmentProof]) -> None:
        """What was put anew while that was under way stays pending."""
        for proof in proofs:
            if self._pending.get(proof.attachment_id) == proof:
                del self._pending[proof.attachment_id]

    # --- reading ---

    async def get(self, attachment_id: str, *, start: int = 0, end: int | None = None, verify: bool = False) -> bytes:
        """Give content, or the part of it from ``start`` up to ``end``; with ``verify`` it is hashed first.

        Raises ``AttachmentNotInManifestError`` for what this session does not hold, whoever else may (law A3),
        ``AttachmentNotFoundError`` where the bytes never came, and ``AttachmentDamagedError``.
        """
        await self.require_held(attachment_id)
        return await self._store.get(attachment_id, start=start, end=end, verify=verify)

    async def stream(
        self, attachment_id: str, *, start: int = 0, end: int | None = None, verify: bool = False
    ) -> AsyncIterator[bytes]:
        """Give content in blocks, for what is too large for memory. It raises what ``get`` raises, on the way."""
        await self.require_held(attachment_id)
        async for block in self._store.stream(attachment_id, start=start, end=end, verify=verify):
            yield block

    async def list(
        self, *, after: AttachmentManifestEntry | None = None, limit: int = 1000
    ) -> list[AttachmentManifestEntry]:
        """Give a page of what this session holds."""
        return await self._manifest.list_attachments(session_id=self.session_id, after=after, limit=limit)

    async def require_held(self, attachment_id: str) -> None:
        """Raise ``AttachmentNotInManifestError`` unless this session's own manifest holds the content."""
        limits.check_attachment_id("attachment_id", attachment_id)
        if not await self._manifest.holds_ref(self.session_id, attachment_id):
            raise AttachmentNotInManifestError(self.session_id, attachment_id)


async def _reference(found: Measured, name: str, media_type: str | None) -> AttachmentRef:
    media = await asyncio.to_thread(describe, found.head, name)
    reference = AttachmentRef(
        found.attachment_id, name, media_type or media.media_type, found.size, media.width, media.height
    )
    limits.check_attachment_ref("reference", reference)
    return reference
