"""The history of a session: its commits, and reading it as one of them left it (laws H1 to H3)."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from fastness.decide import history as rules
from fastness.decide import load as load_rules
from fastness.decide.commit import HeadFacts
from fastness.decide.directory import effective_meta
from fastness.decide.history import Point
from fastness.errors import DatabaseDamagedError
from fastness.model.base import Count, Id
from fastness.model.checkpoint import (
    BlobRef,
    HydratedSessionCheckpoint,
    SessionCheckpoint,
    TokenLedgerEntry,
    TokenUsage,
)
from fastness.model.graph import SessionGraph
from fastness.model.history import CommitPage, CommitRecord
from fastness.model.session import (
    AgentFrameRecord,
    PersistedSessionConfig,
    PersistedSessionRead,
    SessionHead,
    SessionHeadMeta,
)
from fastness.model.transcript import SessionNodeRecord
from fastness.ops.commit import FRAMES_PER_COMMIT
from fastness.ops.lane import Target, of_session
from fastness.ops.load import BLOBS, HEAD, LEDGER, SEQ_OF, read_head, session_row, session_statement
from fastness.sql.program import Program, Read, Row, Statement, id_list
from fastness.sql.records import NODE_ROW, page_end, stored, stored_content, stored_nodes

_COMMITS = """
    select revision, kind, turn_id, committed_ms, leaf_node_id, usage, fencing_token, checkpoint_ref
    from commit_log where sid = $1 and revision {} $2 order by revision {} limit $3"""
OLDEST_COMMITS = _COMMITS.format(">", "asc")
NEWEST_COMMITS = _COMMITS.format("<", "desc")
LOGGED = "select revision, leaf_node_id, checkpoint_ref, next_seq from commit_log where sid = $1 and revision = $2"
LATER_USAGE = """
    select revision, usage from commit_log where sid = $1 and revision > $2 and usage is not null
    order by revision limit $3"""
FRAMES_UNTIL = "select body from agent_frame where sid = $1 and seq < $2 order by seq, frame_id"
NODES_UNTIL = f"""
    select {NODE_ROW} from node n where n.sid = $1 and n.tombstoned = 0 and n.seq > $2 and n.seq < $3
    order by n.seq limit $4"""

_ALL_TIME = 2**63 - 1

_deltas = msgspec.json.Decoder(list[tuple[Id, Id, Count, Count, Count, Count, Count]])


def list_commits(session_id: str, after_revision: int, limit: int, *, newest_first: bool) -> Program[CommitPage]:
    """List the commits of a session, a page at a time, by the log's own key. An unknown session has none."""
    target = Target(session_id)
    if newest_first:
        asked = of_session(target, NEWEST_COMMITS, after_revision or _ALL_TIME, limit + 1)
    else:
        asked = of_session(target, OLDEST_COMMITS, after_revision, limit + 1)
    (rows,) = yield Read(asked, last=True)
    commits = tuple(_record(session_id, row) for row in rows[:limit])
    return CommitPage(commits, commits[-1].revision if len(rows) > limit else None)


def _record(session_id: str, row: Row) -> CommitRecord:
    revision, kind, turn_id, committed_ms, leaf, usage, token, ref = row
    checkpoint_ref = None if ref is None else BlobRef(ref)
    usages = _usages(session_id, revision, usage)
    return CommitRecord(session_id, revision, kind, turn_id, committed_ms, leaf, usages, token, checkpoint_ref)


def _usages(session_id: str, revision: int, body: str | None) -> tuple[TokenLedgerEntry, ...]:
    try:
        deltas = () if body is None else _deltas.decode(body)
        return tuple(TokenLedgerEntry(source, model, TokenUsage(*counters)) for source, model, *counters in deltas)
    except msgspec.DecodeError as error:
        raise DatabaseDamagedError(
            f"the usage of revision {revision} of session {session_id!r} is damaged: {error}",
            "restore it from a backup; 'check' lists what else is damaged",
        ) from None


def load_at(session_id: str, revision: int, rows_per_read: int) -> Program[PersistedSessionRead | None]:
    """Give a session as a commit left it; None for an unknown session. Raises ``RevisionNotReadableError``."""
    target = Target(session_id)
    session, heads, logged = yield Read(
        session_statement(target), of_session(target, HEAD), of_session(target, LOGGED, revision)
    )
    row = session_row(target, session)
    if row is None:
        return None
    head = read_head(heads)
    point = rules.point_at(session_id, revision, head, logged[0] if logged else None)
    assert head is not None  # there is no point without one
    past = _Past(session_id, row.sid, head, point, rows_per_read)
    checkpoint = yield from _checkpoint(past)
    ledger = yield from _ledger(past)
    (frames,) = yield Read(Statement(FRAMES_UNTIL, (row.sid, (revision + 1) * FRAMES_PER_COMMIT)))
    graph = yield from _graph(past)
    leaf = None if graph.leaf_node_id is None else graph.node(graph.leaf_node_id)
    head_meta = SessionHeadMeta(
        revision,
        point.leaf_node_id,
        len(graph.nodes),
        stored(PersistedSessionConfig, head.config_body),
        rules.frame_at(head, point, leaf),
        None if point.checkpoint_ref is None else BlobRef(point.checkpoint_ref),
    )
    records = tuple(stored(AgentFrameRecord, body) for (body,) in frames)
    meta = effective_meta(session_id, row.meta, row.created_ms)
    return PersistedSessionRead(meta, SessionHead(head_meta, records, ledger), graph, checkpoint)


