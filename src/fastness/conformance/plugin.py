"""What pytest loads: the ``lab`` of a ``subject``, the ``attachments`` of an ``attachment_subject``, and the report.

A test counts for a law if it comes from ``fastness.conformance.laws`` and is named after the law. It counts in the
column of each subject that it asks for. A column is named after the parameters of the fixtures that its subject depends
on, so that several engines share a run. What the plugin itself supplies in place of a subject has no column.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
import pytest_asyncio

from fastness.conformance.lab import AttachmentLab, Lab
from fastness.conformance.report import Report, Row
from fastness.conformance.subject import ALL_POWERS, AttachmentSubject, Power, Subject
from fastness.conformance.table import ATTACHMENT_LAWS, LAWS, law_of
from fastness.persistence import InMemoryAttachmentStore, InMemorySessionStoreFactory

OPTION = "--conformance-report"
LAWS_MODULE = "fastness.conformance.laws."
PROPERTY = "fastness conformance"

CONCERNED = {"subject": tuple(LAWS), "attachment_subject": ATTACHMENT_LAWS}
"""The fixtures that say what is put to the laws, and the laws that concern it."""


@pytest_asyncio.fixture(loop_scope="function")
async def lab(subject: Subject, tmp_path: Path) -> AsyncIterator[Lab]:
    """A database of its own, of the subject that is put to the laws."""
    directory = tmp_path / "lab"
    directory.mkdir()
    async with Lab(subject, directory) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="function")
async def attachments(attachment_subject: AttachmentSubject, tmp_path: Path) -> AsyncIterator[AttachmentLab]:
    """A place of its own for bytes, of the attachment store that is put to the laws."""
    directory = tmp_path / "attachments"
    directory.mkdir()
    async with AttachmentLab(attachment_subject, directory) as made:
        yield made


@pytest.fixture
def attachment_subject() -> AttachmentSubject:
    """Bytes in memory, for whoever has an engine and no attachment store of his own."""
    return AttachmentSubject(lambda _: nullcontext(InMemoryAttachmentStore()))


@pytest.fixture
def subject(request: pytest.FixtureRequest) -> Subject:
    """Sessions in memory, for whoever has an attachment store and no engine of his own."""
    if "attachments" not in request.fixturenames:
        pytest.fail("the fixture 'subject' is missing, which says what engine is put to this law", pytrace=False)
    return Subject(
        lambda lab: InMemorySessionStoreFactory(clock=lab.clock, is_dead=lab.is_dead, batch_hook=lab.batch_hook),
        ALL_POWERS - {Power.REOPENING, Power.SHARED},
    )


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


def columns_of(item: pytest.Function) -> list[tuple[str, str]]:
    """Give the columns that a test counts in: the fixture of a subject, and the name of the column."""
    found = []
    for fixture in CONCERNED:
        needed = _needed(item, fixture)
        if needed:
            params = getattr(getattr(item, "callspec", None), "params", {})
            values = [value for name, value in params.items() if name in needed]
            name = " ".join(str(getattr(value, "__name__", value)) for value in values)
            kind = "attachments" if fixture == "attachment_subject" else ""
            found.append((fixture, ": ".join(part for part in (kind, name) if part) or fixture))
    return found


def _needed(item: pytest.Function, fixture: str) -> set[str]:
    """The fixtures that one depends on, and itself; none if the test does not use it, or the plugin supplies it."""
    definitions = item._fixtureinfo.name2fixturedefs
    if fixture not in item.fixturenames or definitions[fixture][-1].func.__module__ == __name__:
        return set()
    needed, new = {fixture}, [fixture]
    while new:
        named = {name for known in definitions.get(new.pop(), ()) for name in known.argnames}
        new += named - needed
        needed |= named
    return needed


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
                columns = columns_of(item)
                # Properties travel with the reports of worker processes.
                item.user_properties.append((PROPERTY, (law, columns)))
                for row in self._rows(law, columns):
                    row.collected += 1

    def _rows(self, law: str, columns: Sequence[tuple[str, str]]) -> list[Row]:
        return [self.report.row(column, law, CONCERNED[fixture]) for fixture, column in columns]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test once: the first phase that does not pass decides, or else the end of the call."""
        found = dict(report.user_properties).get(PROPERTY)
        if not isinstance(found, tuple | list) or (report.passed and report.when != "call"):
            return
        before = self._done.get(report.nodeid)
        if before is not None and not (report.failed and before != "failed"):
            return
        self._done[report.nodeid] = report.outcome
        for row in self._rows(*found):
            if report.failed:
                row.passed -= before == "passed"
                row.failed.append(report.nodeid.rpartition("::")[2])
            elif report.skipped:
                row.skipped[_reason(report)] += 1
            else:
                row.passed += 1

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
