"""The sweep: deleting the bytes of attachments that no session needs any more (laws A4, M5).

It promises that bytes go only while the manifest has them marked, that a sweep which was broken off is completed by
the next one, and that what cannot be read deletes nothing. It has no state between runs and no rule: the manifest has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from fastness.decide import limits
from fastness.errors import AttachmentNotFoundError, ContendedError
from fastness.model import (
    AttachmentManifest,
    AttachmentManifestEntry,
    AttachmentReclaimGrant,
    AttachmentReclamationReport,
    AttachmentStore,
)
from fastness.model.base import sha256_hex

EMPTY = sha256_hex(b"")
"""The one content that frees no bytes when it is deleted."""

MARK_TTL_MS = 60_000
"""How long a mark lives: that long an intent for the same content waits for a sweep that has died."""


async def reclaim_orphaned_attachments(
    manifest: AttachmentManifest,
    store: AttachmentStore,
    older_than_epoch_ms: int,
    *,
    dry_run: bool = False,
    batch_size: int = 100,
    mark_ttl_ms: int = MARK_TTL_MS,
) -> AttachmentReclamationReport:
    """Delete the bytes that only intents and releases up to a time name, in all sessions of a database.

    ``manifest`` is any store of the database, and ``store`` one that this database alone uses: what another one refers
    to, this one does not know. The cut-off, inclusive, must be further back than the longest put and the
    longest turn: a put or a turn that takes longer has to put its content again. Work that runs beside it is safe: the
    manifest marks what is deleted, so that an intent for the same content waits. A mark lapses after ``mark_ttl_ms``.
    Before each delete the database is asked how long its mark still lives; the call is begun only in the first half of
    a mark's life, and given up after half of what is left: the rest is for a request that is under way already. (A
    machine that sleeps during that one call may still send it too late.)

    Raises ``StoreError`` where the manifest or the bytes cannot be reached. What was done by then is done; the rest
    is for the next run. With ``dry_run`` nothing is marked or deleted.
    """
    limits.check_int63("older_than_epoch_ms", older_than_epoch_ms)
    limits.check_positive("batch_size", batch_size)
    limits.check_ttl(mark_ttl_ms)
    sweep = _Sweep(manifest, store, older_than_epoch_ms, mark_ttl_ms)
    seen: set[str] = set()
    last: AttachmentManifestEntry | None = None
    while page := await manifest.list_uncommitted(older_than_epoch_ms, after=last, limit=batch_size):
        last = page[-1]
        sweep.scanned += len(page)
        contents = [each for each in dict.fromkeys(entry.attachment_id for entry in page) if each not in seen]
        seen.update(contents)  # what stays may be named on other pages, too
        if dry_run:
            await sweep.count(contents)
        else:
            await sweep.take(contents)
    if not dry_run:
        sweep.freed += await store.discard_unfinished(older_than_epoch_ms)
    return AttachmentReclamationReport(
        sweep.scanned, sweep.reclaimed, sweep.skipped, sweep.freed, sweep.absent, dry_run
    )


async def release_unnamed_attachments(manifest: AttachmentManifest, store: AttachmentStore) -> int:
    """Have later sweeps take the bytes that nothing in a database names, and give how many contents that are.

    Such bytes are left where a process died in a put that a sweep with too late a cut-off had overtaken, or where the
    database was restored from an older backup. Only for a store that no other database and nobody else uses: the bytes
    that those need are not named here either. They are released as of now, so that a sweep whose cut-off is later takes
    them, unless a session has come to name them by then.
    """
    released = 0
    after = ""
    while page := await store.list(after=after):
        released += await manifest.release_unnamed(page)
        after = page[-1]
    return released


class _Sweep:
    """One run, with what it did so far."""

    def __init__(
        self, manifest: AttachmentManifest, store: AttachmentStore, older_than_epoch_ms: int, mark_ttl_ms: int
    ) -> None:
        self._manifest = manifest
        self._store = store
        self._older_than = older_than_epoch_ms
        self._mark_ttl_ms = mark_ttl_ms
        self.scanned = self.reclaimed = self.skipped = self.freed = self.absent = 0

    async def count(self, contents: Sequence[str]) -> None:
        """Count what would be deleted."""
        loose = await self._manifest.list_reclaimable(contents, older_than_epoch_ms=self._older_than)
        self.skipped += len(contents) - len(loose)
        for each in loose:
            self.reclaimed += 1
            try:
                self.freed += await self._store.size(each)
            except AttachmentNotFoundError:
                self.absent += 1

    async def take(self, contents: Sequence[str]) -> None:
        """Mark what may go, delete it, and forget it. What could not be deleted stays marked, and on record."""
        grant = await self._manifest.begin_reclaim(
            contents, older_than_epoch_ms=self._older_than, mark_ttl_ms=self._mark_ttl_ms
        )
        self.skipped += len(contents) - len(grant.attachment_ids)
        deleted: list[str] = []
        try:
            for each in grant.attachment_ids:
                freed = await self._delete(grant, each)
                self.freed += freed
                self.absent += not freed and each != EMPTY
                deleted.append(each)
        finally:
            self.reclaimed += await self._finish(grant, deleted)

    async def _delete(self, grant: AttachmentReclaimGrant, attachment_id: str) -> int:
        """Delete content while nobody can put it again. The database's own clock says how long that is."""
        mark = AttachmentReclaimGrant(grant.sweep_id, (attachment_id,), grant.lapses_at_epoch_ms)
        left_ms = await self._manifest.reclaim_left_ms(mark)
        if left_ms * 2 >= self._mark_ttl_ms:
            with suppress(TimeoutError):
                async with asyncio.timeout(left_ms / 2000):
                    return await self._store.delete(attachment_id)
            left_ms //= 2
        waited_ms = max(0, self._mark_ttl_ms - left_ms)
        raise ContendedError(
            "deleting attachments took so long that their marks are about to lapse",
            waited_ms,
            "what was deleted by then is deleted, and the next sweep goes on: see why the store is slow",
        )

    async def _finish(self, grant: AttachmentReclaimGrant, deleted: Sequence[str]) -> int:
        if not deleted:
            return 0
        done = AttachmentReclaimGrant(grant.sweep_id, tuple(deleted), grant.lapses_at_epoch_ms)
        return await self._manifest.finish_reclaim(done)
