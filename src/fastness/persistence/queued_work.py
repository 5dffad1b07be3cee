"""The pure claim logic of the work queue: what would be claimed next, and why. A face; the rules live in ``decide``."""

from fastness.decide.queued_work import (
    QueuedWorkFacts,
    admits,
    class_of,
    exact_turn_work,
    joins,
    leading_command,
    leading_turn_work,
    ready_queue,
)

__all__ = [
    "QueuedWorkFacts",
    "admits",
    "class_of",
    "exact_turn_work",
    "joins",
    "leading_command",
    "leading_turn_work",
    "ready_queue",
]
