"""What ``attachments put``, ``get`` and ``list`` take, refuse and shorten; and how a command ends beside a service."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import obstore
import pytest

from tests.cli.test_attachments import HELLO, UNKNOWN, held, intend, refused
from tests.cli.test_cli import FASTNESS, Shell, filled, lines_of, shell
from tests.servers.room import free_port
from tests.servers.s3 import CREDENTIALS, S3Server

__all__ = ["filled", "held", "shell"]  # fixtures of the command line

RUNS = 8


def aws(endpoint: str) -> dict[str, str]:
    """The environment of a process that is to find an S3 service at an address."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return inherited | {
        "AWS_ENDPOINT": endpoint,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": CREDENTIALS["access_key_id"],
        "AWS_SECRET_ACCESS_KEY": CREDENTIALS["secret_access_key"],
    }


# --- what a put is given ---


@pytest.mark.parametrize(
    "media_type",
    [
        "",
        "nonsense",
        "image/",
        "/png",
        "image/png/x",
        "image /png",
        "text/plain\n",
        "té/x",
    ],
)
def test_a_media_type_is_a_type_and_a_subtype(held: Shell, media_type: str) -> None:
    """Two words of the characters that media types are made of, with a slash between them."""
    told = refused(held("attachments", "put", "talks-b", "hello.txt", "--media-type", media_type))
    assert told.startswith("fastness: --media-type must be like image/png")
    assert held.done("attachments", "list", "talks-b") == "no attachments\n"


@pytest.mark.parametrize(
    "media_type", ["image/png", "application/vnd.a.b+json", "X-a!#$&^_/1-2", "text/plain; charset=utf-8"]
)
def test_any_media_type_of_that_form_is_taken_as_it_is(held: Shell, media_type: str) -> None:
    """Whether it is registered is nobody's business here."""
    held.done("attachments", "put", "talks-b", "hello.txt", "--media-type", media_type)
    (shown,) = lines_of(held.done("attachments", "list", "talks-b", "--json"))
    assert shown["reference"]["media_type"] == media_type


def test_an_empty_name_is_refused(held: Shell) -> None:
    """It would show nothing in a list."""
    told = refused(held("attachments", "put", "talks-b", "hello.txt", "--name", ""))
    assert told == "fastness: --name is empty; say what to call it, or leave it out\n"
    assert held.done("attachments", "list", "talks-b") == "no attachments\n"


def test_a_pipe_is_pointed_to_standard_input(held: Shell) -> None:
    """It can be read once only, and is not waited for."""
    os.mkfifo("pipe")
    told = refused(held("attachments", "put", "talks-b", "pipe"))
    assert told == "fastness: file 'pipe' is no regular file; - reads standard input\n"


def test_a_file_whose_name_is_no_text_needs_one(held: Shell) -> None:
    """The line says which option gives it one; with that it is kept."""
    Path("\udcff.txt").write_text("hello\n")
    told = refused(held("attachments", "put", "talks-b", "\udcff.txt"))
    assert told == "fastness: file '\\udcff.txt' has a name that is not UTF-8; say with --name what to call it\n"
    assert held.done("attachments", "put", "talks-b", "\udcff.txt", "--name", "a.txt") == f"{HELLO}\n"


@pytest.mark.parametrize(
    "other", [("--name", "two.txt"), ("--media-type", "text/csv"), ("--name", "two.txt", "--media-type", "text/csv")]
)
def test_a_put_says_that_the_list_keeps_the_first_name(held: Shell, other: tuple[str, ...]) -> None:
    """Content that the session has already stays under its first name and type; a note says so, and all is well."""
    status, out, err = held("attachments", "put", "talks-a", "hello.txt", *other)
    assert (status, out) == (0, f"{HELLO}\n")
    assert err == (
        "fastness: the session had this content already, and the list goes on to show it as 'hello.txt' (text/plain)\n"
    )
    (shown,) = lines_of(held.done("attachments", "list", "--json"))
    assert (shown["reference"]["name"], shown["reference"]["media_type"]) == ("hello.txt", "text/plain")


