"""Tombstones, vacuum and the collection of blobs (laws G5, M1, M2, M5)."""

from __future__ import annotations

from collections.abc import Sequence

from fastness.decide import graph as graph_rules
from fastness.errors import BackendError
from fastness.model.checkpoint import SessionCheckpoint
from fastness.model.reports import GcReport, MaintenancePreview, VacuumReport
from fastness.model.session import AgentFrameRecord
from fastness.ops import turn_input
from fastness.ops.lane import Target, enter, of_session
from fastness.sql.program import Many, Program, Read, Row, Statement, Write, id_list
from fastness.sql.records import stored

KNOWN_LIVE = "select 1 from node where sid = $1 and tombstoned = 0 and node_id in any_of($2) limit 1"
LIVE_SHAPE = "select seq, parent_seq, node_id from node where sid = $1 and tombstoned = 0 order by seq"
HEAD = "select revision, leaf_node_id, checkpoint_ref from head where sid = $1"
HIDE = "update node set tombstoned = 1 where sid = $1 and seq = $2"
MOVE_HEAD = """
    update head set revision = revision + 1, leaf_node_id = $2, node_count = node_count - $3, updated_ms = $4
    where sid = $1"""
ADD_TO_LOG = """
    insert into commit_log (sid, revision, kind, leaf_node_id, checkpoint_ref, committed_ms)
    values ($1, $2, 'tombstone', $3, $4, $5)"""

COUNT_TOMBSTONED = "select count(*) from node where sid = $1 and tombstoned = 1"
COUNT_INPUT_EVIDENCE = "select count(*) from turn_input_evidence where sid = $1 and settled_ms <= $2"
COUNT_WORK_EVIDENCE = "select count(*) from queued_work_evidence where sid = $1 and settled_ms <= $2"
COUNT_RECEIPTS = "select count(*) from commit_log where sid = $1 and turn_hash is not null and committed_ms <= $2"
DROP_TOMBSTONED = "delete from node where sid = $1 and tombstoned = 1"
DROP_INPUT_EVIDENCE = "delete from turn_input_evidence where sid = $1 and settled_ms <= $2"
DROP_WORK_EVIDENCE = "delete from queued_work_evidence where sid = $1 and settled_ms <= $2"
DROP_RECEIPTS = """
    update commit_log set turn_hash = null, result = null
    where sid = $1 and turn_hash is not null and committed_ms <= $2"""

HEAD_ROOTS = "select sid, checkpoint_ref from head where sid > $1 and sid <= $2 and checkpoint_ref is not null"
FRAMES = "select sid, body from agent_frame where sid > $1 and sid <= $2"
HOLDERS = "select sid, ref from blob_holder where sid > $1 and sid <= $2 and until_revision is null"
BLOBS = "select ref, body from blob where ref in any_of($1)"
LAST_SID = "select coalesce(max(sid), 0) from session"
DROP_OLD_HOLDERS = """
    delete from blob_holder where until_revision is not null
    and until_revision <= (select h.revision from head h where h.sid = blob_holder.sid) - $1 + 1"""
UNREACHABLE = "from blob where not exists (select 1 from blob_holder h where h.ref = blob.ref)"
DROP_UNREACHABLE = f"delete {UNREACHABLE} returning length(body)"
COUNT_BLOBS = "select count(*) from blob"

COUNT_ALL_TOMBSTONED = "select count(*) from node where tombstoned = 1"
COUNT_ALL_INPUT_EVIDENCE = "select count(*) from turn_input_evidence"
COUNT_ALL_WORK_EVIDENCE = "select count(*) from queued_work_evidence"
COUNT_ALL_RECEIPTS = "select count(*) from commit_log where turn_hash is not null"
COUNT_WOULD_BE_UNREACHABLE = """
    select count(*), coalesce(sum(length(body)), 0) from blob where not exists (
        select 1 from blob_holder b where b.ref = blob.ref and (b.until_revision is null or b.until_revision >
            (select h.revision from head h where h.sid = b.sid) - $1 + 1))"""

_ALL_TIME = 2**63 - 1
_SESSIONS_PER_READ = 500
_ABORTED = "nothing was deleted: run 'check' and restore what it names from a backup"


def tombstone(target: Target, node_ids: Sequence[str]) -> Program[int]:
    """Hide nodes from every read at once. Gives how many were hidden; only then does the revision advance (law G5)."""
    lane, (known, heads) = yield from enter(
        target, of_session(target, KNOWN_LIVE, id_list(node_ids)), of_session(target, HEAD)
    )
    if lane is None or not known or not heads:
        return 0
    sid = lane.sid
    revision, leaf_node_id, checkpoint_ref = heads[0]
    (shape,) = yield Read(Statement(LIVE_SHAPE, (sid,)))
    plan = graph_rules.tombstone(
        target.session_id, [(seq, parent, node_id) for seq, parent, node_id in shape], node_ids, leaf_node_id
    )
    if plan.leaf_moves:
        leaf_node_id = next((node_id for seq, _, node_id in shape if seq == plan.leaf_seq), None)
    yield Write(
        Many(HIDE, [(sid, seq) for seq in plan.seqs]),
        Statement(MOVE_HEAD, (sid, leaf_node_id, len(plan.seqs), lane.now_ms)),
        Statement(ADD_TO_LOG, (sid, revision + 1, leaf_node_id, checkpoint_ref, lane.now_ms)),
    )
    return len(plan.seqs)


