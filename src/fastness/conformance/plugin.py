"""What pytest loads: the ``lab`` of a ``subject``, and the report of the laws that ran.

A test counts for a law if it comes from ``fastness.conformance.laws`` and is named after the law. Its column is named
after the parameters of the fixtures that the subject depends on, so that several engines share a run; where there are
none it is ``subject``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from fastness.conformance.lab import Lab
from fastness.conformance.report import Report
from fastness.conformance.subject import Subject
from fastness.conformance.table import law_of

OPTION = "--conformance-report"
LAWS_MODULE = "fastness.conformance.laws."
PROPERTY = "fastness conformance"


@pytest_asyncio.fixture(loop_scope="function")
async def lab(subject: Subject, tmp_path: Path) -> AsyncIterator[Lab]:
    """A database of its own, of the subject that is put to the laws."""
    directory = tmp_path / "lab"
    directory.mkdir()
    async with Lab(subject, directory) as made:
        yield made


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that names the file of the report."""
    group = parser.getgroup("fastness")
    group.addoption(OPTION, metavar="PATH", type=Path, help="write one row per law: JSON to .json, else Markdown")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a report that could not be written before anything runs."""
    path: Path | None = config.getoption(OPTION, default=None)
    if path is not None and not path.parent.is_dir():
        raise pytest.UsageError(f"{OPTION}: there is no directory {path.parent}")
    config.pluginmanager.register(Recorder(path), "fastness-conformance-recorder")


def column_of(item: pytest.Function) -> str:
    """Name the subject of a test: the parameters that are not the law's own."""
    callspec = getattr(item, "callspec", None)
    own = {name for mark in item.iter_markers("parametrize") for name in _names(mark.args[0])}
    given = {} if callspec is None else callspec.params
    values = [value for name, value in given.items() if name not in own]
    return " ".join(str(getattr(value, "__name__", value)) for value in values) or "subject"


def _names(argnames: str | list[str] | tuple[str, ...]) -> list[str]:
    return [name.strip() for name in argnames.split(",")] if isinstance(argnames, str) else list(argnames)


class Recorder:
    """Counts what comes of each law while pytest runs."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.report = Report()
        self._done: dict[str, str] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """See which laws there are, before any of them is deselected."""
        for item in items:
            if not isinstance(item, pytest.Function) or not item.function.__module__.startswith(LAWS_MODULE):
                continue
            law = law_of(item.originalname)
            if law is not None:
                column = column_of(item)
                # Properties travel with the reports of worker processes.
                item.user_properties.append((PROPERTY, (column, law)))
                self.report.row(column, law).collected += 1

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test once: the first phase that does not pass decides, or else the end of the call."""
        found = dict(report.user_properties).get(PROPERTY)
        if not isinstance(found, tuple | list) or (report.passed and report.when != "call"):
            return
        row = self.report.row(*found)
        before = self._done.get(report.nodeid)
        if report.failed and before != "failed":
            row.passed -= before == "passed"
            row.failed.append(report.nodeid.rpartition("::")[2])
        elif before is None and report.skipped:
            row.skipped[_reason(report)] += 1
        elif before is None and report.passed:
            row.passed += 1
        else:
            return
        self._done[report.nodeid] = report.outcome

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the report, once, not in every worker process."""
        if self.path is not None and not hasattr(session.config, "workerinput"):
            self.report.write(self.path)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say in a few lines what came of the laws."""
        if self.report and not terminalreporter.config.option.collectonly:
            terminalreporter.section("conformance")
            for line in self.report.summary():
                terminalreporter.line(line)


def _reason(report: pytest.TestReport) -> str:
    """Why a test was skipped, or what was expected of one that was expected to fail."""
    expected = getattr(report, "wasxfail", None)
    if expected is not None:
        return f"expected to fail: {expected}"
    said = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return said.removeprefix("Skipped: ")
