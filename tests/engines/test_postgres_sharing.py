"""PostgreSQL shared with others: an application's pool, a pooler, other processes, another version of the server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from fastness.conformance.builders import (
    chain,
    commit,
    lane,
    node_ids,
    owner,
    said,
    work,
)
from fastness.model import Busy, SessionStoreCreateRequest
from fastness.persistence import PostgresSessionStoreFactory
from tests.engines.postgres_lab import PATIENCE_S, Ground, ground_of, named, until
from tests.servers.pgbouncer import PgBouncer, pgbouncer_missing
from tests.servers.postgres import second_server

S = SessionStoreCreateRequest("s")
ROOT = Path(__file__).parents[2]

SETTINGS = (
    "search_path",
    "enable_seqscan",
    "enable_bitmapscan",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "synchronous_commit",
    "client_encoding",
    "default_transaction_isolation",
    "default_transaction_read_only",
)


async def cycle(factory: PostgresSessionStoreFactory, name: str, turns: int = 3) -> None:
    """Run whole turns of a session: submit, claim, settle, read."""
    store = await factory.create_store(SessionStoreCreateRequest(name))
    for number in range(turns):
        await store.enqueue_pending_turn_input(said("x", session_id=name))
        await store.enqueue_queued_work(work(session_id=name))
        lease = await lane(store, owner(name), session_id=name)
        inputs = await store.claim_next_turn_inputs(name, lease.fence(), max_inputs=5)
        batches = await store.claim_ready_queued_work(name, lease.fence(), boundary="idle", max_batches=5)
        assert inputs is not None
        assert batches is not None
        await store.renew_session_execution_lease(lease.fence(), 30_000)
        made = commit(
            lease,
            number or None,
            *chain(f"n{number}", after=f"n{number - 1}" if number else None),
            release_session_execution_lease=lease.completion(),
        )
        made = made.completing_turn_input_claim(inputs).completing_queue_claim(batches).with_turn_commit(f"t{number}")
        assert (await store.commit_runtime_state(made)).head_revision == number + 1
        assert (await store.commit_runtime_state(made)).replayed is True
    assert await node_ids(store) == [f"n{number}" for number in range(turns)]


# A pool of the application


@pytest.mark.parametrize(
    "kwargs",
    [
        {"autocommit": True},
        {"autocommit": False},
        {"row_factory": dict_row},
        {"autocommit": True, "prepare_threshold": 0},
        {"options": "-c default_transaction_isolation=serializable"},
    ],
    ids=["autocommit", "transactions", "dict_row", "prepares", "serializable"],
)
async def test_a_pool_that_is_handed_in_is_given_back_as_it_was(ground: Ground, kwargs: dict[str, Any]) -> None:
    """Turns run on the application's connections; afterwards nothing is set on them, and the pool stays open."""
    async with AsyncConnectionPool[psycopg.AsyncConnection[Any]](
        ground.url, kwargs=kwargs, min_size=2, max_size=2, open=False
    ) as pool:

        async def state() -> list[Any]:
            found = []
            for _ in range(2):
                async with pool.connection() as connection:
                    shown = [await (await connection.execute(f"show {name}")).fetchone() for name in SETTINGS]
                    found += [shown, connection.autocommit, connection.info.pipeline_status]
            return found

        async with pool.connection() as connection:
            await connection.execute(f'create schema "{ground.schema}"')
        before = await state()
        factory = ground.factory("", pool=pool)
        await asyncio.gather(*(cycle(factory, name) for name in ("a", "b", "c")))
        assert (await factory.check()).findings == ()
        assert ground.sessions("idle in transaction") == []
        assert await state() == before
        for _ in range(8):
            async with pool.connection() as connection:
                row = await (await connection.execute("select %s::int as x", [7])).fetchone()
                assert row in ((7,), {"x": 7})
        await factory.close()
        assert not pool.closed
        assert await state() == before


