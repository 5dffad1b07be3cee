"""The embedded engine: programs on one SQLite file, or on a private database in memory.

It promises what ``Engine`` promises. A write is durable when it returns (``synchronous="full"``), many waiting writes
share one commit, and reads on a file never wait for writes. This module is the part on the event loop: it checks that a
call may be made and hands it to a thread.

An engine belongs to the event loop and the process of its first use. It does no I/O before that.
"""

from __future__ import annotations

import asyncio
import atexit
import errno
import os
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal, TypeVar

from fastness.engines.binding import Binding
from fastness.engines.engine import Clock, system_clock
from fastness.engines.signals import Signal
from fastness.engines.sqlite_faults import is_damage
from fastness.engines.sqlite_open import Settings, lacking
from fastness.engines.sqlite_readers import Readers, SnapshotReader
from fastness.engines.sqlite_run import BatchHook, Job
from fastness.engines.sqlite_verify import verification
from fastness.engines.sqlite_watch import LogWatch
from fastness.engines.sqlite_writer import Writer
from fastness.errors import (
    BackendError,
    DatabaseDamagedError,
    DatabaseOpenError,
    HandleUnusableError,
    InvalidInputError,
)
from fastness.model.session import DurabilityTier
from fastness.sql.migrations import script
from fastness.sql.program import Program, ProgramFactory

__all__ = ["BatchHook", "SqliteEngine", "check_path", "holds_bytes"]

T = TypeVar("T")

DEFAULT_BUSY_TIMEOUT_MS = 30_000
_PATIENCE_AT_EXIT_S = 10.0


class SqliteEngine:
    """Runs programs on a SQLite database.

    ``path`` None is a private in-memory database that ends with the engine. ``synchronous="normal"`` does not sync the
    log at each commit: faster, and the last commits before a power loss may be gone (never half of one).
    ``busy_timeout_ms`` bounds every wait for a lock that another process holds; then ``ContendedError``.
    ``before_batch`` is for tests: what it raises is a fault at that point.
    """

    def __init__(
        self,
        path: str | Path | None,
        *,
        clock: Clock = system_clock,
        synchronous: Literal["full", "normal"] = "full",
        busy_timeout_ms: int = DEFAULT_BUSY_TIMEOUT_MS,
        allow_network_filesystem: bool = False,
        before_batch: BatchHook | None = None,
    ) -> None:
        if synchronous not in {"full", "normal"}:
            raise InvalidInputError("synchronous", "must be 'full' or 'normal'")
        self.durability_tier: DurabilityTier = "inline" if path is None else "durable"
        self.rows_per_read = 250
        self.decides_ahead = False
        self.path = None if path is None else _absolute(path)
        settings = Settings(self.path, clock, synchronous, busy_timeout_ms, allow_network_filesystem, before_batch)
        self._settings = settings
        self._writer = Writer(settings)
        self._readers = Readers(settings)
        self._binding = Binding(self._begin)
        self._closed: asyncio.Future[None] | None = None
        self._signal = Signal()
        self._log_watch = None if self.path is None else LogWatch(self.path, self._signal)

    def __repr__(self) -> str:
        return f"SqliteEngine({str(self.path) if self.path is not None else None!r})"

    async def start(self) -> None:
        """Open the database now, and create or migrate it where needed. Every other call does it by itself.

        Raises ``DatabaseOpenError``, ``DatabaseReadOnlyError``, ``DatabaseFullError`` or ``ContendedError``; the next
        call tries again.
        """
        opened = self._binding.enter().create_future()
        self._writer.submit_open(Job(_nothing, opened))
        await opened

    async def read(self, make: ProgramFactory[T]) -> T:
        """Run a program that only reads, on one snapshot."""
        loop = self._binding.enter()
        if self.path is not None and not self._writer.is_open:
            await self.start()
            self._binding.enter()
        future: asyncio.Future[T] = loop.create_future()
        job = Job(make, future, reads_only=True)
        if self.path is None:
            self._writer.submit(job)
        else:
            self._readers.submit(job)
        return await future

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[SqliteSnapshot]:
        """Hold one snapshot of a file for several reads, on a connection of its own.

        Writes go on meanwhile, and the log grows with them until the end. A database in memory has but one connection,
        which cannot both stand still and write: ``BackendError``.
        """
        loop = self._binding.enter()
        if self.path is None:
            raise BackendError("a database in memory has no snapshots", "read it session by session: copy it instead")
        if not self._writer.is_open:
            await self.start()
            self._binding.enter()
        ended = loop.create_future()
        held = SqliteSnapshot(self._binding.enter, self._readers.hold(Job(_nothing, ended)))
        try:
            await held.read(_nothing)  # the moment is now, and not that of the first read
            yield held
        finally:
            held.end()
            await asyncio.shield(ended)

    async def write(self, make: ProgramFactory[T]) -> T:
        """Run a program in a writing transaction; the result is durable when this returns."""
        future: asyncio.Future[T] = self._binding.enter().create_future()
        job = Job(make, future)
        self._writer.submit(job)
        result = await future
        if job.wakes:
            self._signal()
        return result

    def tell_groups(self, told: Callable[[int], None]) -> None:
        """Have somebody told how many writes each COMMIT settled. Any thread may call them; they must not raise."""
        self._writer.on_group = told

    async def verify(self) -> list[str]:
        """Let SQLite check the file, and compare its schema with a fresh one. An empty list means no fault."""
        try:
            return await self.read(verification)
        except BackendError as error:
            if isinstance(error, DatabaseDamagedError) or is_damage(error.__cause__):
                return [error.detail]
            raise

    async def migration_script(self) -> list[str]:
        """Give the statements that this database lacks to be up to date; none where it is. Changes nothing."""
        self._binding.enter()
        steps = await asyncio.to_thread(lacking, self._settings)
        return ["begin immediate", *script(steps), "commit"] if steps else []

    async def wait_for_work(self, seen: int, timeout_s: float) -> int:
        """Wait until somebody committed something that leaves work to do, or the time is up.

        Writes of this engine wake at once, those of other processes within milliseconds of their commit; it may wake
        for a commit that leaves nothing to do.
        """
        loop = self._binding.enter()
        if self._log_watch is not None:
            self._log_watch.start(loop)
        return await self._signal.wait(seen, timeout_s)

    async def close(self) -> None:
        """Finish what was started, refuse what comes after, and let go of the files. Twice is fine.

        In a forked child this touches nothing: the files belong to the parent.
        """
        if not self._binding.close():
            return
        self._signal()
        if self._log_watch is not None:
            self._log_watch.stop()
        if self._closed is None:
            loop = asyncio.get_running_loop()
            self._closed = closed = loop.create_future()
            _stop(self._writer, self._readers, lambda: _resolve(loop, closed))
        # A cancelled close goes on: only the waiting ends.
        await asyncio.shield(self._closed)

    def _begin(self) -> None:
        """Start the threads, on first use."""
        self._writer.start()
        _running[self._writer] = self._readers
        # An engine that is dropped without being closed lets go of its files all the same.
        weakref.finalize(self, _abandon, self._writer, self._readers, self._binding.pid).atexit = False


