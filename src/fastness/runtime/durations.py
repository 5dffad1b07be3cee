"""Spans of time as people give them: seconds, or a ``timedelta``."""

from __future__ import annotations

from datetime import timedelta

from fastness.errors import InvalidInputError

_LONGEST_S = 2.0**40


def seconds(what: str, value: float | timedelta) -> float:
    """Give a span in seconds. Raises ``InvalidInputError`` for one that is negative, endless or none at all (NaN)."""
    found = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found < _LONGEST_S:
        raise InvalidInputError(what, "must be a number of seconds or a timedelta, not negative")
    return found
