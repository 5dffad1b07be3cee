"""The directory of sessions: creating, describing, listing and deleting them (laws M3, D1 to D3).

Labels and priority are part of a description, and stand once more where work is looked for by them: in a table that is
indexed by label, and in the lane. Both are written with the description, under the lane's lock. A listing goes through
the sessions that the rarest of what is asked for fits; which that is, ``decide.directory`` chooses by bounded counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import msgspec

from fastness.decide.directory import (
    FEW,
    Way,
    effective_meta,
    filled_meta,
    parent_of,
    tidied,
    way_through,
    worth_counting,
)
from fastness.model.base import MAX_ID_BYTES, MAX_INT, checked
from fastness.model.session import (
    PersistedSessionConfig,
    SessionFilter,
    SessionMeta,
    SessionPage,
    SessionStoreCreateRequest,
    SessionSummary,
)
from fastness.ops.lane import Target, enter, enter_or_create
from fastness.ops.load import SessionRow, find, session_row, session_statement
from fastness.sql.program import Item, Many, Param, Program, Read, Row, Statement, Write, id_list
from fastness.sql.records import stored
from fastness.sql.schema import SESSION_TABLES

DESCRIBE = "update session set meta = $2, parent_session_id = $3, config = coalesce(config, $4) where sid = $1"
# What is as it should be is not written: an index would have to follow.
PRIORITIZE = "update lane set priority = $2 where sid = $1 and priority <> $2"
DROP_LABELS = "delete from session_label where sid = $1 and not (label in any_of($2))"
ADD_LABEL = "insert into session_label (sid, label) values ($1, $2) on conflict (sid, label) do nothing"
# The page first, and then what is shown of it: no plan shall go through all heads for that.
LIST = """
    select p.sid, p.session_id, p.created_ms, p.meta, coalesce(h.revision, 0), coalesce(h.node_count, 0),
        coalesce(h.updated_ms, p.created_ms)
    from (
        select s.sid, s.session_id, s.created_ms, s.meta from {sessions} where {where} order by {order} limit {limit}) p
    left join head h on h.sid = p.sid"""
ALL = "session s"
LABELLED = "session_label l join session s on s.sid = l.sid"
HAS_LABEL = "exists (select 1 from session_label o where o.sid = {sid} and o.label = {0})"
IS_CHILD = "coalesce(s.parent_session_id, '') = {0}"
HAS_NAME = "coalesce(s.session_id, '') >= {0} and coalesce(s.session_id, '') < {1}"
WAS_CREATED = "+s.created_ms >= {0} and +s.created_ms <= {1}"
# Behind which key the first session of a time may be: all before are passed over, where they are many.
BEFORE_CREATED = f"""(
    select max(k.sid) from (
        select cast($1 as bigint) as sid
        union all
        select case
            when (select count(*) from (select 1 from session e where e.created_ms < {{0}} limit {FEW}) few) = {FEW}
            then (select min(+t.sid) - 1 from session t where t.created_ms >= {{0}} and t.created_ms <= {{1}})
        end) k)"""
_COUNT = "select count(*) from (select 1 from {} limit {}) few"
COUNT_LABEL = _COUNT.format("session_label where label = $1", "$2")
COUNT_CHILDREN = _COUNT.format("session where parent_session_id = $1", "$2")
COUNT_NAMES = _COUNT.format("session where session_id >= $1 and session_id < $2", "$3")
COUNT_CREATED = _COUNT.format("session where created_ms >= $1 and created_ms <= $2", "$3")
RELEASE_ATTACHMENTS = """
    insert into attachment_release (attachment_id, session_id, released_ms)
    select a.attachment_id, s.session_id, $2 from attachment a join session s on s.sid = a.sid where a.sid = $1
    on conflict (attachment_id, session_id) do update set released_ms = excluded.released_ms"""
DELETE_SESSION = "delete from session where sid = $1"


def create(request: SessionStoreCreateRequest) -> Program[int]:
    """Make a session, or fill in what is missing in the one that is there. Gives its surrogate key."""
    target = Target(request.session_id)
    row = yield from find(target)
    if row is None or _filling(row, request) is not None:
        # Look again with the lane locked: somebody else may be filling it in as well.
        _, (rows,) = yield from enter_or_create(target, session_statement(target))
        row = session_row(target, rows)
        assert row is not None  # its lane is locked
        filling = _filling(row, request)
        if filling is not None:
            yield Write(*filling)
    return row.sid


def _filling(row: SessionRow, request: SessionStoreCreateRequest) -> list[Item] | None:
    meta = filled_meta(request, row.meta, row.created_ms)
    return _describe(row, meta, request.config) if meta != row.meta or row.config is None else None


def _describe(row: SessionRow, meta: SessionMeta, config: PersistedSessionConfig | None) -> list[Item]:
    config_body = None if config is None else checked(PersistedSessionConfig, config)[1]
    return [
        Statement(DESCRIBE, (row.sid, checked(SessionMeta, meta)[1], parent_of(meta), config_body)),
        Statement(PRIORITIZE, (row.sid, meta.priority)),
        Statement(DROP_LABELS, (row.sid, id_list(meta.labels))),
        Many(ADD_LABEL, [(row.sid, label) for label in meta.labels]),
    ]


def save_meta(target: Target, meta: SessionMeta) -> Program[int]:
    """Describe a session anew. Gives its surrogate key."""
    _, (rows,) = yield from enter_or_create(target, session_statement(target))
    row = session_row(target, rows)
    assert row is not None  # its lane is locked
    yield Write(*_describe(row, tidied(meta), None))
    return row.sid


def describe(session_id: str, changes: Mapping[str, Any]) -> Program[SessionMeta]:
    """Change some fields of a description and leave the others as they are. Gives all of it."""
    target = Target(session_id)
    _, (rows,) = yield from enter_or_create(target, session_statement(target))
    row = session_row(target, rows)
    assert row is not None  # its lane is locked
    meta = tidied(msgspec.structs.replace(effective_meta(session_id, row.meta, row.created_ms), **changes))
    yield Write(*_describe(row, meta, None))
    return meta


def sid_of(session_id: str) -> Program[int | None]:
    """Give the surrogate key of a session, if there is one."""
    (rows,) = yield Read(session_statement(Target(session_id)), last=True)
    return rows[0][0] if rows else None


def list_page(after_sid: int, limit: int, filters: SessionFilter) -> Program[SessionPage]:
    """List sessions in the order of their creation, from behind ``after_sid``."""
    wanted = _criteria(filters)
    counts: list[int] = []
    if worth_counting([each.is_ordered for each in wanted]):
        found = yield Read(*(Statement(each.counting, (*each.values, FEW)) for each in wanted))
        counts = [count for ((count,),) in found]
    way = way_through([each.is_ordered for each in wanted], counts)
    (rows,) = yield Read(_listing(after_sid, limit + 1, wanted, way), last=True)
    rows.sort(key=itemgetter(0))  # to the database a join has no order
    sessions = tuple(_summary(row) for row in rows[:limit])
    return SessionPage(sessions, str(rows[limit - 1][0]) if len(rows) > limit else None)


_BEHIND_ALL = "\U0010ffff" * (MAX_ID_BYTES // 4 + 1)
"""What comes behind whatever may follow the prefix of an id, the last code points of all included."""


class _Criterion(NamedTuple):
    """One thing that a filter asks for. ``{0}`` and ``{1}`` in the texts stand for the parameters of its values.

    ``leads`` is said of it where the listing goes through the sessions that it fits, by their index, ``holds`` where
    it is looked at session by session; ``before`` is a key that all sessions it fits come behind, no less than ``$1``.
    ``is_ordered``: its index gives the sessions in the order of the listing.
    """

    values: tuple[Param, ...]
    counting: str
    leads: str
    holds: str
    is_ordered: bool = False
    is_label: bool = False
    before: str = "$1"


def _criteria(filters: SessionFilter) -> list[_Criterion]:
    wanted = [
        _Criterion((label,), COUNT_LABEL, "l.label = {0}", HAS_LABEL, is_ordered=True, is_label=True)
        for label in dict.fromkeys(filters.labels)
    ]
    if filters.parent_session_id is not None:
        parent = (filters.parent_session_id,)
        wanted.append(_Criterion(parent, COUNT_CHILDREN, "s.parent_session_id = {0}", IS_CHILD, is_ordered=True))
    if filters.id_prefix:
        ends = (filters.id_prefix, filters.id_prefix + _BEHIND_ALL)
        wanted.append(_Criterion(ends, COUNT_NAMES, "s.session_id >= {0} and s.session_id < {1}", HAS_NAME))
    since, until = filters.created_from_ms, filters.created_until_ms
    if since is not None or until is not None:
        span = (-MAX_INT if since is None else since, MAX_INT if until is None else until)
        within = "s.created_ms >= {0} and s.created_ms <= {1}"
        wanted.append(_Criterion(span, COUNT_CREATED, within, WAS_CREATED, before=BEFORE_CREATED))
    return wanted


def _listing(after_sid: int, limit: int, wanted: Sequence[_Criterion], way: Way) -> Statement:
    """Go through the sessions that lead the way, in order or to be sorted, and look at each for the rest."""
    leader = None if way.leader is None else wanted[way.leader]
    by_label = leader is not None and leader.is_label
    params: list[Param] = [after_sid]
    where: list[str] = []
    before = "$1"
    for criterion in wanted:
        names = [f"${len(params) + at}" for at in range(1, len(criterion.values) + 1)]
        params += criterion.values
        text = criterion.leads if criterion is leader else criterion.holds
        where.append(text.format(*names, sid="l.sid" if by_label else "s.sid"))
        if criterion.before != before:
            before = criterion.before.format(*names)
    key = "l.sid" if by_label else "s.sid"
    if way.in_order:
        where.append(f"{key} > {before}")
    else:
        where.append("+s.sid > $1")  # what is compared as an expression is no way to find the row
    if by_label:
        where.append("s.sid > $1")  # a merge of the two begins there as well
    params.append(limit)
    sessions = LABELLED if by_label else ALL
    order = key if way.in_order else f"+{key}"
    sql = LIST.format(sessions=sessions, where=" and ".join(where), order=order, limit=f"${len(params)}")
    return Statement(sql, tuple(params))


def _summary(row: Row) -> SessionSummary:
    _, session_id, created_ms, body, revision, node_count, updated_ms = row
    meta = effective_meta(session_id, None if body is None else stored(SessionMeta, body), created_ms)
    return SessionSummary(meta, revision, node_count, created_ms, updated_ms)


def delete(session_id: str) -> Program[bool]:
    """Remove all of a session, also while its lane is held. What it held of attachments becomes releases (law A4)."""
    lane, _ = yield from enter(Target(session_id))
    if lane is None:
        return False
    yield Write(
        Statement(RELEASE_ATTACHMENTS, (lane.sid, lane.now_ms)),
        *(Statement(f"delete from {table} where sid = $1", (lane.sid,)) for table in SESSION_TABLES),
        Statement(DELETE_SESSION, (lane.sid,)),
    )
    return True
