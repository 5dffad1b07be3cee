"""Reading the settled state of a session, each load on one snapshot."""

from __future__ import annotations

from contextlib import suppress
from operator import itemgetter
from typing import NamedTuple, TypeVar

import msgspec

from fastness.decide import load as rules
from fastness.decide.commit import HeadFacts
from fastness.decide.directory import effective_meta
from fastness.errors import DatabaseDamagedError, SessionDeletedError, UnsupportedReadScopeError
from fastness.model.base import MAX_INT
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
from fastness.ops.hint import Hint
from fastness.ops.lane import Target, of_session
from fastness.sql.program import Program, Read, Row, Statement, id_list
from fastness.sql.records import NODE_COLUMNS, NODE_ROW, page_end, stored, stored_content, stored_nodes

SESSION_BY_SID = "select sid, created_ms, meta, config from session where sid = $1"
SESSION_BY_NAME = "select sid, created_ms, meta, config from session where session_id = $1"
HEAD = """
    select revision, leaf_node_id, node_count, next_seq, config, agent_frame_id, checkpoint_ref, checkpoint
    from head where sid = $1"""
FRAMES = "select frame_id, body from agent_frame where sid = $1 order by seq, frame_id"
LEDGER = """
    select source, model, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, reasoning_output_tokens
    from token_usage where sid = $1 order by source, model"""
BLOBS = "select ref, body from blob where ref in any_of($1)"
LIVE_NODES = f"""
    select {NODE_ROW} from node n
    where n.sid = $1 and n.tombstoned = 0 and n.seq > $2 order by n.seq limit $3"""
NODE = f"""
    select {NODE_ROW}, p.node_id from node n left join node p on p.sid = n.sid and p.seq = n.parent_seq
    where n.sid = $1 and n.node_id = $2 and n.tombstoned = 0"""
SEQ = "select seq from node where sid = $1 and node_id = $2 and tombstoned = 0"
# From the leaf up: as many nodes as are wanted, none of them older than the given seq, and the one that they follow
# without its body. A parent is older than its child, so the walk ends even where a file is damaged. The cross joins
# have SQLite go through the path and look each node up, whatever it thinks of their numbers. To sort the rows, it would
# copy all bodies: ``path_of`` does it.
PATH = f"""
    with recursive path (seq, parent_seq, wanted) as (
        select seq, parent_seq, case when seq >= $4 then cast($3 as bigint) else 0 end from node
        where sid = $1 and node_id = $2 and tombstoned = 0
        union all
        select n.seq, n.parent_seq, case when n.seq >= $4 then p.wanted - 1 else 0 end from path p cross join node n
        where n.sid = $1 and n.seq = p.parent_seq and n.seq < p.seq and n.tombstoned = 0 and p.wanted > 0)
    select case when p.wanted > 0 then utf8(n.body) end, {NODE_COLUMNS}, p.wanted > 0
    from path p cross join node n where n.sid = $1 and n.seq = p.seq"""
# The leaf of a revision, if it still is the node that it was then: a seq is never used again.
LEAF_AT = """
    select c.next_seq, c.leaf_node_id from commit_log c
    join node n on n.sid = c.sid and n.node_id = c.leaf_node_id and n.tombstoned = 0 and n.seq < c.next_seq
    where c.sid = $1 and c.revision = $2"""


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
    (rows,) = yield Read(session_statement(target), last=True)
    row = session_row(target, rows)
    return None if row is None else effective_meta(target.session_id, row.meta, row.created_ms)


def load_head(target: Target) -> Program[SessionHeadMeta | None]:
    """Give the head's row; None before the first commit."""
    session, heads = yield Read(session_statement(target), of_session(target, HEAD), last=True)
    head = None if session_row(target, session) is None else read_head(heads)
    return None if head is None else _head_meta(head)


