"""Reading the settled state of a session, each load on one snapshot."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from fastness.decide import load as rules
from fastness.decide.directory import effective_meta
from fastness.errors import BackendError, SessionDeletedError, UnsupportedReadScopeError
from fastness.model.checkpoint import (
    BlobRef,
    HydratedSessionCheckpoint,
    SessionCheckpoint,
    TokenLedgerEntry,
    TokenUsage,
)
from fastness.model.graph import SessionGraph
from fastness.model.session import (
    ActivePath,
    AgentFrameRecord,
    FullGraph,
    PersistedSessionConfig,
    PersistedSessionRead,
    SessionHead,
    SessionHeadMeta,
    SessionMeta,
    SessionReadScope,
)
from fastness.model.transcript import SessionNodeRecord
from fastness.ops.lane import Target
from fastness.sql.program import Program, Read, Row, Statement, id_list
from fastness.sql.records import stored, stored_nodes

SESSION_BY_SID = "select sid, created_ms, meta, config from session where sid = $1"
SESSION_BY_NAME = "select sid, created_ms, meta, config from session where session_id = $1"
HEAD = """
    select revision, leaf_node_id, node_count, config, agent_frame_id, checkpoint_ref, checkpoint
    from head where sid = $1"""
FRAMES = "select body from agent_frame where sid = $1 order by seq, frame_id"
LEDGER = """
    select source, model, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, reasoning_output_tokens
    from token_usage where sid = $1 order by source, model"""
BLOBS = "select ref, body from blob where ref in any_of($1)"
LIVE_NODES = """
    select utf8(body), crc, seq from node where sid = $1 and tombstoned = 0 and seq > $2 order by seq limit $3"""
NODE = "select utf8(body), crc from node where sid = $1 and node_id = $2 and tombstoned = 0"
# A parent is older than its child, so the walk ends even where a file is damaged. The cross join has SQLite go through
# the path and look each node up, whatever it thinks of their numbers.
PATH = """
    with recursive path (seq, parent_seq) as (
        select seq, parent_seq from node where sid = $1 and node_id = $2 and tombstoned = 0
        union all
        select n.seq, n.parent_seq from path p join node n on n.sid = $1 and n.seq = p.parent_seq
        where n.seq < p.seq and n.tombstoned = 0)
    select utf8(n.body), n.crc from path p cross join node n where n.sid = $1 and n.seq = p.seq order by p.seq"""

_NODES_PER_READ = 250


class SessionRow(msgspec.Struct, frozen=True):
    """A session's row in the directory."""

    sid: int
    created_ms: int
    meta: SessionMeta | None
    config: PersistedSessionConfig | None


def session_statement(target: Target) -> Statement:
    """Give the statement that finds a session."""
    if target.sid is not None:
        return Statement(SESSION_BY_SID, (target.sid,))
    return Statement(SESSION_BY_NAME, (target.session_id,))


def session_row(target: Target, rows: list[Row]) -> SessionRow | None:
    """Read the row of ``session_statement``. Raises ``SessionDeletedError`` for a bound handle without one."""
    if not rows:
        if target.sid is not None:
            raise SessionDeletedError(target.session_id)
        return None
    sid, created_ms, meta, config = rows[0]
    return SessionRow(sid, created_ms, _optional(SessionMeta, meta), _optional(PersistedSessionConfig, config))


R = TypeVar("R", SessionMeta, PersistedSessionConfig)


def _optional(kind: type[R], body: str | None) -> R | None:
    return None if body is None else stored(kind, body)


def find(target: Target) -> Program[SessionRow | None]:
    """Find a session in the directory."""
    (rows,) = yield Read(session_statement(target))
    return session_row(target, rows)


def load_meta(target: Target) -> Program[SessionMeta | None]:
    """Give what is known of a session; None for an unknown one."""
    row = yield from find(target)
    return None if row is None else effective_meta(target.session_id, row.meta, row.created_ms)


