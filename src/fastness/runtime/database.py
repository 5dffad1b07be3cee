"""The database as applications see it: send to a session, run its turns, read it.

It promises that nobody who uses it needs to know what a lease is. It holds no rule of its own: stores, lanes and turns
have them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

from fastness.errors import InvalidInputError
from fastness.factory import EngineSessionStoreFactory, open_database
from fastness.model import (
    FullGraph,
    LeaseTimings,
    NextTurn,
    PendingTurnInput,
    PendingTurnInputDraft,
    SessionReadView,
    SessionStoreCreateRequest,
    TurnInput,
)
from fastness.runtime.lane import LaneKeeper
from fastness.runtime.turn import Turn
from fastness.store import SessionStore


def connect(url: str, *, timings: LeaseTimings | None = None, owner_id: str | None = None) -> Database:
    """Name a database by url: ``sqlite:///file``, ``postgresql://…`` or ``memory:``. Use it in ``async with``.

    ``timings`` say how long a lane is held without a sign of life, and ``owner_id`` what the holder is called where
    others see it; both have defaults. Raises ``InvalidInputError`` for a url of no known kind.
    """
    return Database(open_database(url), timings=timings, owner_id=owner_id)


class Database:
    """All sessions of one database. It is made by ``connect``, or over a factory that the application has."""

    def __init__(
        self,
        factory: EngineSessionStoreFactory,
        *,
        timings: LeaseTimings | None = None,
        owner_id: str | None = None,
    ) -> None:
        self.factory = factory
        self._timings = timings
        self._owner_id = owner_id
        self._seen = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Finish what was started and let go of the database."""
        await self.factory.close()

    async def send(self, session_id: str, said: str | TurnInput, *, key: str | None = None) -> PendingTurnInput:
        """Say something to a session, durably; its next turn hears it. An unknown session comes to life with it.

        With ``key``, the same thing said again is there once. Raises ``InputSourceKeyConflictError`` for other content
        under a key that is taken.
        """
        if not isinstance(said, str | TurnInput):
            raise InvalidInputError("said", f"must be text or a TurnInput, not {type(said).__name__}")
        content = TurnInput.of_text(said) if isinstance(said, str) else said
        store = SessionStore(self.factory.engine, session_id, None, self.factory.options)
        return await store.enqueue_pending_turn_input(
            PendingTurnInputDraft(session_id, NextTurn(), content, source_key=key)
        )

    @asynccontextmanager
    async def turn(self, session_id: str, *, wait_s: float | None = None, max_inputs: int = 100) -> AsyncIterator[Turn]:
        """Run a turn: the block's end commits all that it did, an exception leaves nothing of it.

        Turns of one session run one at a time, in whatever process; ``wait_s`` bounds the wait for the others
        (``ContendedError``). If the lane is lost meanwhile, the block is cancelled, and ``LeaseExpiredError`` says why.
        """
        store = await self.factory.create_store(SessionStoreCreateRequest(session_id))
        lane = LaneKeeper(
            store,
            session_id,
            owner_id=self._owner_id,
            timings=self._timings,
            wait_s=wait_s,
            wait=self._wait,
        )
        async with lane:
            turn = await Turn.begin(store, lane, max_inputs=max_inputs)
            yield turn
            await turn.settle()

    async def read(self, session_id: str) -> SessionReadView | None:
        """Read a session as its last turn left it, with every branch; None before the first turn."""
        store = await self.factory.open_existing_store(SessionStoreCreateRequest(session_id))
        read = None if store is None else await store.load_session(FullGraph())
        return None if read is None else SessionReadView.of(read)

    async def delete(self, session_id: str) -> None:
        """Remove all of a session, also while somebody works on it; twice is fine."""
        await self.factory.delete_session(session_id)

    async def _wait(self, timeout_s: float) -> None:
        """Wait until something was committed that may have freed a lane, or the time is up."""
        self._seen = await self.factory.engine.wait_for_work(self._seen, timeout_s)
