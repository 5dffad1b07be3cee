"""The laws of turns: a commit log without holes, one token for each turn, and nobody who writes under an old one.

What orders commits is the revision, and what orders turns is the token. No clock has a say.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from fastness.testing.events import Committed, Interrupted, TurnFailed, TurnStarted
from fastness.testing.final import FinalCommit
from fastness.testing.history import SessionHistory
from fastness.testing.report import Finding


def check_turns(history: SessionHistory) -> Iterator[Finding]:
    """Find every commit that should not have landed, or that somebody knows otherwise."""
    yield from _check_revisions(history)
    yield from _check_turn_ids(history)
    yield from _check_tokens(history)
    yield from _check_fencing(history)
    yield from _check_acknowledgements(history)
    if history.session.lane_holder is not None:
        yield Finding("held_lane", history.session.session_id, f"held by {history.session.lane_holder!r}")


def name_of(commit: FinalCommit) -> str:
    """Name what made a commit: the turn, or, where it was none, the revision."""
    return f"revision {commit.revision}" if commit.turn_id is None else f"turn {commit.turn_id!r}"


def _check_revisions(history: SessionHistory) -> Iterator[Finding]:
    session = history.session
    counts = Counter(commit.revision for commit in session.commits)
    for revision in sorted(counts):
        if counts[revision] > 1:
            detail = f"revision {revision} is in the log {counts[revision]} times"
            yield Finding("revision_repeated", session.session_id, detail)
    before = 0
    for revision in sorted(counts):
        if revision != before + 1:
            yield Finding("revision_gap", session.session_id, f"revision {before + 1} is missing before {revision}")
        before = revision
    if before != session.revision:
        detail = f"the log ends at {before} and the head is at {session.revision}"
        yield Finding("revision_gap", session.session_id, detail)


def _check_turn_ids(history: SessionHistory) -> Iterator[Finding]:
    session_id = history.session.session_id
    revisions: dict[str, list[int]] = defaultdict(list)
    for commit in history.session.commits:
        if commit.turn_id is not None:
            revisions[commit.turn_id].append(commit.revision)
    started = {event.turn_id for event in history.started}
    for turn_id, made in revisions.items():
        # A revision that is there twice is a finding of its own.
        if len(set(made)) > 1:
            listed = ", ".join(map(str, sorted(set(made))))
            yield Finding("turn_repeated", session_id, f"turn {turn_id!r} made the revisions {listed}")
        if turn_id not in started:
            yield Finding("unannounced_commit", session_id, f"turn {turn_id!r} made revision {min(made)}")


def _check_tokens(history: SessionHistory) -> Iterator[Finding]:
    turns: dict[int, set[str]] = defaultdict(set)
    for commit in history.session.commits:
        if commit.fencing_token is not None:
            turns[commit.fencing_token].add(name_of(commit))
    ran: list[TurnStarted | TurnFailed | Interrupted] = [*history.started, *history.failed, *history.interrupted]
    for event in ran:
        turns[event.fencing_token].add(f"turn {event.turn_id!r}")
    for token in sorted(turns):
        if len(turns[token]) > 1:
            detail = f"token {token} belongs to {', '.join(sorted(turns[token]))}"
            yield Finding("token_shared", history.session.session_id, detail)


def _check_fencing(history: SessionHistory) -> Iterator[Finding]:
    """Compare each commit with the greatest token that is known to have been at work before it.

    That is one of an earlier commit, or of a turn that had the lane when the head was at an earlier revision.
    """
    seen = sorted(
        (event.head_revision, event.fencing_token) for event in history.started if event.head_revision is not None
    )
    greatest, at = 0, 0
    for commit in sorted(history.session.commits, key=lambda commit: commit.revision):
        while at < len(seen) and seen[at][0] < commit.revision:
            greatest = max(greatest, seen[at][1])
            at += 1
        if commit.fencing_token is None:
            continue
        if commit.fencing_token < greatest:
            detail = (
                f"{name_of(commit)} made revision {commit.revision} under token {commit.fencing_token}"
                f" after token {greatest}"
            )
            yield Finding("stale_commit", history.session.session_id, detail)
        greatest = max(greatest, commit.fencing_token)


def _check_acknowledgements(history: SessionHistory) -> Iterator[Finding]:
    log: dict[int, list[FinalCommit]] = defaultdict(list)
    for commit in history.session.commits:
        log[commit.revision].append(commit)
    for event in history.committed:
        if not any(agrees(event, commit) for commit in log[event.revision]):
            there = ", ".join(f"{name_of(commit)} under token {commit.fencing_token}" for commit in log[event.revision])
            detail = (
                f"turn {event.turn_id!r} was told of revision {event.revision} under token {event.fencing_token};"
                f" the log has {there or 'no such revision'}"
            )
            yield Finding("commit_disagrees", history.session.session_id, detail)


def agrees(event: Committed, commit: FinalCommit) -> bool:
    """Whether a worker was told what the log says. A replay may be asked for under a later token than landed."""
    if (event.turn_id, event.revision) != (commit.turn_id, commit.revision):
        return False
    if commit.fencing_token is None or commit.fencing_token == event.fencing_token:
        return True
    return event.replayed and commit.fencing_token < event.fencing_token
