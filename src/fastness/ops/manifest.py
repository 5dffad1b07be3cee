"""The manifest: which session may read which content, and what a sweep may take (laws A2 to A4).

Bytes live in an attachment store; these are the rows that say who needs them.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from fastness.decide.manifest import Hold, reclaimable
from fastness.errors import AttachmentNotInManifestError, DatabaseDamagedError
from fastness.model.attachments import (
    AttachmentIntent,
    AttachmentManifestEntry,
    AttachmentProof,
    AttachmentReclaimGrant,
    AttachmentRef,
)
from fastness.model.base import decoder_of, encode
from fastness.ops.lane import Target, enter, enter_or_create, of_session
from fastness.ops.load import session_row, session_statement
from fastness.sql.program import Lock, LockNames, Many, Param, Program, Read, Rows, Statement, Write, id_list

LIVE_MARK = "select lapses_ms - now_ms() from attachment_mark where attachment_id = $1 and lapses_ms > now_ms()"
RECORD_INTENT = """
    insert into attachment (sid, attachment_id, committed, recorded_ms, reference, intent_id)
    values ($1, $2, 0, $3, $4, $5)
    on conflict (sid, attachment_id) do update set recorded_ms = excluded.recorded_ms, reference = excluded.reference,
        intent_id = case attachment.intent_id when '' then excluded.intent_id else attachment.intent_id end
    where attachment.committed = 0"""
HELD = "select attachment_id from attachment where sid = $1 and attachment_id in any_of($2)"
FOUND = "select committed, recorded_ms, reference, intent_id from attachment where sid = $1 and attachment_id = $2"
STAMPABLE = """
    select attachment_id from attachment where sid = $1 and attachment_id in any_of($2)
        and (committed = 1 or intent_id in any_of($4) or not attachment_id in any_of($3))"""
COMMIT_REFS = "update attachment set committed = 1 where sid = $1 and attachment_id in any_of($2)"
# What a sweep looks at, a page at a time: in the order of time, intents before releases where all else is equal.
OLD_INTENTS = """
    select s.session_id, a.attachment_id, a.committed, a.recorded_ms, a.reference
    from attachment a join session s on s.sid = a.sid
    where a.committed = 0 and a.recorded_ms <= $1 and a.recorded_ms >= $2
        and (a.recorded_ms, a.attachment_id, s.session_id, 0) > ($2, $3, $4, $5)
    order by a.recorded_ms, a.attachment_id, s.session_id limit $6"""
OLD_RELEASES = """
    select session_id, attachment_id, released_ms from attachment_release
    where released_ms <= $1 and released_ms >= $2 and (released_ms, attachment_id, session_id, 1) > ($2, $3, $4, $5)
    order by released_ms, attachment_id, session_id limit $6"""
OF_SESSION = """
    select attachment_id, committed, recorded_ms, reference from attachment
    where sid = $1 and attachment_id > $2 order by attachment_id limit $3"""
OF_ALL_SESSIONS = """
    select s.session_id, a.attachment_id, a.committed, a.recorded_ms, a.reference
    from attachment a join session s on s.sid = a.sid
    where a.attachment_id >= $1 and (a.attachment_id, s.session_id) > ($1, $2)
    order by a.attachment_id, s.session_id limit $3"""
IS_COMMITTED = "select attachment_id from attachment where attachment_id = $1 and committed = 1 limit 1"
IS_NAMED = """
    select 1 where exists (select 1 from attachment where attachment_id = $1)
        or exists (select 1 from attachment_release where attachment_id = $1)"""
RELEASE_UNNAMED = """
    insert into attachment_release (attachment_id, session_id, released_ms) values ($1, '', now_ms())
    on conflict (attachment_id, session_id) do nothing"""
IDLE_RELEASES = """
    select attachment_id, session_id, released_ms from attachment_release
    where attachment_id = $1 and released_ms <= $2 limit 1000"""
# Only what was seen: a release that its session has made anew meanwhile is of another time.
DROP_IDLE_RELEASE = """
    delete from attachment_release where attachment_id = $1 and session_id = $2 and released_ms = $3 and exists (
        select 1 from attachment a where a.attachment_id = attachment_release.attachment_id and a.committed = 1)"""
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
MARK_LEFT = "select lapses_ms - now_ms() from attachment_mark where sweep_id = $1 and attachment_id in any_of($2)"
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


def record_intent(target: Target, intent: AttachmentIntent, intent_id: str) -> Program[int]:
    """Record that bytes are about to be put. Gives 0, or for how many milliseconds a sweep has marked that content."""
    attachment_id = intent.reference.attachment_id
    lane, _ = yield from enter_or_create(target)
    (marks,) = yield Read(_content_lock([attachment_id]), Statement(LIVE_MARK, (attachment_id,)))
    if marks:
        return int(marks[0][0])
    reference = encode(intent.reference).decode()
    yield Write(Statement(RECORD_INTENT, (lane.sid, attachment_id, lane.now_ms, reference, intent_id)))
    return 0


def stampable(sid: int, attachment_ids: Sequence[str], proofs: Sequence[AttachmentProof]) -> Statement:
    """Give the statement that finds which of these a commit may refer to: one that is shown proof of, only by that."""
    return Statement(STAMPABLE, (sid, *_asked(attachment_ids, proofs)))


def _asked(attachment_ids: Sequence[str], proofs: Sequence[AttachmentProof]) -> tuple[str, str, str]:
    proven = id_list({proof.attachment_id for proof in proofs})
    return id_list(attachment_ids), proven, id_list({proof.intent_id for proof in proofs})


def commit_refs(target: Target, attachment_ids: Sequence[str], proofs: Sequence[AttachmentProof]) -> Program[None]:
    """Stamp intents outside of a turn. Raises ``AttachmentNotInManifestError``."""
    lane, (rows,) = yield from enter(target, of_session(target, STAMPABLE, *_asked(attachment_ids, proofs)))
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


def list_uncommitted(
    older_than_ms: int, after: AttachmentManifestEntry | None, limit: int
) -> Program[list[AttachmentManifestEntry]]:
    """List intents and releases of the whole database up to the cut-off, oldest first, from behind an entry."""
    behind: tuple[Param, ...] = (0, "", "", 0)
    if after is not None:
        behind = _sweep_order(after)
    bounds = (older_than_ms, *behind, limit)
    intents, releases = yield Read(Statement(OLD_INTENTS, bounds), Statement(OLD_RELEASES, bounds), last=True)
    found = [_entry(*row) for row in intents]
    found += [
        AttachmentManifestEntry(session_id, attachment_id, "released", released_ms)
        for session_id, attachment_id, released_ms in releases
    ]
    return sorted(found, key=_sweep_order)[:limit]


def _sweep_order(entry: AttachmentManifestEntry) -> tuple[int, str, str, int]:
    # Texts are ordered by their bytes in every database of ours; code points have the same order.
    rank = 1 if entry.state == "released" else 0
    return (entry.recorded_at_epoch_ms, entry.attachment_id, entry.session_id, rank)


def _entry(
    session_id: str, attachment_id: str, committed: int, recorded_ms: int, reference: str, intent_id: str = ""
) -> AttachmentManifestEntry:
    try:
        found = decoder_of(AttachmentRef).decode(reference)
    except msgspec.DecodeError as error:
        raise DatabaseDamagedError(
            f"the reference of attachment {attachment_id} in session {session_id!r} is damaged: {error}",
            "restore it from a backup; 'check' lists what else is damaged",
        ) from None
    return AttachmentManifestEntry(
        session_id, attachment_id, "committed" if committed else "intent", recorded_ms, found, intent_id
    )


def find_attachment(target: Target, attachment_id: str) -> Program[AttachmentManifestEntry | None]:
    """Give a session's own row of some content; None where it has none, whoever else may (law A3)."""
    asked = of_session(target, FOUND, attachment_id)
    session, rows = yield Read(session_statement(target), asked, last=True)
    if session_row(target, session) is None or not rows:
        return None
    return _entry(target.session_id, attachment_id, *rows[0])