def read_head(rows: list[Row]) -> HeadFacts | None:
    """Read the row of a statement that begins with the columns of ``HEAD``; None before the first commit."""
    if not rows:
        return None
    revision, leaf, count, next_seq, config, frame, ref, body = rows[0][:8]
    checkpoint = None if body is None else stored(SessionCheckpoint, body)
    return HeadFacts(revision, leaf, count, next_seq, config, frame, ref, body, checkpoint)


def _head_meta(head: HeadFacts) -> SessionHeadMeta:
    ref = None if head.checkpoint_ref is None else BlobRef(head.checkpoint_ref)
    config = stored(PersistedSessionConfig, head.config_body)
    return SessionHeadMeta(head.revision, head.leaf_node_id, head.node_count, config, head.agent_frame_id, ref)


def load_node(target: Target, node_id: str) -> Program[SessionNodeRecord | None]:
    """Give one live node."""
    session, rows = yield Read(session_statement(target), of_session(target, NODE, node_id), last=True)
    if session_row(target, session) is None or not rows:
        return None
    *_, parent_seq, parent_id = rows[0]
    return stored_nodes(target.session_id, rows, {} if parent_id is None else {parent_seq: parent_id})[0]


class Loaded(NamedTuple):
    """A session as it was loaded, and what its handle knows of the head from now on."""

    read: PersistedSessionRead
    hint: Hint


class _Graph(NamedTuple):
    graph: SessionGraph
    leaf_seq: int | None
    blobs: list[Row]


class _Place(NamedTuple):
    """Where the nodes of a load are, and how many rows a read may give. ``seen`` are the rows of ``LEAF_AT``."""

    target: Target
    head: HeadFacts
    rows_per_read: int
    seen: list[Row]


def load_session(target: Target, scope: SessionReadScope, rows_per_read: int) -> Program[Loaded | None]:
    """Give the settled state of a session; None before the first commit. Nodes are read so many at a time."""
    if not isinstance(scope, FullGraph | ActivePath):
        raise UnsupportedReadScopeError(repr(scope))
    asked = [session_statement(target), *(of_session(target, sql) for sql in (HEAD, FRAMES, LEDGER))]
    if isinstance(scope, ActivePath) and scope.after_revision is not None:
        asked.append(of_session(target, LEAF_AT, scope.after_revision))
    session, heads, frames, ledger, *seen = yield Read(*asked)
    row = session_row(target, session)
    head = read_head(heads)
    if row is None or head is None:
        return None
    meta = effective_meta(target.session_id, row.meta, row.created_ms)
    place = _Place(Target(target.session_id, row.sid), head, rows_per_read, seen[0] if seen else [])
    loading = _load_full(place) if isinstance(scope, FullGraph) else _load_path(place, scope)
    graph, leaf_seq, blobs = yield from loading
    totals = [TokenLedgerEntry(source, model, TokenUsage(*counters)) for source, model, *counters in ledger]
    records = tuple(stored(AgentFrameRecord, body) for _, body in frames)
    read = PersistedSessionRead(
        meta,
        SessionHead(_head_meta(head), records, tuple(totals)),
        graph,
        _checkpoint(head.checkpoint, dict(blobs)),
    )
    usage: dict[str, dict[str, TokenUsage]] = {}
    for entry in totals:
        usage.setdefault(entry.source, {})[entry.model] = entry.usage
    return Loaded(read, Hint(head, leaf_seq, usage, dict(frames), complete=True))


def _load_full(place: _Place) -> Program[_Graph]:
    """Read all live nodes, some at a time: what was decoded is let go of before more comes, and stays in the caches."""
    (session_id, sid), head, at_once, _ = place
    nodes: list[SessionNodeRecord] = []
    ids: dict[int, str] = {}
    after = 0
    found: list[list[Row]] = []
    also = (Statement(SEQ, (sid, head.leaf_node_id)), *_blobs(head))
    last = False
    while not last:
        left = head.node_count + 1 - len(nodes)  # one more than there should be: it would be noticed
        last = left <= at_once
        page = Statement(LIVE_NODES, (sid, after, max(1, min(left, at_once))))
        rows, *others = yield Read(page, *also, last=last)
        found, also = found or others, ()
        nodes += stored_nodes(session_id, rows, ids)
        after = page_end(after, SEQ_OF(rows[-1])) if rows else after
        last = last or not rows
    graph = rules.full_graph(session_id, nodes, head.leaf_node_id, head.node_count)
    seqs, *blobs = found
    return _Graph(graph, seqs[0][0] if seqs else None, blobs[0] if blobs else [])


