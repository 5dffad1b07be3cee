"""What input counts as, and what a cancel does, on facts alone (laws I1, I4, I6)."""

from __future__ import annotations

from typing import Any

import pytest

from fastness.conformance.builders import said, said_now
from fastness.decide.claims import Grant
from fastness.decide.lane import LaneFacts
from fastness.decide.turn_input import InputRow, cancel, cancelled_ids, effective_state, resubmitted
from fastness.errors import InputSourceKeyConflictError
from fastness.model import (
    AlreadyCancelled,
    ByInputId,
    BySourceKey,
    LeaseOwnerIdentity,
    PendingTurnInputDraft,
    StructuredItem,
    TurnInput,
    raw_json,
)
from fastness.model.turn_input import TurnInputState

FREE_LANE = LaneFacts(1, "s", 0, 3, None, None, 0, 0, 5)
LIVE_LANE = LaneFacts(1, "s", 0, 3, LeaseOwnerIdentity("o", "i"), "l", 0, 10, 5)
HELD = Grant("c", 1, 3, "l")


def row(
    state: TurnInputState, token: int = 3, *, draft: Any = None, settled: bool = False, grant: Grant | None = None
) -> InputRow:
    """A row of input ``i``."""
    return InputRow("i", 1, state, token, settled, 0, grant or Grant(), draft or said_now("x"))


@pytest.mark.parametrize(
    ("found", "lane", "state"),
    [
        (row("pending_active"), LIVE_LANE, "pending_active"),
        (row("pending_active", 0), FREE_LANE, "pending_active"),
        (row("pending_active", 0), LIVE_LANE, "deferred_next_turn"),
        (row("pending_active"), FREE_LANE, "deferred_next_turn"),
        (row("pending_active", 2), LIVE_LANE, "deferred_next_turn"),
        (row("pending_active", settled=True), LIVE_LANE, "deferred_next_turn"),
        (row("accepted", grant=HELD), LIVE_LANE, "accepted"),
        (row("accepted", grant=HELD), FREE_LANE, "deferred_next_turn"),
        (row("accepted"), LIVE_LANE, "deferred_next_turn"),
        (row("deferred_next_turn", grant=HELD), LIVE_LANE, "deferred_next_turn"),
        (row("completed"), LIVE_LANE, "completed"),
        (row("cancelled"), FREE_LANE, "cancelled"),
    ],
)
def test_what_input_counts_as(found: InputRow, lane: LaneFacts, state: str) -> None:
    """I4: input is for its turn only under the token of its admission; what a dead claim leaves is next-turn input."""
    assert effective_state(found, lane) == state


def test_foreign_json_is_compared_as_submitted() -> None:
    """I1: the same bytes are the same submission; a boundary that is spelled out is the default all the same."""

    def draft(data: object) -> PendingTurnInputDraft:
        return (
            said_now("x", source_key="k")
            if data is None
            else PendingTurnInputDraft(
                "s", said_now("x").ingress, TurnInput((StructuredItem("form", raw_json(data)),)), source_key="k"
            )
        )

    stored = row("pending_active", draft=draft({"a": 1}))
    assert resubmitted(draft({"a": 1}), [stored]) == stored
    assert resubmitted(draft({"a": 1}), []) is None
    for other in (draft({"a": 2}), draft(None)):
        with pytest.raises(InputSourceKeyConflictError) as caught:
            resubmitted(other, [stored])
        assert (caught.value.source_key, caught.value.input_id) == ("k", "i")


def test_a_row_is_cancelled_once() -> None:
    """I6: a row that is named by id and by key is cancelled by the first and already cancelled for the second."""
    found = row("deferred_next_turn", draft=said("x", key="k"))
    results = cancel([BySourceKey("k"), ByInputId("i")], [found], LIVE_LANE)
    assert cancelled_ids(results) == ["i"]
    assert results[1].outcome == AlreadyCancelled("i")
