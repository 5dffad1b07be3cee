"""The face for threads is the async one: every name, every signature, and nothing more than is said here."""

from __future__ import annotations

import inspect
import re
from typing import Any, assert_type

import pytest

import fastness
from fastness import sync
from fastness.errors import InvalidInputError
from fastness.model import CommitRecord, Message, PendingTurnInput, SessionReadView
from fastness.runtime.database import connect

PAIRS: list[tuple[type, type, set[str]]] = [
    (fastness.Database, sync.Database, {"run"}),
    (fastness.Turn, sync.Turn, {"require"}),
    (fastness.Worker, sync.Worker, set()),
]
"""An async class, its face, and what the face has of its own."""
WRITTEN = {"close", "run", "stop"}
"""What threads, loops and signals have to be minded in: these are written out."""


def public(names: Any) -> set[str]:
    """Those that are for everybody."""
    return {name for name in names if not name.startswith("_")}


def attributes_set_by(of: type) -> set[str]:
    """What the constructor of a class leaves on its objects."""
    source = inspect.getsource(of.__init__)  # type: ignore[misc]
    return public(re.findall(r"^ +self\.(\w+)(?:: .+?)? = ", source, re.MULTILINE))


@pytest.mark.parametrize(("of", "face", "own"), PAIRS, ids=lambda each: getattr(each, "__qualname__", None))
def test_every_public_name_of_the_async_face_is_there_and_no_other(of: type, face: type, own: set[str]) -> None:
    """Methods, properties and what a constructor sets; a method that is added there must be added here."""
    assert public(dir(face)) == public(dir(of)) | attributes_set_by(of) | own


@pytest.mark.parametrize(("of", "face", "own"), PAIRS, ids=lambda each: getattr(each, "__qualname__", None))
def test_every_method_has_the_signature_and_the_words_of_its_pair(of: type, face: type, own: set[str]) -> None:
    """None of them is a coroutine function; parameters, defaults and documentation are those of the async one."""
    methods = {name: method for name, method in inspect.getmembers(of, inspect.isfunction) if name in public(dir(of))}
    assert {"send", "append", "stop"} & set(methods)
    for name, method in methods.items():
        if name in WRITTEN:
            continue
        ours = getattr(face, name)
        assert not inspect.iscoroutinefunction(ours)
        assert not inspect.isasyncgenfunction(ours)
        assert inspect.signature(ours).parameters == inspect.signature(method).parameters
        assert ours.__doc__ == (method.__doc__ or "").replace("async with", "with")


def test_what_opens_and_what_works_take_the_same_options() -> None:
    """``connect`` and the constructor of ``Worker`` are no second copy either."""
    assert inspect.signature(sync.connect).parameters == inspect.signature(connect).parameters
    assert inspect.signature(sync.Worker).parameters == inspect.signature(fastness.Worker).parameters


def test_annotations_name_what_a_thread_gets() -> None:
    """An iterator in the place of an asynchronous one."""
    assert inspect.signature(sync.Database.history).return_annotation == "Iterator[CommitRecord]"
    assert inspect.signature(sync.Database.send).return_annotation == "PendingTurnInput"


def test_types_are_those_of_the_async_face() -> None:
    """A type checker sees what is really given; this holds when the tests are checked, not when they run."""
    with sync.connect("memory:", owner_id="tests") as db:
        assert_type(db.send("s", "hello", key="a"), PendingTurnInput)
        assert_type(db.history("s"), sync.Stream[CommitRecord])
        with db.turn("s", wait_s=0) as turn:
            assert_type(turn, sync.Turn)
            assert_type(turn.messages, tuple[Message, ...])
            assert_type(turn.state, bytes | None)
            assert_type(turn.append("hi"), str)
            for more in turn.checkpoints():
                assert_type(more, tuple[Message, ...])
        assert_type(db.read("s"), SessionReadView | None)
        assert_type(sync.Worker(db, lambda turn: turn.model, concurrency=2).running, tuple[str, ...])
        with pytest.raises(TypeError):
            db.send("s", "hello", kee="a")  # type: ignore[call-arg]


def test_properties_have_the_words_of_their_pair_and_cannot_be_set() -> None:
    """Nor can they be hidden by an attribute of the object."""
    assert vars(sync.Turn)["messages"].__doc__ == "The conversation up to now."
    with sync.connect("memory:") as db, db.turn("s") as turn, pytest.raises(AttributeError):
        turn.kind = "work"  # type: ignore[assignment]


def test_a_coroutine_function_is_no_handler_here() -> None:
    """It would never be awaited."""

    async def handler(turn: sync.Turn) -> None:
        """Do nothing."""

    with sync.connect("memory:") as db, pytest.raises(InvalidInputError):
        sync.Worker(db, handler)  # type: ignore[arg-type]
