"""A commit that is decided ahead, on the facts that its handle expects, ends like one that is decided on the facts."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastness.conformance.builders import (
    ALICE,
    BOB,
    TTL_MS,
    chain,
    checkpoint,
    claim_inputs,
    claim_work,
    commit,
    content_id,
    intent,
    lane,
    release,
    said,
    texts,
    usage,
    work,
)
from fastness.engines import postgres_run
from fastness.errors import StoreError
from fastness.model import (
    Acquired,
    FullGraph,
    QueuedWorkClaim,
    RuntimeCommit,
    SessionExecutionLease,
    SessionMeta,
    SessionStoreCreateRequest,
    TurnInputClaim,
    Unchanged,
)
from fastness.persistence import PostgresSessionStoreFactory
from fastness.store import SessionStore
from tests.engines.postgres_lab import Ground

KNOWN, UNKNOWN = content_id("known"), content_id("unknown")
_MINTED = re.compile(r"\b[0-9a-f]{12}(?:[0-9a-f]{20})?\b|(?<=created_at=.)[^']+")


class World(NamedTuple):
    """A session with a first turn, a lane that is held, and claims; another handle sees to what comes between."""

    store: SessionStore
    other: SessionStore
    lease: SessionExecutionLease
    inputs: TurnInputClaim
    batches: QueuedWorkClaim


class Plan(NamedTuple):
    """What happens behind the handle's back, and what it then commits."""

    between: tuple[str, ...]
    revision: int
    nodes: tuple[str, ...]
    after: str
    tool_state: bytes | None
    counts: bool
    completes: bool
    attachment: str | None
    stamp: str | None
    releases: bool


async def _renew(world: World) -> None:
    await world.other.renew_session_execution_lease(world.lease.fence(), TTL_MS)


async def _enter_again(world: World) -> None:
    await world.other.try_claim_session_execution_lease("s", ALICE, TTL_MS)


async def _give_back(world: World) -> None:
    await release(world.other, world.lease)


async def _lose(world: World) -> None:
    await release(world.other, world.lease)
    await world.other.try_claim_session_execution_lease("s", BOB, TTL_MS)


async def _take_a_turn(world: World) -> None:
    await release(world.other, world.lease)
    outcome = await world.other.try_claim_session_execution_lease("s", BOB, TTL_MS)
    if isinstance(outcome, Acquired):
        done = outcome.lease.completion()
        made = commit(outcome.lease, 1, *chain("z", after="b"), release_session_execution_lease=done)
        await world.other.commit_runtime_state(made)


async def _abandon(world: World) -> None:
    await world.other.abandon_turn_input_claim(world.inputs)


async def _hide(world: World) -> None:
    await world.other.tombstone_nodes(["b"])


async def _forget(world: World) -> None:
    await world.other.forget("s", KNOWN)


async def _describe(world: World) -> None:
    meta = await world.other.load_session_meta()
    assert isinstance(meta, SessionMeta)
    await world.other.save_session_meta(msgspec.structs.replace(meta, session_name="another"))


async def _say_more(world: World) -> None:
    await world.other.enqueue_pending_turn_input(said("more"))


BETWEEN: dict[str, Callable[[World], Awaitable[None]]] = {
    "renew": _renew,
    "enter again": _enter_again,
    "give back": _give_back,
    "lose": _lose,
    "take a turn": _take_a_turn,
    "abandon": _abandon,
    "hide": _hide,
    "forget": _forget,
    "describe": _describe,
    "say more": _say_more,
}
plans = st.builds(
    Plan,
    between=st.lists(st.sampled_from(sorted(BETWEEN)), max_size=2, unique=True).map(tuple),
    revision=st.sampled_from([1, 1, 1, 2]),
    nodes=st.sampled_from([(), ("c",), ("c", "d", "e"), tuple(f"n{at}" for at in range(70)), ("a",)]),
    after=st.sampled_from(["b", "b", "b", "a", "nowhere"]),
    tool_state=st.sampled_from([None, b"first", b"second"]),
    counts=st.booleans(),
    completes=st.booleans(),
    attachment=st.sampled_from([None, None, KNOWN, UNKNOWN]),
    stamp=st.sampled_from(["t2", "t2", None, "t1"]),
    releases=st.booleans(),
)


