"""Those who are killed: a worker or a sender, one process each. Run as ``python -m tests.proof.crew``.

What to do stands in the environment, as ``Orders``. Each process has a journal of its own and, on SQLite, a clock of
its own, which disagrees with that of the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Literal

import msgspec

import fastness
from fastness.engines.engine import system_clock
from fastness.errors import StoreError
from fastness.factory import EngineSessionStoreFactory, SqliteSessionStoreFactory, open_database
from fastness.model import Message, PendingTurnInput
from fastness.testing import (
    Journal,
    JournalSender,
    JournalTelemetry,
    Sent,
    end_with_parent,
    read_journals,
    text_hash,
)
from tests.proof.plan import MAX_ATTEMPTS, Planned, Size, clock_offset_ms, plan

ORDERS = "FASTNESS_PROOF_ORDERS"
"""The environment variable that tells a process its orders."""

TAKEOVERS = "takeovers"
"""The file beside the journals with a line for each lane that was taken over."""

COMPLAINTS = "complaints"
"""The file beside the journals with a line for each warning of a process: why it gets nowhere, if it does not."""

WAKES_IN_S = 0.1
SLOW_S = 0.05
LONG_S = 1.0
INTERRUPTS = 8


class Orders(msgspec.Struct, frozen=True):
    """What one process is to do. With ``keyless``, a sender is broken: it does not know that keys are there for it."""

    role: Literal["worker", "sender"]
    number: int
    url: str
    journals: str
    size: Size
    keyless: bool = False


class Telling(JournalTelemetry):
    """A journal, and a line for each lane that was taken over."""

    def taken_over(self, reason: str) -> None:
        """Write down why."""
        with (self.journal.path.parent / TAKEOVERS).open("a") as file:
            file.write(reason + "\n")


class Complaining(logging.Handler):
    """Writes down what one process warns of."""

    def __init__(self, journals: Path, name: str) -> None:
        super().__init__(logging.WARNING)
        self._path = journals / COMPLAINTS
        self.name = name

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        with self._path.open("a") as file:
            file.write(f"{self.name}: {record.getMessage().splitlines()[0]}\n")


def last_complaints(journals: Path) -> list[str]:
    """Give the last thing that each process has complained of."""
    path = journals / COMPLAINTS
    lines = path.read_text().splitlines() if path.exists() else []
    return list({line.partition(":")[0]: line for line in lines}.values())


def clock_of(orders: Orders) -> Callable[[], int]:
    """Give this process its clock. Those of senders are off, too."""
    offset_ms = clock_offset_ms(orders.size, orders.role, orders.number)
    return lambda: system_clock() + offset_ms


def factory_of(orders: Orders) -> EngineSessionStoreFactory:
    """Open the database; where it has no clock itself, with the clock of this process."""
    scheme, _, path = orders.url.partition(":///")
    if scheme == "sqlite":
        return SqliteSessionStoreFactory(path, clock=clock_of(orders))
    return open_database(orders.url)


# --- the agent ---


class Agent:
    """Answers what it is told, in the way it is told to."""

    def __init__(self, size: Size) -> None:
        self._size = size

    async def run(self, turn: fastness.Turn) -> None:
        """Run one turn."""
        turn.charge(fastness.TokenUsage(1, 0))
        for batch in turn.work:
            turn.append(f"woke {batch.source_key}")
        async for fresh in turn.checkpoints():
            heard = deque(fresh)
            while heard:
                heard.extend(await self._answer(turn, heard.popleft()))
        said = [item.text for row in turn.inputs for item in row.input.items if isinstance(item, fastness.TextItem)]
        if turn.attempts == 1 and any(text.startswith("blocks") for text in said):
            # Behind the last await: now the commit itself is what comes too late.
            time.sleep(self._size.ttl_s * 1.4)

    async def _answer(self, turn: fastness.Turn, message: Message) -> tuple[Message, ...]:
        """Answer one message; give what was heard meanwhile."""
        kind, _, key = message.text.partition(" ")
        more: tuple[Message, ...] = ()
        if kind == "poison" or (kind == "fails" and turn.attempts <= 2):
            raise RuntimeError("the model is out of order")
        if kind == "slow":
            await asyncio.sleep(SLOW_S)
        elif kind == "long":
            await asyncio.sleep(LONG_S)
        elif kind == "wake":
            turn.enqueue("wake", key=f"wake:{key}", delay=WAKES_IN_S)
        elif kind == "tools":
            more = await self._use_tools(turn, key)
        turn.append(f"answer to {key}")
        return more

    async def _use_tools(self, turn: fastness.Turn, key: str) -> tuple[Message, ...]:
        call = {"id": f"call-{key}", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
        turn.append({"role": "assistant", "content": None, "tool_calls": [call]})
        await asyncio.sleep(0.005)
        turn.append({"role": "tool", "tool_call_id": f"call-{key}", "content": "42"})
        return await turn.checkpoint("after_work")


async def serve(orders: Orders) -> None:
    """Run turns until SIGTERM."""
    journal = Journal.create_in(orders.journals, clock=clock_of(orders))
    told = Telling(journal)
    ttl = timedelta(seconds=orders.size.ttl_s)
    timings = fastness.LeaseTimings(ttl, ttl / 4)
    async with fastness.Database(factory_of(orders), timings=timings, telemetry=told) as db:
        worker = fastness.Worker(
            db,
            told.handler(Agent(orders.size).run),
            name=f"worker-{orders.number}",
            concurrency=8,
            max_inputs=4,
            retry=fastness.RetryPolicy(MAX_ATTEMPTS, timedelta(milliseconds=10), timedelta(milliseconds=50)),
            drain=timedelta(seconds=10),
        )
        await worker.run(handle_signals=True)


# --- the sender ---


async def send_all(orders: Orders) -> None:
    """Send what is this sender's, and was not acknowledged to one that stood here before."""
    events, _ = read_journals(orders.journals)
    known = {event.key for event in events if isinstance(event, Sent) and event.acknowledged}
    mine = [each for each in plan(orders.size) if each.sender == orders.number and each.key not in known]
    journal = Journal.create_in(orders.journals, clock=clock_of(orders))
    async with fastness.Database(factory_of(orders)) as db:
        for each in mine:
            if orders.keyless:
                await send_without_key(db, journal, each)
            else:
                await send_one(db, JournalSender(db, journal), each)
            await asyncio.sleep(orders.size.pause_s)


