"""Every public call refuses what cannot be meant, and changes nothing by it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from fastness.conformance.lab import Lab, refused
from fastness.errors import GraphInvalidError, InvalidInputError, RevisionNotReadableError, SessionIdTakenError
from fastness.model import SessionFilter, TextItem
from fastness.runtime.database import Database, connect
from fastness.runtime.retry import RetryPolicy
from fastness.runtime.worker import Worker

Call = Callable[[Database, Any], Any]

SURROGATE = "\udc80"
TOO_LONG = "x" * 513
NO_IDS = ("", 7, "a\0b", TOO_LONG, SURROGATE)
NO_KEYS = NO_IDS
NO_SPANS = (-1, "soon", True, float("nan"), float("inf"), 2**60)
NO_LIMITS = (0, -1, "ten", True, 2**63)


async def turn(db: Database, *given: Any, **about: Any) -> None:
    """A turn that does nothing."""
    async with db.turn(*given, **about):
        pass


BY_ID: dict[str, Call] = {
    "send": lambda db, each: db.send(each, "x"),
    "enqueue": lambda db, each: db.enqueue(each, "x"),
    "command": lambda db, each: db.command(each, {}),
    "attach": lambda db, each: db.attach(each, b"x", name="x.txt"),
    "pending": lambda db, each: db.pending(each),
    "cancel": lambda db, each: db.cancel(each, key="k"),
    "interrupt": lambda db, each: db.interrupt(each),
    "turn": turn,
    "read": lambda db, each: db.read(each),
    "read at": lambda db, each: db.read(each, at_revision=1),
    "history": lambda db, each: anext(db.history(each)),
    "watch": lambda db, each: anext(db.watch(each)),
    "describe": lambda db, each: db.describe(each),
    "describe as": lambda db, each: db.describe(each, name="x"),
    "switch": lambda db, each: db.switch(each, None),
    "edit": lambda db, each: db.edit(each, "n", "x"),
    "regenerate": lambda db, each: db.regenerate(each),
    "fork": lambda db, each: db.fork(each, "t"),
    "fork to": lambda db, each: db.fork("s", each),
    "quarantine": lambda db, each: anext(db.quarantine(each)),
    "delete": lambda db, each: db.delete(each),
}
WRONG: dict[str, tuple[Call, tuple[Any, ...]]] = {
    "send said": (
        lambda db, each: db.send("s", each),
        (b"x", 7, None, {"text": "x"}, [7], SURROGATE, [TextItem(SURROGATE)]),
    ),
    "send key": (lambda db, each: db.send("s", "x", key=each), NO_KEYS),
    "send to": (lambda db, each: db.send("s", "x", to=each), ("now", 7, None)),
    "send boundary": (lambda db, each: db.send("s", "x", boundary=each), ("later", 7, None)),
    "send delay": (lambda db, each: db.send("s", "x", delay=each), (*NO_SPANS, None, timedelta(-1))),
    "enqueue kind": (lambda db, each: db.enqueue("s", each), (7, None, SURROGATE)),
    "enqueue data": (lambda db, each: db.enqueue("s", "x", each), (object(), SURROGATE, {1: object()})),
    "enqueue key": (lambda db, each: db.enqueue("s", "x", key=each), NO_KEYS),
    "enqueue delay": (lambda db, each: db.enqueue("s", "x", delay=each), (*NO_SPANS, None, timedelta(-1))),
    "enqueue slot": (lambda db, each: db.enqueue("s", "x", slot=each), ("both", 7, None)),
    "command": (lambda db, each: db.command("s", each), (object(), SURROGATE)),
    "command key": (lambda db, each: db.command("s", {}, key=each), NO_KEYS),
    "attach source": (lambda db, each: db.attach("s", each, name="x.txt"), (7, None)),
    "attach name": (lambda db, each: db.attach("s", b"x", name=each), (7, None, SURROGATE)),
    "attach type": (lambda db, each: db.attach("s", b"x", name="x", media_type=each), ("nonsense", 7)),
    "cancel id": (lambda db, each: db.cancel("s", input_id=each), NO_IDS),
    "cancel key": (lambda db, each: db.cancel("s", key=each), NO_KEYS),
    "cancel which": (lambda db, each: db.cancel("s", **each), ({}, {"input_id": "a", "key": "b"})),
    "interrupt reason": (lambda db, each: db.interrupt("s", reason=each), (7, SURROGATE)),
    "turn wait": (lambda db, each: turn(db, "s", wait_s=each), NO_SPANS),
    "turn inputs": (lambda db, each: turn(db, "s", max_inputs=each), (*NO_LIMITS, None)),
    "turn at": (lambda db, each: turn(db, "s", at=each), NO_IDS),
    "turn claims": (lambda db, each: turn(db, "s", claims=each), ("no", 0, None)),
    "read last": (lambda db, each: db.read("s", last=each), NO_LIMITS),
    "read last then": (lambda db, each: db.read("s", last=1, at_revision=each), (1,)),
    "read revision": (lambda db, each: db.read("s", at_revision=each), NO_LIMITS),
    "history after": (lambda db, each: anext(db.history("s", after_revision=each)), (-1, "x", True, 2**63)),
    "watch after": (lambda db, each: anext(db.watch("s", after_revision=each)), (-1, "x", True, 2**63)),
    "list limit": (lambda db, each: db.list(limit=each), (*NO_LIMITS, None)),
    "list cursor": (lambda db, each: db.list(cursor=each), ("x", 7)),
    "list filters": (lambda db, each: db.list(filters=each), (7, SessionFilter(labels=("",)))),
    "sessions": (lambda db, each: anext(db.sessions(each)), (7, SessionFilter(labels=("",)))),
    "describe name": (lambda db, each: db.describe("new", name=each), (7, SURROGATE)),
    "describe labels": (lambda db, each: db.describe("new", labels=each), ("abc", 7, [""], [7], [" a"], [SURROGATE])),
    "describe priority": (lambda db, each: db.describe("new", priority=each), (-1, 10, 1.5, "high", True)),
    "describe custom": (lambda db, each: db.describe("new", custom=each), (object(), SURROGATE)),
    "switch": (lambda db, each: db.switch("s", each), NO_IDS),
    "edit node": (lambda db, each: db.edit("s", each, "x"), (*NO_IDS, None)),
    "edit said": (lambda db, each: db.edit("s", "n", each), (b"x", 7, None, SURROGATE)),
    "edit key": (lambda db, each: db.edit("s", "n", "x", key=each), NO_KEYS),
    "regenerate": (lambda db, each: db.regenerate("s", each), NO_IDS),
    "fork node": (lambda db, each: db.fork("s", "t", at_node=each), NO_IDS),
    "fork revision": (lambda db, each: db.fork("s", "t", at_revision=each), NO_LIMITS),
    "fork both": (lambda db, each: db.fork("s", "t", at_node=each, at_revision=1), ("n",)),
    "fork name": (lambda db, each: db.fork("s", "t", name=each), (7, SURROGATE)),
    "retry": (lambda db, each: db.retry(each), (7, None, "x")),
    "discard": (lambda db, each: db.discard(each), (7, None, "x")),
    "connect": (lambda db, each: called(connect, each), ("mysql://somewhere", "", 7, None, "sqlite:///")),
}


async def called(make: Callable[..., Any], *given: Any, **about: Any) -> None:
    """Something that is made."""
    make(*given, **about)


@pytest.fixture
async def session(db: Database) -> Database:
    """A database with a session that has been talked to, and that something waits for."""
    async with db.turn("s") as first:
        first.append("hello")
    await db.send("s", "waiting", key="waiting")
    return db


@pytest.mark.parametrize("call", BY_ID.values(), ids=BY_ID)
async def test_what_is_no_id_names_no_session(lab: Lab, session: Database, call: Call) -> None:
    """Empty, too long, with a NUL, no Unicode or no text at all."""
    for each in NO_IDS:
        await refused(lab, InvalidInputError, awaited(call(session, each)))


@pytest.mark.parametrize(("call", "values"), WRONG.values(), ids=WRONG)
async def test_what_cannot_be_meant_is_refused(
    lab: Lab, session: Database, call: Call, values: tuple[Any, ...]
) -> None:
    """By one error of one type, before anything is written: no lane is claimed, and no session comes to life."""
    for each in values:
        await refused(lab, InvalidInputError, awaited(call(session, each)))


async def awaited(call: Awaitable[object]) -> object:
    """What a call gives."""
    return await call


async def test_a_database_without_a_place_for_attachments_says_so(lab: Lab) -> None:
    """It names the argument that was missing."""
    plain = Database(lab.factory)
    error = await refused(lab, InvalidInputError, plain.attach("s", b"x", name="a.txt"))
    assert "attachments=" in str(error)


async def test_what_is_not_there_is_an_error_of_its_own(lab: Lab, session: Database) -> None:
    """A node, a revision, a session id that is taken; the session stands where it stood."""
    await refused(lab, GraphInvalidError, session.fork("s", "t", at_node="no such node"))
    await refused(lab, RevisionNotReadableError, session.read("s", at_revision=9))
    await refused(lab, RevisionNotReadableError, session.fork("s", "t", at_revision=9))
    await refused(lab, SessionIdTakenError, session.fork("s", "s"))


@pytest.mark.parametrize(
    "about",
    [
        {"concurrency": 0},
        {"concurrency": "many"},
        {"concurrency": True},
        {"handler": "not a function"},
        {"name": ""},
        {"name": 7},
        {"label_limits": {"a": 0}},
        {"label_limits": {"": 1}},
        {"label_limits": ["a"]},
        {"turn_timeout": timedelta(0)},
        {"turn_timeout": 7},
        {"drain": timedelta(-1)},
        {"drain": 7},
        {"max_inputs": 0},
        {"max_batches": 0},
        {"retry": 3},
    ],
    ids=str,
)
async def test_a_worker_refuses_at_once_what_it_cannot_work_with(about: dict[str, Any]) -> None:
    """And not with each turn."""

    async def handler(turn: Any) -> None:
        """It is never called."""

    async with connect("memory:") as db:
        with pytest.raises(InvalidInputError):
            Worker(db, **{"handler": handler, **about})


@pytest.mark.parametrize(
    "about",
    [
        {"max_attempts": 0},
        {"max_attempts": 1.5},
        {"max_attempts": True},
        {"first_pause": timedelta(-1)},
        {"first_pause": 1},
        {"first_pause": timedelta(2), "longest_pause": timedelta(1)},
        {"longest_pause": 1},
    ],
    ids=str,
)
def test_a_policy_refuses_what_it_cannot_follow(about: dict[str, Any]) -> None:
    """Attempts are counted from one, pauses are spans of time that grow."""
    with pytest.raises(InvalidInputError):
        RetryPolicy(**about)
