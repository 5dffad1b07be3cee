"""The command line: what it prints, what it leaves alone, and how it fails."""

from __future__ import annotations

import asyncio
import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import pytest

from fastness.cli.main import main
from fastness.persistence import (
    NextTurn,
    PendingTurnInputDraft,
    QueuedWorkBatchDraft,
    SessionStoreCreateRequest,
    Task,
    TurnInput,
    mint_owner,
    open_database,
)

HELLO = {"role": "user", "content": "Hello"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"q": 1e2}'}}],
}
ANSWER = {"role": "tool", "tool_call_id": "c1", "content": "nothing\nfound"}
SORRY = {"role": "assistant", "content": "Sorry."}
GREAT = {"role": "assistant", "content": "Great!"}
RECORDS: list[dict[str, Any]] = [
    {"task": "a", "messages": [HELLO, CALL, ANSWER, SORRY]},
    {"task": "a", "messages": [HELLO, CALL, ANSWER, GREAT]},
    {"task": "b", "messages": [HELLO]},
]
FASTNESS = (sys.executable, "-c", "from fastness.cli import run; run()")


class Result(NamedTuple):
    """What a command came to."""

    status: int
    out: str
    err: str


class Shell:
    """Runs commands in a directory of their own."""

    def __init__(self, directory: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        self._capture = capture

    def __call__(self, *arguments: str) -> Result:
        status = main(arguments)
        captured = self._capture.readouterr()
        return Result(status, captured.out, captured.err)

    def done(self, *arguments: str) -> str:
        """Run a command that must succeed without a word on stderr."""
        result = self(*arguments)
        assert (result.status, result.err) == (0, "")
        return result.out


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    """A shell in an empty directory that holds ``talks.json``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTNESS_DATABASE", raising=False)
    monkeypatch.delenv("FASTNESS_ATTACHMENTS", raising=False)
    (tmp_path / "talks.json").write_text(json.dumps(RECORDS, indent=1))
    return Shell(tmp_path, capsys)


@pytest.fixture
def filled(shell: Shell) -> Shell:
    """A shell whose database holds the talks, those of one task as branches."""
    shell.done("import", "talks.json", "--branch-by", "task")
    return shell


# A job that a shell has put in the background, and all that it starts, would never hear of an interrupt.
HEARING = ("env", "--default-signal=INT")


def lines_of(text: str) -> list[Any]:
    """Decode JSON Lines."""
    return [json.loads(line) for line in text.splitlines()]


def test_import_says_what_it_did_and_a_second_one_adds_nothing(shell: Shell) -> None:
    """The counts are what that run did; stderr stays empty where it is no terminal."""
    assert shell.done("import", "talks.json") == "replayed 3 turns of 3 conversations, 9 messages added\n"
    assert shell.done("import", "talks.json") == "nothing to add: all 3 turns of 3 conversations are there\n"
    assert json.loads(shell.done("import", "talks.json", "--json")) == {
        "conversations": 3,
        "turns_replayed": 0,
        "turns_present": 3,
        "messages_added": 0,
        "lanes_taken_over": 0,
    }


def test_branches_share_what_they_begin_with(shell: Shell) -> None:
    """With ``--branch-by``, equal beginnings are added once."""
    assert shell.done("import", "talks.json", "--branch-by", "task") == (
        "replayed 3 turns of 3 conversations, 6 messages added\n"
    )


def test_sessions_are_listed_a_page_at_a_time(filled: Shell) -> None:
    """A page names the cursor of the next; filters narrow the list."""
    first = filled.done("sessions", "--limit", "1").splitlines()
    assert first[0].split() == ["SESSION", "REVISION", "NODES", "CREATED", "UPDATED"]
    assert first[1].split()[:3] == ["talks-a", "2", "7"]
    assert first[2].startswith("more: --cursor ")
    second = filled.done("sessions", "--limit", "1", "--cursor", first[2].split()[-1]).splitlines()
    assert [line.split()[0] for line in second] == ["SESSION", "talks-b"]
    assert filled.done("sessions", "--prefix", "nix") == "no sessions\n"
    assert filled.done("sessions", "--until", "2001-01-01") == "no sessions\n"
    page = json.loads(filled.done("sessions", "--since", "2001-01-01T00:00:00Z", "--json"))
    assert [one["meta"]["session_id"] for one in page["sessions"]] == ["talks-a", "talks-b"]


def test_show_prints_the_branch_that_the_session_stands_on(filled: Shell) -> None:
    """Every message has its role and its parts, calls and answers included."""
    assert filled.done("show", "talks-a").splitlines() == [
        "session talks-a: 4 messages, 1 turn, revision 2",
        "",
        "user:",
        "  Hello",
        "",
        "assistant:",
        '  → find({"q": 1e2})',
        "",
        "tool:",
        "  nothing",
        "  found",
        "",
        "assistant:",
        "  Great!",
    ]


def test_show_prints_branches_as_a_tree_and_any_of_them_by_its_leaf(filled: Shell) -> None:
    """Only forks indent; each branch names its leaf, which ``--leaf`` takes."""
    tree = filled.done("show", "talks-a", "--tree").splitlines()
    leaf = tree[5].rpartition(" ")[2].rstrip("]")
    assert [line.partition("  [")[0] for line in tree] == [
        "session talks-a: 5 messages, 1 turn, revision 2",
        "user: Hello",
        'assistant: → find({"q": 1e2})',
        "tool: nothing found",
        "├─ assistant: Sorry.",
        "│  (fastness.import)",
        "└─ assistant: Great!",
        "   (fastness.import)",
    ]
    assert "[active leaf " in tree[7]
    assert filled.done("show", "talks-a", "--leaf", leaf).endswith("assistant:\n  Sorry.\n")
    shown = json.loads(filled.done("show", "talks-a", "--leaf", leaf, "--json"))
    assert (shown["leaf_node_id"], len(shown["nodes"])) == (leaf, 5)


def test_long_texts_are_cut_unless_they_are_wanted_whole(shell: Shell) -> None:
    """A cut text says how much is missing."""
    (shell.directory / "long.json").write_text(json.dumps([{"role": "user", "content": "x" * 2000}]))
    shell.done("import", "long.json")
    assert "x… (800 more characters, see --full)" in shell.done("show", "long-0")
    assert "x" * 2000 in shell.done("show", "long-0", "--full")


def test_export_gives_the_records_back(filled: Shell) -> None:
    """Each branch is a record on a line of its own, equal to what was imported, and can be imported again."""
    assert lines_of(filled.done("export", "talks-b", "talks-a")) == [RECORDS[2], RECORDS[0], RECORDS[1]]
    everything = filled.done("export", "--all")
    assert lines_of(everything) == RECORDS
    (filled.directory / "again.jsonl").write_text(everything)
    assert filled.done("import", "again.jsonl").startswith("replayed 3 turns")


def test_queue_shows_what_waits_and_who_holds_the_lane(filled: Shell) -> None:
    """After an import nothing waits and the lane is free."""
    assert filled.done("queue", "talks-a").splitlines() == [
        "lane: free",
        "0 inputs waiting",
        "0 batches of work queued",
    ]
    assert json.loads(filled.done("queue", "talks-a", "--json")) == {
        "pending_inputs": [],
        "queued_work": [],
        "lane": None,
    }


def test_check_counts_what_it_verified_and_its_status_tells_faults(filled: Shell) -> None:
    """A sound database is status 0; a fault is named, and status 1."""
    assert filled.done("check") == (
        "checked 2 sessions, 9 nodes, 3 commits, 1 blob, 0 waiting inputs, 0 queued batches: no fault found\n"
    )
    assert json.loads(filled.done("check", "--json"))["findings"] == []
    connection = apsw.Connection("fastness.db")
    connection.execute("update head set node_count = 99 where sid = 1")
    connection.close()
    status, out, err = filled("check")
    assert (status, err) == (1, "")
    assert out.splitlines()[0].startswith("session talks-a: ")
    assert out.splitlines()[-1].endswith(": 1 fault found")
    status, out, err = filled("check", "--json")
    assert (status, err, len(json.loads(out)["findings"])) == (1, "", 1)


def test_maintain_is_a_dry_run_until_it_is_told_to_apply(filled: Shell) -> None:
    """The dry run changes nothing and says what the real one then does."""
    not_swept = "attachments: not looked at; --attachments names their store\n"
    would = "would remove 0 tombstoned nodes, 2 settled inputs, 0 settled batches, 0 blobs (0 bytes); --apply does it\n"
    assert filled.done("maintain") == would + not_swept
    assert filled.done("maintain") == would + not_swept
    assert filled.done("maintain", "--receipts").endswith(f", 3 receipts; --apply does it\n{not_swept}")
    assert filled.done("maintain", "--apply") == (
        f"removed 0 tombstoned nodes, 2 settled inputs, 0 settled batches, 0 receipts, 0 blobs (0 bytes)\n{not_swept}"
    )
    report = json.loads(filled.done("maintain", "--apply", "--receipts", "--json"))
    assert report["vacuum"]["removed_receipt_count"] == 3
    assert report["attachments"] is None
    filled.done("check")


def test_delete_asks_unless_it_is_told_not_to(filled: Shell) -> None:
    """Where nobody can be asked, nothing is deleted."""
    status, out, err = filled("delete", "talks-a")
    assert (status, out) == (2, "")
    assert err == "fastness: delete cannot ask here; say --yes to delete without being asked\n"
    assert filled.done("delete", "talks-a", "--yes") == "deleted session talks-a\n"
    assert len(filled.done("sessions").splitlines()) == 2
    filled.done("check")


@pytest.mark.parametrize("given", ["before", "after", "environment"])
def test_the_database_is_named_before_or_behind_the_command_or_by_the_environment(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    """All three say the same; nothing else is touched."""
    url = "sqlite:///other.db"
    if given == "environment":
        monkeypatch.setenv("FASTNESS_DATABASE", url)
    before = ("--database", url) if given == "before" else ()
    after = ("--database", url) if given == "after" else ()
    shell.done(*before, "import", "talks.json", *after)
    assert len(shell.done(*before, "sessions", *after).splitlines()) == 4
    assert not (shell.directory / "fastness.db").exists()


READING = [
    ("sessions",),
    ("show", "s"),
    ("export", "s"),
    ("export", "--all"),
    ("queue", "s"),
    ("check",),
    ("maintain",),
    ("maintain", "--apply"),
    ("delete", "s", "--yes"),
]


@pytest.mark.parametrize("command", READING)
def test_no_command_but_import_makes_a_database(shell: Shell, command: tuple[str, ...]) -> None:
    """Looking for a database that is not there is an error, and leaves no file."""
    status, out, err = shell(*command)
    assert (status, out) == (2, "")
    assert err.startswith("fastness: there is no database at 'fastness.db'; ")
    assert [path.name for path in shell.directory.iterdir()] == ["talks.json"]


def test_a_refused_import_makes_no_database(shell: Shell) -> None:
    """A wrong file is found out before the database is opened."""
    (shell.directory / "wrong.json").write_text("[1]")
    assert shell("import", "wrong.json").status == 2
    assert not (shell.directory / "fastness.db").exists()


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("nix",), "No such command"),
        (("show",), "Missing argument"),
        (("sessions", "--limit", "0"), "Invalid value for '--limit'"),
        (("sessions", "--cursor", "x"), "cursor is none of ours"),
        (("sessions", "--since", "soon"), "--since 'soon' is no time"),
        (("sessions", "--database", "mysql://x"), "database must be sqlite:///"),
        (("sessions", "--database", "sqlite:///talks.json"), "talks.json"),
        (("show", "nix"), "session 'nix' does not exist"),
        (("show", "x" * 513), "session_id has 513 bytes"),
        (("show", "talks-a", "--leaf", "nix"), "'nix' is not there"),
        (("show", "talks-a", "--leaf", "x", "--tree"), "--leaf or --tree, not both"),
        (("export",), "export needs the ids of sessions, or --all"),
        (("export", "talks-a", "--all"), "export needs the ids of sessions, or --all"),
        (("export", "talks-a", "--leaf", "nix"), "'nix' is not there"),
        (("queue", "nix"), "session 'nix' does not exist"),
        (("delete", "nix", "--yes"), "session 'nix' does not exist"),
        (("sessions", "--database", ""), "database must be sqlite:///"),
        (("delete", "talks-a", "--yes", "--database", ""), "database must be sqlite:///"),
        (("--database", "", "delete", "talks-a", "--yes"), "database must be sqlite:///"),
        (("import", "talks.json", "--session-id", ""), "session id template must not be empty"),
        (("import", "talks.json", "--session-id", "{stem}-{nix}"), "may have {stem}, {index} and {value} in braces"),
        (("import", "talks.json", "--limit", "0"), "Invalid value for '--limit'"),
        (("import", "/dev/null"), "file '/dev/null' is read twice and is no regular file; save it to a file first"),
        (("import", "nix.json"), "file 'nix.json' cannot be read"),
        (("import", "wrong.json"), "record 2 (line 2, byte 15) is no conversation"),
        (("import", "talks.json", "--branch-by", "nix"), "record 1 (line 2, byte 3) has no single value"),
    ],
)
def test_whatever_goes_wrong_is_one_line_on_stderr_and_status_2(
    filled: Shell, command: tuple[str, ...], reason: str
) -> None:
    """Usage errors and errors of the store alike: no traceback, nothing on stdout."""
    (filled.directory / "wrong.json").write_text('{"traj": []}\n\n{"x": 1}'.replace("\n\n", "\n  "))
    status, out, err = filled(*command)
    assert (status, out) == (2, "")
    assert err.startswith("fastness: ")
    assert err.count("\n") == 1
    assert reason in err
    assert len(filled.done("sessions").splitlines()) == 3


def test_an_empty_name_in_the_environment_is_refused(filled: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is set to nothing does not lead to the default database."""
    monkeypatch.setenv("FASTNESS_DATABASE", "")
    status, out, err = filled("delete", "talks-a", "--yes")
    assert (status, out) == (2, "")
    assert err.startswith("fastness: database must be ")


def test_a_file_without_conversations_is_called_that(shell: Shell) -> None:
    """An empty list is no error, and not a file whose turns are all there."""
    (shell.directory / "none.json").write_text("[]")
    assert shell.done("import", "none.json") == "the file holds no conversations\n"


NASTY = "\x1b]0;owned\x07\x1b[2J \x9b31m \u202egnp.exe \r\x00"


def test_transcripts_cannot_command_the_terminal(shell: Shell) -> None:
    """Control characters and marks of direction are shown as signs, in transcripts, lists and errors."""
    message = {"role": "user", "content": NASTY}
    tool = {"id": NASTY, "type": "function", "function": {"name": NASTY, "arguments": NASTY}}
    record = {"name": "a\x1bb\u202e", "messages": [message, {"role": "assistant", "tool_calls": [tool]}]}
    (shell.directory / "nasty.json").write_text(json.dumps(record))
    shell.done("import", "nasty.json", "--branch-by", "name")
    session = "nasty-a\x1bb\u202e"
    shown = [
        shell.done("show", session),
        shell.done("show", session, "--tree"),
        shell.done("sessions"),
        shell.done("queue", session),
        shell("show", NASTY.replace("\x00", "")).err,
        shell.done("delete", session, "--yes"),
    ]
    for text in shown:
        assert not set(text) & set("\x1b\x07\x9b\u202e\r\x00")
    assert "␛]0;owned␇␛[2J <U+009B>31m <U+202E>gnp.exe ␍␀" in shown[0]


def test_help_names_every_command(shell: Shell) -> None:
    """Without a command, and with ``--help``, the commands are listed."""
    text = shell.done()
    for name in ("import", "sessions", "show", "export", "queue", "check", "maintain", "delete"):
        assert f"\n  {name} " in text
    assert "Exit status: 0 all is well, 1 check found faults, 2 wrong input" in " ".join(text.split())
    assert shell.done("--version").startswith("fastness 0.")


def test_a_reader_that_leaves_early_is_no_error(filled: Shell) -> None:
    """A broken pipe ends the command without a word and with status 0."""
    many = [{"messages": [{"role": "user", "content": "x" * 100_000}]}] * 8
    (filled.directory / "many.json").write_text(json.dumps(many))
    filled.done("import", "many.json")
    errors = filled.directory / "errors"
    with errors.open("w") as stderr:
        child = subprocess.Popen([*FASTNESS, "export", "--all"], stdout=subprocess.PIPE, stderr=stderr)
        assert child.stdout is not None
        child.stdout.read(1)
        child.stdout.close()
        assert child.wait() == 0
    assert errors.read_text() == ""


LATE = """
import time
import fastness.cli.transfer as transfer
def survey(*_):
    print("at work", flush=True)
    time.sleep(600)
transfer.survey = survey
"""
EARLY = """
import sys
class Loading:
    def find_spec(self, name, *_):
        if name == "typer":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Loading())
"""
RUN = "from fastness.cli import run; run()"


def test_an_interrupt_is_quiet(shell: Shell) -> None:
    """Ctrl-C in the middle of the work ends the command with status 130 and without a word."""
    command = [sys.executable, "-c", LATE + RUN, "import", "talks.json"]
    with subprocess.Popen([*HEARING, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"at work\n"
        child.send_signal(signal.SIGINT)
        out, err = child.communicate()
    assert (child.returncode, out, err) == (130, b"", b"")


def test_an_interrupt_while_the_libraries_load_is_quiet(shell: Shell) -> None:
    """Ctrl-C right after the start is the same."""
    command = [sys.executable, "-c", EARLY + RUN, "sessions"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (130, "", "")


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("sessions >&-", 2),
        ("sessions >/dev/full", 2),
        ("sessions >&- 2>&-", 2),
        ("nix 2>/dev/full", 2),
        ("nix 2>&-", 2),
        ("check 2>&-", 0),
        ("import talks.json 2>&-", 0),
        ("delete talks-a <&-", 2),
    ],
)
def test_closed_and_full_streams_are_no_traceback(filled: Shell, command: str, status: int) -> None:
    """What cannot be printed is a failure, what cannot be complained about does not change the status."""
    words = f"{shlex.join(FASTNESS)} {command}"
    found = subprocess.run(["sh", "-c", words], capture_output=True, text=True, check=False)
    assert found.returncode == status, found.stderr
    assert "Traceback" not in found.stderr
    assert found.stderr.count("\n") == ("2>" not in command)


def test_a_missing_extra_is_one_line_that_says_what_to_install() -> None:
    """Without the libraries of the command line, it says so and nothing else."""
    code = "import sys; sys.modules['typer'] = None; from fastness.cli import run; run()"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr == ("fastness: the command line needs an extra; install it with: pip install 'fastness[cli]'\n")


def test_queue_shows_what_a_dead_process_left_behind(filled: Shell) -> None:
    """Waiting input, queued work and the holder of the lane, each on its line."""
    asyncio.run(abandon_a_turn("sqlite:///fastness.db"))
    lines = filled.done("queue", "talks-b").splitlines()
    assert lines[0].startswith("lane: held by gone, fencing token 2, until ")
    assert lines[1] == "1 input waiting"
    assert lines[3].split()[2:] == ["deferred_next_turn", "Are", "you", "there?"]
    assert lines[4] == "1 batch of work queued"
    assert lines[6].split()[2:] == ["pending", "turn_work", "1"]
    shown = json.loads(filled.done("queue", "talks-b", "--json"))
    assert shown["lane"]["owner"]["owner_id"] == "gone"
    assert shown["pending_inputs"][0]["source_key"] is None


def test_no_command_prints_the_token_of_a_lease(filled: Shell) -> None:
    """Who reads what is printed could otherwise act for the holder of the lane."""
    asyncio.run(abandon_a_turn("sqlite:///fastness.db"))
    connection = apsw.Connection("fastness.db")
    (token,) = (str(row[0]) for row in connection.execute("select lease_token from lane where lease_token <> ''"))
    connection.close()
    for command in ("queue", "show"):
        for form in ((), ("--json",)):
            assert token not in filled.done(command, "talks-b", *form)
    assert token not in filled.done("sessions", "--json") + filled.done("export", "--all")


async def abandon_a_turn(url: str) -> None:
    """Enqueue input and work, enter the lane, and never come back."""
    async with open_database(url) as factory:
        store = await factory.create_store(SessionStoreCreateRequest("talks-b"))
        text = TurnInput.of_text("Are you\nthere?")
        await store.enqueue_pending_turn_input(PendingTurnInputDraft("talks-b", NextTurn(), text))
        await store.enqueue_queued_work(
            QueuedWorkBatchDraft("talks-b", "earliest_safe_boundary", "join", (Task("tidy"),))
        )
        await store.try_claim_session_execution_lease("talks-b", mint_owner("gone"), 60_000)