async def send_one(db: fastness.Database, sender: JournalSender, each: Planned) -> None:
    """Send one input as its kind says."""
    joins, later = each.kind == "joins", each.kind == "later"
    await sender.send(
        each.session_id,
        each.text,
        key=each.key,
        to="running_turn" if joins else "next_turn",
        delay=0.2 if later else 0,
    )
    if each.kind == "long":
        await interrupt(db, each.session_id)


async def interrupt(db: fastness.Database, session_id: str) -> None:
    """Interrupt the turn that runs, as soon as one does; give up after a while."""
    for _ in range(INTERRUPTS):
        await asyncio.sleep(LONG_S / 10)
        # It may be gone by now, or the database may be.
        with contextlib.suppress(StoreError):
            if await db.interrupt(session_id, reason="the user has changed their mind") is not None:
                return


async def send_without_key(db: fastness.Database, journal: Journal, each: Planned) -> PendingTurnInput:
    """Send as one does who has never heard of a lost answer: the first one is lost, so it is said again."""
    sent = Sent(session_id=each.session_id, key=each.key, text_hash=text_hash(each.text))
    journal.write(sent)
    await db.send(each.session_id, each.text)
    row = await db.send(each.session_id, each.text)
    journal.write(msgspec.structs.replace(sent, input_id=row.input_id, acknowledged=True))
    return row


def main() -> None:
    """Do what is ordered."""
    end_with_parent()
    orders = msgspec.json.decode(os.environ[ORDERS].encode(), type=Orders)
    Path(orders.journals).mkdir(exist_ok=True)
    log = logging.getLogger("fastness")
    log.addHandler(Complaining(Path(orders.journals), f"{orders.role}-{orders.number}"))
    log.propagate = False
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)
    asyncio.run(serve(orders) if orders.role == "worker" else send_all(orders))


if __name__ == "__main__":
    main()
