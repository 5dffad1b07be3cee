"""The attachment manifest of a database: ``AttachmentManifest`` on any engine (laws A2 to A4).

A method checks what comes from outside, draws the random tokens and hands a program to the engine. It holds no rule,
and no session of its own: a store that is bound to one inherits all of it.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable, Sequence

import msgspec

from fastness.decide import limits
from fastness.engines.engine import Engine
from fastness.errors import ContendedError
from fastness.liveness import is_dead
from fastness.model import (
    AttachmentIntent,
    AttachmentManifestEntry,
    AttachmentProof,
    AttachmentReclaimGrant,
    LocalProcess,
)
from fastness.model.base import MAX_INT
from fastness.ops import manifest
from fastness.ops.lane import Target

_INTENT_POLL_S = 0.05


class StoreOptions(msgspec.Struct, frozen=True):
    """How a store behaves where the host has a say.

    ``commit_budget_bytes`` bounds what one call may write. ``is_dead`` proves that a process is gone (law L6).
    ``intent_wait_ms`` bounds the wait of an intent for a sweep that has marked its content (law A4).
    """

    commit_budget_bytes: int = limits.DEFAULT_COMMIT_BUDGET_BYTES
    is_dead: Callable[[LocalProcess], bool] = is_dead
    intent_wait_ms: int = 70_000


def random_token() -> str:
    """Draw what nobody else can guess or draw."""
    return secrets.token_hex(16)


class EngineAttachmentManifest:
    """Which session holds which attachments, and what a sweep may take, in a whole database."""

    def __init__(self, engine: Engine, options: StoreOptions | None = None) -> None:
        self._engine = engine
        self._options = options or StoreOptions()

    async def _target(self, session_id: str) -> Target:
        """Find the session that is meant, here by its name."""
        return Target(limits.check_id("session_id", session_id))

    async def record_intent(self, intent: AttachmentIntent) -> None:
        """Record that bytes are about to be put; waits while a sweep is at the same content (law A4)."""
        limits.check_type("intent", intent, AttachmentIntent)
        limits.check_attachment_ref("intent.reference", intent.reference)
        limits.check_size(intent, self._options.commit_budget_bytes)
        target, intent_id = await self._target(intent.session_id), random_token()
        loop = asyncio.get_running_loop()
        started = loop.time()
        while await self._engine.write(lambda: manifest.record_intent(target, intent, intent_id)):
            waited_ms = int((loop.time() - started) * 1000)
            if waited_ms >= self._options.intent_wait_ms:
                raise ContendedError("a sweep still has this attachment marked", waited_ms)
            await asyncio.sleep(_INTENT_POLL_S * (0.5 + random.random()))  # noqa: S311 - jitter

    async def commit_refs(
        self, session_id: str, attachment_ids: Sequence[str], *, proofs: Sequence[AttachmentProof] = ()
    ) -> None:
        """Stamp intents outside of a turn; commits stamp by themselves."""
        ids = limits.check_ids("attachment_ids", attachment_ids)
        shown = limits.check_proofs("proofs", proofs)
        target = await self._target(session_id)
        await self._engine.write(lambda: manifest.commit_refs(target, ids, shown))

    async def holds_ref(self, session_id: str, attachment_id: str) -> bool:
        """Whether the session's own manifest holds the content (law A3)."""
        limits.check_id("attachment_id", attachment_id)
        target = await self._target(session_id)
        return await self._engine.read(lambda: manifest.holds_ref(target, attachment_id))

    async def find_attachment(self, session_id: str, attachment_id: str) -> AttachmentManifestEntry | None:
        """Give the session's own row of some content; None where it has none (law A3)."""
        limits.check_id("attachment_id", attachment_id)
        target = await self._target(session_id)
        return await self._engine.read(lambda: manifest.find_attachment(target, attachment_id))

    async def list_uncommitted(
        self, older_than_epoch_ms: int, *, after: AttachmentManifestEntry | None = None, limit: int | None = None
    ) -> list[AttachmentManifestEntry]:
        """List intents and releases of the whole database up to a time, inclusive, oldest first.

        With ``limit``, a page of so many, from behind the entry ``after``.
        """
        limits.check_int63("older_than_epoch_ms", older_than_epoch_ms)
        limits.check_manifest_page(after, limit)
        most = MAX_INT if limit is None else limit
        return await self._engine.read(lambda: manifest.list_uncommitted(older_than_epoch_ms, after, most))

    async def list_attachments(
        self, *, session_id: str | None = None, after: AttachmentManifestEntry | None = None, limit: int = 1000
    ) -> list[AttachmentManifestEntry]:
        """List what one session holds, or all of them: a page, by content and then by session, from behind ``after``.

        Of an entry, ``reference`` is what the first intent said that was recorded for it.
        """
        limits.check_optional_id("session_id", session_id)
        limits.check_manifest_page(after, limit)
        if session_id is None:
            return await self._engine.read(lambda: manifest.list_all_attachments(after, limit))
        target = await self._target(session_id)
        return await self._engine.read(lambda: manifest.list_attachments(target, after, limit))

    async def list_reclaimable(self, attachment_ids: Sequence[str], *, older_than_epoch_ms: int) -> tuple[str, ...]:
        """Say which of these ``begin_reclaim`` would grant now. Nothing is marked."""
        limits.check_int63("older_than_epoch_ms", older_than_epoch_ms)
        ids = limits.check_ids("attachment_ids", attachment_ids)
        return await self._engine.read(lambda: manifest.list_reclaimable(ids, older_than_epoch_ms))

    async def begin_reclaim(
        self, attachment_ids: Sequence[str], *, older_than_epoch_ms: int, mark_ttl_ms: int = 60_000
    ) -> AttachmentReclaimGrant:
        """Mark content that nobody needs; its bytes may be deleted until the mark lapses (law A4)."""
        limits.check_int63("older_than_epoch_ms", older_than_epoch_ms)
        limits.check_ttl(mark_ttl_ms)
        ids = limits.check_ids("attachment_ids", attachment_ids)
        sweep_id = random_token()
        return await self._engine.write(lambda: manifest.begin_reclaim(ids, older_than_epoch_ms, mark_ttl_ms, sweep_id))

    async def reclaim_left_ms(self, grant: AttachmentReclaimGrant) -> int:
        """Say how long the marks of a sweep live on, by the database's clock; 0 where one of them is gone."""
        limits.check_grant(grant)
        return await self._engine.read(lambda: manifest.reclaim_left_ms(grant))

    async def finish_reclaim(self, grant: AttachmentReclaimGrant) -> int:
        """Forget what was swept. Gives how many contents the sweep still had marked."""
        limits.check_grant(grant)
        return await self._engine.write(lambda: manifest.finish_reclaim(grant))

    async def release_unnamed(self, attachment_ids: Sequence[str]) -> int:
        """Have later sweeps take content that nothing in this database names. Gives how many contents that are."""
        ids = limits.check_attachment_ids("attachment_ids", attachment_ids)
        return await self._engine.write(lambda: manifest.release_unnamed(ids))

    async def forget(self, session_id: str, attachment_id: str) -> None:
        """Let go of content; the next sweep takes its bytes if nobody else holds them."""
        limits.check_id("attachment_id", attachment_id)
        target = await self._target(session_id)
        await self._engine.write(lambda: manifest.forget(target, attachment_id))
