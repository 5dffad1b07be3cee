"""``attachments list``, ``put``, ``get`` and ``verify``: what they print, what they leave behind, how they refuse."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import apsw
import pytest

from fastness.persistence import (
    AttachmentIntent,
    AttachmentRef,
    SessionStoreCreateRequest,
    open_database,
)
from tests.cli.test_cli import FASTNESS, HEARING, NASTY, Result, Shell, filled, lines_of, shell

__all__ = ["filled", "shell"]  # fixtures of the command line

HELLO = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
"""What ``hello`` and a line feed hash to."""
NOTHING = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
UNKNOWN = "0" * 64
STORE = "fastness.db.attachments"


@pytest.fixture
def held(filled: Shell) -> Shell:
    """A shell where talks-a holds the content of ``hello.txt``."""
    (filled.directory / "hello.txt").write_text("hello\n")
    assert filled.done("attachments", "put", "talks-a", "hello.txt") == f"{HELLO}\n"
    return filled


def content_file(directory: Path, attachment_id: str, place: str = STORE) -> Path:
    """Where a directory of attachments has some content."""
    return directory / place / attachment_id[:2] / attachment_id


def files(directory: Path) -> list[str]:
    """The names of the files in a directory, hidden ones as well."""
    return sorted(path.name for path in directory.iterdir() if path.is_file())


def with_input(content: bytes, *words: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a process of its own that is given some input."""
    return subprocess.run([*FASTNESS, *words], input=content, capture_output=True, check=False)


def refused(result: Result) -> str:
    """The one line on stderr of a command that prints nothing else and ends with status 2."""
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith("fastness: ")
    assert result.err.count("\n") == 1
    return result.err


async def on_record(url: str, session_id: str, reference: AttachmentRef) -> None:
    """Record an intent whose bytes never come."""
    async with open_database(url) as factory:
        store = await factory.create_store(SessionStoreCreateRequest(session_id))
        await store.record_intent(AttachmentIntent(session_id, reference))


def intend(attachment_id: str, session_id: str = "talks-a", name: str = "a", media_type: str = "text/plain") -> None:
    """Record an intent whose bytes never come, in the database of the shell."""
    asyncio.run(on_record("sqlite:///fastness.db", session_id, AttachmentRef(attachment_id, name, media_type, 6)))


# --- list ---


def test_list_shows_what_a_session_holds(held: Shell) -> None:
    """Beginning of the id, state, size, time, type and name; JSON Lines have all of it."""
    heads, row = held.done("attachments", "list", "talks-a").splitlines()
    assert heads.replace("MEDIA TYPE", "MEDIA-TYPE").split() == [
        *("ATTACHMENT", "STATE", "BYTES", "RECORDED", "MEDIA-TYPE", "NAME")
    ]
    assert row.split()[:3] == ["5891b5b522d5", "committed", "6"]
    assert row.split()[5:] == ["text/plain", "hello.txt"]
    (shown,) = lines_of(held.done("attachments", "list", "talks-a", "--json"))
    assert shown["recorded_at_epoch_ms"] > 1_700_000_000_000
    assert {name: shown[name] for name in ("session_id", "attachment_id", "state", "reference")} == {
        "session_id": "talks-a",
        "attachment_id": HELLO,
        "state": "committed",
        "reference": {
            "attachment_id": HELLO,
            "name": "hello.txt",
            "media_type": "text/plain",
            "size": 6,
            "width": None,
            "height": None,
        },
    }


def test_list_shows_all_sessions_where_none_is_named(held: Shell) -> None:
    """By content, with the session in front; a session that holds nothing has no attachments."""
    assert held.done("attachments", "list", "talks-b") == "no attachments\n"
    held.done("attachments", "put", "talks-b", "hello.txt", "--name", "b.md", "--media-type", "text/markdown")
    intend(UNKNOWN)
    rows = [line.split() for line in held.done("attachments", "list").splitlines()[1:]]
    assert [(row[0], row[1], row[2], *row[-2:]) for row in rows] == [
        ("talks-a", "000000000000", "intent", "text/plain", "a"),
        ("talks-a", "5891b5b522d5", "committed", "text/plain", "hello.txt"),
        ("talks-b", "5891b5b522d5", "committed", "text/markdown", "b.md"),
    ]
    assert [one["session_id"] for one in lines_of(held.done("attachments", "list", "--json"))] == [
        *("talks-a", "talks-a", "talks-b")
    ]


