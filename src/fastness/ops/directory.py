"""The directory of sessions: creating, describing, listing and deleting them (law M3)."""

from __future__ import annotations

from fastness.decide.directory import effective_meta, filled_meta, parent_of
from fastness.model.base import checked
from fastness.model.session import (
    PersistedSessionConfig,
    SessionFilter,
    SessionMeta,
    SessionPage,
    SessionStoreCreateRequest,
    SessionSummary,
)
from fastness.ops.lane import Target, birth, lock_lane, lock_lane_or_create
from fastness.ops.load import SessionRow, find
from fastness.sql.program import Param, Program, Read, Statement, Write
from fastness.sql.records import stored
from fastness.sql.schema import SESSION_TABLES

DESCRIBE = "update session set meta = $2, parent_session_id = $3, config = coalesce(config, $4) where sid = $1"
LIST = """
    select s.sid, s.session_id, s.created_ms, s.meta, coalesce(h.revision, 0), coalesce(h.node_count, 0),
        coalesce(h.updated_ms, s.created_ms)
    from session s left join head h on h.sid = s.sid where {where} order by s.sid limit {limit}"""
RELEASE_ATTACHMENTS = """
    insert into attachment_release (attachment_id, session_id, released_ms)
    select a.attachment_id, s.session_id, $2 from attachment a join session s on s.sid = a.sid where a.sid = $1
    on conflict (attachment_id, session_id) do update set released_ms = excluded.released_ms"""
DELETE_SESSION = "delete from session where sid = $1"


def create(request: SessionStoreCreateRequest) -> Program[int]:
    """Make a session, or fill in what is missing in the one that is there. Gives its surrogate key."""
    target = Target(request.session_id)
    row = yield from find(target)
    if row is None:
        yield Write(*birth(request.session_id))
        row = yield from find(target)
        assert row is not None  # it was born in this transaction
    meta = filled_meta(request, row.meta, row.created_ms)
    if meta != row.meta or row.config is None:
        yield Write(_describe(row, meta, request.config))
    return row.sid


def _describe(row: SessionRow, meta: SessionMeta, config: PersistedSessionConfig | None) -> Statement:
    config_body = None if config is None else checked(PersistedSessionConfig, config)[1]
    return Statement(DESCRIBE, (row.sid, checked(SessionMeta, meta)[1], parent_of(meta), config_body))


def save_meta(target: Target, meta: SessionMeta) -> Program[int]:
    """Describe a session anew. Gives its surrogate key."""
    lane = yield from lock_lane_or_create(target)
    row = yield from find(Target(target.session_id, lane.sid))
    assert row is not None  # its lane is locked
    yield Write(_describe(row, meta, None))
    return row.sid


def sid_of(session_id: str) -> Program[int | None]:
    """Give the surrogate key of a session, if there is one."""
    row = yield from find(Target(session_id))
    return None if row is None else row.sid


def list_page(after_sid: int, limit: int, filters: SessionFilter) -> Program[SessionPage]:
    """List sessions in the order of their creation, from behind ``after_sid``."""
    params: list[Param] = [after_sid]
    where = ["s.sid > $1"]

    def narrow(condition: str, value: Param) -> None:
        if value is not None:
            params.append(value)
            where.append(f"{condition} ${len(params)}")

    if filters.id_prefix:
        narrow("s.session_id >=", filters.id_prefix)
        narrow("s.session_id <", filters.id_prefix + "\U0010ffff")
    narrow("s.parent_session_id =", filters.parent_session_id)
    narrow("s.created_ms >=", filters.created_from_ms)
    narrow("s.created_ms <=", filters.created_until_ms)
    params.append(limit + 1)
    sql = LIST.format(where=" and ".join(where), limit=f"${len(params)}")
    (rows,) = yield Read(Statement(sql, tuple(params)))
    sessions = tuple(
        SessionSummary(
            effective_meta(session_id, None if meta is None else stored(SessionMeta, meta), created_ms),
            revision,
            node_count,
            created_ms,
            updated_ms,
        )
        for _, session_id, created_ms, meta, revision, node_count, updated_ms in rows[:limit]
    )
    return SessionPage(sessions, str(rows[limit - 1][0]) if len(rows) > limit else None)


def delete(session_id: str) -> Program[bool]:
    """Remove all of a session, also while its lane is held. What it held of attachments becomes releases (law A4)."""
    lane = yield from lock_lane(Target(session_id))
    if lane is None:
        return False
    yield Write(
        Statement(RELEASE_ATTACHMENTS, (lane.sid, lane.now_ms)),
        *(Statement(f"delete from {table} where sid = $1", (lane.sid,)) for table in SESSION_TABLES),
        Statement(DELETE_SESSION, (lane.sid,)),
    )
    return True
