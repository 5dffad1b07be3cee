"""Those who work in the demo, one process each: ``crew.py worker`` answers, ``crew.py sender`` says what users said.

Each keeps a journal of what it does. Any of them may be killed or stopped at any moment, and none of them has a line of
code for that case: a sender that is started again sends what was not acknowledged to the one before, under the same
keys, and the rest is the library's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
from talks import Talk, talks_of

import fastness
from fastness.testing import Journal, JournalSender, JournalTelemetry, Sent, end_with_parent, read_journals

ORDERS = "FASTNESS_DEMO_ORDERS"
"""The environment variable with the orders. Arguments can be read by everybody, and a url may hold a password."""

TIMINGS = fastness.LeaseTimings(timedelta(seconds=1), timedelta(milliseconds=300))
RETRY = fastness.RetryPolicy(25, timedelta(milliseconds=20), timedelta(milliseconds=200))
MODEL_TAKES_S = (0.01, 0.05)


class Orders(msgspec.Struct, frozen=True):
    """Where everything is, and which of so many senders this is."""

    url: str
    input: str
    journals: str
    number: int
    senders: int


def connect(orders: Orders, timings: fastness.LeaseTimings | None = None) -> tuple[fastness.Database, JournalTelemetry]:
    """Open the database, with a journal."""
    told = JournalTelemetry(Journal.create_in(orders.journals))
    return fastness.connect(orders.url, timings=timings, telemetry=told), told


async def answer_all(orders: Orders, talks: list[Talk]) -> None:
    """Run turns until SIGTERM: the model says what it said when the conversation was recorded."""
    answers = {exchange.key: exchange.answers for talk in talks for exchange in talk.exchanges}

    async def call_model(key: str | None) -> tuple[dict[str, Any], ...]:
        """Take as long as a very fast model."""
        await asyncio.sleep(random.uniform(*MODEL_TAKES_S))
        return answers[key or ""]

    async def handler(turn: fastness.Turn) -> None:
        """Answer what was said."""
        for row in turn.inputs:
            for message in await call_model(row.source_key):
                turn.append(message)

    db, told = connect(orders, TIMINGS)
    async with db:
        worker = fastness.Worker(db, told.handler(handler), concurrency=3, max_inputs=1, retry=RETRY)
        await worker.run(handle_signals=True)


async def send_all(orders: Orders, talks: list[Talk]) -> None:
    """Say what users said, in the order of each talk, and the talks side by side."""
    events, _ = read_journals(orders.journals)
    known = {event.key for event in events if isinstance(event, Sent) and event.acknowledged}
    mine = talks[orders.number :: orders.senders]
    db, told = connect(orders)
    sender = JournalSender(db, told.journal)
    async with db:
        for talk in mine:
            await open_talk(db, told, talk)
        for number in range(max((len(talk.exchanges) for talk in mine), default=0)):
            for talk in mine:
                for exchange in talk.exchanges[number : number + 1]:
                    if exchange.key not in known:
                        await sender.send(talk.session_id, exchange.said, key=exchange.key)


async def open_talk(db: fastness.Database, told: JournalTelemetry, talk: Talk) -> None:
    """Write what stands before the first word of a user, by a turn of its own, unless that was done."""
    if talk.opening and await db.read(talk.session_id) is None:
        async with db.turn(talk.session_id, claims=False) as turn:
            told.begun(turn)
            for message in talk.opening if turn.revision == 0 else ():
                turn.append(message)


def main() -> None:
    """Do what is ordered."""
    end_with_parent()
    # The journals say it all, and the console is the demo's.
    logging.disable(logging.CRITICAL)
    orders = msgspec.json.decode(os.environ[ORDERS].encode(), type=Orders)
    role = {"worker": answer_all, "sender": send_all}[sys.argv[1]]
    asyncio.run(role(orders, talks_of(Path(orders.input))))


if __name__ == "__main__":
    main()
