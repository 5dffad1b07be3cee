"""Noticing that somebody, in whatever process, has written to a database file.

It promises to tell of every commit soon after it can be read, and now and then for nothing. The kernel tells of writes
to the log where it can (inotify); elsewhere the log's file is looked at again and again. It reads no database.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

_GLANCE_S = 0.02
_COARSE_NS = 20_000_000
_ECHOES_S = (0.003, 0.004, 0.006, 0.008, 0.012, 0.018, 0.03, 0.06, 0.15)
"""A write to the log comes before its sync, and only then is the commit there to be read: so it is told again, at these
times after another. What takes longer is found by whoever looks by itself now and then."""

_IN_MODIFY = 0x2
_EVENT = struct.Struct("iIII")


class LogWatch:
    """Calls ``changed`` on the event loop while it is started. Starting and stopping twice is fine."""

    def __init__(self, path: Path, changed: Callable[[], None]) -> None:
        self._log = Path(f"{path}-wal")
        self._changed = changed
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._events: int | None = None
        self._echo = len(_ECHOES_S)
        self._state = (0, 0)
        self._in_doubt = False

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Watch from now on. What was written before is told at once, if anything may have been."""
        if self._loop is not None:
            return
        self._loop = loop
        self._changed()
        self._events = _inotify(self._log.parent)
        if self._events is None:
            self._glance()
        else:
            loop.add_reader(self._events, self._read_events, self._events)

    def stop(self) -> None:
        """Watch no longer."""
        if self._loop is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        if self._events is not None:
            if not self._loop.is_closed():
                self._loop.remove_reader(self._events)
            os.close(self._events)
        self._loop = self._timer = self._events = None
        self._echo = len(_ECHOES_S)

    # --- told by the kernel ---

    def _read_events(self, events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            if _names(os.read(events, 65_536), os.fsencode(self._log.name)):
                self._changed()
                self._echo = 0
                if self._timer is not None:
                    self._timer.cancel()
                self._tell_again()

    def _tell_again(self) -> None:
        """Wait for the next echo of the last write; a write that came meanwhile begins them anew."""
        assert self._loop is not None
        self._timer = self._loop.call_later(_ECHOES_S[self._echo], self._told_again)
        self._echo += 1

    def _told_again(self) -> None:
        self._timer = None
        self._changed()
        if self._echo < len(_ECHOES_S):
            self._tell_again()

    # --- looking by ourselves ---

    def _glance(self) -> None:
        assert self._loop is not None
        if self._has_grown():
            self._changed()
        self._timer = self._loop.call_later(_GLANCE_S, self._glance)

    def _has_grown(self) -> bool:
        try:
            log = self._log.stat()
        except OSError:
            return False
        state = (log.st_mtime_ns, log.st_size)
        # Times of files are coarse: one that is this young may stand for a write that was still to come.
        is_young = time.time_ns() - log.st_mtime_ns < _COARSE_NS
        has_grown = state != self._state or (self._in_doubt and not is_young)
        self._state, self._in_doubt = state, is_young
        return has_grown


def _inotify(directory: Path) -> int | None:
    """Have the kernel tell of writes to files of a directory: the descriptor, None where it cannot or will not."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        events = int(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    except AttributeError:
        return None
    if events < 0:
        return None
    if libc.inotify_add_watch(events, os.fsencode(directory), _IN_MODIFY) < 0:
        os.close(events)
        return None
    return events


def _names(events: bytes, wanted: bytes) -> bool:
    """Whether one of the events is about the file, or events were lost."""
    at = 0
    while at < len(events):
        watch, _, _, length = _EVENT.unpack_from(events, at)
        at += _EVENT.size
        if watch < 0 or events[at : at + length].rstrip(b"\0") == wanted:
            return True
        at += length
    return False
