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

from fastness.conformance import Lab
from fastness.persistence import NextTurn, PendingTurnInputDraft, SessionStoreCreateRequest, TurnInput
from fastness.replay import Replayer
from tests.lab import ENGINES
from tests.nursery import SHARED, database_of

DEMO = Path(__file__).parents[2] / "demo"


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The demo's modules, found the way its own script finds them."""
    monkeypatch.syspath_prepend(str(DEMO))
    return importlib.import_module("audit"), importlib.import_module("jobs")


@pytest.fixture
def sources(demo: Any) -> list[Any]:
    """The records that the demo brings along."""
    found: list[Any] = demo[1].sources_of(demo[1].OWN_CONVERSATIONS)
    return found


DAMAGE = {
    "a turn without its last message": (
        "delete from node where seq = (select max(seq) from node where sid = 1) and sid = 1",
        ("torn",),
    ),
    "a message that was changed on disk": (
        "update node set body = replace(body, 'Feierabend', 'Wochenende') where sid = 1",
        ("torn",),
    ),
    "usage that was charged twice": ("update token_usage set output_tokens = output_tokens * 2", ("duplicated",)),
    "usage that was never charged": ("delete from token_usage", ("lost",)),
    "a turn without its receipt": ("update commit_log set turn_hash = null where revision = 1 and sid = 1", ("torn",)),
    "a head that is behind its turns": ("update head set revision = revision - 1 where sid = 1", ("torn",)),
    "a checkpoint of another turn": (
        "update head set checkpoint = replace(checkpoint, '\"turn_index\":', '\"turn_index\":9') where sid = 1",
        ("torn",),
    ),
    "usage that does not belong to its turns": ("update token_usage set input_tokens = 1", ("torn", "lost")),
    "a turn whose input waits for another": ("update turn_input_evidence set state = 'cancelled'", ("torn", "lost")),
    "a session that is missing": ("delete from session where sid = 1", ("lost",)),
}


async def replayed(lab: Lab, jobs: Any) -> list[Any]:
    """Replay one session of the demo whole, and give its job."""
    (job,) = [job for job in jobs.jobs_of(jobs.OWN_CONVERSATIONS) if job.session_id == "translation-1"]
    store = await lab.store(job.session_id)
    for branch in job.branches:
        await Replayer(store, branch.replay).run()
    return [job]


async def test_a_replay_that_went_well_is_called_clean(demo: Any, sources: Any, tmp_path: Path) -> None:
    """No finding where there is nothing to find, and all messages were compared."""
    audit, jobs = demo
    async with Lab(ENGINES["sqlite"], tmp_path) as lab:
        found, report = await audit.audit(lab.factory, await replayed(lab, jobs), sources)
    assert msgspec.structs.asdict(found) == {"messages": 7, "lost": 0, "duplicated": 0, "torn": 0}
    assert report.findings == ()


@pytest.mark.parametrize("kind", DAMAGE)
async def test_every_kind_of_damage_is_seen(demo: Any, sources: Any, tmp_path: Path, kind: str) -> None:
    """What is missing is lost, what is there twice is duplicated, what is there in part is torn."""
    audit, jobs = demo
    sql, kinds = DAMAGE[kind]
    async with Lab(ENGINES["sqlite"], tmp_path) as lab:
        job = await replayed(lab, jobs)
        await lab.execute_raw(sql)
        found, report = await audit.audit(lab.factory, job, sources)
    # The audit has eyes of its own: what the check found does not count here.
    found.torn -= len(report.findings)
    for name in kinds:
        assert getattr(found, name) > 0


async def test_what_is_there_and_was_never_recorded_is_seen(demo: Any, sources: Any, tmp_path: Path) -> None:
    """A branch too many is duplicated; input that waits is lost."""
    audit, jobs = demo
    async with Lab(ENGINES["sqlite"], tmp_path) as lab:
        (job,) = await replayed(lab, jobs)
        other = jobs.plan_replay(msgspec.structs.replace(job.branches[0].record, index=99), job.session_id)
        store = await lab.factory.open_existing_store(SessionStoreCreateRequest(job.session_id))
        await Replayer(store, other).run()
        draft = PendingTurnInputDraft(job.session_id, NextTurn(), TurnInput.of_text("Hello?"))
        await store.enqueue_pending_turn_input(draft)
        found, _ = await audit.audit(lab.factory, [job], sources)
    assert (found.lost, found.duplicated > 0) == (1, True)


async def test_a_session_that_nobody_asked_for_is_seen(demo: Any, sources: Any, tmp_path: Path) -> None:
    """Looking at the sessions of the demo alone would not show it."""
    audit, jobs = demo
    async with Lab(ENGINES["sqlite"], tmp_path) as lab:
        job = await replayed(lab, jobs)
        await lab.store("another")
        found, _ = await audit.audit(lab.factory, job, sources)
    assert (found.lost, found.duplicated, found.torn) == (0, 1, 0)


