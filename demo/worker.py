"""One process of the demo: takes job numbers on stdin, replays the sessions, and says on stdout what it is doing.

Between the claim of a turn and its commit it announces the turn and waits a little, where a live agent would wait for its
model. That is when the demo likes to kill it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from pathlib import Path

from jobs import Job, jobs_of

from fastness.persistence import RuntimePersistence, SessionStoreCreateRequest, StoreError, open_database
from fastness.replay import PlannedTurn, Replayer
from fastness.replay.runner import Settings

MODEL_TAKES_S = (0.01, 0.04)


def tell(*words: object) -> None:
    """Say one thing to the demo, whole and at once."""
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


async def replay(store: RuntimePersistence, number: int, job: Job) -> None:
    """Replay the branches of one session, one after the other."""
    taken_over = 0
    for branch in job.branches:

        async def call_model(turn: PlannedTurn) -> None:
            tell("claimed", number, taken_over + replayer.take_over_count)
            await asyncio.sleep(random.uniform(*MODEL_TAKES_S))  # noqa: S311 - no secret

        replayer = Replayer(store, branch.replay, Settings(owner_id=f"worker-{os.getpid()}", while_claimed=call_model))
        await replayer.run()
        taken_over += replayer.take_over_count
    tell("done", number, taken_over)


async def work(url: str, path: Path) -> None:
    """Replay what is asked for until stdin ends."""
    jobs = jobs_of(path)
    numbers = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(numbers), sys.stdin)
    running: set[asyncio.Task[None]] = set()
    async with open_database(url) as factory:

        async def run(number: int) -> None:
            try:
                store = await factory.create_store(SessionStoreCreateRequest(jobs[number].session_id))
                await replay(store, number, jobs[number])
            except StoreError as error:
                tell("failed", number, f"{type(error).__name__}: {error}")

        while line := await numbers.readline():
            task = asyncio.create_task(run(int(line)))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], Path(sys.argv[2])))
