"""What a contestant of the comparison with the peers does when it is told to, in a process of its own.

``python -m bench.peers.<name> <options>`` reads a command a line from standard input and answers each with a line: JSON
both ways. Only the standard library is needed here, because the peers' interpreter has nothing else of ours.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TextIO, TypeAlias

Options: TypeAlias = Mapping[str, Any]
Answer: TypeAlias = dict[str, Any]

MESSAGES_PER_TURN = 4
_SLAB = 100
"""So many turns are prepared, or filled in, at once."""


class Session(Protocol):
    """One conversation."""

    async def attach(self) -> None:
        """Take hold of it, after the store was opened."""
        ...

    async def ahead(self, count: int) -> None:
        """Build what the next turns write, so that the turns only store it."""
        ...

    async def turn(self) -> None:
        """Store the four messages of the next turn; it is durable when this returns."""
        ...

    async def fill(self, count: int) -> bool:
        """Store so many turns in one call, where the same is then stored as turn by turn; else do nothing."""
        ...

    async def load(self) -> int:
        """Load the whole conversation, as the application gets it; give how many messages it has."""
        ...


class Contestant(Protocol):
    """One store."""

    async def open(self) -> None:
        """Open the store, and make its tables where they are not there."""
        ...

    async def close(self) -> None:
        """Close it, the way it is meant to be closed."""
        ...

    def session(self, name: str) -> Session:
        """Give a conversation that is not there yet."""
        ...

    async def settings(self) -> dict[str, str]:
        """Read back what decides durability, and what version this is."""
        ...


class _Room:
    """A contestant, the session that grows, and how many turns it has."""

    def __init__(self, contestant: Contestant) -> None:
        self.contestant = contestant
        self._grown: Session = contestant.session("grown")
        self._turns = 0
        self._is_open = False
        self._commands: Mapping[str, Callable[..., Awaitable[Answer]]] = {
            "open": self._open,
            "close": self._close,
            "ahead": self._ahead,
            "turns": self._run,
            "grow": self._grow,
            "load": self._load,
            "crowd": self._crowd,
        }

    async def do(self, command: Mapping[str, Any]) -> Answer:
        """Obey one command: its name is that of a method, its other entries are the arguments."""
        given = dict(command)
        answer: Answer = await self._commands[given.pop("do")](**given)
        return answer

    async def _open(self) -> Answer:
        await self.contestant.open()
        self._is_open = True
        await self._grown.attach()
        return {"settings": await self.contestant.settings()}

    async def _close(self) -> Answer:
        self._is_open = False
        await self.contestant.close()
        return {}

    async def leave(self) -> None:
        """Close what is still open: what works in the background would keep the process from ending."""
        if self._is_open:
            await self._close()

    async def _ahead(self, count: int) -> Answer:
        await self._grown.ahead(count)
        return {}

    async def _run(self, count: int, *, is_ready: bool) -> Answer:
        return {"seconds": await self._drive(count, is_ready=is_ready)}

    async def _drive(self, count: int, *, is_ready: bool = False) -> list[float]:
        session = self._grown
        if not is_ready:
            await session.ahead(count)
        gc.collect()
        seconds = []
        for _ in range(count):
            started = time.perf_counter()
            await session.turn()
            seconds.append(time.perf_counter() - started)
        self._turns += count
        return seconds

    async def _grow(self, to: int, budget_s: float | None) -> Answer:
        """Grow until the session has so many turns, or until the time is up."""
        started = time.perf_counter()
        filled = False
        while self._turns < to and (budget_s is None or time.perf_counter() - started < budget_s):
            count = min(_SLAB, to - self._turns)
            if await self._grown.fill(count):
                filled = True
                self._turns += count
            else:
                await self._drive(count)
        return {"turns": self._turns, "seconds": time.perf_counter() - started, "filled": filled}

    async def _load(self) -> Answer:
        gc.collect()
        started = time.perf_counter()
        messages = await self._grown.load()
        seconds = time.perf_counter() - started
        if messages != self._turns * MESSAGES_PER_TURN:
            raise RuntimeError(f"{self._turns} turns were stored, and {messages} messages came back")
        return {"seconds": seconds}

    async def _crowd(self, name: str, sessions: int, turns: int) -> Answer:
        """Drive so many new sessions at once."""
        crowd = [self.contestant.session(f"{name}-{at}") for at in range(sessions)]
        for session in crowd:
            await session.attach()
            await session.ahead(turns)

        async def drive(session: Session) -> None:
            for _ in range(turns):
                await session.turn()

        gc.collect()
        started = time.perf_counter()
        await asyncio.gather(*(drive(session) for session in crowd))
        return {"seconds": time.perf_counter() - started}


def main(make: Callable[[Options], Contestant]) -> None:
    """Do what comes in until nothing comes any more; an error ends it, and is told."""
    # What a library prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        asyncio.run(_serve(make, json.loads(sys.argv[1]), answers))
    except Exception as error:
        _say(answers, {"error": f"{type(error).__name__}: {error}"[:500], "missing": isinstance(error, ImportError)})
        raise


async def _serve(make: Callable[[Options], Contestant], options: Options, answers: TextIO) -> None:
    room = _Room(make(options))
    _say(answers, {"ready": True})
    for line in sys.stdin:
        _say(answers, await room.do(json.loads(line)))
    await room.leave()


def _say(answers: TextIO, answer: Answer) -> None:
    print(json.dumps(answer), file=answers, flush=True)


def versions(*packages: str) -> dict[str, str]:
    """Give the versions of packages that are installed here."""
    return {package: importlib.metadata.version(package) for package in packages}


def sqlite_settings(journal: Sequence[Any], synchronous: Sequence[Any], library: Sequence[Any]) -> dict[str, str]:
    """Name what ``pragma journal_mode``, ``pragma synchronous`` and ``select sqlite_version()`` answered."""
    levels = {0: "off", 1: "normal", 2: "full", 3: "extra"}
    return {
        "journal_mode": str(journal[0]),
        "synchronous": levels[int(synchronous[0])],
        "SQLite": str(library[0]),
    }


SQLITE_QUESTIONS = ("pragma journal_mode", "pragma synchronous", "select sqlite_version()")
POSTGRES_QUESTIONS = ("fsync", "full_page_writes", "synchronous_commit")
