"""What the tests of programs share."""

from __future__ import annotations

import pytest

from tests.ops.driver import Bench


@pytest.fixture
def bench() -> Bench:
    """A fresh database."""
    return Bench()
