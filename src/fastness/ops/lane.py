"""Locking, claiming, renewing and releasing the lane of a session."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from fastness.decide import lane as rules
from fastness.decide.lane import LaneFacts
from fastness.errors import SessionDeletedError
from fastness.model.base import encode
from fastness.model.lease import (
    Acquired,
    Busy,
    LeaseOwnerIdentity,
    LocalProcess,
    Opaque,
    SessionExecutionLease,
    SessionExecutionLeaseClaimOutcome,
    SessionExecutionLeaseCompletion,
    SessionExecutionLeaseFence,
)
from fastness.sql.program import Program, Read, Row, Statement, Write

_LANE_COLUMNS = """
    l.sid, s.session_id, l.admission_seq, l.fencing_token, l.owner_id, l.incarnation_id, l.liveness,
    l.lease_token, l.claimed_ms, l.expires_ms, now_ms()"""

LOCK_LANE_BY_SID = f"select {_LANE_COLUMNS} from lane l join session s on s.sid = l.sid where l.sid = $1 for update"
LOCK_LANE_BY_NAME = (
    f"select {_LANE_COLUMNS} from session s join lane l on l.sid = s.sid where s.session_id = $1 for update"
)

ADD_SESSION = """
    insert into session (session_id, created_ms, parent_session_id, meta, config) values ($1, now_ms(), $2, $3, $4)
    on conflict (session_id) do nothing"""
ADD_LANE = """
    insert into lane (sid) select sid from session where session_id = $1 on conflict (sid) do nothing"""

TAKE_LANE = """
    update lane set fencing_token = $2, owner_id = $3, incarnation_id = $4, liveness = $5, lease_token = $6,
        claimed_ms = $7, expires_ms = $8
    where sid = $1"""
EXTEND_LEASE = "update lane set expires_ms = $2 where sid = $1"
FREE_LANE = """
    update lane set owner_id = null, incarnation_id = null, liveness = null, lease_token = null, expires_ms = 0
    where sid = $1 and lease_token = $2"""
DRAW_ADMISSION = "update lane set admission_seq = $2 where sid = $1"

_liveness = msgspec.json.Decoder(LocalProcess | Opaque)


class Target(NamedTuple):
    """The session that an operation is about: by name, and by surrogate key where a handle is bound to it.

    A handle that was opened before a deletion keeps its key and so can never touch a session of the same name (M3).
    """

    session_id: str
    sid: int | None = None


def lane_statement(target: Target) -> Statement:
    """Give the statement that locks a lane and reads it."""
    if target.sid is not None:
        return Statement(LOCK_LANE_BY_SID, (target.sid,))
    return Statement(LOCK_LANE_BY_NAME, (target.session_id,))


def lane_facts(target: Target, rows: list[Row]) -> LaneFacts | None:
    """Read the row of ``lane_statement``; None: the name is unknown. ``SessionDeletedError`` for a bound handle."""
    if not rows:
        if target.sid is not None:
            raise SessionDeletedError(target.session_id)
        return None
    sid, session_id, admission, token, owner_id, incarnation, liveness, lease_token, claimed, expires, now = rows[0]
    owner = None
    if lease_token is not None:
        owner = LeaseOwnerIdentity(owner_id, incarnation, _liveness.decode(liveness))
    return LaneFacts(sid, session_id, admission, token, owner, lease_token, claimed, expires, now)


def lock_lane(target: Target) -> Program[LaneFacts | None]:
    """Lock the lane: the first thing that every writing operation does. None: there is no such session."""
    (rows,) = yield Read(lane_statement(target))
    return lane_facts(target, rows)


def lock_lane_or_create(target: Target) -> Program[LaneFacts]:
    """Lock the lane of a session, and bring an unknown one to life first (law M3)."""
    lane = yield from lock_lane(target)
    if lane is not None:
        return lane
    yield Write(*birth(target.session_id))
    lane = yield from lock_lane(target)
    if lane is None:
        raise SessionDeletedError(target.session_id)
    return lane


def birth(
    session_id: str, parent_session_id: str | None = None, meta: str | None = None, config: str | None = None
) -> tuple[Statement, ...]:
    """Give the statements that make a session. They do nothing where it exists."""
    return (
        Statement(ADD_SESSION, (session_id, parent_session_id, meta, config)),
        Statement(ADD_LANE, (session_id,)),
    )


def draw_admission(lane: LaneFacts, count: int = 1) -> Statement:
    """Draw the next admission numbers, ``lane.admission_seq + 1`` and on, under the lane's lock."""
    return Statement(DRAW_ADMISSION, (lane.sid, lane.admission_seq + count))


