"""Cancelling turn input, run on a bare database (law I6)."""

from __future__ import annotations

import pytest

from fastness.conformance.builders import said, said_now
from fastness.errors import (
    InvalidInputError,
)
from fastness.model import (
    AlreadyCancelled,
    AlreadyClaimed,
    AlreadyCompleted,
    AnchorNotFound,
    ByInputId,
    BySourceKey,
    Cancelled,
    NotFound,
    PendingTurnInputCancelTarget,
    SuffixOutcomes,
)
from fastness.ops import turn_input
from tests.ops.driver import ALICE, Bench, S
from tests.ops.inputs import complete, pending, put, take_active, take_next


def test_cancel_says_what_became_of_the_row(bench: Bench) -> None:
    """I6: a waiting row is cancelled, a held one names its holder, a settled one says how it ended."""
    for text in ("a", "b", "c"):
        put(bench, said(text, input_id=text))
    lease = bench.lane()
    complete(bench, take_next(bench, lease, 1))
    claim = take_next(bench, lease, 1)
    assert claim is not None
    assert bench.run(turn_input.cancel(S, "a")) == AlreadyCompleted("a")
    refused = bench.run(turn_input.cancel(S, "b"))
    assert isinstance(refused, AlreadyClaimed)
    assert (refused.claim.claim_id, refused.claim.owner) == (claim.claim_id, ALICE)
    assert (refused.claim.fencing_token, refused.claim.expires_at_epoch_ms) == (1, 11_000)
    cancelled = bench.run(turn_input.cancel(S, "c"))
    assert isinstance(cancelled, Cancelled)
    assert (cancelled.input.input_id, cancelled.input.state) == ("c", "cancelled")
    assert bench.run(turn_input.cancel(S, "c")) == AlreadyCancelled("c")
    assert bench.run(turn_input.cancel(S, "x")) == NotFound()
    bench.release(lease)
    assert isinstance(bench.run(turn_input.cancel(S, "b")), Cancelled)
    assert bench.rows("select input_id, state from turn_input_evidence order by seq") == [
        ("a", "completed"),
        ("b", "cancelled"),
        ("c", "cancelled"),
    ]


def test_a_bulk_cancel_answers_each_target_in_order(bench: Bench) -> None:
    """I6: one outcome for each target, in order; a target named again, by key or id, is already cancelled."""
    put(bench, said("a", input_id="a", key="ka"))
    put(bench, said("b", input_id="b"))
    targets: list[PendingTurnInputCancelTarget] = [
        ByInputId("b"),
        ByInputId("x"),
        BySourceKey("ka"),
        ByInputId("a"),
        BySourceKey("kx"),
        ByInputId("b"),
    ]
    results = bench.run(turn_input.cancel_many(S, targets))
    assert [result.target for result in results] == targets
    outcomes = [result.outcome for result in results]
    assert [type(one) for one in outcomes[:3]] == [Cancelled, NotFound, Cancelled]
    assert outcomes[3:] == [AlreadyCancelled("a"), NotFound(), AlreadyCancelled("b")]
    assert bench.run(turn_input.cancel_many(S, [])) == []
    with pytest.raises(InvalidInputError):
        bench.run(turn_input.cancel_many(S, ["a"]))  # type: ignore[list-item]


def test_a_suffix_cancel_covers_the_anchor_and_all_after_it(bench: Bench) -> None:
    """I6: the anchor and every unsettled row after it, in the order of admission; held ones say who holds them."""
    lease = bench.lane()
    for text in ("a", "b", "c", "d"):
        put(bench, said(text, input_id=text, key=f"k{text}"))
    bench.run(turn_input.cancel(S, "c"))
    put(bench, said_now("held", input_id="held"))
    take_active(bench, lease)
    outcome = bench.run(turn_input.cancel_suffix(S, BySourceKey("kb")))
    assert isinstance(outcome, SuffixOutcomes)
    targets = [result.target for result in outcome.outcomes]
    assert targets == [BySourceKey("kb"), ByInputId("d"), ByInputId("held")]
    assert [type(result.outcome) for result in outcome.outcomes] == [Cancelled, Cancelled, AlreadyClaimed]
    assert pending(bench) == [("a", "deferred_next_turn")]


def test_a_settled_anchor_still_covers_what_follows(bench: Bench) -> None:
    """I6: a settled anchor is reported first and later rows are still cancelled; an unknown one changes nothing."""
    for text in ("a", "b", "c"):
        put(bench, said(text, input_id=text))
    bench.run(turn_input.cancel(S, "b"))
    assert bench.run(turn_input.cancel_suffix(S, ByInputId("x"))) == AnchorNotFound()
    outcome = bench.run(turn_input.cancel_suffix(S, ByInputId("b")))
    assert isinstance(outcome, SuffixOutcomes)
    assert outcome.outcomes[0].outcome == AlreadyCancelled("b")
    assert isinstance(outcome.outcomes[1].outcome, Cancelled)
    assert pending(bench) == [("a", "deferred_next_turn")]
