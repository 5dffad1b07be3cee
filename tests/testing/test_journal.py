"""Laws of journals: what was written is read, a death tears the last line at most, and no other hole goes unseen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from fastness.errors import BackendError, InvalidInputError
from fastness.testing import (
    AnyEvent,
    Committed,
    Finding,
    Interrupted,
    Journal,
    Quarantined,
    Sent,
    TurnFailed,
    TurnStarted,
    check,
    read_journals,
)
from fastness.testing.final import FinalState

EVENTS: list[AnyEvent] = [
    Sent("s", "key\nwith a line of its own", text_hash="h"),
    Sent("s", "key", "i", "h", acknowledged=True, ordered=False),
    TurnStarted("s", "turn/1", 1, ("i",), "w", 0),
    Committed("s", "turn/1", 1, 1, ("i",), replayed=True),
    TurnFailed("s", "turn/2", 2, "KeyError: 'x'"),
    Quarantined("s", "i", "KeyError: 'x'"),
    Interrupted("s", "turn/3", 3, "asked to"),
]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    """Every kind of event comes back as it was stamped: writer, pid, its number, and the wall clock."""
    with Journal(tmp_path / "a.jsonl", clock=lambda: 7) as journal:
        written = [journal.write(event) for event in EVENTS]
    assert read_journals(tmp_path) == (written, [])
    assert [(event.pid, event.sequence, event.wall_ms) for event in written] == [
        (os.getpid(), number, 7) for number in (1, 2, 3, 4, 5, 6, 7)
    ]
    stamps = {"writer": "", "pid": 0, "sequence": 0, "wall_ms": 0}
    assert [msgspec.structs.replace(event, **stamps) for event in written] == EVENTS


def test_two_journals_of_one_process_have_two_writers(tmp_path: Path) -> None:
    """Whoever begins a journal is a writer of its own: a pid would come back, and so would its numbers."""
    for _ in range(2):
        with Journal.create_in(tmp_path) as journal:
            journal.write(EVENTS[0])
    events, findings = read_journals(tmp_path)
    assert findings == []
    assert len({event.writer for event in events}) == 2
    assert [event.sequence for event in events] == [1, 1]


def test_a_journal_that_exists_is_left_alone(tmp_path: Path) -> None:
    """It is the evidence of another process. A name under which it would not be found is refused as well."""
    Journal(tmp_path / "a.jsonl").close()
    with pytest.raises(InvalidInputError, match="names a journal that exists"):
        Journal(tmp_path / "a.jsonl")
    with pytest.raises(InvalidInputError, match=r"must end in \.jsonl"):
        Journal(tmp_path / "a.log")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_threads_share_a_journal(tmp_path: Path) -> None:
    """Lines are whole, and numbered in the order in which they stand."""
    with Journal(tmp_path / "a.jsonl") as journal:
        threads = [threading.Thread(target=lambda: [journal.write(event) for event in EVENTS * 50]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    events, findings = read_journals(tmp_path)
    assert (len(events), findings) == (1400, [])


def lines_of(path: Path) -> list[bytes]:
    """A journal of three lines, each with its end."""
    with Journal(path) as journal:
        for event in EVENTS[:3]:
            journal.write(event)
    return path.read_bytes().splitlines(keepends=True)


def test_a_torn_last_line_counts_as_not_written(tmp_path: Path) -> None:
    """Wherever the death cut it: all that was whole is read, and nothing is found."""
    path = tmp_path / "a.jsonl"
    *whole, last = lines_of(path)
    for cut in range(len(last) - 1):
        path.write_bytes(b"".join(whole) + last[:cut])
        events, findings = read_journals(tmp_path)
        assert ([event.sequence for event in events], findings) == ([1, 2], [])


def test_a_last_line_that_lacks_only_its_end_was_written(tmp_path: Path) -> None:
    """All of the event is there."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(lines_of(path))[:-1])
    events, findings = read_journals(tmp_path)
    assert ([event.sequence for event in events], findings) == ([1, 2, 3], [])


