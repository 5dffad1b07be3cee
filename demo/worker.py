"""One process of the demo: takes job numbers on stdin, replays the sessions, and says on stdout what it is doing.

Between the claim of a turn and its commit it announces the turn and waits a little, where a live agent would wait for
its model; then it announces the commit and commits at once. That is when the demo likes to kill it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from pathlib import Path

from jobs import DATABASE, Job, jobs_of

from fastness.persistence import RuntimePersistence, SessionStoreCreateRequest, StoreError, open_database
from fastness.replay import PlannedTurn, Replayer
from fastness.replay.runner import Settings

MODEL_TAKES_S = (0.01, 0.04)


def tell(*words: object) -> None:
    """Say one thing to the demo, whole and at once."""
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


class Run:
    """The replay of one session, branch by branch."""

    def __init__(self, number: int, job: Job) -> None:
        self._number = number
        self._job = job
        self._taken_over = 0
        self._replayer: Replayer | None = None

    async def replay(self, store: RuntimePersistence) -> None:
        """Replay every branch that is not there yet."""
        settings = Settings(owner_id=f"worker-{os.getpid()}", while_claimed=self._call_model)
        for branch in self._job.branches:
            self._replayer = Replayer(store, branch.replay, settings)
            await self._replayer.run()
            self._taken_over += self._replayer.take_over_count
        tell("done", self._number, self._taken_over, "")

    async def _call_model(self, turn: PlannedTurn) -> None:
        current = self._replayer.take_over_count if self._replayer is not None else 0
        news = (self._number, self._taken_over + current, turn.leaf_node_id)
        tell("claimed", *news)
        await asyncio.sleep(random.uniform(*MODEL_TAKES_S))
        # The replayer commits as soon as this returns.
        tell("committing", *news)


async def work(url: str, path: Path) -> None:
    """Replay what is asked for until stdin ends."""
    jobs = jobs_of(path)
    numbers = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(numbers), sys.stdin)
    running: set[asyncio.Task[None]] = set()
    async with open_database(url) as factory:

        async def run(number: int) -> None:
            """Replay one session."""
            try:
                store = await factory.create_store(SessionStoreCreateRequest(jobs[number].session_id))
                await Run(number, jobs[number]).replay(store)
            except StoreError as error:
                tell("failed", number, 0, f"{type(error).__name__}: {error}")

        while line := await numbers.readline():
            task = asyncio.create_task(run(int(line)))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)


if __name__ == "__main__":
    asyncio.run(work(os.environ[DATABASE], Path(sys.argv[1])))
