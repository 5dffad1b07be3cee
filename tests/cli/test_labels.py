"""``fastness sessions`` with labels: shown, asked for, and refused where they are none."""

from __future__ import annotations

import asyncio
import json

import pytest

from fastness.persistence import SessionMeta, SessionStoreCreateRequest, open_database, raw_json
from tests.cli.test_cli import Shell, shell

__all__ = ["shell"]

DATABASE = "sqlite:///fastness.db"


async def _fill() -> None:
    async with open_database(DATABASE) as factory:
        for session_id, labels in (("a", ("blue", "north")), ("b", ()), ("c", ("é", "blue"))):
            await factory.create_store(SessionStoreCreateRequest(session_id, labels=labels))
        store = await factory.create_store(SessionStoreCreateRequest("d"))
        meta = SessionMeta("d", "d", "", "m", labels=("blue",), priority=9, custom=raw_json({"team": [1, 2]}))
        await store.save_session_meta(meta)


@pytest.fixture
def labelled(shell: Shell) -> Shell:
    """A shell whose database holds sessions with labels and without."""
    asyncio.run(_fill())
    return shell


def ids(shell: Shell, *arguments: str) -> list[str]:
    """The sessions that are listed."""
    return [line.split()[0] for line in shell.done("sessions", *arguments).splitlines()[1:]]


def test_sessions_show_their_labels(labelled: Shell) -> None:
    """In a last column, which is there where a session on the page has some."""
    head, *lines = labelled.done("sessions").splitlines()
    at = head.index("LABELS")
    assert [(line.split()[0], line[at:]) for line in lines] == [
        ("a", "blue, north"),
        ("b", ""),
        ("c", "blue, é"),
        ("d", "blue"),
    ]
    assert "LABELS" not in labelled.done("sessions", "--prefix", "b")


def test_sessions_are_asked_for_by_labels(labelled: Shell) -> None:
    """Those with all of them are listed, also beside other filters."""
    assert ids(labelled, "--label", "blue") == ["a", "c", "d"]
    assert ids(labelled, "--label", "blue", "--label", "north") == ["a"]
    assert ids(labelled, "--label", "blue", "--prefix", "c") == ["c"]
    assert labelled.done("sessions", "--label", "Blue") == "no sessions\n"


def test_json_has_all_of_a_description(labelled: Shell) -> None:
    """Labels, priority and the application's own JSON, as they are kept."""
    page = json.loads(labelled.done("sessions", "--label", "blue", "--json"))
    assert [one["meta"]["labels"] for one in page["sessions"]] == [["blue", "north"], ["blue", "é"], ["blue"]]
    assert page["sessions"][2]["meta"]["priority"] == 9
    assert page["sessions"][2]["meta"]["custom"] == {"team": [1, 2]}


@pytest.mark.parametrize("label", ["", " blue", "a\nb", "x" * 129])
def test_what_is_no_label_is_refused(labelled: Shell, label: str) -> None:
    """With status 2 and a line that says why."""
    result = labelled("sessions", "--label", label)
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith("fastness: filters.labels ")
    assert result.err.count("\n") == 1
