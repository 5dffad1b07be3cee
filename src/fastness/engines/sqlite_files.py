"""Which files of this process are open as databases, and the one descriptor of each that may be synced by hand.

POSIX drops *all* locks of a process on a file when it closes *any* descriptor of it, and SQLite's locks are of that
kind. So this module alone opens and closes database files outside SQLite: one descriptor for each file, shared by all
engines of the process, opened before their first connection and closed after their last.

It also remembers what was open when the process was forked. SQLite's bookkeeping of locks is copied into the child
while the locks are not; a connection that the child opens on such a file believes that it is locked, another process
removes the log beneath it, and commits are lost without an error. Such a file is refused in the child.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import NamedTuple

from fastness.errors import HandleUnusableError


class FileKey(NamedTuple):
    """What a file is, whatever paths lead to it."""

    device: int
    inode: int


class SharedFile:
    """A database file that engines of this process have open."""

    __slots__ = ("checkpointing", "descriptors", "key", "users")

    def __init__(self, key: FileKey, descriptor: int) -> None:
        self.key = key
        self.descriptors = [descriptor]
        self.users = 0
        self.checkpointing = threading.Lock()  # one checkpoint of this file at a time, within the process

    def sync(self) -> None:
        """Make what was written to the database file durable. Raises ``OSError``."""
        getattr(os, "fdatasync", os.fsync)(self.descriptors[0])


_lock = threading.Lock()
_open: dict[FileKey, SharedFile] = {}
_inherited: set[FileKey] = set()


def acquire(path: Path) -> SharedFile:
    """Take part in an existing database file. Call before the first connection. Raises ``OSError``."""
    with _lock:
        key = _key(path.stat())
        if key in _inherited:
            raise HandleUnusableError(
                f"is for {path}, which was open when this process was forked",
                "close it before the fork, or start the process with the spawn method",
            )
        file = _open.get(key) or _enter(path)
        file.users += 1
        return file


def _enter(path: Path) -> SharedFile:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    key = _key(os.fstat(descriptor))
    file = _open.get(key)
    if file is None:
        file = _open[key] = SharedFile(key, descriptor)
    else:
        file.descriptors.append(descriptor)  # the path was pointed elsewhere meanwhile; closing would drop its locks
    return file


def release(file: SharedFile) -> None:
    """Leave a file. Call after the last connection was closed."""
    with _lock:
        file.users -= 1
        if file.users == 0:
            del _open[file.key]
            for descriptor in file.descriptors:
                os.close(descriptor)


def _key(status: os.stat_result) -> FileKey:
    return FileKey(status.st_dev, status.st_ino)


def _after_fork_in_child() -> None:
    global _lock  # noqa: PLW0603 - another thread may have held it
    _lock = threading.Lock()
    _inherited.update(_open)
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
