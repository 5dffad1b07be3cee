"""The lane keeper: a lease that is renewed in the background while a block runs, and given back behind it.

It promises that the code inside is cancelled as soon as the lease is lost, or can no longer be known to be held, or
somebody asks the turn to end, and that the error then names what happened. It writes nothing, and knows no database: a
store of leases is all that it is given.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from types import TracebackType
from typing import Self

from fastness.errors import LeaseExpiredError, SessionDeletedError, StoreError, TurnInterruptedError
from fastness.model import (
    Acquired,
    InterruptRequest,
    LeaseTimings,
    SessionExecutionLease,
    SessionExecutionLeaseStore,
)
from fastness.telemetry import Telemetry, default_telemetry, error_type, turn_logger

_RETRY_PAUSE_S = 0.25


def turn_id_of(fencing_token: int) -> str:
    """Name the turn that runs under a grant of the lane."""
    return f"turn/{fencing_token}"


class LaneKeeper:
    """Keeps the lane of one session while an ``async with`` block runs.

    ``lease`` is a grant, asked for at ``asked_at`` on the clock of the event loop: the database counts from when it
    granted, which was not before that. On leaving, ``LeaseExpiredError``, ``SessionDeletedError`` or
    ``TurnInterruptedError`` stands in the place of the cancellation that the keeper has caused.
    """

    def __init__(
        self,
        store: SessionExecutionLeaseStore,
        lease: SessionExecutionLease,
        *,
        asked_at: float,
        timings: LeaseTimings | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        self.session_id = lease.session_id
        self.lease = lease
        self.lost: StoreError | None = None
        self.interrupt: InterruptRequest | None = None
        self.stall_count = 0
        self._store = store
        self._timings = timings or LeaseTimings()
        self._held_until = asked_at + self._timings.ttl.total_seconds()
        self._asked_at = asked_at
        self._telemetry = telemetry or default_telemetry()
        self._granted_token = lease.fencing_token
        self._released = False
        self._settling = self._ended = False
        self._keeper: asyncio.Task[None] | None = None
        self._body: asyncio.Task[object] | None = None
        self._cancelled_before = 0
        self._cancelled = False

    @property
    def _log(self) -> logging.LoggerAdapter[logging.Logger]:
        """What is told of this lane; most turns tell nothing, and pay nothing for it."""
        token = self._granted_token
        return turn_logger("fastness.lane", session_id=self.session_id, turn_id=turn_id_of(token), fencing_token=token)

    @property
    def fencing_token(self) -> int:
        """The number of this grant: greater than that of any holder before."""
        return self.lease.fencing_token

    async def __aenter__(self) -> Self:
        self._body = asyncio.current_task()
        assert self._body is not None
        self._cancelled_before = self._body.cancelling()
        self._keeper = asyncio.create_task(self._keep(), name=f"lane of {self.session_id}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._keeper is not None
        self._ended = True
        self._keeper.cancel()
        others = self.take_back_cancellation()
        await self._release()
        reason = self.lost or self.interruption()
        if reason is None or others or error is reason:
            return
        if (error is None and self.lost is not None) or isinstance(error, asyncio.CancelledError):
            # Nobody but the keeper has cancelled the block: what is told is why it did.
            raise reason from error

    # --- what the block asks and says ---

    @property
    def is_asked_inside(self) -> bool:
        """Whether it is the block itself that asks."""
        return self._body is not None and self._body is asyncio.current_task()

    def settled(self) -> None:
        """Say that a commit has given the lane back already."""
        self._released = True
        # A renewal that was on its way meanwhile came behind the commit: that is no loss.
        self.lost = None

    def settle(self) -> None:
        """Say that the block ends by itself now: it is not cancelled any more, the commit finds out where it stands."""
        self._settling = True

    def require(self) -> None:
        """Raise the error that says so if the lane was lost, or if the turn is to end."""
        reason = self.lost or self.interruption()
        if reason is not None:
            raise reason

    def interruption(self) -> TurnInterruptedError | None:
        """Give the error of a turn that was asked to end, None where nobody did."""
        if self.interrupt is None:
            return None
        return TurnInterruptedError(self.session_id, self.fencing_token, self.interrupt.reason)

    def take_back_cancellation(self) -> bool:
        """Undo the cancellation that the keeper has caused, and tell whether somebody else has cancelled, too."""
        assert self._body is not None
        if self._cancelled:
            self._cancelled = False
            self._body.uncancel()
        return self._body.cancelling() > self._cancelled_before

    async def reenter(self) -> SessionExecutionLease:
        """Claim the lane again as the same holder, after an answer was lost. Raises ``LeaseExpiredError``."""
        asked_at = asyncio.get_running_loop().time()
        outcome = await self._store.try_claim_session_execution_lease(
            self.session_id, self.lease.owner, self._timings.ttl_ms
        )
        if not isinstance(outcome, Acquired):
            successor = outcome.holder.owner.owner_id
            raise LeaseExpiredError(self.session_id, self.fencing_token, "superseded", successor)
        self._hold(outcome.lease, asked_at)
        # A renewal may have found the lease expired meanwhile; here is another one, which has to be given back.
        self.lost = None
        return outcome.lease

    def request_interrupt(self, request: InterruptRequest) -> None:
        """End the block, as if a renewal had seen the request."""
        if self.interrupt is None:
            self.interrupt = request
            self._cancel()

    # --- keeping it ---

    def _hold(self, lease: SessionExecutionLease, asked_at: float) -> None:
        self.lease = lease
        self._held_until = asked_at + self._timings.ttl.total_seconds()

    async def _keep(self) -> None:
        """Renew until the end of the block, or until the lane is lost."""
        loop = asyncio.get_running_loop()
        interval = self._timings.renew_interval.total_seconds()
        next_at = self._asked_at + interval
        while self.lost is None and not self._released:
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
            except Exception as error:  # noqa: BLE001 - whatever it is: a lane that is not renewed is lost in time
                self._not_renewed(error, loop.time())
                next_at = min(loop.time() + _RETRY_PAUSE_S, self._held_until)
            else:
                self._hold(lease, asked_at)
                next_at = asked_at + interval
                if lease.interrupt is not None:
                    self.request_interrupt(lease.interrupt)

    def _notice_stall(self, late_s: float, interval_s: float) -> None:
        if late_s > interval_s / 2:
            self.stall_count += 1
            self._log.warning(
                "the event loop was blocked for %.1f s, and the lane of session %s was not renewed meanwhile;"
                " move blocking calls of the turn to a thread",
                late_s,
                self.session_id,
            )

    def _not_renewed(self, error: Exception, now: float) -> None:
        if now < self._held_until:
            self._log.warning(
                "could not renew the lane of session %s, trying again: %s", self.session_id, error_type(error)
            )
            return
        gone = LeaseExpiredError(self.session_id, self.fencing_token, "expired: it could not be renewed in time")
        gone.__cause__ = error
        self._lose(gone)

    def _lose(self, error: StoreError) -> None:
        if self._released:
            return
        self.lost = error
        if self._settling:
            return  # the commit finds out by itself, and tells
        self._telemetry.refused(error, "renew")
        self._log.warning("the lane of session %s was lost: %s", self.session_id, error)
        self._cancel()

    def _cancel(self) -> None:
        if not (self._settling or self._ended or self._cancelled) and self._body is not None:
            self._cancelled = True
            self._body.cancel()

    async def _release(self) -> None:
        if not self._released and self.lost is None:
            # It expires by itself where it cannot be given back.
            with contextlib.suppress(StoreError):
                await self._store.release_session_execution_lease(self.lease.completion())
