"""The demo tells the truth: a clean run is called clean, and each kind of damage is seen."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fastness.persistence import NextTurn, PendingTurnInputDraft, SessionStoreCreateRequest, TurnInput
from fastness.replay import Replayer
from tests.lab import ENGINES, Lab

DEMO = Path(__file__).parents[2] / "demo"


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The demo's modules, found the way its own script finds them."""
    monkeypatch.syspath_prepend(str(DEMO))
    return importlib.import_module("audit"), importlib.import_module("jobs")


DAMAGE = {
    "a turn without its last message": (
        "delete from node where seq = (select max(seq) from node where sid = 1) and sid = 1",
        ("torn",),
    ),
    "a message that says something else": (
        "update node set body = replace(body, 'Feierabend', 'Wochenende') where sid = 1",
        ("lost",),
    ),
    "usage that was charged twice": ("update token_usage set output_tokens = output_tokens * 2", ("duplicated",)),
    "usage that was never charged": ("delete from token_usage", ("lost",)),
    "a session that is missing": ("delete from session where sid = 1", ("lost",)),
}


async def replayed(lab: Lab, jobs: Any) -> list[Any]:
    """Replay one session of the demo whole, and give its job."""
    (job,) = [job for job in jobs.jobs_of(jobs.OWN_CONVERSATIONS) if job.session_id == "translation-1"]
    store = await lab.store(job.session_id)
    for branch in job.branches:
        await Replayer(store, branch.replay).run()
    return [job]


async def test_a_replay_that_went_well_is_called_clean(demo: Any, tmp_path: Path) -> None:
    """No finding where there is nothing to find, and all messages were compared."""
    audit, jobs = demo
    async with Lab(ENGINES["sqlite"], tmp_path) as lab:
        found, report = await audit.audit(lab.factory, await replayed(lab, jobs))
    assert msgspec.structs.asdict(found) == {"messages": 7, "lost": 0, "duplicated": 0, "torn": 0}
    assert report.findings == ()


@pytest.mark.parametrize("kind", DAMAGE)
async def test_every_kind_of_damage_is_seen(demo: Any, tmp_path: Path, kind: str) -> None:
    """What is missing is lost, what is there twice is duplicated, what is there in part is torn."""
    audit, jobs = demo
    sql, kinds = DAMAGE[kind]
    async with Lab(ENGINES["sqlite"], tmp_path) as lab:
        job = await replayed(lab, jobs)
        await lab.execute_raw(sql)
        found, _ = await audit.audit(lab.factory, job)
    for name in kinds:
        assert getattr(found, name) > 0


async def test_what_is_there_and_was_never_recorded_is_seen(demo: Any, tmp_path: Path) -> None:
    """A branch too many is duplicated; input that waits is lost."""
    audit, jobs = demo
    async with Lab(ENGINES["sqlite"], tmp_path) as lab:
        (job,) = await replayed(lab, jobs)
        other = jobs.plan_replay(msgspec.structs.replace(job.branches[0].record, index=99), job.session_id)
        store = await lab.factory.open_existing_store(SessionStoreCreateRequest(job.session_id))
        await Replayer(store, other).run()
        draft = PendingTurnInputDraft(job.session_id, NextTurn(), TurnInput.of_text("Hello?"))
        await store.enqueue_pending_turn_input(draft)
        found, _ = await audit.audit(lab.factory, [job])
    assert (found.lost, found.duplicated > 0) == (1, True)


def test_the_demo_kills_workers_and_ends_in_its_verdict() -> None:
    """A short run: killed workers, lanes taken over, and nothing lost, duplicated or torn."""
    command = [sys.executable, str(DEMO / "run.py"), "--workers", "2", "--kills", "3"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    last = found.stdout.splitlines()[-1]
    counts = re.fullmatch(
        r"96 conversations in 64 sessions, 304 turns, 1400 messages compared; 3 workers killed, (\d+) turns cut short,"
        r" (\d+) lanes taken over: 0 lost, 0 duplicated, 0 torn",
        last,
    )
    assert counts is not None, last
    assert int(counts[1]) > 0
    assert int(counts[2]) > 0