def _load_path(place: _Place, scope: ActivePath) -> Program[_Graph]:
    """Read a path, or its end. What is left out as known has to be what it hangs on, or else all of it is read."""
    (session_id, sid), head, _, seen = place
    leaf = head.leaf_node_id if scope.leaf_node_id is None else scope.leaf_node_id
    wanted = scope.last or MAX_INT
    if seen:
        ((since, seen_leaf),) = seen
        rows, *blobs = yield Read(Statement(PATH, (sid, leaf, wanted, since)), *_blobs(head))
        path = path_of(session_id, rows)
        if len(path.nodes) == wanted or path.behind == seen_leaf:
            graph = rules.active_path(session_id, path.nodes, leaf, path.behind)
            return _Graph(graph, _leaf_seq(rows, leaf, head), blobs[0] if blobs else [])
    rows, *blobs = yield Read(Statement(PATH, (sid, leaf, wanted, ALL_PLACES)), *_blobs(head), last=True)
    path = path_of(session_id, rows)
    graph = rules.active_path(session_id, path.nodes, leaf, path.behind)
    return _Graph(graph, _leaf_seq(rows, leaf, head), blobs[0] if blobs else [])


class Path(NamedTuple):
    """Nodes from the root, or from behind another node, to a leaf. ``rows`` are theirs, in their order."""

    nodes: list[SessionNodeRecord]
    behind: str | None
    rows: list[Row]


def path_of(session_id: str, rows: list[Row]) -> Path:
    """Read the rows of ``PATH``, which come leaf first. Raises ``GraphInvalidError``."""
    with suppress(TypeError):  # a place that is no number is damage, which is told below
        rows.sort(key=SEQ_OF)
    if not rows or rows[0][5]:
        return Path(stored_nodes(session_id, rows), None, rows)
    _, _, behind, seq, *_ = rows[0]
    return Path(stored_nodes(session_id, rows[1:], {seq: behind}), behind, rows[1:])


SEQ_OF = itemgetter(3)
ALL_PLACES = -MAX_INT
"""The seq from which a path has all its nodes, also those whose places are damaged."""


def _leaf_seq(rows: list[Row], leaf: str | None, head: HeadFacts) -> int | None:
    return SEQ_OF(rows[-1]) if rows and leaf == head.leaf_node_id else None


def _blobs(head: HeadFacts) -> tuple[Statement, ...]:
    """What the head's checkpoint consists of, where it has one."""
    if head.checkpoint is None:
        return ()
    return (Statement(BLOBS, (id_list(ref.sha256 for ref in head.checkpoint.blob_refs()),)),)


def _checkpoint(manifest: SessionCheckpoint | None, blobs: dict[str, bytes]) -> HydratedSessionCheckpoint | None:
    if manifest is None:
        return None
    return HydratedSessionCheckpoint(
        manifest.turn_state,
        _content(manifest.tool_state, blobs),
        _content(manifest.plugin_snapshot, blobs),
        _content(manifest.execution_state, blobs),
    )


def _content(ref: BlobRef | None, blobs: dict[str, bytes]) -> bytes | None:
    if ref is None:
        return None
    content = stored_content(ref.sha256, blobs.get(ref.sha256))
    if content is None:
        raise DatabaseDamagedError(
            f"blob {ref.sha256} of the head's checkpoint is missing or damaged", "run 'check', restore from a backup"
        )
    return content
