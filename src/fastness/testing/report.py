"""What a check comes to: findings, each of one kind, and counts of what was looked at.

The text of a report depends on nothing but the history: the same journals and the same database read the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, TypeAlias, get_args

from fastness.model.base import Value

FindingKind: TypeAlias = Literal[
    "torn_line",
    "journal_gap",
    "session_missing",
    "lost_input",
    "pending",
    "quarantined",
    "settled_twice",
    "settled_and_waiting",
    "altered_input",
    "unsent",
    "out_of_order",
    "key_bound_twice",
    "id_shared",
    "revision_gap",
    "revision_repeated",
    "turn_repeated",
    "token_shared",
    "stale_commit",
    "unannounced_commit",
    "commit_disagrees",
    "held_lane",
    "broken_chain",
    "orphan_call",
    "orphan_result",
    "misplaced_input",
    "unanswered",
]

MEANINGS: Mapping[FindingKind, str] = MappingProxyType(
    {
        "torn_line": "a journal has a line that cannot be read, and it is not one that a death cut short",
        "journal_gap": "a journal lacks an event between two others",
        "session_missing": "the journals speak of a session that the final state does not have",
        "lost_input": "an acknowledged input is nowhere: not in the transcript, not waiting, not set aside",
        "pending": "an acknowledged input still waits",
        "quarantined": "an acknowledged input was set aside",
        "settled_twice": "an input is in the transcript more than once, or came again under another id",
        "settled_and_waiting": "an input is in the transcript and waits or is set aside all the same",
        "altered_input": "the transcript does not say what the sender said",
        "unsent": "an input that no journal speaks of",
        "out_of_order": "an input stands before one that its sender knew to be in before it was sent",
        "key_bound_twice": "one key was acknowledged with two ids",
        "id_shared": "two keys were acknowledged with one id",
        "revision_gap": "the commit log and the head do not count from 1 without a hole",
        "revision_repeated": "the commit log has a revision twice",
        "turn_repeated": "one turn has landed twice",
        "token_shared": "two turns of a session had one fencing token",
        "stale_commit": "a commit landed under a token after a greater one was at work",
        "unannounced_commit": "a turn has landed that no journal saw begin",
        "commit_disagrees": "a worker was told of a commit that the log has otherwise, or not at all",
        "held_lane": "a lane is held at the end",
        "broken_chain": "the transcript is no tree: a parent or the leaf is missing, or an id is there twice",
        "orphan_call": "a tool call has no result",
        "orphan_result": "a tool result has no call",
        "misplaced_input": "an input is not among the messages that the turn which settled it has added",
        "unanswered": "no answer follows the last input that a turn settled",
    }
)
"""Every kind of finding, and what it says."""

KINDS: tuple[FindingKind, ...] = get_args(FindingKind)
_SHOWN = 20

_LOST = ("session_missing", "lost_input", "pending", "quarantined")
_DUPLICATED = (
    "settled_twice",
    "settled_and_waiting",
    "unsent",
    "key_bound_twice",
    "id_shared",
    "revision_repeated",
    "turn_repeated",
)


class Finding(Value, frozen=True):
    """One fault. ``session_id`` is None for one of a journal."""

    kind: FindingKind
    session_id: str | None
    detail: str


class Counts(Value, frozen=True):
    """What was looked at.

    Inputs are counted by key: ``acknowledged`` ones, and ``unacknowledged`` ones, of which nobody knows more than that
    they were attempted. ``settled`` are the inputs in the transcripts, ``pending`` and ``quarantined`` those that the
    final state has beside them. ``commits`` are rows of the commit logs, ``replays`` acknowledgements of one that had
    landed before.
    """

    processes: int = 0
    sessions: int = 0
    acknowledged: int = 0
    unacknowledged: int = 0
    settled: int = 0
    pending: int = 0
    quarantined: int = 0
    turns_started: int = 0
    turns_failed: int = 0
    turns_interrupted: int = 0
    commits: int = 0
    replays: int = 0


class Report(Value, frozen=True):
    """The verdict. ``findings`` are faults, ``allowed`` those of the kinds that the caller has allowed."""

    counts: Counts
    findings: tuple[Finding, ...] = ()
    allowed: tuple[Finding, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    @property
    def lost(self) -> int:
        """How many findings say that something is missing."""
        return sum(finding.kind in _LOST for finding in self.findings)

    @property
    def duplicated(self) -> int:
        """How many findings say that something is there more than once, or was sent by nobody."""
        return sum(finding.kind in _DUPLICATED for finding in self.findings)

    @property
    def torn(self) -> int:
        """How many findings say anything else: something is there in part, out of its place, or not as it was."""
        return len(self.findings) - self.lost - self.duplicated

    @property
    def verdict(self) -> str:
        """The report in one line."""
        return f"{self.lost} lost, {self.duplicated} duplicated, {self.torn} torn"

    def explain(self, *, limit: int = _SHOWN) -> str:
        """Give the report as text for people: counts, then each kind with up to ``limit`` of its findings."""
        counts = self.counts
        sent = f"{counts.acknowledged} acknowledged, {counts.unacknowledged} unacknowledged"
        kept = f"{counts.settled} settled, {counts.pending} pending, {counts.quarantined} quarantined"
        ran = f"{counts.turns_started} started, {counts.turns_failed} failed, {counts.turns_interrupted} interrupted"
        lines = [
            f"{counts.sessions} sessions, {counts.processes} processes",
            f"inputs: {sent}; {kept}",
            f"turns: {ran}; {counts.commits} commits, {counts.replays} replays",
        ]
        if self.allowed:
            allowed = Counter(finding.kind for finding in self.allowed)
            lines.append("allowed: " + ", ".join(f"{allowed[kind]} {kind}" for kind in KINDS if allowed[kind]))
        lines.append("ok" if self.ok else f"{len(self.findings)} findings")
        for kind in KINDS:
            lines += self._section(kind, limit)
        return "\n".join(lines) + "\n"

    def _section(self, kind: FindingKind, limit: int) -> list[str]:
        found = [finding for finding in self.findings if finding.kind == kind]
        if not found:
            return []
        lines = [f"{kind} ({len(found)}): {MEANINGS[kind]}"]
        lines += [f"  {finding.session_id or '-'}: {finding.detail}" for finding in found[:limit]]
        if len(found) > limit:
            lines.append(f"  and {len(found) - limit} more")
        return lines
