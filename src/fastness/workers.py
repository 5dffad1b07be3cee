"""The workers of a database and the lanes they hold: ``WorkerRegistry`` on any engine (laws R1, R2).

As thin as the other stores: it checks what comes from outside and hands a program to the engine.
"""

from __future__ import annotations

from fastness.decide import limits, limits_workers
from fastness.engines.engine import Engine
from fastness.model import HeldLane, WorkerRecord
from fastness.ops import workers


class EngineWorkerRegistry:
    """Who runs turns on a database, as they say it themselves; ``factory.workers`` gives it.

    Nothing depends on what stands here: who may write a session is for its lane to say. It is for people who want to
    know who is alive and what is held.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def announce_worker(self, record: WorkerRecord) -> None:
        """Write down what a worker says of itself, with the database's time, in place of what it said before."""
        limits_workers.check_worker(record)
        await self._engine.write(lambda: workers.announce(record))

    async def retire_worker(self, worker_id: str) -> None:
        """Take a worker out that has ended; twice is fine."""
        limits.check_id("worker_id", worker_id)
        await self._engine.write(lambda: workers.retire(worker_id))

    async def list_workers(self, *, seen_since_ms: int | None = None) -> list[WorkerRecord]:
        """List workers by id: all, or those seen at that time or later (milliseconds since the epoch)."""
        since_ms = limits.MIN_INT if seen_since_ms is None else limits.check_int63("seen_since_ms", seen_since_ms)
        return await self._engine.read(lambda: workers.list_seen(since_ms))

    async def forget_workers(self, seen_until_ms: int) -> int:
        """Take workers out that died without a word: last seen at that time or earlier. Gives how many."""
        limits.check_int63("seen_until_ms", seen_until_ms)
        return await self._engine.write(lambda: workers.forget(seen_until_ms))

    async def list_held_lanes(
        self, *, after: HeldLane | None = None, limit: int = 1000, owner_id: str | None = None
    ) -> list[HeldLane]:
        """List the lanes that are held, by owner and session, a page at a time: all, or those of one owner.

        ``after`` is the last one of the page before, which may be free by now. It costs what is held, however many
        sessions there are.
        """
        limits_workers.check_lane_page(after, limit, owner_id)
        return await self._engine.read(lambda: workers.list_held(after, limit, owner_id))
