"""Locking, claiming, renewing and releasing the lane of a session, and its place on the agenda.

The lane's row is locked by whatever writes to its session, so the statements that keep ``ready_ms`` in step stand here:
at an admission, when the lane is taken, and when it is given back. Who reads the agenda, and how a turn begins, is
in ``dispatch``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from fastness.decide import lane as rules
from fastness.decide.lane import FenceFacts, LaneFacts
from fastness.errors import SessionDeletedError
from fastness.model.base import encode
from fastness.model.lease import (
    Acquired,
    Busy,
    InterruptRequest,
    LeaseOwnerIdentity,
    LocalProcess,
    Opaque,
    SessionExecutionLease,
    SessionExecutionLeaseClaimOutcome,
    SessionExecutionLeaseCompletion,
    SessionExecutionLeaseFence,
)
from fastness.sql.program import Expected, Lock, Param, Program, Read, Row, Rows, Statement, Write, id_list

LOCK = "select 1 from lane where sid = $1 for update of lane"
LANE = """
    select l.sid, s.session_id, l.admission_seq, l.fencing_token, l.owner_id, l.incarnation_id, l.liveness,
        l.lease_token, l.claimed_ms, l.expires_ms, now_ms(), l.backoff_ms, l.interrupt
    from lane l join session s on s.sid = l.sid where l.sid = $1"""
FENCE = """
    select fencing_token, owner_id, incarnation_id, lease_token, lease_token is not null and expires_ms > now_ms()
    from lane where sid = $1"""

# Both do nothing where the session is there, and draw no key for it.
ADD_SESSION = """
    insert into session (session_id, created_ms)
    select $1, now_ms() where not exists (select 1 from session where session_id = $1)
    on conflict (session_id) do nothing"""
ADD_LANE = """
    insert into lane (sid) select s.sid from session s
    where s.session_id = $1 and not exists (select 1 from lane l where l.sid = s.sid)
    on conflict (sid) do nothing"""

# Whoever looks for work finds the session again when the lease ends, if it was not given back by then. What was asked
# of an earlier holder is not asked of the next.
TAKE_LANE = """
    update lane set fencing_token = $2, owner_id = $3, incarnation_id = $4, liveness = $5, lease_token = $6,
        claimed_ms = $7, expires_ms = $8, ready_ms = case when ready_ms is null then null else $8 end,
        interrupt = case when fencing_token = $2 then interrupt else null end
    where sid = $1"""
EXTEND_LEASE = """
    update lane set expires_ms = case when expires_ms > now_ms() + $2 then expires_ms else now_ms() + $2 end
    where sid = $1 returning claimed_ms, expires_ms, interrupt"""
_LEFT = "select {what} from {table} where sid = $1 and not (coalesce(claim_id, '') in any_of($3)) and {when}"
# Whether something can be claimed now; else the time of what comes first.
_NOW = _LEFT.format(what="0", table="{table}", when="+available_ms <= now_ms() order by seq limit 1")
_LATER = _LEFT.format(what="available_ms", table="{table}", when="available_ms > 0 order by available_ms limit 1")
_EARLIEST = f"coalesce(({_NOW}), ({_LATER}))"
# What waits, the claims left out that are settled beside this very statement. It stands at the end of the line: whoever
# has waited longer for a turn goes first. Null while nothing waits.
_READY_AGAIN = f"""case when ready_ms is null then null else (
        select case when min(w.at) > now_ms() then min(w.at) when min(w.at) is not null then now_ms() end from (
            select {_EARLIEST.format(table="turn_input")} as at
            union all select {_EARLIEST.format(table="queued_work")}) w) end"""
FREE_LANE = f"""
    update lane set owner_id = null, incarnation_id = null, liveness = null, lease_token = null, expires_ms = 0,
        backoff_ms = 0, interrupt = null, ready_ms = {_READY_AGAIN}
    where sid = $1 and lease_token = $2"""
CORRECT_AGENDA = f"update lane set ready_ms = {_READY_AGAIN} where sid = $1 and fencing_token = $2"
DRAW_ADMISSION = """
    update lane set admission_seq = $2,
        ready_ms = case when ready_ms is null or ready_ms > $3 then $3 else ready_ms end
    where sid = $1"""

_liveness = msgspec.json.Decoder(LocalProcess | Opaque)
_interrupt = msgspec.json.Decoder(InterruptRequest)


class Target(NamedTuple):
    """The session that an operation is about: by name, and by surrogate key where a handle is bound to it.

    A handle that was opened before a deletion keeps its key and so can never touch a session of the same name (M3).
    """

    session_id: str
    sid: int | None = None


def of_session(target: Target, sql: str, *params: Param) -> Statement:
    """Give a statement that says ``sid = $1`` for a session, also where only its name is known yet."""
    if target.sid is not None:
        return Statement(sql, (target.sid, *params))
    return Statement(_by_name(sql), (target.session_id, *params))


@functools.cache
def _by_name(sql: str) -> str:
    return sql.replace("sid = $1", "sid = (select sid from session where session_id = $1)")


def lane_lock(target: Target) -> Lock:
    """Give the lock that everything which writes takes first."""
    statement = of_session(target, LOCK)
    return Lock(statement.sql, statement.params)


def lane_statement(target: Target) -> Statement:
    """Give the statement that reads a lane once it is locked."""
    # While somebody waited for the lock, the session of a name may have been made anew: then this one locks.
    return of_session(target, LANE if target.sid is not None else f"{LANE} for update of l")


def lane_facts(target: Target, rows: list[Row]) -> LaneFacts | None:
    """Read the lane's row; None: the name is unknown. ``SessionDeletedError`` for a bound handle."""
    if not rows:
        if target.sid is not None:
            raise SessionDeletedError(target.session_id)
        return None
    sid, session_id, admission, token, owner_id, incarnation, liveness, lease_token, *rest = rows[0]
    owner = None
    if lease_token is not None:
        owner = LeaseOwnerIdentity(owner_id, incarnation, _liveness.decode(liveness))
    claimed, expires, now, backoff, interrupt = rest
    asked = interrupt_of(interrupt)
    return LaneFacts(sid, session_id, admission, token, owner, lease_token, claimed, expires, now, backoff, asked)


