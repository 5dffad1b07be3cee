"""Laws of the fleet: who is killed is replaced, who fails is named, and nobody outlives the block."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

from fastness.testing import Fleet

LASTING = "import time; time.sleep(600)"


async def until(fleet: Fleet, name: str, *, other_than: int | None = None) -> int:
    """Wait until somebody stands at a post."""
    while (pid := fleet.pid(name)) is None or pid == other_than:
        await asyncio.sleep(0.01)
    return pid


def state_of(pid: int) -> str:
    """The state of a process, as the system names it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


async def test_who_is_killed_is_replaced() -> None:
    """Another process takes the post, and the death is counted as ours."""
    async with Fleet() as fleet:
        fleet.man("one", [sys.executable, "-c", LASTING])
        first = await until(fleet, "one")
        assert fleet.kill("one")
        second = await until(fleet, "one", other_than=first)
        assert (fleet.started, fleet.killed, fleet.failures) == (2, 1, [])
        await fleet.dismiss()
        assert fleet.failures == []
    assert not Path(f"/proc/{second}").exists()


async def test_who_ends_well_is_done_and_who_does_not_is_named() -> None:
    """An exit status is a failure, and so is a death that nobody ordered; neither is replaced."""
    async with Fleet() as fleet:
        fleet.man("good", [sys.executable, "-c", ""])
        fleet.man("bad", [sys.executable, "-c", "raise SystemExit(3)"])
        fleet.man("dead", [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
        await fleet.finished("")
        assert fleet.unfinished() == []
        told = sorted(f"{line.split()[0]} {line.split()[-1]}" for line in fleet.failures)
        assert (fleet.started, told) == (3, ["bad 3", "dead -9"])
        assert not fleet.kill("bad")


async def test_who_is_stopped_goes_on_after_a_while() -> None:
    """It stands still meanwhile, and cannot be stopped twice at once."""
    async with Fleet() as fleet:
        fleet.man("one", [sys.executable, "-c", LASTING])
        pid = await until(fleet, "one")
        assert fleet.stop("one", 0.2)
        while state_of(pid) != "T":
            await asyncio.sleep(0.01)
        assert not fleet.stop("one", 0.2)
        while state_of(pid) == "T":
            await asyncio.sleep(0.01)
        assert fleet.stopped == 1


async def test_nobody_outlives_the_block() -> None:
    """Whoever still stands somewhere at the end is killed."""
    async with Fleet() as fleet:
        fleet.man("one", [sys.executable, "-c", LASTING])
        pid = await until(fleet, "one")
    assert not Path(f"/proc/{pid}").exists()


def test_a_member_ends_when_the_keeper_of_its_fleet_is_gone() -> None:
    """Its standard input comes to an end, whatever killed the keeper."""
    script = f"from fastness.testing import end_with_parent; end_with_parent(); print('up', flush=True); {LASTING}"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as member:
        assert member.stdin is not None
        assert member.stdout is not None
        assert member.stdout.readline() == b"up\n"
        member.stdin.close()
        assert member.wait() == 1