def list_attachments(
    target: Target, after: AttachmentManifestEntry | None, limit: int
) -> Program[list[AttachmentManifestEntry]]:
    """List what one session holds, by content, from behind an entry."""
    behind = "" if after is None else after.attachment_id
    session, rows = yield Read(session_statement(target), of_session(target, OF_SESSION, behind, limit), last=True)
    if session_row(target, session) is None:
        return []
    return [_entry(target.session_id, *row) for row in rows]


def list_all_attachments(after: AttachmentManifestEntry | None, limit: int) -> Program[list[AttachmentManifestEntry]]:
    """List what all sessions hold, by content and then by session, from behind an entry."""
    content, name = ("", "") if after is None else (after.attachment_id, after.session_id)
    (rows,) = yield Read(Statement(OF_ALL_SESSIONS, (content, name, limit)), last=True)
    return [_entry(*row) for row in rows]


def list_reclaimable(attachment_ids: Sequence[str], older_than_ms: int) -> Program[tuple[str, ...]]:
    """Say what a sweep would be granted now. Nothing is marked."""
    loose, _ = yield from _not_committed(attachment_ids)
    facts = yield Read(*_hold_statements(loose), last=True)
    return _granted(loose, facts, older_than_ms)


def begin_reclaim(
    attachment_ids: Sequence[str], older_than_ms: int, mark_ttl_ms: int, sweep_id: str
) -> Program[AttachmentReclaimGrant]:
    """Mark what nobody needs, so that no intent for it comes between the decision and the deletion of its bytes.

    The old intents become releases with it: a commit that comes too late finds that its manifest lacks the content.
    Releases of content that somebody has committed go: whoever holds it will leave a release of his own.
    """
    loose, committed = yield from _not_committed(attachment_ids)
    if committed:
        idle = yield Read(*(Statement(IDLE_RELEASES, (each, older_than_ms)) for each in committed))
        if any(idle):
            yield Write(Many(DROP_IDLE_RELEASE, [row for rows in idle for row in rows]))
    ids = id_list(loose)
    *facts, ((now_ms,),) = yield Read(
        Lock(LOCK_HOLDERS, (ids,)),
        _content_lock(loose),
        # Once more, for a session whose intent came while the content was waited for. None can come after that.
        Lock(LOCK_HOLDERS, (ids,)),
        *_hold_statements(loose),
        Statement(NOW),
    )
    granted = _granted(loose, facts, older_than_ms)
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