class SqliteSnapshot:
    """One moment of a file, for reads that come one after another."""

    def __init__(self, enter: Callable[[], asyncio.AbstractEventLoop], reader: SnapshotReader) -> None:
        self._enter = enter
        self._reader: SnapshotReader | None = reader

    async def read(self, make: ProgramFactory[T]) -> T:
        """Run a program that only reads, on the snapshot."""
        future: asyncio.Future[T] = self._enter().create_future()
        if self._reader is None:
            raise HandleUnusableError("is a snapshot that has ended", "open another one")
        self._reader.submit(Job(make, future, reads_only=True))
        return await future

    def end(self) -> None:
        """Let go of the snapshot once the reads that wait are answered."""
        if self._reader is not None:
            self._reader.stop()
            self._reader = None


def check_path(path: str | Path) -> None:
    """Refuse what cannot be the path of a file, before anything is done with it."""
    if not isinstance(path, str | Path) or not str(path) or "\0" in str(path):
        raise InvalidInputError("path", "must be the path of a file")
    try:
        str(path).encode()  # SQLite takes UTF-8, whatever this system calls its files by
    except UnicodeEncodeError:
        raise InvalidInputError("path", "is not valid UTF-8 text") from None


def holds_bytes(path: str | Path) -> bool:
    """Whether there is a file with something in it, so that opening it makes no database out of nothing.

    Raises ``DatabaseOpenError`` where that cannot be found out.
    """
    try:
        return Path(path).stat().st_size > 0
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _unreachable(path, error) from error


def _absolute(path: str | Path) -> Path:
    check_path(path)
    try:
        absolute = Path(path).absolute()
    except OSError as error:
        raise _unreachable(path, error) from error
    check_path(absolute)  # the working directory is part of it now
    return absolute


def _unreachable(path: str | Path, error: OSError) -> DatabaseOpenError:
    name = errno.errorcode.get(error.errno or 0, "unknown error")
    return DatabaseOpenError(f"{str(path)!r} cannot be reached ({name})", "check the path and its permissions")


def _nothing() -> Program[None]:
    yield from ()


def _resolve(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
    try:
        loop.call_soon_threadsafe(_resolve_here, future)
    except RuntimeError:
        return  # the loop is closed: nobody waits


def _resolve_here(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


_running: dict[Writer, Readers] = {}


def _stop(writer: Writer, readers: Readers, at_end: Callable[[], None]) -> None:
    def ended() -> None:
        _running.pop(writer, None)
        at_end()

    readers.stop()
    writer.stop(readers.join, ended)


def _abandon(writer: Writer, readers: Readers, pid: int) -> None:
    """Stop an engine that was dropped. Does not block: the collector may call this anywhere."""
    if pid == os.getpid() and not writer.is_stopping:
        _stop(writer, readers, lambda: None)


def _finish_at_exit() -> None:
    """Let the threads end before the interpreter does: what was queued is committed, the log is copied."""
    for writer, readers in list(_running.items()):
        _abandon(writer, readers, os.getpid())
        writer.join(_PATIENCE_AT_EXIT_S)


atexit.register(_finish_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_running.clear)
