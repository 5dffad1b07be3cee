"""The laws of sessions and bytes together: who may read what, and what a sweep takes (A1 to A4, M5)."""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fastness.conformance.builders import chain, commit, lane, pieces, reached, turn
from fastness.conformance.lab import AttachmentLab, Lab, refused
from fastness.conformance.laws.attachments import EMPTY, HELLO, Halted
from fastness.conformance.laws.settlement import Cut, CutError
from fastness.conformance.subject import Power
from fastness.errors import (
    AttachmentNotFoundError,
    AttachmentNotInManifestError,
    AttachmentStoreError,
    BackendError,
    ContendedError,
    StoreError,
)
from fastness.model import AttachmentReclamationReport, AttachmentRef, AttachmentStore, RuntimePersistence
from fastness.persistence import (
    SessionAttachmentStore,
    reclaim_orphaned_attachments,
    release_unnamed_attachments,
)

LATER_MS = 2**53
"""A cut-off that is later than whatever the subject's clock says."""
TTL_MS = 60_000


class Around:
    """A store, or a manifest, with other calls in the place of its own."""

    def __init__(self, inner: Any, **calls: Callable[..., Awaitable[Any]]) -> None:
        self._inner = inner
        vars(self).update(calls)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class Gate:
    """Holds a call up before it is made, until it may go on."""

    def __init__(self, call: Callable[..., Awaitable[Any]]) -> None:
        self._call = call
        self.reached = asyncio.Event()
        self.open = asyncio.Event()

    async def __call__(self, *given: Any, **named: Any) -> Any:
        self.reached.set()
        await self.open.wait()
        return await self._call(*given, **named)


async def fails(*_given: Any, **_named: Any) -> Any:
    """Stand in for what cannot be reached."""
    raise BackendError("it is out of reach", "wait")


async def of_session(
    lab: Lab, attachments: AttachmentLab, session_id: str = "s", *, store: Any = None
) -> tuple[RuntimePersistence, SessionAttachmentStore]:
    """A session, and its attachments in the store, or in one that is given in its place."""
    handle = await lab.store(session_id)
    return handle, SessionAttachmentStore(handle, store or attachments.store, session_id)


async def sweep(manifest: Any, store: AttachmentStore, **options: Any) -> AttachmentReclamationReport:
    """Sweep with a cut-off that is later than all there is."""
    return await reclaim_orphaned_attachments(manifest, store, LATER_MS, **options)


async def uncommitted(manifest: RuntimePersistence) -> list[tuple[str, str, str]]:
    """Session, content and state of all that is not committed."""
    return [(each.session_id, each.attachment_id, each.state) for each in await manifest.list_uncommitted(LATER_MS)]


def png(width: int, height: int) -> bytes:
    """A black picture."""
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0),
        b"IDAT": zlib.compress(b"\0" * (width + 1) * height),
        b"IEND": b"",
    }
    parts = [struct.pack(">I", len(data)) + kind + data for kind, data in chunks.items()]
    sums = [struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks.items()]
    return b"\x89PNG\r\n\x1a\n" + b"".join(part + check for part, check in zip(parts, sums, strict=True))


async def test_a1_all_but_the_bytes_belongs_to_the_reference(lab: Lab, attachments: AttachmentLab) -> None:
    """The same bytes under two names are two references and one content; a picture's reference has its measures."""
    _, mine = await of_session(lab, attachments)
    _, theirs = await of_session(lab, attachments, "other")
    first = await mine.put(b"hello", name="a.txt")
    second = await theirs.put(pieces(b"hel", b"lo"), name="b.md", media_type="text/x-greeting")
    assert first == AttachmentRef(HELLO, "a.txt", "text/plain", 5)
    assert second == AttachmentRef(HELLO, "b.md", "text/x-greeting", 5)
    assert await attachments.ids() == [HELLO]
    picture = await mine.put(png(3, 2), name="dot")
    assert (picture.media_type, picture.width, picture.height) == ("image/png", 3, 2)
    assert picture.size == len(png(3, 2)) == await attachments.store.size(picture.attachment_id)
    found = {entry.reference for entry in await (await lab.reopen()).list_attachments()}
    assert found == {first, second, picture}


