"""The side of procrastinate: deferred no-op tasks, run by one worker that listens for notifications.

It runs in an interpreter of its own that has ``procrastinate``; it is for PostgreSQL only. Options: ``url``;
``concurrency``, how many tasks run at once and how many connections there are; ``bare``, whether there is no worker at
all, but ``concurrency`` loops, each of which fetches a job and finishes it, over and over.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from bench.dispatch.roles import Hear, Options, Send, background, main

_TASK = "noop"
_BATCH = 500


class Procrastinate:
    """Procrastinate with its asynchronous connector and a pool as large as its concurrency asks for."""

    def __init__(self, options: Options) -> None:
        self._library: Any = importlib.import_module("procrastinate")
        self._concurrency = int(options["concurrency"])
        self._bare = bool(options.get("bare"))
        # One connection more than tasks: fetching has its own. Listening takes yet another, outside the pool.
        size = self._concurrency + (not self._bare)
        connector = self._library.PsycopgConnector(conninfo=options["url"], min_size=size, max_size=size)
        self._app = self._library.App(connector=connector)
        self._hear: Hear = lambda _: None
        self._task = self._app.task(name=_TASK)(self._noop)
        logging.getLogger("procrastinate").setLevel(logging.ERROR)

    async def _noop(self, key: str) -> None:
        self._hear(key)

    async def prepare(self) -> None:
        """Make the tables."""
        async with self._app.open_async():
            await self._app.schema_manager.apply_schema_async()

    async def fill(self, count: int) -> None:
        """Defer in batches."""
        async with self._app.open_async():
            for first in range(0, count, _BATCH):
                keys = range(first, min(first + _BATCH, count))
                await self._task.batch_defer_async(*({"key": f"fill-{number}"} for number in keys))

    @asynccontextmanager
    async def sender(self) -> AsyncIterator[Send]:
        """Give the deferring of a task."""

        async def send(key: str) -> object:
            return await self._task.defer_async(key=key)

        async with self._app.open_async():
            yield send

    @asynccontextmanager
    async def worker(self, hear: Hear) -> AsyncIterator[None]:
        """Run its worker, or the bare loops."""
        self._hear = hear
        async with self._app.open_async():
            if self._bare:
                work = self._fetch_and_finish()
            else:
                work = self._app.run_worker_async(concurrency=self._concurrency, install_signal_handlers=False)
            async with background(work):
                yield

    async def busy(self) -> bool:
        """Look for a job that waits or runs."""
        return bool(await self._one("select exists (select from procrastinate_jobs where status in ('todo', 'doing'))"))

    async def settled(self) -> int:
        """Count the jobs that succeeded."""
        return int(await self._one("select count(*) from procrastinate_jobs where status = 'succeeded'"))

    async def _one(self, query: str) -> Any:
        (value,) = (await self._app.connector.execute_query_one_async(query)).values()
        return value

    async def _fetch_and_finish(self) -> None:
        manager = self._app.job_manager
        status = self._library.jobs.Status.SUCCEEDED
        worker_id = await manager.register_worker()

        async def loop() -> None:
            while (job := await manager.fetch_job(queues=None, worker_id=worker_id)) is not None:
                self._hear(job.task_kwargs["key"])
                await manager.finish_job(job=job, status=status, delete_job=False)

        await asyncio.gather(*(loop() for _ in range(self._concurrency)))


if __name__ == "__main__":
    main(Procrastinate)
