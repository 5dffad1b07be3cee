"""Databases as applications see them, on every engine of ``tests.lab``, with its clock and its faults."""

from __future__ import annotations

import pytest

from fastness.conformance.lab import Lab
from fastness.persistence import InMemoryAttachmentStore
from fastness.runtime import worker
from fastness.runtime.database import Database
from tests.runtime.faults import Faults
from tests.runtime.saying import OFTEN


@pytest.fixture
def place() -> InMemoryAttachmentStore:
    """Where attachments are."""
    return InMemoryAttachmentStore()


@pytest.fixture
def db(lab: Lab, place: InMemoryAttachmentStore) -> Database:
    """A database whose clock is the lab's."""
    return Database(lab.factory, attachments=place, timings=OFTEN, owner_id="alice")


@pytest.fixture
async def other(lab: Lab, place: InMemoryAttachmentStore) -> Database:
    """The same database as another process has it open, or at least another object that knows nothing of the first."""
    return Database(await lab.second(), attachments=place, timings=OFTEN, owner_id="bob")


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    """What goes wrong with the commits of this test."""
    return Faults(monkeypatch)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have workers look by themselves so often that a law does not wait for it."""
    for name in ("_LOOK_AGAIN_S", "_SATURATED_S", "_SWEEP_S"):
        monkeypatch.setattr(worker, name, 0.05)