async def _world(factory: PostgresSessionStoreFactory, *, knows: bool) -> World:
    """Prepare the session. A handle that ``knows`` is the one that committed its first turn."""
    request = SessionStoreCreateRequest("s")
    first = await factory.create_store(request)
    lease = await lane(first)
    await first.enqueue_pending_turn_input(said("hello"))
    await first.enqueue_queued_work(work())
    await first.record_intent(intent(KNOWN))
    settled = commit(lease, None, *chain("a", "b"), usage_deltas=(usage(1, 2),), checkpoint=checkpoint(1))
    await first.commit_runtime_state(settled.with_turn_commit("t1"))
    inputs, batches = await claim_inputs(first, lease), await claim_work(first, lease)
    other = await factory.open_existing_store(request)
    stranger = await factory.open_existing_store(request)
    assert other is not None
    assert stranger is not None
    return World(first if knows else stranger, other, lease, inputs, batches)


def _commit(world: World, plan: Plan) -> RuntimeCommit:
    fields: dict[str, Any] = {}
    if plan.tool_state is not None:
        fields["checkpoint"] = checkpoint(2, tool_state=plan.tool_state)
    if plan.counts:
        fields["usage_deltas"] = (usage(3, 4), usage(5, source="tool"))
    if plan.attachment is not None:
        fields["committed_attachment_ids"] = (plan.attachment,)
    nodes = chain(*plan.nodes, after=plan.after) if plan.nodes else ()
    if not nodes:
        fields["graph"] = Unchanged(plan.after)
    made = commit(world.lease, plan.revision, *nodes, **fields)
    if plan.completes:
        made = made.completing_turn_input_claim(world.inputs).completing_queue_claim(world.batches)
    if plan.releases:
        made = made.releasing_session_execution_lease(world.lease.completion())
    return made if plan.stamp is None else made.with_turn_commit(plan.stamp)


async def _played(factory: PostgresSessionStoreFactory, plan: Plan, *, knows: bool) -> list[str]:
    """Play a plan in a new session: what its commit came to, and what there is afterwards."""
    try:
        return await _play(await _world(factory, knows=knows), plan)
    finally:
        await factory.delete_session("s")


async def _play(world: World, plan: Plan) -> list[str]:
    for name in plan.between:
        with suppress(StoreError):  # of two, the first may stand in the way of the second
            await BETWEEN[name](world)
    try:
        outcome: object = await world.store.commit_runtime_state(_commit(world, plan))
    except StoreError as error:
        outcome = (type(error).__name__, str(error))
    read = await world.other.load_session(FullGraph())
    assert read is not None
    nodes = msgspec.json.encode(read.graph.nodes)
    settled = (read.head, read.graph.leaf_node_id, read.checkpoint, nodes)
    waiting = texts(await world.other.list_pending_turn_inputs("s"))
    left = len(await world.other.list_queued_work("s"))
    holder = await world.other.observe_session_execution_lease("s")
    held = [await world.other.holds_ref("s", each) for each in (KNOWN, UNKNOWN)]
    who = None if holder is None else (holder.owner.owner_id, holder.fencing_token)
    return [_MINTED.sub("…", repr(each)) for each in (outcome, settled, waiting, left, who, held)]


def test_a_commit_that_is_decided_ahead_ends_like_one_that_is_decided_on_the_facts(ground: Ground) -> None:
    """Whatever came between and whatever is committed: one result, or one error, and the same rows afterwards."""
    seen = Counter[str]()
    speculate = postgres_run.Attempt._speculate

    async def counted(*given: Any) -> Any:
        outcome = await speculate(*given)
        seen["wrong" if outcome is None else "right"] += 1
        return outcome

    with asyncio.Runner() as runner:
        factory = ground.factory(pool_size=1)

        @settings(
            max_examples=200,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(plans)
        def holds(plan: Plan) -> None:
            ahead = runner.run(_played(factory, plan, knows=True))
            assert ahead == runner.run(_played(factory, plan, knows=False))
            seen["landed"] += ahead[0].startswith("RuntimeCommitResult")

        postgres_run.Attempt._speculate = counted  # type: ignore[method-assign,assignment]
        try:
            holds()
        finally:
            postgres_run.Attempt._speculate = speculate  # type: ignore[method-assign]
            runner.run(factory.close())
    assert min(seen["wrong"], seen["right"], seen["landed"]) >= 10, seen