async def test_every_message_and_field_of_a_record_is_compared(demo: Any, sources: Any, tmp_path: Path) -> None:
    """What differs from the source is lost, beside the messages as well, to the kind of a number."""
    audit, jobs = demo
    async with Lab(ENGINES["sqlite"], tmp_path) as lab:
        (job,) = await replayed(lab, jobs)
        record = sources[job.branches[0].record.index]
        record["trial"] = float(record["trial"])
        field, _ = await audit.audit(lab.factory, [job], sources)
        record["messages"][0]["content"] += "!"
        record["messages"].append({"role": "user", "content": "And?"})
        messages, _ = await audit.audit(lab.factory, [job], sources)
    assert (field.lost, field.duplicated, field.torn) == (1, 0, 0)
    assert (messages.lost, messages.duplicated, messages.torn) == (2, 0, 0)


@pytest.mark.parametrize("text", ['[{"a": 1}, {"b": []}]', '{"a": 1}\n {"b": []}\n', ' [{"a": 1}]\n[{"b": []}] '])
def test_sources_are_read_in_every_layout(demo: Any, tmp_path: Path, text: str) -> None:
    """Records in an array and records in a row are the same records."""
    path = tmp_path / "talks.json"
    path.write_text(text)
    assert demo[1].sources_of(path) == [{"a": 1}, {"b": []}]


def test_a_source_that_is_a_list_of_messages_is_one_record(demo: Any, tmp_path: Path) -> None:
    """A bare list is no list of records."""
    path = tmp_path / "talk.json"
    path.write_text('[{"role": "user", "content": "Hello"}]')
    assert demo[1].sources_of(path) == [[{"role": "user", "content": "Hello"}]]


def run_demo(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the demo as a person does."""
    command = [sys.executable, str(DEMO / "run.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


async def test_a_worker_that_ends_by_itself_is_a_failure(
    demo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A crash is neither a kill of the demo nor a turn that it cut short."""
    run = importlib.import_module("run")
    crash = tmp_path / "crash.py"
    crash.write_text("raise SystemExit(3)")
    monkeypatch.setattr(run, "WORKER", crash)
    assert await run.demonstrate(f"sqlite:///{tmp_path}/demo.db", demo[1].OWN_CONVERSATIONS, 2, 4) == 1
    out = capsys.readouterr().out
    assert re.search(r"^failed: worker \d+ ended by itself with status 3$", out, re.MULTILINE)
    assert "failed: no worker was killed, so nothing was shown\n" in out
    assert "; 0 workers killed, 0 turns cut short, 0 lanes taken over: 1400 lost, 0 duplicated, 0 torn\n" in out


def test_a_demo_that_could_kill_nobody_fails_unless_that_was_asked_for(tmp_path: Path) -> None:
    """Too short a run shows nothing; ``--kills 0`` asks for no more than a replay. The database must be its own."""
    talk = tmp_path / "talk.json"
    talk.write_text('[{"role": "user", "content": "Hello"}]')
    short = run_demo("--input", talk, "--workers", 1)
    assert (short.returncode, short.stderr) == (1, "")
    assert "failed: no worker was killed, so nothing was shown\n" in short.stdout
    url = f"sqlite:///{tmp_path}/own.db"
    quiet = run_demo("--input", talk, "--workers", 1, "--kills", 0, "--database", url)
    assert (quiet.returncode, quiet.stderr) == (0, "")
    again = run_demo("--input", talk, "--workers", 1, "--kills", 0, "--database", url)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr == f"demo: database {url!r} holds sessions already; name one that the demo can have alone\n"


@pytest.mark.parametrize("engine", SHARED)
def test_the_demo_kills_workers_and_ends_in_its_verdict(engine: str, tmp_path: Path) -> None:
    """A short run: killed workers, lanes taken over, and nothing lost, duplicated or torn."""
    with database_of(engine, tmp_path) as url:
        found = run_demo("--workers", 2, "--kills", 3, "--database", url)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.count(", aimed at a commit that had ") == 2
    last = found.stdout.splitlines()[-1]
    counts = re.fullmatch(
        r"96 conversations in 64 sessions, 304 turns, 1400 messages compared; 3 workers killed, (\d+) turns cut short,"
        r" (\d+) lanes taken over: 0 lost, 0 duplicated, 0 torn",
        last,
    )
    assert counts is not None, last
    assert int(counts[1]) > 0
    assert int(counts[2]) > 0


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgresql://me:s3cret@host:5432/db", "postgresql://me@host:5432/db"),
        ("postgresql://me:s3c@ret@host/db?sslmode=require", "postgresql://me@host/db?sslmode=require"),
        ("postgresql://host/db?user=me&password=s3cret", "postgresql://host/db?user=me"),
        ("postgresql://host/db?password=s3cret", "postgresql://host/db"),
        ("sqlite:///a:b@c.db", "sqlite:///a:b@c.db"),
    ],
)
def test_a_password_is_not_printed(demo: Any, url: str, told: str) -> None:
    """What the demo says of its database can be shown to anybody."""
    assert importlib.import_module("run").shown(url) == told


def test_a_server_that_refuses_is_one_line_without_the_password() -> None:
    """Exit status 2; the workers are not even started."""
    found = run_demo("--database", "postgresql://me:s3cret@127.0.0.1:1/db")
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("demo: database db on 127.0.0.1 as me cannot be opened (")
    assert found.stderr.count("\n") == 1
    assert "s3cret" not in found.stderr
