"""The manifest: which session may read which content, and what a sweep may take (laws A2 to A4).

Bytes live in an attachment store; these are the rows that say who needs them.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from fastness.decide.manifest import Hold, reclaimable
from fastness.errors import AttachmentNotInManifestError
from fastness.model.attachments import (
    AttachmentIntent,
    AttachmentManifestEntry,
    AttachmentReclaimGrant,
    AttachmentRef,
)
from fastness.model.base import encode
from fastness.ops.lane import Target, enter, enter_or_create, of_session
from fastness.ops.load import session_row, session_statement
from fastness.sql.program import Lock, LockNames, Program, Read, Statement, Write, id_list

LIVE_MARK = "select lapses_ms - now_ms() from attachment_mark where attachment_id = $1 and lapses_ms > now_ms()"
RECORD_INTENT = """
    insert into attachment (sid, attachment_id, committed, recorded_ms, reference) values ($1, $2, 0, $3, $4)
    on conflict (sid, attachment_id) do update set recorded_ms = excluded.recorded_ms, reference = excluded.reference
    where attachment.committed = 0"""
HELD = "select attachment_id from attachment where sid = $1 and attachment_id in any_of($2)"
COMMIT_REFS = "update attachment set committed = 1 where sid = $1 and attachment_id in any_of($2)"
OLD_INTENTS = """
    select s.session_id, a.attachment_id, a.recorded_ms, a.reference from attachment a join session s on s.sid = a.sid
    where a.committed = 0 and a.recorded_ms <= $1 order by a.recorded_ms, s.session_id, a.attachment_id"""
OLD_RELEASES = """
    select session_id, attachment_id, released_ms from attachment_release
    where released_ms <= $1 order by released_ms, session_id, attachment_id"""
ALL_HOLDS = "select attachment_id, committed, recorded_ms from attachment where attachment_id in any_of($1)"
ALL_RELEASES = "select attachment_id, released_ms from attachment_release where attachment_id in any_of($1)"
LOCK_HOLDERS = """
    select l.sid from lane l join session s on s.sid = l.sid
    where l.sid in (select a.sid from attachment a where a.attachment_id in any_of($1))
    order by s.session_id for update of l"""
LIVE_MARKS = """
    select attachment_id from attachment_mark where attachment_id in any_of($1) and lapses_ms > now_ms()"""
NOW = "select now_ms()"
MARK = """
    insert into attachment_mark (attachment_id, sweep_id, marked_ms, lapses_ms) values ($1, $2, $3, $4)
    on conflict (attachment_id) do update set sweep_id = excluded.sweep_id, marked_ms = excluded.marked_ms,
        lapses_ms = excluded.lapses_ms"""
MY_MARKS = """
    select attachment_id, marked_ms from attachment_mark where sweep_id = $1 and attachment_id in any_of($2)"""
RELEASE_INTENTS = """
    insert into attachment_release (attachment_id, session_id, released_ms)
    select a.attachment_id, s.session_id, a.recorded_ms from attachment a join session s on s.sid = a.sid
    where a.attachment_id = $1 and a.committed = 0
    on conflict (attachment_id, session_id) do update set released_ms = excluded.released_ms"""
DROP_INTENTS = "delete from attachment where attachment_id = $1 and committed = 0"
DROP_SWEPT_RELEASE = "delete from attachment_release where attachment_id = $1 and released_ms <= $2"
UNMARK = "delete from attachment_mark where attachment_id = $1 and sweep_id = $2"
RELEASE_ONE = """
    insert into attachment_release (attachment_id, session_id, released_ms)
    select a.attachment_id, $3, $4 from attachment a where a.sid = $1 and a.attachment_id = $2
    on conflict (attachment_id, session_id) do update set released_ms = excluded.released_ms"""
FORGET = "delete from attachment where sid = $1 and attachment_id = $2"


def record_intent(target: Target, intent: AttachmentIntent) -> Program[int]:
    """Record that bytes are about to be put. Gives 0, or for how many milliseconds a sweep has marked that content."""
    attachment_id = intent.reference.attachment_id
    lane, _ = yield from enter_or_create(target)
    (marks,) = yield Read(_content_lock([attachment_id]), Statement(LIVE_MARK, (attachment_id,)))
    if marks:
        return int(marks[0][0])
    reference = encode(intent.reference).decode()
    yield Write(Statement(RECORD_INTENT, (lane.sid, attachment_id, lane.now_ms, reference)))
    return 0


def commit_refs(target: Target, attachment_ids: Sequence[str]) -> Program[None]:
    """Stamp intents outside of a turn. Raises ``AttachmentNotInManifestError``."""
    lane, (rows,) = yield from enter(target, of_session(target, HELD, id_list(attachment_ids)))
    held = {attachment_id for (attachment_id,) in rows}
    for attachment_id in attachment_ids:
        if attachment_id not in held:
            raise AttachmentNotInManifestError(target.session_id, attachment_id)
    if lane is not None and held:
        yield Write(Statement(COMMIT_REFS, (lane.sid, id_list(attachment_ids))))


def holds_ref(target: Target, attachment_id: str) -> Program[bool]:
    """Whether a session's own manifest holds the content, as an intent or committed (law A3)."""
    held = of_session(target, HELD, id_list([attachment_id]))
    session, rows = yield Read(session_statement(target), held, last=True)
    return session_row(target, session) is not None and bool(rows)


