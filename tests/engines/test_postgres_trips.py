"""How many round trips an operation takes, counted on the wire between the engine and a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, NamedTuple

import msgspec
import pytest

from fastness.conformance.builders import (
    ALICE,
    TTL_MS,
    chain,
    checkpoint,
    command,
    commit,
    lane,
    owner,
    said,
    said_now,
    usage,
    work,
)
from fastness.model import FullGraph, SessionExecutionLease, SessionStoreCreateRequest
from fastness.persistence import PostgresSessionStoreFactory
from fastness.store import SessionStore
from tests.servers.postgres import shared_server
from tests.servers.proxy import Proxy


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    """A proxy that counts, before the server."""
    with Proxy.spawn(shared_server().url()) as made:
        yield made


class Scene(NamedTuple):
    """A session with its lane held, seen through a proxy; statements are prepared by an earlier round."""

    factory: PostgresSessionStoreFactory
    store: SessionStore
    lease: SessionExecutionLease
    proxy: Proxy

    async def trips(self, call: Callable[[], Awaitable[Any]]) -> int:
        """Count the round trips of a call."""
        self.proxy.reset()
        await call()
        return self.proxy.round_trips


async def _quietly(_channel: str) -> None:
    return None


@pytest.fixture
async def scene(proxy: Proxy) -> AsyncIterator[Scene]:
    """A database of its own, the lane of session s claimed."""
    server = shared_server()
    with server.database() as url:
        async with PostgresSessionStoreFactory(proxy.url(url), pool_size=1) as factory:
            store = await factory.create_store(SessionStoreCreateRequest("s"))
            lease = await lane(store)
            # Notices to other processes go out by themselves, some time after a commit: they are not what is counted.
            factory.engine._notices._tell = _quietly  # type: ignore[attr-defined]
            yield Scene(factory, store, lease, proxy)


async def settled(scene: Scene) -> int:
    """Commit the first turn, which a handle can know nothing about, and give the revision."""
    first = commit(scene.lease, None, *chain("a", "b"), usage_deltas=(usage(1, 2),), checkpoint=checkpoint(1))
    return (await scene.store.commit_runtime_state(first.with_turn_commit("t1"))).head_revision


async def full_turn(scene: Scene, revision: int, turn: int, leaf: str) -> Any:
    """A commit with nodes, checkpoint, usage, completed input and work."""
    await scene.store.enqueue_pending_turn_input(said(f"hello {turn}"))
    await scene.store.enqueue_queued_work(work())
    fence = scene.lease.fence()
    inputs = await scene.store.claim_next_turn_inputs("s", fence, max_inputs=1)
    batches = await scene.store.claim_ready_queued_work("s", fence, boundary="idle", max_batches=1)
    assert inputs is not None
    assert batches is not None
    nodes = chain(f"n{turn}", f"m{turn}", after=leaf)
    fields = {"usage_deltas": (usage(3, 4),), "checkpoint": checkpoint(turn, tool_state=b"%d" % turn)}
    made = commit(scene.lease, revision, *nodes, **fields)
    return made.completing_turn_input_claim(inputs).completing_queue_claim(batches).with_turn_commit(f"t{turn}")


async def test_a_commit_takes_one_round_trip(scene: Scene) -> None:
    """The handle that committed last knows what its next commit will find, and does not wait to be told."""
    revision = await settled(scene)
    counted = []
    for turn in (2, 3):
        made = await full_turn(scene, revision, turn, "b" if turn == 2 else f"m{turn - 1}")
        counted.append(await scene.trips(lambda made=made: scene.store.commit_runtime_state(made)))  # type: ignore[misc]
        revision += 1
    assert counted == [1, 1]


async def test_a_commit_is_three_statements_and_one_end(scene: Scene) -> None:
    """The lock, the facts and the writes, each bound, described and executed; the end of the pipeline commits them."""
    revision = await settled(scene)
    for turn, leaf in ((2, "b"), (3, "m2")):
        await scene.store.commit_runtime_state(await full_turn(scene, revision, turn, leaf))
        revision += 1
    made = await full_turn(scene, revision, 4, "m3")
    await scene.trips(lambda: scene.store.commit_runtime_state(made))
    sent = "".join(burst.kinds for burst in scene.proxy.trace if burst.direction == ">")
    assert sent == "BDE" * 3 + "S"


async def test_a_commit_after_a_load_takes_one_round_trip(scene: Scene) -> None:
    """A handle on another machine, that loaded the session, knows as much."""
    revision = await settled(scene)
    other = await scene.factory.open_existing_store(SessionStoreCreateRequest("s"))
    assert other is not None
    await other.load_session(FullGraph())
    made = await full_turn(scene, revision, 2, "b")
    assert await scene.trips(lambda: other.commit_runtime_state(made)) == 1


async def test_a_commit_of_a_handle_that_knows_nothing_takes_two_round_trips(scene: Scene) -> None:
    """Facts are asked for in one trip, and what was decided on them is written in the next."""
    revision = await settled(scene)
    other = await scene.factory.open_existing_store(SessionStoreCreateRequest("s"))
    assert other is not None
    made = await full_turn(scene, revision, 2, "b")
    assert await scene.trips(lambda: other.commit_runtime_state(made)) == 2


async def test_a_commit_on_knowledge_that_is_out_of_date_takes_three_round_trips(scene: Scene) -> None:
    """The server refuses the writes; they are decided anew on the facts, and nothing is lost but one trip."""
    revision = await settled(scene)
    other = await scene.factory.open_existing_store(SessionStoreCreateRequest("s"))
    assert other is not None
    await other.load_session(FullGraph())
    made = await full_turn(scene, revision, 2, "b")
    await scene.store.commit_runtime_state(made)
    replayed = []

    async def send_again() -> None:
        replayed.append(await other.commit_runtime_state(made))

    assert await scene.trips(send_again) <= 3
    assert [result.replayed for result in replayed] == [True]


async def test_a_commit_with_an_outbox_takes_two_round_trips(scene: Scene) -> None:
    """However much it enqueues, and for however many sessions; bringing new ones to life takes one more."""
    revision = await settled(scene)
    await scene.store.enqueue_pending_turn_input(said("first", session_id="other"))
    counted = []
    for turn, names in ((2, ("s", "other", "other")), (3, ("s", "new", "newer"))):
        drafts = [said(f"{at}", session_id=name, key=f"k{turn}{at}") for at, name in enumerate(names)]
        leaf = "b" if turn == 2 else "m2"
        made = msgspec.structs.replace(await full_turn(scene, revision, turn, leaf), turn_commit=None)
        made = made.with_outbox(*drafts, work(session_id=names[-1])).with_turn_commit(f"t{turn}")
        counted.append(await scene.trips(lambda made=made: scene.store.commit_runtime_state(made)))  # type: ignore[misc]
        revision += 1
    assert counted == [2, 3]
    waiting = [len(await scene.store.list_pending_turn_inputs(name)) for name in ("other", "new", "newer")]
    assert waiting == [3, 1, 1]


async def test_renewal_and_release_take_one_round_trip(scene: Scene) -> None:
    """A holder shows the lease that it expects to find."""
    store, lease = scene.store, scene.lease
    assert await scene.trips(lambda: store.renew_session_execution_lease(lease.fence(), TTL_MS)) == 1
    assert await scene.trips(lambda: store.renew_session_execution_lease(lease.fence(), TTL_MS)) == 1
    assert await scene.trips(lambda: store.release_session_execution_lease(lease.completion())) == 1


async def test_everything_else_that_a_turn_needs_takes_at_most_two_round_trips(scene: Scene) -> None:
    """Lease operations, claims and enqueues, of the handle's own session, of another one, and of one that is new."""
    store, fence, bob = scene.store, scene.lease.fence(), owner("bob")
    await store.enqueue_pending_turn_input(said("other", session_id="other"))
    command_lease = await lane(store, ALICE, session_id="other")
    await store.enqueue_queued_work(work(command(), session_id="other"))
    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "enqueue": lambda: store.enqueue_pending_turn_input(said("a", key="k")),
        "enqueue again": lambda: store.enqueue_pending_turn_input(said("a", key="k")),
        "enqueue for a turn": lambda: store.enqueue_pending_turn_input(said_now("b", "t1")),
        "enqueue elsewhere": lambda: store.enqueue_pending_turn_input(said("c", session_id="other")),
        "enqueue for a new session": lambda: store.enqueue_pending_turn_input(said("c", session_id="new")),
        "enqueue work": lambda: store.enqueue_queued_work(work(key="k")),
        "enqueue work elsewhere": lambda: store.enqueue_queued_work(work(session_id="newer")),
        "claim the lane again": lambda: store.try_claim_session_execution_lease("s", ALICE, TTL_MS),
        "claim a lane that is busy": lambda: store.try_claim_session_execution_lease("other", bob, TTL_MS),
        "claim the lane of a new session": lambda: store.try_claim_session_execution_lease("newest", bob, TTL_MS),
        "renew elsewhere": lambda: store.renew_session_execution_lease(command_lease.fence(), TTL_MS),
        "claim a command": lambda: store.claim_leading_ready_session_command("other", command_lease.fence()),
    }
    counted = {name: await scene.trips(call) for name, call in calls.items()}
    # Claiming the lane again made a fresh entry: the claims are made under it.
    fence = (await lane(store)).fence()
    claims: dict[str, Callable[[], Awaitable[Any]]] = {
        "claim next input": lambda: store.claim_next_turn_inputs("s", fence, max_inputs=5),
        "claim active input": lambda: store.claim_active_turn_inputs(
            "s", fence, turn_id="t1", checkpoint="after_work", max_inputs=5
        ),
        "claim work": lambda: store.claim_ready_queued_work("s", fence, boundary="idle", max_batches=5),
        "claim nothing": lambda: store.claim_ready_queued_work("s", fence, boundary="idle", max_batches=5),
    }
    counted |= {name: await scene.trips(call) for name, call in claims.items()}
    assert {name: trips for name, trips in counted.items() if trips > 2} == {}
    assert len(counted) == 16


async def test_a_load_takes_two_round_trips(scene: Scene) -> None:
    """The head and what hangs on it, then the nodes and the checkpoint's contents."""
    await settled(scene)
    assert await scene.trips(lambda: scene.store.load_session(FullGraph())) == 2
    assert await scene.trips(scene.store.load_head) == 1
