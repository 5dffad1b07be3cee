"""Forks: a new session that begins with what another one has settled (laws F1 to F4).

One transaction under the source's lane. The new session's rows are nobody else's before it is committed, so there is no
second lane to wait for: whoever makes a session of the same name waits for the row in the directory, and whoever makes
that has every lane it needs. The source may be running; what it has settled is forked.

The transcript is copied inside the database, byte for byte with its checksums and places. It is read here as well: a
path that is damaged must not be copied (law G3), and what it mentions has to be known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from fastness.decide import history as rules
from fastness.decide import load as load_rules
from fastness.decide.commit import HEAD as HEAD_HOLDER
from fastness.decide.commit import HeadFacts, frame_holder
from fastness.decide.directory import effective_meta, parent_of, rfc3339
from fastness.decide.history import Point
from fastness.decide.lane import LaneFacts
from fastness.errors import RevisionNotReadableError, SessionIdTakenError, SessionNotFoundError
from fastness.model.base import MAX_INT, checked
from fastness.model.session import AgentFrameRecord, Child, SessionMeta
from fastness.model.transcript import SessionNodeRecord
from fastness.ops.commit import ADD_HEAD, FRAMES_PER_COMMIT, HOLD_BLOB, PUT_FRAME
from fastness.ops.directory import ADD_LABEL
from fastness.ops.history import LOGGED, Manifest, manifest_at
from fastness.ops.lane import Target, enter, of_session
from fastness.ops.load import ALL_PLACES, HEAD, PATH, SEQ_OF, path_of, read_head, session_row, session_statement
from fastness.sql.program import Item, Many, Program, Read, Statement, Write, id_list
from fastness.sql.records import stored

TAKEN = "select 1 from session where session_id = $1"
ADD_SESSION = """
    insert into session (session_id, created_ms, parent_session_id, meta, config) values ($1, $2, $3, $4, $5)
    on conflict (session_id) do nothing"""
NEW_SID = """
    select s.sid from session s
    where s.session_id = $1 and not exists (select 1 from lane l where l.sid = s.sid)"""
ADD_LANE = "insert into lane (sid, priority) values ($1, $2)"
# The newest commit that ended on a node of this id and place: an id may have been another node's once (law G4). It is
# looked for from the newest commit down, in the log alone, where the head does not stand on the node.
LATEST_AT = """
    select revision, leaf_node_id, checkpoint_ref, next_seq from commit_log
    where sid = $1 and leaf_node_id = $2 and next_seq > $3 order by revision desc limit 1"""
NAMED_FRAMES = "select frame_id, body, seq from agent_frame where sid = $1 and frame_id in any_of($2)"
KNOWN_BLOBS = "select ref from blob where ref in any_of($1)"
COPY_PATH = """
    insert into node (sid, seq, node_id, parent_seq, crc, body)
    with recursive path (seq, parent_seq) as (
        select seq, parent_seq from node where sid = $1 and node_id = $2 and tombstoned = 0
        union all
        select n.seq, n.parent_seq from path p join node n on n.sid = $1 and n.seq = p.parent_seq
        where n.seq < p.seq and n.tombstoned = 0)
    select $3, n.seq, n.node_id, n.parent_seq, n.crc, n.body
    from path p cross join node n where n.sid = $1 and n.seq = p.seq"""
COPY_FRAME_HOLDERS = """
    insert into blob_holder (sid, holder, ref)
    select $2, holder, ref from blob_holder where sid = $1 and holder in any_of($3) and until_revision is null"""
COPY_ATTACHMENTS = """
    insert into attachment (sid, attachment_id, committed, recorded_ms, reference, intent_id)
    select $2, attachment_id, 1, $4, reference, intent_id from attachment
    where sid = $1 and committed = 1 and attachment_id in any_of($3)"""
ADD_TO_LOG = """
    insert into commit_log (sid, revision, kind, leaf_node_id, checkpoint_ref, committed_ms, next_seq)
    values ($1, 1, 'fork', $2, $3, $4, $5)"""


class Place(NamedTuple):
    """Where a session is forked: at a node, at a revision, or with neither at its head."""

    node_id: str | None = None
    revision: int | None = None


class _Origin(NamedTuple):
    """What the fork begins with. ``frames`` are (id, body) in the order they started."""

    sid: int
    head: HeadFacts
    leaf_node_id: str | None
    next_seq: int
    node_count: int
    manifest: Manifest | None
    frame_id: str | None
    frames: list[tuple[str, str]]
    mentioned: frozenset[str]


def fork(session_id: str, new_session_id: str, place: Place, name: str | None) -> Program[SessionMeta]:
    """Make a session that begins where another one was. Gives its description.

    Raises ``SessionNotFoundError``, ``SessionIdTakenError``, ``RevisionNotReadableError``, ``GraphInvalidError``.
    """
    source = Target(session_id)
    lane, (sessions, heads, taken) = yield from enter(
        source, session_statement(source), of_session(source, HEAD), Statement(TAKEN, (new_session_id,))
    )
    row = session_row(source, sessions)
    if lane is None or row is None:
        raise SessionNotFoundError(session_id)
    if taken:
        raise SessionIdTakenError(new_session_id)
    head = read_head(heads)
    if head is None:
        raise RevisionNotReadableError(session_id, 0, "unknown", "nothing was committed yet; create the other session")
    origin = yield from _origin(session_id, lane.sid, head, place)
    meta = msgspec.structs.replace(
        effective_meta(session_id, row.meta, row.created_ms),
        session_id=new_session_id,
        session_name=new_session_id if name is None else name,
        created_at=rfc3339(lane.now_ms),
        relation=Child(session_id, origin.leaf_node_id),
    )
    sid = yield from _add_session(meta, lane, head)
    yield Write(Statement(ADD_LANE, (sid, meta.priority)), *_copied(origin, sid, meta, lane))
    return meta


def _add_session(meta: SessionMeta, lane: LaneFacts, head: HeadFacts) -> Program[int]:
    """Take the name. Somebody may have taken it since it was looked for; one that has a lane is not ours."""
    body = checked(SessionMeta, meta)[1]
    yield Write(Statement(ADD_SESSION, (meta.session_id, lane.now_ms, parent_of(meta), body, head.config_body)))
    (found,) = yield Read(Statement(NEW_SID, (meta.session_id,)))
    if not found:
        raise SessionIdTakenError(meta.session_id)
    return int(found[0][0])


def _origin(session_id: str, sid: int, head: HeadFacts, place: Place) -> Program[_Origin]:
    point = rules.point_of(head)
    if place.revision is not None:
        (logged,) = yield Read(Statement(LOGGED, (sid, place.revision)))
        point = rules.point_at(session_id, place.revision, head, logged[0] if logged else None)
    leaf = point.leaf_node_id if place.node_id is None else place.node_id
    (rows,) = yield Read(Statement(PATH, (sid, leaf, MAX_INT, ALL_PLACES)))
    found = path_of(session_id, rows)
    last_seq = SEQ_OF(found.rows[-1]) if found.rows else 0
    if point.revision != head.revision and leaf is not None and not 0 < last_seq < point.next_seq:
        raise rules.lost_transcript(session_id, point)
    path = load_rules.active_path(session_id, found.nodes, leaf).nodes
    if leaf != point.leaf_node_id:
        (latest,) = yield Read(Statement(LATEST_AT, (sid, leaf, last_seq)))
        point = Point(*latest[0]) if latest else Point(0, leaf, None, last_seq + 1)
    manifest = yield from _manifest(session_id, head, point, is_needed=place.node_id is None)
    frame_id = rules.frame_at(head, point, path[-1] if path else None)
    frames = yield from _frames(sid, path, frame_id)
    bodies = [bytes(body) for body, *_ in found.rows] + [body.encode() for _, body in frames]
    return _Origin(sid, head, leaf, last_seq + 1, len(path), manifest, frame_id, frames, rules.mentioned(bodies))


def _manifest(session_id: str, head: HeadFacts, point: Point, *, is_needed: bool) -> Program[Manifest | None]:
    """Find the checkpoint to begin with. One that was collected is an error where the fork ``is_needed`` to have it."""
    try:
        manifest = yield from manifest_at(session_id, head, point)
        if manifest is not None and manifest.ref != head.checkpoint_ref:
            (known,) = yield Read(Statement(KNOWN_BLOBS, (id_list(manifest.refs()),)))
            if {ref for (ref,) in known} != {*manifest.refs()}:
                raise rules.lost_checkpoint(session_id, point)
    except RevisionNotReadableError:
        if is_needed:
            raise
        return None
    return manifest


def _frames(sid: int, path: Sequence[SessionNodeRecord], current: str | None) -> Program[list[tuple[str, str]]]:
    """Read the frames that a path names, the current one, and those that came before them."""
    wanted = {node.agent_frame_id for node in path} | {current}
    asked: set[str | None] = {None}
    found: list[tuple[int, str, str]] = []
    while new := sorted(frame_id for frame_id in wanted - asked if frame_id is not None):
        (rows,) = yield Read(Statement(NAMED_FRAMES, (sid, id_list(new))))
        asked |= wanted
        found += [(seq, frame_id, body) for frame_id, body, seq in rows]
        wanted = {stored(AgentFrameRecord, body).previous_frame_id for _, body, _ in rows}
    return [(frame_id, body) for _, frame_id, body in sorted(found)]


def _copied(origin: _Origin, sid: int, meta: SessionMeta, lane: LaneFacts) -> list[Item]:
    """Give the statements that fill the new session. What it needs of blobs it holds itself."""
    manifest = origin.manifest
    ref, body, refs = (None, None, []) if manifest is None else (manifest.ref, manifest.body, manifest.refs())
    holders = id_list(frame_holder(frame_id) for frame_id, _ in origin.frames)
    frames = [(sid, frame_id, FRAMES_PER_COMMIT + at, body) for at, (frame_id, body) in enumerate(origin.frames)]
    leaf = origin.leaf_node_id
    head = (sid, 1, leaf, origin.node_count, origin.next_seq, origin.head.config_body, origin.frame_id, ref, body)
    held = [] if ref is None else sorted({ref, *refs})
    return [
        Many(ADD_LABEL, [(sid, label) for label in meta.labels]),
        Statement(COPY_PATH, (origin.sid, leaf, sid)),
        Many(PUT_FRAME, frames),
        Many(HOLD_BLOB, [(sid, HEAD_HOLDER, each) for each in held]),
        Statement(COPY_FRAME_HOLDERS, (origin.sid, sid, holders)),
        Statement(COPY_ATTACHMENTS, (origin.sid, sid, id_list(sorted(origin.mentioned)), lane.now_ms)),
        Statement(ADD_HEAD, head),
        Statement(ADD_TO_LOG, (sid, leaf, ref, lane.now_ms, origin.next_seq)),
    ]
