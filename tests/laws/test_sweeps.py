"""The races between a sweep of attachments and those who still want the content (A4)."""

from __future__ import annotations

from fastness.errors import AttachmentNotInManifestError, InvalidInputError
from fastness.model import AttachmentIntent, AttachmentRef
from tests.builders import chain, commit, content_id, intent, lane
from tests.lab import START_MS, Lab, refused

A = content_id("a")
HOUR_MS = 3_600_000


async def test_a4_a_commit_that_comes_after_the_mark_is_refused(lab: Lab) -> None:
    """Once a sweep may delete the bytes, no commit can refer to them: it has to put them again first."""
    store = await lab.store()
    await store.record_intent(intent(A))
    lease = await lane(store)
    grant = await store.begin_reclaim([A], older_than_epoch_ms=START_MS)
    assert grant.attachment_ids == (A,)
    attempt = commit(lease, None, *chain("a"), committed_attachment_ids=(A,))
    await refused(lab, AttachmentNotInManifestError, store.commit_runtime_state(attempt))
    await refused(lab, AttachmentNotInManifestError, store.commit_refs("s", [A]))
    assert await store.holds_ref("s", A) is False
    assert await store.finish_reclaim(grant) == 1
    await store.record_intent(intent(A))
    await store.commit_runtime_state(attempt)
    async for handle in lab.handles(store):
        assert await handle.holds_ref("s", A) is True


async def test_a4_a_sweep_that_died_leaves_the_content_to_the_next(lab: Lab) -> None:
    """The mark lapses, and what it marked is still found, as a release as old as the intent was."""
    store = await lab.store()
    await store.record_intent(intent(A))
    await store.begin_reclaim([A], older_than_epoch_ms=START_MS, mark_ttl_ms=1000)
    lab.clock.advance(1000)
    found = await store.list_uncommitted(START_MS)
    assert [(entry.attachment_id, entry.state, entry.recorded_at_epoch_ms) for entry in found] == [
        (A, "released", START_MS)
    ]
    grant = await store.begin_reclaim([A], older_than_epoch_ms=START_MS)
    assert grant.attachment_ids == (A,)
    assert await store.finish_reclaim(grant) == 1
    assert await store.list_uncommitted(START_MS + HOUR_MS) == []


async def test_a4_a_release_is_as_young_as_an_intent_would_be(lab: Lab) -> None:
    """What a session held that was deleted just now is not for a sweep of what is an hour old."""
    store = await lab.store()
    await store.record_intent(intent(A, session_id="gone"))
    lab.clock.advance(HOUR_MS)
    await lab.factory.delete_session("gone")
    assert (await store.begin_reclaim([A], older_than_epoch_ms=START_MS)).attachment_ids == ()
    assert (await store.begin_reclaim([A], older_than_epoch_ms=START_MS + HOUR_MS)).attachment_ids == (A,)


async def test_a5_an_attachment_id_is_a_hash(lab: Lab) -> None:
    """Nothing that could be taken for a path, nor any other text, is an attachment's id."""
    store = await lab.store()
    for bad in ("../../etc/passwd", "a" * 63, "A" * 64, "g" * 64, ""):
        wrong = AttachmentIntent("s", AttachmentRef(bad, "name", "text/plain", 1))
        await refused(lab, InvalidInputError, store.record_intent(wrong))
