"""The tables, step by step, in the form that a fresh database gets. ``migrations`` numbers the steps.

What belongs to a session carries its surrogate key ``sid`` first. ``sid`` is never reused, so that a handle that was
opened before a deletion cannot touch a session of the same name (law M3). Only the session directory, blobs,
environments and the attachment directory are shared between sessions.

Pending input and work live in tables of their own; what is settled moves to the evidence tables, so that a claim never
pays for history. The lane is a small row without an index on anything that a renewal changes.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Types(NamedTuple):
    """What a dialect calls the things that differ.

    ``identity`` is an integer key that is never reused; ``text`` is ordered by its bytes. ``suffix`` ends a table,
    ``busy`` one whose few rows are written over and over. ``functions`` are what its engine needs beside the tables.
    """

    identity: str
    integer: str
    text: str
    blob: str
    suffix: str
    busy: str
    functions: tuple[str, ...] = ()


SQLITE_TYPES = Types("integer primary key autoincrement", "integer", "text", "blob", " strict", " strict")

FACTS_DIFFER = "FS001"
"""The SQLSTATE of writes that were refused because the facts were not as expected."""

POSTGRES_TYPES = Types(
    "bigint generated always as identity primary key",
    "bigint",
    'text collate "C"',
    "bytea",
    "",
    " with (fillfactor = 50)",
    (
        f"""create function fastness_require(holds boolean) returns void language plpgsql as $$
begin
    if holds is not true then
        raise exception 'the facts are not as expected' using errcode = '{FACTS_DIFFER}';
    end if;
