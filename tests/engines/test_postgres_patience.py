"""Waiting, giving up, trying again and being cancelled: bounded, without a trace, and usable afterwards."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator

import psycopg
import pytest

from fastness.conformance.builders import chain, commit, lane, node_ids, said, texts, work
from fastness.errors import BackendError, ContendedError, HandleUnusableError, InvalidInputError, StoreError
from fastness.model import RuntimePersistence, SessionStoreCreateRequest
from fastness.ops import directory
from fastness.persistence import PostgresSessionStoreFactory
from fastness.sql.program import Read, Write
from tests.engines.postgres_lab import HASTE_MS, PATIENCE_S, Ground, until
from tests.servers.proxy import Proxy

S = SessionStoreCreateRequest("s")
OPEN = ("idle in transaction", "idle in transaction (aborted)")


@pytest.fixture
async def factory(own_ground: Ground) -> AsyncIterator[PostgresSessionStoreFactory]:
    """An engine with few connections."""
    async with own_ground.factory(pool_size=3) as made:
        yield made


@pytest.fixture
async def store(factory: PostgresSessionStoreFactory) -> RuntimePersistence:
    """A session."""
    return await factory.create_store(S)


@pytest.fixture
async def hasty(own_ground: Ground, store: RuntimePersistence) -> AsyncIterator[RuntimePersistence]:
    """The same session on an engine whose patience runs out soon: for what is to outlast it, and for that alone."""
    async with own_ground.factory(pool_size=3, patience_ms=HASTE_MS) as made:
        yield await made.create_store(S)


def hold_lane(ground: Ground, session_id: str = "s") -> psycopg.Connection:
    """A stranger's transaction that has locked the lane row of a session."""
    stranger = ground.admin()
    stranger.execute("begin")
    stranger.execute(
        "select from lane where sid = (select sid from session where session_id = %s) for update", [session_id]
    )
    return stranger


# Locks


async def test_a_lane_that_stays_locked_is_contended_and_nothing_is_written(
    own_ground: Ground, store: RuntimePersistence, hasty: RuntimePersistence
) -> None:
    """A write waits for a lane as long as its patience lasts, changes nothing, and succeeds when it is sent again."""
    with hold_lane(own_ground) as stranger:
        with pytest.raises(ContendedError, match="nothing happened: retry the same call unchanged") as caught:
            await hasty.enqueue_pending_turn_input(said("x"))
        assert "a lane stayed locked" in str(caught.value)
        assert caught.value.waited_ms >= HASTE_MS // 3
        assert texts(await store.list_pending_turn_inputs("s")) == [], "readers do not wait for the lane"
        stranger.execute("rollback")
    assert (await store.enqueue_pending_turn_input(said("x"))).admission_seq == 1
    assert own_ground.sessions(*OPEN) == []


async def test_a_lane_that_is_given_back_in_time_is_waited_for(own_ground: Ground, store: RuntimePersistence) -> None:
    """Whoever waits for the lane gets it when its holder ends, and sees what the holder committed."""
    with hold_lane(own_ground) as stranger:
        stranger.execute("update lane set admission_seq = 41")
        waiting = asyncio.create_task(store.enqueue_pending_turn_input(said("x")))
        await until(lambda: own_ground.execute("select count(*) from pg_locks where not granted") == [(1,)])
        stranger.execute("commit")
        assert (await waiting).admission_seq == 42


async def test_one_locked_lane_does_not_hold_up_another(
    own_ground: Ground, factory: PostgresSessionStoreFactory, store: RuntimePersistence
) -> None:
    """While one session's lane is locked, another session is written to."""
    other = await factory.create_store(SessionStoreCreateRequest("other"))
    with hold_lane(own_ground):
        row = await other.enqueue_pending_turn_input(said("x", session_id="other"))
    assert row.admission_seq == 1