def vacuum_counts(sid: int, evidence_until_ms: int | None, receipts_until_ms: int | None) -> Program[VacuumReport]:
    """Count what a vacuum would remove."""
    evidence = _ALL_TIME if evidence_until_ms is None else evidence_until_ms
    asked = [
        Statement(COUNT_TOMBSTONED, (sid,)),
        Statement(COUNT_INPUT_EVIDENCE, (sid, evidence)),
        Statement(COUNT_WORK_EVIDENCE, (sid, evidence)),
    ]
    if receipts_until_ms is not None:  # receipts go only when they are asked for
        asked.append(Statement(COUNT_RECEIPTS, (sid, receipts_until_ms)))
    nodes, inputs, batches, *receipts = [rows[0][0] for rows in (yield Read(*asked))]
    return VacuumReport(nodes, inputs, batches, receipts[0] if receipts else 0)


def vacuum(
    target: Target, evidence_until_ms: int | None = None, receipts_until_ms: int | None = None
) -> Program[VacuumReport]:
    """Remove this session's tombstoned nodes and old evidence. Cut-offs are inclusive (law M2)."""
    lane, _ = yield from enter(target)
    if lane is None:
        return VacuumReport(0, 0, 0, 0)
    sid = lane.sid
    report = yield from vacuum_counts(sid, evidence_until_ms, receipts_until_ms)
    evidence = _ALL_TIME if evidence_until_ms is None else evidence_until_ms
    statements = [
        Statement(DROP_TOMBSTONED, (sid,)),
        Statement(DROP_INPUT_EVIDENCE, (sid, evidence)),
        Statement(DROP_WORK_EVIDENCE, (sid, evidence)),
    ]
    if receipts_until_ms is not None:
        statements.append(turn_input.defer_settled(sid, receipts_until_ms))
        statements.append(Statement(DROP_RECEIPTS, (sid, receipts_until_ms)))
    yield Write(*statements)
    return report


def collect(keep_revisions: int, root_count: int) -> Program[GcReport]:
    """Delete the blobs that no retained checkpoint needs, in the whole database (law M1).

    ``root_count`` is what ``read_roots`` gave: the proof that every root can be read and is held whole. What is deleted
    here is what nobody holds by now; a commit beside it that comes to hold a blob is kept apart by the reference.
    """
    yield Write(Statement(DROP_OLD_HOLDERS, (keep_revisions,)))
    deleted, ((retained,),) = yield Write(Statement(DROP_UNREACHABLE), Statement(COUNT_BLOBS), last=True)
    return GcReport(root_count, retained, len(deleted), sum(size for (size,) in deleted))


def read_roots() -> Program[int]:
    """Read the checkpoints of all heads and frames on one snapshot, and check that each is held whole (law M1).

    Gives how many there are. A root that cannot be read, or whose needs are not on record, is an error.
    """
    count = 0
    after = 0
    ((last,),) = yield from _rows(Statement(LAST_SID))
    while after < last:
        upto = after + _SESSIONS_PER_READ
        heads, frames, holders = yield Read(
            Statement(HEAD_ROOTS, (after, upto)), Statement(FRAMES, (after, upto)), Statement(HOLDERS, (after, upto))
        )
        held = {(sid, ref) for sid, ref in holders}
        roots = {(sid, ref) for sid, ref in heads}
        for sid, body in frames:
            frame = stored(AgentFrameRecord, body)
            if frame.checkpoint_ref is not None:
                roots.add((sid, frame.checkpoint_ref.sha256))
        wanted = id_list(sorted({ref for _, ref in roots}))
        bodies: dict[str, bytes] = dict((yield from _rows(Statement(BLOBS, (wanted,)))))
        for sid, ref in roots:
            _require_held(sid, ref, bodies.get(ref), held)
        count += len(roots)
        after = upto
    return count


def _rows(statement: Statement) -> Program[list[Row]]:
    (rows,) = yield Read(statement)
    return rows


def _require_held(sid: int, ref: str, body: bytes | None, held: set[tuple[int, str]]) -> None:
    if body is None:
        raise BackendError(f"the root blob {ref} is missing", _ABORTED)
    for needed in (ref, *(each.sha256 for each in stored(SessionCheckpoint, bytes(body)).blob_refs())):
        if (sid, needed) not in held:
            raise BackendError(f"blob {needed}, which checkpoint {ref} needs, is not on record as held", _ABORTED)


def preview(keep_revisions: int) -> Program[MaintenancePreview]:
    """Count what a vacuum of every session and a collection would remove."""
    *counts, blobs = yield Read(
        Statement(COUNT_ALL_TOMBSTONED),
        Statement(COUNT_ALL_INPUT_EVIDENCE),
        Statement(COUNT_ALL_WORK_EVIDENCE),
        Statement(COUNT_ALL_RECEIPTS),
        Statement(COUNT_WOULD_BE_UNREACHABLE, (keep_revisions,)),
        last=True,
    )
    return MaintenancePreview(*(rows[0][0] for rows in counts), *blobs[0])
