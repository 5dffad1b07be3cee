"""Our side of the dispatch benchmark: input to sessions, one turn for each, run by one worker.

Options: ``url``; ``concurrency``, how many sessions run at once; ``sessions``, how many there are: input goes to them
in turn (null: each input is the first of a session of its own).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bench.dispatch.roles import Hear, Options, Send, main
from fastness.model import TextItem
from fastness.runtime.database import Database, connect
from fastness.runtime.turn import Turn
from fastness.runtime.worker import Worker
from fastness.sql.program import Program, Read, Statement

_AT_ONCE = 64
_BUSY = "select count(*) from (select 1 from turn_input limit 1) t"
_SETTLED = "select count(*) from turn_input_evidence where state = 'completed'"


class Ours:
    """A database and a worker, as an application has them."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._db = connect(str(options["url"]))

    async def prepare(self) -> None:
        """Have the tables made."""
        async with self._db as db:
            await db.factory.list_sessions(limit=1)

    async def fill(self, count: int) -> None:
        """Send, many at once."""
        async with self._db as db:
            for first in range(0, count, _AT_ONCE):
                numbers = range(first, min(first + _AT_ONCE, count))
                await asyncio.gather(*(self._send(db, f"fill-{number}") for number in numbers))

    @asynccontextmanager
    async def sender(self) -> AsyncIterator[Send]:
        """Give the sending of one input."""
        async with self._db as db:
            yield lambda key: self._send(db, key)

    async def _send(self, db: Database, key: str) -> object:
        number = int(key.rpartition("-")[2])
        sessions = self._options["sessions"]
        session = f"session-{number if sessions is None else number % int(sessions)}"
        return await db.send(session, key, key=key)

    @asynccontextmanager
    async def worker(self, hear: Hear) -> AsyncIterator[None]:
        """Run a worker here. Each turn takes one input, and answers with two letters."""

        async def handler(turn: Turn) -> None:
            hear(_said(turn))
            turn.append("ok")

        async with self._db as db, Worker(db, handler, concurrency=self._options["concurrency"], max_inputs=1):
            yield

    async def busy(self) -> bool:
        """Look for input that waits or is claimed."""
        return bool(await self._count(_BUSY))

    async def settled(self) -> int:
        """Count the input that a turn has answered."""
        return await self._count(_SETTLED)

    async def _count(self, query: str) -> int:
        def program() -> Program[int]:
            (((count,),),) = yield Read(Statement(query), last=True)
            return int(count)

        return await self._db.factory.engine.read(program)


def _said(turn: Turn) -> str:
    """Give the key of the input that the turn has taken: exactly one, or this is no measurement."""
    (said,) = turn.inputs
    (item,) = said.input.items
    assert isinstance(item, TextItem)
    return item.text


if __name__ == "__main__":
    main(Ours)
