"""The registry of workers, and which lanes are held (laws R1, R2). No lane is locked for either."""

from __future__ import annotations

import msgspec

from fastness.model.base import checked
from fastness.model.lease import LeaseOwnerIdentity, LocalProcess, Opaque
from fastness.model.worker import HeldLane, WorkerRecord
from fastness.sql.program import Param, Program, Read, Row, Statement, Write
from fastness.sql.records import stored

ANNOUNCE = """
    insert into worker (worker_id, seen_ms, body) values ($1, now_ms(), $2)
    on conflict (worker_id) do update set seen_ms = excluded.seen_ms, body = excluded.body"""
RETIRE = "delete from worker where worker_id = $1"
LIST = "select worker_id, seen_ms, body from worker where seen_ms >= $1 order by worker_id"
FORGET = "delete from worker where seen_ms <= $1 returning worker_id"

# By the index of held lanes, which has those alone: ``owner_id >= $1`` is where a page begins in it.
HELD = """
    select s.session_id, l.owner_id, l.incarnation_id, l.liveness, l.fencing_token, l.claimed_ms, l.expires_ms,
        l.expires_ms <= now_ms(), l.interrupt is not null
    from lane l join session s on s.sid = l.sid
    where l.owner_id is not null and l.owner_id >= $1 and (l.owner_id > $1 or s.session_id > $2){of_owner}
    order by l.owner_id, s.session_id limit $3"""
OF_OWNER = " and l.owner_id = $4"

_liveness = msgspec.json.Decoder(LocalProcess | Opaque)


def announce(record: WorkerRecord) -> Program[None]:
    """Write down what a worker says of itself, in place of what it said before."""
    # When it was seen is the database's to say, in a column of its own.
    body = checked(WorkerRecord, msgspec.structs.replace(record, seen_at_epoch_ms=0))[1]
    yield Write(Statement(ANNOUNCE, (record.worker_id, body)))


def retire(worker_id: str) -> Program[None]:
    """Take a worker out of the registry."""
    yield Write(Statement(RETIRE, (worker_id,)))


def list_seen(since_ms: int) -> Program[list[WorkerRecord]]:
    """Give the workers that were seen then or later, by id."""
    (rows,) = yield Read(Statement(LIST, (since_ms,)), last=True)
    return [
        msgspec.structs.replace(stored(WorkerRecord, body, worker_id), seen_at_epoch_ms=seen_ms)
        for worker_id, seen_ms, body in rows
    ]


def forget(until_ms: int) -> Program[int]:
    """Take the workers out that were last seen then or earlier. Gives how many."""
    (rows,) = yield Write(Statement(FORGET, (until_ms,)), last=True)
    return len(rows)


def list_held(after: HeldLane | None, limit: int, owner_id: str | None) -> Program[list[HeldLane]]:
    """Give a page of the lanes that are held, by holder and session, from behind one."""
    place = ("", "") if after is None else (after.owner.owner_id, after.session_id)
    params: tuple[Param, ...] = (*place, limit)
    of_owner = "" if owner_id is None else OF_OWNER
    if owner_id is not None:
        params = (*params, owner_id)
    (rows,) = yield Read(Statement(HELD.format(of_owner=of_owner), params), last=True)
    return [_held(row) for row in rows]


def _held(row: Row) -> HeldLane:
    session_id, owner_id, incarnation_id, liveness, token, claimed_ms, expires_ms, is_expired, is_asked = row
    owner = LeaseOwnerIdentity(owner_id, incarnation_id, _liveness.decode(liveness))
    return HeldLane(session_id, owner, token, claimed_ms, expires_ms, bool(is_expired), bool(is_asked))
