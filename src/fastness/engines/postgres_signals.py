"""Notices between processes that there may be work: told after commits, many at once, and listened for by one.

It promises that a commit never waits for a notice, that a burst of commits makes few notices, and that a listener which
lost its connection comes back and wakes everybody once, for it may have missed some. Notices are hints: whoever waits
for work looks by itself after a while all the same.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress

import psycopg
from psycopg import sql
from psycopg_pool import PoolClosed, PoolTimeout

from fastness.engines.postgres_open import Place, connect, place_of
from fastness.engines.postgres_wire import Lost
from fastness.engines.signals import Signal
from fastness.errors import StoreError

_GATHER_S = 0.01
_LAST_WORDS_S = 1.0
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0


class Notices:
    """The notices of one database schema. ``direct``: the engine's own connections lead to the server itself."""

    def __init__(self, place: Place, listen_url: str | None, tell: Callable[[str], Awaitable[None]]) -> None:
        self.direct = False
        self._place = place if listen_url is None else place_of(listen_url, place.schema, what="listen_url")
        self._listens_apart = listen_url is not None
        self._channel = f"fastness_{place.schema}"[:63]
        self._tell = tell
        self._signal = Signal()
        self._untold = False
        self._teller: asyncio.Task[None] | None = None
        self._listener: asyncio.Task[None] | None = None

    def move(self, place: Place, *, direct: bool) -> None:
        """The engine opened this place. Listen there, unless another one was named for that."""
        self.direct = direct
        if not self._listens_apart:
            self._place = place

    def tell(self) -> None:
        """Something was committed that leaves work to do: wake who waits here, and soon everybody else."""
        self._signal()
        self._untold = True
        if self._teller is None or self._teller.done():
            self._teller = asyncio.get_running_loop().create_task(self._tell_others())

    async def _tell_others(self) -> None:
        while self._untold:
            self._untold = False
            # A notice that does not get through is made up for by the others' own looking.
            with suppress(psycopg.Error, PoolTimeout, PoolClosed, StoreError, Lost):
                await self._tell(self._channel)
            await asyncio.sleep(_GATHER_S)

    async def wait(self, seen: int, timeout_s: float) -> int:
        """Wait for a notice. The first call starts the listener, where there is something to listen to."""
        if self._listener is None and (self.direct or self._listens_apart):
            self._listener = asyncio.get_running_loop().create_task(self._listen())
        return await self._signal.wait(seen, timeout_s)

    async def _listen(self) -> None:
        pause_s = _SHORTEST_PAUSE_S
        while True:
            with suppress(psycopg.Error, StoreError):
                connection = await connect(self._place)
                try:
                    await connection.execute(sql.SQL("listen {}").format(sql.Identifier(self._channel)))
                    self._signal()  # what was told before this moment was not heard
                    pause_s = _SHORTEST_PAUSE_S
                    async for _ in connection.notifies():
                        self._signal()
                finally:
                    await connection.close()
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def close(self) -> None:
        """Wake who waits here, tell what is untold, and stop listening."""
        self._signal()
        if self._teller is not None:
            await asyncio.wait((self._teller,), timeout=_LAST_WORDS_S)
            self._teller.cancel()
        if self._listener is not None:
            self._listener.cancel()
            with suppress(asyncio.CancelledError):
                await self._listener
