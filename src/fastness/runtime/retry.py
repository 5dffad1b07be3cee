"""How often and after what pause a turn that failed is tried again."""

from __future__ import annotations

import random
from datetime import timedelta

import msgspec

from fastness.decide import limits
from fastness.decide.dispatch import backoff_ms
from fastness.errors import InvalidInputError


class RetryPolicy(msgspec.Struct, frozen=True):
    """After ``max_attempts`` turns that failed or died, what they took is set aside, and the session goes on.

    Until then the session waits, longer each time: ``first_pause``, then twice that, up to ``longest_pause``, each
    shortened at random by up to a half.
    """

    max_attempts: int = 5
    first_pause: timedelta = timedelta(seconds=1)
    longest_pause: timedelta = timedelta(minutes=1)

    def __post_init__(self) -> None:
        limits.check_positive("max_attempts", self.max_attempts)
        limits.check_type("first_pause", self.first_pause, timedelta)
        limits.check_type("longest_pause", self.longest_pause, timedelta)
        if not timedelta(0) <= self.first_pause <= self.longest_pause:
            raise InvalidInputError("first_pause", "must not be negative, nor longer than longest_pause")

    def pause_ms(self, attempts: int) -> int:
        """Give the pause after so many attempts, in milliseconds."""
        millisecond = timedelta(milliseconds=1)
        return backoff_ms(
            attempts,
            base_ms=self.first_pause // millisecond,
            longest_ms=self.longest_pause // millisecond,
            jitter=random.random(),  # noqa: S311 - jitter
        )
