"""An agent that wakes itself: it looks at a deployment now and then until that is live, also when it is restarted.

    python examples/background_agent.py [FILE.db]

It shows a worker, work that a turn leaves to a later one in its own commit, failed turns that are tried again after a
pause, and the quarantine: what fails too often is set aside with its error, and the session goes on. Kill it at any
moment and start it again: it goes on where it was. The service that it asks is a script.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta

import msgspec

import fastness
from fastness import Database, RetryPolicy, Task, Turn, Worker

PAUSE_S = 0.2
RETRY = RetryPolicy(max_attempts=3, first_pause=timedelta(milliseconds=50), longest_pause=timedelta(seconds=1))


class Look(msgspec.Struct):
    """What a look at a deployment has to know: how many there were, this one included."""

    number: int = 1


async def percent_done(deployment: str, look: int, attempt: int) -> int:
    """Ask the service, as the script has it: of the shop it tells, once not at once; of the ghost it knows nothing."""
    if deployment == "ghost":
        raise LookupError("there is no deployment of that name")
    if (look, attempt) == (2, 1):
        raise TimeoutError("the service did not answer")
    return {1: 30, 2: 80}.get(look, 100)


async def agent(turn: Turn) -> str | None:
    """Run one turn: answer what a user said, or do the work that an earlier turn has left."""
    for batch in turn.work:
        for item in batch.items:
            if isinstance(item.payload, Task):
                return await look(turn, msgspec.json.decode(item.payload.data, type=Look).number)
    if not turn.messages[-1].text.startswith("Watch"):
        return "I am still here."
    turn.enqueue("look", Look())
    return "I will tell you when it is live."


async def look(turn: Turn, number: int) -> str | None:
    """Look once, and say that it is done or leave the next look to a later turn."""
    print(f"{turn.session_id}: look {number}, attempt {turn.attempts}", flush=True)
    percent = await percent_done(turn.session_id, number, turn.attempts)
    if percent == 100:
        return "It is live."
    turn.enqueue("look", Look(number + 1), delay=PAUSE_S)
    return None


async def ask(db: Database, session_id: str, question: str, answer: str) -> None:
    """Say something, once in the life of the session, and wait until the agent has said the answer."""
    await db.send(session_id, question, key=question)
    async for _ in db.watch(session_id, after_revision=0):
        view = await db.read(session_id)
        if view is not None and answer in [message.text for message in view.messages]:
            return


async def main() -> None:
    """Have one deployment watched that comes to its end, and one that nobody knows."""
    path = sys.argv[1] if len(sys.argv) > 1 else "background.db"
    async with fastness.connect(f"sqlite:///{path}") as db:
        async with Worker(db, agent, retry=RETRY):
            await ask(db, "shop", "Watch the shop.", "It is live.")
            await ask(db, "ghost", "Watch the ghost.", "I will tell you when it is live.")
            # What was sent later waits for the look, until that is set aside.
            await ask(db, "ghost", "Are you there?", "I am still here.")
        async for row in db.quarantine():
            print(f"{row.session_id}: set aside after {row.attempts} attempts: {row.error}")
            await db.discard(row)
        for session_id in ("shop", "ghost"):
            view = await db.read(session_id)
            for message in view.messages if view else ():
                print(f"{session_id}: {message.role}: {message.text}")


if __name__ == "__main__":
    asyncio.run(main())
