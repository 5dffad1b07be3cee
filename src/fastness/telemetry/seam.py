"""What the runtime tells about its work. Here it goes nowhere: this is what runs without OpenTelemetry.

It promises that its blocks let every error through as it is, that they end however they are left, and that telling
costs next to nothing while nobody listens. Whoever listens overrides what they want to hear.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from functools import cache
from types import TracebackType
from typing import Literal, Self

from fastness.errors import (
    ClaimExpiredError,
    HeadRevisionConflictError,
    InputSourceKeyConflictError,
    LeaseExpiredError,
    NodeIdCollisionError,
    TurnCommitConflictError,
)
from fastness.model import RuntimeCommitResult, TokenLedgerEntry
from fastness.telemetry.context import TurnFacts, turn_context

Claimed = Literal["input", "work"]
TakeoverReason = Literal["dead", "expired"]

_CONFLICTS = (
    HeadRevisionConflictError,
    TurnCommitConflictError,
    NodeIdCollisionError,
    InputSourceKeyConflictError,
)
_FENCED = (LeaseExpiredError, ClaimExpiredError)


def error_type(error: BaseException) -> str:
    """Name an error by its class. Its text may hold what a user said, and goes nowhere."""
    return type(error).__name__


def rejection_of(error: BaseException) -> Literal["conflict", "fencing"] | None:
    """Tell whether somebody else had written first, or the lane was no longer held; None for any other error."""
    if isinstance(error, _FENCED):
        return "fencing"
    return "conflict" if isinstance(error, _CONFLICTS) else None


class TurnSpan:
    """One turn, from its claim to its end: a context manager, entered once.

    Its block is the turn's code. How it ended is what was said last of ``settled``, ``interrupted`` and ``released``,
    else that it failed where an error leaves the block, and that it was released where none does.
    """

    def __init__(self, facts: TurnFacts) -> None:
        self._facts = facts
        self._here: AbstractContextManager[None] | None = None

    def __enter__(self) -> Self:
        self._here = self.current()
        self._here.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._here is not None:
            self._here.__exit__(None, None, None)
        self._end(error)

    def current(self) -> AbstractContextManager[None]:
        """Make it the current turn of a block that runs elsewhere, as in another thread, but no longer than this."""
        return turn_context(**self._facts._asdict())

    def claimed(self, count: int) -> None:
        """Say that so many more rows of input and work are answered by this turn."""

    def settled(self, result: RuntimeCommitResult, usage: Iterable[TokenLedgerEntry] = ()) -> None:
        """Say that its commit landed, and what that has added to the ledger."""

    def failed(self, error: BaseException) -> None:
        """Say why it failed, where the block is left by another error, such as a cancellation, or by none."""

    def interrupted(self) -> None:
        """Say that somebody has interrupted it. The cancellation that follows is then no failure."""

    def released(self) -> None:
        """Say that it was given up for another to run, as when a worker stops. That is no failure either."""

    def _end(self, error: BaseException | None) -> None:
        """Close the books."""


class CommitSpan:
    """One commit on its way: a context manager around one attempt."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(error)

    def landed(self, result: RuntimeCommitResult) -> None:
        """Say what the database answered."""

    def _end(self, error: BaseException | None) -> None:
        """Close the books."""


_SILENT_COMMIT = CommitSpan()


class Telemetry:
    """What the runtime tells to. This one listens to nothing; log records know their turn all the same."""

    def turn(self, session_id: str, turn_id: str, fencing_token: int, *, worker: str | None = None) -> TurnSpan:
        """Give the span of a turn that was granted. ``worker`` is who runs it, where a worker does."""
        return TurnSpan(TurnFacts(session_id, turn_id, fencing_token))

    def commit(self, session_id: str, turn_id: str, fencing_token: int) -> CommitSpan:
        """Give the span of one attempt to commit. An error that leaves it is also ``refused``."""
        return _SILENT_COMMIT

    def refused(self, error: BaseException, operation: str) -> None:
        """Count an error if it is a conflict or a fencing rejection. ``operation`` is a short word: renew, claim."""

    def taken_over(self, reason: TakeoverReason) -> None:
        """Count a lane that was taken from a holder who is dead, or whose lease has expired."""

    def picked_up(self, latency_s: float) -> None:
        """Measure how long a session was ready before its turn began. Less than zero, of clocks, counts as zero."""

    def aged(self, kind: Claimed, ages_s: Sequence[float]) -> None:
        """Measure how long the rows of a claim were in the queue. Less than zero counts as zero."""

    def quarantined(self, kind: Claimed, count: int = 1) -> None:
        """Count what was put aside."""

    def grouped(self, size: int) -> None:
        """Measure how many writes one COMMIT settled. Any thread may tell it."""


@cache
def default_telemetry() -> Telemetry:
    """Give what tells OpenTelemetry's global providers, or nobody where ``opentelemetry-api`` is not installed.

    It is one per process. Providers that the application sets later are told from then on.
    """
    try:
        from fastness.telemetry.otel import OtelTelemetry  # noqa: PLC0415 - its library is an extra
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("opentelemetry"):
            raise
        return Telemetry()
    return OtelTelemetry()
