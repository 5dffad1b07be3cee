"""The side of DBOS: a queue of no-op workflows, sent by its client and run by one process.

It runs in an interpreter of its own that has ``dbos``. Options: ``url``; ``polling_s``, how often the queue's thread
looks for work; ``concurrency``, how many workflows a worker runs at once (null: as many as there are); ``coroutine``,
whether the workflow is one.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from bench.dispatch.roles import Hear, Options, Send, main

_QUEUE = "bench"
_WORKFLOW = "noop"
_VERSION = "1"


class Dbos:
    """DBOS with what it needs: a database for its tables, a queue that is registered, a client that enqueues."""

    def __init__(self, options: Options) -> None:
        self._library: Any = importlib.import_module("dbos")
        self._options = options
        self._url = _with_driver(str(options["url"]))

    async def prepare(self) -> None:
        """Launch once: it makes the tables and registers the queue."""
        async with self.worker(lambda _: None):
            pass

    async def fill(self, count: int) -> None:
        """Enqueue one by one, as a client does."""
        async with self.sender() as send:
            for number in range(count):
                await send(f"fill-{number}")

    @asynccontextmanager
    async def sender(self) -> AsyncIterator[Send]:
        """Give the client's enqueueing."""
        client = await asyncio.to_thread(self._library.DBOSClient, system_database_url=self._url)

        async def send(key: str) -> object:
            options = {"queue_name": _QUEUE, "workflow_name": _WORKFLOW, "app_version": _VERSION}
            return await client.enqueue_async(options, key)

        try:
            yield send
        finally:
            await asyncio.to_thread(client.destroy)

    @asynccontextmanager
    async def worker(self, hear: Hear) -> AsyncIterator[None]:
        """Launch it here: it works on threads of its own."""
        await asyncio.to_thread(self._launch, hear)
        try:
            yield
        finally:
            await asyncio.to_thread(self._library.DBOS.destroy, workflow_completion_timeout_sec=10)

    async def busy(self) -> bool:
        """Look for a workflow that waits or runs."""
        return bool(
            await self._library.DBOS.list_workflows_async(
                status=["ENQUEUED", "PENDING"], limit=1, load_input=False, load_output=False
            )
        )

    async def settled(self) -> int:
        """Count the workflows that ended well."""
        rows = await self._library.DBOS.list_workflows_async(
            status="SUCCESS", name=_WORKFLOW, load_input=False, load_output=False
        )
        return len(rows)

    def _launch(self, hear: Hear) -> None:
        library = self._library
        library.DBOS(
            config={
                "name": "bench",
                "system_database_url": self._url,
                "application_version": _VERSION,
                "console_log_level": "ERROR",
            }
        )

        def noop(key: str) -> None:
            hear(key)

        async def noop_coroutine(key: str) -> None:
            hear(key)

        body = noop_coroutine if self._options.get("coroutine") else noop
        library.DBOS.workflow(name=_WORKFLOW)(body)
        library.DBOS.launch()
        library.DBOS.register_queue(
            _QUEUE,
            worker_concurrency=self._options["concurrency"],
            polling_interval_sec=float(self._options["polling_s"]),
        )


def _with_driver(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://", 1)


if __name__ == "__main__":
    main(Dbos)
