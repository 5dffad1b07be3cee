"""``worker``, ``workers`` and ``quarantine``, in processes of their own, on both engines."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fastness.persistence import SqliteSessionStoreFactory, WorkerRecord
from tests.cli.test_attachments import refused
from tests.cli.test_cli import FASTNESS, HEARING, Shell, lines_of, shell
from tests.cli.test_runtime import talk, url, waiting

__all__ = ["shell", "talk", "url"]  # fixtures of the command line

APP = """
import asyncio, logging, pathlib, time

async def handler(turn):
    said = turn.inputs[-1].input.items[0].text
    logging.getLogger("app").info("heard\\n%s", said)
    print("began", said, turn.attempts, flush=True)
    if said == "slow":
        while not pathlib.Path("go").exists():
            await asyncio.sleep(0.01)
    while said == "block" and not pathlib.Path("go").exists():
        print(time.monotonic(), flush=True)
        time.sleep(0.01)
    if said == "poison" and not pathlib.Path("cured").exists():
        raise ValueError("no good")
    return f"answer to {said}"
"""
BROKEN = "import json\n\njson.loads('{')\n"
PLAIN = """
import functools

def plain(turn): ...
async def two(turn, other): ...
async def stream(turn):
    yield 1

class Agent:
    async def __call__(self, turn): ...

number = 3
agent = Agent()
fits = functools.partial(two, other=1)
"""
LINE = re.compile(r'[0-9T:.-]+Z (INFO|WARNING) [a-z.]+ session=("[^"]*"|\S+) turn=(\S+) token=(\S+) (.*)')


@pytest.fixture
def app(talk: Shell) -> Shell:
    """A shell beside the application's modules."""
    for name, text in (("app", APP), ("broken", BROKEN), ("plain", PLAIN)):
        (talk.directory / f"{name}.py").write_text(text)
    return talk