async def test_a2_the_intent_is_there_before_the_bytes(lab: Lab, attachments: AttachmentLab) -> None:
    """When the store is asked to keep the bytes, the manifest has their intent already."""
    seen = []

    async def put(source: Any, *, attachment_id: str) -> str:
        """Look at the manifest first."""
        seen.append((await uncommitted(handle), await attachments.ids()))
        return await attachments.store.put(source, attachment_id=attachment_id)

    handle, mine = await of_session(lab, attachments, store=Around(attachments.store, put=put))
    await mine.put(b"hello", name="a")
    assert seen == [([("s", HELLO, "intent")], [])]
    assert await mine.get(HELLO) == b"hello"


async def test_a2_the_next_commit_stamps_what_was_put(lab: Lab, attachments: AttachmentLab) -> None:
    """What was put is pending until a commit that names it has landed; then it is committed, and no sweep takes it."""
    handle, mine = await of_session(lab, attachments)
    for content in (b"hello", b"", b"hello"):
        await mine.put(content, name="a")
    assert mine.pending == (HELLO, EMPTY)
    stamped = mine.stamp(commit(await lane(handle), None, *chain("a"), committed_attachment_ids=(EMPTY,)))
    assert sorted(stamped.committed_attachment_ids) == [HELLO, EMPTY]
    await handle.commit_runtime_state(stamped)
    assert [*mine.pending] == [HELLO, EMPTY]
    mine.settled(stamped)
    assert [*mine.pending] == []
    assert await sweep(await lab.reopen(), await attachments.reopen()) == AttachmentReclamationReport(0, 0)
    assert await attachments.store.get(HELLO) == b"hello"


async def test_a2_a_put_that_fails_leaves_nothing_to_commit(lab: Lab, attachments: AttachmentLab) -> None:
    """A source that breaks leaves no trace; a store that fails leaves an intent, which a sweep takes."""
    handle, mine = await of_session(lab, attachments)
    await attachments.store.put(b"")  # a sweep of a store that no put has ever used may be refused
    failing = Halted(b"hel", error=LookupError("the application's own"))
    failing.go_on.set()
    async with lab.unchanged(), attachments.unchanged():
        with pytest.raises(LookupError):
            await mine.put(failing, name="a")
    _, broken = await of_session(lab, attachments, store=Around(attachments.store, put=fails))
    with pytest.raises(BackendError):
        await broken.put(b"hello", name="a")
    assert mine.pending == broken.pending == ()
    assert await uncommitted(handle) == [("s", HELLO, "intent")]
    with pytest.raises(AttachmentNotFoundError):
        await broken.get(HELLO)
    assert await sweep(handle, attachments.store) == AttachmentReclamationReport(1, 1, absent_count=1)
    assert await uncommitted(handle) == []


async def test_a2_a_put_that_a_sweep_overtook_starts_over(lab: Lab, attachments: AttachmentLab) -> None:
    """A sweep that takes the intent while the bytes are on their way does not lose them: they can be committed."""
    gate = Gate(attachments.store.put)
    await attachments.store.put(b"")
    handle, mine = await of_session(lab, attachments, store=Around(attachments.store, put=gate))
    putting = asyncio.ensure_future(mine.put(b"hello", name="a"))
    await reached(gate.reached, putting)
    assert await sweep(handle, attachments.store) == AttachmentReclamationReport(1, 1, absent_count=1)
    gate.open.set()
    await putting
    await turn(handle, *chain("a"), committed_attachment_ids=mine.pending)
    assert await sweep(await lab.reopen(), attachments.store) == AttachmentReclamationReport(0, 0)
    assert await attachments.store.get(HELLO, verify=True) == b"hello"