def test_a_torn_line_within_is_found(tmp_path: Path) -> None:
    """One finding for each, by file and line; and the last line, if it has its end, is no exception."""
    path = tmp_path / "a.jsonl"
    first, second, third = lines_of(path)
    for damaged in (b"\n", second[:20] + b"\n", b'{"event":"unheard"}\n', b"\xff\n", b'{"event":"sent"}\n'):
        path.write_bytes(first + damaged + third)
        events, findings = read_journals(tmp_path)
        assert [event.sequence for event in events] == [1, 3]
        assert findings == [Finding("torn_line", None, "a.jsonl: line 2 is no event")]
    path.write_bytes(first + second + third[:20] + b"\n")
    assert read_journals(tmp_path)[1] == [Finding("torn_line", None, "a.jsonl: line 3 is no event")]


def test_a_missing_line_is_found(tmp_path: Path) -> None:
    """Once for a journal, however much is missing."""
    path = tmp_path / "a.jsonl"
    first, second, third = lines_of(path)
    path.write_bytes(first + third)
    assert read_journals(tmp_path)[1] == [Finding("journal_gap", None, "a.jsonl: line 2 is event 3")]
    path.write_bytes(second + third)
    assert read_journals(tmp_path)[1] == [Finding("journal_gap", None, "a.jsonl: line 1 is event 2")]


def test_what_is_wrong_with_journals_is_wrong_with_the_history(tmp_path: Path) -> None:
    """The findings of files are part of the verdict."""
    found = [Finding("torn_line", None, "a.jsonl: line 2 is no event")]
    report = check([], FinalState(), journal_findings=found)
    assert not report.ok
    assert "  -: a.jsonl: line 2 is no event\n" in report.explain()


def test_a_journal_that_was_closed_refuses_to_write(tmp_path: Path) -> None:
    """And is closed twice without complaint."""
    journal = Journal(tmp_path / "a.jsonl")
    journal.close()
    journal.close()
    with pytest.raises(InvalidInputError, match="is closed, has failed, or is from before a fork"):
        journal.write(EVENTS[0])


def test_behind_a_write_that_fell_short_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The torn line stays the last one, as if the process had died there."""
    write = os.write
    with Journal(tmp_path / "a.jsonl") as journal:
        journal.write(EVENTS[0])
        with monkeypatch.context() as full_disk:
            full_disk.setattr(os, "write", lambda fd, line: write(fd, line[:10]))
            with pytest.raises(BackendError, match="took 10 of"):
                journal.write(EVENTS[1])
        with pytest.raises(InvalidInputError, match="has failed"):
            journal.write(EVENTS[2])
    events, findings = read_journals(tmp_path)
    assert ([event.sequence for event in events], findings) == ([1], [])


def test_a_write_that_the_system_refuses_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the journal is at its end."""

    def refuse(fd: int, line: bytes) -> int:
        raise OSError(28, "No space left on device")

    with Journal(tmp_path / "a.jsonl") as journal:
        monkeypatch.setattr(os, "write", refuse)
        with pytest.raises(BackendError, match="No space left on device"):
            journal.write(EVENTS[0])
        with pytest.raises(InvalidInputError, match="has failed"):
            journal.write(EVENTS[0])


def test_a_forked_child_cannot_write_in_its_parents_journal(tmp_path: Path) -> None:
    """Its numbers would be the parent's again."""
    script = """
import os, sys
from fastness.errors import InvalidInputError
from fastness.testing import Journal, Sent
journal = Journal(sys.argv[1] + "/a.jsonl")
journal.write(Sent("s", "1"))
pid = os.fork()
if pid == 0:
    try:
        journal.write(Sent("s", "2"))
    except InvalidInputError:
        os._exit(7)
    os._exit(0)
_, status = os.waitpid(pid, 0)
journal.write(Sent("s", "3"))
sys.exit(os.waitstatus_to_exitcode(status))
"""
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode == 7
    events, findings = read_journals(tmp_path)
    assert ([event.sequence for event in events], findings) == ([1, 2], [])


def test_what_was_written_outlives_a_kill(tmp_path: Path) -> None:
    """A process that is killed while it writes has in its journal all that it knew to be written, without a hole."""
    script = """
import os, sys
from fastness.testing import Journal, Sent
journal = Journal.create_in(sys.argv[1])
while True:
    event = journal.write(Sent("s", "k" * 2000))
    os.write(1, b"%d\\n" % event.sequence)
"""
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        for _ in range(500):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        known = [500, *(int(line) for line in child.stdout if line.endswith(b"\n"))][-1]
    events, findings = read_journals(tmp_path)
    assert findings == []
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert len(events) in (known, known + 1)