async def test_commits_that_lock_each_other_both_land(own_ground: Ground) -> None:
    """Two sessions whose commits put work into each other's outbox never stand in each other's way for good."""
    async with own_ground.factory(pool_size=8) as factory:
        pairs = []
        for name, other in (("a", "b"), ("b", "a"), ("c", "a"), ("a2", "b")):
            store = await factory.create_store(SessionStoreCreateRequest(name))
            pairs.append((store, other, await lane(store, session_id=name)))
        for turn in range(15):
            made = [
                commit(lease, turn or None).with_outbox(work(session_id=other), said("x", session_id=other))
                for _, other, lease in pairs
            ]
            done = await asyncio.gather(
                *(store.commit_runtime_state(one) for (store, _, _), one in zip(pairs, made, strict=True))
            )
            assert [result.head_revision for result in done] == [turn + 1] * 4
        assert [len(await pairs[0][0].list_queued_work(name)) for name in ("a", "b")] == [30, 30]


async def test_a_deadlock_with_a_stranger_is_tried_again(own_ground: Ground) -> None:
    """When the server picks our transaction as the victim, it is run anew, and the caller notices nothing."""
    async with own_ground.factory(pool_size=2) as factory:
        store = await factory.create_store(SessionStoreCreateRequest("a"))
        await factory.create_store(SessionStoreCreateRequest("b"))
        lease = await lane(store, session_id="a")
        before = own_ground.execute("select deadlocks from pg_stat_database where datname = current_database()")[0][0]
        with hold_lane(own_ground, "b") as stranger:
            stranger.execute("set local deadlock_timeout = '1h'")  # it never finds out: we do, and are the victim
            made = commit(lease, None, *chain("n")).with_outbox(work(session_id="b"))
            ours = asyncio.create_task(store.commit_runtime_state(made))
            await until(lambda: own_ground.execute("select count(*) from pg_locks where not granted") == [(1,)])
            await asyncio.to_thread(
                stranger.execute,
                "select from lane where sid = (select sid from session where session_id = 'a') for update",
            )
            stranger.execute("commit")
        assert (await ours).head_revision == 1
        await until(
            lambda: (
                own_ground.execute("select deadlocks from pg_stat_database where datname = current_database()")[0][0]
                > before
            )
        )
        assert len(await store.list_queued_work("b")) == 1


# Refusals that pass


async def refuse(ground: Ground, table: str, sqlstate: str, times: int, *, deferred: bool = False) -> None:
    """Have the server refuse the next changes of a table so many times, at once or only at COMMIT."""
    ground.execute("create sequence refusals")
    ground.execute(
        f"""create function refuse() returns trigger language plpgsql as $$ begin
            if nextval('{ground.schema}.refusals') <= {times} then
                raise exception 'injected' using errcode = '{sqlstate}';
            end if;
            return new; end $$"""
    )
    kind = "constraint trigger" if deferred else "trigger"
    late = "deferrable initially deferred" if deferred else ""
    ground.execute(
        f"create {kind} refuse after insert or update on {table} {late} for each row execute function refuse()"
    )


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("sqlstate", ["40001", "40P01", "55P03"])
async def test_a_refusal_that_passes_is_tried_again_inside(
    own_ground: Ground, factory: PostgresSessionStoreFactory, store: RuntimePersistence, sqlstate: str, deferred: bool
) -> None:
    """Five serialization failures, deadlocks or lock timeouts, also at COMMIT, are not seen; the commit lands once."""
    lease = await lane(store)
    await store.commit_runtime_state(commit(lease, None, *chain("a")))
    await refuse(own_ground, "head", sqlstate, 5, deferred=deferred)
    assert (await store.commit_runtime_state(commit(lease, 1, *chain("b", after="a")))).head_revision == 2
    assert await node_ids(store) == ["a", "b"]
    assert own_ground.execute("select last_value from refusals") == [(6,)]


async def test_a_refusal_that_never_passes_ends_with_the_patience(
    own_ground: Ground, store: RuntimePersistence, hasty: RuntimePersistence
) -> None:
    """A serialization failure for ever is contended in the end, with nothing written and no transaction left open."""
    await refuse(own_ground, "turn_input", "40001", 10**9)
    with pytest.raises(ContendedError, match="the server refused: injected"):
        await hasty.enqueue_pending_turn_input(said("x"))
    own_ground.execute("drop trigger refuse on turn_input")
    assert own_ground.sessions(*OPEN) == []
    assert (await store.enqueue_pending_turn_input(said("x"))).admission_seq == 1