def test_list_goes_on_behind_the_first_page(filled: Shell) -> None:
    """What is on the second page is shown as well."""

    async def many() -> None:
        async with open_database("sqlite:///fastness.db") as factory:
            store = await factory.create_store(SessionStoreCreateRequest("talks-b"))
            for number in range(1001):
                reference = AttachmentRef(f"{number:064x}", str(number), "text/plain", 1)
                await store.record_intent(AttachmentIntent("talks-b", reference))

    asyncio.run(many())
    for command in (("list",), ("list", "talks-b")):
        shown = lines_of(filled.done("attachments", *command, "--json"))
        assert [one["reference"]["name"] for one in shown] == [str(number) for number in range(1001)]


def test_names_cannot_command_the_terminal(held: Shell) -> None:
    """Control characters and marks of direction in names, and in types of whatever origin, are shown as signs."""
    intend(UNKNOWN, "talks-b", NASTY)
    connection = apsw.Connection("fastness.db")
    change = "update attachment set reference = replace(reference, 'text/plain', ?) where attachment_id = ?"
    connection.execute(change, (r"a\u001b[2Jb", UNKNOWN))
    connection.close()
    shown = [
        held.done("attachments", "list", "talks-b"),
        held("attachments", "get", "talks-b", NASTY).err,
        held("attachments", "put", "talks-b", NASTY.replace("\x00", "")).err,
        held("attachments", "get", "talks-b", HELLO, "--attachments", "x://\x1b\u202e").err,
    ]
    for text in shown:
        assert not set(text) & set("\x1b\x07\x9b\u202e\r\x00")
    assert "␛]0;owned␇␛[2J <U+009B>31m <U+202E>gnp.exe ␍␀" in shown[0]
    assert "a␛[2Jb" in shown[0]


# --- put ---


def test_put_keeps_the_content_and_commits_the_reference(held: Shell) -> None:
    """The bytes are in the directory beside the database; with ``--json`` the whole reference is printed."""
    assert content_file(held.directory, HELLO).read_text() == "hello\n"
    found = json.loads(held.done("attachments", "put", "talks-b", "hello.txt", "--name", "other", "--json"))
    assert (found["attachment_id"], found["name"], found["size"]) == (HELLO, "other", 6)
    assert [one["state"] for one in lines_of(held.done("attachments", "list", "--json"))] == ["committed"] * 2


def test_put_takes_standard_input(filled: Shell) -> None:
    """``-`` reads to its end, also what is longer than a block and what is empty."""
    content = bytes(range(256)) * 20_000
    done = with_input(content, "attachments", "put", "talks-a", "-")
    assert (done.returncode, done.stderr) == (0, b"")
    attachment_id = done.stdout.decode().strip()
    assert attachment_id == hashlib.sha256(content).hexdigest()
    assert content_file(filled.directory, attachment_id).read_bytes() == content
    assert with_input(b"", "attachments", "put", "talks-a", "-", "--name", "none").stdout == f"{NOTHING}\n".encode()
    shown = lines_of(filled.done("attachments", "list", "--json"))
    assert sorted(one["reference"]["name"] for one in shown) == ["none", "stdin"]


