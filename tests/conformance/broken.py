"""Stores that break a law each, and a sound one that gives the kit no powers: what ``test_kit`` runs the laws on."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from fastness.conformance import Lab, Power, Subject
from fastness.conformance.laws import *  # noqa: F403
from fastness.model import (
    GcReport,
    RuntimeCommit,
    RuntimeCommitResult,
    SessionExecutionLeaseCompletion,
    SessionStoreCreateRequest,
)
from fastness.model.base import canonical_json
from fastness.persistence import InMemorySessionStoreFactory


class Broken:
    """Hands everything on to a sound store, unless a subclass has it otherwise."""

    def __init__(self, store: Any) -> None:
        self.store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


class Unchecked(Broken):
    """Commits on whatever revision there is, and not on the one that was expected (C5)."""

    async def commit_runtime_state(self, commit: RuntimeCommit) -> RuntimeCommitResult:
        """Expect what is there."""
        head = await self.store.load_head()
        on = None if head is None else head.revision
        result: RuntimeCommitResult = await self.store.commit_runtime_state(
            msgspec.structs.replace(commit, expected_head_revision=on)
        )
        return result


class Uncounted(Broken):
    """Drops the usage of every second model call of a turn (C10)."""

    async def commit_runtime_state(self, commit: RuntimeCommit) -> RuntimeCommitResult:
        """Keep the first of several deltas."""
        if len(commit.usage_deltas) > 1 and commit.turn_commit is None:
            commit = msgspec.structs.replace(commit, usage_deltas=commit.usage_deltas[:1])
        result: RuntimeCommitResult = await self.store.commit_runtime_state(commit)
        return result


class Careless(Broken):
    """Releases whatever lease the lane has, and not only the one that is named (L5)."""

    async def release_session_execution_lease(self, completion: SessionExecutionLeaseCompletion) -> None:
        """Give the lane back, whoever holds it."""
        holder = await self.store.observe_session_execution_lease(completion.session_id)
        await self.store.release_session_execution_lease(completion if holder is None else holder.completion())


class Lenient(Broken):
    """Says of every session that it holds every content (A3)."""

    async def holds_ref(self, session_id: str, attachment_id: str) -> bool:
        """Yes."""
        await self.store.holds_ref(session_id, attachment_id)
        return True


class Idle(Broken):
    """Says that it collected, and does not (M1)."""

    async def gc_unreachable(self, *, keep_revisions: int = 1) -> GcReport:
        """Do nothing."""
        return GcReport(1, 1, 0)


class Tidy(Broken):
    """Gives environments in a layout of its own (E1)."""


class TidyEnvironments(Broken):
    """Environments without white space."""

    async def get_process_execution_env(self, ref: str) -> bytes | None:
        """Write it anew."""
        found: bytes | None = await self.store.get_process_execution_env(ref)
        return None if found is None else canonical_json(json.loads(found))


class BrokenFactory(InMemorySessionStoreFactory):
    """Gives broken stores of one kind."""

    def __init__(self, kind: Callable[[Any], Any], lab: Lab) -> None:
        super().__init__(clock=lab.clock, is_dead=lab.is_dead)
        self.kind = kind

    @property
    def process_execution_envs(self) -> Any:
        """Break the environments, if that is the kind."""
        found = super().process_execution_envs
        return TidyEnvironments(found) if self.kind is Tidy else found

    async def create_store(self, request: SessionStoreCreateRequest) -> Any:
        """Break what is made."""
        return self.kind(await super().create_store(request))

    async def open_existing_store(self, request: SessionStoreCreateRequest) -> Any:
        """Break what is found."""
        store = await super().open_existing_store(request)
        return None if store is None else self.kind(store)


@pytest.fixture(params=[Unchecked, Uncounted, Careless, Lenient, Idle, Tidy, "powerless"])
def subject(request: pytest.FixtureRequest) -> Subject:
    """One store after the other."""
    if request.param == "powerless":
        return Subject(lambda _: InMemorySessionStoreFactory())
    powers = frozenset({Power.CLOCK, Power.DEATH, Power.ROWS, Power.CHECK, Power.ENVIRONMENTS})
    return Subject(lambda lab: BrokenFactory(request.param, lab), powers)
