"""The laws of the attachment manifest, as far as they need no bytes (A2 to A5)."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from fastness.conformance.builders import chain, checkpoint, commit, content_id, intent, lane, loaded, some, turn
from fastness.conformance.lab import Lab, refused
from fastness.errors import AttachmentNotInManifestError, InvalidInputError, UnknownBlobRefError
from fastness.model import (
    AttachmentIntent,
    AttachmentManifestEntry,
    AttachmentProof,
    AttachmentRef,
    BlobRef,
    RuntimePersistence,
)

A, B, C = content_id("a"), content_id("b"), content_id("c")
HOUR_MS = 3_600_000


async def uncommitted(store: RuntimePersistence, until_ms: int) -> list[tuple[str, str, str]]:
    """Session, content and state of what a sweep would look at."""
    return [(entry.session_id, entry.attachment_id, entry.state) for entry in await store.list_uncommitted(until_ms)]


async def grant(store: RuntimePersistence, *ids: str, until_ms: int) -> tuple[str, ...]:
    """What a sweep that begins now may delete."""
    return (await store.begin_reclaim(ids, older_than_epoch_ms=until_ms)).attachment_ids


async def test_a2_an_intent_is_recorded_per_session_and_content(lab: Lab) -> None:
    """An intent is listed with its reference and time from its own millisecond on, and belongs to its session alone."""
    store = await lab.store()
    await store.record_intent(intent(A, name="cat.png"))
    wanted = AttachmentManifestEntry("s", A, "intent", lab.start_ms, intent(A, name="cat.png").reference)
    async for handle in lab.handles(store):
        found = some(await handle.find_attachment("s", A))
        assert (msgspec.structs.replace(found, intent_id=""), found.intent_id != "") == (wanted, True)
        assert await handle.find_attachment("other", A) is None
        assert await handle.find_attachment("s", B) is None
        assert await handle.list_uncommitted(lab.start_ms) == [wanted]
        assert await handle.list_uncommitted(lab.start_ms - 1) == []
        assert await handle.holds_ref("s", A) is True
        assert await handle.holds_ref("other", A) is False
        assert await handle.holds_ref("s", B) is False


async def test_a2_a_commit_stamps_the_intents_that_it_names(lab: Lab) -> None:
    """After it the content is no longer uncommitted; what it does not name, and what others named, stays an intent."""
    store = await lab.store()
    await store.record_intent(intent(A))
    await store.record_intent(intent(B))
    await store.record_intent(intent(A, session_id="other"))
    await turn(store, *chain("a"), committed_attachment_ids=(A,))
    async for handle in lab.handles(store):
        assert await uncommitted(handle, lab.start_ms) == [("other", A, "intent"), ("s", B, "intent")]
        assert await handle.holds_ref("s", A) is True


async def test_a2_a_commit_of_what_the_manifest_lacks_fails(lab: Lab) -> None:
    """Another session's intent for the same bytes does not help, and one missing id fails them all."""
    store = await lab.store()
    await store.record_intent(intent(A))
    await store.record_intent(intent(B, session_id="other"))
    lease = await lane(store)
    attempt = commit(lease, None, *chain("a"), committed_attachment_ids=(A, B))
    error = await refused(lab, AttachmentNotInManifestError, store.commit_runtime_state(attempt))
    assert (error.session_id, error.attachment_id) == ("s", B)


async def test_a2_references_can_be_committed_out_of_band(lab: Lab) -> None:
    """Stamping without a turn keeps the content, and fails whole for an id that the manifest lacks."""
    store = await lab.store()
    await store.record_intent(intent(A))
    await refused(lab, AttachmentNotInManifestError, store.commit_refs("s", [A, B]))
    await refused(lab, AttachmentNotInManifestError, store.commit_refs("no such session", [A]))
    await store.record_intent(intent(A, session_id="other"))
    await store.commit_refs("s", [A])
    await store.commit_refs("s", [A])
    assert await uncommitted(await lab.reopen(), lab.start_ms) == [("other", A, "intent")]


async def test_a2_an_intent_for_committed_content_changes_nothing(lab: Lab) -> None:
    """Putting the same bytes again does not make the reference uncommitted."""
    store = await lab.store()
    await store.record_intent(intent(A))
    await store.commit_refs("s", [A])
    await store.record_intent(intent(A, name="again.png"))
    assert await uncommitted(store, lab.start_ms) == []
    assert await store.holds_ref("s", A) is True


async def test_a2_proof_of_an_intent_that_a_sweep_took_is_refused(lab: Lab) -> None:
    """An intent recorded again is the same one; after a sweep it is another, whose bytes may not have come yet."""
    store = await lab.store()
    proofs = []
    for _ in range(2):
        await store.record_intent(intent(A))
        await store.record_intent(intent(A, name="again.png"))
        proofs.append(some(await store.find_attachment("s", A)).proof())
        if len(proofs) == 1:
            await store.finish_reclaim(await store.begin_reclaim([A], older_than_epoch_ms=2**53))
            assert await store.find_attachment("s", A) is None
    lease = await lane(store)
    attempt = commit(lease, None, *chain("a"))
    for shown in (proofs[:1], [AttachmentProof(A, "guessed")]):
        late = attempt.with_committed_attachments([A], shown)
        await refused(lab, AttachmentNotInManifestError, store.commit_runtime_state(late))
        await refused(lab, AttachmentNotInManifestError, store.commit_refs("s", [A], proofs=shown))
    await store.commit_runtime_state(attempt.with_committed_attachments([A], proofs[1:]))
    assert some(await (await lab.reopen()).find_attachment("s", A)).state == "committed"


