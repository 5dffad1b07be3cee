"""Telling whoever waits for work that there may be some: a number that rises, and those who wait for it.

It promises that a change which comes between two waits is not missed, and that many changes at once wake a waiter once.
It knows no database.
"""

from __future__ import annotations

import asyncio


class Signal:
    """A number that rises with every change, on one event loop."""

    def __init__(self) -> None:
        self.number = 0
        self._waiting: set[asyncio.Future[None]] = set()

    def __call__(self) -> None:
        """Something changed."""
        self.number += 1
        for waiter in self._waiting:
            _release(waiter)

    async def wait(self, seen: int, timeout_s: float) -> int:
        """Wait until the number is another than the one that was seen, or the time is up; give the number."""
        if self.number == seen and timeout_s > 0:
            loop = asyncio.get_running_loop()
            waiter: asyncio.Future[None] = loop.create_future()
            timer = loop.call_later(timeout_s, _release, waiter)
            self._waiting.add(waiter)
            try:
                await waiter
            finally:
                timer.cancel()
                self._waiting.discard(waiter)
        return self.number


def _release(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
