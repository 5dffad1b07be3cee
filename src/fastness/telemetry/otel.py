"""What the runtime tells, as spans and metrics of OpenTelemetry. It needs the extra ``fastness[otel]``.

It promises what the seam does, and that a span is ended, with the class of its error and never with its text. It uses
the API alone: providers, exporters and sampling are the application's.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import Self

from opentelemetry import context, metrics, trace
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
from opentelemetry.trace import SpanKind, Status, StatusCode, TracerProvider
from opentelemetry.util.types import AttributeValue

from fastness.model import RuntimeCommitResult, TokenLedgerEntry
from fastness.telemetry import names
from fastness.telemetry.context import TurnFacts, enter, leave
from fastness.telemetry.names import Instrument
from fastness.telemetry.seam import (
    Claimed,
    CommitSpan,
    TakeoverReason,
    Telemetry,
    TurnSpan,
    error_type,
    rejection_of,
)

_SCOPE = "fastness"

Attributes = dict[str, AttributeValue]


class OtelTelemetry(Telemetry):
    """Tells OpenTelemetry: the providers given, by default the global ones. One is enough for a process.

    ``agent_name`` is what spans and metrics call the agent whose turns these are. ``clock`` gives seconds from any
    moment on.
    """

    def __init__(
        self,
        *,
        agent_name: str | None = None,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        release = version("fastness")
        self.clock = clock
        self.agent: Attributes = {} if agent_name is None else {names.AGENT_NAME: agent_name}
        self.span_name = names.TURN_SPAN if agent_name is None else f"{names.TURN_SPAN} {agent_name}"
        self.tracer = trace.get_tracer(_SCOPE, release, tracer_provider)
        self._instruments = _Instruments(metrics.get_meter(_SCOPE, release, meter_provider), self._observe_running)
        self._running: Tally[str | None] = Tally()
        self._running_lock = threading.Lock()  # an exporter asks from a thread of its own

    def turn(self, session_id: str, turn_id: str, fencing_token: int, *, worker: str | None = None) -> TurnSpan:
        """Start the span of a turn; it is the current one in its block."""
        return _OtelTurn(self, TurnFacts(session_id, turn_id, fencing_token), worker)

    def commit(self, session_id: str, turn_id: str, fencing_token: int) -> CommitSpan:
        """Start the span of an attempt, in that of the turn."""
        return _OtelCommit(self, TurnFacts(session_id, turn_id, fencing_token))

    def refused(self, error: BaseException, operation: str) -> None:
        """Count it as a conflict, as a fencing rejection, or not at all."""
        kind = rejection_of(error)
        if kind is not None:
            counter = names.CONFLICTS if kind == "conflict" else names.FENCING_REJECTIONS
            self.add(counter, 1, {names.ERROR_TYPE: error_type(error), names.REFUSED: operation})

    def taken_over(self, reason: TakeoverReason) -> None:
        """Count it by its reason."""
        self.add(names.TAKEOVERS, 1, {names.REASON: reason})

    def picked_up(self, latency_s: float) -> None:
        """Record it."""
        self.record(names.PICKUP_LATENCY, max(0.0, latency_s), {})

    def aged(self, kind: Claimed, ages_s: Sequence[float]) -> None:
        """Record each."""
        for age_s in ages_s:
            self.record(names.QUEUE_AGE, max(0.0, age_s), {names.CLAIMED: kind})

    def quarantined(self, kind: Claimed, count: int = 1) -> None:
        """Count them by their kind."""
        self.add(names.QUARANTINED, count, {names.CLAIMED: kind})

    def grouped(self, size: int) -> None:
        """Record it."""
        self.record(names.GROUP_SIZE, size, {})

    # For the spans.

    def add(self, instrument: Instrument, amount: int, attributes: Attributes) -> None:
        """Add to a counter."""
        self._instruments.counters[instrument].add(amount, attributes)

    def record(self, instrument: Instrument, value: float, attributes: Attributes) -> None:
        """Record a value of a histogram."""
        self._instruments.histograms[instrument].record(value, attributes)

    def runs(self, worker: str | None, change: int) -> None:
        """Count a turn in or out."""
        with self._running_lock:
            self._running[worker] += change

    def _observe_running(self, _options: CallbackOptions) -> Iterable[Observation]:
        with self._running_lock:
            running = list(self._running.items())
        return [Observation(count, {} if worker is None else {names.WORKER: worker}) for worker, count in running]


class _Instruments:
    """What the API made of the table of names."""

    def __init__(self, meter: metrics.Meter, running: Callable[[CallbackOptions], Iterable[Observation]]) -> None:
        self.counters: dict[Instrument, metrics.Counter] = {}
        self.histograms: dict[Instrument, metrics.Histogram] = {}
        for each in names.INSTRUMENTS:
            if each.kind == "counter":
                self.counters[each] = meter.create_counter(each.name, each.unit, each.description)
            elif each.kind == "histogram":
                self.histograms[each] = meter.create_histogram(
                    each.name, each.unit, each.description, explicit_bucket_boundaries_advisory=each.boundaries
                )
            else:
                meter.create_observable_gauge(each.name, [running], each.unit, each.description)


class _OtelTurn(TurnSpan):
    """A turn as a span, with what is counted once it has ended."""

    def __init__(self, telemetry: OtelTelemetry, facts: TurnFacts, worker: str | None) -> None:
        super().__init__(facts)
        self._telemetry = telemetry
        self._worker = worker
        self._span: trace.Span = trace.INVALID_SPAN
        self._since = 0.0
        self._claim_count = 0
        self._outcome: str | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        telemetry = self._telemetry
        telemetry.runs(self._worker, 1)
        self._since = telemetry.clock()
        attributes = {names.OPERATION: names.INVOKE_AGENT, **telemetry.agent, **_identity(self._facts)}
        if self._worker is not None:
            attributes[names.WORKER] = self._worker
        self._span = telemetry.tracer.start_span(telemetry.span_name, kind=SpanKind.INTERNAL, attributes=attributes)
        super().__enter__()
        return self

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make it the current span, too."""
        ours = enter(self._facts)
        theirs = context.attach(trace.set_span_in_context(self._span))
        try:
            yield
        finally:
            # In another task than it began in there is nothing to take back, and OpenTelemetry would log an error.
            if leave(ours):
                context.detach(theirs)

    def claimed(self, count: int) -> None:
        """Keep the sum."""
        self._claim_count += count

    def settled(self, result: RuntimeCommitResult, usage: Iterable[TokenLedgerEntry] = ()) -> None:
        """Keep the revision, and count the usage, by model and source."""
        self._outcome = "settled"
        self._span.set_attribute(names.HEAD_REVISION, result.head_revision)
        entries = tuple(usage)
        if not entries:
            return
        for entry in entries:
            self._charge(entry)
        models = {entry.model for entry in entries}
        if len(models) == 1:
            self._span.set_attribute(names.MODEL, models.pop())
        self._span.set_attribute(names.INPUT_TOKENS, sum(entry.usage.input_tokens for entry in entries))
        self._span.set_attribute(names.OUTPUT_TOKENS, sum(entry.usage.output_tokens for entry in entries))

    def failed(self, error: BaseException) -> None:
        """Keep the error, in the place of the one that leaves the block."""
        self._error = error
        self._outcome = None

    def interrupted(self) -> None:
        """Count it, also where the turn settles all the same."""
        self._outcome = "interrupted"
        self._telemetry.add(names.INTERRUPTS, 1, {})

    def released(self) -> None:
        """Keep that."""
        self._outcome = "released"

    def _charge(self, entry: TokenLedgerEntry) -> None:
        attributes: Attributes = {names.MODEL: entry.model, names.SOURCE: entry.source}
        for instrument in names.USAGE:
            tokens: int = getattr(entry.usage, instrument.name.rpartition(".")[2])
            if tokens:
                self._telemetry.add(instrument, tokens, attributes)

    def _end(self, error: BaseException | None) -> None:
        telemetry, span = self._telemetry, self._span
        telemetry.runs(self._worker, -1)
        cause = self._error or error
        outcome = self._outcome or ("released" if cause is None else "failed")
        said: Attributes = {names.OUTCOME: outcome}
        if outcome == "failed" and cause is not None:
            said |= _failure(span, cause)
            telemetry.add(names.TURNS_FAILED, 1, {names.ERROR_TYPE: error_type(cause)})
        span.set_attribute(names.INPUT_COUNT, self._claim_count)
        span.set_attribute(names.OUTCOME, outcome)
        span.end()
        attributes = {names.OPERATION: names.INVOKE_AGENT, **telemetry.agent, **said}
        telemetry.record(names.TURN_DURATION, telemetry.clock() - self._since, attributes)


