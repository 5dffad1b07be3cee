"""Small work on a disk that the file store needs: durable directories, files in pieces, a hash that follows a copy.

Nothing here knows what the files are for. All of it blocks, and belongs into a thread.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Self

from fastness.attachments.content import BLOCK_BYTES, open_regular, unreadable
from fastness.errors import InvalidInputError

DIRECTORY_MODE = 0o700

PIECE_BYTES = 1024 * 1024
"""How much is copied at a time: what a processor's cache holds is cheaper than fewer calls."""

# Without O_NONBLOCK, opening a pipe that somebody put there would wait for its other end.
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def pieces_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """Give a file piece by piece, each with how much it is up to its end. Raises ``InvalidInputError``."""
    size = 0
    try:
        with open_regular(path) as file:
            while piece := file.read(PIECE_BYTES):
                size += len(piece)
                yield size, piece
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None


def read_whole(path: Path) -> bytes | None:
    """Give the content of a file of at most a block, and None for all else, whatever it is."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > BLOCK_BYTES:
                return None
            content = os.read(file.fileno(), size + 1)
    except (OSError, ValueError, InvalidInputError):
        return None
    return content if len(content) == size else None


class Follower:
    """Hashes a file in a thread of its own while it is written, as far as it is told that it has come."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._ends: SimpleQueue[int] = SimpleQueue()
        self._digest = hashlib.sha256()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.put(-1)
        self._thread.join()

    def upto(self, size: int) -> None:
        """Say how long the file is by now."""
        self._ends.put(size)

    def attachment_id(self) -> str:
        """Wait for the hash of all of it. Raises ``OSError``."""
        self._ends.put(-1)
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._digest.hexdigest()

    def _follow(self) -> None:
        try:
            with os.fdopen(os.open(self._path, READ), "rb", buffering=0) as file:
                buffer = memoryview(bytearray(PIECE_BYTES))
                at = 0
                while (end := self._ends.get()) >= 0:
                    while at < end:
                        got = file.readinto(buffer[: end - at])
                        self._digest.update(buffer[:got])
                        at += got
        except OSError as error:
            self._error = error


def make_directory(path: Path) -> None:
    """Make a directory and those above it, durably."""
    try:
        path.mkdir(DIRECTORY_MODE)
    except FileExistsError:
        # Another process may have made it only now. Where we may not look above it, that was none of us.
        with suppress(PermissionError):
            sync_directory(path.parent)
        return
    except FileNotFoundError:
        make_directory(path.parent)
        path.mkdir(DIRECTORY_MODE, exist_ok=True)
    sync_directory(path.parent)


def sync_directory(path: str | Path) -> None:
    """Make the entries of a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard_dead(path: Path, older_than_epoch_ms: int) -> int:
    """Remove the file of a put that nobody goes on with, and give its size; else 0."""
    # Who writes it holds the lock until it is in its place; then this name is gone.
    with suppress(BlockingIOError, FileNotFoundError), os.fdopen(os.open(path, READ), "rb", buffering=0) as file:
        found = os.fstat(file.fileno())
        if found.st_mtime_ns // 1_000_000 <= older_than_epoch_ms:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            return found.st_size
    return 0
