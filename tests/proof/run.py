"""Runs the fleet, treats it badly while it works, and judges what is left.

When something bad happens is measured in settled inputs and not in seconds: however slow the machine is, all of it
happens, spread over the whole run.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import msgspec

import fastness
from fastness.errors import StoreError
from fastness.factory import EngineSessionStoreFactory, open_database
from fastness.sql.program import Program, Read, Statement
from fastness.testing import Fleet, Report, TurnFailed, check, read_final, read_journals
from tests.proof.crew import ORDERS, TAKEOVERS, Orders, last_complaints
from tests.proof.plan import Size
from tests.proof.verify import find_faults

Fault: TypeAlias = Literal["kill", "stop", "kill sender", "crash"]

LOOK_S = 0.05


class Crashing(Protocol):
    """A server that can be made to crash and to come back."""

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop and start."""
        ...


class Outcome(msgspec.Struct):
    """What happened, and the verdict. ``faults`` are what the checker cannot know of, and what broke the run."""

    report: Report
    faults: list[str]
    done: Counter[str]
    takeovers: Counter[str]
    failed: Counter[str]
    started: int
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return self.report.ok and not self.faults

    def explain(self) -> str:
        """Say it all; the verdict is the last line."""
        done = ", ".join(f"{count} {name}" for name, count in sorted(self.done.items())) or "none"
        taken = ", ".join(f"{count} {name}" for name, count in sorted(self.takeovers.items())) or "none"
        failed = ", ".join(f"{count} {name}" for name, count in sorted(self.failed.items())) or "none"
        allowed = f"{len(self.report.allowed)} set aside as they should be"
        lines = [
            self.report.explain().rstrip(),
            f"faults injected: {done}; {self.started} processes started; lanes taken over: {taken}",
            f"turns that failed: {failed}",
            f"took {self.seconds:.1f} seconds; {allowed}",
            *(f"fault: {fault}" for fault in self.faults[:20]),
            f"{self.report.verdict}, {len(self.faults)} other faults",
        ]
        return "\n".join(lines)


async def prove(
    size: Size, url: str, directory: Path, *, server: Crashing | None = None, keyless: bool = False
) -> Outcome:
    """Run it all on an empty database; journals and the code go to a new directory."""
    journals = directory / "journals"
    journals.mkdir()
    frozen = freeze(directory / "code")
    began = time.monotonic()
    async with open_database(url) as factory, Fleet() as fleet:
        await factory.migrate()
        run = _Run(size, factory, fleet, journals, server)
        for role, count in (("worker", size.workers), ("sender", size.senders)):
            for number in range(count):
                orders = Orders(role, number, url, str(journals), size, keyless)  # type: ignore[arg-type]
                env = {ORDERS: msgspec.json.encode(orders).decode(), **frozen}
                fleet.man(f"{role}-{number}", [sys.executable, "-m", "tests.proof.crew"], env)
        try:
            async with asyncio.timeout(size.limit_s):
                await run.until_quiet()
                await fleet.dismiss()
        except TimeoutError:
            run.faults.append(f"not done after {size.limit_s:.0f} seconds: {await run.where()}")
            run.faults += last_complaints(journals)
        seconds = time.monotonic() - began
        run.faults += fleet.failures
        events, findings = read_journals(journals)
        final = await read_final(factory)
        # What is set aside is for ``find_faults`` to compare.
        report = check(events, final, allow=("quarantined",), journal_findings=findings)
        run.faults += await find_faults(size, factory, events, final)
        taken = journals / TAKEOVERS
        takeovers = Counter(taken.read_text().split()) if taken.exists() else Counter()
        failed = Counter(event.error for event in events if isinstance(event, TurnFailed))
        return Outcome(report, run.faults, run.done, takeovers, failed, fleet.started, seconds)


