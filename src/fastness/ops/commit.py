"""The commit: one read of the facts, one decision, one batch of writes (laws C1 to C14)."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from fastness.decide import commit as rules
from fastness.decide.commit import CommitFacts, HeadFacts, Receipt, Settlement
from fastness.decide.commit_input import CommitInput
from fastness.decide.graph import KnownNode, PlacedNode
from fastness.decide.stored_node import node_crc
from fastness.errors import DatabaseDamagedError
from fastness.model.base import encode, sha256_hex
from fastness.model.checkpoint import BlobRef, SessionCheckpoint, TokenUsage
from fastness.model.commit import RuntimeCommitResult
from fastness.model.session import AgentFrameRecord
from fastness.ops import manifest, outbox, queued_work, turn_input
from fastness.ops.hint import Hint, expected_facts, hint_after
from fastness.ops.lane import FENCE, Target, fence_facts, free_lane
from fastness.ops.load import read_head
from fastness.sql.program import Many, Program, Read, Row, Rows, Statement, Write, id_list
from fastness.sql.records import stored

HEAD_FACTS = """
    select h.revision, h.leaf_node_id, h.node_count, h.next_seq, h.config, h.agent_frame_id, h.checkpoint_ref,
        h.checkpoint, c.turn_hash, c.revision, c.leaf_node_id, c.checkpoint_ref, c.manifest, c.changed_frames
    from head h left join commit_log c on c.sid = h.sid and c.turn_id = $2 and c.turn_hash is not null
    where h.sid = $1"""
INITIAL_CONFIG = "select config from session where sid = $1"
KNOWN_NODES = "select node_id, seq, tombstoned from node where sid = $1 and node_id in any_of($2)"
KNOWN_FRAMES = "select frame_id, body from agent_frame where sid = $1 and frame_id in any_of($2)"
HELD_BY_FRAMES = """
    select holder, ref from blob_holder where sid = $1 and holder in any_of($2) and until_revision is null"""
USAGE = """
    select source, model, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, reasoning_output_tokens
    from token_usage where sid = $1 and source in any_of($2)"""

ADD_NODE = "insert into node (sid, seq, node_id, parent_seq, crc, body) values ($1, $2, $3, $4, $5, $6)"
DROP_LIVE_NODES = "delete from node where sid = $1 and tombstoned = 0"
PUT_FRAME = """
    insert into agent_frame (sid, frame_id, seq, body) values ($1, $2, $3, $4)
    on conflict (sid, frame_id) do update set body = excluded.body"""
ADD_BLOB = "insert into blob (ref, body) values ($1, $2) on conflict (ref) do nothing"
HOLD_BLOB = """
    insert into blob_holder (sid, holder, ref) values ($1, $2, $3)
    on conflict (sid, holder, ref) do update set until_revision = null"""
DROP_BLOB = "update blob_holder set until_revision = $4 where sid = $1 and holder = $2 and ref = $3"
PUT_USAGE = """
    insert into token_usage (sid, source, model, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens,
        reasoning_output_tokens)
    values ($1, $2, $3, $4, $5, $6, $7, $8)
    on conflict (sid, source, model) do update set input_tokens = excluded.input_tokens,
        output_tokens = excluded.output_tokens, cache_read_tokens = excluded.cache_read_tokens,
        cache_write_tokens = excluded.cache_write_tokens, reasoning_output_tokens = excluded.reasoning_output_tokens"""
ADD_HEAD = """
    insert into head (sid, revision, leaf_node_id, node_count, next_seq, config, agent_frame_id, checkpoint_ref,
        checkpoint, updated_ms)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, now_ms())"""
MOVE_HEAD = """
    update head set revision = $2, leaf_node_id = $3, node_count = $4, next_seq = $5, config = $6, agent_frame_id = $7,
        checkpoint_ref = $8, checkpoint = $9, updated_ms = now_ms()
    where sid = $1"""
ADD_TO_LOG = """
    insert into commit_log (sid, revision, kind, turn_id, turn_hash, leaf_node_id, checkpoint_ref, committed_ms,
        manifest, changed_frames, usage, next_seq, fencing_token)
    values ($1, $2, $3, $4, $5, $6, $7, now_ms(), $8, $9, $10, $11, $12)"""
STAMP_ATTACHMENT = "update attachment set committed = 1 where sid = $1 and attachment_id = $2"

FRAMES_PER_COMMIT = 1_000_000
"""A frame's seq is this times the revision that brought it, and its place among the frames of that commit."""


class Settled(NamedTuple):
    """What became of a commit, and what the handle knows of the head from now on; None after a replay."""

    result: RuntimeCommitResult
    hint: Hint | None


