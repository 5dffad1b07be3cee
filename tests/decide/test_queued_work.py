"""The rules of the queue, on values alone (laws W2 to W6, L2)."""

from __future__ import annotations

from typing import Any

import pytest

from fastness.decide.queued_work import (
    class_of,
    exact_turn_work,
    joins,
    leading_command,
    leading_turn_work,
    queue_after_reentry,
    ready_queue,
)
from fastness.errors import InvalidInputError
from fastness.model import Group, Never, PayloadDefault, QueuedWorkBatch, QueuedWorkItem, SessionCommand, Task, raw_json

TASK = Task("t")
COMMAND = SessionCommand(raw_json({}))


def batch(batch_id: str, seq: int = 1, **fields: Any) -> QueuedWorkBatch:
    """A joinable batch of turn work that is pending."""
    given: dict[str, Any] = {
        "session_id": "s",
        "state": "pending",
        "work_class": "turn_work",
        "delivery_policy": "earliest_safe_boundary",
        "slot_policy": "join",
        "merge_key": PayloadDefault(),
        "items": (QueuedWorkItem(f"{batch_id}/0", TASK),),
        **fields,
    }
    return QueuedWorkBatch(batch_id=batch_id, admission_seq=seq, **given)


def ids(batches: tuple[QueuedWorkBatch, ...]) -> list[str]:
    """The ids of batches."""
    return [one.batch_id for one in batches]


def test_a_batch_has_one_class() -> None:
    """W6: the class of a batch is that of all its payloads; none or several are refused."""
    assert class_of((TASK, TASK)) == "turn_work"
    assert class_of((COMMAND,)) == "session_command"
    with pytest.raises(InvalidInputError):
        class_of(())
    with pytest.raises(InvalidInputError):
        class_of((TASK, COMMAND))


def test_the_ready_queue_is_pending_and_due_in_order() -> None:
    """W4: held and future batches are not in the ready queue; a batch is due from its time on, inclusive."""
    listed = [
        batch("c", 3),
        batch("due", 1, available_at_ms=10),
        batch("future", 2, available_at_ms=11),
        batch("held", 4, state="claimed"),
    ]
    assert ids(ready_queue(listed, 10)) == ["due", "c"]


def test_never_joins_nothing() -> None:
    """W4: batches join when policy and key agree and both are joinable; ``never`` joins not even ``never``."""
    head = batch("h")
    assert joins(head, batch("f"))
    assert joins(batch("h", merge_key=Group("g")), batch("f", merge_key=Group("g")))
    assert not joins(batch("h", merge_key=Group("g")), batch("f", merge_key=Group("other")))
    assert not joins(batch("h", merge_key=Never()), batch("f", merge_key=Never()))
    assert not joins(head, batch("f", slot_policy="exclusive"))
    assert not joins(batch("h", slot_policy="exclusive"), batch("f"))
    assert not joins(head, batch("f", delivery_policy="after_current_turn_commit"))
    assert not joins(head, batch("f", work_class="session_command"))


def test_the_head_decides() -> None:
    """W2, W3: a command leads commands, turn work leads turn work, and a late head admits nothing at a checkpoint."""
    lead = batch("c", work_class="session_command")
    late = batch("l", delivery_policy="after_current_turn_commit")
    assert leading_command([lead, batch("t")]) == lead
    assert leading_command([batch("t"), lead]) is None
    assert leading_command([]) is None
    assert leading_turn_work([lead, batch("t")], "idle", 5) == ()
    assert leading_turn_work([late, batch("t")], "active_turn_checkpoint", 5) == ()
    assert ids(leading_turn_work([late, batch("t")], "idle", 5)) == ["l"]
    assert leading_turn_work([], "idle", 5) == ()
    assert leading_turn_work([batch("t")], "idle", 0) == ()


def test_a_run_ends_at_the_limit_or_at_the_first_stranger() -> None:
    """W4: nothing is skipped to find one more that joins."""
    queue = [batch("a"), batch("b"), batch("x", merge_key=Group("g")), batch("c")]
    assert ids(leading_turn_work(queue, "idle", 1)) == ["a"]
    assert ids(leading_turn_work(queue, "idle", 9)) == ["a", "b"]


def test_exact_means_the_leading_batches_in_order() -> None:
    """W5: exactly what a claim of that many would take, or nothing."""
    queue = [batch("a"), batch("b"), batch("x", merge_key=Group("g"))]
    assert ids(exact_turn_work(queue, "idle", ["a", "b"])) == ["a", "b"]
    for wrong in (["b", "a"], ["b"], ["a", "b", "x"], ["a", "a"], []):
        assert exact_turn_work(queue, "idle", wrong) == ()


def test_reentry_puts_its_own_kind_in_front() -> None:
    """L2: what the earlier entry holds leads, if this call could have granted it; the rest is out of the way."""
    held = [
        batch("t"),
        batch("c", work_class="session_command"),
        batch("l", delivery_policy="after_current_turn_commit"),
    ]
    free = [batch("f")]
    assert ids(queue_after_reentry(held, free, "turn_work", "active_turn_checkpoint")) == ["t", "f"]
    assert ids(queue_after_reentry(held, free, "turn_work", "idle")) == ["t", "l", "f"]
    assert ids(queue_after_reentry(held, free, "session_command", "idle")) == ["c", "f"]
