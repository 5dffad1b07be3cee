"""Fixtures: a ``subject`` for every engine there is, and with the kit's plugin a ``lab`` of it."""

from __future__ import annotations

import pytest

from fastness.conformance import Subject
from tests.lab import ENGINES

pytest_plugins = ["fastness.conformance.plugin"]


@pytest.fixture(params=sorted(ENGINES))
def subject(request: pytest.FixtureRequest) -> Subject:
    """One engine after the other."""
    return ENGINES[request.param]
