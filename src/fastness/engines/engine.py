"""What an engine is: the seam between programs and a database."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeVar

from fastness.model.session import DurabilityTier
from fastness.sql.program import ProgramFactory

T = TypeVar("T")


class Snapshot(Protocol):
    """One moment of a database, for as many reading programs as one likes, one after another."""

    async def read(self, make: ProgramFactory[T]) -> T:
        """Run a program that only reads. It sees what every other program of this snapshot sees.

        A snapshot that was lost (its connection broke) raises ``BackendError`` from then on: it never goes on at a
        later moment. After its end it raises ``HandleUnusableError``.
        """
        ...


class Engine(Protocol):
    """Runs programs, each in one transaction.

    Both calls are coroutines of the event loop that the engine was first used on. They raise what the program raises,
    and ``HandleUnusableError`` (closed, forked, another loop), ``ContendedError``, ``CommitOutcomeUnknownError`` or a
    ``BackendError``. Cancelling a ``write`` that has not started withdraws it; afterwards its outcome is unknown to the
    caller (law C13). No cancellation leaves a transaction open.
    """

    durability_tier: DurabilityTier
    rows_per_read: int
    """How many rows a program does well to ask for at once: a few where a read is cheap, many across a network."""
    decides_ahead: bool
    """Whether it is worth saying which facts a program expects: to an engine that would have to wait for them."""

    async def read(self, make: ProgramFactory[T]) -> T:
        """Run a program that only reads, on one snapshot."""
        ...

    def snapshot(self) -> AbstractAsyncContextManager[Snapshot]:
        """Hold one snapshot for several reads, from the entering of the context to its end.

        It costs what a long reader costs (a log that cannot start over, old rows that cannot be vacuumed). Raises
        ``BackendError`` where the database has none to give: a private one in memory.
        """
        ...

    async def write(self, make: ProgramFactory[T]) -> T:
        """Run a program in a writing transaction; the result is durable when this returns."""
        ...

    async def migration_script(self) -> list[str]:
        """Give the statements that this database lacks to be up to date; none where it is. Changes nothing."""
        ...

    async def wait_for_work(self, seen: int, timeout_s: float) -> int:
        """Wait until a commit that leaves work to do came from anywhere, or the time is up.

        Gives a number; the next call shows it as ``seen``, so that nothing between two calls is missed. Another number
        than the one shown means: look again. It is a hint: it may come for nothing, and a process that was cut off gets
        none, so whoever waits looks by itself now and then.
        """
        ...

    async def verify(self) -> list[str]:
        """Let the database check its own files; an empty list means that it found no fault."""
        ...

    async def close(self) -> None:
        """Finish what was started, refuse what comes after, and let go of the files. Twice is fine."""
        ...


Clock = Callable[[], int]
"""Milliseconds since the epoch. Tests replace it and advance it."""


def system_clock() -> int:
    """Give the time of this machine: the clock of every engine that is not given another."""
    return time.time_ns() // 1_000_000
