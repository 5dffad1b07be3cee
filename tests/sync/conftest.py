"""Fixtures: a database on every engine, in real time or with a clock that is moved by hand."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest

import fastness
from fastness import sync
from fastness.conformance.lab import Clock
from fastness.factory import EngineSessionStoreFactory
from fastness.model import LeaseTimings
from fastness.persistence import (
    InMemorySessionStoreFactory,
    PostgresSessionStoreFactory,
    SqliteSessionStoreFactory,
)
from tests.servers.postgres import shared_server

T = TypeVar("T")
TIMINGS = LeaseTimings(timedelta(seconds=20), timedelta(milliseconds=50))
"""Leases are renewed often: what a renewal sees, a turn is told soon."""
PATIENCE_S = 30.0


class Place:
    """An engine, and where its data is: databases are opened on it."""

    def __init__(self, engine: str, directory: Path) -> None:
        self.engine = engine
        self.directory = directory
        self.schema = f"y{abs(hash(directory)):x}"
        self.clock = Clock()

    @property
    def url(self) -> str:
        """What names the database."""
        urls = {"memory": "memory:", "sqlite": f"sqlite:///{self.directory}/a.db"}
        return urls.get(self.engine) or f"{shared_server().url()}?fastness_schema={self.schema}"

    def connect(self) -> sync.Database:
        """Open it, in real time."""
        return sync.connect(self.url, attachments=self.directory / "bytes", timings=TIMINGS, owner_id="tests")

    def connect_clocked(self) -> sync.Database:
        """Open it by the clock that is moved by hand."""
        return sync.Database(fastness.Database(self._factory(), timings=TIMINGS, owner_id="tests"))

    def _factory(self) -> EngineSessionStoreFactory:
        if self.engine == "memory":
            return InMemorySessionStoreFactory(clock=self.clock)
        if self.engine == "sqlite":
            return SqliteSessionStoreFactory(self.directory / "a.db", clock=self.clock)
        return PostgresSessionStoreFactory(shared_server().url(), schema=self.schema, clock=self.clock)


@pytest.fixture(params=["memory", "postgres", "sqlite"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Every engine."""
    made = Place(request.param, tmp_path)
    yield made
    if made.engine == "postgres":
        with shared_server().admin() as connection:
            connection.execute(f'drop schema if exists "{made.schema}" cascade')


@pytest.fixture
def db(place: Place) -> Iterator[sync.Database]:
    """A database on every engine."""
    with place.connect() as made:
        yield made


@pytest.fixture
def clocked(place: Place) -> Iterator[sync.Database]:
    """The same by the clock of its place."""
    with place.connect_clocked() as made:
        yield made


class Running(threading.Thread):
    """A function in a thread; ``come`` waits for what it came to."""

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._function = function
        self.answer: Any = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Run it."""
        try:
            self.answer = self._function()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test looks at it
            self.error = error

    def come(self) -> Any:
        """Give its value, or raise its error."""
        self.join(PATIENCE_S)
        assert not self.is_alive()
        if self.error is not None:
            raise self.error
        return self.answer


def in_time(happened: threading.Event) -> None:
    """Wait for something that must happen."""
    assert happened.wait(PATIENCE_S)


def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds that must come to hold."""
    pause = threading.Event()
    for _ in range(int(PATIENCE_S / 0.01)):
        if holds():
            return
        pause.wait(0.01)
    raise AssertionError("it never came to hold")


def run_script(script: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
