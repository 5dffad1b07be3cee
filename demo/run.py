"""The demo: several processes replay conversations into one database while some of them are killed in mid-turn.

Workers announce each turn between its claim and its commit. The demo kills some with SIGKILL, at once or a little
later, looks into the database to see which turns that cut short (their lanes are still held by the dead), and gives the
dead one's sessions to others, who take the lanes over. At the end every transcript is compared with its source. The
last line is the verdict, and so is the exit status.

    python demo/run.py [--input FILE] [--database URL] [--workers N] [--kills N]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

import msgspec
from audit import Findings, audit
from jobs import OWN_CONVERSATIONS, Job, jobs_of

from fastness.factory import EngineSessionStoreFactory, open_database
from fastness.ops import lane
from fastness.ops.lane import Target
from fastness.persistence import CheckReport, StoreError

JOBS_AT_ONCE = 3
TIME_LIMIT_S = 110.0
WORKER = Path(__file__).with_name("worker.py")


class Score(msgspec.Struct):
    """What happened, as far as the demo saw it."""

    killed: int = 0
    cut_turns: int = 0
    taken_over: int = 0
    announced: int = 0
    failures: list[str] = []


class Worker:
    """One process and the jobs that it has not finished."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("a worker is started with pipes")
        self.process = process
        self.requests, self.news = process.stdin, process.stdout
        self.killed = False
        self.open_jobs: dict[int, int] = {}
        """By number, with the lanes that the job has taken over so far."""

    def give(self, number: int) -> None:
        """Hand over one more job."""
        self.open_jobs[number] = 0
        self.requests.write(f"{number}\n".encode())

    def kill(self) -> None:
        """Send SIGKILL, once: the operating system gives it no chance to tidy up."""
        if not self.killed and self.process.returncode is None:
            self.killed = True
            self.process.kill()


