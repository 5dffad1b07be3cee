"""Copying sessions from one database to another, each whole and verified, or not at all.

It promises that a session in the destination is complete, that what is there already is never changed, and that a copy
that was broken off goes on where it was when it is run again. It must not know tables: ``ops.transfer`` does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Literal, TypeAlias

from fastness.decide.transfer import COPY_ADVANCE
from fastness.engines.engine import Engine, Snapshot
from fastness.engines.sqlite import SqliteEngine
from fastness.errors import BackendError, InvalidInputError
from fastness.factory import EngineSessionStoreFactory
from fastness.model.base import Value
from fastness.ops import environments, transfer
from fastness.ops.transfer import SessionImage
from fastness.sql.program import Row
from fastness.transfer.spool import Spool

_SESSIONS_PER_PAGE = 500

Fate: TypeAlias = Literal["copied", "present", "conflicting", "vanished"]

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with what is being done ("checking", "comparing", "copying"), to how many sessions it was, and of how many."""


class TransferReport(Value, frozen=True):
    """What a copy, a backup or a restore did.

    ``present_count`` sessions were in the destination already, the same; ``conflicting`` are there with other content,
    and were left alone; ``vanished_count`` were deleted from the source before they were read. Nodes and blobs are
    those of the copied sessions, a blob counted for each session that needs it. Of ``release_count`` attachments that
    deleted sessions held, the destination's sweep knows now; ``environment_count`` environments were brought along.
    """

    copied_count: int = 0
    present_count: int = 0
    vanished_count: int = 0
    node_count: int = 0
    blob_count: int = 0
    release_count: int = 0
    environment_count: int = 0
    conflicting: tuple[str, ...] = ()


async def copy(
    source: EngineSessionStoreFactory, destination: EngineSessionStoreFactory, *, progress: Progress | None = None
) -> TransferReport:
    """Copy every session, beside running work on the source: each one as it is when its turn comes.

    Work that one session hands to another meanwhile may be seen on neither side or on both; what must be of one moment
    is moved by ``backup`` and ``restore``, or while nobody writes. A session that comes to life meanwhile may be left
    for the next run.

    A session that is in the destination with the same content is passed over, so that a copy that was broken off is
    completed by another run. One that is there with other content is named in the report and not touched. A copied lane
    is free and its fencing token moved on by one: claims of the source's holders mean nothing there.

    Raises ``InvalidInputError`` for one database under both names, ``DatabaseDamagedError`` for a session that cannot
    be read whole, and what the engines raise. What was copied by then stays.
    """
    refuse_same(source.engine, destination.engine)
    return await Mover(source.engine, destination.engine, COPY_ADVANCE, progress).run()


def refuse_same(source: Engine, destination: Engine) -> None:
    """Refuse to copy a database onto itself where that can be told: two names of one server do no harm either."""
    same = source is destination
    if isinstance(source, SqliteEngine) and isinstance(destination, SqliteEngine):
        one, other = source.path, destination.path
        same |= one is not None and other is not None and one.resolve() == other.resolve()
        if one is not None and other is not None and one.exists() and other.exists():
            same |= one.samefile(other)
    if same:
        raise InvalidInputError("the destination", "is the source itself; name another database")


async def sessions_of(database: Engine | Snapshot) -> AsyncIterator[tuple[int, str]]:
    """Go through the keys and ids of all sessions, oldest first, a page in memory at a time."""
    after = 0
    while page := await database.read(partial(transfer.sessions_after, after, _SESSIONS_PER_PAGE)):
        for sid, session_id in page:
            yield sid, session_id
        after = page[-1][0]


class Mover:
    """One run over all sessions of a source, which is a database as it changes or one snapshot of it."""

    def __init__(self, source: Engine | Snapshot, destination: Engine, advance: int, progress: Progress | None) -> None:
        self._source = source
        self._destination = destination
        self._advance = advance
        self._progress = progress
        self._fates: Counter[Fate] = Counter()
        self._conflicting: list[str] = []
        self._nodes = self._blobs = self._releases = self._environments = 0

    async def run(self) -> TransferReport:
        """Move every session, and then the releases of those that are gone, and the environments."""
        total = await self._source.read(transfer.count_sessions)
        await self._destination.read(transfer.count_sessions)  # it is made, or refused, also if nothing is moved
        async for sid, session_id in sessions_of(self._source):
            fate = await self._move(sid, session_id)
            self._fates[fate] += 1
            if fate == "conflicting":
                self._conflicting.append(session_id)
            if self._progress is not None:
                self._progress("copying", self._fates.total(), max(total, self._fates.total()))
        await self._move_releases()
        await self._move_environments()
        return TransferReport(
            self._fates["copied"],
            self._fates["present"],
            self._fates["vanished"],
            self._nodes,
            self._blobs,
            self._releases,
            self._environments,
            tuple(self._conflicting),
        )

    async def _move(self, sid: int, session_id: str) -> Fate:
        there = await self._destination.read(partial(transfer.find_session, session_id))
        if there is None:
            with Spool() as spool:
                image = await self._source.read(partial(transfer.read_session, sid, spool))
                if image is None:
                    return "vanished"
                if await self._destination.write(partial(transfer.write_session, image, spool.pages, self._advance)):
                    await self._verify(image)
                    return "copied"
            there = await self._destination.read(partial(transfer.find_session, session_id))
        here = await self._source.read(partial(transfer.read_session, sid, None))
        if here is None:
            return "vanished"
        return "present" if there is not None and here.digest == there.digest else "conflicting"

    async def _verify(self, image: SessionImage) -> None:
        """Compare what is in the destination, now that it is committed, with what was read."""
        there = await self._destination.read(partial(transfer.find_session, image.session_id))
        self._nodes, self._blobs = self._nodes + image.node_count, self._blobs + image.blob_count
        if there is None or there.digest == image.digest:
            return  # a session that was deleted there meanwhile was somebody's wish
        token, admission, revision = image.position
        if there.position == (token + self._advance, admission, revision):
            raise BackendError(
                f"session {image.session_id!r} reads back from the destination other than it was written",
                "unless somebody changed it there in this very moment, the destination cannot be trusted:"
                " delete the session there, run 'check' on both databases, and copy again",
            )

    async def _move_releases(self) -> None:
        last: Row | None = None
        while rows := await self._source.read(partial(transfer.releases_after, last)):
            await self._destination.write(partial(transfer.write_releases, rows))
            self._releases += len(rows)
            last = rows[-1]

    async def _move_environments(self) -> None:
        after = ""
        while rows := await self._source.read(partial(environments.page_after, after, environments.PER_READ)):
            environments.require_sound(rows)
            await self._destination.write(partial(environments.write_page, rows))
            self._environments += len(rows)
            after = rows[-1][0]