def list_uncommitted(older_than_ms: int) -> Program[list[AttachmentManifestEntry]]:
    """List intents and releases of the whole database up to the cut-off, oldest first."""
    intents, releases = yield Read(
        Statement(OLD_INTENTS, (older_than_ms,)), Statement(OLD_RELEASES, (older_than_ms,)), last=True
    )
    return [
        AttachmentManifestEntry(
            session_id, attachment_id, "intent", recorded_ms, msgspec.json.decode(reference, type=AttachmentRef)
        )
        for session_id, attachment_id, recorded_ms, reference in intents
    ] + [
        AttachmentManifestEntry(session_id, attachment_id, "released", released_ms)
        for session_id, attachment_id, released_ms in releases
    ]


def begin_reclaim(
    attachment_ids: Sequence[str], older_than_ms: int, mark_ttl_ms: int, sweep_id: str
) -> Program[AttachmentReclaimGrant]:
    """Mark what nobody needs, so that no intent for it comes between the decision and the deletion of its bytes.

    The old intents become releases with it: a commit that comes too late finds that its manifest lacks the content.
    """
    ids = id_list(attachment_ids)
    holds, releases, marks, ((now_ms,),) = yield Read(
        Lock(LOCK_HOLDERS, (ids,)),
        _content_lock(attachment_ids),
        # Once more, for a session whose intent came while the content was waited for. None can come after that.
        Lock(LOCK_HOLDERS, (ids,)),
        Statement(ALL_HOLDS, (ids,)),
        Statement(ALL_RELEASES, (ids,)),
        Statement(LIVE_MARKS, (ids,)),
        Statement(NOW),
    )
    known = [Hold(attachment_id, bool(committed), recorded_ms) for attachment_id, committed, recorded_ms in holds]
    known += [Hold(attachment_id, committed=False, recorded_ms=released_ms) for attachment_id, released_ms in releases]
    marked = frozenset(attachment_id for (attachment_id,) in marks)
    granted = reclaimable(attachment_ids, known, marked, older_than_ms)
    lapses_ms = now_ms + mark_ttl_ms
    if granted:
        yield Write(
            *(
                statement
                for each in granted
                for statement in (
                    Statement(MARK, (each, sweep_id, now_ms, lapses_ms)),
                    Statement(RELEASE_INTENTS, (each,)),
                    Statement(DROP_INTENTS, (each,)),
                )
            )
        )
    return AttachmentReclaimGrant(sweep_id, granted, lapses_ms)


def _content_lock(attachment_ids: Sequence[str]) -> LockNames:
    """Keep intents for content apart from sweeps over it. Neither could see what the other has not committed yet."""
    return LockNames(tuple(f"attachment:{each}" for each in sorted(set(attachment_ids))))


def finish_reclaim(grant: AttachmentReclaimGrant) -> Program[int]:
    """Forget what was swept, and let intents for it in again. Gives how many contents this sweep still had marked."""
    (mine,) = yield Read(Statement(MY_MARKS, (grant.sweep_id, id_list(grant.attachment_ids))))
    statements = [
        statement
        for attachment_id, marked_ms in mine
        for statement in (
            Statement(DROP_SWEPT_RELEASE, (attachment_id, marked_ms)),
            Statement(UNMARK, (attachment_id, grant.sweep_id)),
        )
    ]
    if statements:
        yield Write(*statements)
    return len(mine)


def forget(target: Target, attachment_id: str) -> Program[None]:
    """Let go of content. What the session held becomes a release, so that a sweep still finds the bytes."""
    lane, (rows,) = yield from enter(target, of_session(target, HELD, id_list([attachment_id])))
    if lane is not None and rows:
        yield Write(
            Statement(RELEASE_ONE, (lane.sid, attachment_id, target.session_id, lane.now_ms)),
            Statement(FORGET, (lane.sid, attachment_id)),
        )