async def test_a2_bytes_that_a_sweep_took_are_not_committed_under_a_later_intent(
    lab: Lab, attachments: AttachmentLab
) -> None:
    """Though the session has a new intent for the same content, a commit of the first put is refused: no bytes came."""
    handle, mine = await of_session(lab, attachments)
    await mine.put(b"hello", name="a")
    stamped = mine.stamp(commit(await lane(handle), None, *chain("a")))
    assert await sweep(handle, attachments.store) == AttachmentReclamationReport(1, 1, 0, 5)
    gate = Gate(attachments.store.put)
    _, again = await of_session(lab, attachments, store=Around(attachments.store, put=gate))
    putting = asyncio.ensure_future(again.put(b"hello", name="a"))
    await reached(gate.reached, putting)
    await refused(lab, AttachmentNotInManifestError, handle.commit_runtime_state(stamped))
    await refused(lab, AttachmentNotInManifestError, mine.commit_refs())
    gate.open.set()
    await putting
    await again.commit_refs()
    assert again.pending == ()
    assert await sweep(await lab.reopen(), attachments.store) == AttachmentReclamationReport(0, 0)
    assert await attachments.store.get(HELLO, verify=True) == b"hello"


async def test_a3_a_session_reads_only_what_it_holds(lab: Lab, attachments: AttachmentLab) -> None:
    """Whoever guesses a hash gets nothing, though the bytes are there, until the session that holds it shares it."""
    _, mine = await of_session(lab, attachments)
    handle, theirs = await of_session(lab, attachments, "other")
    reference = await mine.put(b"hello", name="a")
    guesses: list[Callable[[], Awaitable[object]]] = [
        lambda: theirs.get(HELLO),
        lambda: anext(aiter(theirs.stream(HELLO))),
        lambda: mine.share(reference, theirs),
        lambda: handle.commit_refs("other", [HELLO]),
    ]
    for guess in guesses:
        error = await refused(lab, AttachmentNotInManifestError, guess())
        assert (error.session_id, error.attachment_id) == ("other", HELLO)
    assert await theirs.share(reference, mine) == reference
    assert theirs.pending == (HELLO,)
    assert await theirs.get(HELLO, start=1, end=3) == b"el"
    assert [block async for block in theirs.stream(HELLO, verify=True)] == [b"hello"]


async def test_a3_what_was_forgotten_is_no_longer_read(lab: Lab, attachments: AttachmentLab) -> None:
    """Nor is it pending, or listed; whoever else holds it keeps it, and after the last one a sweep takes the bytes."""
    handle, mine = await of_session(lab, attachments)
    other, theirs = await of_session(lab, attachments, "other")
    await theirs.share(await mine.put(b"hello", name="a"), mine)
    await other.commit_refs("other", [HELLO])
    await mine.forget(HELLO)
    assert (mine.pending, await mine.list()) == ((), [])
    await refused(lab, AttachmentNotInManifestError, mine.get(HELLO))
    assert await sweep(handle, attachments.store) == AttachmentReclamationReport(1, 0, 1)
    assert await theirs.get(HELLO) == b"hello"
    await theirs.forget(HELLO)
    assert await sweep(handle, attachments.store) == AttachmentReclamationReport(1, 1, 0, 5)
    assert await attachments.ids() == []


async def test_a3_attachments_are_listed_by_content(lab: Lab, attachments: AttachmentLab) -> None:
    """Of one session or of all, each once, by content and then by session, however small the page."""
    wanted = []
    for session_id in ("b", "a"):
        handle, mine = await of_session(lab, attachments, session_id)
        for content in (b"hello", b"", b"x" + session_id.encode()):
            reference = await mine.put(content, name=session_id)
            wanted.append((reference.attachment_id, session_id))
    for only in (None, "a"):
        found: list[Any] = []
        while page := await handle.list_attachments(session_id=only, after=found[-1] if found else None, limit=2):
            assert len(page) <= 2
            found += page
        expected = sorted(each for each in wanted if only in {None, each[1]})
        assert [(entry.attachment_id, entry.session_id) for entry in found] == expected


