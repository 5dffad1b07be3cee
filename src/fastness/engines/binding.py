"""The event loop and the process that an engine belongs to: those of its first use.

It promises that an engine which is closed, was carried over a fork, or is used from another loop says so at once. It
does no I/O.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from fastness.errors import HandleUnusableError


class Binding:
    """Whose an engine is, and whether it still may be used. ``on_first_use`` is called once, on the loop."""

    def __init__(self, on_first_use: Callable[[], None] | None = None) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.pid = 0
        self.is_closed = False
        self._on_first_use = on_first_use

    def enter(self) -> asyncio.AbstractEventLoop:
        """Check that a call may be made here and now, and give the loop. Raises ``HandleUnusableError``."""
        loop = asyncio.get_running_loop()
        if self.loop is not loop or self.is_closed or self.pid != os.getpid():
            self._bind(loop)
        return loop

    def _bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take the first loop as the engine's own; raise where the engine is not usable."""
        if self.is_foreign:
            raise HandleUnusableError(
                "was opened before this process was forked from its parent",
                "open the store after the fork, or start the process with the spawn method",
            )
        if self.is_closed:
            raise HandleUnusableError("is closed", "open a new one")
        if self.loop is not None:
            raise other_loop()
        self.loop, self.pid = loop, os.getpid()
        if self._on_first_use is not None:
            self._on_first_use()

    @property
    def is_foreign(self) -> bool:
        """Whether the engine was used before this process was forked: what it holds belongs to the parent."""
        return self.loop is not None and self.pid != os.getpid()

    def close(self) -> bool:
        """Refuse every later call; False: there is nothing of this process to let go of.

        Raises ``HandleUnusableError`` on another loop than the engine's own, as long as that one lives.
        """
        loop = asyncio.get_running_loop()
        if self.loop is None or self.is_foreign:
            self.is_closed = True
            return False
        if self.loop is not loop and not self.loop.is_closed():
            raise other_loop()
        self.is_closed = True
        return True


def other_loop() -> HandleUnusableError:
    """Say that an engine is used from another loop than its own."""
    return HandleUnusableError("belongs to another event loop", "open one store in each event loop")
