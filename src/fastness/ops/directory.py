"""The directory of sessions: creating, describing, listing and deleting them (laws M3, D1 to D3).

Labels and priority are part of a description, and stand once more where work is looked for by them: in a table that is
indexed by label, and in the lane. Both are written with the description, under the lane's lock.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from fastness.decide.directory import effective_meta, filled_meta, parent_of, tidied
from fastness.model.base import checked
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
LIST = """
    select s.sid, s.session_id, s.created_ms, s.meta, coalesce(h.revision, 0), coalesce(h.node_count, 0),
        coalesce(h.updated_ms, s.created_ms)
    from {sessions} left join head h on h.sid = s.sid where {where} order by {key} limit {limit}"""
ALL = "session s"
LABELLED = "session_label l join session s on s.sid = l.sid"
HAS_LABEL = "exists (select 1 from session_label o where o.sid = l.sid and o.label = {})"
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
    (rows,) = yield Read(_listing(after_sid, limit + 1, filters), last=True)
    sessions = tuple(_summary(row) for row in rows[:limit])
    return SessionPage(sessions, str(rows[limit - 1][0]) if len(rows) > limit else None)


def _listing(after_sid: int, limit: int, filters: SessionFilter) -> Statement:
    """With labels it goes by the index of the first, which is in the same order, and looks the others up."""
    labels = tuple(dict.fromkeys(filters.labels))
    sessions, key = (LABELLED, "l.sid") if labels else (ALL, "s.sid")
    params: list[Param] = []
    where: list[str] = []

    def narrow(condition: str, value: Param) -> None:
        if value is not None:
            params.append(value)
            where.append(condition.format(f"${len(params)}"))

    narrow(f"{key} > {{}}", after_sid)
    for at, label in enumerate(labels):
        narrow(HAS_LABEL if at else "l.label = {}", label)
    if filters.id_prefix:
        narrow("s.session_id >= {}", filters.id_prefix)
        narrow("s.session_id < {}", filters.id_prefix + "\U0010ffff")
    narrow("s.parent_session_id = {}", filters.parent_session_id)
    narrow("s.created_ms >= {}", filters.created_from_ms)
    narrow("s.created_ms <= {}", filters.created_until_ms)
    params.append(limit)
    sql = LIST.format(sessions=sessions, where=" and ".join(where), key=key, limit=f"${len(params)}")
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