def interrupt_of(body: str | None) -> InterruptRequest | None:
    """Read what a lane's holder is asked, None: nothing."""
    return None if body is None else _interrupt.decode(body)


def fence_facts(session_id: str, sid: int, rows: list[Row]) -> FenceFacts:
    """Read the row of ``FENCE``, which a bound handle asks for. Raises ``SessionDeletedError``."""
    if not rows:
        raise SessionDeletedError(session_id)
    token, owner_id, incarnation, lease_token, is_live = rows[0]
    owner = None if lease_token is None else LeaseOwnerIdentity(owner_id, incarnation)
    return FenceFacts(sid, session_id, token, owner, lease_token, bool(is_live))


def expected_fence(shown: SessionExecutionLeaseFence | SessionExecutionLeaseCompletion) -> Expected:
    """The row of ``FENCE`` while the lease that somebody shows is live."""
    return Expected([(shown.fencing_token, shown.owner.owner_id, shown.owner.incarnation_id, shown.lease_token, True)])


def enter(target: Target, *facts: Statement, is_locked: bool = False) -> Program[tuple[LaneFacts | None, Rows]]:
    """Lock the lane and read it, and what else the operation decides on. None: there is no such session.

    ``is_locked``: this very transaction has locked it already.
    """
    locks = () if is_locked else (lane_lock(target),)
    rows = yield Read(*locks, lane_statement(target), *facts)
    return lane_facts(target, rows[0]), rows[1:]


