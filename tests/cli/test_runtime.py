"""``send``, ``history``, ``watch``, ``fork``, ``branch``, ``interrupt``, ``describe``: talking to sessions."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator
from datetime import timedelta

import pytest

import fastness
from tests.cli.test_attachments import refused, with_input
from tests.cli.test_cli import FASTNESS, HEARING, NASTY, Shell, lines_of, shell
from tests.servers.postgres import shared_server

__all__ = ["shell"]  # a fixture of the command line


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A database that is empty or not there yet, on either engine."""
    if request.param == "sqlite":
        yield "sqlite:///fastness.db"
        return
    with shared_server().database() as found:
        yield found


@pytest.fixture
def talk(shell: Shell, url: str, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A shell whose default database is on either engine; nothing was sent yet."""
    monkeypatch.setenv("FASTNESS_DATABASE", url)
    return shell


@pytest.fixture
def answered(talk: Shell, url: str) -> Shell:
    """A shell whose session chat has two turns."""
    for said in ("one", "two"):
        talk.done("send", "chat", said)
        asyncio.run(answer(url, "chat", f"heard {said}"))
    return talk


async def answer(url: str, session_id: str, text: str) -> None:
    """Run a turn that takes what waits."""
    async with fastness.connect(url) as db, db.turn(session_id) as turn:
        turn.append(text, usage=fastness.TokenUsage(1200, 3), model="m")


def waiting(shell: Shell, session_id: str = "chat") -> list[dict[str, object]]:
    """What waits for a session."""
    found: list[dict[str, object]] = json.loads(shell.done("queue", session_id, "--json"))["pending_inputs"]
    return found


def texts(row: dict[str, object]) -> list[str]:
    """The texts of an input."""
    said = row["input"]
    assert isinstance(said, dict)
    return [item.get("text", item["type"]) for item in said["items"]]


# --- send ---


def test_what_is_sent_is_there_once_under_its_key(talk: Shell) -> None:
    """The session and the database are made; the same again is the same input."""
    first = talk.done("send", "chat", "Hello", "--key", "k")
    assert talk.done("send", "chat", "Hello", "--key", "k") == first
    assert [(row["input_id"], texts(row)) for row in waiting(talk)] == [(first.strip(), ["Hello"])]
    assert "is bound to input" in refused(talk("send", "chat", "Bye", "--key", "k"))


def test_json_of_what_was_sent_is_the_row_as_it_is_kept(talk: Shell) -> None:
    """With where it goes, and from when."""
    sent = json.loads(talk.done("send", "chat", "Hello", "--to", "running", "--delay", "3600", "--json"))
    assert (sent["ingress"]["type"], sent["source_key"]) == ("active_turn", None)
    assert sent["available_at_ms"] - sent["enqueued_at_epoch_ms"] > 3_500_000
    assert waiting(talk) == [sent]


def test_a_minus_sends_standard_input(talk: Shell) -> None:
    """Without the line feed at its end, and with all others."""
    assert with_input(b"a\n\nb\n", "send", "chat", "-").returncode == 0
    assert [texts(row) for row in waiting(talk)] == [["a\n\nb"]]


def test_files_go_along_in_their_order(talk: Shell) -> None:
    """After the text, or without any; the session holds their content."""
    for name in ("a.txt", "b.txt"):
        (talk.directory / name).write_text(name)
    place = ("--attachments", "kept")
    talk.done("send", "chat", "Look", "--attach", "a.txt", "--attach", "b.txt", *place)
    talk.done("send", "chat", "", "--attach", "b.txt", *place)
    assert [texts(row) for row in waiting(talk)] == [["Look", "attachment", "attachment"], ["attachment"]]
    held = lines_of(talk.done("attachments", "list", "chat", "--json"))
    assert sorted(one["reference"]["name"] for one in held) == ["a.txt", "b.txt"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("chat",), "Missing argument 'TEXT'"),
        (("chat", ""), "the text is empty; say something"),
        (("", "Hello"), "session_id must not be empty"),
        (("chat", "a", "--to", "all"), "'all' is not one of 'next', 'running'"),
        (("chat", "a", "--delay", "-1"), "delay must be a number of seconds or a timedelta, not negative"),
        (("chat", "a", "--delay", "nan"), "delay must be a number of seconds or a timedelta, not negative"),
        (("chat", "a", "--attach", "nix"), "file 'nix' cannot be read: No such file"),
        (("chat", "a", "--attach", "talks.json", "--attachments", "x://y"), "attachments must be a directory, s3://"),
        (("chat", "a", "--database", "memory:"), "memory: is private to the process that uses it"),
        (("chat", "a", "--database", "mysql://x"), "database must be sqlite:///"),
        (("chat", "\udcff"), "contains a lone surrogate"),
    ],
)
def test_what_cannot_be_sent_is_refused(shell: Shell, words: tuple[str, ...], reason: str) -> None:
    """With one line that says what to do."""
    assert reason in refused(shell("send", *words))


def test_standard_input_that_is_no_text_is_refused(shell: Shell) -> None:
    """Before anything is made."""
    done = with_input(b"\xff", "send", "chat", "-")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"fastness: standard input is no UTF-8 text; send it as a file with --attach\n"
    assert sorted(path.name for path in shell.directory.iterdir()) == ["talks.json"]


# --- history and watch ---


def test_history_lists_the_commits_a_page_at_a_time(answered: Shell) -> None:
    """Revision, kind, turn and usage; a page says how to go on, in either direction."""
    head, first, more = answered.done("history", "chat", "--limit", "1").splitlines()
    assert head.split() == ["REVISION", "TIME", "KIND", "TURN", "TOKENS", "IN", "OUT"]
    assert [first.split()[0], *first.split()[3:]] == ["1", "turn", "turn/1", "1,200", "3"]
    assert more == "more: --after 1"
    assert answered.done("history", "chat", "--after", "1").splitlines()[1].split()[0] == "2"
    newest = answered.done("history", "chat", "--newest", "--limit", "1").splitlines()
    assert (newest[1].split()[0], newest[2]) == ("2", "more: --newest --after 2")
    page = json.loads(answered.done("history", "chat", "--json", "--limit", "1"))
    assert (page["cursor"], page["commits"][0]["usage"][0]["usage"]["input_tokens"]) == (1, 1200)


def test_a_session_without_commits_has_no_history(talk: Shell) -> None:
    """It is there all the same."""
    talk.done("send", "chat", "Hello")
    assert talk.done("history", "chat") == "no commits\n"


def test_watch_prints_commits_as_they_are_made_until_it_is_interrupted(answered: Shell, url: str) -> None:
    """Those behind a revision, then those of other processes; Ctrl-C is quiet, with status 130."""
    command = [*HEARING, *FASTNESS, "watch", "chat", "--after", "1", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert json.loads(child.stdout.readline())["revision"] == 2
        asyncio.run(answer(url, "chat", "more"))
        assert json.loads(child.stdout.readline())["revision"] == 3
        child.send_signal(signal.SIGINT)
        out, err = child.communicate()
    assert (child.returncode, out, err) == (130, "", "")


def test_watch_ends_after_as_many_commits_as_are_wanted(answered: Shell) -> None:
    """So that a script can wait for one."""
    lines = answered.done("watch", "chat", "--after", "0", "--limit", "2").splitlines()
    assert [line.partition("Z ")[2] for line in lines] == [
        "revision 1, turn turn/1: 1,200 tokens in, 3 out",
        "revision 2, turn turn/2: 1,200 tokens in, 3 out",
    ]


def test_a_watcher_whose_reader_leaves_is_quiet(answered: Shell, url: str) -> None:
    """It finds out with the next commit."""
    command = [*FASTNESS, "watch", "chat", "--after", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert "revision 2" in child.stdout.readline()
        child.stdout.close()
        asyncio.run(answer(url, "chat", "more"))
        assert (child.wait(), child.stderr.read()) == (0, "")


# --- fork and branch ---


def test_a_fork_is_a_session_of_its_own(answered: Shell) -> None:
    """Of the head, of a revision, or of a node; its history begins with it."""
    assert answered.done("fork", "chat", "all") == "forked chat to all, with 4 messages\n"
    assert answered.done("fork", "chat", "early", "--at-revision", "1") == "forked chat to early, with 2 messages\n"
    first = json.loads(answered.done("show", "chat", "--json"))["nodes"][0]["node_id"]
    meta = json.loads(answered.done("fork", "chat", "node", "--at-node", first, "--name", "Bob", "--json"))
    assert (meta["session_id"], meta["session_name"]) == ("node", "Bob")
    assert meta["relation"] == {"type": "child", "parent_session_id": "chat", "caused_by": first}
    assert answered.done("history", "node").splitlines()[1].split()[3] == "fork"
    assert "there is a session 'all' already" in refused(answered("fork", "chat", "all"))


def test_branches_are_listed_and_switched(answered: Shell, url: str) -> None:
    """Each by its leaf, with its last message; what is said next is said on the branch that was switched to."""
    nodes = [node["node_id"] for node in json.loads(answered.done("show", "chat", "--json"))["nodes"]]
    assert answered.done("branch", "switch", "chat", nodes[1]) == f"session chat goes on from {nodes[1]}\n"
    # It stands in the middle of its only branch, until it goes another way.
    assert [line.split()[:2] for line in answered.done("branch", "list", "chat").splitlines()] == [
        ["LEAF", "MESSAGES"],
        [nodes[3], "4"],
        ["*", nodes[1]],
    ]
    asyncio.run(answer(url, "chat", "instead"))
    found = lines_of(answered.done("branch", "list", "chat", "--json"))
    assert [(one["is_current"], one["message_count"], one["last"]) for one in found] == [
        (False, 4, "assistant: heard two"),
        (True, 3, "assistant: instead"),
    ]
    answered.done("check")


def test_a_session_without_commits_has_no_branches(talk: Shell) -> None:
    """It is there all the same."""
    talk.done("send", "chat", "Hello")
    assert talk.done("branch", "list", "chat") == "no branches\n"
    assert talk.done("branch", "list", "chat", "--json") == ""


# --- interrupt and describe ---


def test_interrupt_asks_the_turn_that_runs(answered: Shell, url: str) -> None:
    """It says whose it is, without the token of its lease; where none runs, it says so."""
    assert answered.done("interrupt", "chat") == "no turn runs\n"
    assert json.loads(answered.done("interrupt", "chat", "--json")) == {"session_id": "chat", "asked": None}

    words = (*FASTNESS, "interrupt", "chat", "--reason", "enough")

    async def ask_itself(db: fastness.Database) -> str:
        """Run a turn that has itself interrupted, and give what it was told."""
        told = ""
        with contextlib.suppress(fastness.TurnInterruptedError):
            async with db.turn("chat"):
                asking = await asyncio.create_subprocess_exec(*words, stdout=subprocess.PIPE)
                try:
                    await asyncio.Event().wait()
                finally:
                    told = (await asking.communicate())[0].decode()
        return told

    async def interrupted() -> str:
        """Look often enough."""
        timings = fastness.LeaseTimings(timedelta(seconds=30), timedelta(milliseconds=200))
        async with fastness.connect(url, owner_id="me", timings=timings) as db:
            return await ask_itself(db)

    assert asyncio.run(interrupted()) == "asked me to end its turn under fencing token 3\n"
    events = [node["payload"] for node in json.loads(answered.done("show", "chat", "--json"))["nodes"]][-1:]
    assert ("turn_interrupted" in str(events), "enough" in str(events)) == (True, True)


def test_describe_keeps_what_is_given_and_prints_what_is_known(answered: Shell) -> None:
    """Labels come in the place of those there were; the rest stays."""
    answered.done("describe", "chat", "--name", "Chat", "--label", "b", "--label", "a", "--priority", "7")
    assert answered.done("describe", "chat", "--custom", '{"team": [1]}').splitlines() == [
        "session chat",
        "name: Chat",
        "labels: a, b",
        "priority: 7",
        'custom: {"team": [1]}',
    ]
    assert "labels: none" in answered.done("describe", "chat", "--no-labels")
    meta = json.loads(answered.done("describe", "chat", "--label", "c", "--json"))
    assert (meta["labels"], meta["priority"], meta["custom"]) == (["c"], 7, {"team": [1]})


# --- what is wrong ---


def test_help_names_every_command(shell: Shell) -> None:
    """Those of a group in the help of the group."""
    text = shell.done()
    names = ("send", "worker", "workers", "quarantine", "history", "watch", "branch", "fork", "interrupt", "describe")
    assert [name for name in names if f"\n  {name} " not in text] == []
    assert [name for name in ("list", "retry", "discard") if f"\n  {name} " not in shell.done("quarantine")] == []
    assert [name for name in ("list", "switch") if f"\n  {name} " not in shell.done("branch")] == []


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("history", "nix"), "session 'nix' does not exist; 'fastness sessions' lists what is there"),
        (("watch", "nix"), "session 'nix' does not exist"),
        (("fork", "nix", "new"), "session 'nix' does not exist"),
        (("branch", "list", "nix"), "session 'nix' does not exist"),
        (("branch", "switch", "nix", "a"), "session 'nix' does not exist"),
        (("interrupt", "nix"), "session 'nix' does not exist"),
        (("describe", "nix", "--name", "a"), "session 'nix' does not exist"),
        (("history", "chat", "--limit", "0"), "Invalid value for '--limit'"),
        (("history", "chat", "--after", "-1"), "Invalid value for '--after'"),
        (("watch", "chat", "--limit", "0"), "Invalid value for '--limit'"),
        (("fork", "chat"), "Missing argument 'NEW'"),
        (("fork", "chat", "new", "--at-node", "nix"), "the leaf 'nix' is not there"),
        (("fork", "chat", "new", "--at-revision", "9"), "there is no such revision"),
        (("fork", "chat", "new", "--at-node", "a", "--at-revision", "1"), "--at-node or --at-revision, not both"),
        (("branch", "nix"), "No such command 'nix'"),
        (("branch", "switch", "chat"), "Missing argument 'NODE'"),
        (("branch", "switch", "chat", "nix"), "there is no node 'nix' to go on from"),
        (("describe", "chat", "--label", "a", "--no-labels"), "--label or --no-labels, not both"),
        (("describe", "chat", "--label", " a"), "must be printable, without white space at its ends"),
        (("describe", "chat", "--priority", "10"), "Invalid value for '--priority'"),
        (("describe", "chat", "--custom", "NaN"), "--custom is no JSON; text goes in double quotes"),
        (("describe", "chat", "--custom", '"\udcff"'), "--custom is no JSON"),
    ],
)
def test_whatever_is_wrong_is_one_line_that_says_what_to_do(shell: Shell, words: tuple[str, ...], reason: str) -> None:
    """With status 2, nothing on stdout and no traceback."""
    shell.done("send", "chat", "Hello")
    asyncio.run(answer("sqlite:///fastness.db", "chat", "heard"))
    assert reason in refused(shell(*words))


@pytest.mark.parametrize(
    "words",
    [
        ("history", "chat"),
        ("watch", "chat"),
        ("fork", "chat", "new"),
        ("branch", "list", "chat"),
        ("branch", "switch", "chat", "n"),
        ("interrupt", "chat"),
        ("describe", "chat"),
        ("quarantine", "list"),
        ("quarantine", "retry", "--all"),
        ("quarantine", "discard", "chat", "r"),
        ("workers",),
    ],
)
def test_only_what_is_sent_or_worked_on_makes_a_database(shell: Shell, words: tuple[str, ...]) -> None:
    """All others leave no file where there was none."""
    assert "there is no database at 'fastness.db'" in refused(shell(*words))
    assert sorted(path.name for path in shell.directory.iterdir()) == ["talks.json"]


def test_what_was_said_cannot_command_the_terminal(shell: Shell) -> None:
    """Nor can names that somebody gave."""
    nasty = NASTY.replace("\x00", "")
    session = "a\x1bb\u202e"
    shell.done("send", session, nasty)
    asyncio.run(answer("sqlite:///fastness.db", session, nasty))
    shown = [
        shell.done("branch", "list", session),
        shell.done("describe", session, "--name", nasty),
        shell.done("fork", session, f"{session}2"),
        shell.done("history", session),
        shell("branch", "switch", session, nasty).err,
    ]
    for text in shown:
        assert not set(text) & set("\x1b\x07\x9b\u202e\r\x00")
    assert "␛]0;owned␇" in shown[0]