def test_put_says_that_standard_input_is_closed(filled: Shell) -> None:
    """One line and status 2, and nothing is kept."""
    words = f"{shlex.join(FASTNESS)} attachments put talks-a - <&-"
    done = subprocess.run(["sh", "-c", words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "fastness: standard input cannot be read: it is closed\n"
    assert filled.done("attachments", "list") == "no attachments\n"


ANNOUNCED = """
import select
glance = select.select
def announcing(*waited):
    print("at work", flush=True)
    select.select = glance
    return glance(*waited)
select.select = announcing
from fastness.cli import run
run()
"""


def test_an_interrupt_while_put_waits_for_input_is_quiet(filled: Shell) -> None:
    """Ctrl-C ends the command although nobody writes to it, and nothing is kept."""
    command = [sys.executable, "-c", ANNOUNCED, "attachments", "put", "talks-a", "-"]
    pipe = subprocess.PIPE
    with subprocess.Popen([*HEARING, *command], stdin=pipe, stdout=pipe, stderr=pipe) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline() == b"at work\n"
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == 130  # its input is still open
        assert (child.stdout.read(), child.stderr.read()) == (b"", b"")
    assert filled.done("attachments", "list") == "no attachments\n"


def test_put_has_the_media_type_told_from_the_content(filled: Shell) -> None:
    """An image is one whatever it is called, and has its size in pixels."""
    (filled.directory / "a.txt").write_bytes(b"GIF89a\x03\x00\x02\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff;")
    found = json.loads(filled.done("attachments", "put", "talks-a", "a.txt", "--json"))
    assert (found["media_type"], found["width"], found["height"]) == ("image/gif", 3, 2)


# --- get ---


def test_get_prints_the_content_as_it_is(filled: Shell) -> None:
    """Bytes that are no text come out unchanged and with nothing added, by the whole id or by its beginning."""
    content = bytes(range(256)) * 40_000
    (filled.directory / "raw").write_bytes(content)
    attachment_id = filled.done("attachments", "put", "talks-a", "raw").strip()
    for given in (attachment_id, attachment_id[:6]):
        done = with_input(b"", "attachments", "get", "talks-a", given)
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout == content


def test_get_writes_a_file_and_replaces_none_unasked(held: Shell) -> None:
    """A file that is there stays, unless ``--force`` is said; nothing else is left in the directory."""
    get = ("attachments", "get", "talks-a", HELLO, "--output", "out.txt")
    before = files(held.directory)
    assert held.done(*get) == "wrote 6 bytes to out.txt\n"
    out = held.directory / "out.txt"
    assert out.read_text() == "hello\n"
    out.write_text("mine")
    assert refused(held(*get)) == ("fastness: file 'out.txt' is there; name another, or say --force to replace it\n")
    assert out.read_text() == "mine"
    assert held.done(*get, "--force") == "wrote 6 bytes to out.txt\n"
    assert out.read_text() == "hello\n"
    assert files(held.directory) == sorted([*before, "out.txt"])


def test_get_replaces_nothing_but_files(held: Shell) -> None:
    """Directories, links and devices stay what they are, also with ``--force``."""
    (held.directory / "folder").mkdir()
    (held.directory / "link").symlink_to("hello.txt")
    for place in ("folder", "link", "/dev/null", ".", ".."):
        told = refused(held("attachments", "get", "talks-a", HELLO, "--output", place, "--force"))
        assert "is there, and is no regular file; name another" in told
    assert (held.directory / "link").is_symlink()


def test_get_that_fails_leaves_no_file(held: Shell) -> None:
    """What is damaged, missing or of another session, or a directory that is not there: no file, and no part of one."""
    held.done("attachments", "put", "talks-b", "talks.json")
    before = files(held.directory)
    out = ("--output", "out.txt")
    assert "is none that the session holds" in refused(held("attachments", "get", "talks-b", HELLO, *out))
    told = refused(held("attachments", "get", "talks-a", HELLO, "--output", "nix/out.txt"))
    assert told == "fastness: file 'nix/out.txt' cannot be written: No such file or directory\n"
    content_file(held.directory, HELLO).write_text("jello\n")
    told = refused(held("attachments", "get", "talks-a", HELLO, *out))
    assert f"the bytes of attachment '{HELLO}' are damaged: 6 bytes hash to " in told
    content_file(held.directory, HELLO).unlink()
    told = refused(held("attachments", "get", "talks-a", HELLO, *out))
    assert f"the store has no bytes of attachment '{HELLO}'" in told
    assert files(held.directory) == before


def test_get_to_standard_output_tells_damage_by_its_status(held: Shell) -> None:
    """What went out cannot be taken back: the last word is status 2."""
    content_file(held.directory, HELLO).write_text("jello\n")
    done = with_input(b"", "attachments", "get", "talks-a", HELLO)
    assert done.returncode == 2
    assert b"are damaged: 6 bytes hash to " in done.stderr


def test_get_prints_to_no_terminal_unless_it_is_told_to(held: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content could command it; ``--output -`` says that this is wanted."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    told = refused(held("attachments", "get", "talks-a", HELLO))
    assert "prints no content to a terminal; name a file with --output" in told
    assert held.done("attachments", "get", "talks-a", HELLO, "--output", "-") == "hello\n"


def test_a_beginning_must_name_one_of_the_sessions_own(held: Shell) -> None:
    """Several, none, or one that only another session holds are refused; so is what is too short to mean anything."""
    twin = f"{HELLO[:8]}{'0' * 56}"
    intend(twin)
    assert "is how several begin" in refused(held("attachments", "get", "talks-a", HELLO[:8]))
    assert held.done("attachments", "get", "talks-a", HELLO[:9]) == "hello\n"
    assert "is none that the session holds" in refused(held("attachments", "get", "talks-a", "5891b6"))
    assert "is none that the session holds" in refused(held("attachments", "get", "talks-b", HELLO[:9]))
    for given in ("5891b", HELLO.upper(), HELLO + "0", "", "../../hello.txt", f"../{STORE}/58/{HELLO}", "hello.txt"):
        told = refused(held("attachments", "get", "talks-a", given))
        assert "must be 64 hexadecimal digits in lower case, or the first 6 or more of them" in told


# --- verify ---


def test_verify_reads_every_content_once(held: Shell) -> None:
    """What two sessions hold is counted once; an intent whose bytes never came is no fault."""
    held.done("attachments", "put", "talks-b", "hello.txt")
    assert held.done("attachments", "verify") == "1 attachment (6 bytes) ok, 0 missing, 0 damaged\n"
    intend(UNKNOWN)
    assert held.done("attachments", "verify") == (
        "1 attachment (6 bytes) ok, 0 missing, 0 damaged; 1 not written yet\n"
    )
    assert held.done("attachments", "verify", "talks-b") == "1 attachment (6 bytes) ok, 0 missing, 0 damaged\n"
    assert json.loads(held.done("attachments", "verify", "--json")) == {
        "ok_count": 1,
        "ok_byte_count": 6,
        "missing_count": 0,
        "damaged_count": 0,
        "unwritten_count": 1,
        "faults": [],
    }


def test_verify_names_what_is_missing_and_what_is_damaged(held: Shell) -> None:
    """Each fault names the sessions that it concerns, and the exit status is 1."""
    (held.directory / "none").write_bytes(b"")
    for session_id in ("talks-a", "talks-b"):
        held.done("attachments", "put", session_id, "none")
    content_file(held.directory, NOTHING).unlink()
    content_file(held.directory, HELLO).write_text("hell")
    status, out, err = held("attachments", "verify")
    assert (status, err) == (1, "")
    damage = hashlib.sha256(b"hell").hexdigest()
    assert out.splitlines() == [
        f"session talks-a: damaged: the bytes of attachment '{HELLO}' are damaged: 4 bytes hash to {damage}",
        (
            f"session talks-a and 1 other: missing: the store has no bytes of attachment '{NOTHING}';"
            " they were never put, or a sweep took them: put them again"
        ),
        "0 attachments (0 bytes) ok, 1 missing, 1 damaged",
    ]
    status, out, err = held("attachments", "verify", "talks-b", "--json")
    assert (status, err) == (1, "")
    (fault,) = json.loads(out)["faults"]
    assert (fault["fault"], fault["attachment_id"], fault["session_ids"]) == ("missing", NOTHING, ["talks-b"])


def test_verify_compares_the_size_that_the_reference_says(held: Shell) -> None:
    """A reference that says another size than the content has is a fault."""
    connection = apsw.Connection("fastness.db")
    connection.execute("""update attachment set reference = replace(reference, '"size":6', '"size":7')""")
    connection.close()
    status, out, err = held("attachments", "verify")
    assert (status, err) == (1, "")
    assert out.splitlines() == [
        f"session talks-a: damaged: attachment '{HELLO}' has 6 bytes, not as many as its reference says",
        "0 attachments (0 bytes) ok, 0 missing, 1 damaged",
    ]


@pytest.mark.parametrize("command", [("verify",), ("verify", "talks-a"), ("get", "talks-a", HELLO)])
def test_a_place_that_cannot_be_the_one_makes_nothing_missing(held: Shell, command: tuple[str, ...]) -> None:
    """No directory and one that holds nothing are refused, named or not; what is missing is said of no other."""
    (held.directory / "empty").mkdir()
    for place, wrong in (
        ("nix", "is no directory; name the one that is in use\n"),
        ("empty", "holds no attachment, while sessions refer to some; name the place where they are\n"),
    ):
        told = refused(held("attachments", *command, "--attachments", place))
        assert told == f"fastness: the place named for attachments {wrong}"
    assert not (held.directory / "nix").exists()
    (held.directory / STORE).rename(held.directory / "moved")
    assert refused(held("attachments", *command)) == (
        f"fastness: the default place for attachments, {STORE}, is no directory; name the one that is in use\n"
    )
    held.done("attachments", *command, "--attachments", "moved")


def test_verify_needs_no_store_where_nothing_is_referred_to(held: Shell) -> None:
    """A database without attachments needs none, nor do intents whose bytes never came."""
    held.done("delete", "talks-a", "--yes")
    place = ("--attachments", "nix")
    assert held.done("attachments", "verify", *place) == "0 attachments (0 bytes) ok, 0 missing, 0 damaged\n"
    intend(UNKNOWN, "talks-b")
    told = held.done("attachments", "verify", *place)
    assert told == "0 attachments (0 bytes) ok, 0 missing, 0 damaged; 1 not written yet\n"


# --- the place, and what is wrong ---


@pytest.mark.parametrize("given", ["option", "environment"])
def test_the_store_is_named_by_an_option_or_by_the_environment(
    filled: Shell, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    """Both say the same, and nothing is made at the default place."""
    (filled.directory / "hello.txt").write_text("hello\n")
    if given == "environment":
        monkeypatch.setenv("FASTNESS_ATTACHMENTS", "elsewhere")
    option = ("--attachments", "elsewhere") if given == "option" else ()
    filled.done("attachments", "put", "talks-a", "hello.txt", *option)
    assert content_file(filled.directory, HELLO, "elsewhere").read_text() == "hello\n"
    assert filled.done("attachments", "get", "talks-a", HELLO, *option) == "hello\n"
    assert not (filled.directory / STORE).exists()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("nix",), "No such command"),
        (("put", "talks-a"), "Missing argument"),
        (("list", "nix"), "session 'nix' does not exist; 'fastness sessions' lists what is there"),
        (("put", "nix", "hello.txt"), "session 'nix' does not exist"),
        (("get", "nix", HELLO), "session 'nix' does not exist"),
        (("verify", "nix"), "session 'nix' does not exist"),
        (("get", "talks-a", UNKNOWN), f"attachment '{UNKNOWN}' is none that the session holds; 'fastness attach"),
        (("put", "talks-a", "nix.txt"), "file 'nix.txt' cannot be read: No such file or directory"),
        (("put", "talks-a", "."), "file '.' is no regular file; - reads standard input"),
        (("put", "talks-a", "/dev/null"), "file '/dev/null' is no regular file; - reads standard input"),
        (("put", "talks-a", "hello.txt", "--name", "\udcff"), "name contains a lone surrogate"),
        (("put", "talks-a", "hello.txt", "--attachments", ""), "attachments must be named by a directory or a url"),
        (("put", "talks-a", "hello.txt", "--attachments", "ftp://x"), "attachments must be a directory, s3://…"),
        (("put", "talks-a", "hello.txt", "--attachments", "memory:"), "memory: is private to the process"),
        (("put", "talks-a", "hello.txt", "--attachments", "hello.txt"), "see that this path names a directory"),
        (("get", "talks-a", HELLO, "--attachments", "hello.txt"), "see that this path names a directory"),
        (("verify", "--attachments", "hello.txt"), "see that this path names a directory"),
    ],
)
def test_whatever_goes_wrong_is_one_line_on_stderr_and_status_2(
    held: Shell, words: tuple[str, ...], reason: str
) -> None:
    """No traceback, nothing on stdout, and what is held stays as it is."""
    assert reason in refused(held("attachments", *words))
    assert held.done("attachments", "verify") == "1 attachment (6 bytes) ok, 0 missing, 0 damaged\n"
    assert len(held.done("attachments", "list").splitlines()) == 2


@pytest.mark.parametrize("words", [("list",), ("put", "s", "talks.json"), ("get", "s", HELLO), ("verify",)])
def test_no_command_for_attachments_makes_a_database(shell: Shell, words: tuple[str, ...]) -> None:
    """A database that is not there is an error, and neither a file nor a directory is made."""
    assert "there is no database at 'fastness.db'" in refused(shell("attachments", *words))
    assert [path.name for path in shell.directory.iterdir()] == ["talks.json"]


def test_help_names_the_commands_for_attachments(shell: Shell) -> None:
    """Without a command and with ``--help`` they are listed, with status 0."""
    for words in ((), ("--help",)):
        text = shell.done("attachments", *words)
        for name in ("list", "put", "get", "verify"):
            assert f"\n  {name} " in text
