"""Sweeps that fail, die and race: what is committed stays, and the next sweep does what is left."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fastness.attachments.files import FileAttachmentStore
from fastness.attachments.memory import InMemoryAttachmentStore
from fastness.attachments.reclaim import MARK_TTL_MS, reclaim_orphaned_attachments, release_unnamed_attachments
from fastness.attachments.session import SessionAttachmentStore
from fastness.conformance import Lab
from fastness.errors import (
    AttachmentNotInManifestError,
    AttachmentStoreError,
    ContendedError,
    DatabaseDamagedError,
    StoreError,
)
from fastness.model import AttachmentReclamationReport, RuntimePersistence, SessionStoreCreateRequest
from fastness.persistence import SqliteSessionStoreFactory
from fastness.sql.program import Read, Write

EVER = 2**63 - 1
NEEDED = (b"kept", b"kept by one and released by the other")
ORPHANS = (b"never committed", b"nor this", b"of a deleted session", b"let go of")


def id_of(content: bytes) -> str:
    """The id of content."""
    return hashlib.sha256(content).hexdigest()


class Injected(Exception):  # noqa: N818 - it is no error of ours
    """The fault."""


class Scene:
    """Two contents that are needed and four that are not; how each came to be so differs."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.bytes: Any = InMemoryAttachmentStore()

    async def set(self) -> Scene:
        """Put, commit, delete and forget."""
        for session_id in ("a", "b"):
            await self.lab.factory.delete_session(session_id)
        for table in ("attachment_release", "attachment_mark"):
            await self.lab.execute_raw(f"delete from {table}")
        self.bytes = InMemoryAttachmentStore()
        await self._put("a", *NEEDED, ORPHANS[3])
        await self._put("b", NEEDED[1], ORPHANS[2])
        await self.lab.factory.delete_session("b")
        store = await self.lab.store("a")
        await store.forget("a", id_of(ORPHANS[3]))
        mine = SessionAttachmentStore(store, self.bytes, "a")
        for content in ORPHANS[:2]:
            await mine.put(content, name="orphan")
        return self

    async def _put(self, session_id: str, *contents: bytes) -> None:
        store = await self.lab.store(session_id)
        mine = SessionAttachmentStore(store, self.bytes, session_id)
        for content in contents:
            await mine.put(content, name="needed")
        await mine.commit_refs()

    async def sweep(self, **bounds: Any) -> AttachmentReclamationReport:
        """Sweep up to now."""
        bounds = {"batch_size": 2, **bounds}
        return await reclaim_orphaned_attachments(await self.lab.store("a"), self.bytes, self.lab.now_ms, **bounds)

    async def require_needed(self) -> None:
        """Expect all that is committed to be readable."""
        mine = SessionAttachmentStore(await self.lab.store("a"), self.bytes, "a")
        for content in NEEDED:
            assert await mine.get(id_of(content), verify=True) == content

    async def require_done(self) -> None:
        """Expect that nothing else is left, neither bytes nor rows."""
        await self.require_needed()
        assert await self.bytes.list() == sorted(map(id_of, NEEDED))
        assert await (await self.lab.store("a")).list_uncommitted(EVER) == []
        assert await self.lab.execute_raw("select * from attachment_mark") == []
        await self.lab.assert_sound()


async def test_a_sweep_takes_what_nobody_needs_and_says_so(lab: Lab) -> None:
    """Literally: five entries are looked at, four contents go, one is kept; a second run finds nothing."""
    scene = await Scene(lab).set()
    size = sum(map(len, ORPHANS))
    assert await scene.sweep(dry_run=True) == AttachmentReclamationReport(5, 4, 1, size, dry_run=True)
    assert await scene.sweep() == AttachmentReclamationReport(5, 4, 1, size)
    await scene.require_done()
    async with lab.unchanged():
        assert await scene.sweep() == AttachmentReclamationReport(0, 0, 0, 0)


async def test_a_fault_before_any_batch_is_made_good_by_the_next_sweep(lab: Lab) -> None:
    """Wherever it comes: it is raised, what is committed stays, and once the marks have lapsed the rest goes."""
    scene = await Scene(lab).set()
    count = 0

    def note(_batch: Read | Write | None) -> None:
        nonlocal count
        count += 1

    lab.on_batch = note
    await scene.sweep()
    lab.on_batch = None
    assert count >= 12
    for point in range(count):
        await scene.set()
        left = point

        def fail(_batch: Read | Write | None) -> None:
            nonlocal left
            if left == 0:
                raise Injected
            left -= 1

        lab.on_batch = fail
        with pytest.raises((Injected, StoreError)):
            await scene.sweep()
        lab.on_batch = None
        await scene.require_needed()
        lab.clock.advance(MARK_TTL_MS)
        await scene.sweep()
        await scene.require_done()