def load_head(target: Target) -> Program[SessionHeadMeta | None]:
    """Give the head's row; None before the first commit."""
    row = yield from find(target)
    if row is None:
        return None
    (rows,) = yield Read(Statement(HEAD, (row.sid,)))
    return _head_meta(rows)


def _head_meta(rows: list[Row]) -> SessionHeadMeta | None:
    if not rows:
        return None
    revision, leaf, count, config, frame, checkpoint_ref, _ = rows[0]
    ref = None if checkpoint_ref is None else BlobRef(checkpoint_ref)
    return SessionHeadMeta(revision, leaf, count, stored(PersistedSessionConfig, config), frame, ref)


def load_node(target: Target, node_id: str) -> Program[SessionNodeRecord | None]:
    """Give one live node."""
    row = yield from find(target)
    if row is None:
        return None
    (rows,) = yield Read(Statement(NODE, (row.sid, node_id)))
    return stored_nodes(target.session_id, rows)[0] if rows else None


def load_session(target: Target, scope: SessionReadScope) -> Program[PersistedSessionRead | None]:
    """Give the settled state of a session; None before the first commit."""
    if not isinstance(scope, FullGraph | ActivePath):
        raise UnsupportedReadScopeError(repr(scope))
    row = yield from find(target)
    if row is None:
        return None
    sid = row.sid
    head_rows, frames, ledger = yield Read(
        Statement(HEAD, (sid,)), Statement(FRAMES, (sid,)), Statement(LEDGER, (sid,))
    )
    head = _head_meta(head_rows)
    if head is None:
        return None
    graph = yield from _load_graph(target.session_id, sid, head, scope)
    checkpoint = yield from _load_checkpoint(head_rows[0][-1])
    return PersistedSessionRead(
        effective_meta(target.session_id, row.meta, row.created_ms),
        SessionHead(
            head,
            tuple(stored(AgentFrameRecord, body) for (body,) in frames),
            tuple(TokenLedgerEntry(source, model, TokenUsage(*counters)) for source, model, *counters in ledger),
        ),
        graph,
        checkpoint,
    )


def _load_graph(session_id: str, sid: int, head: SessionHeadMeta, scope: SessionReadScope) -> Program[SessionGraph]:
    if isinstance(scope, FullGraph):
        nodes = yield from _live_nodes(session_id, sid)
        return rules.full_graph(session_id, nodes, head.leaf_node_id, head.node_count)
    leaf = head.leaf_node_id if scope.leaf_node_id is None else scope.leaf_node_id
    (rows,) = yield Read(Statement(PATH, (sid, leaf)))
    return rules.active_path(session_id, stored_nodes(session_id, rows), leaf)


def _live_nodes(session_id: str, sid: int) -> Program[list[SessionNodeRecord]]:
    """Read all live nodes, some at a time: what was decoded is let go of before more comes, and stays in the caches."""
    nodes: list[SessionNodeRecord] = []
    after = 0
    while True:
        (rows,) = yield Read(Statement(LIVE_NODES, (sid, after, _NODES_PER_READ)))
        nodes += stored_nodes(session_id, rows)
        if len(rows) < _NODES_PER_READ:
            return nodes
        after = rows[-1][-1]


def _load_checkpoint(body: str | None) -> Program[HydratedSessionCheckpoint | None]:
    if body is None:
        return None
    manifest = stored(SessionCheckpoint, body)
    wanted = id_list(ref.sha256 for ref in manifest.blob_refs())
    (rows,) = yield Read(Statement(BLOBS, (wanted,)))
    blobs = {ref: bytes(content) for ref, content in rows}
    return HydratedSessionCheckpoint(
        manifest.turn_state,
        _content(manifest.tool_state, blobs),
        _content(manifest.plugin_snapshot, blobs),
        _content(manifest.execution_state, blobs),
    )


def _content(ref: BlobRef | None, blobs: dict[str, bytes]) -> bytes | None:
    if ref is None:
        return None
    if ref.sha256 not in blobs:
        raise BackendError(
            f"blob {ref.sha256} of the head's checkpoint is missing", "run 'check', restore from a backup"
        )
    return blobs[ref.sha256]
