"""Tombstones, vacuum and the collection of blobs (laws G5, M1, M2, M5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fastness.decide import graph as graph_rules
from fastness.errors import BackendError
from fastness.model.checkpoint import SessionCheckpoint
from fastness.model.reports import MaintenancePreview, VacuumReport
from fastness.model.session import AgentFrameRecord
from fastness.ops import environments, turn_input
from fastness.ops.lane import Target, enter, of_session
from fastness.sql.program import Many, Program, Read, Row, Statement, Write, id_list
from fastness.sql.records import stored, stored_content

KNOWN_LIVE = "select 1 from node where sid = $1 and tombstoned = 0 and node_id in any_of($2) limit 1"
LIVE_SHAPE = "select seq, parent_seq, node_id from node where sid = $1 and tombstoned = 0 order by seq"
HEAD = "select revision, leaf_node_id, checkpoint_ref from head where sid = $1"
HIDE = "update node set tombstoned = 1 where sid = $1 and seq = $2"
MOVE_HEAD = """
    update head set revision = revision + 1, leaf_node_id = $2, node_count = node_count - $3, updated_ms = $4
    where sid = $1"""
ADD_TO_LOG = """
    insert into commit_log (sid, revision, kind, leaf_node_id, checkpoint_ref, committed_ms, next_seq)
    values ($1, $2, 'tombstone', $3, $4, $5, (select next_seq from head where sid = $1))"""

# Some rows at a time. What stays, since it is too young or in quarantine, is passed over once: by its key.
DROP_TOMBSTONED = """
    delete from node where sid = $1 and seq in (
        select seq from node where sid = $1 and tombstoned = 1 limit $2)
    returning 1"""
_DROP_EVIDENCE = """
    delete from {table} where sid = $1 and {key} in (
        select {key} from {table}
        where sid = $1 and {key} > $2 and settled_ms <= $3 and state <> 'quarantined' order by {key} limit $4)
    returning {key}"""
DROP_INPUT_EVIDENCE = _DROP_EVIDENCE.format(table="turn_input_evidence", key="input_id")
DROP_WORK_EVIDENCE = _DROP_EVIDENCE.format(table="queued_work_evidence", key="batch_id")
DROP_RECEIPTS = """
    update commit_log set turn_hash = null, manifest = null where sid = $1 and revision in (
        select revision from commit_log
        where sid = $1 and revision > $2 and turn_hash is not null and committed_ms <= $3 order by revision limit $4)
    returning revision"""

HEAD_ROOTS = "select sid, checkpoint_ref from head where sid > $1 and sid <= $2 and checkpoint_ref is not null"
FRAMES = "select sid, body from agent_frame where sid > $1 and sid <= $2"
HOLDERS = "select sid, ref from blob_holder where sid > $1 and sid <= $2 and until_revision is null"
BLOBS = "select ref, body from blob where ref in any_of($1)"
NEXT_SIDS = "select max(sid) from (select sid from session where sid > $1 order by sid limit $2) s"
# What the outer condition says is looked at again for a row that changed while it was waited for.
DROP_OLD_HOLDERS = """
    delete from blob_holder where until_revision is not null
        and until_revision <= (select h.revision from head h where h.sid = blob_holder.sid) - $1 + 1
        and (sid, holder, ref) in (
            select b.sid, b.holder, b.ref from blob_holder b join head h on h.sid = b.sid
            where b.sid > $2 and b.sid <= $3
                and b.until_revision is not null and b.until_revision <= h.revision - $1 + 1
            limit $4)
    returning 1"""
IS_NEEDED = """(exists (select 1 from blob_holder h where h.ref = blob.ref)
        or exists (select 1 from environment e where e.blob = blob.ref))"""
NEXT_BLOBS = f"select ref, {IS_NEEDED} from blob where ref > $1 order by ref limit $2"
DROP_UNREACHABLE = f"delete from blob where ref in any_of($1) and not {IS_NEEDED} returning length(body)"

COUNT_ALL_TOMBSTONED = "select count(*) from node where tombstoned = 1"
COUNT_ALL_INPUT_EVIDENCE = "select count(*) from turn_input_evidence where state <> 'quarantined'"
COUNT_ALL_WORK_EVIDENCE = "select count(*) from queued_work_evidence where state <> 'quarantined'"
COUNT_ALL_RECEIPTS = "select count(*) from commit_log where turn_hash is not null"
COUNT_WOULD_BE_UNREACHABLE = """
    select count(*), coalesce(sum(length(body)), 0) from blob
    where not exists (select 1 from environment e where e.blob = blob.ref) and not exists (
        select 1 from blob_holder b where b.ref = blob.ref and (b.until_revision is null or b.until_revision >
            (select h.revision from head h where h.sid = b.sid) - $1 + 1))"""

_ALL_TIME = 2**63 - 1
_SESSIONS_PER_READ = 500
_ROWS_PER_WRITE = 200
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


class Vacuumed(NamedTuple):
    """How far a vacuum has come: what it has removed, up to which keys, and whether there is more."""

    report: VacuumReport = VacuumReport(0, 0, 0, 0)
    input_id: str = ""
    batch_id: str = ""
    revision: int = 0
    is_over: bool = False


def vacuum(
    target: Target, so_far: Vacuumed, evidence_until_ms: int | None = None, receipts_until_ms: int | None = None
) -> Program[Vacuumed]:
    """Remove some of this session's tombstoned nodes and old evidence. Cut-offs are inclusive (law M2).

    Begin with ``Vacuumed()`` and go on with what this gives until it is over: commits get their turn in between.
    """
    lane, _ = yield from enter(target)
    if lane is None:
        return so_far._replace(is_over=True)
    sid = lane.sid
    until = _ALL_TIME if evidence_until_ms is None else evidence_until_ms
    statements = [
        Statement(DROP_TOMBSTONED, (sid, _ROWS_PER_WRITE)),
        Statement(DROP_INPUT_EVIDENCE, (sid, so_far.input_id, until, _ROWS_PER_WRITE)),
        Statement(DROP_WORK_EVIDENCE, (sid, so_far.batch_id, until, _ROWS_PER_WRITE)),
    ]
    if receipts_until_ms is not None:  # receipts go only when they are asked for
        statements.append(Statement(DROP_RECEIPTS, (sid, so_far.revision, receipts_until_ms, _ROWS_PER_WRITE)))
        statements.insert(0, turn_input.defer_settled(sid, receipts_until_ms))
    rows = yield Write(*statements, last=True)
    nodes, inputs, batches, *receipts = rows if receipts_until_ms is None else rows[1:]
    return _further(so_far, nodes, inputs, batches, receipts[0] if receipts else [])


def _further(
    so_far: Vacuumed, nodes: Sequence[Row], inputs: Sequence[Row], batches: Sequence[Row], receipts: Sequence[Row]
) -> Vacuumed:
    """Add what was removed; of the nodes the number counts, of the others also the greatest key."""
    before, gone = so_far.report, (nodes, inputs, batches, receipts)
    return Vacuumed(
        VacuumReport(
            before.removed_node_count + len(nodes),
            before.removed_pending_turn_input_tombstone_count + len(inputs),
            before.removed_queue_evidence_count + len(batches),
            before.removed_receipt_count + len(receipts),
        ),
        max((key for (key,) in inputs), default=so_far.input_id),
        max((key for (key,) in batches), default=so_far.batch_id),
        max((key for (key,) in receipts), default=so_far.revision),
        is_over=all(len(rows) < _ROWS_PER_WRITE for rows in gone),
    )


def next_sids(after: int) -> Program[int | None]:
    """Give the last key of the next sessions that are looked at together; None where there are no more."""
    (((last,),),) = yield Read(Statement(NEXT_SIDS, (after, _SESSIONS_PER_READ)))
    return None if last is None else int(last)


def drop_old_holders(keep_revisions: int, after: int, upto: int) -> Program[bool]:
    """Forget who needed what before the last revisions, of some sessions. Gives whether there may be more to forget."""
    bounds = (keep_revisions, after, upto, _ROWS_PER_WRITE)
    (dropped,) = yield Write(Statement(DROP_OLD_HOLDERS, bounds), last=True)
    return len(dropped) == _ROWS_PER_WRITE


class Swept(NamedTuple):
    """What a look at some blobs came to: where to go on (None: there are no more), and what was deleted and kept."""

    after: str | None
    deleted: int
    freed: int
    retained: int


def sweep_blobs(after: str) -> Program[Swept]:
    """Delete of the next blobs, by name, those that nobody needs.

    What is deleted is what nobody needs by now; a commit beside it that comes to need a blob is kept apart by the
    reference, and is run anew.
    """
    (looked_at,) = yield Read(Statement(NEXT_BLOBS, (after, _ROWS_PER_WRITE)))
    loose = [ref for ref, is_needed in looked_at if not is_needed]
    sizes: list[Row] = []
    if loose:
        (sizes,) = yield Write(Statement(DROP_UNREACHABLE, (id_list(loose),)), last=True)
    further = looked_at[-1][0] if len(looked_at) == _ROWS_PER_WRITE else None
    # Of those that nobody needed, what is not deleted here was deleted by another collection, or is needed by now.
    return Swept(further, len(sizes), sum(size for (size,) in sizes), len(looked_at) - len(loose))


def read_roots() -> Program[int]:
    """Read the checkpoints of all heads and frames, and all environments, on one snapshot (laws M1, E1).

    Gives how many there are. A root that cannot be read, or whose needs are not on record as held, is an error.
    """
    count = yield from _read_environments()
    after = 0
    while (upto := (yield from next_sids(after))) is not None:
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
        (blobs,) = yield Read(Statement(BLOBS, (wanted,)))
        bodies: dict[str, bytes] = dict(blobs)
        for sid, ref in roots:
            _require_held(sid, ref, stored_content(ref, bodies.get(ref)), held)
        count += len(roots)
        after = upto
    return count


def _read_environments() -> Program[int]:
    count = 0
    after = ""
    while rows := (yield from environments.page_after(after, environments.PER_READ)):
        environments.require_sound(rows)
        count, after = count + len(rows), rows[-1][0]
    return count


def _require_held(sid: int, ref: str, content: bytes | None, held: set[tuple[int, str]]) -> None:
    if content is None:
        raise BackendError(f"the root blob {ref} is missing or damaged", _ABORTED)
    for needed in (ref, *(each.sha256 for each in stored(SessionCheckpoint, content).blob_refs())):
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