class _Past(NamedTuple):
    """What is read, and how many rows at a time."""

    session_id: str
    sid: int
    head: HeadFacts
    point: Point
    rows_per_read: int

    @property
    def is_now(self) -> bool:
        """Whether nothing was committed since."""
        return self.point.revision == self.head.revision


def _ledger(past: _Past) -> Program[tuple[TokenLedgerEntry, ...]]:
    (rows,) = yield Read(Statement(LEDGER, (past.sid,)))
    totals = [TokenLedgerEntry(source, model, TokenUsage(*counters)) for source, model, *counters in rows]
    later: list[TokenLedgerEntry] = []
    after, done = past.point.revision, past.is_now
    while not done:
        (commits,) = yield Read(Statement(LATER_USAGE, (past.sid, after, past.rows_per_read)))
        for revision, usage in commits:
            later += _usages(past.session_id, revision, usage)
        done = len(commits) < past.rows_per_read
        after = page_end(after, commits[-1][0]) if commits else after
    return rules.usage_until(past.session_id, totals, later)


def _graph(past: _Past) -> Program[SessionGraph]:
    """Read the nodes that were there then and still are. What is there hangs together: branches go whole (law G5)."""
    nodes: list[SessionNodeRecord] = []
    ids: dict[int, str] = {}
    after, done = 0, False
    while not done:
        (rows,) = yield Read(Statement(NODES_UNTIL, (past.sid, after, past.point.next_seq, past.rows_per_read)))
        nodes += stored_nodes(past.session_id, rows, ids)
        done = len(rows) < past.rows_per_read
        after = page_end(after, SEQ_OF(rows[-1])) if rows else after
    leaf = past.point.leaf_node_id
    if not past.is_now and leaf is not None and all(node.node_id != leaf for node in nodes):
        raise rules.lost_transcript(past.session_id, past.point)
    count = past.head.node_count if past.is_now else len(nodes)
    return load_rules.full_graph(past.session_id, nodes, leaf, count)


class Manifest(NamedTuple):
    """The manifest of a checkpoint: by name, as it is stored, and read."""

    ref: str
    body: str
    checkpoint: SessionCheckpoint

    def refs(self) -> list[str]:
        """The blobs that it refers to."""
        return [ref.sha256 for ref in self.checkpoint.blob_refs()]


def manifest_at(session_id: str, head: HeadFacts, point: Point) -> Program[Manifest | None]:
    """Read the manifest of a revision's checkpoint; None where it had none. Collected: ``RevisionNotReadableError``."""
    ref = point.checkpoint_ref
    if ref is None:
        return None
    if ref == head.checkpoint_ref and head.checkpoint is not None and head.checkpoint_body is not None:
        return Manifest(ref, head.checkpoint_body, head.checkpoint)
    (rows,) = yield Read(Statement(BLOBS, (id_list([ref]),)))
    if not rows:
        raise rules.lost_checkpoint(session_id, point)
    body = sound_content(ref, rows[0][1])
    return Manifest(ref, body.decode(), stored(SessionCheckpoint, body))


def sound_content(ref: str, body: bytes | None) -> bytes:
    """Give the content of a blob that has to be there. Raises ``DatabaseDamagedError``."""
    content = stored_content(ref, body)
    if content is None:
        raise DatabaseDamagedError(
            f"blob {ref} of a checkpoint is missing or damaged", "run 'check', restore from a backup"
        )
    return content


def _checkpoint(past: _Past) -> Program[HydratedSessionCheckpoint | None]:
    manifest = yield from manifest_at(past.session_id, past.head, past.point)
    if manifest is None:
        return None
    (rows,) = yield Read(Statement(BLOBS, (id_list(manifest.refs()),)))
    blobs: dict[str, bytes] = dict(rows)
    is_held = manifest.ref == past.head.checkpoint_ref
    if not is_held and not blobs.keys() >= {*manifest.refs()}:
        raise rules.lost_checkpoint(past.session_id, past.point)

    def part(ref: BlobRef | None) -> bytes | None:
        return None if ref is None else sound_content(ref.sha256, blobs.get(ref.sha256))

    found = manifest.checkpoint
    return HydratedSessionCheckpoint(
        found.turn_state, part(found.tool_state), part(found.plugin_snapshot), part(found.execution_state)
    )
