"""The demo tells the truth: a clean run is called clean, and what differs from the recording is seen."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fastness
from tests.nursery import SHARED, database_of

DEMO = Path(__file__).parents[2] / "demo"
TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "You are a clerk."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Good day", "usage": {"prompt_tokens": 3}},
    {"role": "user", "content": "And?"},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f"}}]},
    {"role": "tool", "tool_call_id": "c1", "content": "42"},
    {"role": "assistant", "content": "42"},
]


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The demo's modules, found the way its own script finds them."""
    monkeypatch.syspath_prepend(str(DEMO))
    return importlib.import_module("run"), importlib.import_module("talks")


def run_demo(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the demo as a person does."""
    command = [sys.executable, str(DEMO / "run.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def recorded(tmp_path: Path, count: int = 1) -> Path:
    """A file with the same conversation several times."""
    path = tmp_path / "talks.json"
    path.write_text(json.dumps([{"messages": TALK}] * count))
    return path


async def hold(db: fastness.Database, messages: list[dict[str, Any]]) -> None:
    """Hold a conversation in the session that the demo would take for it."""
    for message in messages:
        if message["role"] == "user":
            await db.send("talks-1.1", message["content"])
        async with db.turn("talks-1.1") as turn:
            if message["role"] != "user":
                turn.append(message)


@pytest.mark.parametrize(
    ("held", "score"),
    [
        (TALK, (7, 0, 0)),
        (TALK[:-1], (7, 1, 0)),
        ([*TALK, TALK[-1]], (7, 0, 1)),
        ([*TALK[:-1], {**TALK[-1], "content": "43"}], (7, 1, 1)),
        ([TALK[0], *TALK[3:], *TALK[1:3]], (7, 6, 0)),
    ],
    ids=["as it was", "one is missing", "one too many", "one is another", "out of order"],
)
async def test_every_message_is_compared_with_the_recording(
    demo: Any, tmp_path: Path, held: list[dict[str, Any]], score: tuple[int, int, int]
) -> None:
    """What is missing, what is there and was not recorded, and what is out of its place is counted."""
    run, talks = demo
    async with fastness.connect("memory:") as db:
        await hold(db, held)
        found = await run.compare(db, talks.talks_of(recorded(tmp_path)))
    assert (found.messages, found.missing, found.surplus) == score


def test_a_conversation_is_what_users_said_and_what_was_recorded_behind_it(demo: Any, tmp_path: Path) -> None:
    """What stands before a user's first word opens the session; every word of a user has a key."""
    (talk,) = demo[1].talks_of(recorded(tmp_path))
    assert talk.opening == (TALK[0],)
    assert [(each.key, each.said, len(each.answers)) for each in talk.exchanges] == [
        ("talks-1.1/1", "Hello", 1),
        ("talks-1.1/2", "And?", 3),
    ]


def test_a_demo_that_could_kill_nobody_fails_unless_that_was_asked_for(tmp_path: Path) -> None:
    """Too short a run shows nothing; ``--kills 0`` asks for no more than a run. The database must be its own."""
    silence, talk = tmp_path / "silence.json", tmp_path / "talk.json"
    silence.write_text('{"messages": []}')
    talk.write_text('[{"role": "assistant", "content": "Anybody?"}]')
    # Nobody has anything to write, so nobody is ever at work, however long that takes.
    short = run_demo("--input", silence, "--workers", 1, "--stops", 0)
    assert (short.returncode, short.stderr) == (1, "")
    assert "failed: nobody was killed, so nothing was shown\n" in short.stdout
    url = f"sqlite:///{tmp_path}/own.db"
    quiet = run_demo("--input", talk, "--workers", 1, "--kills", 0, "--stops", 0, "--database", url)
    assert (quiet.returncode, quiet.stderr) == (0, "")
    again = run_demo("--input", talk, "--workers", 1, "--kills", 0, "--database", url)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr == f"demo: database {url!r} holds sessions already; name one that the demo can have alone\n"


@pytest.mark.parametrize("engine", SHARED)
def test_the_demo_kills_workers_and_ends_in_its_verdict(engine: str, tmp_path: Path) -> None:
    """A short run: killed workers, one that was stopped, and nothing lost, duplicated or torn."""
    with database_of(engine, tmp_path) as url:
        found = run_demo(
            "--workers", 2, "--kills", 2, "--stops", 1, "--database", url, "--input", recorded(tmp_path, 40)
        )
    assert (found.returncode, found.stderr) == (0, ""), found.stdout
    last = found.stdout.splitlines()[-1]
    assert re.fullmatch(
        r"40 conversations, 120 turns, 280 messages compared; 2 processes killed, 1 stopped,"
        r" \d+ turns cut short: 0 lost, 0 duplicated, 0 torn",
        last,
    ), last


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
    assert demo[0].shown(url) == told


def test_a_server_that_refuses_is_one_line_without_the_password() -> None:
    """Exit status 2; the workers are not even started."""
    found = run_demo("--database", "postgresql://me:s3cret@127.0.0.1:1/db")
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("demo: database db on 127.0.0.1 as me cannot be opened (")
    assert found.stderr.count("\n") == 1
    assert "s3cret" not in found.stderr