@pytest.mark.parametrize("batch_size", [100, 1])
async def test_a4_a_sweep_takes_what_is_orphaned_and_counts_it(
    lab: Lab, attachments: AttachmentLab, batch_size: int
) -> None:
    """A dry run changes nothing and says the same; a second run finds only what the first had to leave (M5)."""
    handle, mine = await of_session(lab, attachments)
    other, theirs = await of_session(lab, attachments, "other")
    await mine.put(b"hello", name="held here")
    await theirs.put(b"hello", name="and waiting there")
    await handle.commit_refs("s", [HELLO])
    for content in (b"one", b"three", b""):
        await mine.put(content, name="orphan")
    await theirs.put(b"three", name="orphan of two")
    await theirs.put(b"released", name="orphan")
    await other.forget("other", theirs.pending[-1])
    async with lab.unchanged(), attachments.unchanged():
        told = await sweep(handle, attachments.store, dry_run=True, batch_size=batch_size)
    assert told == AttachmentReclamationReport(6, 4, 1, 16, dry_run=True)
    done = await sweep(await lab.reopen(), await attachments.reopen(), batch_size=batch_size)
    # Of two intents for one content, a page of one meets the second no more.
    assert done == AttachmentReclamationReport(6 if batch_size > 1 else 5, 4, 1, 16)
    assert await attachments.ids() == [HELLO]
    handle = await lab.reopen()
    assert await uncommitted(handle) == [("other", HELLO, "intent")]
    assert await sweep(handle, attachments.store) == AttachmentReclamationReport(1, 0, 1, 0)


async def test_a4_content_stays_until_its_last_session_is_gone(lab: Lab, attachments: AttachmentLab) -> None:
    """Fifty sessions put the same bytes at once under names of their own; deleted one by one, the last takes them."""
    made = [await of_session(lab, attachments, f"s{at}") for at in range(50)]
    sources = (b"hello", pieces(b"hel", b"lo"))
    await asyncio.gather(*(mine.put(sources[at == 7], name=f"{at}.txt") for at, (_, mine) in enumerate(made)))
    for handle, mine in made:
        await handle.commit_refs(mine.session_id, mine.pending)
    keeper = await lab.store("keeper")
    for at in range(49):
        await lab.factory.delete_session(f"s{at}")
        if at in {0, 48}:
            assert (await sweep(keeper, attachments.store)).reclaimed_count == 0
    assert await made[49][1].get(HELLO, verify=True) == b"hello"
    await lab.factory.delete_session("s49")
    assert await sweep(keeper, attachments.store) == AttachmentReclamationReport(1, 1, 0, 5)
    assert (await attachments.ids(), await keeper.list_attachments()) == ([], [])


@pytest.mark.parametrize("call", ["list_uncommitted", "begin_reclaim"])
async def test_a4_a_sweep_that_cannot_read_who_holds_what_deletes_nothing(
    lab: Lab, attachments: AttachmentLab, call: str
) -> None:
    """It raises (M5), and leaves everything as it was."""
    handle, mine = await of_session(lab, attachments)
    await mine.put(b"hello", name="orphan")
    async with attachments.unchanged():
        await refused(lab, BackendError, sweep(Around(handle, **{call: fails}), attachments.store))


async def test_a4_a_sweep_that_is_cut_off_anywhere_is_completed_by_the_next(
    lab: Lab, attachments: AttachmentLab
) -> None:
    """Whatever batch it dies before, what is held stays, and once its mark has lapsed the orphan goes."""
    lab.needs(Power.BATCHES, Power.CLOCK)
    handle, mine = await of_session(lab, attachments)
    await mine.put(b"hello", name="held")
    await handle.commit_refs("s", [HELLO])
    for point in range(100):
        await mine.put(b"orphan", name="orphan")
        lab.on_batch = Cut(point)
        try:
            await sweep(handle, attachments.store)
            break
        except (CutError, StoreError):
            lab.on_batch = None
            lab.clock.advance(TTL_MS)
            await sweep(handle, attachments.store)
            assert (await attachments.ids(), await uncommitted(handle)) == ([HELLO], []), f"cut off at {point}"
        finally:
            lab.on_batch = None
    assert 3 <= point < 100, "the batches of the sweep were not seen"
    assert await mine.get(HELLO, verify=True) == b"hello"


