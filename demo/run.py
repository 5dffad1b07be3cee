"""The demo: several processes replay conversations into one database while some of them are killed in mid-turn.

Workers announce each turn after its claim, and again right before its commit. The demo kills some with SIGKILL: half of
them between the two, half in the first milliseconds of the commit. It looks into the database to see which turns that
cut short (their lanes are still held by the dead) and gives the dead one's sessions to others, who take the lanes over.
At the end every record is compared with its source. The last line is the verdict, and so is the exit status.

    python demo/run.py [--input FILE] [--database URL] [--workers N] [--kills N]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

import msgspec
from audit import Findings, audit
from jobs import DATABASE, OWN_CONVERSATIONS, Job, jobs_of, sources_of

from fastness.errors import InvalidInputError
from fastness.factory import EngineSessionStoreFactory, open_database
from fastness.ops import lane
from fastness.ops.lane import Target
from fastness.persistence import CheckReport, SessionStoreCreateRequest, StoreError

JOBS_AT_ONCE = 3
COMMIT_TAKES_S = 0.003
TIME_LIMIT_S = 110.0
_PASSWORD = re.compile(r"^(\w+://[^/?@:]*):[^/?]*(?=@)")
WORKER = Path(__file__).with_name("worker.py")


class Score(msgspec.Struct):
    """What happened, as far as the demo saw it. ``landed`` counts the commits that a kill was aimed at and missed."""

    killed: int = 0
    at_commit: int = 0
    landed: int = 0
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
        self.committing: tuple[int, str] | None = None
        """The job, and the last node of its turn, whose commit the kill was aimed at."""
        self.open_jobs: dict[int, int] = {}
        """By number, with the lanes that the job has taken over so far."""

    def give(self, number: int) -> None:
        """Hand over one more job."""
        self.open_jobs[number] = 0
        self.requests.write(f"{number}\n".encode())

    def kill(self) -> None:
        """Send SIGKILL, once: the operating system gives it no chance to tidy up."""
        if self.process.returncode is None:
            self.killed = True
            self.process.kill()

    @property
    def ended_by_itself(self) -> bool:
        """Whether it ended, and neither because it was killed nor because its work was done."""
        if self.killed:
            return self.process.returncode != -signal.SIGKILL
        return self.process.returncode != 0 or bool(self.open_jobs)


class Demo:
    """Runs the workers, kills some, and gives their jobs to others."""

    def __init__(self, url: str, path: Path, jobs: list[Job], factory: EngineSessionStoreFactory, kills: int) -> None:
        self.score = Score()
        self._url, self._path, self._jobs, self._factory = url, path, jobs, factory
        self._waiting = deque(range(len(jobs)))
        self._done: set[int] = set()
        turns = sum(len(job.turns) for job in jobs)
        # Spread over the whole run, the first not before every worker is at it.
        self._kill_at = deque((at + 1) * turns // (kills + 1) for at in range(kills))
        self._random = random.Random(7)

    async def run(self, workers: int) -> None:
        """Work until every job is done."""
        await asyncio.gather(*(self._keep_a_worker() for _ in range(workers)))

    async def _keep_a_worker(self) -> None:
        """Run a worker, and another one in its place when it was killed."""
        while len(self._done) < len(self._jobs):
            if not self._waiting:
                # The others have the rest in hand; one of them may yet die.
                await asyncio.sleep(0.02)
                continue
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                str(WORKER),
                str(self._path),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                # Not an argument: everybody on the machine could read it, and it may hold a password.
                env={**os.environ, DATABASE: self._url},
            )
            worker = Worker(process)
            try:
                await self._listen(worker)
                await process.wait()
            finally:
                if process.returncode is None:
                    # The demo itself was stopped.
                    process.kill()
                await process.wait()
            await self._bury(worker)

    async def _listen(self, worker: Worker) -> None:
        self._feed(worker)
        while worker.open_jobs:
            line = await worker.news.readline()
            if not line.endswith(b"\n"):
                return
            word, number, taken_over, detail = json.loads(line)
            if word in ("claimed", "committing"):
                worker.open_jobs[number] = taken_over
                await self._on_news(worker, word, number, detail)
                continue
            worker.open_jobs.pop(number)
            self._done.add(number)
            self.score.taken_over += taken_over
            if word == "failed":
                self.score.failures.append(f"session {self._jobs[number].session_id}: {detail}")
            self._feed(worker)
        worker.requests.close()
        await worker.process.wait()

    def _feed(self, worker: Worker) -> None:
        while self._waiting and len(worker.open_jobs) < JOBS_AT_ONCE:
            worker.give(self._waiting.popleft())

    async def _on_news(self, worker: Worker, word: str, number: int, leaf_node_id: str) -> None:
        """Kill the worker if it is time, and if it is where the next kill is aimed at."""
        self.score.announced += word == "claimed"
        if worker.killed or not self._kill_at or self.score.announced < self._kill_at[0]:
            return
        if word != ("claimed", "committing")[len(self._kill_at) % 2]:
            return
        due = self._kill_at.popleft()
        if word == "committing":
            worker.committing = (number, leaf_node_id)
            await asyncio.sleep(self._random.uniform(0.0, COMMIT_TAKES_S))
        worker.kill()
        if not worker.killed:
            self._kill_at.appendleft(due)

    async def _bury(self, worker: Worker) -> None:
        """See what the dead worker has left behind, and give its jobs to others."""
        pid = worker.process.pid
        if worker.ended_by_itself:
            self.score.failures.append(f"worker {pid} ended by itself with status {worker.process.returncode}")
            # They may be what ended it: nobody else gets them.
            self._done.update(worker.open_jobs)
            return
        if not worker.killed:
            return
        self.score.killed += 1
        cut = [self._jobs[number].session_id for number in worker.open_jobs if await self._is_held(number, pid)]
        where = f"in the middle of a turn of {', '.join(cut)}" if cut else "between turns"
        if worker.committing is not None:
            landed = await self._is_there(*worker.committing)
            self.score.at_commit += 1
            self.score.landed += landed
            where += f", aimed at a commit that {'had landed' if landed else 'had not landed'}"
        for number, taken_over in worker.open_jobs.items():
            self.score.taken_over += taken_over
            self._waiting.append(number)
        self.score.cut_turns += len(cut)
        say(f"killed worker {pid} {where}")

    async def _is_held(self, number: int, pid: int) -> bool:
        """Tell whether the lane of a job's session is still held by a worker."""
        target = Target(self._jobs[number].session_id)
        holder = await self._factory.engine.read(lambda: lane.observe(target))
        return holder is not None and holder.owner.owner_id == f"worker-{pid}"

    async def _is_there(self, number: int, node_id: str) -> bool:
        store = await self._factory.open_existing_store(SessionStoreCreateRequest(self._jobs[number].session_id))
        return store is not None and await store.load_node(node_id) is not None


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def shown(url: str) -> str:
    """The url without a password, wherever in it that stands."""
    base, mark, query = _PASSWORD.sub(r"\1", url).partition("?")
    kept = "&".join(part for part in query.split("&") if not part.startswith(("password=", "sslpassword=")))
    return f"{base}{mark}{kept}" if kept else base