def commit(
    target: Target,
    given: CommitInput,
    minted_ids: tuple[str, ...],
    hint: Hint | None = None,
    *,
    knows: bool = True,
) -> Program[Settled]:
    """Settle a turn. ``target`` is bound; ``minted_ids`` has an id for each entry of the outbox.

    Without ``knows`` nobody asks what the handle knows afterwards.
    """
    assert target.sid is not None  # a commit is made through a bound handle
    mail = outbox.deliveries(target, given.commit.outbox, minted_ids) if minted_ids else []
    facts, mail_facts = yield from _facts(target, target.sid, given, hint, mail)
    plan = rules.settle(target.session_id, given, facts)
    if isinstance(plan, rules.Replay):
        release = given.commit.release_session_execution_lease
        if plan.releases and release is not None and facts.lane is not None:
            yield Write(free_lane(facts.lane.sid, release), wakes=True)
        return Settled(plan.result, None)
    admitted = (yield from outbox.admitted(mail, mail_facts, target if plan.releases else None)) if mail else []
    apart = not plan.replaces and not given.commit.agent_frames and given.commit.interrupted_turn_input_turn_id is None
    yield Write(
        *_settlement(given, plan), *admitted, apart=apart and not admitted, wakes=plan.releases or bool(admitted)
    )
    return Settled(plan.result, hint_after(given, facts, plan, hint) if knows else None)


def _facts(
    target: Target, sid: int, given: CommitInput, hint: Hint | None, mail: list[outbox.Delivery]
) -> Program[tuple[CommitFacts, Rows]]:
    """Lock the lanes and read what the commit is decided on, and with it the facts of its outbox."""
    commit = given.commit
    turn_id = None if commit.turn_commit is None else commit.turn_commit.turn_id
    asked = {"lane": Statement(FENCE, (sid,)), "head": Statement(HEAD_FACTS, (sid, turn_id))}
    if commit.expected_head_revision is None:
        asked["config"] = Statement(INITIAL_CONFIG, (sid,))
    if given.node_ids:
        asked["nodes"] = Statement(KNOWN_NODES, (sid, id_list(given.node_ids)))
    if given.frame_ids:
        asked["frames"] = Statement(KNOWN_FRAMES, (sid, id_list(given.frame_ids)))
    if commit.agent_frames:
        holders = id_list(rules.frame_holder(frame.frame_id) for frame in commit.agent_frames)
        asked["held_by_frames"] = Statement(HELD_BY_FRAMES, (sid, holders))
    if given.usage:
        asked["usage"] = Statement(USAGE, (sid, id_list({source for source, _ in given.usage})))
    if commit.completed_turn_input_claims:
        asked["input"] = turn_input.held_statement(sid, commit.completed_turn_input_claims)
    if commit.completed_queue_claims:
        asked["work"] = queued_work.held_statement(sid, commit.completed_queue_claims)
    if commit.committed_attachment_ids:
        asked["attachments"] = manifest.stampable(sid, commit.committed_attachment_ids, commit.attachment_proofs)
    expect = None if mail else expected_facts(given, hint, tuple(asked))
    rows = yield Read(*outbox.locks(target, mail), *asked.values(), *outbox.facts(mail), expect=expect)
    own = dict(zip(asked, rows[: len(asked)], strict=True))
    return _read_facts(target.session_id, sid, own), rows[len(asked) :]


def _read_facts(session_id: str, sid: int, rows: dict[str, list[Row]]) -> CommitFacts:
    """Read what was asked for; the rest stays empty. Most commits ask for little, and all of this is in their way."""
    found: dict[str, Any] = {}
    if "config" in rows:
        found["initial_config_body"] = next((config for (config,) in rows["config"]), None)
    if "nodes" in rows:
        found["known"] = {node_id: KnownNode(seq, bool(hidden)) for node_id, seq, hidden in rows["nodes"]}
    if "frames" in rows:
        found["frames"] = {name: stored(AgentFrameRecord, body).checkpoint_ref for name, body in rows["frames"]}
    if "held_by_frames" in rows:
        found["held"] = held_by_holder(rows["held_by_frames"])
    if "usage" in rows:
        found["usage"] = {(source, model): TokenUsage(*counters) for source, model, *counters in rows["usage"]}
    if "input" in rows:
        found["input_rows"] = [turn_input.held_row(row) for row in rows["input"]]
    if "work" in rows:
        found["work_rows"] = [queued_work.held_row(row) for row in rows["work"]]
    if "attachments" in rows:
        found["manifest"] = frozenset(attachment_id for (attachment_id,) in rows["attachments"])
    head, receipt = _head_facts(rows["head"])
    return CommitFacts(fence_facts(session_id, sid, rows["lane"]), head, receipt, **found)


def held_by_holder(rows: list[Row]) -> dict[str, frozenset[str]]:
    """Read rows that begin with holder and ref: what each holder has on record as held."""
    held: dict[str, set[str]] = {}
    for holder, ref, *_ in rows:
        held.setdefault(holder, set()).add(ref)
    return {holder: frozenset(refs) for holder, refs in held.items()}


def _head_facts(rows: list[Row]) -> tuple[HeadFacts | None, Receipt | None]:
    """The head and the receipt of the stamp's turn. Where there is no head, no turn was settled."""
    head = read_head(rows)
    if head is None:
        return None, None
    return head, None if rows[0][8] is None else _receipt(*rows[0][8:])


