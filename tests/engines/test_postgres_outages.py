"""Servers that stop, crash, start again and are replaced, while the process that uses them goes on."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Iterator

import pytest

from fastness.conformance.builders import chain, commit, lane, loaded, node, node_ids, said, usage
from fastness.engines.postgres_wire import Wire
from fastness.errors import BackendError, CommitOutcomeUnknownError, ContendedError, DatabaseReadOnlyError
from fastness.model import RuntimePersistence, SessionStoreCreateRequest
from fastness.ops import directory
from fastness.persistence import PostgresSessionStoreFactory
from tests.engines.postgres_lab import HASTE_MS, PATIENCE_S, Ground, until
from tests.servers.postgres import Mode, PostgresServer, make_replica

SESSIONS = ("a", "b", "c", "d", "e", "f")
TTL_MS = 600_000


@pytest.fixture
def server(own_ground: Ground) -> PostgresServer:
    """The server that may be stopped."""
    assert isinstance(own_ground.server, PostgresServer)
    return own_ground.server


class Worker:
    """Runs turns on a session of its own; an unknown outcome is settled by sending the same commit again."""

    def __init__(self, store: RuntimePersistence, session_id: str) -> None:
        self.store = store
        self.session_id = session_id
        self.acknowledged: list[str] = []
        self.unknown = 0
        self.stopping = False

    async def run(self) -> None:
        """One node and one token of usage for each turn, until told to stop."""
        lease = await lane(self.store, session_id=self.session_id, ttl_ms=TTL_MS)
        while not self.stopping:
            turn = len(self.acknowledged)
            name, parent = f"{self.session_id}{turn}", f"{self.session_id}{turn - 1}" if turn else None
            made = commit(lease, turn or None, node(name, parent), usage_deltas=(usage(1),))
            stamped = made.with_turn_commit(f"turn-{name}")
            while True:
                try:
                    assert (await self.store.commit_runtime_state(stamped)).head_revision == turn + 1
                    break
                except CommitOutcomeUnknownError:
                    self.unknown += 1
            self.acknowledged.append(name)


async def more_turns(workers: list[Worker]) -> None:
    """Wait until each of them has settled some more turns."""
    aims = [(worker, len(worker.acknowledged) + 5) for worker in workers]
    await until(lambda: all(len(worker.acknowledged) > aim for worker, aim in aims))


@pytest.mark.parametrize("mode", ["immediate", "fast"])
async def test_a_server_that_goes_away_under_load_loses_and_doubles_nothing(
    own_ground: Ground, server: PostgresServer, mode: Mode
) -> None:
    """Six sessions commit while the server is stopped and started; every turn is there once, and in order."""
    async with own_ground.factory(pool_size=4) as factory:
        workers = [Worker(await factory.create_store(SessionStoreCreateRequest(name)), name) for name in SESSIONS]
        running = [asyncio.create_task(worker.run()) for worker in workers]
        for _ in range(2):
            await more_turns(workers)
            await asyncio.to_thread(server.restart, mode)
        await more_turns(workers)
        for worker in workers:
            worker.stopping = True
        await asyncio.gather(*running)
        for worker in workers:
            read = await loaded(worker.store)
            assert [found.node_id for found in read.graph.active_path()] == worker.acknowledged
            assert read.head.ledger[0].usage.input_tokens == len(worker.acknowledged)
        assert (await factory.check()).findings == ()


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_restart_behind_idle_connections_is_not_noticed(
    own_ground: Ground, server: PostgresServer, mode: Mode
) -> None:
    """After a restart the next renewals and commits, of one round trip each, succeed at once on fresh connections."""
    async with own_ground.factory(pool_size=4) as factory:
        stores = [await factory.create_store(SessionStoreCreateRequest(name)) for name in SESSIONS]
        leases = [
            await lane(store, session_id=name, ttl_ms=TTL_MS) for store, name in zip(stores, SESSIONS, strict=True)
        ]
        made = [commit(lease, None, *chain("a")) for lease in leases]
        await asyncio.gather(*(s.commit_runtime_state(c) for s, c in zip(stores, made, strict=True)))
        server.restart(mode)
        pairs = list(zip(stores, leases, strict=True))
        await asyncio.gather(*(s.renew_session_execution_lease(lease.fence(), TTL_MS) for s, lease in pairs))
        server.restart(mode)
        made = [commit(lease, 1, *chain("b", after="a")) for lease in leases]
        await asyncio.gather(*(s.commit_runtime_state(c) for s, c in zip(stores, made, strict=True)))
        server.restart(mode)
        assert [await node_ids(store) for store in stores] == [["a", "b"]] * 6


async def test_connections_that_were_lost_leave_nothing_behind(
    own_ground: Ground, server: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    """However often the server ends a connection, the process keeps what belongs to the one it has, and no more."""

    def count() -> int:
        gc.collect()
        return sum(type(each) is Wire for each in gc.get_objects())

    caplog.set_level(logging.CRITICAL, logger="psycopg")  # what is logged of a connection would keep it
    async with own_ground.factory(pool_size=1) as factory:
        store = await factory.create_store(SessionStoreCreateRequest("s"))
        before = count()
        for _ in range(3):
            own_ground.terminate()
            assert await store.load_head() is None
        assert count() == before


async def test_a_snapshot_can_be_taken_after_a_restart(own_ground: Ground, server: PostgresServer) -> None:
    """A backup that begins after the server was restarted does not trip over idle connections from before."""
    async with own_ground.factory(pool_size=3) as factory:
        store = await factory.create_store(SessionStoreCreateRequest("s"))
        await asyncio.gather(*(store.load_head() for _ in range(20)))
        server.restart("fast")
        async with factory.engine.snapshot() as snapshot:
            assert await snapshot.read(lambda: directory.sid_of("s")) == 1


async def test_the_check_after_a_restart_does_not_trip_over_idle_connections(
    own_ground: Ground, server: PostgresServer
) -> None:
    """The first check after a restart finds what there is to find, and not that the server was restarted."""
    async with own_ground.factory(pool_size=2) as factory:
        store = await factory.create_store(SessionStoreCreateRequest("s"))
        await asyncio.gather(*(store.load_head() for _ in range(20)))
        server.restart("fast")
        assert (await factory.check()).findings == ()


async def test_closing_wakes_who_waits_for_work(own_ground: Ground) -> None:
    """Whoever waits for work when the engine is closed is not left to wait for the rest of the time."""
    factory = own_ground.factory(pool_size=1)
    await factory.create_store(SessionStoreCreateRequest("s"))
    seen = 0
    while (number := await factory.engine.wait_for_work(seen, 0.3)) != seen:
        seen = number
    waiting = asyncio.create_task(factory.engine.wait_for_work(seen, 600))
    await asyncio.sleep(0.01)
    await factory.close()
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(waiting, return_exceptions=True)


async def test_a_snapshot_that_loses_its_server_says_so_and_the_engine_goes_on(
    own_ground: Ground, server: PostgresServer
) -> None:
    """A snapshot cannot be had again: its reads fail by name, and the next one is taken on another connection."""
    async with own_ground.factory(pool_size=1) as factory:
        await factory.create_store(SessionStoreCreateRequest("s"))
        async with factory.engine.snapshot() as snapshot:
            own_ground.terminate()
            for _ in range(2):
                with pytest.raises(BackendError, match=r"the snapshot was lost .*; open another one"):
                    await snapshot.read(lambda: directory.sid_of("s"))
        async with factory.engine.snapshot() as snapshot:
            assert await snapshot.read(lambda: directory.sid_of("s")) == 1


async def test_an_engine_can_be_closed_after_a_snapshot_was_refused(own_ground: Ground, server: PostgresServer) -> None:
    """A snapshot that no connection could be had for is not waited for by close()."""
    factory = own_ground.factory(pool_size=1, patience_ms=HASTE_MS)
    await factory.create_store(SessionStoreCreateRequest("s"))
    own_ground.terminate()
    server.stop()
    for _ in range(2):
        with pytest.raises(BackendError):
            async with factory.engine.snapshot():
                pass
    async with asyncio.timeout(PATIENCE_S):
        await factory.close()


async def test_an_engine_comes_back_as_soon_as_its_server_does(own_ground: Ground, server: PostgresServer) -> None:
    """However long an outage was, the first call after it succeeds within its own patience."""
    async with own_ground.factory(patience_ms=2 * HASTE_MS, pool_size=2) as factory:
        store = await factory.create_store(SessionStoreCreateRequest("s"))
        server.stop()
        for _ in range(2):  # long enough for whoever waits ever longer between two tries
            with pytest.raises(BackendError, match="refused"):
                await store.load_head()
        await asyncio.sleep(0.5)
        await asyncio.to_thread(server.start)
        assert await store.load_head() is None
        assert await asyncio.gather(*(store.load_head() for _ in range(10))) == [None] * 10


async def test_a_server_that_is_away_is_waited_for(own_ground: Ground, server: PostgresServer) -> None:
    """Calls that are made while the server is down end well when it comes back within their patience."""
    async with own_ground.factory(pool_size=2) as factory:
        store = await factory.create_store(SessionStoreCreateRequest("s"))
        server.stop()
        waiting = [asyncio.create_task(store.enqueue_pending_turn_input(said(f"x{at}"))) for at in range(6)]
        await asyncio.sleep(0.3)
        assert [task.done() for task in waiting] == [False] * 6
        await asyncio.to_thread(server.start)
        assert sorted(row.admission_seq for row in await asyncio.gather(*waiting)) == [1, 2, 3, 4, 5, 6]


@pytest.fixture
def pair() -> Iterator[tuple[PostgresServer, PostgresServer]]:
    """A primary and its standby."""
    with PostgresServer(fsync=False) as primary:
        standby = make_replica(primary)
        yield primary, standby
        standby.close()


async def test_a_standby_is_refused_until_it_takes_over(pair: tuple[PostgresServer, PostgresServer]) -> None:
    """Alone it is refused by name; with both hosts in the url, calls wait through the change and go on with it."""
    primary, standby = pair
    url = f"postgresql://postgres@127.0.0.1:{primary.port},127.0.0.1:{standby.port}/postgres"
    async with PostgresSessionStoreFactory(url, pool_size=3) as factory:
        store = await factory.create_store(SessionStoreCreateRequest("s"))
        lease = await lane(store, ttl_ms=TTL_MS)
        await store.commit_runtime_state(commit(lease, None, *chain("a")))
        standby.caught_up()
        for alone in (standby.url(), standby.url() + "?target_session_attrs=any"):
            async with PostgresSessionStoreFactory(alone) as refused:
                with pytest.raises(
                    DatabaseReadOnlyError, match="; name the primary server: a replica cannot keep sessions"
                ):
                    await refused.create_store(SessionStoreCreateRequest("s"))
        primary.stop("immediate")
        second = asyncio.create_task(store.commit_runtime_state(commit(lease, 1, *chain("b", after="a"))))
        await asyncio.sleep(0.2)
        assert not second.done()
        await asyncio.to_thread(standby.promote)
        assert (await second).head_revision == 2
        assert await node_ids(store) == ["a", "b"]
        assert (await store.commit_runtime_state(commit(lease, 2, *chain("c", after="b")))).head_revision == 3
    with standby.admin() as connection:
        assert connection.execute("select count(*) from fastness.node").fetchone() == (3,)


async def test_an_exhausted_patience_says_what_stood_in_the_way(own_ground: Ground, server: PostgresServer) -> None:
    """With the server away for longer than the patience, the error names the server and not the pool."""
    async with own_ground.factory(patience_ms=HASTE_MS, pool_size=1) as factory:
        store = await factory.create_store(SessionStoreCreateRequest("s"))
        server.stop()
        with pytest.raises(
            BackendError, match=r"(refused|closed).*; check host and port, and start the server"
        ) as caught:
            await store.enqueue_pending_turn_input(said("x"))
        assert not isinstance(caught.value, ContendedError)
