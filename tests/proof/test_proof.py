"""The proof in small, on both engines; ``python -m tests.proof`` is the same in full size."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from tests.proof.crew import Complaining, last_complaints
from tests.proof.plan import Size
from tests.proof.run import freeze, prove
from tests.servers.postgres import PostgresServer

SMALL = Size(
    sessions=24,
    inputs=160,
    workers=3,
    senders=2,
    kills=4,
    stops=2,
    sender_kills=1,
    ttl_s=1.0,
    pause_s=0.01,
    limit_s=200.0,
)
"""It takes some seconds where there is time; the limit is for machines that have other things to do."""


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """The pool tells its log of each connection that a crash has cut."""
    caplog.set_level(logging.CRITICAL, logger="psycopg")


def test_on_sqlite_with_clocks_that_disagree_every_input_is_settled_once_and_in_order(tmp_path: Path) -> None:
    """Workers are killed and stopped past their leases, their clocks are a second off: nothing is lost or doubled."""
    size = msgspec.structs.replace(SMALL, skew_s=1.0)
    outcome = asyncio.run(prove(size, f"sqlite:///{tmp_path}/proof.db", tmp_path))
    assert outcome.ok, outcome.explain()
    assert outcome.done == Counter({"kill": 4, "stop": 2, "kill sender": 1}), outcome.explain()
    assert outcome.report.counts.acknowledged == 160


def test_on_postgres_with_a_server_that_crashes_every_input_is_settled_once_and_in_order(tmp_path: Path) -> None:
    """Workers are killed and stopped past their leases, and the server dies with them: nothing is lost or doubled."""
    size = msgspec.structs.replace(SMALL, crashes=1)
    with PostgresServer() as server, server.database() as url:
        outcome = asyncio.run(prove(size, url, tmp_path, server=server))
    assert outcome.ok, outcome.explain()
    assert outcome.done == Counter({"kill": 4, "stop": 2, "kill sender": 1, "crash": 1}), outcome.explain()
    assert outcome.report.counts.acknowledged == 160


def test_a_sender_without_keys_is_found_out(tmp_path: Path) -> None:
    """Who says it again after a lost answer, and gives no key, says it twice: the checker names every such input."""
    size = Size(sessions=3, inputs=12, workers=1, senders=1, sick=False, limit_s=SMALL.limit_s)
    outcome = asyncio.run(prove(size, f"sqlite:///{tmp_path}/proof.db", tmp_path, keyless=True))
    assert Counter(finding.kind for finding in outcome.report.findings) == {"settled_twice": 12}, outcome.explain()
    assert outcome.report.verdict == "0 lost, 12 duplicated, 0 torn"


def test_the_code_of_a_fleet_is_the_same_to_the_end(tmp_path: Path) -> None:
    """Who is started late imports the copy that was made at first, and nothing that was changed since."""
    env = freeze(tmp_path)
    script = "import fastness, tests.proof.crew as crew; print(fastness.__file__, crew.__file__, crew.plan.__module__)"
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **env}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [
        f"{tmp_path}/fastness/__init__.py",
        f"{tmp_path}/tests/proof/crew.py",
        "tests.proof.plan",
    ]


def test_who_gets_nowhere_says_why(tmp_path: Path) -> None:
    """The last warning of each process is there for a run that did not end; who has none to give is left out."""
    assert last_complaints(tmp_path) == []
    log = logging.Logger("a process of its own")  # noqa: LOG001 - one that no other test hears of
    for name in ("worker-0", "worker-1"):
        log.handlers = [Complaining(tmp_path, name)]
        for error in ("TimeoutError", "DatabaseOpenError"):
            log.warning("cannot look for work: %s", error)
        log.info("all is well")
    assert last_complaints(tmp_path) == [
        "worker-0: cannot look for work: DatabaseOpenError",
        "worker-1: cannot look for work: DatabaseOpenError",
    ]