def _receipt(
    turn_hash: str, revision: int, leaf: str | None, ref: str | None, manifest: str | None, changed_frames: str | None
) -> Receipt:
    checkpoint = None if manifest is None else stored(SessionCheckpoint, manifest)
    if manifest is not None and sha256_hex(manifest.encode()) != ref:
        raise DatabaseDamagedError(f"the receipt of revision {revision} is damaged", "restore it from a backup")
    result = RuntimeCommitResult(revision, None if ref is None else BlobRef(ref), checkpoint, leaf)
    changed = frozenset() if changed_frames is None else frozenset(msgspec.json.decode(changed_frames, type=list[str]))
    return Receipt(turn_hash, result, changed)


def _settlement(given: CommitInput, plan: Settlement) -> list[Statement | Many]:
    """Give the statements that write a settlement, in the order in which they need each other."""
    commit, sid = given.commit, plan.lane.sid
    statements = [*_graph(given, plan, sid), *_blobs(given, plan, sid)]
    for (source, model), usage in plan.usage.items():
        statements.append(Statement(PUT_USAGE, (sid, source, model, *msgspec.structs.astuple(usage))))
    statements += _head(given, plan, sid)
    for input_claim in commit.completed_turn_input_claims:
        statements += turn_input.settle_claim(sid, input_claim)
    if commit.interrupted_turn_input_turn_id is not None:
        statements += turn_input.defer_interrupted(sid, commit.interrupted_turn_input_turn_id, plan.lane.fencing_token)
    for work_claim in commit.completed_queue_claims:
        statements += queued_work.settle_claim(sid, work_claim)
    statements += [Statement(STAMP_ATTACHMENT, (sid, each)) for each in commit.committed_attachment_ids]
    if plan.releases and commit.release_session_execution_lease is not None:
        settled = [one.claim_id for one in commit.completed_turn_input_claims]
        settled += [one.claim_id for one in commit.completed_queue_claims]
        statements.append(free_lane(sid, commit.release_session_execution_lease, settled))
    return statements


def _graph(given: CommitInput, plan: Settlement, sid: int) -> list[Statement | Many]:
    statements: list[Statement | Many] = [Statement(DROP_LIVE_NODES, (sid,))] if plan.replaces else []
    if plan.placed:
        nodes = zip(plan.placed, given.nodes, given.node_bodies, strict=True)
        rows = [_node_row(sid, place, node.parent_node_id, body) for place, node, body in nodes]
        statements.append(Many(ADD_NODE, rows))
    # Frames stand in the order of the commits that brought them; the first insert settles a frame's place.
    first = plan.result.head_revision * FRAMES_PER_COMMIT
    for at, (frame, body) in enumerate(zip(given.commit.agent_frames, given.frame_bodies, strict=True)):
        statements.append(Statement(PUT_FRAME, (sid, frame.frame_id, first + at, body)))
    return statements


def _node_row(sid: int, place: PlacedNode, parent_node_id: str | None, body: str) -> Row:
    crc = node_crc(place.node_id, place.seq, parent_node_id or "", body.encode())
    return sid, place.seq, place.node_id, place.parent_seq, crc, body


def _blobs(given: CommitInput, plan: Settlement, sid: int) -> list[Many]:
    bodies = given.checkpoint.bodies if given.checkpoint else {}
    # In one order for all, so that two commits which bring the same contents do not wait for each other crosswise.
    new = sorted((ref, bodies[ref]) for holder, ref in plan.blobs_gained if holder == rules.HEAD)
    revision = plan.result.head_revision
    changes = (
        Many(ADD_BLOB, new),
        Many(HOLD_BLOB, [(sid, holder, ref) for holder, ref in plan.blobs_gained]),
        Many(DROP_BLOB, [(sid, holder, ref, revision) for holder, ref in plan.blobs_dropped]),
    )
    return [change for change in changes if change.rows]


def _head(given: CommitInput, plan: Settlement, sid: int) -> tuple[Statement, ...]:
    result, stamp = plan.result, given.commit.turn_commit
    revision = result.head_revision
    checkpoint_ref = result.checkpoint_ref.sha256 if result.checkpoint_ref else None
    head = (
        sid,
        revision,
        result.leaf_node_id,
        plan.node_count,
        plan.next_seq,
        plan.config_body,
        plan.agent_frame_id,
        checkpoint_ref,
        plan.checkpoint_body,
    )
    log = (
        sid,
        revision,
        "turn",
        None if stamp is None else stamp.turn_id,
        None if stamp is None else stamp.turn_commit_hash,
        result.leaf_node_id,
        checkpoint_ref,
        None if stamp is None or given.checkpoint is None else given.checkpoint.manifest_body,
        id_list(plan.changed_frames) if plan.changed_frames else None,
        _usage_delta(given),
        plan.next_seq,
        plan.lane.fencing_token,
    )
    return Statement(ADD_HEAD if plan.first else MOVE_HEAD, head), Statement(ADD_TO_LOG, log)


def _usage_delta(given: CommitInput) -> str | None:
    """What the history says that the commit used, one entry for each source and model; None for nothing."""
    if not given.usage:
        return None
    return encode([(*key, *msgspec.structs.astuple(usage)) for key, usage in given.usage.items()]).decode()
