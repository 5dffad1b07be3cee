"""Processes that are there to be killed, stopped and raced. Run as ``python -m tests.mortals URL``.

This process is a nursery: it imports everything once, forks a child for each line that it reads, and says on its output
who was born. A child has its own database connection and speaks in short lines, each written at once::

    born PID                      (the nursery)
    said PID SESSION TEXT         the submission was acknowledged
    lane PID SESSION TOKEN        the lane was granted
    done PID SESSION TEXT,…       the commit that settled these inputs was acknowledged
    lost PID SESSION ERROR        a turn was refused

``work`` makes a child run turns until it is killed. ``race`` and ``zombie`` make children that do one thing for each
further line that they read from a named pipe.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from fastness.conformance.builders import node, usage
from fastness.errors import BackendError, CommitOutcomeUnknownError, StoreError
from fastness.liveness import mint_owner
from fastness.model import (
    Acquired,
    Append,
    Busy,
    PendingTurnInputDraft,
    RuntimeCommit,
    RuntimePersistence,
    SessionExecutionLease,
    SessionStoreCreateRequest,
    TurnInput,
    TurnInputClaim,
    Unchanged,
)
from fastness.model.turn_input import NextTurn, TextItem
from fastness.persistence import open_database

T = TypeVar("T")

SESSIONS = ("a", "b")
TTL_MS = 60_000
ZOMBIE_TTL_MS = 700


def say(*words: object) -> None:
    """Write one line at once, whole: what is said before a kill arrives, what is not said did not happen."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


async def insist(call: Callable[[], Awaitable[T]], session_id: str) -> T:
    """Make a call again, unchanged, while the server is away or its answer is lost."""
    while True:
        try:
            return await call()
        except (BackendError, CommitOutcomeUnknownError) as error:
            say("lost", os.getpid(), session_id, type(error).__name__)
            await asyncio.sleep(0.02)


async def take_lane(store: RuntimePersistence, session_id: str) -> SessionExecutionLease | None:
    """Claim a lane, over the head of a holder that was killed; None: somebody alive has it."""
    owner = mint_owner("mortal")
    outcome = await insist(lambda: store.try_claim_session_execution_lease(session_id, owner, TTL_MS), session_id)
    if isinstance(outcome, Busy):
        observed = outcome.holder.fence()
        outcome = await insist(
            lambda: store.reclaim_session_execution_lease(session_id, owner, observed, TTL_MS), session_id
        )
    return outcome.lease if isinstance(outcome, Acquired) else None


def text_of(claim: TurnInputClaim) -> list[str]:
    """What the inputs of a claim say."""
    return [item.text for row in claim.inputs for item in row.input.items if isinstance(item, TextItem)]


async def settlement(
    store: RuntimePersistence, lease: SessionExecutionLease, claim: TurnInputClaim, turn_id: str
) -> RuntimeCommit:
    """The commit of a turn: a node for each input, one token of usage for each, the claim, the lane."""
    head = await store.load_head()
    leaf = head.leaf_node_id if head is not None else None
    nodes = []
    for text in text_of(claim):
        nodes.append(node(text, leaf, text))
        leaf = text
    made = RuntimeCommit(
        lease.session_id,
        None if head is None else head.revision,
        lease.fence(),
        lease.completion(),
        graph=Append(tuple(nodes), leaf) if nodes else Unchanged(leaf),
        usage_deltas=(usage(len(nodes)),),
    )
    return made.completing_turn_input_claim(claim).with_turn_commit(turn_id)


async def turn(store: RuntimePersistence, session_id: str, name: str) -> None:
    """Submit something, and settle what waits if the lane can be had."""
    draft = PendingTurnInputDraft(session_id, NextTurn(), TurnInput.of_text(name), None, name)
    await store.enqueue_pending_turn_input(draft)
    say("said", os.getpid(), session_id, name)
    lease = await take_lane(store, session_id)
    if lease is None:
        await asyncio.sleep(0.001)
        return
    say("lane", os.getpid(), session_id, lease.fencing_token)
    claim = await store.claim_next_turn_inputs(session_id, lease.fence(), max_inputs=5)
    if claim is None:
        await store.release_session_execution_lease(lease.completion())
        return
    await store.commit_runtime_state(await settlement(store, lease, claim, f"turn-{name}"))
    say("done", os.getpid(), session_id, ",".join(text_of(claim)))


async def work(url: str) -> None:
    """Run turns on all sessions in turn, for ever."""
    async with open_database(url) as factory:
        stores = {name: await factory.create_store(SessionStoreCreateRequest(name)) for name in SESSIONS}
        count = 0
        while True:
            for session_id, store in stores.items():
                count += 1
                try:
                    await turn(store, session_id, f"{session_id}-{os.getpid()}-{count}")
                except StoreError as error:
                    say("lost", os.getpid(), session_id, type(error).__name__)


async def race(url: str, orders: Path) -> None:
    """For each line: claim the lane, say what came of it, and give it back at the next line."""
    async with open_database(url) as factory:
        store = await factory.create_store(SessionStoreCreateRequest("a"))
        with orders.open() as lines:
            for _ in lines:
                outcome = await store.try_claim_session_execution_lease("a", mint_owner("racer"), TTL_MS)
                won = isinstance(outcome, Acquired)
                token = outcome.lease.fencing_token if isinstance(outcome, Acquired) else "Busy"
                say("lane" if won else "lost", os.getpid(), "a", token)
                lines.readline()
                if isinstance(outcome, Acquired):
                    await store.release_session_execution_lease(outcome.lease.completion())
                say("free", os.getpid(), "a", "-")


async def zombie(url: str, orders: Path) -> None:
    """Claim lane and input for a short time, and commit when a line comes, however late that is."""
    async with open_database(url) as factory:
        store = await factory.create_store(SessionStoreCreateRequest("a"))
        outcome = await store.try_claim_session_execution_lease("a", mint_owner("zombie"), ZOMBIE_TTL_MS)
        assert isinstance(outcome, Acquired)
        claim = await store.claim_next_turn_inputs("a", outcome.lease.fence(), max_inputs=5)
        assert claim is not None
        made = await settlement(store, outcome.lease, claim, "turn-zombie")
        say("lane", os.getpid(), "a", outcome.lease.fencing_token)
        with orders.open() as lines:
            lines.readline()
        try:
            await store.commit_runtime_state(made)
            say("done", os.getpid(), "a", ",".join(text_of(claim)))
        except StoreError as error:
            say("lost", os.getpid(), "a", type(error).__name__)


def live(role: str, url: str, *orders: Path) -> None:
    """Be what one was born for."""
    roles: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {
        "work": work,
        "race": race,
        "zombie": zombie,
    }
    asyncio.run(roles[role](url, *orders))


def nursery(url: str) -> None:
    """Fork a child for each line; bury those that are dead."""
    # What a child would import by itself it would import once for each kill.
    import fastness.engines.postgres  # noqa: F401, PLC0415

    # The pool tells its log of every connection that it could not make; a server that was killed needs no telling.
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)
    gc.freeze()
    for line in sys.stdin:
        role, *orders = line.split()
        while True:
            try:
                buried, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if not buried:
                break
        pid = os.fork()
        if pid:
            say("born", pid)
            continue
        sys.stdin.close()
        live(role, url, *map(Path, orders))
        os._exit(0)


if __name__ == "__main__":
    nursery(sys.argv[1])