def test_a_put_has_nothing_to_note_where_the_list_shows_what_it_said(held: Shell) -> None:
    """The same name again, or content that only another session has."""
    held.done("attachments", "put", "talks-a", "hello.txt")
    held.done("attachments", "put", "talks-b", "hello.txt", "--name", "two.txt")


def test_a_note_that_nobody_can_read_changes_nothing(held: Shell) -> None:
    """A full or closed stderr costs the note, not the status."""
    for words in ("2>/dev/full", "2>&-"):
        put = f"{sys.executable} -m fastness attachments put talks-a hello.txt --name two.txt {words}"
        done = subprocess.run(["sh", "-c", put], cwd=held.directory, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, f"{HELLO}\n")


def test_help_says_which_name_the_list_keeps(shell: Shell) -> None:
    """Whoever asks before the put knows it before the note."""
    told = " ".join(shell.done("attachments", "put", "--help").split())
    assert "the list keeps the name and media type it was first put under" in told


# --- what a list and a get make of it ---


def test_a_list_shortens_what_would_fill_the_screen(held: Shell) -> None:
    """60 characters of a name and 40 of a media type, the last one a sign that more was there; JSON has all."""
    intend(UNKNOWN, "talks-b", "n" * 4000, f"text/{'m' * 200}")
    row = held.done("attachments", "list", "talks-b").splitlines()[1]
    assert row.split()[5:] == ["text/" + "m" * 34 + "…", "n" * 59 + "…"]
    (shown,) = lines_of(held.done("attachments", "list", "talks-b", "--json"))
    assert shown["reference"]["name"] == "n" * 4000


@pytest.mark.parametrize("output", ["", "x/", "x/.", "/"])
def test_an_output_that_names_no_file_is_refused(held: Shell, output: str) -> None:
    """No file is made of a name that could only be a directory's."""
    told = refused(held("attachments", "get", "talks-a", HELLO, "--output", output, "--force"))
    assert told == f"fastness: --output {output!r} names no file\n"
    assert not Path("x").exists()


# --- beside a service ---


def test_a_service_that_is_not_there_is_status_2_every_time(held: Shell) -> None:
    """One line on stderr, and no abort while the process ends: the service's library has threads of its own."""
    command = [sys.executable, "-m", "fastness", "attachments", "verify", "--attachments", "s3://nobucket"]
    pipe = subprocess.PIPE
    environment = aws(f"http://127.0.0.1:{free_port()}")
    children = [
        subprocess.Popen(command, cwd=held.directory, env=environment, stdout=pipe, stderr=pipe, text=True)
        for _ in range(RUNS)
    ]
    for child in children:
        out, err = child.communicate()
        assert (child.returncode, out) == (2, "")
        assert err.startswith("fastness: the connection to the object service failed; ")
        assert err.count("\n") == 1


def test_content_that_turns_out_damaged_is_printed_as_far_as_it_came(held: Shell) -> None:
    """What was read from a service is not lost with the process, whose status says that it is damaged."""
    with S3Server() as service:
        bucket = service.bucket()
        url = f"s3://{bucket}/place"
        environment = aws(service.endpoint)
        get = [*FASTNESS, "attachments", "get", "talks-a", HELLO, "--attachments", url]
        raw = obstore.store.from_url(url, **service.options())
        obstore.put(raw, f"{HELLO[:2]}/{HELLO}", b"jello\n")
        done = subprocess.run(get, cwd=held.directory, env=environment, capture_output=True, check=False)
        assert (done.returncode, done.stdout) == (2, b"jello\n")
        assert b"are damaged: 6 bytes hash to " in done.stderr
        empty = [*get[:-1], f"s3://{bucket}/elsewhere"]
        done = subprocess.run(empty, cwd=held.directory, env=environment, capture_output=True, check=False)
        assert (done.returncode, done.stdout) == (2, b"")
        assert b"the place named for attachments holds no attachment, while sessions refer to some" in done.stderr