class Stubborn(InMemoryAttachmentStore):
    """Bytes of which some cannot be deleted at first."""

    def __init__(self, stubborn: str, before: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.stubborn: str | None = stubborn
        self.before = before

    async def delete(self, attachment_id: str) -> int:
        """Delete, or fail."""
        self.before()
        if attachment_id == self.stubborn:
            raise AttachmentStoreError("unreachable", "nobody answers", "wait")
        return await super().delete(attachment_id)


@pytest.mark.parametrize("orphan", ORPHANS)
async def test_bytes_that_cannot_be_deleted_stay_on_record(lab: Lab, orphan: bytes) -> None:
    """The sweep raises; what it deleted is done with, the rest stays marked, and goes when the marks have lapsed."""
    scene = await Scene(lab).set()
    stubborn = Stubborn(id_of(orphan))
    for each in await scene.bytes.list():
        await stubborn.put(await scene.bytes.get(each))
    scene.bytes = stubborn
    with pytest.raises(AttachmentStoreError, match="nobody answers"):
        await scene.sweep(batch_size=10)
    gone = set(map(id_of, ORPHANS)) - set(await stubborn.list())
    marked = {each for (each,) in await lab.execute_raw("select attachment_id from attachment_mark")}
    assert marked == set(map(id_of, ORPHANS)) - gone
    assert id_of(orphan) in marked
    stubborn.stubborn = None
    assert (await scene.sweep()).reclaimed_count == 0
    await scene.require_needed()
    lab.clock.advance(MARK_TTL_MS)
    assert (await scene.sweep()).reclaimed_count == len(marked)
    await scene.require_done()


async def test_a_manifest_that_cannot_be_read_deletes_nothing(lab: Lab) -> None:
    """A damaged row is raised, before and after it was looked at for real, and every byte stays."""
    scene = await Scene(lab).set()
    before = await scene.bytes.list()
    await lab.execute_raw("update attachment set reference = 'x' where attachment_id = $1", id_of(ORPHANS[1]))
    for dry_run in (True, False):
        with pytest.raises(DatabaseDamagedError):
            await scene.sweep(batch_size=10, dry_run=dry_run)
    assert await scene.bytes.list() == before


async def test_bytes_that_nothing_names_go_when_they_are_released(lab: Lab) -> None:
    """A sweep does not touch them by itself; released, they are taken, and what a session names is not."""
    scene = await Scene(lab).set()
    await scene.bytes.put(b"of a lost database")
    await scene.sweep()
    assert await scene.bytes.list() == sorted(map(id_of, (*NEEDED, b"of a lost database")))
    store = await lab.store("a")
    assert await release_unnamed_attachments(store, scene.bytes) == 1
    assert await release_unnamed_attachments(store, scene.bytes) == 0
    assert (await scene.sweep()).reclaimed_count == 1
    await scene.require_done()


# --- races ---

PUTTERS = 50
WAVES = 3
CONTENT = b"the same for everybody"


class Putter:
    """One of many sessions that put the same bytes, under a name of its own."""

    def __init__(self, store: RuntimePersistence, of_bytes: FileAttachmentStore, session_id: str) -> None:
        self.attachments = SessionAttachmentStore(store, of_bytes, session_id)

    async def put(self) -> None:
        """Put the bytes, again and again while sweeps are in the way."""
        while True:
            with suppress(ContendedError):
                await self.attachments.put(CONTENT, name=f"{self.attachments.session_id}.txt")
                return

    async def keep(self, swept: asyncio.Event) -> None:
        """Put, let a sweep come, and commit; what it took is put once more. Then it has to be there."""
        await self.put()
        await swept.wait()
        while self.attachments.pending:
            try:
                await self.attachments.commit_refs()
            except AttachmentNotInManifestError:
                await self.put()
        assert await self.attachments.get(id_of(CONTENT), verify=True) == CONTENT


async def test_sweeps_beside_fifty_puts_of_the_same_bytes_lose_nothing(lab: Lab, tmp_path: Path) -> None:
    """Sweeps without any grace, between puts and commits and during them, take nothing that a commit refers to."""
    of_bytes = FileAttachmentStore(tmp_path / "files")
    names = [f"s{number}" for number in range(PUTTERS)]
    putters = [Putter(await lab.store(name), of_bytes, name) for name in names]
    store = await lab.store("sweeper")

    async def sweep() -> int:
        return (await reclaim_orphaned_attachments(store, of_bytes, lab.now_ms)).reclaimed_count

    for _ in range(WAVES):
        swept = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for putter in putters:
                group.create_task(putter.keep(swept))
            while not await sweep():
                await asyncio.sleep(0)
            swept.set()
            for _ in range(10):
                await sweep()
                await asyncio.sleep(0.01)
        entries = await store.list_attachments()
        assert [entry.state for entry in entries] == ["committed"] * PUTTERS
        assert {entry.reference.name for entry in entries if entry.reference} == {f"{name}.txt" for name in names}
        for putter in putters[1:]:
            await putter.attachments.forget(id_of(CONTENT))
        assert await sweep() == 0
        assert await putters[0].attachments.get(id_of(CONTENT), verify=True) == CONTENT
        await putters[0].attachments.forget(id_of(CONTENT))
        assert await sweep() == 1
        assert await of_bytes.list() == []


# --- kills ---

MANY = 60
SHORT_TTL_MS = 4_000
SWEEP = """
import asyncio, signal, sys, time
from fastness.attachments.files import FileAttachmentStore
from fastness.attachments.reclaim import reclaim_orphaned_attachments
from fastness.model import SessionStoreCreateRequest
from fastness.persistence import SqliteSessionStoreFactory

left = int(sys.argv[4])

def say(what):
    global left
    print(what, flush=True)
    left -= 1
    if not left:
        signal.pause()

class Telling(FileAttachmentStore):
    async def delete(self, attachment_id):
        say("before")
        freed = await super().delete(attachment_id)
        say("after")
        return freed

async def main():
    async with SqliteSessionStoreFactory(sys.argv[1]) as factory:
        store = await factory.open_existing_store(SessionStoreCreateRequest("s"))
        now_ms, ttl_ms = time.time_ns() // 1_000_000, int(sys.argv[3])
        await reclaim_orphaned_attachments(store, Telling(sys.argv[2]), now_ms, batch_size=5, mark_ttl_ms=ttl_ms)

asyncio.run(main())
"""


def kill_after(lines: int, *arguments: object) -> None:
    """Begin a sweep in a process of its own, and kill it when it has said so much: it does nothing more then."""
    command = [sys.executable, "-c", SWEEP, *map(str, arguments), str(lines)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(lines):
            assert process.stdout.readline() in {"before\n", "after\n"}
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


async def test_a_sweep_that_was_killed_is_completed_by_the_next_one(tmp_path: Path) -> None:
    """Processes die in the middle of a batch, between bytes and rows: nothing that is needed goes, the rest does."""
    database, folder = tmp_path / "s.db", tmp_path / "files"
    of_bytes = FileAttachmentStore(folder)
    needed = [b"needed %d" % number for number in range(10)]
    async with SqliteSessionStoreFactory(database) as factory:
        store = await factory.create_store(SessionStoreCreateRequest("s"))
        mine = SessionAttachmentStore(store, of_bytes, "s")
        for content in needed:
            await mine.put(content, name="needed")
        await mine.commit_refs()
        for number in range(MANY):
            await mine.put(b"orphan %d" % number, name="orphan")
    for lines in (1, 2, 7, 10, 13):
        kill_after(lines, database, folder, SHORT_TTL_MS)
    async with SqliteSessionStoreFactory(database) as factory:
        store = await factory.create_store(SessionStoreCreateRequest("s"))
        left = await store.list_uncommitted(EVER)
        assert 0 < len(left) < MANY
        while await store.list_uncommitted(EVER):  # as long as the marks of the dead live
            now_ms = time.time_ns() // 1_000_000
            await reclaim_orphaned_attachments(store, of_bytes, now_ms)
            await asyncio.sleep(0.05)
        mine = SessionAttachmentStore(store, of_bytes, "s")
        for content in needed:
            assert await mine.get(id_of(content), verify=True) == content
        assert await of_bytes.list() == sorted(map(id_of, needed))
        assert (await factory.check()).findings == ()