async def test_a3_a_blob_may_be_carried_only_by_the_session_whose_head_holds_it(lab: Lab) -> None:
    """A reference to another session's blob, or to one that this head dropped, is unknown."""
    theirs = await lab.store("other")
    result = await turn(theirs, session_id="other", checkpoint=checkpoint(tool_state=b"secret"))
    assert result.manifest is not None
    secret = result.manifest.tool_state
    assert secret is not None
    store = await lab.store()
    lease = await lane(store)
    await refused(
        lab,
        UnknownBlobRefError,
        store.commit_runtime_state(commit(lease, None, checkpoint=checkpoint(tool_state=secret))),
    )
    first = await store.commit_runtime_state(commit(lease, None, checkpoint=checkpoint(tool_state=b"mine")))
    assert first.manifest is not None
    mine = first.manifest.tool_state
    await store.commit_runtime_state(commit(lease, 1, checkpoint=checkpoint(2, tool_state=mine, execution_state=b"x")))
    read = await loaded(await lab.reopen())
    assert read.checkpoint == checkpoint(2, tool_state=b"mine", execution_state=b"x")
    store = await lab.reopen()
    await store.commit_runtime_state(commit(lease, 2, checkpoint=checkpoint(3)))
    for ref in (mine, BlobRef("f" * 64)):
        attempt = commit(lease, 3, checkpoint=checkpoint(4, tool_state=ref))
        await refused(lab, UnknownBlobRefError, store.commit_runtime_state(attempt))


async def test_a4_an_old_intent_that_nobody_committed_is_reclaimed(lab: Lab) -> None:
    """The sweep is granted what is old and unheld; when it has finished, the manifest has forgotten it."""
    store = await lab.store()
    await store.record_intent(intent(A))
    granted = await store.begin_reclaim([A], older_than_epoch_ms=lab.start_ms)
    assert granted.attachment_ids == (A,)
    assert await store.finish_reclaim(granted) == 1
    async for handle in lab.handles(store):
        assert await handle.list_uncommitted(lab.start_ms) == []
        assert await handle.holds_ref("s", A) is False


@pytest.mark.parametrize("holder", ["committed here", "committed elsewhere", "a newer intent elsewhere", "too new"])
async def test_a4_what_any_session_still_needs_is_not_granted(lab: Lab, holder: str) -> None:
    """A committed reference or a newer intent, of whichever session, keeps the bytes."""
    store = await lab.store()
    await store.record_intent(intent(A))
    cut_off = lab.start_ms
    lab.clock.advance(10)
    if holder == "committed here":
        await store.commit_refs("s", [A])
    elif holder == "committed elsewhere":
        await store.record_intent(intent(A, session_id="other"))
        await store.commit_refs("other", [A])
        cut_off = lab.start_ms + 10
    elif holder == "a newer intent elsewhere":
        await store.record_intent(intent(A, session_id="other"))
    else:
        cut_off = lab.start_ms - 1
    async with lab.unchanged():
        assert await grant(await lab.reopen(), A, until_ms=cut_off) == ()


async def test_a4_content_that_no_manifest_names_is_not_granted(lab: Lab) -> None:
    """A file that the database knows nothing of may be somebody else's."""
    store = await lab.store()
    assert await grant(store, A, until_ms=lab.start_ms) == ()


async def test_a4_two_sweeps_never_get_the_same_content(lab: Lab) -> None:
    """While one has it marked, the other is not granted it; what it asked for besides it gets."""
    store = await lab.store()
    await store.record_intent(intent(A))
    await store.record_intent(intent(B))
    assert await grant(store, A, until_ms=lab.start_ms) == (A,)
    assert await grant(await lab.reopen(), A, B, until_ms=lab.start_ms) == (B,)


async def test_a4_a_put_waits_for_the_sweep_that_marked_its_content(lab: Lab) -> None:
    """An intent for marked content is recorded only after the sweep has finished, and then it counts."""
    store = await lab.store()
    await store.record_intent(intent(A))
    granted = await store.begin_reclaim([A], older_than_epoch_ms=lab.start_ms)
    putting = asyncio.create_task(store.record_intent(intent(A)))
    for _ in range(5):
        assert await store.list_uncommitted(lab.start_ms) != []
    assert not putting.done()
    lab.clock.advance(1)
    assert await store.finish_reclaim(granted) == 1
    await putting
    assert await uncommitted(store, lab.start_ms + 1) == [("s", A, "intent")]
    assert await store.holds_ref("s", A) is True


