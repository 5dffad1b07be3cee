"""Setting rows aside that failed too often, and what a person does with them then.

A row in quarantine stands in the evidence of its kind, in a state of its own, so that its source key stays bound to it;
why it is there stands beside it. No claim meets it, and no vacuum takes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from fastness.model.dispatch import QuarantinedRow, QuarantineKind, QuarantinePage
from fastness.model.queued_work import QueuedWorkBatchDraft
from fastness.model.turn_input import PendingTurnInputDraft
from fastness.ops import queued_work, turn_input
from fastness.ops.claims import ClaimTable
from fastness.ops.lane import Target, draw_admission, enter, of_session
from fastness.sql.program import Item, Param, Program, Read, Row, Statement, Write, id_list
from fastness.sql.records import stored


class _Kind(NamedTuple):
    """The statements over one kind of rows."""

    table: ClaimTable
    note: str
    know_grant: str
    find: str
    drop_evidence: str


def _kind(kind: QuarantineKind, table: str, row_id: str, statements: ClaimTable) -> _Kind:
    evidence = f"{table}_evidence"
    one = f"sid = $1 and {row_id} = $2 and state = 'quarantined'"
    return _Kind(
        statements,
        note=f"""
    insert into quarantine (sid, kind, row_id, attempts, claim_token, quarantined_ms, error)
    select sid, '{kind}', {row_id}, attempts, claim_token, now_ms(), $3
    from {table} where sid = $1 and {row_id} in any_of($2)""",
        know_grant=f"""
    update {table} set claim_token = (
        select q.claim_token from quarantine q where q.sid = $1 and q.kind = '{kind}' and q.row_id = $2)
    where sid = $1 and {row_id} = $2""",
        find=f"select body from {evidence} where {one}",
        drop_evidence=f"delete from {evidence} where {one}",
    )


_KINDS: dict[QuarantineKind, _Kind] = {
    "input": _kind("input", "turn_input", "input_id", turn_input.ACTIVE),
    "work": _kind("work", "queued_work", "batch_id", queued_work.WORK),
}

_LIST = """
    select s.session_id, q.kind, q.row_id, q.attempts, q.error, q.quarantined_ms,
        coalesce(i.enqueued_ms, w.enqueued_ms), coalesce(i.body, w.body), q.sid
    from quarantine q join session s on s.sid = q.sid
        left join turn_input_evidence i on q.kind = 'input' and i.sid = q.sid and i.input_id = q.row_id
        left join queued_work_evidence w on q.kind = 'work' and w.sid = q.sid and w.batch_id = q.row_id
    where {where} order by {order} limit {limit}"""
LIST_ALL = _LIST.format(
    where="(q.quarantined_ms, q.sid, q.kind, q.row_id) > ($1, $2, $3, $4)",
    order="q.quarantined_ms, q.sid, q.kind, q.row_id",
    limit="$5",
)
LIST_SESSION = _LIST.format(
    where="q.sid = (select sid from session where session_id = $1) and (q.kind, q.row_id) > ($2, $3)",
    order="q.kind, q.row_id",
    limit="$4",
)

_FIRST: tuple[Param, ...] = (-1, 0, "", "")


def set_aside(kind: QuarantineKind, sid: int, row_ids: Iterable[str], error: str) -> list[Item]:
    """Give the statements that move waiting rows into the quarantine; none where no row is named."""
    ids = id_list(row_ids)
    if ids == "[]":
        return []
    one = _KINDS[kind]
    return [
        Statement(one.note, (sid, ids, error)),
        Statement(one.table.keep_named, (sid, ids, "quarantined")),
        Statement(one.table.drop_named, (sid, ids)),
    ]


def retry(target: Target, kind: QuarantineKind, row_id: str) -> Program[bool]:
    """Admit a row anew, behind everything that waits by now and with no attempt counted. Whether it was there."""
    one = _KINDS[kind]
    lane, (found,) = yield from enter(target, of_session(target, one.find, row_id))
    if lane is None or not found:
        return False
    seq, ((body,),) = lane.admission_seq + 1, found
    if kind == "input":
        draft = stored(PendingTurnInputDraft, body, repr(row_id))
        add = Statement(turn_input.ADD_INPUT, turn_input.admission(lane, seq, draft, row_id, body)[1])
    else:
        batch = stored(QueuedWorkBatchDraft, body, repr(row_id))
        add = Statement(queued_work.ADD_WORK, queued_work.admission(lane, seq, batch, row_id, body)[1])
    yield Write(
        draw_admission(lane, 0),
        add,
        Statement(one.know_grant, (lane.sid, row_id)),
        Statement(one.drop_evidence, (lane.sid, row_id)),
        Statement(one.table.forget_why, (lane.sid, id_list((row_id,)))),
        wakes=True,
    )
    return True


def discard(target: Target, kind: QuarantineKind, row_id: str) -> Program[bool]:
    """Cancel a row in quarantine; its source key stays bound while its evidence is kept. Whether it was there."""
    one = _KINDS[kind]
    lane, (found,) = yield from enter(target, of_session(target, one.find, row_id))
    if lane is None or not found:
        return False
    ids = id_list((row_id,))
    yield Write(Statement(one.table.cancel_kept, (lane.sid, ids)), Statement(one.table.forget_why, (lane.sid, ids)))
    return True


def list_page(session_id: str | None, cursor: tuple[Param, ...] | None, limit: int) -> Program[QuarantinePage]:
    """List the quarantine of a session, or of all of them, oldest first, from behind a cursor."""
    behind = cursor or _FIRST
    if session_id is None:
        statement = Statement(LIST_ALL, (*behind, limit + 1))
    else:
        statement = Statement(LIST_SESSION, (session_id, *behind[2:], limit + 1))
    (rows,) = yield Read(statement, last=True)
    page = rows[:limit]
    more = len(rows) > limit
    return QuarantinePage(tuple(_row(row) for row in page), _cursor(page[-1]) if more else None)


def _row(row: Row) -> QuarantinedRow:
    session_id, kind, row_id, attempts, error, quarantined_ms, enqueued_ms, body, _ = row
    draft: PendingTurnInputDraft | QueuedWorkBatchDraft
    if kind == "input":
        draft = stored(PendingTurnInputDraft, body, repr(row_id))
    else:
        draft = stored(QueuedWorkBatchDraft, body, repr(row_id))
    return QuarantinedRow(session_id, kind, row_id, attempts, error, quarantined_ms, enqueued_ms, draft)


def _cursor(row: Row) -> str:
    _, kind, row_id, _, _, quarantined_ms, _, _, sid = row
    return msgspec.json.encode((quarantined_ms, sid, kind, row_id)).hex()


def read_cursor(cursor: str) -> tuple[Param, ...]:
    """Read a page's cursor. Raises ``ValueError`` for anything else."""
    return msgspec.json.decode(bytes.fromhex(cursor), type=tuple[int, int, str, str])
