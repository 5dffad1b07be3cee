"""Journals: one file for each process, one JSON line for each event, each line given to the system in a single write.

A journal survives the death of its process at any moment (not the loss of power: nothing is flushed to the disk). What
a kill can tear is the last line, which then lacks its end and counts as not written. Any other line that cannot be read
is a finding, and so is a line that is not the next of its process: a checker that overlooks half of the evidence would
find everything in order.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from fastness.errors import BackendError, InvalidInputError
from fastness.model.base import encode
from fastness.testing.events import AnyEvent, Event
from fastness.testing.report import Finding

SUFFIX = ".jsonl"
"""How the name of a journal ends: that is what ``read_journals`` looks for."""

E = TypeVar("E", bound=Event)

_decoder: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)


def wall_clock() -> int:
    """Give this machine's time in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


class Journal:
    """The journal of this process. Threads may share it; a forked child needs one of its own.

    The file is made here, and one that exists is refused, since it is the journal of another process.
    """

    def __init__(self, path: str | Path, *, clock: Callable[[], int] = wall_clock) -> None:
        self.path = Path(path)
        if self.path.suffix != SUFFIX:
            raise InvalidInputError("path", f"must end in {SUFFIX}, so that the journal is found again")
        self._clock = clock
        self._pid = os.getpid()
        self._writer = f"{self._pid}-{secrets.token_hex(6)}"
        self._sequence = 0
        self._lock = threading.Lock()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        try:
            self._fd = os.open(self.path, flags, 0o644)
        except FileExistsError:
            raise InvalidInputError("path", "names a journal that exists; each process writes its own") from None
        self._usable = True

    @classmethod
    def create_in(cls, directory: str | Path, *, clock: Callable[[], int] = wall_clock) -> Self:
        """Begin a journal in a directory under a name that no other process has."""
        return cls(Path(directory) / f"{os.getpid()}-{secrets.token_hex(6)}{SUFFIX}", clock=clock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, event: E) -> E:
        """Append an event, and give it as it was stamped. When this returns, the event outlives the process.

        Raises ``BackendError`` for a write that failed, and ``InvalidInputError`` after one, after ``close``, and in a
        forked child.
        """
        with self._lock:
            if not self._usable or os.getpid() != self._pid:
                raise InvalidInputError("journal", "is closed, has failed, or is from before a fork; begin another one")
            stamped = msgspec.structs.replace(
                event, writer=self._writer, pid=self._pid, sequence=self._sequence + 1, wall_ms=self._clock()
            )
            line = encode(stamped) + b"\n"
            self._append(line)
            self._sequence += 1
            return stamped

    def _append(self, line: bytes) -> None:
        """Write all of a line at once. Behind a part of one nothing more may be written, or it would be torn inside."""
        try:
            written = os.write(self._fd, line)
        except OSError as error:
            self._usable = False
            raise BackendError(f"the journal could not be written: {error.strerror}") from error
        if written != len(line):
            self._usable = False
            raise BackendError(f"the journal took {written} of {len(line)} bytes", "make room and begin another one")

    def close(self) -> None:
        """Let go of the file; twice is fine."""
        with self._lock:
            if self._fd >= 0 and os.getpid() == self._pid:
                os.close(self._fd)
                self._fd = -1
            self._usable = False


def read_journals(directory: str | Path) -> tuple[list[AnyEvent], list[Finding]]:
    """Read every journal of a directory, in the order of their names; give the events, and what is wrong with files."""
    events: list[AnyEvent] = []
    findings: list[Finding] = []
    for path in sorted(Path(directory).glob(f"*{SUFFIX}")):
        lines = path.read_bytes().split(b"\n")
        if _decode(lines[-1]) is None:  # cut short by a death, or nothing; it may also have taken the line's end alone
            lines.pop()
        found, faults = _read_lines(path.name, lines)
        events += found
        findings += faults
    return events, findings


def _read_lines(name: str, lines: Iterable[bytes]) -> tuple[list[AnyEvent], list[Finding]]:
    """Read the lines of one journal. Line n is event n of its process, so that no event can go missing unseen."""
    events: list[AnyEvent] = []
    findings: list[Finding] = []
    gap = False
    for number, line in enumerate(lines, 1):
        event = _decode(line)
        if event is None:
            findings.append(Finding("torn_line", None, f"{name}: line {number} is no event"))
            continue
        if event.sequence != number and not gap:
            findings.append(Finding("journal_gap", None, f"{name}: line {number} is event {event.sequence}"))
            gap = True  # all the lines behind it are off, too
        events.append(event)
    return events, findings


def _decode(line: bytes) -> AnyEvent | None:
    try:
        return _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeError, InvalidInputError):
        return None
