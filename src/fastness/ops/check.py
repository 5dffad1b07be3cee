"""Reading a database for verification, one session at a time, each from one snapshot."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from fastness.decide import check as rules
from fastness.decide.check import ClaimFact, HeadFact, LaneFact, LogFact, NodeFact, SessionFacts
from fastness.decide.commit import HEAD as HEAD_HOLDER
from fastness.decide.commit import frame_holder
from fastness.decide.stored_node import node_crc
from fastness.errors import DatabaseDamagedError, StoreError
from fastness.model.attachments import AttachmentRef
from fastness.model.base import Record, decoder_of, sha256_hex
from fastness.model.checkpoint import SessionCheckpoint
from fastness.model.queued_work import QueuedWorkBatchDraft
from fastness.model.reports import CheckFinding, CheckReport
from fastness.model.session import AgentFrameRecord, PersistedSessionConfig, SessionMeta
from fastness.model.turn_input import PendingTurnInputDraft
from fastness.ops import environments
from fastness.ops.commit import held_by_holder
from fastness.sql.program import Program, Read, Row, Statement
from fastness.sql.records import page_end, readable_node, stored, stored_content
from fastness.sql.schema import SESSION_TABLES

COUNTS = """
    select (select count(*) from session), (select count(*) from blob), (select count(*) from turn_input),
        (select count(*) from queued_work)"""
ORPHANS = "select count(*) from {table} where sid not in (select sid from session)"
NEXT_SESSION = "select sid, session_id from session where sid > $1 order by sid limit 1"
SESSION = "select session_id, meta, config from session where sid = $1"
LANE = """
    select admission_seq, fencing_token, ready_ms, backoff_ms, expires_ms, now_ms() from lane where sid = $1"""
HEAD = """
    select revision, leaf_node_id, node_count, next_seq, agent_frame_id, checkpoint_ref, checkpoint
    from head where sid = $1"""
LOG = "select count(*), coalesce(max(revision), 0) from commit_log where sid = $1"
NEWEST = "select leaf_node_id, checkpoint_ref from commit_log where sid = $1 order by revision desc limit 1"
FRAMES = "select frame_id, body from agent_frame where sid = $1"
HELD = """
    select h.holder, h.ref, b.body from blob_holder h left join blob b on b.ref = h.ref
    where h.sid = $1 and h.until_revision is null"""
INPUTS = """
    select i.input_id, i.seq, i.claim_id, i.lane_token, i.available_ms, i.body,
        exists (select 1 from turn_input_evidence e
            where e.sid = i.sid and (e.input_id = i.input_id or e.source_key = i.source_key))
    from turn_input i where i.sid = $1"""
WORK = """
    select w.batch_id, w.seq, w.claim_id, w.lane_token, w.available_ms, w.body,
        exists (select 1 from queued_work_evidence e
            where e.sid = w.sid and (e.batch_id = w.batch_id or e.source_key = w.source_key))
    from queued_work w where w.sid = $1"""
# What is set aside has a row in both places.
_LOST = """
    select '{kind}', e.{row_id} from {table}_evidence e where e.sid = $1 and e.state = 'quarantined' and not exists (
        select 1 from quarantine q where q.sid = e.sid and q.kind = '{kind}' and q.row_id = e.{row_id})
    union all select '{kind}', q.row_id from quarantine q where q.sid = $1 and q.kind = '{kind}' and not exists (
        select 1 from {table}_evidence e where e.sid = q.sid and e.{row_id} = q.row_id and e.state = 'quarantined')"""
LOST_INPUT = _LOST.format(kind="input", row_id="input_id", table="turn_input")
LOST_WORK = _LOST.format(kind="work", row_id="batch_id", table="queued_work")
ATTACHMENTS = "select attachment_id, reference from attachment where sid = $1"
NODES = """
    select seq, node_id, parent_seq, tombstoned, crc, utf8(body) from node
    where sid = $1 and seq > $2 order by seq limit $3"""

_NODES_PER_READ = 1000


class SessionCheck(msgspec.Struct, frozen=True):
    """What the verification of one session found."""

    node_count: int
    commit_count: int
    findings: tuple[CheckFinding, ...]


def check_database() -> Program[CheckReport]:
    """Count what there is, and find rows whose session is gone. Node and commit counts come with the sessions."""
    (counts,), *orphans = yield Read(
        Statement(COUNTS), *(Statement(ORPHANS.format(table=table)) for table in SESSION_TABLES)
    )
    by_table = {table: rows[0][0] for table, rows in zip(SESSION_TABLES, orphans, strict=True)}
    sessions, blobs, inputs, batches = counts
    broken = yield from environments.broken()
    return CheckReport(sessions, 0, 0, blobs, inputs, batches, tuple(rules.database_findings(by_table, broken)))


def next_session(after_sid: int) -> Program[tuple[int, str] | None]:
    """Give the key and id of the first session behind ``after_sid``; None when there is none."""
    (sessions,) = yield Read(Statement(NEXT_SESSION, (after_sid,)))
    return sessions[0] if sessions else None


def check_session(sid: int) -> Program[SessionCheck]:
    """Verify one session. One that was deleted meanwhile has nothing to find."""
    (sessions,) = yield Read(Statement(SESSION, (sid,)))
    if not sessions:
        return SessionCheck(0, 0, ())
    ((session_id, meta, config),) = sessions
    lanes, heads, ((log_count, newest),), last, frames, held, inputs, work, attachments, *lost = yield Read(
        *(Statement(sql, (sid,)) for sql in (LANE, HEAD, LOG, NEWEST, FRAMES, HELD, INPUTS, WORK, ATTACHMENTS)),
        *(Statement(sql, (sid,)) for sql in (LOST_INPUT, LOST_WORK)),
    )
    head = HeadFact(*heads[0]) if heads else None
    contents = {ref: stored_content(ref, body) for _, ref, body in held}
    facts = SessionFacts(
        session_id=session_id,
        meta_readable=_readable(SessionMeta, meta) and _readable(PersistedSessionConfig, config),
        lane=LaneFact(*lanes[0]) if lanes else None,
        head=head,
        log=LogFact(log_count, newest, *(last[0] if last else (None, None))),
        frames=frozenset(frame_id for frame_id, _ in frames),
        needed=_needed(head, frames, contents),
        held=held_by_holder(held),
        broken=frozenset(ref for ref, content in contents.items() if content is None),
        rows=[_claim_fact("input", PendingTurnInputDraft, row) for row in inputs]
        + [_claim_fact("batch", QueuedWorkBatchDraft, row) for row in work],
        unreadable_attachments=[found for found, reference in attachments if not _names(found, reference)],
        lost_quarantined=[(kind, row_id) for rows in lost for kind, row_id in rows],
    )
    findings = list(rules.session_findings(facts))
    audit = rules.NodeAudit(session_id, facts.frames)
    count = after = 0
    while True:
        (nodes,) = yield Read(Statement(NODES, (sid, after, _NODES_PER_READ)))
        if not nodes:
            break
        findings += audit.findings(_node_fact(row, audit) for row in nodes)
        count += len(nodes)
        try:
            after = page_end(after, nodes[-1][0])
        except DatabaseDamagedError as error:
            findings.append(CheckFinding("graph", session_id, f"its nodes: {error.detail}"))
            break
    findings += audit.closing(head)
    return SessionCheck(count, log_count, tuple(findings))


R = TypeVar("R", bound=Record)


def _read(kind: type[R], body: str | bytes | None) -> R | None:
    try:
        return None if body is None else stored(kind, body)
    except StoreError:
        return None


def _readable(kind: type[R], body: str | None) -> bool:
    return body is None or _read(kind, body) is not None


def _names(attachment_id: str, reference: str) -> bool:
    """Whether a reference can be read and is one to this content."""
    try:
        return decoder_of(AttachmentRef).decode(reference).attachment_id == attachment_id
    except msgspec.DecodeError:
        return False


def _needed(
    head: HeadFact | None, frames: list[Row], contents: dict[str, bytes | None]
) -> dict[str, frozenset[str] | None]:
    """What the head and each frame need, by holder; None where a manifest cannot be read or is another."""
    needed: dict[str, frozenset[str] | None] = {}
    if head is not None and head.checkpoint_ref is not None:
        needed[HEAD_HOLDER] = _needs(head.checkpoint_ref, None if head.checkpoint is None else head.checkpoint.encode())
    for frame_id, body in frames:
        frame = _read(AgentFrameRecord, body)
        if frame is None:
            needed[frame_holder(frame_id)] = None
        elif frame.checkpoint_ref is not None:
            ref = frame.checkpoint_ref.sha256
            needed[frame_holder(frame_id)] = _needs(ref, contents.get(ref))
    return needed


def _needs(ref: str, manifest: bytes | None) -> frozenset[str] | None:
    found = _read(SessionCheckpoint, manifest)
    if manifest is None or found is None or sha256_hex(manifest) != ref:
        return None
    return frozenset((ref, *(each.sha256 for each in found.blob_refs())))


def _claim_fact(kind: str, record: type[R], row: Row) -> ClaimFact:
    row_id, seq, claim_id, lane_token, available_ms, body, settled = row
    return ClaimFact(kind, row_id, seq, claim_id, lane_token, available_ms, _readable(record, body), bool(settled))


def _node_fact(row: Row, audit: rules.NodeAudit) -> NodeFact:
    seq, node_id, parent_seq, tombstoned, crc, body = row
    try:
        node = readable_node(body, node_id, seq, parent_seq or 0)
    except StoreError:
        node = None
    parent_id = audit.id_at(parent_seq)
    # A parent that is gone is a finding of its own, or the right of a replaced graph: then there is nothing to compare.
    # It is as it was read, and damage may be of its type.
    differs = isinstance(parent_id, str) and node is not None and node_crc(node_id, seq, parent_id, body) != crc
    sound = node is not None and not differs
    frame_id = node.agent_frame_id if node is not None else None
    return NodeFact(seq, node_id, parent_seq, bool(tombstoned), sound, frame_id)