def freeze(code: Path) -> dict[str, str]:
    """Copy the code of the fleet, and give the environment in which Python finds the copy and nothing else.

    Somebody may be at work on the code meanwhile. A successor that ran half a change, or expected other tables than its
    predecessors had made, would bring the fleet to a stand for no fault of its own.
    """
    crew = Path(__file__).parent
    for package, place in ((Path(fastness.__file__).parent, "fastness"), (crew, "tests/proof")):
        shutil.copytree(package, code / place, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(crew.parent / "__init__.py", code / "tests")
    return {"PYTHONPATH": str(code), "PYTHONSAFEPATH": "1"}


class _Run:
    """The run, as far as it has come."""

    def __init__(
        self,
        size: Size,
        factory: EngineSessionStoreFactory,
        fleet: Fleet,
        journals: Path,
        server: Crashing | None,
    ) -> None:
        self._journals = journals
        self.done: Counter[str] = Counter()
        self.faults: list[str] = []
        self._size = size
        self._factory = factory
        self._fleet = fleet
        self._server = server
        self._chance = random.Random(size.seed)
        self._due = self._schedule()

    def _schedule(self) -> list[tuple[int, Fault]]:
        """Say what happens, and after how many settled inputs."""
        size = self._size
        first: list[Fault] = ["kill sender"] * size.sender_kills
        counts: dict[Fault, int] = {"kill": size.kills, "stop": size.stops, "crash": size.crashes}
        others = [fault for fault, count in counts.items() for _ in range(count)]
        self._chance.shuffle(others)
        # Senders are done before the workers are.
        due = [(int((at + 1) * 0.5 * size.inputs / (len(first) + 1)), fault) for at, fault in enumerate(first)]
        due += [(int((at + 1) * 0.95 * size.inputs / (len(others) + 1)), fault) for at, fault in enumerate(others)]
        return sorted(due)

    async def until_quiet(self) -> None:
        """Treat the fleet badly until all is sent, and then wait until all is settled."""
        while self._fleet.unfinished("sender") or self._due or not await self._is_quiet():
            settled = await self._ask(settled_count)
            while self._due and self._due[0][0] <= settled:
                await self._inflict(self._due.pop(0)[1])
            await asyncio.sleep(LOOK_S)

    async def _is_quiet(self) -> bool:
        try:
            held = await self._factory.workers.list_held_lanes()
            return all(lane.is_expired for lane in held) and await self._factory.engine.read(waiting_count) == 0
        except StoreError:
            return False

    async def _ask(self, program: Callable[[], Program[int]]) -> int:
        try:
            return await self._factory.engine.read(program)
        except StoreError:
            return 0

    async def _inflict(self, fault: Fault) -> None:
        """Do it, to somebody who is there."""
        await asyncio.sleep(0.02 * self._chance.random())
        if fault == "crash":
            if self._server is not None:
                await asyncio.to_thread(self._server.restart, "immediate")
                self.done[fault] += 1
            return
        prefix = "sender" if fault == "kill sender" else "worker"
        while not (names := [name for name in self._fleet.alive(prefix) if self._is_at_work(name)]):
            if not self._fleet.unfinished(prefix):
                return  # senders, who are done
            await asyncio.sleep(LOOK_S)
        self._chance.shuffle(names)
        for name in names:
            hit = self._fleet.stop(name, self._size.ttl_s * 1.6) if fault == "stop" else self._fleet.kill(name)
            if hit:
                self.done[fault] += 1
                return

    def _is_at_work(self, name: str) -> bool:
        """Whether somebody has written a line: who dies while Python starts proves nothing."""
        journals = self._journals.glob(f"{self._fleet.pid(name)}-*")
        return any(journal.stat().st_size > 0 for journal in journals)

    async def where(self) -> str:
        """Say what is left, for a run that did not end."""
        return f"{await self._ask(waiting_count)} rows wait, {await self._ask(settled_count)} inputs are settled"


def settled_count() -> Program[int]:
    """A program that counts the inputs that are settled or set aside."""
    (((count,),),) = yield Read(Statement("select count(*) from turn_input_evidence"), last=True)
    return int(count)


def waiting_count() -> Program[int]:
    """A program that counts what waits or is held."""
    sql = "select (select count(*) from turn_input) + (select count(*) from queued_work)"
    (((count,),),) = yield Read(Statement(sql), last=True)
    return int(count)
