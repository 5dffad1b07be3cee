"""Threads that run handlers, kept for the next one, made when none is free.

It promises that a job never waits for another to end: a handler that is stuck, and whose turn was taken from it, holds
up nobody. The threads are daemons, so that it does not hold up the end of the process either.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

R = TypeVar("R")
_Job: TypeAlias = "tuple[Callable[[], Any], Callable[[Any], object]]"


class Crew:
    """The threads of one worker."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._free = threading.Semaphore(0)
        self._count = 0

    def start(self, job: Callable[[], R], tell: Callable[[R], object]) -> None:
        """Have a job run on a thread, and what it comes to told there; neither may raise. One thread calls this."""
        if not self._free.acquire(blocking=False):
            self._count += 1
            threading.Thread(target=self._work, name=f"{self._name}-{self._count}", daemon=True).start()
        self._jobs.put((job, tell))

    def dismiss(self) -> None:
        """Let each thread end when it has nothing more to do."""
        while self._count:
            self._count -= 1
            self._jobs.put(None)

    def _work(self) -> None:
        while (given := self._jobs.get()) is not None:
            job, tell = given
            outcome = job()
            # Whoever is told may have the next one at once: no further thread is made for it.
            self._free.release()
            tell(outcome)
            del given, job, tell, outcome  # a thread that waits keeps no turn alive