class Demo:
    """Runs the workers, kills some, and gives their jobs to others."""

    def __init__(self, url: str, path: Path, jobs: list[Job], factory: EngineSessionStoreFactory, kills: int) -> None:
        self.score = Score()
        self._url, self._path, self._jobs, self._factory = url, path, jobs, factory
        self._waiting = deque(range(len(jobs)))
        self._done: set[int] = set()
        turns = sum(job.turn_count for job in jobs)
        # Spread over the whole run, the first not before every worker is at it.
        self._kill_at = deque((at + 1) * turns // (kills + 1) for at in range(kills))
        self._random = random.Random(7)

    async def run(self, workers: int) -> None:
        """Work until every job is done."""
        await asyncio.gather(*(self._keep_a_worker() for _ in range(workers)))

    async def _keep_a_worker(self) -> None:
        """Run a worker, and another one in its place when it was killed."""
        while len(self._done) < len(self._jobs):
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                str(WORKER),
                self._url,
                str(self._path),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            worker = Worker(process)
            try:
                await self._listen(worker)
            finally:
                worker.kill()
                await process.wait()
            await self._bury(worker)

    async def _listen(self, worker: Worker) -> None:
        self._feed(worker)
        while worker.open_jobs:
            line = await worker.news.readline()
            if not line.endswith(b"\n"):
                return
            word, number, detail = json.loads(line)
            if word == "claimed":
                worker.open_jobs[number] = detail
                await self._on_claim(worker)
                continue
            worker.open_jobs.pop(number)
            self._done.add(number)
            if word == "done":
                self.score.taken_over += detail
            else:
                self.score.failures.append(f"session {self._jobs[number].session_id}: {detail}")
            self._feed(worker)
        worker.requests.close()
        await worker.process.wait()

    def _feed(self, worker: Worker) -> None:
        while self._waiting and len(worker.open_jobs) < JOBS_AT_ONCE:
            worker.give(self._waiting.popleft())

    async def _on_claim(self, worker: Worker) -> None:
        self.score.announced += 1
        if worker.killed or not self._kill_at or self.score.announced < self._kill_at[0]:
            return
        self._kill_at.popleft()
        if len(self._kill_at) % 3 == 0:
            # Not only where it is announced: also in the middle of a commit, or of entering a lane.
            await asyncio.sleep(self._random.uniform(0.0, 0.05))
        worker.kill()
        self.score.killed += worker.killed

    async def _bury(self, worker: Worker) -> None:
        """See what the dead worker has left behind, and give its jobs to others."""
        if not worker.open_jobs:
            return
        cut = []
        for number, taken_over in worker.open_jobs.items():
            session_id = self._jobs[number].session_id
            holder = await self._factory.engine.read(lambda: lane.observe(Target(session_id)))  # noqa: B023 - awaited
            if holder is not None and holder.owner.owner_id == f"worker-{worker.process.pid}":
                cut.append(session_id)
            self.score.taken_over += taken_over
            self._waiting.append(number)
        self.score.cut_turns += len(cut)
        where = f"in the middle of a turn of {', '.join(cut)}" if cut else "between turns"
        say(f"killed worker {worker.process.pid} {where}")


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def verdict(jobs: list[Job], score: Score, found: Findings) -> str:
    """The line that counts."""
    conversations = sum(len(job.branches) for job in jobs)
    turns = sum(job.turn_count for job in jobs)
    return (
        f"{conversations} conversations in {len(jobs)} sessions, {turns} turns, {found.messages} messages compared;"
        f" {score.killed} workers killed, {score.cut_turns} turns cut short, {score.taken_over} lanes taken over:"
        f" {found.lost} lost, {found.duplicated} duplicated, {found.torn} torn"
    )


async def demonstrate(url: str, path: Path, workers: int, kills: int) -> int:
    """Run it all and give the exit status."""
    jobs = jobs_of(path)
    kills = min(kills, sum(job.turn_count for job in jobs) // 4)
    say(f"{workers} workers replay {len(jobs)} sessions of {path.name} into {url}")
    started = time.monotonic()
    async with open_database(url) as factory:
        demo = Demo(url, path, jobs, factory, kills)
        try:
            await asyncio.wait_for(demo.run(workers), TIME_LIMIT_S)
        except TimeoutError:
            demo.score.failures.append(f"not done after {TIME_LIMIT_S:.0f} seconds")
        found, report = await audit(factory, jobs)
    return conclude(jobs, demo.score, found, report, time.monotonic() - started)


def conclude(jobs: list[Job], score: Score, found: Findings, report: CheckReport, seconds: float) -> int:
    """Print the outcome, the verdict last, and give the exit status."""
    for failure in score.failures:
        say(f"failed: {failure}")
    for finding in report.findings:
        say(f"check: {finding.session_id or 'database'}: {finding.rule}: {finding.detail}")
    say(f"check: {report.node_count} nodes, {report.commit_count} commits, {len(report.findings)} faults")
    if score.killed and not score.cut_turns:
        score.failures.append("no kill landed in a turn")
        say("failed: no kill landed in the middle of a turn, so nothing was shown")
    say(f"took {seconds:.1f} seconds")
    say(verdict(jobs, score, found))
    return 0 if found.clean and not score.failures else 1


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description="Replay conversations in several processes, and kill some of them.")
    parser.add_argument("--input", type=Path, default=OWN_CONVERSATIONS, help="a file of recorded conversations")
    parser.add_argument("--database", help="where to (default: a temporary file)")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--kills", type=int, default=32)
    given = parser.parse_args()
    try:
        if given.database:
            return asyncio.run(demonstrate(given.database, given.input, given.workers, given.kills))
        with tempfile.TemporaryDirectory(prefix="fastness-demo-") as directory:
            url = f"sqlite:///{directory}/demo.db"
            return asyncio.run(demonstrate(url, given.input, given.workers, given.kills))
    except StoreError as error:
        sys.stderr.write(f"demo: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