class Child:
    """A worker in a process of its own. What it says is read as it comes: that is how its steps are awaited."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        assert child.stdout is not None
        assert child.stderr is not None
        self.process = child
        self.out = child.stdout
        self.err = child.stderr
        self.told: list[str] = []

    def until(self, part: str) -> str:
        """Read what it tells up to a line with this in it."""
        for line in self.err:
            self.told.append(line.rstrip("\n"))
            if part in line:
                return line
        raise AssertionError(f"{part!r} is not in {self.told}")

    def end(self, number: signal.Signals | None = None) -> int:
        """Send it a signal, if one is named, and give its status and the rest of what it tells."""
        if number is not None:
            self.process.send_signal(number)
        self.told += self.err.read().splitlines()
        self.out.read()
        self.process.wait()
        return self.process.returncode


@contextmanager
def working(*words: str) -> Iterator[Child]:
    """Run a worker with the application's handler, up to when it is no longer needed."""
    command = [*HEARING, *FASTNESS, "worker", "app:handler", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        child = Child(process)
        try:
            child.until("runs app:handler")
            yield child
        finally:
            if process.poll() is None:
                process.kill()


# --- its end ---


def test_sigterm_lets_what_runs_come_to_its_end(app: Shell) -> None:
    """The turn is finished and committed, nothing more is begun, and the status is 0."""
    app.done("send", "chat", "slow")
    with working("--drain", "600", "--concurrency", "1") as child:
        assert child.out.readline() == "began slow 1\n"
        child.process.send_signal(signal.SIGTERM)
        child.until("stopping; 1 ")
        app.done("send", "chat", "later")
        (app.directory / "go").touch()
        assert child.end() == 0
    assert child.told[-1].endswith(" ended; 1 turn settled, 0 failed")
    assert app.done("show", "chat").endswith("assistant:\n  answer to slow\n")
    assert [row["attempts"] for row in waiting(app)] == [0]
    assert app.done("workers") == "no workers\n\nno lane is held\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_turn_that_is_not_done_in_time_is_given_back(app: Shell, number: signal.Signals) -> None:
    """That is no failure: the attempt does not count, the lane is free at once, and the status is 0."""
    app.done("send", "chat", "slow")
    with working("--drain", "0") as child:
        assert child.out.readline() == "began slow 1\n"
        assert child.end(number) == 0
    assert child.told[-1].endswith(" ended; 0 turns settled, 0 failed")
    assert [row["attempts"] for row in waiting(app)] == [0]
    assert app.done("workers") == "no workers\n\nno lane is held\n"


def test_a_second_interrupt_gives_back_at_once(app: Shell) -> None:
    """With the status of whatever is interrupted; there as well, the attempt does not count."""
    app.done("send", "chat", "slow")
    with working("--drain", "600") as child:
        assert child.out.readline() == "began slow 1\n"
        child.process.send_signal(signal.SIGINT)
        child.until("stopping; 1 ")
        assert child.end(signal.SIGINT) == 130
    assert child.told[-1].endswith(" ended at once; what was running is given back")
    assert [row["attempts"] for row in waiting(app)] == [0]
    assert app.done("workers") == "no workers\n\nno lane is held\n"


def test_a_handler_that_blocks_the_process_can_be_interrupted_all_the_same(app: Shell) -> None:
    """By a third one; the turn leaves nothing, and the next worker answers."""
    app.done("send", "chat", "block")
    with working("--drain", "600") as child:
        assert child.out.readline() == "began block 1\n"
        for _ in range(2):
            child.process.send_signal(signal.SIGINT)
            # It has gone on since, so it has heard that one: two at once are one.
            heard_by = time.monotonic() + 0.1
            while float(child.out.readline()) < heard_by:
                pass
        assert child.end(signal.SIGINT) == 130
    assert app.done("history", "chat") == "no commits\n"
    (app.directory / "go").touch()
    with working() as child:
        app.done("watch", "chat", "--after", "0", "--limit", "1")
        assert child.end(signal.SIGTERM) == 0
    assert app.done("show", "chat").endswith("assistant:\n  answer to block\n")


# --- what it tells ---


def test_every_line_says_whose_turn_it_is_about(app: Shell) -> None:
    """Session, turn and fencing token, also in records of the handler's own code; a record is one line."""
    app.done("send", "a\x1b turn=x", "hello")
    app.done("send", "chat", "poison")
    with working("--name", "w1", "--max-attempts", "1") as child:
        child.until("a turn of session chat failed")
        app.done("watch", "a\x1b turn=x", "--after", "0", "--limit", "1")
        assert child.end(signal.SIGTERM) == 0
    assert all(map(LINE.fullmatch, child.told))
    found = {match.groups() for line in child.told if (match := LINE.fullmatch(line))}
    assert found == {
        ("INFO", "-", "-", "-", "worker w1 runs app:handler, 8 at a time"),
        ("INFO", '"a\\u001b turn=x"', "turn/1", "1", "heard hello"),
        ("INFO", "chat", "turn/1", "1", "heard poison"),
        ("WARNING", "chat", "turn/1", "1", "set aside what failed 1 times"),
        ("WARNING", "chat", "-", "-", "a turn of session chat failed with ValueError"),
        ("INFO", "-", "-", "-", "ended; 1 turn settled, 1 failed"),
    }


def test_only_debug_shows_what_a_handler_raised(app: Shell) -> None:
    """Its text may quote what a user said."""
    app.done("send", "chat", "poison")
    with working("--max-attempts", "1") as child:
        child.until("set aside")
        child.end(signal.SIGTERM)
    assert "no good" not in "\n".join(child.told)
    app.done("quarantine", "retry", "--all")
    with working("--max-attempts", "1", "--log-level", "debug") as child:
        child.until("set aside")
        child.end(signal.SIGTERM)
    at = child.told.index("ValueError: no good")
    assert child.told[at - 1].strip() == 'raise ValueError("no good")'


# --- what it is given ---


HOW = "async def handler(turn): …"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ((), "Missing argument 'MODULE:FUNCTION'"),
        (("app",), "handler 'app' names no function of a module; name it as module:function, such as app:handler"),
        (("app:",), "handler 'app:' names no function of a module"),
        ((".app:handler",), "handler '.app:handler' names no function of a module"),
        (("app.py:handler",), "handler 'app.py:handler' names a file and not a module"),
        (("nix:handler",), "module 'nix' is neither in {here} nor installed; run this where it is, or install it"),
        (("app.nix:handler",), "module 'app.nix' is neither in {here} nor installed"),
        (("broken:handler",), "module 'broken' cannot be imported: json.decoder.JSONDecodeError: Expecting"),
        (("broken:handler",), "({here}/broken.py, line 3)"),
        (
            ("wrong:handler",),
            "module 'wrong' cannot be imported: SyntaxError: invalid syntax ({here}/wrong.py, line 1)",
        ),
        (("lacks:handler",), "module 'lacks' cannot be imported: ModuleNotFoundError: No module named 'nix_da'"),
        (("ends:handler",), "module 'ends' cannot be imported: SystemExit: 3 ({here}/ends.py, line 1)"),
        (("app:nix",), "module 'app' has no 'nix'; its async functions are: handler"),
        (("empty:nix",), "module 'empty' has no 'nix'; it has no async function at all"),
        (("plain:number",), f"handler 'plain:number' is of the type int, and must be: {HOW}"),
        (("plain:plain",), f"handler 'plain:plain' is not async, and must be: {HOW}"),
        (("plain:stream",), f"handler 'plain:stream' is not async, and must be: {HOW}"),
        (("plain:Agent",), f"handler 'plain:Agent' is not async, and must be: {HOW}"),
        (("plain:two",), f"handler 'plain:two' must take one argument, the turn: {HOW}"),
        (("app:handler", "--concurrency", "0"), "Invalid value for '--concurrency'"),
        (("app:handler", "--max-attempts", "0"), "Invalid value for '--max-attempts'"),
        (("app:handler", "--turn-timeout", "0"), "Invalid value for '--turn-timeout'"),
        (("app:handler", "--drain", "-1"), "--drain -1 is no number of seconds"),
        (("app:handler", "--drain", "nan"), "--drain nan is no number of seconds"),
        (("app:handler", "--limit", "batch"), "--limit 'batch' is no limit such as batch=4"),
        (("app:handler", "--limit", "batch=0"), "--limit 'batch=0' is no limit such as batch=4"),
        (("app:handler", "--limit", "=4"), "--limit '=4' is no limit such as batch=4"),
        (("app:handler", "--limit", " batch=4"), "must be printable, without white space at its ends"),
        (("app:handler", "--name", "x" * 513), "--name has 513 bytes"),
        (("app:handler", "--database", "sqlite:///nix/nix.db"), "/nix does not exist; create it"),
        (("app:handler", "--log-level", "loud"), "'loud' is not one of 'debug', 'info', 'warning', 'error'"),
        (("app:handler", "--attachments", "x://y"), "attachments must be a directory, s3://"),
        (("app:handler", "--database", "memory:"), "memory: is private to the process that uses it"),
        (("app:handler", "--database", "mysql://x"), "database must be sqlite:///"),
    ],
)
def test_what_cannot_be_run_is_refused(
    shell: Shell, words: tuple[str, ...], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one line on stderr that says what to do, status 2 and no traceback, and before any database is made."""
    modules = {"app": APP, "broken": BROKEN, "plain": PLAIN, "wrong": "def x(:", "lacks": "import nix_da"}
    modules |= {"ends": "import sys; sys.exit(3)", "empty": ""}
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name, text in modules.items():
        (shell.directory / f"{name}.py").write_text(text)
        # So that it is taken out of those that were imported behind the test.
        monkeypatch.setitem(sys.modules, name, sys)
        monkeypatch.delitem(sys.modules, name)
    assert reason.replace("{here}", str(Path.cwd())) in refused(shell("worker", *words))
    assert not (shell.directory / "fastness.db").exists()


@pytest.mark.parametrize("handler", ["agent", "agent.__call__", "fits"])
def test_whatever_can_be_awaited_with_a_turn_is_a_handler(shell: Shell, handler: str) -> None:
    """A function, an object that is called, a method, a function with some of its arguments given."""
    (shell.directory / "app.py").write_text(PLAIN)
    words = [*FASTNESS, "worker", f"app:{handler}"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert f"runs app:{handler}" in process.stderr.readline()
        process.terminate()
        process.communicate()
    assert process.returncode == 0


def test_a_worker_that_never_reached_its_database_ends(shell: Shell) -> None:
    """It bears with one that is away for a while, but not with a wrong name."""
    (shell.directory / "app.py").write_text(APP)
    words = [*FASTNESS, "worker", "app:handler", "--database", "postgresql://me:s3cret@127.0.0.1:1/db"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "check host and port, and start the server" in done.stderr
    assert "s3cret" not in done.stderr


def test_limits_hold_for_sessions_with_a_label(app: Shell) -> None:
    """Two of them, one at a time; a session without it runs beside them."""
    for name in ("a", "b"):
        app.done("send", name, "slow")
        app.done("describe", name, "--label", "big")
    with working("--limit", "big=1") as child:
        assert child.out.readline() == "began slow 1\n"
        app.done("send", "c", "hello")
        assert child.out.readline() == "began hello 1\n"
        (app.directory / "go").touch()
        assert child.out.readline() == "began slow 1\n"
        assert child.end(signal.SIGTERM) == 0


# --- workers ---


def test_workers_shows_who_lives_and_what_is_held(app: Shell) -> None:
    """While it runs, after it was asked to end its turn, and after it was killed."""
    app.done("send", "chat", "slow")
    with working("--name", "w1", "--concurrency", "3") as child:
        assert child.out.readline() == "began slow 1\n"
        head, row, blank, lane_head, lane = app.done("workers").splitlines()
        assert head.split() == ["WORKER", "STATE", "SEEN", "RUNNING", "SETTLED", "FAILED", "HOST", "PID"]
        assert (row.split()[:2], row.split()[-1], blank) == (["w1", "running"], str(child.process.pid), "")
        assert " of 3 " in row
        assert lane_head.split() == ["LANE", "HELD", "BY", "TOKEN", "SINCE", "STATE", "INTERRUPT"]
        assert re.fullmatch(r"chat  w1 +1 +[0-9]+s ago  expires in [0-9]+s", lane)
        child.end(signal.SIGKILL)
    found = json.loads(app.done("workers", "--json"))
    assert [(one["worker_id"], one["concurrency"], one["is_silent"]) for one in found["workers"]] == [("w1", 3, False)]
    assert [(one["session_id"], one["fencing_token"], one["is_dead"]) for one in found["lanes"]] == [("chat", 1, True)]
    assert "lease_token" not in found["lanes"][0]
    assert app.done("workers").endswith(", its holder is dead\n")


def test_a_worker_that_was_not_seen_for_long_is_silent(app: Shell) -> None:
    """Whatever it said of itself last; how long ago is told by the database's clock."""
    app.done("send", "chat", "hello")
    asyncio.run(announced_long_ago("sqlite:///fastness.db"))
    row = app.done("workers", "--database", "sqlite:///fastness.db").splitlines()[1]
    assert re.fullmatch(r"old +silent +1h [0-9]m ago +0 of 1 +0 +0 +host +1", row)


async def announced_long_ago(url: str) -> None:
    """Have a worker announced as by a process of two hours ago."""
    async with SqliteSessionStoreFactory(
        url.removeprefix("sqlite:///"), clock=lambda: int(time.time() * 1000) - 3_660_000
    ) as factory:
        await factory.workers.announce_worker(WorkerRecord("old", "host", 1, 0))


# --- quarantine ---


def test_what_fails_too_often_waits_in_quarantine(app: Shell) -> None:
    """With its error, until somebody retries or discards it; the session goes on meanwhile."""
    first = app.done("send", "chat", "poison").strip()
    second = app.done("send", "other", "poison").strip()
    with working("--max-attempts", "1") as child:
        for _ in range(2):
            child.until("set aside what failed 1 times")
        listed = app.done("quarantine", "list").splitlines()
        assert listed[0].split() == ["SESSION", "KIND", "ROW", "ATTEMPTS", "SINCE", "ERROR"]
        assert sorted(line.split()[2] for line in listed[1:]) == sorted((first, second))
        (one,) = lines_of(app.done("quarantine", "list", "chat", "--json"))
        assert (one["kind"], one["row_id"], one["error"]) == ("input", first, "ValueError: no good")
        assert app.done("quarantine", "discard", "other", second) == f"discarded {second}\n"
        (app.directory / "cured").touch()
        assert app.done("quarantine", "retry", "chat", first) == "1 row will be tried again\n"
        app.done("watch", "chat", "--after", "0", "--limit", "1")
        child.end(signal.SIGTERM)
    assert app.done("quarantine", "list") == "nothing is in quarantine\n"
    assert app.done("quarantine", "list", "--json") == ""
    assert app.done("show", "chat").endswith("assistant:\n  answer to poison\n")


def test_all_of_a_session_or_of_all_is_retried(app: Shell) -> None:
    """The number says how many; what is not there is none of them."""
    for name in ("a", "b"):
        app.done("send", name, "poison")
    with working("--max-attempts", "1") as child:
        for _ in range(2):
            child.until("set aside what failed 1 times")
        child.end(signal.SIGTERM)
    assert app.done("quarantine", "retry", "a", "--all") == "1 row will be tried again\n"
    assert json.loads(app.done("quarantine", "retry", "--all", "--json")) == {"retried_count": 1}
    assert app.done("quarantine", "retry", "--all") == "0 rows will be tried again\n"
    assert [len(waiting(app, name)) for name in ("a", "b")] == [1, 1]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("list", "nix"), "session 'nix' does not exist"),
        (("retry",), "quarantine retry needs a session and a row, or --all"),
        (("retry", "chat"), "quarantine retry needs a session and a row, or --all"),
        (("retry", "chat", "row", "--all"), "quarantine retry needs a session and a row, or --all"),
        (("retry", "chat", "row"), "row 'row' is not in the quarantine of session 'chat'; 'fastness quarantine list'"),
        (("retry", "nix", "--all"), "session 'nix' does not exist"),
        (("discard", "chat"), "Missing argument 'ROW'"),
        (("discard", "chat", "row"), "row 'row' is not in the quarantine of session 'chat'"),
        (("discard", "nix", "row"), "session 'nix' does not exist"),
        (("nix",), "No such command 'nix'"),
    ],
)
def test_what_is_not_in_quarantine_is_neither_retried_nor_discarded(
    shell: Shell, words: tuple[str, ...], reason: str
) -> None:
    """One line says what to do."""
    shell.done("send", "chat", "hello")
    assert reason in refused(shell("quarantine", *words))
