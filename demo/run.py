"""The demo: workers answer what users say to many sessions of one database, and are killed and stopped at it.

Senders send what users said in recorded conversations, and workers answer what was recorded. Some of them are killed
with SIGKILL, some workers are stopped until another one has taken their sessions over, and go on then. Whoever is
killed is replaced. In the end the history checker compares the journals of all of them with the database, and every
conversation is compared with its recording. The last line is the verdict, and so is the exit status.

    python demo/run.py [--input FILE] [--database URL] [--workers N] [--kills N] [--stops N]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import msgspec
from crew import ORDERS, TIMINGS, Orders
from talks import OWN_CONVERSATIONS, Talk, line_of, talks_of

import fastness
from fastness.errors import InvalidInputError, StoreError
from fastness.testing import Committed, Fleet, Report, check, read_final, read_journals

SENDERS = 2
TIME_LIMIT_S = 110.0
LOOK_S = 0.05
CREW = Path(__file__).with_name("crew.py")
_PASSWORD = re.compile(r"^(\w+://[^/?@:]*):[^/?]*(?=@)")


class Plan(msgspec.Struct, frozen=True):
    """What is to be done, and where."""

    url: str
    input: Path
    journals: Path
    workers: int
    kills: int
    stops: int


class Score(msgspec.Struct):
    """What the transcripts show beside their recordings."""

    messages: int = 0
    missing: int = 0
    surplus: int = 0


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def shown(url: str) -> str:
    """The url without a password, wherever in it that stands."""
    base, mark, query = _PASSWORD.sub(r"\1", url).partition("?")
    kept = "&".join(part for part in query.split("&") if not part.startswith(("password=", "sslpassword=")))
    return f"{base}{mark}{kept}" if kept else base


class Demo:
    """Runs the fleet and treats it badly."""

    def __init__(self, plan: Plan, talks: list[Talk], db: fastness.Database, fleet: Fleet) -> None:
        self._plan, self._talks, self._db, self._fleet = plan, talks, db, fleet
        self._random = random.Random(7)
        total = sum(len(talk.exchanges) for talk in talks)
        faults = ["kill"] * plan.kills + ["stop"] * plan.stops
        self._random.shuffle(faults)
        # Spread over the whole run, the first not before everybody is at it.
        self._due = [((at + 1) * total // (len(faults) + 1), fault) for at, fault in enumerate(faults)]

    async def run(self) -> None:
        """Work until all is said and answered."""
        for number in range(max(self._plan.workers, SENDERS)):
            orders = Orders(self._plan.url, str(self._plan.input), str(self._plan.journals), number, SENDERS)
            env = {ORDERS: msgspec.json.encode(orders).decode()}
            if number < SENDERS:
                self._fleet.man(f"sender {number}", [sys.executable, str(CREW), "sender"], env)
            if number < self._plan.workers:
                self._fleet.man(f"worker {number}", [sys.executable, str(CREW), "worker"], env)
        async with asyncio.timeout(TIME_LIMIT_S):
            while self._fleet.unfinished("sender") or self._due or not await self._is_quiet():
                # Where the machine is slow, several may be due by now.
                while self._due and self._due[0][0] <= self._answered() and self._be_bad(self._due[0][1]):
                    self._due.pop(0)
                await asyncio.sleep(LOOK_S)
                if self._fleet.failures or (self._due and await self._is_over()):
                    break
            await self._fleet.dismiss()

    def _answered(self) -> int:
        events, _ = read_journals(self._plan.journals)
        return sum(len(event.input_ids) for event in events if isinstance(event, Committed))

    async def _is_over(self) -> bool:
        """Whether all is answered although something bad was still to be done: its commits were never told."""
        return not self._fleet.unfinished("sender") and await self._is_quiet()

    async def _is_quiet(self) -> bool:
        """Whether nothing is left to be done, and nobody does anything."""
        agenda = await self._db.factory.dispatch.read_agenda(limit=1)
        held = await self._db.factory.workers.list_held_lanes()
        return not agenda.sessions and agenda.next_ready_in_ms is None and all(lane.is_expired for lane in held)

    def _be_bad(self, fault: str) -> bool:
        """Kill somebody, or stop a worker for longer than its leases last. False: nobody is at work now."""
        names = self._fleet.alive("worker" if fault == "stop" or self._random.random() < 0.9 else "")
        at_work = [name for name in names if self._is_at_work(name)]
        if not at_work:
            return False
        name = self._random.choice(at_work)
        pid = self._fleet.pid(name)
        if fault == "kill":
            if self._fleet.kill(name):
                say(f"killed {name}, process {pid}")
                return True
        elif self._fleet.stop(name, 1.5 * TIMINGS.ttl.total_seconds()):
            say(f"stopped {name}, process {pid}, for longer than its leases last")
            return True
        return False

    def _is_at_work(self, name: str) -> bool:
        """Whether somebody has written a line: who dies while Python starts shows nothing."""
        return any(path.stat().st_size for path in self._plan.journals.glob(f"{self._fleet.pid(name)}-*"))


async def compare(db: fastness.Database, talks: list[Talk]) -> Score:
    """Lay every conversation beside its recording."""
    score = Score()
    for talk in talks:
        view = await db.read(talk.session_id)
        there = [] if view is None else [line_of(message) for message in view.messages]
        score.messages += len(talk.lines)
        score.missing += (Counter(talk.lines) - Counter(there)).total()
        score.surplus += (Counter(there) - Counter(talk.lines)).total()
        if Counter(there) == Counter(talk.lines):
            score.missing += sum(one != other for one, other in zip(there, talk.lines, strict=True))
    return score


async def demonstrate(plan: Plan) -> int:
    """Run it all and give the exit status."""
    talks = talks_of(plan.input)
    began = time.monotonic()
    failures: list[str] = []
    async with fastness.connect(plan.url) as db, Fleet() as fleet:
        if (await db.list(limit=1)).sessions:
            raise InvalidInputError(
                f"database {shown(plan.url)!r}", "holds sessions already; name one that the demo can have alone"
            )
        say(f"{plan.workers} workers answer {len(talks)} conversations of {plan.input.name} in {shown(plan.url)}")
        try:
            await Demo(plan, talks, db, fleet).run()
        except TimeoutError:
            failures.append(f"not done after {TIME_LIMIT_S:.0f} seconds")
        failures += fleet.failures
        if plan.kills and not fleet.killed:
            failures.append("nobody was killed, so nothing was shown")
        events, findings = read_journals(plan.journals)
        # What a recording lacks, nobody can ask of what was made after it.
        own = plan.input.resolve() == OWN_CONVERSATIONS
        allow = () if own else ("unanswered", "orphan_call", "orphan_result")
        report = check(events, await read_final(db.factory), allow=allow, journal_findings=findings)  # type: ignore[arg-type]
        failures += [f"check: {found.detail}" for found in (await db.factory.check()).findings]
        score = await compare(db, talks)
    return conclude(report, score, fleet, failures, time.monotonic() - began)


def conclude(report: Report, score: Score, fleet: Fleet, failures: list[str], seconds: float) -> int:
    """Print the outcome, the verdict last, and give the exit status."""
    say(report.explain().rstrip())
    for failure in failures:
        say(f"failed: {failure}")
    say(f"took {seconds:.1f} seconds")
    counts = report.counts
    lost, duplicated = report.lost + score.missing, report.duplicated + score.surplus
    say(
        f"{counts.sessions} conversations, {counts.commits} turns, {score.messages} messages compared;"
        f" {fleet.killed} processes killed, {fleet.stopped} stopped,"
        f" {counts.turns_started - counts.commits} turns cut short:"
        f" {lost} lost, {duplicated} duplicated, {report.torn} torn"
    )
    return 0 if report.ok and not (score.missing or score.surplus or failures) else 1


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description="Hold conversations in several processes, and kill some of them.")
    parser.add_argument("--input", type=Path, default=OWN_CONVERSATIONS, help="a file of recorded conversations")
    parser.add_argument("--database", help="where to (default: a temporary file)")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--stops", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fastness-demo-") as directory:
        url = given.database or f"sqlite:///{directory}/demo.db"
        journals = Path(directory) / "journals"
        journals.mkdir()
        try:
            plan = Plan(url, given.input.absolute(), journals, given.workers, given.kills, given.stops)
            return asyncio.run(demonstrate(plan))
        except StoreError as error:
            sys.stderr.write(f"demo: {error}\n")
            return 2
        except KeyboardInterrupt:
            return 130


if __name__ == "__main__":
    sys.exit(main())
