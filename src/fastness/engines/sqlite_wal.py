"""Keeping the write-ahead log short without making commits wait.

SQLite's own checkpoint runs inside somebody's commit. Here most of the work is done beside the commits: from
``SOFT_BOUND`` pages on, a background connection copies the log into the database file and syncs it, a few times, since
commits go on meanwhile. Then the writer copies the short tail between two groups, so that the next commit starts the
log over from its beginning. Where other processes commit in between, the log does not start over that way; the next
tail is then copied with all writers shut out. At ``HARD_BOUND`` pages the writer does it all itself.

``WalWatch`` decides and does no I/O; ``Checkpointer`` is the background thread.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import apsw

from fastness.engines.sqlite_faults import code_of
from fastness.engines.sqlite_files import SharedFile
from fastness.engines.sqlite_open import Link
from fastness.errors import StoreError

SOFT_BOUND = 6_000
"""Pages, some 24 MB. A commit that meets a checkpoint is slow: so few of them do that it does not show in the p99."""

HARD_BOUND = 12_000
_ROUNDS = 4
_SHORT_TAIL = 64
_MOMENT_MS = 50

_log = logging.getLogger("fastness.sqlite")

Action: TypeAlias = Literal["nothing", "background", "inline"]


class WalWatch:
    """Watches the log's length, in pages, and says who shall checkpoint, and how.

    ``stubborn`` is true while a log goes on although its tail was copied. A log that cannot be copied whole at the hard
    bound is pinned: somebody reads an old snapshot. That is told once, until the log starts over.
    """

    def __init__(self, soft: int = SOFT_BOUND, hard: int = HARD_BOUND) -> None:
        self.pages = 0
        self.running = False
        self.stubborn = False
        self._soft = soft
        self._hard = hard
        self._again = soft // 2  # what was in vain is tried again before the log is long
        self._next_background = soft
        self._next_inline = hard
        self._told = False

    def committed(self, pages: int) -> Action:
        """Take the length of the log after a commit; say what to do now."""
        if pages < self.pages:
            self._next_background, self._next_inline = self._soft, self._hard
            self.stubborn = self._told = False
        self.pages = pages
        if pages >= self._next_inline:
            self._next_inline = pages + self._again
            return "inline"
        if pages >= self._next_background and not self.running:
            self.running = True
            return "background"
        return "nothing"

    def tail_copied(self) -> None:
        """Note that a background run has ended. The next comes after half as many pages again, or with a new log."""
        self.running = False
        self.stubborn = True
        self._next_background = self.pages + self._again

    def is_news(self, whole: bool) -> bool:
        """Whether to report a pinned log after an inline checkpoint, which did or did not copy the whole log."""
        if whole or self._told:
            return False
        self._told = True
        return True


class Copied(NamedTuple):
    """What a checkpoint found: the pages of the log, and how many of them are in the database file now."""

    pages: int
    copied: int


def passive_checkpoint(connection: apsw.Connection) -> Copied | None:
    """Copy what can be copied without waiting for anybody. None: it could not run."""
    try:
        return Copied(*connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE))
    except apsw.BusyError:
        return None  # another process is at it
    except apsw.Error as error:
        _log.warning("a checkpoint failed (%s); the log keeps everything, it is tried again later", code_of(error))
        return None


def thorough_checkpoint(link: Link) -> Copied | None:
    """Copy the whole log while no process can add to it. Waits a moment for the others; else copies what it can."""
    patience = link.wait.timeout_ms
    link.wait.timeout_ms = min(patience, _MOMENT_MS)
    try:
        return Copied(*link.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_FULL))
    except apsw.Error:
        return passive_checkpoint(link.connection)
    finally:
        link.wait.timeout_ms = patience


def report_pinned(place: str, pages: int) -> None:
    """Warn that a reader keeps the log from starting over."""
    _log.warning(
        "the write-ahead log of %s has %d pages: a long-running reader keeps it from starting over", place, pages
    )


class Checkpointer:
    """The background thread of one engine, with a connection of its own. Started by the first ``wake``."""

    def __init__(self, open_link: Callable[[], Link], file: SharedFile, done: Callable[[], None]) -> None:
        self._open_link = open_link
        self._file = file
        self._done = done
        self._wakes: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stopping = False

    def wake(self) -> None:
        """Ask for a run; ``done`` is called from the thread when it is over."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._main, name="fastness-sqlite-checkpoints", daemon=True)
            self._thread.start()
        self._wakes.put(True)

    def stop(self) -> None:
        """End the thread and close its connection. Blocks until the round in work is over."""
        self._stopping = True
        if self._thread is not None:
            self._wakes.put(False)
            self._thread.join()

    def _main(self) -> None:
        link: Link | None = None
        while self._wakes.get():
            try:
                link = link or self._open_link()
                self._run(link.connection)
            except (StoreError, OSError) as error:
                _log.warning("a background checkpoint failed (%s); it is tried again later", type(error).__name__)
            self._done()
        if link is not None:
            link.close()

    def _run(self, connection: apsw.Connection) -> None:
        # Each round copies what was committed during the one before, so the rounds get short.
        before = 0
        for _ in range(_ROUNDS):
            if self._stopping:
                return
            with self._file.checkpointing:
                found = passive_checkpoint(connection)
            if found is None:
                return
            self._file.sync()
            if found.copied - before <= _SHORT_TAIL:
                return
            before = found.copied