async def test_a4_an_abandoned_mark_lapses(lab: Lab) -> None:
    """A sweep that died holds up a put until its mark lapses, and another sweep may then begin."""
    store = await lab.store()
    await store.record_intent(intent(A))
    granted = await store.begin_reclaim([A], older_than_epoch_ms=lab.start_ms, mark_ttl_ms=1_000)
    assert granted.lapses_at_epoch_ms == lab.start_ms + 1_000
    lab.clock.advance(999)
    assert await grant(store, A, until_ms=lab.start_ms) == ()
    lab.clock.advance(1)
    await store.record_intent(intent(A, session_id="other"))
    assert await grant(await lab.reopen(), A, until_ms=lab.start_ms) == ()
    # The sweep that comes back too late takes nothing that was recorded after its mark.
    await (await lab.reopen()).finish_reclaim(granted)
    assert await (await lab.reopen()).holds_ref("other", A) is True


async def test_a4_a_sweep_that_was_overtaken_finishes_nothing(lab: Lab) -> None:
    """A late finish counts only what the sweep still has marked."""
    store = await lab.store()
    await store.record_intent(intent(A))
    old = await store.begin_reclaim([A], older_than_epoch_ms=lab.start_ms, mark_ttl_ms=1_000)
    lab.clock.advance(1_000)
    new = await store.begin_reclaim([A], older_than_epoch_ms=lab.start_ms)
    assert new.attachment_ids == (A,)
    assert await store.finish_reclaim(old) == 0
    assert await grant(store, A, until_ms=lab.start_ms) == ()
    assert await store.finish_reclaim(new) == 1
    assert await store.finish_reclaim(new) == 0


async def test_a4_deleting_a_session_releases_what_it_held(lab: Lab) -> None:
    """Intents and references of a deleted session become releases, which a sweep may take if nobody else holds them."""
    store = await lab.store()
    other = await lab.store("other")
    for content in (A, B, C):
        await store.record_intent(intent(content))
    await store.commit_refs("s", [A, B])
    await other.record_intent(intent(B, session_id="other"))
    await other.commit_refs("other", [B])
    await lab.factory.delete_session("s")
    other = await lab.reopen("other")
    assert await uncommitted(other, lab.start_ms) == [("s", A, "released"), ("s", B, "released"), ("s", C, "released")]
    granted = await other.begin_reclaim([A, B, C], older_than_epoch_ms=lab.start_ms)
    assert granted.attachment_ids == (A, C)
    assert await other.finish_reclaim(granted) == 2
    assert await other.holds_ref("other", B) is True


async def test_a4_forgotten_content_is_a_release(lab: Lab) -> None:
    """What a session forgets it no longer holds, and a sweep finds the bytes; forgetting twice is fine."""
    store = await lab.store()
    await store.record_intent(intent(A))
    await store.commit_refs("s", [A])
    await store.forget("s", A)
    await store.forget("s", A)
    await store.forget("s", B)
    again = await lab.reopen()
    assert await again.holds_ref("s", A) is False
    assert await uncommitted(again, lab.start_ms) == [("s", A, "released")]
    assert await grant(again, A, until_ms=lab.start_ms) == (A,)


async def test_a4_a_commit_that_comes_after_the_mark_is_refused(lab: Lab) -> None:
    """Once a sweep may delete the bytes, no commit can refer to them: it has to put them again first."""
    store = await lab.store()
    await store.record_intent(intent(A))
    lease = await lane(store)
    grant = await store.begin_reclaim([A], older_than_epoch_ms=lab.start_ms)
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
    await store.begin_reclaim([A], older_than_epoch_ms=lab.start_ms, mark_ttl_ms=1000)
    lab.clock.advance(1000)
    found = await store.list_uncommitted(lab.start_ms)
    assert [(entry.attachment_id, entry.state, entry.recorded_at_epoch_ms) for entry in found] == [
        (A, "released", lab.start_ms)
    ]
    grant = await store.begin_reclaim([A], older_than_epoch_ms=lab.start_ms)
    assert grant.attachment_ids == (A,)
    assert await store.finish_reclaim(grant) == 1
    assert await store.list_uncommitted(lab.start_ms + HOUR_MS) == []


async def test_a4_a_release_is_as_young_as_an_intent_would_be(lab: Lab) -> None:
    """What a session held that was deleted just now is not for a sweep of what is an hour old."""
    store = await lab.store()
    await store.record_intent(intent(A, session_id="gone"))
    lab.clock.advance(HOUR_MS)
    await lab.factory.delete_session("gone")
    assert (await store.begin_reclaim([A], older_than_epoch_ms=lab.start_ms)).attachment_ids == ()
    assert (await store.begin_reclaim([A], older_than_epoch_ms=lab.start_ms + HOUR_MS)).attachment_ids == (A,)


async def test_a5_an_attachment_id_is_a_hash(lab: Lab) -> None:
    """Nothing that could be taken for a path, nor any other text, is an attachment's id."""
    store = await lab.store()
    for bad in ("../../etc/passwd", "a" * 63, "A" * 64, "g" * 64, ""):
        wrong = AttachmentIntent("s", AttachmentRef(bad, "name", "text/plain", 1))
        await refused(lab, InvalidInputError, store.record_intent(wrong))
