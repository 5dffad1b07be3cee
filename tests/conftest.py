"""Fixtures: a ``subject`` for every engine and an ``attachment_subject`` for every store of attachments.

With the kit's plugin there are a ``lab`` and ``attachments`` of them. A test that asks for both runs on the pairs that
``tests.lab`` names, and not on each engine with each store.
"""

from __future__ import annotations

import pytest

from fastness.conformance import AttachmentSubject, Subject
from tests.lab import ATTACHMENT_STORES, ENGINES, PAIRS

pytest_plugins = ["fastness.conformance.plugin"]


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Pair engines and stores."""
    both = ("subject", "attachment_subject")
    if set(both) <= set(metafunc.fixturenames):
        metafunc.definition.add_marker(pytest.mark.parametrize(both, PAIRS, indirect=True))


@pytest.fixture(params=sorted(ENGINES))
def subject(request: pytest.FixtureRequest) -> Subject:
    """One engine after the other."""
    return ENGINES[request.param]


@pytest.fixture(params=sorted(ATTACHMENT_STORES))
def attachment_subject(request: pytest.FixtureRequest) -> AttachmentSubject:
    """One store of attachments after the other."""
    return ATTACHMENT_STORES[request.param]