def _not_committed(attachment_ids: Sequence[str]) -> Program[tuple[list[str], list[str]]]:
    """Part what no session has committed from what one has, without a lock: the latter may have a million holders."""
    wanted = list(dict.fromkeys(attachment_ids))
    found = yield Read(*(Statement(IS_COMMITTED, (each,)) for each in wanted))
    committed = {attachment_id for rows in found for (attachment_id,) in rows}
    return [each for each in wanted if each not in committed], [each for each in wanted if each in committed]


def _hold_statements(attachment_ids: Sequence[str]) -> tuple[Statement, ...]:
    ids = id_list(attachment_ids)
    return Statement(ALL_HOLDS, (ids,)), Statement(ALL_RELEASES, (ids,)), Statement(LIVE_MARKS, (ids,))


def _granted(attachment_ids: Sequence[str], facts: Rows, older_than_ms: int) -> tuple[str, ...]:
    """Decide on the rows of ``_hold_statements``."""
    holds, releases, marks = facts
    known = [Hold(attachment_id, bool(committed), recorded_ms) for attachment_id, committed, recorded_ms in holds]
    known += [Hold(attachment_id, committed=False, recorded_ms=released_ms) for attachment_id, released_ms in releases]
    marked = frozenset(attachment_id for (attachment_id,) in marks)
    return reclaimable(attachment_ids, known, marked, older_than_ms)


def _content_lock(attachment_ids: Sequence[str]) -> LockNames:
    """Keep intents for content apart from sweeps over it. Neither could see what the other has not committed yet."""
    return LockNames(tuple(f"attachment:{each}" for each in sorted(set(attachment_ids))))


def reclaim_left_ms(grant: AttachmentReclaimGrant) -> Program[int]:
    """Say how long all the marks of a sweep live on; 0 where one has lapsed, or is another sweep's by now."""
    (rows,) = yield Read(Statement(MARK_LEFT, (grant.sweep_id, id_list(grant.attachment_ids))), last=True)
    if len(rows) < len(set(grant.attachment_ids)):
        return 0
    return max(0, min((left_ms for (left_ms,) in rows), default=0))


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


def release_unnamed(attachment_ids: Sequence[str]) -> Program[int]:
    """Put content on record, as released just now, that no session and no release names. Gives how much that is."""
    wanted = list(dict.fromkeys(attachment_ids))
    found = yield Read(*(Statement(IS_NAMED, (each,)) for each in wanted))
    unnamed = [each for each, rows in zip(wanted, found, strict=True) if not rows]
    if unnamed:
        yield Write(Many(RELEASE_UNNAMED, [(each,) for each in unnamed]))
    return len(unnamed)


def forget(target: Target, attachment_id: str) -> Program[None]:
    """Let go of content. What the session held becomes a release, so that a sweep still finds the bytes."""
    lane, (rows,) = yield from enter(target, of_session(target, HELD, id_list([attachment_id])))
    if lane is not None and rows:
        yield Write(
            Statement(RELEASE_ONE, (lane.sid, attachment_id, target.session_id, lane.now_ms)),
            Statement(FORGET, (lane.sid, attachment_id)),
        )