@pytest.mark.parametrize(
    ("sqlstate", "words"),
    [
        ("53100", "make room on the server"),
        ("XX001", "restore the database from a backup"),
        ("57014", "raise statement_timeout"),
        ("P0001", "see the cause, mend it, and retry the same call"),
    ],
)
async def test_a_refusal_that_no_retry_mends_is_said_at_once(
    own_ground: Ground, store: RuntimePersistence, sqlstate: str, words: str
) -> None:
    """A full disk, damage, a cancelled statement and a stranger's trigger are typed errors that say what to do."""
    await refuse(own_ground, "turn_input", sqlstate, 1)
    with pytest.raises(BackendError, match=words):
        await store.enqueue_pending_turn_input(said("x"))
    assert (await store.enqueue_pending_turn_input(said("x"))).admission_seq == 1


# The pool


async def test_an_exhausted_pool_is_contended_and_recovers(own_ground: Ground, hasty: RuntimePersistence) -> None:
    """When all connections wait for locks, a reader is turned away within its patience, and served afterwards."""
    with hold_lane(own_ground):
        writers = [asyncio.create_task(hasty.enqueue_pending_turn_input(said("x"))) for _ in range(12)]
        await until(lambda: own_ground.execute("select count(*) from pg_locks where not granted")[0][0] >= 3)
        answers = await asyncio.gather(*writers, return_exceptions=True)
    assert {type(answer) for answer in answers} == {ContendedError}
    assert await asyncio.gather(*(hasty.list_pending_turn_inputs("s") for _ in range(12))) == [[]] * 12


async def slots(ground: Ground, factory: PostgresSessionStoreFactory, size: int) -> None:
    """Expect so many operations to run side by side: each holds a snapshot of its own until all of them have one."""
    everybody = asyncio.Barrier(size)

    async def hold() -> None:
        async with factory.engine.snapshot():
            await everybody.wait()

    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*(hold() for _ in range(size)))
    assert ground.sessions(*OPEN) == []


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_cancelling_at_random_leaves_nothing_open(own_ground: Ground, seed: int) -> None:
    """Of 300 calls cancelled at any moment, none leaves a transaction open or keeps a connection for ever."""
    chance = random.Random(seed)
    async with own_ground.factory(pool_size=3) as factory:
        store = await factory.create_store(S)
        lease = await lane(store)
        for _ in range(60):
            tasks: list[asyncio.Task[object]] = [
                asyncio.create_task(store.enqueue_pending_turn_input(said("x"))),
                asyncio.create_task(store.enqueue_queued_work(work(session_id="other"))),
                asyncio.create_task(store.renew_session_execution_lease(lease.fence(), 600_000)),
                asyncio.create_task(store.list_pending_turn_inputs("s")),
                asyncio.create_task(store.load_head()),
            ]
            for task in chance.sample(tasks, 4):
                await asyncio.sleep(chance.choice((0, 0, 0.0002, 0.001, 0.004)))
                task.cancel()
                if chance.random() < 0.3:
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            kinds = {type(task.exception()) for task in tasks if not task.cancelled()}
            assert kinds <= {type(None)}, f"a cancelled call ended in {kinds}"
        own_ground.await_none(*OPEN, "active")
        await slots(own_ground, factory, 3)
        assert (await factory.check()).findings == ()


async def test_cancelling_who_waits_for_a_lock_frees_the_connection(own_ground: Ground) -> None:
    """A cancelled write that waits for a lane keeps neither its place in the pool nor the lock once it is granted."""
    async with own_ground.factory(pool_size=2) as factory:
        store = await factory.create_store(S)
        with hold_lane(own_ground):
            for _ in range(4):
                tasks = [asyncio.create_task(store.enqueue_pending_turn_input(said("x"))) for _ in range(2)]
                await until(lambda: own_ground.execute("select count(*) from pg_locks where not granted")[0][0] >= 2)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            await slots(own_ground, factory, 2)
        await store.enqueue_pending_turn_input(said("y"))
        assert texts(await store.list_pending_turn_inputs("s"))[-1] == "y"
        await until(lambda: own_ground.sessions("active") == [])


