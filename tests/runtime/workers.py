"""What laws of workers share: a handler that is looked over the shoulder."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from fastness.runtime.database import Database
from fastness.runtime.turn import Turn
from tests.runtime.saying import PATIENCE_S, heard, kinds_in, until

Does = Callable[[Turn, str], Awaitable[Any]]


class Handler:
    """Notes what each turn has to do, does something about it, and lets a law wait for so many turns.

    ``done`` has an entry for each turn that came to its end without an error, ``begun`` one for each that began: the
    session and what it heard, or the kinds of its work.
    """

    def __init__(self, does: Does | None = None) -> None:
        self.begun: list[tuple[str, str]] = []
        self.done: list[tuple[str, str]] = []
        self.attempts: list[int] = []
        self.running = 0
        self.most = 0
        self._does = does
        self._changed = asyncio.Condition()

    async def __call__(self, turn: Turn) -> Any:
        """One turn."""
        what = "+".join(heard(turn) or kinds_in(turn.work))
        self.begun.append((turn.session_id, what))
        self.attempts.append(turn.attempts)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self._tell()
            answer = await self._does(turn, what) if self._does else None
            self.done.append((turn.session_id, what))
            return answer
        finally:
            self.running -= 1
            await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds of what was noted."""
        async with asyncio.timeout(PATIENCE_S), self._changed:
            await self._changed.wait_for(holds)

    async def until_begun(self, count: int) -> None:
        """Wait until so many turns have begun."""
        await self.until(lambda: len(self.begun) >= count)

    async def until_done(self, count: int) -> None:
        """Wait until so many turns have come to an end."""
        await self.until(lambda: len(self.done) >= count)


async def raising(turn: Turn, what: str) -> str:
    """Fail for what says so, and answer all else."""
    if "poison" in what:
        raise RuntimeError(f"cannot digest {what}")
    return f"answer to {what}"


async def settled(db: Database, session_id: str = "s") -> None:
    """Wait until nothing waits in a session, and nobody runs a turn of it."""

    async def nothing() -> bool:
        """Look once."""
        # What somebody holds does not show as waiting: a lane that is free only before proves nothing.
        if await db.pending(session_id) != ((), ()):
            return False
        lease = await db._any(session_id).observe_session_execution_lease(session_id)
        return lease is None and await db.pending(session_id) == ((), ())

    await until(nothing)