def enter_or_create(target: Target, *facts: Statement) -> Program[tuple[LaneFacts, Rows]]:
    """Lock the lane as ``enter`` does, and bring an unknown session to life first (law M3)."""
    while True:
        if target.sid is None:
            yield Write(*birth(target.session_id))
        lane, rows = yield from enter(target, *facts)
        if lane is not None:
            return lane, rows
        # It was deleted between its birth and the lock.


def look(target: Target, *facts: Statement) -> Program[tuple[LaneFacts | None, Rows]]:
    """Read the lane without locking it, and whatever goes with it: all that an operation reads."""
    rows = yield Read(of_session(target, LANE), *facts, last=True)
    return lane_facts(target, rows[0]), rows[1:]


def birth(session_id: str) -> tuple[Statement, ...]:
    """Give the statements that make a session. They do nothing where it exists."""
    return Statement(ADD_SESSION, (session_id,)), Statement(ADD_LANE, (session_id,))


def draw_admission(lane: LaneFacts, available_ms: int, count: int = 1) -> Statement:
    """Draw the next admission numbers, ``lane.admission_seq + 1`` and on, under the lane's lock.

    ``available_ms`` is the earliest time at which one of the rows can be claimed: the agenda learns of it.
    """
    return Statement(DRAW_ADMISSION, (lane.sid, lane.admission_seq + count, lane.ready_ms(available_ms)))


def claim(
    target: Target, owner: LeaseOwnerIdentity, lease_token: str, ttl_ms: int
) -> Program[SessionExecutionLeaseClaimOutcome]:
    """Claim the lane (laws L1 to L3)."""
    lane, _ = yield from enter_or_create(target)
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
    lane, _ = yield from enter_or_create(target)
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
    yield Write(take_lane(lane.sid, lease))
    return Acquired(lease)


def take_lane(sid: int, lease: SessionExecutionLease) -> Statement:
    """Give the statement that writes a lease which was granted."""
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
    lane = rules.require_live((yield from _shown(target, fence)), target.session_id, fence)
    (((claimed_ms, expires_ms, interrupt),),) = yield Write(Statement(EXTEND_LEASE, (lane.sid, ttl_ms)), last=True)
    return SessionExecutionLease(
        target.session_id,
        fence.owner,
        fence.lease_token,
        fence.fencing_token,
        claimed_ms,
        expires_ms,
        interrupt_of(interrupt),
    )


def release(target: Target, completion: SessionExecutionLeaseCompletion) -> Program[None]:
    """Give the lane back; a completion that no longer names the lease does nothing (law L5)."""
    lane = yield from _shown(target, completion)
    if lane is not None and rules.names_lease(lane, completion):
        yield Write(free_lane(lane.sid, completion), wakes=True)


def _shown(
    target: Target, shown: SessionExecutionLeaseFence | SessionExecutionLeaseCompletion
) -> Program[rules.Lane | None]:
    """Lock the lane and read what a lease is held against."""
    if target.sid is None:
        lane, _ = yield from enter(target)
        return lane
    (rows,) = yield Read(lane_lock(target), Statement(FENCE, (target.sid,)), expect=[expected_fence(shown)])
    return fence_facts(target.session_id, target.sid, rows)


def free_lane(sid: int, completion: SessionExecutionLeaseCompletion, settled_claims: Iterable[str] = ()) -> Statement:
    """Give the statement that releases exactly this lease; ``settled_claims`` go away in the same batch."""
    return Statement(FREE_LANE, (sid, completion.lease_token, id_list(settled_claims)))


def correct_agenda(lane: LaneFacts) -> Statement:
    """Give the statement that looks again from when a free lane's session is worth looking at."""
    return Statement(CORRECT_AGENDA, (lane.sid, lane.fencing_token, id_list(())))


def observe(target: Target) -> Program[SessionExecutionLease | None]:
    """See who holds the lane now."""
    lane, _ = yield from look(target)
    return lane.holder() if lane is not None else None
