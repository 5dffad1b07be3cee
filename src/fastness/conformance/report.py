"""What came of the laws: one row per law, one column per subject. It knows of outcomes, and nothing of pytest.

A law is passed if every one of its tests ran and passed. One test that was skipped, or that did not run, makes a row
that says so, with its reasons; a law without tests is not covered. Neither is ever counted as passed. A law that does
not concern a subject has no row there, and is not counted at all.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fastness.conformance.table import LAWS

Status = Literal["passed", "failed", "skipped", "not covered"]
STATUSES: tuple[Status, ...] = ("passed", "failed", "skipped", "not covered")
NOT_RUN = "not run"
NOT_APPLICABLE = "not applicable"


@dataclass
class Row:
    """What came of the tests of one law on one subject. ``skipped`` counts the tests by the reason they gave."""

    collected: int = 0
    passed: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    @property
    def tests(self) -> int:
        """How many tests the law has; those that a worker process collected are known once they have run."""
        return max(self.collected, self.passed + len(self.failed) + self.skipped.total())

    @property
    def reasons(self) -> dict[str, int]:
        """Why tests did not come to an end, and how many for each reason."""
        left = self.tests - self.passed - len(self.failed) - self.skipped.total()
        return {**self.skipped, **({NOT_RUN: left} if left else {})}

    @property
    def status(self) -> Status:
        """The one word for it."""
        if self.failed:
            return "failed"
        if self.reasons.get(NOT_RUN, 0) == self.tests:
            return "not covered"
        return "skipped" if self.reasons else "passed"

    def __str__(self) -> str:
        why = "; ".join(f"{reason} ({count} of {self.tests})" for reason, count in self.reasons.items())
        texts: dict[Status, str] = {
            "passed": f"passed ({self.tests} {'test' if self.tests == 1 else 'tests'})",
            "failed": f"**failed**: {', '.join(self.failed)} ({len(self.failed)} of {self.tests})",
            "skipped": f"skipped: {why}",
            "not covered": f"not covered: none of {self.tests} tests ran" if self.tests else "not covered: no test",
        }
        return texts[self.status]


class Report:
    """The rows of all laws, for every subject that was met."""

    def __init__(self) -> None:
        self._subjects: dict[str, dict[str, Row]] = {}

    def __bool__(self) -> bool:
        return bool(self._subjects)

    def row(self, subject: str, law: str, concerned: Iterable[str] = LAWS) -> Row:
        """The row to count in, of a subject that these laws concern."""
        return self._subjects.setdefault(subject, {number: Row() for number in concerned})[law]

    def counts(self) -> dict[str, Counter[Status]]:
        """How many laws have which status, by subject."""
        return {name: Counter(row.status for row in rows.values()) for name, rows in self._subjects.items()}

    def summary(self) -> list[str]:
        """One line per subject, and one per law that failed."""
        lines = []
        for name, counted in self.counts().items():
            lines.append(f"{name}: " + ", ".join(f"{counted[status]} {status}" for status in STATUSES))
            failed = {law: row for law, row in self._subjects[name].items() if row.status == "failed"}
            lines += [f"{name}: {law} failed: {', '.join(row.failed)}" for law, row in failed.items()]
        return lines

    def markdown(self) -> str:
        """The report for people: a table."""
        names = [*self._subjects]
        lines = ["# Conformance", "", *(f"- {line}" for line in self.summary()), ""]
        lines += ["| law | " + " | ".join([*map(_cell, names), "what it says"]) + " |", "|---" * (len(names) + 2) + "|"]
        for law, says in LAWS.items():
            results = [_cell(str(self._subjects[name].get(law, "—"))) for name in names]
            lines.append("| " + " | ".join([law, *results, _cell(says)]) + " |")
        return "\n".join(lines) + "\n"

    def as_json(self) -> str:
        """The report for programs."""
        rows = [
            {
                "law": law,
                "says": says,
                "results": {name: _plain(subject.get(law)) for name, subject in self._subjects.items()},
            }
            for law, says in LAWS.items()
        ]
        return json.dumps({"subjects": [*self._subjects], "laws": rows}, indent=2, ensure_ascii=False) + "\n"

    def write(self, path: Path) -> None:
        """Write it, as JSON where the name ends so, else as Markdown."""
        text = self.as_json() if path.suffix == ".json" else self.markdown()
        path.write_text(text, encoding="utf-8")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _plain(row: Row | None) -> dict[str, Any]:
    if row is None:
        return {"status": NOT_APPLICABLE}
    return {
        "status": row.status,
        "tests": row.tests,
        "passed": row.passed,
        "failed": row.failed,
        "reasons": row.reasons,
    }