async def test_an_application_may_discard_what_we_prepared(ground: Ground) -> None:
    """When the application resets its connections between uses, our statements are prepared anew."""

    async def reset(connection: psycopg.AsyncConnection[Any]) -> None:
        await connection.set_autocommit(True)
        await connection.execute("discard all")

    async with AsyncConnectionPool[psycopg.AsyncConnection[Any]](
        ground.url, kwargs={"autocommit": True}, reset=reset, min_size=1, max_size=2, open=False
    ) as pool:
        await asyncio.gather(*(cycle(ground.factory("", pool=pool), name) for name in ("a", "b", "c")))


async def test_a_pool_configured_by_keywords_leads_wake_ups_to_the_same_place(ground: Ground) -> None:
    """Host, user and database given as keywords of the pool are where notices are listened for, too."""
    with ground.admin() as connection:
        info = connection.info
        kwargs = {"host": info.host, "port": info.port, "user": info.user, "dbname": info.dbname}
    async with AsyncConnectionPool[psycopg.AsyncConnection[Any]](
        "", kwargs={**kwargs, "application_name": ground.schema}, open=False
    ) as pool:
        factory = ground.factory("", pool=pool)
        await factory.create_store(S)
        async with ground.factory(ground.url) as other:
            store = await other.create_store(S)
            seen = await factory.engine.wait_for_work(0, 0.01)
            await until(lambda: len(ground.execute("select 1 from pg_stat_activity where query like 'listen%%'")) >= 1)
            seen = await factory.engine.wait_for_work(0, 5)
            await store.enqueue_queued_work(work())
            assert await factory.engine.wait_for_work(seen, PATIENCE_S) != seen
        await factory.close()


async def test_a_pool_that_keeps_closed_connections_survives_cancellations(ground: Ground) -> None:
    """With a pool to which closing gives back, a cancelled call is only cancelled, and the pool stays whole."""
    async with AsyncConnectionPool[psycopg.AsyncConnection[Any]](
        ground.url, close_returns=True, min_size=1, max_size=2, open=False
    ) as pool:
        factory = ground.factory("", pool=pool)
        store = await factory.create_store(S)
        for at in range(20):
            task = asyncio.create_task(store.enqueue_pending_turn_input(said("x")))
            await asyncio.sleep(0.0004 * at)
            task.cancel()
            (answer,) = await asyncio.gather(task, return_exceptions=True)
            assert isinstance(answer, asyncio.CancelledError) or not isinstance(answer, BaseException)
        assert await asyncio.gather(*(store.load_head() for _ in range(10))) == [None] * 10
        await factory.close()


# A pooler


@pytest.fixture
def bouncer(own_ground: Ground) -> Iterator[PgBouncer]:
    """PgBouncer in transaction mode with two connections to the server."""
    if (reason := pgbouncer_missing()) is not None:
        pytest.skip(reason)
    with PgBouncer(own_ground.server, pool_size=2) as made:
        yield made


@pytest.fixture
async def pooled(own_ground: Ground, bouncer: PgBouncer) -> AsyncIterator[PostgresSessionStoreFactory]:
    """An engine behind the pooler, with more connections than the pooler has."""
    url = named(bouncer.url(own_ground.database), own_ground.schema)
    async with own_ground.factory(url, pool_size=6, listen_url=own_ground.url) as made:
        yield made


async def test_many_turns_run_over_few_connections_of_a_pooler(
    own_ground: Ground, pooled: PostgresSessionStoreFactory
) -> None:
    """Ten sessions run turns over two connections in transaction mode; nothing stays prepared, set or locked there."""
    await asyncio.gather(*(cycle(pooled, f"s{at}") for at in range(10)))
    assert (await pooled.check()).findings == ()
    async with pooled.engine.snapshot():
        pass
    assert len(own_ground.sessions("idle in transaction")) == 0


