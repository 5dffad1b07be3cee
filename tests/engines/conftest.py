"""Engines for the tests: one on a fresh file, and one of each kind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fastness.engines.sqlite import SqliteEngine


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a database may be made; nothing is there yet."""
    return tmp_path / "store.db"


@pytest.fixture
async def engine(path: Path) -> AsyncIterator[SqliteEngine]:
    """An engine on a fresh file."""
    engine = SqliteEngine(path)
    yield engine
    await engine.close()


@pytest.fixture(params=["file", "memory"])
async def any_engine(request: pytest.FixtureRequest, path: Path) -> AsyncIterator[SqliteEngine]:
    """An engine of each kind."""
    engine = SqliteEngine(path if request.param == "file" else None)
    yield engine
    await engine.close()
