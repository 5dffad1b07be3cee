"""Short ways to say what the laws of the runtime say all the time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from fastness.conformance.lab import Lab
from fastness.model import LeaseTimings, Message, PendingTurnInput, QueuedWorkBatch, SessionReadView, Task
from fastness.runtime.database import Database
from fastness.runtime.retry import RetryPolicy
from fastness.runtime.turn import Turn

T = TypeVar("T")

PATIENCE_S = 30.0
"""How long a law waits for what has to come. What does not is a failure, never a pass."""

OFTEN = LeaseTimings(timedelta(seconds=30), timedelta(milliseconds=50))
"""A lease that is renewed so often that a law sees it soon, and lives so long that a slow machine loses none."""
TTL_MS = 30_000

AT_ONCE = RetryPolicy(3, timedelta(0), timedelta(0))
"""Three attempts without a pause."""


def texts(messages: Sequence[Message]) -> list[str]:
    """What was said, by whomever."""
    return [message.text for message in messages]


def spoken(messages: Sequence[Message]) -> list[tuple[str, str]]:
    """Who said what."""
    return [(message.role, message.text) for message in messages]


def heard(turn: Turn) -> list[str]:
    """What users have said to this turn."""
    return said_in(turn.inputs)


def said_in(rows: Sequence[PendingTurnInput]) -> list[str]:
    """What rows of input say."""
    return [" ".join(getattr(item, "text", "?") for item in row.input.items) for row in rows]


def kinds_in(batches: Sequence[QueuedWorkBatch]) -> list[str]:
    """The kind of each task; a command shows as ``command``."""
    payloads = [item.payload for batch in batches for item in batch.items]
    return [payload.kind if isinstance(payload, Task) else "command" for payload in payloads]


async def view(db: Database, session_id: str = "s") -> SessionReadView:
    """What a reader sees of a session that has a head."""
    found = await db.read(session_id)
    assert found is not None, f"session {session_id!r} has no head"
    return found


async def revisions(db: Database, session_id: str = "s") -> list[int]:
    """The revisions of a session's commits."""
    return [record.revision async for record in db.history(session_id)]


async def exchange(db: Database, said: str, answer: str, session_id: str = "s", **about: Any) -> Turn:
    """Something is said, and a turn answers it."""
    await db.send(session_id, said)
    async with db.turn(session_id) as turn:
        turn.append(answer, **about)
    return turn


async def soon(event: asyncio.Event) -> None:
    """Wait until something happens that has to."""
    async with asyncio.timeout(PATIENCE_S):
        await event.wait()


async def until(holds: Callable[[], Any]) -> None:
    """Wait until something holds that has to, and that nobody tells of; it may be a coroutine function."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found = holds()
            if await found if asyncio.iscoroutine(found) else found:
                return
            await asyncio.sleep(0.01)


async def at_once(*calls: Any) -> list[Any]:
    """Run calls at the same time, and wait for all of them."""
    async with asyncio.timeout(PATIENCE_S):
        return await asyncio.gather(*calls)


class Asked:
    """Says when the database was asked something from now on, whatever it was."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._event = asyncio.Event()
        loop = asyncio.get_running_loop()

        def tell(_: object) -> None:
            """Called by the engine, in whatever thread."""
            loop.call_soon_threadsafe(self._event.set)

        lab.on_batch = tell

    async def once(self) -> None:
        """Wait for that."""
        await soon(self._event)
        self._lab.on_batch = None
