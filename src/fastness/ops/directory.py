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
from fastness.ops.lane import Target, enter, enter_or_create
from fastness.ops.load import SessionRow, find, session_row, session_statement
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
    if row is None or _filling(row, request) is not None:
        # Look again with the lane locked: somebody else may be filling it in as well.
        _, (rows,) = yield from enter_or_create(target, session_statement(target))
        row = session_row(target, rows)
        assert row is not None  # its lane is locked
        filling = _filling(row, request)
        if filling is not None:
            yield Write(filling)
    return row.sid


def _filling(row: SessionRow, request: SessionStoreCreateRequest) -> Statement | None:
    meta = filled_meta(request, row.meta, row.created_ms)
    return _describe(row, meta, request.config) if meta != row.meta or row.config is None else None


def _describe(row: SessionRow, meta: SessionMeta, config: PersistedSessionConfig | None) -> Statement:
    config_body = None if config is None else checked(PersistedSessionConfig, config)[1]
    return Statement(DESCRIBE, (row.sid, checked(SessionMeta, meta)[1], parent_of(meta), config_body))


def save_meta(target: Target, meta: SessionMeta) -> Program[int]:
    """Describe a session anew. Gives its surrogate key."""
    _, (rows,) = yield from enter_or_create(target, session_statement(target))
    row = session_row(target, rows)
    assert row is not None  # its lane is locked
    yield Write(_describe(row, meta, None))
    return row.sid


def sid_of(session_id: str) -> Program[int | None]:
    """Give the surrogate key of a session, if there is one."""
    (rows,) = yield Read(session_statement(Target(session_id)), last=True)
    return rows[0][0] if rows else None


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
    (rows,) = yield Read(Statement(sql, tuple(params)), last=True)
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
    lane, _ = yield from enter(Target(session_id))
    if lane is None:
        return False
    yield Write(
        Statement(RELEASE_ATTACHMENTS, (lane.sid, lane.now_ms)),
        *(Statement(f"delete from {table} where sid = $1", (lane.sid,)) for table in SESSION_TABLES),
        Statement(DELETE_SESSION, (lane.sid,)),
    )
    return True
