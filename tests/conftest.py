"""Fixtures: a ``lab`` for every engine there is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.lab import ENGINES, Lab


@pytest.fixture(params=sorted(ENGINES))
async def lab(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Lab]:
    """A database of its own on one engine, with a clock that the test moves."""
    async with Lab(ENGINES[request.param], tmp_path) as made:
        yield made
