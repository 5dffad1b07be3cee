"""A pipeline that is a transaction by itself, and the connections that are kept at hand for it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable

import psycopg
import pytest

from fastness.conformance.builders import chain, commit, lane, node_ids, usage
from fastness.engines import postgres_open, postgres_pool
from fastness.engines.postgres import PostgresEngine
from fastness.errors import BackendError
from fastness.factory import EngineSessionStoreFactory
from fastness.model import RuntimeCommit, RuntimePersistence, SessionExecutionLease, SessionStoreCreateRequest
from fastness.persistence import PostgresSessionStoreFactory
from fastness.sql.program import Expected, Many, Program, Read, Statement, Write
from tests.engines.postgres_lab import Ground, until
from tests.engines.programs import ADD, FaultError, refs


@pytest.fixture
async def factory(ground: Ground) -> AsyncIterator[PostgresSessionStoreFactory]:
    """An engine with one connection."""
    async with ground.factory(pool_size=1) as made:
        yield made


async def held(factory: EngineSessionStoreFactory) -> tuple[RuntimePersistence, SessionExecutionLease]:
    """A session with a first turn, whose handle knows what its next commit will find."""
    store = await factory.create_store(SessionStoreCreateRequest("s"))
    lease = await lane(store)
    await store.commit_runtime_state(commit(lease, None, *chain("a")))
    return store, lease


def second(lease: SessionExecutionLease) -> RuntimeCommit:
    """The turn after the first one."""
    return commit(lease, 1, *chain("b", after="a"), usage_deltas=(usage(1, 2),)).with_turn_commit("t2")


async def test_what_the_server_refuses_at_the_end_of_a_pipeline_is_not_committed(
    ground: Ground, factory: PostgresSessionStoreFactory
) -> None:
    """A constraint that is looked at by COMMIT alone refuses the commit by name; afterwards the same one lands."""
    store, lease = await held(factory)
    ground.execute("create function no() returns trigger language plpgsql as $$begin raise 'not today'; end$$")
    trigger = "create constraint trigger no after update on head deferrable initially deferred"
    ground.execute(f"{trigger} for each row execute function no()")
    with pytest.raises(BackendError, match="not today"):
        await store.commit_runtime_state(second(lease))
    assert await node_ids(store) == ["a"]
    assert ground.sessions("idle in transaction", "idle in transaction (aborted)") == []
    ground.execute("drop function no() cascade")
    result = await store.commit_runtime_state(second(lease))
    assert (result.head_revision, result.replayed, await node_ids(store)) == (2, False, ["a", "b"])


def _guessing(*refs: str) -> Program[None]:
    """Expect that there is no blob, and write some in batches of their own."""
    yield Read(Statement("select ref from blob where ref = $1", ("none",)), expect=[Expected([])])
    for ref in refs:
        yield Write(Statement(ADD, (ref, b"")))


async def test_a_fault_between_the_writes_of_a_guess_leaves_none_of_them(ground: Ground) -> None:
    """What stands in the pipeline already is undone, and is not committed by the pipeline's end."""
    left = [0]

    def fail(batch: Read | Write | None) -> None:
        if isinstance(batch, Write):
            left[0] -= 1
            if left[0] == 0:
                raise FaultError("here")

    async with ground.factory(pool_size=1, batch_hook=fail) as factory:
        engine = factory.engine
        for point in (1, 2):
            left[0] = point
            with pytest.raises(FaultError):
                await engine.write(lambda: _guessing("a", "b"))
            assert await engine.read(refs) == []
        await engine.write(lambda: _guessing("a", "b"))
        assert await engine.read(refs) == ["a", "b"]


def _isolation() -> Program[list[str]]:
    ((row,),) = yield Write(Statement("select current_setting('transaction_isolation')"), last=True)
    return list(row)


async def test_a_pipeline_by_itself_is_read_committed_whatever_the_role_has(ground: Ground) -> None:
    """Where transactions are serializable by default, a program sees what was committed before its lock was granted."""
    url = psycopg.conninfo.make_conninfo(ground.url, options="-c default_transaction_isolation=serializable")
    async with ground.factory(url, pool_size=1) as factory:
        assert await factory.engine.write(_isolation) == ["read committed"]


