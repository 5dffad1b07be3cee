"""The history checker, for whoever runs agents on sessions and wants proof that nothing was lost, doubled or torn.

Senders and workers write down what they do, each process in a ``Journal`` of its own. In the end ``read_journals`` and
``read_final`` gather the evidence and ``check`` gives the verdict::

    events, findings = read_journals("journals")
    report = check(events, await read_final(factory), journal_findings=findings)
    assert report.ok, report.explain()

``JournalTelemetry`` and ``JournalSender`` write the journals of programs that use the runtime, and a ``Fleet`` runs
processes and kills them.
"""

from fastness.testing.checker import check
from fastness.testing.events import (
    AnyEvent,
    Committed,
    Interrupted,
    Quarantined,
    Sent,
    TurnFailed,
    TurnStarted,
    text_hash,
)
from fastness.testing.final import FinalCommit, FinalInput, FinalNode, FinalSession, FinalState
from fastness.testing.fleet import Fleet, end_with_parent
from fastness.testing.journal import Journal, read_journals
from fastness.testing.journaling import JournalSender, JournalTelemetry
from fastness.testing.reading import read_final
from fastness.testing.report import KINDS, MEANINGS, Counts, Finding, FindingKind, Report

__all__ = [
    "KINDS",
    "MEANINGS",
    "AnyEvent",
    "Committed",
    "Counts",
    "FinalCommit",
    "FinalInput",
    "FinalNode",
    "FinalSession",
    "FinalState",
    "Finding",
    "FindingKind",
    "Fleet",
    "Interrupted",
    "Journal",
    "JournalSender",
    "JournalTelemetry",
    "Quarantined",
    "Report",
    "Sent",
    "TurnFailed",
    "TurnStarted",
    "check",
    "end_with_parent",
    "read_final",
    "read_journals",
    "text_hash",
]
