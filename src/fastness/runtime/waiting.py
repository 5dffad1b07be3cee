"""Waiting for a lane that somebody else holds, and taking it over where its holder's process is provably dead.

It knows no database: how the lane is claimed and how one waits is all that it is given.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Generic, Protocol, TypeVar

from fastness.errors import ContendedError, StoreError
from fastness.liveness import mint_owner
from fastness.model import (
    Acquired,
    Busy,
    LeaseOwnerIdentity,
    LeaseTimings,
    LocalProcess,
    SessionExecutionLease,
    SessionExecutionLeaseClaimOutcome,
    SessionExecutionLeaseFence,
    SessionExecutionLeaseStore,
)
from fastness.runtime.lane import LaneKeeper

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0


class Granted(Protocol):
    """Any outcome of a claim that brings the lane."""

    @property
    def lease(self) -> SessionExecutionLease:
        """The grant."""
        ...


G = TypeVar("G", bound=Granted)
Claim = Callable[[LeaseOwnerIdentity, SessionExecutionLeaseFence | None], Awaitable[G | Busy]]
"""Claims a lane for an owner, over the head of the given holder where that is provably dead."""
Wait = Callable[[float], Awaitable[object]]
"""Waits so many seconds, or less where something happened that may concern whoever waits."""


T = TypeVar("T")
_returning: set[asyncio.Task[None]] = set()


async def granted(asking: Awaitable[T], give_back: Callable[[T], Awaitable[object]]) -> T:
    """Wait for the answer to a claim. Whoever is cancelled meanwhile is so at once, and keeps nothing.

    What the answer brings is given back in the background: a lane that nobody knows to have would be held in vain for
    as long as a lease lives.
    """
    answer = asyncio.ensure_future(asking)
    try:
        return await asyncio.shield(answer)
    except asyncio.CancelledError:
        returning = asyncio.create_task(_return(answer, give_back))
        _returning.add(returning)
        returning.add_done_callback(_returning.discard)
        raise


async def _return(answer: Awaitable[T], give_back: Callable[[T], Awaitable[object]]) -> None:
    # It expires by itself where it cannot be given back.
    with contextlib.suppress(StoreError):
        await give_back(await answer)


async def all_given_back() -> None:
    """Wait until everything is back that was granted to somebody who did not wait for it."""
    here = asyncio.get_running_loop()
    pending = [task for task in _returning if task.get_loop() is here]
    if pending:
        await asyncio.wait(pending)


class Entry(Generic[G]):
    """A lane that was claimed: what came of it, and when it was asked for, on the clock of the event loop."""

    def __init__(self, outcome: G, asked_at: float) -> None:
        self.outcome = outcome
        self.asked_at = asked_at


async def enter(
    session_id: str,
    owner: LeaseOwnerIdentity,
    claim: Claim[G],
    *,
    give_back: Callable[[G], Awaitable[object]],
    wait_s: float | None,
    wait: Wait = asyncio.sleep,
) -> Entry[G]:
    """Claim a lane, waiting ``wait_s`` seconds at most (None: as long as it takes) for whoever holds it.

    ``give_back`` is what is done with a grant for which nobody waits any more. Raises ``ContendedError`` where the wait
    was in vain.
    """

    async def undo(entry: Entry[G] | Busy) -> None:
        """Give back what was granted, if anything was."""
        if isinstance(entry, Entry):
            await give_back(entry.outcome)

    loop = asyncio.get_running_loop()
    started, pause = loop.time(), _FIRST_PAUSE_S
    while True:
        asked_at = loop.time()
        entry = await granted(_once(owner, claim, asked_at), undo)
        if isinstance(entry, Entry):
            return entry
        waited_s = loop.time() - started
        left_s = pause if wait_s is None else wait_s - waited_s
        if left_s <= 0:
            holder = entry.holder.owner.owner_id
            raise ContendedError(f"the lane of session {session_id!r} is held by {holder!r}", int(waited_s * 1000))
        await wait(min(left_s, pause * (0.5 + random.random())))  # noqa: S311 - jitter
        pause = min(2 * pause, _LONGEST_PAUSE_S)


async def _once(owner: LeaseOwnerIdentity, claim: Claim[G], asked_at: float) -> Entry[G] | Busy:
    """Ask once; where the holder lives on this host, also whether it still does."""
    outcome = await claim(owner, None)
    if isinstance(outcome, Busy) and isinstance(outcome.holder.owner.liveness, LocalProcess):
        outcome = await claim(owner, outcome.holder.fence())
    return outcome if isinstance(outcome, Busy) else Entry(outcome, asked_at)


@asynccontextmanager
async def hold_lane(
    store: SessionExecutionLeaseStore,
    session_id: str,
    *,
    owner_id: str | None = None,
    timings: LeaseTimings | None = None,
    wait_s: float | None = None,
    wait: Wait = asyncio.sleep,
) -> AsyncIterator[LaneKeeper]:
    """Hold the lane of a session while a block runs, for whoever writes commits of their own.

    Raises what ``enter`` and ``LaneKeeper`` raise.
    """
    ttl_ms = (timings or LeaseTimings()).ttl_ms

    async def claim(
        owner: LeaseOwnerIdentity, observed: SessionExecutionLeaseFence | None
    ) -> SessionExecutionLeaseClaimOutcome:
        """Claim the lane alone."""
        if observed is None:
            return await store.try_claim_session_execution_lease(session_id, owner, ttl_ms)
        return await store.reclaim_session_execution_lease(session_id, owner, observed, ttl_ms)

    async def give_back(outcome: Acquired) -> None:
        """Release it."""
        await store.release_session_execution_lease(outcome.lease.completion())

    owner = mint_owner(owner_id)
    entry = await enter(session_id, owner, claim, give_back=give_back, wait_s=wait_s, wait=wait)
    async with LaneKeeper(store, entry.outcome.lease, asked_at=entry.asked_at, timings=timings) as lane:
        yield lane