def claim(
    target: Target, owner: LeaseOwnerIdentity, lease_token: str, ttl_ms: int
) -> Program[SessionExecutionLeaseClaimOutcome]:
    """Claim the lane (laws L1 to L3)."""
    lane = yield from lock_lane_or_create(target)
    return (yield from _settle_claim(lane, owner, lease_token, ttl_ms))


def reclaim(
    target: Target,
    owner: LeaseOwnerIdentity,
    observed: SessionExecutionLeaseFence,
    dead: LocalProcess | None,
    lease_token: str,
    ttl_ms: int,
) -> Program[SessionExecutionLeaseClaimOutcome]:
    """Claim the lane, over the head of a holder that is proven dead (law L6)."""
    lane = yield from lock_lane_or_create(target)
    if lane.is_live and rules.may_reclaim(lane, observed, dead):
        lane = msgspec.structs.replace(lane, owner=None, lease_token=None, expires_ms=0)
    return (yield from _settle_claim(lane, owner, lease_token, ttl_ms))


def _settle_claim(
    lane: LaneFacts, owner: LeaseOwnerIdentity, lease_token: str, ttl_ms: int
) -> Program[SessionExecutionLeaseClaimOutcome]:
    lease = rules.grant(lane, owner, lease_token, ttl_ms)
    if lease is None:
        holder = lane.holder()
        assert holder is not None  # grant refuses only a live lane
        return Busy(holder)
    yield Write(_take(lane.sid, lease))
    return Acquired(lease)


def _take(sid: int, lease: SessionExecutionLease) -> Statement:
    owner = lease.owner
    liveness = encode(owner.liveness).decode()
    return Statement(
        TAKE_LANE,
        (
            sid,
            lease.fencing_token,
            owner.owner_id,
            owner.incarnation_id,
            liveness,
            lease.lease_token,
            lease.claimed_at_epoch_ms,
            lease.expires_at_epoch_ms,
        ),
    )


def renew(target: Target, fence: SessionExecutionLeaseFence, ttl_ms: int) -> Program[SessionExecutionLease]:
    """Extend the lease. The tokens stay as they are; an expiry is never moved back."""
    lane = yield from lock_lane(target)
    lane = rules.require_live(lane, target.session_id, fence)
    expires_ms = max(lane.expires_ms, lane.now_ms + ttl_ms)
    yield Write(Statement(EXTEND_LEASE, (lane.sid, expires_ms)))
    return SessionExecutionLease(
        target.session_id, fence.owner, fence.lease_token, fence.fencing_token, lane.claimed_ms, expires_ms
    )


def release(target: Target, completion: SessionExecutionLeaseCompletion) -> Program[None]:
    """Give the lane back; a completion that no longer names the lease does nothing (law L5)."""
    lane = yield from lock_lane(target)
    if lane is not None and rules.names_lease(lane, completion):
        yield Write(free_lane(lane.sid, completion))


def free_lane(sid: int, completion: SessionExecutionLeaseCompletion) -> Statement:
    """Give the statement that releases exactly this lease."""
    return Statement(FREE_LANE, (sid, completion.lease_token))


def observe(target: Target) -> Program[SessionExecutionLease | None]:
    """See who holds the lane now, without locking it for long."""
    lane = yield from lock_lane(target)
    return lane.holder() if lane is not None else None