def verdict(jobs: list[Job], score: Score, found: Findings) -> str:
    """The line that counts."""
    conversations = sum(len(job.branches) for job in jobs)
    turns = sum(len(job.turns) for job in jobs)
    return (
        f"{conversations} conversations in {len(jobs)} sessions, {turns} turns, {found.messages} messages compared;"
        f" {score.killed} workers killed, {score.cut_turns} turns cut short, {score.taken_over} lanes taken over:"
        f" {found.lost} lost, {found.duplicated} duplicated, {found.torn} torn"
    )


async def demonstrate(url: str, path: Path, workers: int, kills: int) -> int:
    """Run it all and give the exit status."""
    jobs = jobs_of(path)
    planned = min(kills, sum(len(job.turns) for job in jobs) // 4)
    started = time.monotonic()
    async with open_database(url) as factory:
        if (await factory.list_sessions(limit=1)).sessions:
            raise InvalidInputError(
                f"database {shown(url)!r}", "holds sessions already; name one that the demo can have alone"
            )
        say(f"{workers} workers replay {len(jobs)} sessions of {path.name} into {shown(url)}")
        demo = Demo(url, path, jobs, factory, planned)
        try:
            await asyncio.wait_for(demo.run(workers), TIME_LIMIT_S)
        except TimeoutError:
            demo.score.failures.append(f"not done after {TIME_LIMIT_S:.0f} seconds")
        if kills and not demo.score.killed:
            demo.score.failures.append("no worker was killed, so nothing was shown")
        elif kills and not demo.score.cut_turns:
            demo.score.failures.append("no kill landed in the middle of a turn, so nothing was shown")
        found, report = await audit(factory, jobs, sources_of(path))
    return conclude(jobs, demo.score, found, report, time.monotonic() - started)


def conclude(jobs: list[Job], score: Score, found: Findings, report: CheckReport, seconds: float) -> int:
    """Print the outcome, the verdict last, and give the exit status."""
    for failure in score.failures:
        say(f"failed: {failure}")
    for finding in report.findings:
        say(f"check: {finding.session_id or 'database'}: {finding.rule}: {finding.detail}")
    say(f"check: {report.node_count} nodes, {report.commit_count} commits, {len(report.findings)} faults")
    missed = score.at_commit - score.landed
    say(f"commits that a kill was aimed at: {score.landed} had landed whole, {missed} not at all")
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
