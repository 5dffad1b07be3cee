"""Fixtures: a ``subject`` for every engine and an ``attachment_subject`` for every store of attachments.

With the kit's plugin there are a ``lab`` and ``attachments`` of them. A test that asks for both runs on the pairs that
``tests.lab`` names, and not on each engine with each store.
"""

from __future__ import annotations

import asyncio
import io
import signal
from collections.abc import Generator

import pytest

from fastness.conformance import AttachmentSubject, Subject
from tests.lab import ATTACHMENT_STORES, ENGINES, PAIRS

pytest_plugins = ["fastness.conformance.plugin"]


def pytest_configure() -> None:
    """Let Ctrl-C work here and in all children: a shell has what it runs in the background ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Pair engines and stores."""
    both = ("subject", "attachment_subject")
    if set(both) <= set(metafunc.fixturenames):
        metafunc.definition.add_marker(pytest.mark.parametrize(both, PAIRS, indirect=True))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show where the tasks of a test stand that has run out of time: its traceback ends in the event loop."""
    report = yield
    runner = getattr(item, "funcargs", {}).get("_function_scoped_runner")
    if runner is not None and call.excinfo is not None and "pytest-timeout" in str(call.excinfo.value):
        stacks = io.StringIO()
        for task in asyncio.all_tasks(runner.get_loop()):
            task.print_stack(file=stacks)
        report.sections.append(("Tasks of the event loop", stacks.getvalue()))
    return report


@pytest.fixture(params=sorted(ENGINES))
def subject(request: pytest.FixtureRequest) -> Subject:
    """One engine after the other."""
    return ENGINES[request.param]


@pytest.fixture(params=sorted(ATTACHMENT_STORES))
def attachment_subject(request: pytest.FixtureRequest) -> AttachmentSubject:
    """One store of attachments after the other."""
    return ATTACHMENT_STORES[request.param]
