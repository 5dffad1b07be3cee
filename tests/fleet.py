"""A fleet: one producer of input for many sessions, and workers that settle it and wake each other's sessions.

All of it survives the death of whoever runs it and of the server: a call whose outcome is unknown is made again, the
producer begins anew and submits everything under the same keys, and a turn that nobody settled is somebody else's.
What a turn writes says all that an audit needs: a node for each input and each wake that it settled, named after its
source key, with the fencing token as its text, and one token of usage.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastness.conformance.builders import node, usage
from fastness.errors import BackendError, CommitOutcomeUnknownError, StoreError
from fastness.liveness import mint_owner
from fastness.model import (
    Acquired,
    Append,
    Busy,
    PayloadDefault,
    PendingTurnInputDraft,
    ProcessWake,
    QueuedWorkBatchDraft,
    QueuedWorkClaim,
    RuntimeCommit,
    RuntimePersistence,
    SessionExecutionLease,
    SessionStoreCreateRequest,
    TurnInput,
    TurnInputClaim,
    raw_json,
)
from fastness.model.turn_input import NextTurn, TextItem
from fastness.persistence import open_database
from fastness.sql.program import Program, Read, Statement

T = TypeVar("T")

SESSIONS = 200
INPUTS = 3
"""For each session."""
TTL_MS = 60_000
AT_ONCE = 2
"""How many inputs and wakes a turn takes, so that a session needs several turns."""


def say(*words: object) -> None:
    """Write one line at once, whole: what is said before a kill arrives, what is not said did not happen."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def session_name(number: int) -> str:
    """The id of one of the sessions."""
    return f"s{number}"


def input_key(session_id: str, count: int) -> str:
    """The source key and the text of an input."""
    return f"{session_id}/{count}"


def wake_key(first_input: str) -> str:
    """The source key of the wake that the turn sends which settles this input first."""
    return f"wake:{first_input}"


def neighbour(session_id: str) -> str:
    """The session that the turns of a session wake."""
    return session_name((int(session_id[1:]) * 7 + 1) % SESSIONS)


async def insist(call: Callable[[], Awaitable[T]], session_id: str = "-") -> T:
    """Make a call again, unchanged, while the server is away or its answer is lost."""
    while True:
        try:
            return await call()
        except (BackendError, CommitOutcomeUnknownError) as error:
            say("lost", os.getpid(), session_id, type(error).__name__)
            await asyncio.sleep(0.02)


async def feed(url: str) -> None:
    """Submit all input, round by round, and stay to be killed."""
    async with open_database(url) as factory:
        store = await insist(lambda: factory.create_store(SessionStoreCreateRequest(session_name(0))))
        for count in range(INPUTS):
            for number in range(SESSIONS):
                session_id = session_name(number)
                key = input_key(session_id, count)
                draft = PendingTurnInputDraft(session_id, NextTurn(), TurnInput.of_text(key), None, key)
                await insist(lambda draft=draft: store.enqueue_pending_turn_input(draft))  # type: ignore[misc]
                say("said", os.getpid(), session_id, key)
    say("fed", os.getpid(), "-", "-")
    nursery = os.getppid()
    while os.getppid() == nursery:
        await asyncio.sleep(0.1)


def waiting() -> Program[list[str]]:
    """A program that reads which sessions have something that is not settled, held or not."""
    sql = """
        select session_id from session
        where sid in (select sid from turn_input) or sid in (select sid from queued_work)"""
    (rows,) = yield Read(Statement(sql, ()))
    return [session_id for (session_id,) in rows]


async def serve(url: str) -> None:
    """Settle what waits, anywhere, for ever."""
    chance = random.Random(os.getpid())
    async with open_database(url) as factory:
        while True:
            ready = await insist(lambda: factory.engine.read(waiting))
            if not ready:
                say("idle", os.getpid(), "-", "-")
                await asyncio.sleep(0.02)
            for session_id in chance.sample(ready, min(len(ready), 8)):
                request = SessionStoreCreateRequest(session_id)
                store = await insist(lambda request=request: factory.create_store(request))  # type: ignore[misc]
                try:
                    await turn(store, session_id)
                except StoreError as error:
                    say("lost", os.getpid(), session_id, type(error).__name__)


async def take_lane(store: RuntimePersistence, session_id: str, ttl_ms: int = TTL_MS) -> SessionExecutionLease | None:
    """Claim a lane, over the head of a holder that was killed; None: somebody alive has it."""
    owner = mint_owner("mortal")
    outcome = await insist(lambda: store.try_claim_session_execution_lease(session_id, owner, ttl_ms), session_id)
    if isinstance(outcome, Busy):
        observed = outcome.holder.fence()
        outcome = await insist(
            lambda: store.reclaim_session_execution_lease(session_id, owner, observed, ttl_ms), session_id
        )
    return outcome.lease if isinstance(outcome, Acquired) else None


async def turn(store: RuntimePersistence, session_id: str) -> None:
    """Settle some of what waits in a session, if its lane can be had."""
    lease = await take_lane(store, session_id)
    if lease is None:
        return
    say("lane", os.getpid(), session_id, lease.fencing_token)
    fence = lease.fence()
    inputs = await insist(lambda: store.claim_next_turn_inputs(session_id, fence, max_inputs=AT_ONCE), session_id)
    wakes = await insist(
        lambda: store.claim_ready_queued_work(session_id, fence, boundary="idle", max_batches=AT_ONCE), session_id
    )
    if inputs is None and wakes is None:
        await insist(lambda: store.release_session_execution_lease(lease.completion()), session_id)
        return
    made = await insist(lambda: settlement(store, lease, inputs, wakes), session_id)
    await insist(lambda: store.commit_runtime_state(made), session_id)
    say("done", os.getpid(), session_id, ",".join(text_of(inputs) + keys_of(wakes)))


async def settlement(
    store: RuntimePersistence,
    lease: SessionExecutionLease,
    inputs: TurnInputClaim | None,
    wakes: QueuedWorkClaim | None,
) -> RuntimeCommit:
    """The commit of a turn: nodes, usage, claims and lane, and a wake where it settles what a user said."""
    head = await store.load_head()
    leaf = None if head is None else head.leaf_node_id
    nodes = []
    for key in text_of(inputs) + keys_of(wakes):
        nodes.append(node(key, leaf, str(lease.fencing_token)))
        leaf = key
    made = RuntimeCommit(
        lease.session_id,
        None if head is None else head.revision,
        lease.fence(),
        lease.completion(),
        graph=Append(tuple(nodes), leaf),
        usage_deltas=(usage(1),),
    )
    if inputs is not None:
        made = made.completing_turn_input_claim(inputs).with_outbox(wake(lease.session_id, text_of(inputs)[0]))
    if wakes is not None:
        made = made.completing_queue_claim(wakes)
    return made.with_turn_commit(f"turn-{os.getpid()}-{lease.fencing_token}")


def wake(session_id: str, first_input: str) -> QueuedWorkBatchDraft:
    """What a turn sends to another session."""
    news = ProcessWake(raw_json({"from": session_id}))
    return QueuedWorkBatchDraft(
        neighbour(session_id), "earliest_safe_boundary", "join", (news,), PayloadDefault(), wake_key(first_input)
    )


def text_of(claim: TurnInputClaim | None) -> list[str]:
    """What the inputs of a claim say."""
    rows = () if claim is None else claim.inputs
    return [item.text for row in rows for item in row.input.items if isinstance(item, TextItem)]


def keys_of(claim: QueuedWorkClaim | None) -> list[str]:
    """The source keys of the batches of a claim."""
    return [] if claim is None else [str(batch.source_key) for batch in claim.batches]
