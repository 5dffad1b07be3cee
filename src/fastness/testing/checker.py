"""The history checker: what every process said it did, laid beside what the database holds in the end.

``check`` is a pure function. It trusts no clock and knows no order between processes but the one that the database
itself gives: revisions, fencing tokens, and the order of the transcript. It supposes that senders and workers all keep
a journal, that nothing was tombstoned or deleted, and that everybody has come to an end; what a caller knows to be
otherwise is allowed by the kind of its finding (``MEANINGS`` lists them).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fastness.errors import InvalidInputError
from fastness.testing.events import AnyEvent, Committed, Interrupted, TurnFailed, TurnStarted
from fastness.testing.final import FinalState
from fastness.testing.history import SessionHistory, by_session
from fastness.testing.inputs import Account, check_inputs
from fastness.testing.report import KINDS, Counts, Finding, FindingKind, Report
from fastness.testing.transcript import check_transcript
from fastness.testing.turns import check_turns


def check(
    events: Iterable[AnyEvent],
    final: FinalState,
    *,
    allow: tuple[FindingKind, ...] = (),
    journal_findings: Iterable[Finding] = (),
) -> Report:
    """Prove that a history is one that the laws permit, or say where it is not.

    ``events`` may come in any order. Findings of a kind in ``allow`` are told apart and do not count against the
    history; ``journal_findings``, those of ``read_journals``, do. Where nothing happened, nothing is wrong: look at the
    counts as well. Raises ``InvalidInputError`` for an unknown kind.
    """
    unknown = sorted(set(allow) - set(KINDS))
    if unknown:
        raise InvalidInputError("allow", f"names no kind of finding: {', '.join(map(repr, unknown))}")
    known = list(events)
    histories, missing = by_session(known, final)
    accounts = [Account.of(history) for history in histories]
    findings = [*journal_findings]
    findings += [
        Finding("session_missing", session_id, "the journals speak of it and it is not there") for session_id in missing
    ]
    for history, account in zip(histories, accounts, strict=True):
        findings += [*check_inputs(account), *check_turns(history), *check_transcript(history)]
    findings.sort(key=lambda finding: (KINDS.index(finding.kind), finding.session_id or "", finding.detail))
    return Report(
        _count(known, histories, accounts),
        tuple(finding for finding in findings if finding.kind not in allow),
        tuple(finding for finding in findings if finding.kind in allow),
    )


def _count(events: Sequence[AnyEvent], histories: Sequence[SessionHistory], accounts: Sequence[Account]) -> Counts:
    def how_many(kind: type[AnyEvent]) -> int:
        return sum(isinstance(event, kind) for event in events)

    return Counts(
        processes=len({event.writer for event in events}),
        sessions=len(histories),
        acknowledged=sum(len(account.acknowledged) for account in accounts),
        unacknowledged=sum(len(account.unacknowledged) for account in accounts),
        settled=sum(len(account.places) for account in accounts),
        pending=sum(len(account.waiting) for account in accounts),
        quarantined=sum(len(account.session.quarantined) for account in accounts),
        turns_started=how_many(TurnStarted),
        turns_failed=how_many(TurnFailed),
        turns_interrupted=how_many(Interrupted),
        commits=sum(len(history.session.commits) for history in histories),
        replays=sum(isinstance(event, Committed) and event.replayed for event in events),
    )
