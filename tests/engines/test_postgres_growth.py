"""What a turn costs the server depends on what it adds, and not on how long the session is (laws C11 and K4)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from typing import Any

import pytest

from fastness.conformance.builders import chain, commit, lane, said, said_now, some, work
from fastness.model import (
    QueuedWorkClaim,
    RuntimeCommit,
    RuntimePersistence,
    SessionExecutionLease,
    SessionStoreCreateRequest,
    TurnInputClaim,
    Unchanged,
)
from fastness.persistence import PostgresSessionStoreFactory
from fastness.sql.program import Program, Statement, Write
from tests.engines.postgres_lab import Ground

FLUSH = Statement("select pg_stat_force_next_flush()::text")
READ = """
    select (select sum(seq_tup_read) from pg_stat_user_tables where schemaname = current_schema())
         + (select sum(idx_tup_read) from pg_stat_user_indexes where schemaname = current_schema())"""
SLACK = 8
"""Rows that a reading may differ by, for versions of rows that the server has not cleared away yet."""


def flush() -> Program[None]:
    """Have the server process write down now what it has read."""
    yield Write(FLUSH, last=True)


class Meter:
    """Counts the rows and index entries that the server reads for one call, on the engine's only connection."""

    def __init__(self, ground: Ground, factory: PostgresSessionStoreFactory) -> None:
        self.ground = ground
        self.factory = factory
        self.answer: Any = None

    async def total(self) -> int:
        """All that was read so far."""
        await self.factory.engine.write(flush)
        return int(self.ground.execute(READ)[0][0])

    async def __call__(self, call: Awaitable[object]) -> int:
        """What one call reads."""
        before = await self.total()
        self.answer = some(await call)
        return await self.total() - before


class Session:
    """A session that grows on one connection, from the first row of its tables on."""

    def __init__(self, ground: Ground, factory: PostgresSessionStoreFactory, store: RuntimePersistence) -> None:
        self.store = store
        self.meter = Meter(ground, factory)
        self.nodes = self.revision = 0
        self.lease: SessionExecutionLease

    def commit(self, count: int) -> RuntimeCommit:
        """A commit that adds so many nodes."""
        leaf = f"n{self.nodes - 1}" if self.nodes else None
        names = [f"n{self.nodes + at}" for at in range(count)]
        self.nodes += count
        self.revision += 1
        fields: dict[str, Any] = {} if names else {"graph": Unchanged(leaf)}
        nodes = chain(*names, after=leaf) if names else ()
        return commit(self.lease, self.revision - 1 or None, *nodes, **fields)

    async def claim(self, count: int) -> tuple[TurnInputClaim, list[QueuedWorkClaim]]:
        """Claim so much of input and work."""
        fence = self.lease.fence()
        inputs = some(await self.store.claim_next_turn_inputs("s", fence, max_inputs=count))
        claim = self.store.claim_ready_queued_work
        batches = [some(await claim("s", fence, boundary="idle", max_batches=1)) for _ in range(count)]
        return inputs, batches

    async def settle(self, count: int) -> None:
        """Submit so much input and work, and settle all of it."""
        for _ in range(count):
            await self.store.enqueue_pending_turn_input(said("x"))
            await self.store.enqueue_queued_work(work())
        inputs, batches = await self.claim(count)
        made = self.commit(0).completing_turn_input_claim(inputs).completing_queue_claims(tuple(batches))
        await self.store.commit_runtime_state(made.with_turn_commit(f"t{self.revision}"))

    async def measure(self) -> dict[str, int]:
        """What each call of a small turn reads; what it submits is settled at its end."""
        store, meter, fence = self.store, self.meter, self.lease.fence()
        costs = {
            "input": await meter(store.enqueue_pending_turn_input(said("x"))),
            "keyed input": await meter(store.enqueue_pending_turn_input(said("x", key=f"k{self.revision}"))),
            "work": await meter(store.enqueue_queued_work(work())),
            "renew": await meter(store.renew_session_execution_lease(fence, 600_000)),
            "head": await meter(store.load_head()),
        }
        costs["claim inputs"] = await meter(store.claim_next_turn_inputs("s", fence, max_inputs=2))
        inputs = meter.answer
        costs["claim work"] = await meter(store.claim_ready_queued_work("s", fence, boundary="idle", max_batches=1))
        made = self.commit(1).completing_turn_input_claim(inputs).completing_queue_claim(meter.answer)
        costs["commit"] = await meter(store.commit_runtime_state(made.with_turn_commit(f"t{self.revision}")))
        return costs


@pytest.fixture
async def session(own_ground: Ground) -> AsyncIterator[Session]:
    """An empty session in empty tables, on one connection."""
    if own_ground.server.major < 15:
        pytest.skip("before PostgreSQL 15 there is no telling when statistics are written down")
    async with own_ground.factory(pool_size=1) as factory:
        made = Session(own_ground, factory, await factory.create_store(SessionStoreCreateRequest("s")))
        made.lease = await lane(made.store, ttl_ms=600_000)
        yield made


def assert_no_dearer(small: dict[str, int], large: dict[str, int]) -> None:
    """No call reads more than it did when the session was small."""
    assert {name: large[name] for name in large if large[name] > small[name] + SLACK} == {}, (small, large)


async def test_a_turn_of_a_long_session_reads_no_more_than_one_of_a_short_session(session: Session) -> None:
    """At 5,000 nodes each call of a turn reads what it read at 100, though its plans were made for empty tables."""
    await session.store.commit_runtime_state(session.commit(100))
    await session.measure()
    small = await session.measure()
    assert min(small.values()) >= 1, "nothing was measured"
    for _ in range(49):
        await session.store.commit_runtime_state(session.commit(100))
    assert_no_dearer(small, await session.measure())


async def test_a_turn_behind_much_settled_work_reads_no_more_than_the_first(session: Session) -> None:
    """Behind 1,500 settled inputs and as much settled work, each call reads what it read without any history.

    The first turns after a burst clear away what is dead in the indexes, as far as nobody else still looks at it.
    """
    await session.store.commit_runtime_state(session.commit(1))
    await session.settle(2)
    await session.measure()
    small = await session.measure()
    for _ in range(3):
        await session.settle(500)
    for _ in range(5):
        large = await session.measure()
        if all(large[name] <= small[name] + SLACK for name in large):
            break
    assert_no_dearer(small, large)


async def test_input_of_another_turn_does_not_make_claims_read_all_receipts(session: Session) -> None:
    """Whether a waiting input's turn has a receipt is looked up, however many receipts there are in all sessions."""
    await session.store.commit_runtime_state(session.commit(1))
    await session.store.enqueue_pending_turn_input(said_now("wait", "a turn to come"))
    await session.measure()
    small = await session.measure()
    for _ in range(400):
        made = session.commit(0)
        await session.store.commit_runtime_state(made.with_turn_commit(f"t{session.revision}"))
    await session.measure()
    assert_no_dearer(small, await session.measure())