async def test_a_connection_at_hand_goes_back_to_the_pool_after_a_while(
    factory: PostgresSessionStoreFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool, which sees to the age and the number of connections, gets each of them to see now and then."""
    monkeypatch.setattr(postgres_pool, "_ROUND_S", 0.01)
    store = await factory.create_store(SessionStoreCreateRequest("s"))
    connections = factory.engine._connections  # type: ignore[attr-defined]
    assert await store.load_head() is None
    async with asyncio.timeout(30):
        while not connections._pool.get_stats()["pool_available"]:
            await asyncio.sleep(0.01)
    assert await store.load_head() is None


async def test_whoever_waits_gets_the_connection_that_comes_free(factory: PostgresSessionStoreFactory) -> None:
    """However many calls share one connection, none is left waiting while it is at hand."""
    store = await factory.create_store(SessionStoreCreateRequest("s"))
    async with asyncio.timeout(30):
        for _ in range(20):
            assert await asyncio.gather(*(store.load_head() for _ in range(5))) == [None] * 5
            assert await store.load_head() is None


def _much() -> Program[None]:
    yield Write(Statement(ADD, ("first", b"")))
    yield Write(Many(ADD, [(f"m{at}", bytes(1 << 20)) for at in range(32)]))


async def test_a_connection_that_ends_while_more_is_to_be_sent_is_replaced(
    ground: Ground, factory: PostgresSessionStoreFactory
) -> None:
    """The server takes in no more, and then the connection ends: all is written once, on another one."""
    engine = factory.engine
    assert await engine.read(refs) == []
    (wire,) = engine._connections._at_hand  # type: ignore[attr-defined]
    waits = "select 1 from pg_stat_activity where application_name = %s and wait_event_type = 'Lock'"
    async with asyncio.timeout(30):
        end = socket.socket(fileno=os.dup(wire.connection.pgconn.socket))
        with end, ground.admin() as other, other.transaction():
            other.execute("lock table blob in exclusive mode")
            writing = asyncio.create_task(engine.write(_much))
            await until(lambda: bool(ground.execute(waits, ground.schema)))
            end.shutdown(socket.SHUT_RD)
        await writing
        assert len(await engine.read(refs)) == 33


@pytest.mark.parametrize(("bound_ms", "is_cut_off"), [(300, True), (300_000, False)])
async def test_who_stands_still_in_the_midst_of_a_pipeline_does_not_keep_the_lane(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, bound_ms: int, is_cut_off: bool
) -> None:
    """The server ends the transaction after its bound, others get the lane's lock, and the commit lands once."""
    monkeypatch.setattr(postgres_open, "LONGEST_TRANSACTION_MS", bound_ms)
    locked: list[bool] = []

    def stand_still(batch: Read | Write | None) -> None:
        # The lock of the lane was sent already, and the event loop stands still in here.
        if isinstance(batch, Write) and guarded and not locked:
            with ground.admin() as other:
                other.execute("set lock_timeout to 2000")
                with contextlib.suppress(psycopg.errors.LockNotAvailable):
                    other.execute("select 1 from lane for update")
                    locked.append(True)
                locked.append(False)

    guarded = False
    engine = PostgresEngine(ground.url, schema=ground.schema, pool_size=1, before_batch=stand_still)
    async with EngineSessionStoreFactory(engine) as factory:
        store, lease = await held(factory)
        guarded = True
        result = await store.commit_runtime_state(second(lease))
        assert locked == ([True, False] if is_cut_off else [False])
        assert (result.head_revision, await node_ids(store)) == (2, ["a", "b"])


async def test_a_snapshot_and_a_long_write_may_take_longer(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """They say so to the server, which bounds what does not."""
    monkeypatch.setattr(postgres_open, "LONGEST_TRANSACTION_MS", 300)
    async with ground.factory(pool_size=2) as factory:
        store, _ = await held(factory)
        async with factory.engine.snapshot() as snapshot:
            assert len(await snapshot.read(refs)) == 0
            await asyncio.sleep(0.6)
            assert len(await snapshot.read(refs)) == 0

        def large() -> Program[None]:
            for at in range(3):
                yield Write(Statement(ADD, (f"{at}", b"x" * (1 << 20 | 1))))
                time.sleep(0.2)

        await factory.engine.write(large)
        assert await factory.engine.read(refs) == ["0", "1", "2"]
        assert await node_ids(store) == ["a"]


@pytest.mark.parametrize("ends", ["cancelled", "refused", "lost"])
async def test_many_share_few_connections_whatever_becomes_of_some(ground: Ground, ends: str) -> None:
    """Fifty programs on two connections: those that are cancelled, refused or cut off take no connection with them."""

    def refuses() -> Program[None]:
        yield Read(Statement("select 1"))
        raise FaultError

    def is_cut_off() -> Program[None]:
        yield Read(Statement("select 1 from pg_terminate_backend(pg_backend_pid())"))

    def lands(ref: str) -> Callable[[], Program[None]]:
        def program() -> Program[None]:
            yield Write(Statement(ADD, (ref, b"x")))

        return program

    async with ground.factory(pool_size=2, patience_ms=2_000) as factory:
        engine = factory.engine
        strange = {"cancelled": lands("never"), "refused": refuses, "lost": is_cut_off}[ends]
        for at in range(5):
            others = [asyncio.ensure_future(engine.write(strange)) for _ in range(3)]
            ours = [asyncio.ensure_future(engine.write(lands(f"{at}-{number}"))) for number in range(10)]
            await asyncio.sleep(0)
            if ends == "cancelled":
                for each in others:
                    each.cancel()
            await asyncio.gather(*ours)
            await asyncio.gather(*others, return_exceptions=True)
        found = await asyncio.gather(*(engine.read(refs) for _ in range(20)))
        assert {ref for ref in found[0] if ref != "never"} == {
            f"{at}-{number}" for at in range(5) for number in range(10)
        }
        assert found == [found[0]] * 20


FORGETS = """
import asyncio, sys
from fastness.persistence import PostgresSessionStoreFactory

async def main():
    factory = PostgresSessionStoreFactory(sys.argv[1], schema=sys.argv[2], pool_size=4)
    await factory.list_sessions()
    return factory

factory = asyncio.run(main())
print("ended")
"""


def test_a_program_that_forgets_to_close_ends_all_the_same(ground: Ground) -> None:
    """Also while the pool connects: it does not wait for ever for tasks that nobody can cancel."""
    command = [sys.executable, "-c", FORGETS, ground.url, ground.schema]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr
    ground.await_none()
