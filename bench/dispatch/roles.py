"""What a process of the dispatch benchmark may be told to do, the same for every system that is measured.

A *side* is one system: it can make its tables, take no-op jobs, and run a worker. This module turns a side into a
command: ``python -m bench.dispatch.<side> <role> <options>``, options and answers being JSON. Only the standard library
is needed here, because the peers' interpreters have nothing else of ours.

Times are those of ``time.monotonic_ns``, which on Linux is one clock for all processes of a machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol, TextIO, TypeAlias

Options: TypeAlias = Mapping[str, Any]
Answer: TypeAlias = dict[str, Any]
Send: TypeAlias = Callable[[str], Awaitable[object]]
Hear: TypeAlias = Callable[[str], None]

PAUSE_S = (0.05, 0.15)
"""How long a sender rests between two jobs, so that the worker has become idle again."""
PATIENCE_S = 180.0
GLANCE_S = 0.01
"""How often is looked whether the last jobs, all of them begun, are done."""
SETTLING_S = 2.0
"""How long a worker is left alone before its idle time is measured."""


class Side(Protocol):
    """One system under measurement, in a process of its own."""

    async def prepare(self) -> None:
        """Make the tables."""
        ...

    async def fill(self, count: int) -> None:
        """Leave so many no-op jobs for a worker that is not there yet."""
        ...

    def sender(self) -> AbstractAsyncContextManager[Send]:
        """Open what is needed to send jobs by their keys, one after the other."""
        ...

    def worker(self, hear: Hear) -> AbstractAsyncContextManager[None]:
        """Run a worker whose handler calls ``hear`` with the job's key on its first line; leaving it drains it."""
        ...

    async def busy(self) -> bool:
        """Look whether the database has jobs that are not done."""
        ...

    async def settled(self) -> int:
        """Count the jobs that the database says are done."""
        ...


async def _prepare(side: Side, options: Options, answers: TextIO) -> Answer:
    del options, answers
    await side.prepare()
    return {}


async def _fill(side: Side, options: Options, answers: TextIO) -> Answer:
    del answers
    await side.fill(int(options["count"]))
    return {}


async def _send(side: Side, options: Options, answers: TextIO) -> Answer:
    """Send with pauses: when each call began, and how long it took."""
    del answers
    pauses = random.Random(int(options["seed"]))
    sent: dict[str, int] = {}
    took_ns: dict[str, int] = {}
    async with side.sender() as send:
        for number in range(int(options["count"])):
            await asyncio.sleep(pauses.uniform(*PAUSE_S))
            key = f"{options['seed']}-{number}"
            sent[key] = time.monotonic_ns()
            await send(key)
            took_ns[key] = time.monotonic_ns() - sent[key]
    return {"sent": sent, "took_ns": took_ns}


async def _work(side: Side, options: Options, answers: TextIO) -> Answer:
    """Work until a line comes: when each job's handler began."""
    del options
    heard: dict[str, int] = {}

    def hear(key: str) -> None:
        heard.setdefault(key, time.monotonic_ns())

    async with side.worker(hear):
        _say(answers, {"ready": True})
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    return {"heard": heard}


async def _finish(side: Side, options: Options, answers: TextIO) -> Answer:
    """Work until the database has so many jobs as done: how long that took since the first handler began."""
    del answers
    count = int(options["count"])
    loop, all_begun = asyncio.get_running_loop(), asyncio.Event()
    begun: list[int] = []

    def hear(key: str) -> None:
        del key
        begun.append(time.monotonic_ns())
        if len(begun) >= count:
            loop.call_soon_threadsafe(all_begun.set)

    async with side.worker(hear):
        async with asyncio.timeout(PATIENCE_S):
            await all_begun.wait()
            while await side.busy():
                await asyncio.sleep(GLANCE_S)
        seconds = (time.monotonic_ns() - min(begun)) / 1e9
        settled = await side.settled()
    if settled != count or len(begun) != count:
        raise RuntimeError(f"{count} jobs were sent, {len(begun)} begun and {settled} settled: this is no measurement")
    return {"seconds": seconds, "per_s": count / seconds}


async def _idle(side: Side, options: Options, answers: TextIO) -> Answer:
    """Have a worker wait for jobs that never come: its processor time, as a share of one core."""
    del answers
    async with side.worker(lambda _: None):
        await asyncio.sleep(SETTLING_S)
        before, started = _cpu_s(), time.monotonic()
        await asyncio.sleep(float(options["seconds"]))
        return {"share": (_cpu_s() - before) / (time.monotonic() - started)}


_ROLES: Mapping[str, Callable[[Side, Options, TextIO], Coroutine[Any, Any, Answer]]] = {
    "prepare": _prepare,
    "fill": _fill,
    "send": _send,
    "work": _work,
    "finish": _finish,
    "idle": _idle,
}


def main(make: Callable[[Options], Side]) -> None:
    """Do what the command line says, and print the answer as the last line."""
    # What a library prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    role, options = sys.argv[1], json.loads(sys.argv[2])
    _say(answers, asyncio.run(_ROLES[role](make(options), options, answers)))


def _say(answers: TextIO, answer: Answer) -> None:
    print(json.dumps(answer), file=answers, flush=True)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@asynccontextmanager
async def background(work: Coroutine[Any, Any, object]) -> AsyncIterator[asyncio.Task[object]]:
    """Run something beside the block; if it fails, the block's end says so."""
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        task.cancel()
        (error,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(error, Exception):
            raise error