async def test_a_cancelled_first_call_does_not_spoil_the_opening(own_ground: Ground) -> None:
    """Whoever is cancelled while the database is being opened leaves it to the next one to open it."""
    async with own_ground.factory(pool_size=2) as factory:
        for pause_s in (0, 0.002, 0.005, 0.01, 0.02, 0.05):
            task = asyncio.create_task(factory.create_store(S))
            await asyncio.sleep(pause_s)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await factory.create_store(S)
        await slots(own_ground, factory, 2)
    own_ground.await_none()


# The end


async def test_closing_waits_for_what_runs_and_refuses_what_comes(own_ground: Ground) -> None:
    """Writes that began before close() land; calls after it are refused by name; no connection is left."""
    factory = own_ground.factory(pool_size=2)
    store = await factory.create_store(S)
    running = [asyncio.create_task(store.enqueue_pending_turn_input(said("x"))) for _ in range(10)]
    await asyncio.sleep(0)
    await asyncio.gather(factory.close(), factory.close())
    assert sorted(row.admission_seq for row in await asyncio.gather(*running)) == list(range(1, 11))
    for call in (store.load_head(), store.enqueue_pending_turn_input(said("x")), factory.create_store(S)):
        with pytest.raises(HandleUnusableError, match="is closed; open a new one"):
            await call
    with pytest.raises(HandleUnusableError, match="is closed"):
        async with factory.engine.snapshot():
            pass
    await factory.close()
    own_ground.await_none()


async def test_closing_while_the_first_call_opens_the_database_leaves_no_connection(own_ground: Ground) -> None:
    """The first call either lands before close() returns, or is refused; nothing is opened afterwards."""
    for pause_s in (0, 0.003, 0.01, 0.03):
        factory = own_ground.factory(pool_size=2)
        first = asyncio.create_task(factory.create_store(S))
        await asyncio.sleep(pause_s)
        await factory.close()
        assert first.done() or pause_s == 0
        answer = (await asyncio.gather(first, return_exceptions=True))[0]
        assert not isinstance(answer, BaseException) or isinstance(answer, HandleUnusableError)
        own_ground.await_none()


async def test_an_engine_belongs_to_one_loop(own_ground: Ground) -> None:
    """From another event loop, calls and close() are refused by name, and the owner is not disturbed."""
    async with own_ground.factory(pool_size=1) as factory:
        store = await factory.create_store(S)

        def elsewhere() -> list[str]:
            said_: list[str] = []
            for call in (store.load_head, factory.close):
                try:
                    asyncio.run(call())
                except StoreError as error:
                    said_.append(str(error))
            return said_

        answer = "this store handle belongs to another event loop; open one store in each event loop"
        assert await asyncio.to_thread(elsewhere) == [answer, answer]
        assert await store.load_head() is None


async def test_a_forked_child_neither_uses_nor_harms_its_parents_connections(own_ground: Ground) -> None:
    """In a child the handle is refused and close() touches nothing; the parent goes on with the same connections."""
    async with own_ground.factory(pool_size=1) as factory:
        store = await factory.create_store(S)
        backends = own_ground.sessions()
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            answer = b"nothing"
            try:

                async def child() -> bytes:
                    try:
                        await store.load_head()
                    except StoreError as error:
                        await factory.close()
                        return str(error).encode()
                    return b"it worked"

                answer = asyncio.run(child())
            except BaseException as error:  # noqa: BLE001 - whatever it is, the parent is to hear of it
                answer = repr(error).encode()
            finally:
                os.write(writer, answer)
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            heard = await asyncio.to_thread(pipe.read)
        os.waitpid(pid, 0)
        assert heard.startswith(b"this store handle was opened before this process was forked from its parent")
        assert (await store.enqueue_pending_turn_input(said("x"))).admission_seq == 1
        assert own_ground.sessions() == backends