async def test_a_pooler_that_loses_the_server_in_commit_gives_an_unknown_outcome_or_none(
    own_ground: Ground, pooled: PostgresSessionStoreFactory
) -> None:
    """Server processes that end behind a pooler, at any moment, never double a submission that is sent once."""
    store = await pooled.create_store(S)
    answers: list[Any] = []

    async def submit() -> None:
        nonlocal answers
        for _ in range(40):
            answers += await asyncio.gather(store.enqueue_pending_turn_input(said("x")), return_exceptions=True)

    async def disturb() -> None:
        with own_ground.server.admin() as connection:
            for _ in range(12):
                await asyncio.sleep(0.02)
                connection.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity where application_name = %s",
                    [own_ground.schema],
                )

    await asyncio.gather(submit(), submit(), disturb())
    failed = [answer for answer in answers if isinstance(answer, BaseException)]
    assert {type(answer).__name__ for answer in failed} <= {"CommitOutcomeUnknownError"}
    rows = await store.list_pending_turn_inputs("s")
    assert 80 - len(failed) <= len(rows) <= 80


async def test_wake_ups_go_past_a_pooler_by_the_listen_url(
    own_ground: Ground, pooled: PostgresSessionStoreFactory
) -> None:
    """Notices are told through the pooler and heard on the direct connection."""
    store = await pooled.create_store(S)
    async with own_ground.factory() as other:
        await other.create_store(S)
        await listening(own_ground, other)
        seen = await other.engine.wait_for_work(0, 1)
        await store.enqueue_queued_work(work())
        assert await other.engine.wait_for_work(seen, PATIENCE_S) != seen


async def test_without_a_listen_url_waiting_behind_a_pooler_ends_with_its_time(
    own_ground: Ground, bouncer: PgBouncer
) -> None:
    """Nobody listens through a pooler: waiting is polling, and gives the number that was shown."""
    url = named(bouncer.url(own_ground.database), own_ground.schema)
    async with own_ground.factory(url) as factory:
        await factory.create_store(S)
        assert await factory.engine.wait_for_work(0, 0.05) == await factory.engine.wait_for_work(0, 0.05)
        assert own_ground.execute("select 1 from pg_stat_activity where query like 'listen%%'") == []


# Wake-ups


async def listening(ground: Ground, factory: PostgresSessionStoreFactory) -> None:
    """Have an engine listen, and wait until it does."""
    await factory.engine.wait_for_work(0, 0.001)
    text = "select 1 from pg_stat_activity where query ilike 'listen%%' and state = 'idle'"
    await until(lambda: len(ground.execute(text)) >= 1, "nobody listens")
    await asyncio.sleep(0.05)


async def test_a_listener_that_was_cut_off_comes_back_and_looks_again(ground: Ground) -> None:
    """After its server process was ended, the listener returns by itself, wakes once, and hears what comes next."""
    async with ground.factory() as here, ground.factory() as there:
        store = await there.create_store(S)
        await here.create_store(S)
        await listening(ground, here)
        seen = await here.engine.wait_for_work(0, 1)
        ground.terminate()
        again = await here.engine.wait_for_work(seen, PATIENCE_S)
        assert again != seen, "whoever was cut off may have missed something"
        await listening(ground, here)
        seen = await here.engine.wait_for_work(0, 0.001)
        await store.enqueue_pending_turn_input(said("x"))
        assert await here.engine.wait_for_work(seen, PATIENCE_S) != seen


async def test_a_burst_of_submissions_makes_few_notices(ground: Ground) -> None:
    """Three hundred submissions at once are told in far fewer notices, and the last of them is not missed."""
    async with ground.factory() as factory:
        store = await factory.create_store(S)
        with ground.admin() as listener:
            listener.execute(f'listen "fastness_{ground.schema}"')
            await asyncio.gather(*(store.enqueue_queued_work(work()) for _ in range(300)))
            told = await asyncio.to_thread(lambda: list(listener.notifies(timeout=1)))
    assert 1 <= len(told) <= 100


