"""The laws of calls at the same time would notice an engine that locks nothing between processes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from fastness.conformance import Lab
from fastness.conformance.laws import concurrency
from fastness.engines import postgres_dialect
from fastness.engines.postgres import PostgresEngine
from tests.lab import ENGINES

LAWS: list[Callable[[Lab], Awaitable[None]]] = [
    concurrency.test_c3_a_stamped_commit_that_is_sent_many_times_at_once_lands_once,
    concurrency.test_i1_the_same_submission_many_times_at_once_makes_one_row,
    concurrency.test_i2_admission_numbers_of_enqueues_at_once_have_no_gap,
    concurrency.test_k2_of_claims_that_race_each_row_is_granted_once,
    concurrency.test_l1_of_claims_from_two_processes_one_wins,
]


@pytest.fixture
def _no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL without a lock in the database; each engine still takes its own writes one by one."""
    whole, write = postgres_dialect.translate, PostgresEngine.write

    def translate(sql: str, clock: str) -> str:
        return re.sub(r"\s+for update of \w+\s*$", "", whole(sql, clock))

    async def one_by_one(engine: Any, make: Any) -> Any:
        lock = engine.__dict__.setdefault("_own_lock", asyncio.Lock())
        async with lock:
            return await write(engine, make)

    monkeypatch.setattr(postgres_dialect, "translate", translate)
    monkeypatch.setattr(postgres_dialect, "LOCK_NAME", "select $1::text")
    monkeypatch.setattr(PostgresEngine, "write", one_by_one)


@pytest.mark.usefixtures("_no_locks")
async def test_an_engine_that_locks_only_in_its_process_fails(tmp_path: Path) -> None:
    """Of the laws that two processes are put to at once, several are broken by it."""
    broken = []
    for at, law in enumerate(LAWS):
        async with Lab(ENGINES["postgres"], tmp_path / str(at)) as lab:
            try:
                await law(lab)
            except Exception as error:  # noqa: BLE001 - however it shows
                broken.append((law.__name__, error))
    assert len(broken) >= 2, f"only {broken} noticed it"