end $$""",
    ),
)

_SESSIONS = (
    # The directory. meta and config are JSON records; meta is null until somebody gave it (law M3).
    """create table session (
    sid {identity},
    session_id {text} not null unique,
    created_ms {integer} not null,
    parent_session_id {text},
    meta {text},
    config {text}
){suffix}""",
    "create index session_parent on session (parent_session_id) where parent_session_id is not null",
    # The lane: locked first by every operation that writes. lease_token is null while it is free.
    # admission_seq and fencing_token are the last ones drawn.
    """create table lane (
    sid {integer} not null primary key,
    admission_seq {integer} not null default 0,
    fencing_token {integer} not null default 0,
    owner_id {text},
    incarnation_id {text},
    liveness {text},
    lease_token {text},
    claimed_ms {integer} not null default 0,
    expires_ms {integer} not null default 0
){busy}""",
    # Where the session stands; there is no row before the first commit. next_seq is the seq of the next node.
    # checkpoint is the manifest that checkpoint_ref names, so that nobody has to search for what the head needs.
    """create table head (
    sid {integer} not null primary key,
    revision {integer} not null,
    leaf_node_id {text},
    node_count {integer} not null,
    next_seq {integer} not null,
    config {text} not null,
    agent_frame_id {text},
    checkpoint_ref {text},
    checkpoint {text},
    updated_ms {integer} not null
){busy}""",
    # body is what the columns do not say of a SessionNodeRecord, crc the CRC-32 of place, id, parent's id and body
    # (decide.stored_node). A parent is named by its place, so that a path is walked over integers.
    """create table node (
    sid {integer} not null,
    seq {integer} not null,
    node_id {text} not null,
    parent_seq {integer},
    tombstoned {integer} not null default 0,
    crc {integer} not null,
    body {text} not null
){suffix}""",
    "create unique index node_by_seq on node (sid, seq)",
    "create unique index node_by_id on node (sid, node_id)",
    "create index node_tombstoned on node (sid) where tombstoned = 1",
    """create table agent_frame (
    sid {integer} not null,
    frame_id {text} not null,
    seq {integer} not null,
    body {text} not null,
    primary key (sid, frame_id)
){suffix}""",
    """create table token_usage (
    sid {integer} not null,
    source {text} not null,
    model {text} not null,
    input_tokens {integer} not null,
    output_tokens {integer} not null,
    cache_read_tokens {integer} not null,
    cache_write_tokens {integer} not null,
    reasoning_output_tokens {integer} not null,
    primary key (sid, source, model)
){busy}""",
    # Receipts and history in one: every revision has a row. A receipt is a row with a turn_hash. manifest is the body
    # of the checkpoint that it came with: a replay tells it also when that was collected (law C3). changed_frames are
    # the frames that were there before and that the commit changed, a JSON array.
    """create table commit_log (
    sid {integer} not null,
    revision {integer} not null,
    kind {text} not null,
    turn_id {text},
    turn_hash {text},
    leaf_node_id {text},
    checkpoint_ref {text},
    committed_ms {integer} not null,
    manifest {text},
    changed_frames {text},
    primary key (sid, revision)
){suffix}""",
    "create unique index commit_log_receipt on commit_log (sid, turn_id) where turn_hash is not null",
    # Content addressed, shared by all sessions.
    """create table blob (
    ref {text} not null primary key,
    body {blob} not null
){suffix}""",
    # Who needs a blob: the head ('head') or a frame ('frame:<id>') of a session. until_revision is null while it does,
    # else the first revision that did without.
    """create table blob_holder (
    sid {integer} not null,
    holder {text} not null,
    ref {text} not null references blob (ref),
    until_revision {integer},
    primary key (sid, holder, ref)
){suffix}""",
    "create index blob_holder_ref on blob_holder (ref)",
    # Input that waits or is claimed. body is the draft as submitted. admission_token is the lane's live fencing token
    # at admission (0: free). claim_id is null while nobody was granted the row, claim_token the greatest grant so far;
    # lane_token and lease_token name the lease it was granted under. turn_id and min_boundary are null for next-turn
    # input.
    """create table turn_input (
    sid {integer} not null,
    seq {integer} not null,
    input_id {text} not null,
    source_key {text},
    state {text} not null,
    turn_id {text},
    min_boundary {text},
    admission_token {integer} not null,
    enqueued_ms {integer} not null,
    claim_id {text},
    claim_token {integer} not null default 0,
    lane_token {integer} not null default 0,
    lease_token {text},
    body {text} not null
){suffix}""",
    "create unique index turn_input_by_seq on turn_input (sid, seq)",
    "create unique index turn_input_by_id on turn_input (sid, input_id)",
    "create unique index turn_input_by_key on turn_input (sid, source_key) where source_key is not null",
    "create index turn_input_by_claim on turn_input (sid, claim_id) where claim_id is not null",
    "create index turn_input_by_turn on turn_input (sid, turn_id, seq) where turn_id is not null",
    # Input that was completed or cancelled, kept so that a source key stays bound.
    """create table turn_input_evidence (
    sid {integer} not null,
    seq {integer} not null,
    input_id {text} not null,
    source_key {text},
    state {text} not null,
    enqueued_ms {integer} not null,
    settled_ms {integer} not null,
    body {text} not null,
    primary key (sid, input_id)
){suffix}""",
    (
        "create unique index turn_input_evidence_by_key on turn_input_evidence (sid, source_key)"
        " where source_key is not null"
    ),
    # Work that waits or is claimed. merge_key is JSON, body the draft as submitted; claims as in turn_input.
    """create table queued_work (
    sid {integer} not null,
    seq {integer} not null,
    batch_id {text} not null,
    source_key {text},
    work_class {text} not null,
    delivery_policy {text} not null,
    slot_policy {text} not null,
    merge_key {text} not null,
    available_ms {integer} not null,
    enqueued_ms {integer} not null,
    claim_id {text},
    claim_token {integer} not null default 0,
    lane_token {integer} not null default 0,
    lease_token {text},
    body {text} not null
){suffix}""",
    "create unique index queued_work_by_seq on queued_work (sid, seq)",
    "create unique index queued_work_by_id on queued_work (sid, batch_id)",
    "create unique index queued_work_by_key on queued_work (sid, source_key) where source_key is not null",
    "create index queued_work_by_claim on queued_work (sid, claim_id) where claim_id is not null",
    """create table queued_work_evidence (
    sid {integer} not null,
    seq {integer} not null,
    batch_id {text} not null,
    source_key {text},
    state {text} not null,
    enqueued_ms {integer} not null,
    settled_ms {integer} not null,
    body {text} not null,
    primary key (sid, batch_id)
){suffix}""",
    (
        "create unique index queued_work_evidence_by_key on queued_work_evidence (sid, source_key)"
        " where source_key is not null"
    ),
    # The manifest: which session may read and refers to which content. committed is 0 for an intent.
    """create table attachment (
    sid {integer} not null,
    attachment_id {text} not null,
    committed {integer} not null,
    recorded_ms {integer} not null,
    reference {text} not null,
    primary key (sid, attachment_id)
){suffix}""",
    "create index attachment_by_content on attachment (attachment_id)",
    "create index attachment_intent on attachment (recorded_ms) where committed = 0",
    # What deleted sessions held: a sweep treats it as intents.
    """create table attachment_release (
    attachment_id {text} not null,
    session_id {text} not null,
    released_ms {integer} not null,
    primary key (attachment_id, session_id)
){suffix}""",
    "create index attachment_release_time on attachment_release (released_ms)",
    # Content that a sweep is deleting right now; the mark lapses by itself.
    """create table attachment_mark (
    attachment_id {text} not null primary key,
    sweep_id {text} not null,
    marked_ms {integer} not null,
    lapses_ms {integer} not null
){suffix}""",
)

_ENVIRONMENTS = (
    # What an agent's process ran in, by its canonical hash; the blob is the document as it was put. Neither is ever
    # deleted.
    """create table environment (
    ref {text} not null primary key,
    blob {text} not null references blob (ref),
    recorded_ms {integer} not null
){suffix}""",
    "create index environment_by_blob on environment (blob)",
    # intent_id is that of the first intent since a sweep took one, so that bytes which were put under an older one do
    # not count for this one.
    "alter table attachment add column intent_id {text} not null default ''",
    # A page of a sweep is read in its order, however much came in one millisecond.
    "drop index attachment_intent",
    "create index attachment_intent on attachment (recorded_ms, attachment_id) where committed = 0",
    "drop index attachment_release_time",
    "create index attachment_release_time on attachment_release (released_ms, attachment_id, session_id)",
)

_AGENDA = (
    # ready_ms is null while nothing waits, else the time from which it is worth looking at the session: never later
    # than the truth, so that nothing is missed, and corrected by whoever looks too early. backoff_ms is the time until
    # which a failed turn is not tried again. interrupt is what the turn that runs is asked to do, JSON.
    "alter table lane add column ready_ms {integer}",
    "alter table lane add column backoff_ms {integer} not null default 0",
    "alter table lane add column priority {integer} not null default 0",
    "alter table lane add column interrupt {text}",
    "create index lane_agenda on lane (priority, ready_ms) where ready_ms is not null",
    "create index lane_owner on lane (owner_id) where owner_id is not null",
    # How often a row was granted and not given back by its holder; input may wait for its time, as work does.
    "alter table turn_input add column available_ms {integer} not null default 0",
    "alter table turn_input add column attempts {integer} not null default 0",
    "alter table queued_work add column attempts {integer} not null default 0",
    # Only what waits for its time: most rows are free at once, and no search for those shall think of this index.
    "create index turn_input_by_time on turn_input (sid, available_ms) where available_ms > 0",
    "create index queued_work_by_time on queued_work (sid, available_ms) where available_ms > 0",
    # Why a row was set aside, and its greatest grant so far. The row is in the evidence, in the state 'quarantined'.
    """create table quarantine (
    sid {integer} not null,
    kind {text} not null,
    row_id {text} not null,
    attempts {integer} not null,
    claim_token {integer} not null,
    quarantined_ms {integer} not null,
    error {text} not null,
    primary key (sid, kind, row_id)
){suffix}""",
    "create index quarantine_by_time on quarantine (quarantined_ms, sid, kind, row_id)",
    """create table session_label (
    sid {integer} not null,
    label {text} not null,
    primary key (sid, label)
){suffix}""",
    "create index session_label_sessions on session_label (label, sid)",
    # A listing goes through the children of a session in its own order, and finds those of a time.
    "drop index session_parent",
    "create index session_parent on session (parent_session_id, sid) where parent_session_id is not null",
    "create index session_created on session (created_ms, sid)",
    # The processes that run turns, as they say it themselves; body is JSON.
    """create table worker (
    worker_id {text} not null primary key,
    seen_ms {integer} not null,
    body {text} not null
){suffix}""",
    # What the history tells of a commit: the deltas of usage as JSON, [source, model, counters…] for each, the seq of
    # the next node, the lease's token.
    "alter table commit_log add column usage {text}",
    "alter table commit_log add column next_seq {integer}",
    "alter table commit_log add column fencing_token {integer}",
    """update lane set ready_ms = 0
    where exists (select 1 from turn_input t where t.sid = lane.sid)
        or exists (select 1 from queued_work w where w.sid = lane.sid)""",
)

SESSION_TABLES = (
    "lane",
    "head",
    "node",
    "agent_frame",
    "token_usage",
    "commit_log",
    "blob_holder",
    "turn_input",
    "turn_input_evidence",
    "queued_work",
    "queued_work_evidence",
    "attachment",
    "quarantine",
    "session_label",
)
"""Every table whose rows belong to one session, by ``sid``: a deletion empties all of them (law M3)."""


def steps(types: Types) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Give the steps in which the tables came to be, in a dialect: a name and its statements, for each of them."""

    def in_dialect(statements: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(ddl.format(**types._asdict()) for ddl in statements)

    return (
        ("sessions", (*in_dialect(_SESSIONS), *types.functions)),
        ("environments", in_dialect(_ENVIRONMENTS)),
        ("agenda", in_dialect(_AGENDA)),
    )


_ADD_COLUMN = re.compile(r"alter table (\w+) add column (.+)")
_DROP_INDEX = re.compile(r"drop index (\w+)")
_KEY = re.compile(r"(?=\n    primary key \()|(?=\n\))")


def create_tables(types: Types) -> tuple[str, ...]:
    """Give the statements that make everything at once as it is after the last step, in a dialect.

    For whoever wants to know what there is; a database is made by running the ``steps``.
    """
    made: list[str] = []
    for statement in (each for _, statements in steps(types) for each in statements):
        if added := _ADD_COLUMN.fullmatch(statement):
            made = [_with_column(each, *added.groups()) for each in made]
        elif dropped := _DROP_INDEX.fullmatch(statement):
            made = [each for each in made if not each.startswith(f"create index {dropped[1]} ")]
        elif not statement.startswith("update "):
            made.append(statement)
    return tuple(made)


def _with_column(statement: str, table: str, column: str) -> str:
    if not statement.startswith(f"create table {table} ("):
        return statement
    # Constraints of the table come behind its columns.
    behind = "," if "\n    primary key (" in statement else ""
    before = "" if behind else ","
    return _KEY.sub(f"{before}\n    {column}{behind}", statement, count=1)