class _OtelCommit(CommitSpan):
    """An attempt to commit as a span. It is not made the current one: the turn's own code does not run in it."""

    def __init__(self, telemetry: OtelTelemetry, facts: TurnFacts) -> None:
        self._telemetry = telemetry
        self._facts = facts
        self._span: trace.Span = trace.INVALID_SPAN
        self._since = 0.0

    def __enter__(self) -> Self:
        self._since = self._telemetry.clock()
        self._span = self._telemetry.tracer.start_span(names.COMMIT_SPAN, attributes=_identity(self._facts))
        return self

    def landed(self, result: RuntimeCommitResult) -> None:
        """Count it, and keep its revision."""
        self._span.set_attribute(names.HEAD_REVISION, result.head_revision)
        self._span.set_attribute(names.REPLAYED, result.replayed)
        self._telemetry.add(names.COMMITS, 1, {names.REPLAYED: result.replayed})

    def _end(self, error: BaseException | None) -> None:
        said: Attributes = {}
        if error is not None:
            said = _failure(self._span, error)
            self._telemetry.refused(error, "commit")
        self._span.end()
        self._telemetry.record(names.COMMIT_DURATION, self._telemetry.clock() - self._since, said)


def _identity(facts: TurnFacts) -> Attributes:
    """Say which turn of which session a span belongs to."""
    named = {
        names.CONVERSATION: facts.session_id,
        names.TURN_ID: facts.turn_id,
        names.FENCING_TOKEN: facts.fencing_token,
    }
    return {name: value for name, value in named.items() if value is not None}


def _failure(span: trace.Span, error: BaseException) -> Attributes:
    """Mark a span as failed, by the class of the error alone, and give that as attributes of a metric."""
    span.set_attribute(names.ERROR_TYPE, error_type(error))
    span.set_status(Status(StatusCode.ERROR))
    return {names.ERROR_TYPE: error_type(error)}
