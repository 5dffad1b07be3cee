"""Reading the agenda, and beginning and failing turns, each in one transaction.

The agenda is the lane's ``ready_ms``: the time from which it is worth looking at a session. Every program that admits
rows, takes a lane or gives it back keeps it; it is never later than the truth. Whoever looks too early finds nothing to
claim and corrects it. So what is asked is an index, however many sessions are idle and however long their history is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from fastness.decide import dispatch as rules
from fastness.decide import lane as lane_rules
from fastness.decide.dispatch import Beginning, WaitingInput
from fastness.decide.lane import LaneFacts
from fastness.model.base import MAX_INT, encode
from fastness.model.dispatch import (
    Agenda,
    LabelLimited,
    NothingToDo,
    ReadySession,
    RequestedInterrupt,
    TurnBeginning,
    TurnBegun,
    TurnFailure,
)
from fastness.model.lease import (
    Busy,
    InterruptRequest,
    LeaseOwnerIdentity,
    LocalProcess,
    SessionExecutionLease,
    SessionExecutionLeaseCompletion,
    SessionExecutionLeaseFence,
)
from fastness.model.queued_work import QueuedWorkClaim
from fastness.model.turn_input import TurnInputClaim
from fastness.ops import claims, quarantine, queued_work, turn_input
from fastness.ops.lane import (
    Target,
    correct_agenda,
    enter,
    enter_or_create,
    free_lane,
    interrupt_of,
    lane_facts,
    lane_lock,
    lane_statement,
    of_session,
    take_lane,
)
from fastness.sql.program import LockNames, Program, Read, Row, Rows, Statement, Write, id_list

PRIORITIES = range(9, -1, -1)
"""Every priority of a session, the one that goes first first."""

# With its limit it is looked up session by session, and not for all that are ready.
_UNLIMITED = """
        and (select 1 from session_label b where b.sid = l.sid and b.label in any_of($2) limit 1) is null"""
# The index has a stretch for each priority; of each, only as much is read as is asked for. Names are looked up one by
# one: a planner that is wrong about how many there are may read all sessions for a join.
_READY = """
    select * from (
        select (select s.session_id from session s where s.sid = l.sid), l.priority, l.ready_ms from lane l
        where l.ready_ms is not null and l.priority = {priority} and l.ready_ms <= (select now_ms())
            and l.expires_ms <= (select now_ms()){unlimited}
        order by l.ready_ms limit $1) p{priority}"""
_NEXT = """
    select * from (
        select l.ready_ms - now_ms() from lane l
        where l.ready_ms is not null and l.priority = {priority} and l.ready_ms > (select now_ms())
        order by l.ready_ms limit 1) p{priority}"""
READY = " union all ".join(_READY.format(priority=each, unlimited="") for each in PRIORITIES)
READY_UNLIMITED = " union all ".join(_READY.format(priority=each, unlimited=_UNLIMITED) for each in PRIORITIES)
NEXT_READY = " union all ".join(_NEXT.format(priority=each) for each in PRIORITIES)
# A lease that is renewed moves its end without a word to the agenda, and its holder may die.
NEXT_END = """
    select min(l.expires_ms) - now_ms() from lane l
    where l.owner_id > '' and l.ready_ms is not null and l.expires_ms > (select now_ms())"""
INTERRUPTS = """
    select s.session_id, l.fencing_token, l.interrupt from lane l join session s on s.sid = l.sid
    where l.owner_id = $1 and l.interrupt is not null"""

_INPUT = "select input_id, seq, claim_token, {attempts}, enqueued_ms, available_ms from turn_input where sid = $1"
_WORK = """
    select batch_id, seq, claim_token, work_class, delivery_policy, slot_policy, merge_key, {attempts},
        enqueued_ms, available_ms
    from queued_work where sid = $1"""
# Nobody else holds the lane while these are looked at, so that every row is free whose time has come.
_DUE = " and +available_ms <= (select now_ms()) order by seq limit $2"
WAITING_INPUT = _INPUT.format(attempts="attempts") + _DUE
WAITING_WORK = _WORK.format(attempts="attempts") + _DUE
# What the lease holds already counts as it did when it was granted.
_HELD = " and claim_id > '' and lane_token = $2 order by +seq"
HELD_INPUT = _INPUT.format(attempts="attempts - 1") + _HELD
HELD_WORK = _WORK.format(attempts="attempts - 1") + _HELD
HEAD_REVISION = "select revision from head where sid = $1"
LIMITED_LABELS = "select label from session_label where sid = $1 and label in any_of($2)"
# From the lanes that are held to their labels: a label may have any number of sessions that are idle.
RUNNING_BY_LABEL = """
    select b.label, count(*) from lane l cross join session_label b
    where l.owner_id > '' and l.expires_ms > (select now_ms()) and l.sid <> $2
        and b.sid = l.sid and b.label in any_of($1)
    group by b.label"""

_ATTEMPTS = "select {row_id}, attempts from {table} where sid = $1 and claim_id in any_of($2) and lane_token = $3"
INPUT_ATTEMPTS = _ATTEMPTS.format(row_id="input_id", table="turn_input")
WORK_ATTEMPTS = _ATTEMPTS.format(row_id="batch_id", table="queued_work")
_FREE_ROWS = """
    update {table} set claim_id = null, lane_token = 0, lease_token = null,
        attempts = case when attempts > 0 then attempts - $4 else 0 end
    where sid = $1 and claim_id in any_of($2) and lane_token = $3"""
FREE_INPUT = _FREE_ROWS.format(table="turn_input")
FREE_WORK = _FREE_ROWS.format(table="queued_work")
BACK_OFF = "update lane set backoff_ms = $2, ready_ms = case when ready_ms is null then null else $2 end where sid = $1"
HOLD_BACK = "update lane set ready_ms = backoff_ms where sid = $1 and ready_ms < backoff_ms"
ASK_INTERRUPT = "update lane set interrupt = $2 where sid = $1"


class Wants(NamedTuple):
    """What a turn may begin with at most, and after how many attempts a row is set aside (None: never).

    Without ``claims`` only the lane is claimed. ``needs_something``: without anything to claim, the lane is left alone.
    ``label_limits`` bound how many sessions with a label may have a turn running.
    """

    max_inputs: int
    max_batches: int
    max_attempts: int | None
    needs_something: bool
    claims: bool
    label_limits: Mapping[str, int]


class Drawn(NamedTuple):
    """The random tokens of a beginning, drawn outside, so that a retry means the same."""

    lease_token: str
    claim_id: str


class Takeover(NamedTuple):
    """A holder that is to be taken over, and its process if that was proven dead (law L6)."""

    observed: SessionExecutionLeaseFence
    dead: LocalProcess | None


def read_agenda(limit: int, owner_id: str | None, saturated: Iterable[str]) -> Program[Agenda]:
    """Say which sessions have something to do, which come first, and what is asked of a holder.

    Sessions with a ``saturated`` label are passed over.
    """
    labels = id_list(saturated)
    ready = Statement(READY, (limit,)) if labels == "[]" else Statement(READY_UNLIMITED, (limit, labels))
    found, later, ((ends,),), asked = yield Read(
        ready, Statement(NEXT_READY), Statement(NEXT_END), Statement(INTERRUPTS, (owner_id,)), last=True
    )
    sessions = sorted((ReadySession(*row) for row in found), key=lambda each: (-each.priority, each.ready_at_epoch_ms))
    interrupts = (RequestedInterrupt(name, token, _asked(body)) for name, token, body in asked)
    moments = [max(0, ms) for (ms,) in (*later, (ends,)) if ms is not None]
    return Agenda(tuple(sessions[:limit]), min(moments, default=None), tuple(interrupts))


def _asked(body: str) -> InterruptRequest:
    request = interrupt_of(body)
    assert request is not None  # only rows with one are read
    return request


def begin(
    target: Target,
    owner: LeaseOwnerIdentity,
    ttl_ms: int,
    wants: Wants,
    drawn: Drawn,
    over: Takeover | None = None,
    *,
    settled: int | None = None,
) -> Program[TurnBeginning]:
    """Claim the lane and, under it, what leads the session's line (laws L1 to L3, L6, K1, K2, I3, W2).

    ``settled`` is the head's revision where this very transaction has settled a turn: then the lane is locked already.
    """
    asked = _line(target, wants)
    if wants.label_limits:
        asked.append(of_session(target, LIMITED_LABELS, id_list(wants.label_limits)))
    if settled is None:
        asked.append(of_session(target, HEAD_REVISION))
    if wants.needs_something:
        known, line = yield from enter(target, *asked, is_locked=settled is not None)
        if known is None:
            return NothingToDo()
        lane = known
    else:
        lane, line = yield from enter_or_create(target, *asked)
    revision = settled if settled is not None else next((revision for (revision,) in line.pop()), None)
    before, was_live = lane.owner, lane.is_live
    if over is not None and lane.is_live and lane_rules.may_reclaim(lane, over.observed, over.dead):
        lane = msgspec.structs.replace(lane, owner=None, lease_token=None, expires_ms=0, backoff_ms=0)
    lease = lane_rules.grant(lane, owner, drawn.lease_token, ttl_ms)
    if lease is None:
        holder = lane.holder()
        assert holder is not None  # grant refuses only a live lane
        return Busy(holder)
    labels: list[str] = []
    if lane.is_live:
        # An answer was lost: what this lease holds already goes first, and alone (law L2).
        held = yield Read(
            Statement(HELD_INPUT, (lane.sid, lane.live_token)), Statement(HELD_WORK, (lane.sid, lane.live_token))
        )
        line = held if any(held) else line
    else:
        labels = [label for rows in line[2:] for (label,) in rows]
        refusal = yield from _refusal(lane, wants, labels)
        if refusal is not None:
            return refusal
    begun = TurnBegun(lease, lane.sid, revision, limited_labels=tuple(labels))
    if before is not None and not lane_rules.same_incarnation(before, owner):
        begun = msgspec.structs.replace(begun, took_over_from=before.owner_id, took_over_expired=not was_live)
    return (yield from _begin(lane, begun, wants, drawn, line))


def _refusal(lane: LaneFacts, wants: Wants, labels: Sequence[str]) -> Program[NothingToDo | LabelLimited | None]:
    """Say why a free lane is not to be taken now: a turn failed just now, or too many turns run. None: it may be."""
    if wants.needs_something and lane.now_ms < lane.backoff_ms:
        yield Write(Statement(HOLD_BACK, (lane.sid,)))
        return NothingToDo()
    label = (yield from _saturated(lane.sid, labels, wants.label_limits)) if labels else None
    return None if label is None else LabelLimited(label)


def _line(target: Target, wants: Wants) -> list[Statement]:
    """Give the statements that read what a turn may begin with, and one more: input, and work."""
    return [
        of_session(target, WAITING_INPUT, wants.max_inputs + 1),
        of_session(target, WAITING_WORK, wants.max_batches + 1),
    ]


def _begin(lane: LaneFacts, begun: TurnBegun, wants: Wants, drawn: Drawn, line: Rows) -> Program[TurnBeginning]:
    """Set aside what is spoiled, look again at what stood behind it, and grant what is left to lead the line."""
    spoiled_count = 0
    while (plan := _plan(line, wants) if wants.claims else Beginning()).spoiled_count:
        spoiled_count += plan.spoiled_count
        yield Write(
            *quarantine.set_aside("input", lane.sid, plan.spoiled_inputs, _CRASHED),
            *quarantine.set_aside("work", lane.sid, plan.spoiled_work, _CRASHED),
        )
        line = yield Read(*_line(Target(lane.session_id, lane.sid), wants))
    if wants.needs_something and not plan.takes_something:
        if not lane.is_live:
            yield Write(correct_agenda(lane))
        return NothingToDo(spoiled_count)
    begun = msgspec.structs.replace(begun, quarantined_count=spoiled_count)
    return (yield from _grant(lane, begun, plan, drawn, line))


_CRASHED = "every turn that took it ended without an answer: its process died, or lost the lane"


def _saturated(sid: int, labels: Sequence[str], limits: Mapping[str, int]) -> Program[str | None]:
    """Give a label that has as many turns of other sessions running as it may. Two at once see one another."""
    names = LockNames(tuple(f"label:{label}" for label in sorted(labels)))
    (rows,) = yield Read(names, Statement(RUNNING_BY_LABEL, (id_list(labels), sid)))
    return min((label for label, count in rows if count >= limits[label]), default=None)


def _plan(line: Rows, wants: Wants) -> Beginning:
    return rules.begin(
        [WaitingInput(*row[:4]) for row in line[0]],
        [queued_work.waiting_work(row[:8]) for row in line[1]],
        max_inputs=wants.max_inputs,
        max_batches=wants.max_batches,
        max_attempts=wants.max_attempts,
    )


def _grant(lane: LaneFacts, begun: TurnBegun, plan: Beginning, drawn: Drawn, line: Rows) -> Program[TurnBegun]:
    lease = begun.lease
    rows = plan.inputs or plan.work
    if not rows:
        yield Write(take_lane(lane.sid, lease))
        return begun
    begun = msgspec.structs.replace(begun, more_waits=len(line[0]) + len(line[1]) > len(rows))
    table = turn_input.NEXT if plan.inputs else queued_work.WORK
    statement, token = claims.grant_statement(
        table, lane.sid, lease.fencing_token, lease.lease_token, drawn.claim_id, rows
    )
    granted = claims.in_order((yield Write(take_lane(lane.sid, lease), statement, last=True, apart=True))[-1], rows)
    since = {row[0]: max(row[-2:]) for row in line[0 if plan.inputs else 1]}
    waited_ms = max(0, lane.now_ms - min(since[row.row_id] for row in rows))
    named = (lane.session_id, drawn.claim_id, lease.owner, token, lease.fencing_token, lease.expires_at_epoch_ms)
    if plan.inputs:
        taken = TurnInputClaim(*named, tuple(turn_input.granted_input(row, "deferred_next_turn") for row in granted))
        return msgspec.structs.replace(begun, input_claim=taken, waited_ms=waited_ms)
    batches = QueuedWorkClaim(*named, tuple(map(queued_work.granted_batch, granted)))
    return msgspec.structs.replace(begun, work_claim=batches, waited_ms=waited_ms)


class Failed(NamedTuple):
    """What a failed turn holds, and how its rows are to go on."""

    input_claim_ids: tuple[str, ...]
    work_claim_ids: tuple[str, ...]
    error: str
    delay_ms: int
    max_attempts: int | None
    counts: bool


def fail(target: Target, completion: SessionExecutionLeaseCompletion, failed: Failed) -> Program[TurnFailure]:
    """Give a turn's rows back, set those aside that failed too often, and release the lane, at once.

    The session as a whole is not tried again before the delay is over, so that nothing overtakes what failed. Raises
    ``LeaseExpiredError`` where the lease is not live any more: then its rows are free already.
    """
    token = completion.fencing_token
    inputs, work = id_list(failed.input_claim_ids), id_list(failed.work_claim_ids)
    rows = yield Read(
        lane_lock(target),
        lane_statement(target),
        of_session(target, INPUT_ATTEMPTS, inputs, token),
        of_session(target, WORK_ATTEMPTS, work, token),
    )
    fence = SessionExecutionLeaseFence(completion.session_id, completion.owner, completion.lease_token, token)
    lane = lane_rules.require_live(lane_facts(target, rows[0]), target.session_id, fence)
    max_attempts = failed.max_attempts if failed.counts else None
    spoiled_inputs = rules.spoiled(_attempts(rows[1]), max_attempts)
    spoiled_work = rules.spoiled(_attempts(rows[2]), max_attempts)
    spoiled_count = len(spoiled_inputs) + len(spoiled_work)
    refund = 0 if failed.counts else 1
    retried_count = len(rows[1]) + len(rows[2]) - spoiled_count
    yield Write(
        *quarantine.set_aside("input", lane.sid, spoiled_inputs, failed.error),
        *quarantine.set_aside("work", lane.sid, spoiled_work, failed.error),
        Statement(FREE_INPUT, (lane.sid, inputs, token, refund)),
        Statement(FREE_WORK, (lane.sid, work, token, refund)),
        free_lane(lane.sid, completion),
        *([Statement(BACK_OFF, (lane.sid, min(lane.now_ms + failed.delay_ms, MAX_INT)))] if retried_count else ()),
        wakes=True,
    )
    return TurnFailure(retried_count, spoiled_count)


def _attempts(rows: Iterable[Row]) -> list[tuple[str, int]]:
    return [(row_id, attempts) for row_id, attempts in rows]


def read_clock() -> Program[int]:
    """Give the database's time, in milliseconds since the epoch."""
    (((now_ms,),),) = yield Read(Statement("select now_ms()"), last=True)
    return int(now_ms)


def ask_interrupt(
    target: Target, reason: str | None, fencing_token: int | None
) -> Program[SessionExecutionLease | None]:
    """Ask the turn that runs to end. Gives the lease that it runs under, None where none runs, or another one does."""
    rows = yield Read(lane_lock(target), lane_statement(target))
    lane = lane_facts(target, rows[0])
    holder = None if lane is None else lane.holder()
    if lane is None or holder is None or fencing_token not in {None, holder.fencing_token}:
        return None
    request = InterruptRequest(reason, lane.now_ms)
    yield Write(Statement(ASK_INTERRUPT, (lane.sid, encode(request).decode())), wakes=True)
    return msgspec.structs.replace(holder, interrupt=request)