async def test_a4_a_sweep_that_cannot_delete_goes_on_later(lab: Lab, attachments: AttachmentLab) -> None:
    """It raises; what it deleted is forgotten, and the rest is for the run after its mark has lapsed."""
    handle, mine = await of_session(lab, attachments)
    contents = [(await mine.put(b"%d" % at, name="orphan")).attachment_id for at in range(3)]
    first, second, third = sorted(contents)

    async def delete(attachment_id: str) -> int:
        """Fail for the second one."""
        if attachment_id == second:
            raise AttachmentStoreError("permission", "it is not ours", "ask for it")
        return await attachments.store.delete(attachment_id)

    with pytest.raises(AttachmentStoreError):
        await sweep(handle, Around(attachments.store, delete=delete))
    handle = await lab.reopen()
    assert first not in await attachments.ids()
    assert await uncommitted(handle) == [("s", second, "released"), ("s", third, "released")]
    assert await sweep(handle, attachments.store) == AttachmentReclamationReport(2, 0, 2)
    lab.clock.advance(TTL_MS)
    assert await sweep(handle, attachments.store) == AttachmentReclamationReport(2, 2, 0, 2)
    assert (await attachments.ids(), await uncommitted(handle)) == ([], [])


async def test_a4_a_put_beside_a_sweep_keeps_its_bytes(lab: Lab, attachments: AttachmentLab) -> None:
    """While a sweep deletes content, a put of the same bytes waits; when both are done, they are there."""
    handle, mine = await of_session(lab, attachments)
    _, theirs = await of_session(lab, attachments, "other")
    await mine.put(b"hello", name="orphan")
    gate = Gate(attachments.store.delete)
    sweeping = asyncio.ensure_future(sweep(handle, Around(attachments.store, delete=gate)))
    await reached(gate.reached, sweeping)
    putting = asyncio.ensure_future(theirs.put(b"hello", name="needed"))
    for _ in range(5):
        assert await uncommitted(handle) == [("s", HELLO, "released")]
    assert not putting.done()
    gate.open.set()
    assert await sweeping == AttachmentReclamationReport(1, 1, 0, 5)
    await putting
    await turn(await lab.store("other"), *chain("a"), session_id="other", committed_attachment_ids=theirs.pending)
    assert await sweep(handle, attachments.store) == AttachmentReclamationReport(0, 0)
    assert await theirs.get(HELLO, verify=True) == b"hello"


async def test_a4_sweeps_beside_puts_and_commits_take_nothing_that_landed(lab: Lab, attachments: AttachmentLab) -> None:
    """Whoever a sweep overtook is told so and puts again; in the end all of it is there, and nothing else."""
    keeper = await lab.store("keeper")

    async def puts(at: int) -> tuple[SessionAttachmentStore, bytes]:
        """Put one of two contents and commit it, until no sweep is faster."""
        _, mine = await of_session(lab, attachments, f"s{at}")
        content = (b"hello", b"")[at % 2]
        while True:
            try:
                await mine.put(content, name="a")
                await mine.commit_refs()
            except (AttachmentNotInManifestError, ContendedError):
                continue
            return mine, content

    async def sweeps() -> None:
        """Sweep again and again."""
        for _ in range(6):
            await sweep(keeper, attachments.store)

    sweeping = asyncio.ensure_future(sweeps())
    landed = await asyncio.gather(*(puts(at) for at in range(8)))
    await sweeping
    for mine, content in landed:
        assert await mine.get({b"hello": HELLO, b"": EMPTY}[content], verify=True) == content
    await sweep(keeper, attachments.store)
    assert set(await attachments.ids()) == {HELLO, EMPTY}


async def test_a4_bytes_that_nobody_names_can_be_released(lab: Lab, attachments: AttachmentLab) -> None:
    """Then the next sweep takes them, and nothing that a session or a release names is released by it; once."""
    handle, mine = await of_session(lab, attachments)
    await mine.put(b"hello", name="held")
    await handle.commit_refs("s", [HELLO])
    await mine.put(b"waiting", name="intent")
    for content in (b"", b"left behind"):
        await attachments.store.put(content)
    assert await release_unnamed_attachments(handle, attachments.store) == 2
    async with lab.unchanged(), attachments.unchanged():
        assert await release_unnamed_attachments(handle, attachments.store) == 0
    await handle.commit_refs("s", mine.pending)
    assert await sweep(await lab.reopen(), attachments.store) == AttachmentReclamationReport(2, 2, 0, 11)
    assert sorted(await attachments.ids()) == sorted(mine.pending)
