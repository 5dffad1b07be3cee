"""The lane keeper: a lease that is claimed, renewed in the background, and given back.

It promises that the code inside is cancelled as soon as the lease is lost, or can no longer be known to be held, and
that the error then names what happened. It never lets two blocks of one process share a lease: each is a holder of its
own. It writes nothing, and knows no database: a store of leases and a way to wait are all that it is given.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from fastness.errors import ContendedError, LeaseExpiredError, SessionDeletedError, StoreError
from fastness.liveness import mint_owner
from fastness.model import (
    Acquired,
    LeaseTimings,
    LocalProcess,
    SessionExecutionLease,
    SessionExecutionLeaseClaimOutcome,
    SessionExecutionLeaseStore,
)

logger = logging.getLogger("fastness.lane")

Wait = Callable[[float], Awaitable[object]]
"""Waits so many seconds, or less where something happened that may concern whoever waits."""

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0
_RETRY_PAUSE_S = 0.25


class LaneKeeper:
    """Holds the lane of one session while an ``async with`` block runs.

    A lane that somebody else holds is waited for, ``wait_s`` seconds at most (None: as long as it takes), and taken
    over at once where its holder's process is provably dead. ``fencing_token`` and ``lease`` say under which grant the
    block runs. Raises ``ContendedError`` where the wait was in vain, and on leaving ``LeaseExpiredError`` or
    ``SessionDeletedError`` in the place of the cancellation that the loss of the lane has caused.
    """

    def __init__(
        self,
        store: SessionExecutionLeaseStore,
        session_id: str,
        *,
        owner_id: str | None = None,
        timings: LeaseTimings | None = None,
        wait_s: float | None = None,
        wait: Wait = asyncio.sleep,
    ) -> None:
        self.session_id = session_id
        self.lost: StoreError | None = None
        self.taken_over = False
        self.stall_count = 0
        self._store = store
        self._owner = mint_owner(owner_id)
        self._timings = timings or LeaseTimings()
        self._wait_s = wait_s
        self._wait = wait
        self._lease: SessionExecutionLease | None = None
        self._held_until = 0.0
        self._released = False
        self._keeper: asyncio.Task[None] | None = None
        self._body: asyncio.Task[object] | None = None
        self._cancelled_before = 0

    @property
    def lease(self) -> SessionExecutionLease:
        """The lease as it was seen last."""
        assert self._lease is not None, "the lane is held inside of the block only"
        return self._lease

    @property
    def fencing_token(self) -> int:
        """The number of this grant: greater than that of any holder before."""
        return self.lease.fencing_token

    async def __aenter__(self) -> Self:
        self._body = asyncio.current_task()
        assert self._body is not None
        self._cancelled_before = self._body.cancelling()
        await self._acquire()
        self._keeper = asyncio.create_task(self._keep(), name=f"lane of {self.session_id}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._keeper is not None
        assert self._body is not None
        self._keeper.cancel()
        if self.lost is None:
            await self._release()
            return
        others = self._body.uncancel() > self._cancelled_before
        if error is None or (isinstance(error, asyncio.CancelledError) and not others):
            # Nobody but the keeper has cancelled the block: what is told is why it did.
            raise self.lost from error

    def settled(self) -> None:
        """Say that a commit has given the lane back already."""
        self._released = True

    def require(self) -> None:
        """Raise the error that says so if the lane was lost."""
        if self.lost is not None:
            raise self.lost

    async def reenter(self) -> SessionExecutionLease:
        """Claim the lane again as the same holder, after an answer was lost. Raises ``LeaseExpiredError``."""
        asked_at = asyncio.get_running_loop().time()
        outcome = await self._store.try_claim_session_execution_lease(
            self.session_id, self._owner, self._timings.ttl_ms
        )
        if not isinstance(outcome, Acquired):
            successor = outcome.holder.owner.owner_id
            raise LeaseExpiredError(self.session_id, self.fencing_token, "superseded", successor)
        self._hold(outcome.lease, asked_at)
        return outcome.lease

    # --- getting it ---

    async def _acquire(self) -> None:
        loop = asyncio.get_running_loop()
        started, pause = loop.time(), _FIRST_PAUSE_S
        while True:
            asked_at = loop.time()
            outcome = await self._claim()
            if isinstance(outcome, Acquired):
                self._hold(outcome.lease, asked_at)
                return
            waited_s = loop.time() - started
            left_s = pause if self._wait_s is None else self._wait_s - waited_s
            if left_s <= 0:
                holder = outcome.holder.owner.owner_id
                raise ContendedError(
                    f"the lane of session {self.session_id!r} is held by {holder!r}", int(waited_s * 1000)
                )
            await self._wait(min(left_s, pause * (0.5 + random.random())))  # noqa: S311 - jitter
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    async def _claim(self) -> SessionExecutionLeaseClaimOutcome:
        """Ask once; where the holder lives on this host, also whether it still does."""
        ttl_ms = self._timings.ttl_ms
        outcome = await self._store.try_claim_session_execution_lease(self.session_id, self._owner, ttl_ms)
        if isinstance(outcome, Acquired) or not isinstance(outcome.holder.owner.liveness, LocalProcess):
            return outcome
        holder = outcome.holder
        outcome = await self._store.reclaim_session_execution_lease(
            self.session_id, self._owner, holder.fence(), ttl_ms
        )
        if isinstance(outcome, Acquired):
            self.taken_over = True
            logger.warning(
                "took the lane of session %s from %s, which did not give it back",
                self.session_id,
                holder.owner.owner_id,
                extra=self._facts(outcome.lease),
            )
        return outcome

    def _hold(self, lease: SessionExecutionLease, asked_at: float) -> None:
        # The database counts from when it granted, which was not before it was asked.
        self._lease = lease
        self._held_until = asked_at + self._timings.ttl.total_seconds()

    # --- keeping it ---

    async def _keep(self) -> None:
        """Renew until the end of the block, or until the lane is lost."""
        loop = asyncio.get_running_loop()
        interval = self._timings.renew_interval.total_seconds()
        next_at = loop.time() + interval
        while self.lost is None:
            await asyncio.sleep(next_at - loop.time())
            self._notice_stall(loop.time() - next_at, interval)
            asked_at = loop.time()
            try:
                async with asyncio.timeout_at(max(self._held_until, asked_at + _RETRY_PAUSE_S)):
                    lease = await self._store.renew_session_execution_lease(self.lease.fence(), self._timings.ttl_ms)
            except TimeoutError as error:
                self._not_renewed(error, loop.time())
            except (LeaseExpiredError, SessionDeletedError) as error:
                self._lose(error)
            except StoreError as error:
                self._not_renewed(error, loop.time())
                next_at = min(loop.time() + _RETRY_PAUSE_S, self._held_until)
            else:
                self._hold(lease, asked_at)
                next_at = asked_at + interval

    def _notice_stall(self, late_s: float, interval_s: float) -> None:
        if late_s > interval_s / 2:
            self.stall_count += 1
            logger.warning(
                "the event loop was blocked for %.1f s, and the lane of session %s was not renewed meanwhile;"
                " move blocking calls of the turn to a thread",
                late_s,
                self.session_id,
                extra=self._facts(self.lease),
            )

    def _not_renewed(self, error: Exception, now: float) -> None:
        if now < self._held_until:
            logger.warning(
                "could not renew the lane of session %s, trying again: %s",
                self.session_id,
                error,
                extra=self._facts(self.lease),
            )
            return
        gone = LeaseExpiredError(self.session_id, self.fencing_token, "expired: it could not be renewed in time")
        gone.__cause__ = error
        self._lose(gone)

    def _lose(self, error: StoreError) -> None:
        self.lost = error
        assert self._body is not None
        self._body.cancel()

    async def _release(self) -> None:
        if not self._released and self._lease is not None:
            # It expires by itself where it cannot be given back.
            with contextlib.suppress(StoreError):
                await self._store.release_session_execution_lease(self._lease.completion())

    def _facts(self, lease: SessionExecutionLease) -> dict[str, object]:
        return {"session_id": self.session_id, "fencing_token": lease.fencing_token}