OTHER = """
import asyncio, sys
from fastness.model import SessionStoreCreateRequest
from fastness.persistence import PostgresSessionStoreFactory
from fastness.conformance.builders import work, lane, commit
async def main(url, schema):
    async with PostgresSessionStoreFactory(url, schema=schema) as factory:
        store = await factory.create_store(SessionStoreCreateRequest("s"))
        print("ready", flush=True)
        lease = None
        while line := await asyncio.to_thread(sys.stdin.readline):
            if line == "enqueue\\n":
                await store.enqueue_queued_work(work())
            elif line == "commit\\n":
                lease = await lane(store)
                await store.commit_runtime_state(commit(lease, None).with_outbox(work(session_id="t")))
            print("done", flush=True)
asyncio.run(main(*sys.argv[1:]))
"""


async def test_work_of_another_process_wakes_this_one(ground: Ground) -> None:
    """A submission and a commit with an outbox in another process each wake whoever waits here."""
    async with ground.factory() as factory:
        await factory.create_store(S)
        await listening(ground, factory)
        other = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", OTHER, ground.url, ground.schema), stdin=-1, stdout=-1, cwd=ROOT
        )
        assert other.stdin is not None
        assert other.stdout is not None
        assert await other.stdout.readline() == b"ready\n"
        for order in (b"enqueue\n", b"commit\n"):
            seen = await factory.engine.wait_for_work(0, 0.3)
            other.stdin.write(order)
            assert await factory.engine.wait_for_work(seen, PATIENCE_S) != seen
            assert await other.stdout.readline() == b"done\n"
        other.stdin.close()
        assert await other.wait() == 0


# Other clocks


HOUR_OFF = """
import asyncio, sys, time
shift_s = int(sys.argv[3])
now, now_ns = time.time, time.time_ns
time.time = lambda: now() + shift_s
time.time_ns = lambda: now_ns() + shift_s * 10**9
from fastness.model import SessionStoreCreateRequest
from fastness.persistence import PostgresSessionStoreFactory
from fastness.conformance.builders import owner
async def main(url, schema):
    async with PostgresSessionStoreFactory(url, schema=schema) as factory:
        store = await factory.create_store(SessionStoreCreateRequest("s"))
        outcome = await store.try_claim_session_execution_lease("s", owner("off"), 600_000)
        print(type(outcome).__name__)
asyncio.run(main(*sys.argv[1:3]))
"""


@pytest.mark.parametrize("shift_s", [3600, -3600])
async def test_a_worker_whose_clock_is_an_hour_off_neither_steals_nor_grants_time(ground: Ground, shift_s: int) -> None:
    """Leases are judged by the server's clock: a lane of ten minutes is busy and a free lane is had, on any machine."""

    async def elsewhere() -> str:
        command = [sys.executable, "-c", HOUR_OFF, ground.url, ground.schema, str(shift_s)]
        return (await asyncio.to_thread(subprocess.check_output, command, cwd=ROOT, text=True)).strip()

    async with ground.factory() as factory:
        store = await factory.create_store(S)
        lease = await lane(store, ttl_ms=600_000)
        assert await elsewhere() == "Busy"
        await store.release_session_execution_lease(lease.completion())
        assert await elsewhere() == "Acquired"
        mine = await store.try_claim_session_execution_lease("s", owner("me"), 600_000)
        assert isinstance(mine, Busy)
        now_ms = ground.execute("select (extract(epoch from clock_timestamp()) * 1000)::bigint")[0][0]
        assert 0 < mine.holder.expires_at_epoch_ms - now_ms <= 600_000


# Another version


async def test_another_version_of_the_server_runs_turns(tmp_path: Path) -> None:
    """On a second major version of PostgreSQL the schema is made, turns run, and the check finds nothing."""
    second = second_server()
    if isinstance(second, str):
        pytest.skip(second)
    with ground_of(second) as ground:
        async with ground.factory() as factory:
            await cycle(factory, "s")
            assert (await factory.check()).findings == ()
