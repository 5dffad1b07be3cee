"""Waking whoever waits for work: in the same engine, and in another one on the same database."""

from __future__ import annotations

import asyncio

import pytest

from fastness.conformance import Lab, Power
from fastness.conformance.builders import chain, lane, release, said, turn, work
from fastness.engines.engine import Engine
from fastness.engines.postgres import PostgresEngine
from tests.engines.postgres_lab import until
from tests.servers.postgres import shared_server

SOON_S = 20.0
"""Long enough for any machine; a wake-up that came is never waited for."""


async def quiet(engine: Engine) -> int:
    """The number that an engine shows once it listens, and has heard all that was told before."""
    seen = await engine.wait_for_work(0, 0)
    if isinstance(engine, PostgresEngine):
        listens = f'listen "{engine._notices._channel}"'
        await until(lambda: is_running(listens), "nobody listens")
    while (number := await engine.wait_for_work(seen, 0.3)) != seen:
        seen = number
    return seen


def is_running(statement: str) -> bool:
    """Whether the last thing that some connection was asked for is this, and is done."""
    with shared_server().admin() as connection:
        found = "select from pg_stat_activity where lower(query) = %s and state = 'idle'"
        return connection.execute(found, [statement]).fetchone() is not None


@pytest.fixture
async def waiting(lab: Lab) -> tuple[Lab, int]:
    """A lab whose session is made, and the number that its engine shows once all is quiet."""
    await lab.store()
    return lab, await quiet(lab.factory.engine)


async def test_nothing_wakes_nobody(waiting: tuple[Lab, int]) -> None:
    """Where nothing is committed, the same number comes back when the time is up."""
    lab, seen = waiting
    assert await lab.factory.engine.wait_for_work(seen, 0.2) == seen
    assert await lab.factory.engine.wait_for_work(seen, 0) == seen


@pytest.mark.parametrize("what", ["input", "work", "release", "turn"])
async def test_what_leaves_work_to_do_wakes_a_waiter(waiting: tuple[Lab, int], what: str) -> None:
    """An enqueue wakes who waits, and so does a lane that comes free."""
    lab, seen = waiting
    store = await lab.store()
    engine = lab.factory.engine
    lease = await lane(store) if what == "release" else None
    seen = await engine.wait_for_work(seen, 0)
    waiter = asyncio.create_task(engine.wait_for_work(seen, SOON_S))
    await asyncio.sleep(0)
    if what == "input":
        await store.enqueue_pending_turn_input(said("hello"))
    elif what == "work":
        await store.enqueue_queued_work(work())
    elif lease is not None:
        await release(store, lease)
    else:
        await turn(store, *chain("a"))
    assert await waiter != seen


async def test_a_change_between_two_waits_is_not_missed(waiting: tuple[Lab, int]) -> None:
    """Who was looking elsewhere when it came learns of it with the next call, without waiting."""
    lab, seen = waiting
    await (await lab.store()).enqueue_pending_turn_input(said("hello"))
    assert await lab.factory.engine.wait_for_work(seen, 0) != seen


async def test_another_engine_on_the_same_database_is_woken(lab: Lab) -> None:
    """A worker hears of what another process committed."""
    lab.needs(Power.REOPENING)
    store = await lab.store()
    async with lab.subject.open(lab) as other:
        engine = other.engine
        seen = await quiet(engine)
        waiter = asyncio.create_task(engine.wait_for_work(seen, SOON_S))
        await asyncio.sleep(0.05)
        await store.enqueue_pending_turn_input(said("hello"))
        assert await waiter != seen
