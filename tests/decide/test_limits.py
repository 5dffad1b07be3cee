"""What is refused before anything is written, and what is not (law B1, W6)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fastness.decide import limits
from fastness.errors import InvalidInputError
from fastness.model import (
    ActiveTurn,
    AttachmentItem,
    AttachmentRef,
    Group,
    NextTurn,
    PendingTurnInputDraft,
    QueuedWorkBatchDraft,
    StructuredItem,
    Task,
    TextItem,
    TurnInput,
    raw_json,
)

INPUT = PendingTurnInputDraft("s", NextTurn(), TurnInput.of_text("x"))
BATCH = QueuedWorkBatchDraft("s", "earliest_safe_boundary", "join", (Task("t"),))


@pytest.mark.parametrize("bad", ["", "a\0b", "\ud800", "é" * 257, "x" * 513, None, 1, b"x"])
def test_an_id_is_short_text_without_nul(bad: object) -> None:
    """B1: ids of 1 to 512 bytes of UTF-8 pass; empty, longer, NUL, lone surrogates and other types do not."""
    assert limits.check_id("id", "é" * 256) == "é" * 256
    assert limits.check_optional_id("id", None) is None
    with pytest.raises(InvalidInputError) as caught:
        limits.check_id("the id", bad)
    assert caught.value.what == "the id"


def test_text_may_be_long_and_hold_nul() -> None:
    """B1: text may contain NUL and be 4 MB; a lone surrogate is no text."""
    assert limits.check_text("text", "\0" * 4_000_000) == "\0" * 4_000_000
    with pytest.raises(InvalidInputError):
        limits.check_text("text", "a\udfff")


def test_numbers_fit_63_bits() -> None:
    """B1: any 63-bit number passes; beyond, booleans and fractions do not; counters are not negative."""
    assert limits.check_count("n", 2**63 - 1) == 2**63 - 1
    assert limits.check_int63("n", -(2**63)) == -(2**63)
    assert limits.check_count("n", 0) == 0
    assert limits.check_positive("n", 1) == 1
    for check, bad in (
        (limits.check_int63, 2**63),
        (limits.check_int63, -(2**63) - 1),
        (limits.check_int63, True),
        (limits.check_int63, 1.0),
        (limits.check_count, -1),
        (limits.check_positive, 0),
    ):
        with pytest.raises(InvalidInputError):
            check("n", bad)


def test_the_budget_is_inclusive() -> None:
    """B1: content of exactly the budget passes, one byte more does not; the default is 64 MiB."""
    limits.check_budget(67_108_864)
    for size, budget in ((67_108_865, 67_108_864), (2, 1)):
        with pytest.raises(InvalidInputError):
            limits.check_budget(size, budget)


def test_good_drafts_pass() -> None:
    """B1: every kind of item, foreign JSON with NUL and an input without items are accepted."""
    items = (
        TextItem("a\0b"),
        AttachmentItem(AttachmentRef("0" * 64, "n", "image/png", 1, 2, 3)),
        StructuredItem("form", raw_json({"a": "\0"})),
    )
    limits.check_input_draft(PendingTurnInputDraft("s", ActiveTurn("t"), TurnInput(items, raw_json({})), "i", "k"))
    limits.check_input_draft(msgspec.structs.replace(INPUT, input=TurnInput(())))
    limits.check_batch_draft(msgspec.structs.replace(BATCH, merge_key=Group("g"), available_at_ms=2**63 - 1))


@pytest.mark.parametrize(
    "change",
    [
        {"session_id": ""},
        {"input_id": "\0"},
        {"source_key": "x" * 513},
        {"ingress": None},
        {"ingress": ActiveTurn("")},
        {"ingress": ActiveTurn("t", "now")},  # type: ignore[arg-type]
        {"input": "hello"},
        {"input": TurnInput("hello")},  # type: ignore[arg-type]
        {"input": TurnInput(("hello",))},  # type: ignore[arg-type]
        {"input": TurnInput((TextItem("\ud800"),))},
        {"input": TurnInput((TextItem(1),))},  # type: ignore[arg-type]
        {"input": TurnInput((StructuredItem("k", {"a": 1}),))},  # type: ignore[arg-type]
        {"input": TurnInput((AttachmentItem(AttachmentRef("0", "n", "t", -1)),))},
        {"input": TurnInput((), {"a": 1})},  # type: ignore[arg-type]
    ],
)
def test_bad_input_is_refused(change: dict[str, Any]) -> None:
    """B1: whatever breaks a limit or is of a wrong type is "invalid input", and never another exception."""
    with pytest.raises(InvalidInputError):
        limits.check_input_draft(msgspec.structs.replace(INPUT, **change))


@pytest.mark.parametrize(
    "change",
    [
        {"session_id": 1},
        {"source_key": ""},
        {"delivery_policy": "soon"},
        {"delivery_policy": []},
        {"slot_policy": None},
        {"merge_key": "never"},
        {"merge_key": Group("")},
        {"available_at_ms": -1},
        {"available_at_ms": 2**63},
        {"payloads": ()},
        {"payloads": None},
        {"payloads": ("x",)},
        {"payloads": (Task(1),)},  # type: ignore[arg-type]
        {"payloads": (Task("t", {"a": 1}),)},  # type: ignore[arg-type]
    ],
)
def test_bad_work_is_refused(change: dict[str, Any]) -> None:
    """B1, W6: the same for a batch, and an empty one is refused."""
    with pytest.raises(InvalidInputError):
        limits.check_batch_draft(msgspec.structs.replace(BATCH, **change))


def test_what_is_no_draft_is_refused() -> None:
    """B1: a value of another class altogether is invalid input."""
    with pytest.raises(InvalidInputError):
        limits.check_input_draft(BATCH)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError):
        limits.check_batch_draft({"session_id": "s"})  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError):
        limits.check_cancel_target("x")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError):
        limits.check_fence("x")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError):
        limits.check_fence(None)  # type: ignore[arg-type]
