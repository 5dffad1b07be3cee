"""No transaction of the database is open while a turn's own code runs, however long that takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import apsw
import psycopg
import pytest

from fastness.runtime.database import Database, connect
from fastness.runtime.turn import Turn
from fastness.runtime.worker import Worker
from tests.runtime.saying import PATIENCE_S, soon, texts, until, view
from tests.servers.postgres import shared_server

NAME = "open_transactions"


@pytest.fixture
async def served() -> AsyncIterator[Database]:
    """A database on a server, whose connections have a name."""
    url = f"{shared_server().url()}?application_name={NAME}&fastness_schema={NAME}"
    async with connect(url) as db:
        yield db
    with shared_server().admin() as connection:
        connection.execute(f"drop schema if exists {NAME} cascade")


async def all_of_it(turn: Turn) -> None:
    """Everything that a turn may ask the database for before its end."""
    await turn.checkpoint()
    await turn.take_work()
    await turn.node("unknown")
    turn.append("answer")


def write(path: Path) -> None:
    """Take the write lock of a file as any other program would, commit, and write the log back.

    A worker's own short transactions are waited for; the turn waits for us, so one of its own would never end.
    """
    with closing(apsw.Connection(str(path))) as connection:
        connection.set_busy_timeout(int(PATIENCE_S * 1000))
        connection.execute(
            "begin immediate; create table if not exists others (n); insert into others values (1); commit"
        )
        ((was_busy, _, _),) = connection.execute("pragma wal_checkpoint(truncate)")
        assert not was_busy


async def test_others_can_write_a_file_while_a_turn_runs(tmp_path: Path) -> None:
    """They need not wait for it, and none of its locks keeps the log from being written back."""
    path = tmp_path / "a.db"
    async with connect(f"sqlite:////{path}") as db:
        await db.send("s", "hello")
        async with db.turn("s") as turn:
            await all_of_it(turn)
            write(path)
        assert texts((await view(db)).messages) == ["hello", "answer"]


async def test_others_can_write_a_file_while_a_handler_runs(tmp_path: Path) -> None:
    """In a worker as in a block."""
    path = tmp_path / "a.db"
    entered, leave, left = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def handler(turn: Turn) -> None:
        await all_of_it(turn)
        entered.set()
        await leave.wait()
        left.set()

    async with connect(f"sqlite:////{path}") as db:
        await db.send("s", "hello")
        async with Worker(db, handler):
            await soon(entered)
            write(path)
            leave.set()
            await soon(left)
        assert texts((await view(db)).messages) == ["hello", "answer"]


def states() -> list[str]:
    """What our connections do, as their server sees it."""
    with psycopg.connect(shared_server().url()) as connection:
        rows = connection.execute("select state from pg_stat_activity where application_name = %s", (NAME,))
        return [state for (state,) in rows]


async def all_idle() -> None:
    """See that each of our connections comes to rest outside of a transaction, which one that is held open never does.

    Between two statements of a short transaction of a worker, a connection may be seen inside.
    """
    await until(lambda: set(states()) == {"idle"})


async def test_no_connection_is_in_a_transaction_while_a_turn_runs(served: Database) -> None:
    """Whatever it has asked for so far."""
    await served.send("s", "hello")
    async with served.turn("s") as turn:
        await all_idle()
        await all_of_it(turn)
        await all_idle()
    assert texts((await view(served)).messages) == ["hello", "answer"]


async def test_no_connection_is_in_a_transaction_while_a_handler_runs(served: Database) -> None:
    """In a worker as in a block."""
    entered, leave = asyncio.Event(), asyncio.Event()

    async def handler(turn: Turn) -> None:
        await all_of_it(turn)
        entered.set()
        await leave.wait()

    await served.send("s", "hello")
    async with Worker(served, handler):
        await soon(entered)
        await all_idle()
        leave.set()
    assert texts((await view(served)).messages) == ["hello", "answer"]