# Values


async def test_strange_text_comes_back_as_it_went_in(own_ground: Ground, store: RuntimePersistence) -> None:
    """NUL, text beyond the basic plane, combining marks and quotes survive in messages, input and work."""
    text = "a\0b \U0001f9ff \U0010ffff é e\u0301 \u2028 \\0 \\u0000 '\" $1 {} %s"
    lease = await lane(store)
    await store.enqueue_pending_turn_input(said(text, key="\U0001f9ff'"))
    made = commit(lease, None, *chain("\U0001f9ff"))
    await store.commit_runtime_state(made.with_turn_commit("tür"))
    assert texts(await store.list_pending_turn_inputs("s")) == [text]
    assert await node_ids(store) == ["\U0001f9ff"]


async def test_a_value_over_the_budget_is_refused_before_anything_is_sent(own_ground: Ground) -> None:
    """A commit or a submission that is too large makes no round trip at all."""
    with Proxy.spawn(own_ground.server.url()) as proxy:
        options = {"commit_budget_bytes": 100_000, "pool_size": 1}
        async with own_ground.factory(proxy.url(own_ground.url), **options) as factory:
            store = await factory.create_store(S)
            lease = await lane(store)
            large = "x" * 200_000
            proxy.reset()
            with pytest.raises(InvalidInputError):
                await store.enqueue_pending_turn_input(said(large))
            with pytest.raises(InvalidInputError):
                await store.commit_runtime_state(commit(lease, None).with_outbox(said(large)))
            assert proxy.round_trips == 0
            await store.commit_runtime_state(commit(lease, None, *chain("a")))
            assert proxy.round_trips >= 1


async def test_a_hook_that_raises_leaves_the_connection_clean(own_ground: Ground) -> None:
    """An error of the caller's own inside an operation is passed on, and the same connection serves the next call."""

    def fail(batch: Read | Write | None) -> None:
        if armed and batch is None:
            raise ZeroDivisionError

    armed = False
    async with own_ground.factory(pool_size=1, batch_hook=fail) as factory:
        store = await factory.create_store(S)
        backends = own_ground.sessions()
        armed = True
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                await store.enqueue_pending_turn_input(said("x"))
        armed = False
        assert (await store.enqueue_pending_turn_input(said("x"))).admission_seq == 1
        assert own_ground.sessions() == backends


async def test_a_holder_of_a_lane_that_stands_still_is_cut_off(own_ground: Ground) -> None:
    """A process that stops in the middle of a write holds its lane no longer than its patience, and writes nothing."""
    freed: list[bool] = []

    def stand_still(batch: Read | Write | None) -> None:
        if armed and batch is None and not freed:
            with own_ground.admin() as stranger:
                stranger.execute("set lock_timeout = '20s'")
                stranger.execute("update lane set admission_seq = 41")
            freed.append(True)

    armed = False
    async with own_ground.factory(pool_size=2, patience_ms=HASTE_MS, batch_hook=stand_still) as factory:
        store = await factory.create_store(S)
        await store.enqueue_pending_turn_input(said("x"))
        armed = True
        with pytest.raises(BackendError, match="idle-in-transaction timeout"):
            await store.enqueue_pending_turn_input(said("y"))
        assert freed == [True]
        assert (await store.enqueue_pending_turn_input(said("y"))).admission_seq == 42


async def test_a_snapshot_is_held_for_as_long_as_its_reader_takes(own_ground: Ground) -> None:
    """Who reads slowly is no holder of a lane: a snapshot outlives the patience."""
    async with own_ground.factory(pool_size=1, patience_ms=HASTE_MS) as factory:
        await factory.create_store(S)
        async with factory.engine.snapshot() as snapshot:
            await asyncio.sleep(1.5 * HASTE_MS / 1000)
            assert await snapshot.read(lambda: directory.sid_of("s")) == 1
