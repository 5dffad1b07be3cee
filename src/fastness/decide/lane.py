"""The lane's rules (laws L1 to L6) over the facts of its locked row."""

from __future__ import annotations

from typing import TypeAlias, TypeVar

import msgspec

from fastness.errors import LeaseExpiredError
from fastness.model.lease import (
    InterruptRequest,
    LeaseOwnerIdentity,
    LocalProcess,
    SessionExecutionLease,
    SessionExecutionLeaseCompletion,
    SessionExecutionLeaseFence,
)


class FenceFacts(msgspec.Struct, frozen=True):
    """As much of a session's lane as a fence is held against: who has the lease, and whether it is live now."""

    sid: int
    session_id: str
    fencing_token: int
    owner: LeaseOwnerIdentity | None
    lease_token: str | None
    is_live: bool

    @property
    def live_token(self) -> int:
        """The fencing token of the lease that is live now, 0 while the lane is free."""
        return self.fencing_token if self.is_live else 0


class LaneFacts(msgspec.Struct, frozen=True):
    """A session's lane as its locked row says, and the database's time at that moment.

    ``lease_token`` is None while the lane is free. ``fencing_token`` and ``admission_seq`` are the last ones drawn.
    ``backoff_ms`` is the time until which a failed turn is not tried again.
    """

    sid: int
    session_id: str
    admission_seq: int
    fencing_token: int
    owner: LeaseOwnerIdentity | None
    lease_token: str | None
    claimed_ms: int
    expires_ms: int
    now_ms: int
    backoff_ms: int = 0
    interrupt: InterruptRequest | None = None

    @property
    def is_live(self) -> bool:
        """Whether somebody holds the lane now. A lease is expired iff now ≥ expires_at."""
        return self.lease_token is not None and self.now_ms < self.expires_ms

    @property
    def live_token(self) -> int:
        """The fencing token of the lease that is live now, 0 while the lane is free."""
        return self.fencing_token if self.is_live else 0

    def holder(self) -> SessionExecutionLease | None:
        """The lease that is live now."""
        if self.owner is None or self.lease_token is None or not self.is_live:
            return None
        return SessionExecutionLease(
            self.session_id,
            self.owner,
            self.lease_token,
            self.fencing_token,
            self.claimed_ms,
            self.expires_ms,
            self.interrupt,
        )

    def ready_ms(self, available_ms: int) -> int:
        """The time from which it is worth looking at a session that has something which waits for ``available_ms``."""
        held_until = self.expires_ms if self.is_live else 0
        return max(available_ms, self.now_ms, self.backoff_ms, held_until)


Lane: TypeAlias = "FenceFacts | LaneFacts"

L = TypeVar("L", bound="FenceFacts | LaneFacts")


def same_incarnation(one: LeaseOwnerIdentity, other: LeaseOwnerIdentity) -> bool:
    """Whether two identities name one holder. What process it lives in does not matter."""
    return one.owner_id == other.owner_id and one.incarnation_id == other.incarnation_id


def names_lease(lane: Lane, shown: SessionExecutionLeaseFence | SessionExecutionLeaseCompletion) -> bool:
    """Whether what a holder shows names the lease in the row, expired or not."""
    return (
        lane.owner is not None
        and lane.lease_token is not None
        and lane.fencing_token == shown.fencing_token
        and lane.lease_token == shown.lease_token
        and same_incarnation(lane.owner, shown.owner)
    )


def require_live(lane: L | None, session_id: str, fence: SessionExecutionLeaseFence | None) -> L:
    """Refuse a fence that is not the live lease of the session (laws C4, L4). Gives the lane back."""
    if fence is None:
        raise LeaseExpiredError(session_id, None, "missing")
    if lane is None or fence.session_id != session_id:
        raise LeaseExpiredError(session_id, fence.fencing_token, "unknown")
    if names_lease(lane, fence):
        if lane.is_live:
            return lane
        raise LeaseExpiredError(session_id, fence.fencing_token, "expired")
    if lane.fencing_token > fence.fencing_token:
        holder = lane.owner if lane.is_live else None
        raise LeaseExpiredError(
            session_id, fence.fencing_token, "stale", successor_owner_id=holder.owner_id if holder else None
        )
    reason = "released" if lane.lease_token is None else "superseded"
    raise LeaseExpiredError(session_id, fence.fencing_token, reason)


def grant(lane: LaneFacts, owner: LeaseOwnerIdentity, lease_token: str, ttl_ms: int) -> SessionExecutionLease | None:
    """Decide a claim: the lease that the caller gets, or None while somebody else holds the lane.

    The same incarnation re-enters with its fencing token, and its expiry never moves back (L2); any other grant draws
    the next token (L3).
    """
    expires_ms = lane.now_ms + ttl_ms
    if not lane.is_live:
        token = lane.fencing_token + 1
        return SessionExecutionLease(lane.session_id, owner, lease_token, token, lane.now_ms, expires_ms)
    if lane.owner is None or not same_incarnation(lane.owner, owner):
        return None
    expires_ms = max(expires_ms, lane.expires_ms)
    return SessionExecutionLease(
        lane.session_id, owner, lease_token, lane.fencing_token, lane.claimed_ms, expires_ms, lane.interrupt
    )


def may_reclaim(lane: LaneFacts, observed: SessionExecutionLeaseFence, dead: LocalProcess | None) -> bool:
    """Whether an unexpired lease may be taken early (law L6).

    ``dead`` is the process that the claimant has proven dead. It counts only if the observed holder is still the holder
    and still lives in that very process.
    """
    return dead is not None and names_lease(lane, observed) and lane.owner is not None and lane.owner.liveness == dead
