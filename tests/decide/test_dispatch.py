"""What a turn begins with, and what becomes of failures, on values alone (laws T4 to T6, Q1)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastness.decide.dispatch import Beginning, WaitingInput, backoff_ms, begin, spoiled
from fastness.decide.queued_work import WaitingWork, joins
from fastness.model import Group, Never, PayloadDefault

NEVER = None


def said(seq: int, attempts: int = 0) -> WaitingInput:
    """Input of the id ``i<seq>``."""
    return WaitingInput(f"i{seq}", seq, 0, attempts)


def batch(seq: int, attempts: int = 0, **fields: Any) -> WaitingWork:
    """Joinable turn work of the id ``w<seq>``."""
    given: dict[str, Any] = {
        "work_class": "turn_work",
        "delivery_policy": "earliest_safe_boundary",
        "slot_policy": "join",
        "merge_key": PayloadDefault(),
        **fields,
    }
    return WaitingWork(f"w{seq}", seq, 0, attempts=attempts, **given)


def begun(*rows: WaitingInput | WaitingWork, limit: int = 9, max_attempts: int | None = NEVER) -> Beginning:
    """Begin with rows, sorted by kind."""
    return begin(
        [row for row in rows if isinstance(row, WaitingInput)],
        [row for row in rows if isinstance(row, WaitingWork)],
        max_inputs=limit,
        max_batches=limit,
        max_attempts=max_attempts,
    )


def taken(beginning: Beginning) -> list[str]:
    """The ids of what is taken."""
    return [row.row_id for row in (*beginning.inputs, *beginning.work)]


COMMAND: dict[str, Any] = {"work_class": "session_command"}


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ((), []),
        ((said(1), said(2)), ["i1", "i2"]),
        ((said(1), batch(2), said(3)), ["i1"]),
        ((batch(1), said(2), batch(3)), ["w1"]),
        ((batch(1), batch(2)), ["w1", "w2"]),
        ((batch(1, merge_key=Never()), batch(2, merge_key=Never())), ["w1"]),
        ((batch(1, slot_policy="exclusive"), batch(2)), ["w1"]),
        ((batch(1, delivery_policy="after_current_turn_commit"),), ["w1"]),
        ((batch(1, **COMMAND), batch(2, **COMMAND)), ["w1"]),
        ((said(1), batch(2, **COMMAND)), ["i1"]),
        ((batch(1), batch(2, **COMMAND)), ["w1"]),
        ((said(1, attempts=1), said(2)), ["i1"]),
        ((said(1), said(2, attempts=1), said(3)), ["i1"]),
        ((batch(1, attempts=1), batch(2)), ["w1"]),
        ((batch(1), batch(2, attempts=1), batch(3)), ["w1"]),
    ],
    ids=str,
)
def test_a_turn_takes_what_leads_the_line(rows: tuple[WaitingInput | WaitingWork, ...], wanted: list[str]) -> None:
    """T4: input up to the first work, or work that joins up to the first input; what failed before goes alone (T5)."""
    assert taken(begun(*rows)) == wanted


def test_what_is_spoiled_stands_in_nobodys_way() -> None:
    """Q1: what was granted as often as allowed is set aside, and what stands behind it leads."""
    beginning = begun(said(1, 3), batch(2, 3), said(3), batch(4, 2), max_attempts=3)
    assert (beginning.spoiled_inputs, beginning.spoiled_work) == (("i1",), ("w2",))
    assert (taken(beginning), beginning.spoiled_count, beginning.takes_something) == (["i3"], 2, True)
    assert begun(said(1, 3), max_attempts=3).takes_something is False


keys = st.sampled_from([Never(), PayloadDefault(), Group("a")])
tries = st.integers(0, 3)
inputs = st.builds(WaitingInput, st.just(""), st.just(0), st.integers(0, 9), tries)
work = st.builds(
    WaitingWork,
    st.just(""),
    st.just(0),
    st.integers(0, 9),
    st.sampled_from(["session_command", "turn_work"]),
    st.sampled_from(["earliest_safe_boundary", "after_current_turn_commit"]),
    st.sampled_from(["join", "join", "exclusive"]),
    keys,
    tries,
)


@st.composite
def lines(draw: st.DrawFn) -> list[WaitingInput | WaitingWork]:
    """Rows of both kinds in one order of admission, with gaps."""
    rows: list[WaitingInput | WaitingWork] = []
    seq = 0
    for row in draw(st.lists(inputs | work, max_size=8)):
        seq += draw(st.integers(1, 3))
        if isinstance(row, WaitingInput):
            rows.append(WaitingInput(f"i{seq}", seq, row.claim_token, row.attempts))
        else:
            rows.append(
                batch(
                    seq,
                    row.attempts,
                    work_class=row.work_class,
                    delivery_policy=row.delivery_policy,
                    slot_policy=row.slot_policy,
                    merge_key=row.merge_key,
                )
            )
    return rows


@given(lines(), st.integers(1, 5), st.sampled_from([None, 1, 2, 3]))
def test_a_turn_takes_a_run_of_what_can_be_tried(
    rows: list[WaitingInput | WaitingWork], limit: int, max_attempts: int | None
) -> None:
    """Whatever waits: one kind, from the head of what is not spoiled, without a gap, at most as many as asked for."""
    beginning = begun(*rows, limit=limit, max_attempts=max_attempts)
    names = {row.input_id if isinstance(row, WaitingInput) else row.batch_id: row for row in rows}
    gone = {name for name, row in names.items() if max_attempts is not None and row.attempts >= max_attempts}
    assert {*beginning.spoiled_inputs, *beginning.spoiled_work} == gone
    fit = [name for name in names if name not in gone]
    mine = taken(beginning)
    assert not (beginning.inputs and beginning.work)
    assert mine == fit[: len(mine)]
    assert len(mine) <= limit
    assert bool(mine) == bool(fit) == beginning.takes_something
    assert {name[0] for name in mine} <= {"i", "w"}
    assert len({name[0] for name in mine}) <= 1
    if any(names[name].attempts for name in mine):
        assert len(mine) == 1
    for one, other in pairwise(names[name] for name in mine):
        assert isinstance(one, WaitingInput) or (isinstance(other, WaitingWork) and joins(one, other))


@given(st.lists(st.tuples(st.text(max_size=2), st.integers(0, 9))), st.none() | st.integers(1, 9))
def test_spoiled_is_who_was_granted_as_often_as_allowed(rows: list[tuple[str, int]], most: int | None) -> None:
    """Q1: exactly those, in their order; without a bound nobody is."""
    assert spoiled(rows, most) == tuple(name for name, count in rows if most is not None and count >= most)


def test_pauses_double_up_to_the_longest() -> None:
    """T6: counted from the first attempt; jitter takes away up to a half."""
    pauses = [backoff_ms(at, base_ms=100, longest_ms=1_000, jitter=0) for at in range(7)]
    assert pauses == [100, 100, 200, 400, 800, 1_000, 1_000]
    assert [backoff_ms(3, base_ms=100, longest_ms=1_000, jitter=each) for each in (0.5, 1)] == [300, 200]


@given(st.integers(0, 2**31), st.integers(0, 2**40), st.integers(0, 2**40), st.floats(0, 1, allow_nan=False))
def test_a_pause_is_at_most_the_longest_and_at_least_half_of_its_own(
    attempts: int, base_ms: int, longest_ms: int, jitter: float
) -> None:
    """T6: however often something failed, its pause is a number of milliseconds within its bounds."""
    whole = backoff_ms(attempts, base_ms=base_ms, longest_ms=longest_ms, jitter=0)
    pause = backoff_ms(attempts, base_ms=base_ms, longest_ms=longest_ms, jitter=jitter)
    assert min(base_ms, longest_ms) <= whole <= longest_ms
    assert whole // 2 <= pause <= whole
