"""Laws of spans and metrics: how a turn ends is what they say, and what was said in it they do not."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Mapping

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, Metric, NumberDataPoint
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from fastness.errors import (
    BackendError,
    ContendedError,
    HeadRevisionConflictError,
    LeaseExpiredError,
    StoreError,
    TurnCommitConflictError,
    TurnInputClaimExpiredError,
)
from fastness.model import RuntimeCommitResult, TokenLedgerEntry, TokenUsage
from fastness.telemetry import Telemetry
from fastness.telemetry.otel import OtelTelemetry

QUOTED = "what the user said"


class World:
    """Telemetry with a clock that is moved by hand, and what came out of it."""

    def __init__(self, agent_name: str | None = None) -> None:
        self.now = 100.0
        self._spans = InMemorySpanExporter()
        self._metrics = InMemoryMetricReader()
        tracers = TracerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self.tracer = tracers.get_tracer("shop")
        self.telemetry = OtelTelemetry(
            agent_name=agent_name,
            tracer_provider=tracers,
            meter_provider=MeterProvider([self._metrics]),
            clock=lambda: self.now,
        )

    @property
    def spans(self) -> list[ReadableSpan]:
        """The spans that have ended, in that order."""
        return list(self._spans.get_finished_spans())

    @property
    def span(self) -> ReadableSpan:
        """The one span."""
        (span,) = self.spans
        return span

    def points(self) -> dict[str, list[tuple[Mapping[str, object], float, int]]]:
        """What was measured, by name: attributes, value or sum, and count."""
        found: dict[str, list[tuple[Mapping[str, object], float, int]]] = {}
        for metric in self.measured():
            for point in metric.data.data_points:
                if isinstance(point, HistogramDataPoint):
                    row = (dict(point.attributes or {}), point.sum, point.count)
                else:
                    assert isinstance(point, NumberDataPoint)
                    row = (dict(point.attributes or {}), point.value, 1)
                found.setdefault(metric.name, []).append(row)
        return found

    def measured(self) -> list[Metric]:
        """What was measured, as an exporter gets it."""
        data = self._metrics.get_metrics_data()
        scopes = [scope for each in ([] if data is None else data.resource_metrics) for scope in each.scope_metrics]
        return [metric for scope in scopes for metric in scope.metrics]


@pytest.fixture
def world() -> World:
    """Telemetry of an agent without a name."""
    return World()


def result(revision: int, *, replayed: bool = False) -> RuntimeCommitResult:
    """What a database answers to a commit."""
    return RuntimeCommitResult(revision, None, None, "n1", replayed)


async def test_a_turn_that_settles_is_one_span_with_what_it_came_to(world: World) -> None:
    """Who and which turn, what it has claimed and committed, and how long it took."""
    usage = [TokenLedgerEntry("turn", "m", TokenUsage(5, 7)), TokenLedgerEntry("summary", "m", TokenUsage(1, 2))]
    with world.telemetry.turn("s", "turn/3", 3, worker="w") as turn:
        turn.claimed(2)
        world.now += 1.5
        turn.claimed(1)
        turn.settled(result(8), usage)
    assert (world.span.name, world.span.kind, world.span.status.status_code) == (
        "invoke_agent",
        SpanKind.INTERNAL,
        StatusCode.UNSET,
    )
    assert world.span.attributes == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.conversation.id": "s",
        "gen_ai.request.model": "m",
        "gen_ai.usage.input_tokens": 6,
        "gen_ai.usage.output_tokens": 9,
        "fastness.turn.id": "turn/3",
        "fastness.fencing_token": 3,
        "fastness.worker.id": "w",
        "fastness.input.count": 3,
        "fastness.head.revision": 8,
        "fastness.turn.outcome": "settled",
    }
    assert world.points()["gen_ai.invoke_agent.duration"] == [
        ({"gen_ai.operation.name": "invoke_agent", "fastness.turn.outcome": "settled"}, 1.5, 1)
    ]


def test_an_agent_with_a_name_gives_it_to_its_spans_and_durations() -> None:
    """As the conventions have it."""
    world = World("support")
    with world.telemetry.turn("s", "turn/3", 3):
        pass
    assert world.span.name == "invoke_agent support"
    assert (world.span.attributes or {})["gen_ai.agent.name"] == "support"
    ((attributes, _, _),) = world.points()["gen_ai.invoke_agent.duration"]
    assert attributes["gen_ai.agent.name"] == "support"


@pytest.mark.parametrize("error", [KeyError(QUOTED), BackendError(QUOTED), asyncio.CancelledError(QUOTED)])
def test_a_turn_that_fails_ends_its_span_with_the_type_of_its_error(world: World, error: BaseException) -> None:
    """The error comes through as it is, and its text is told to nobody."""
    kind = type(error).__name__
    with pytest.raises(type(error)) as raised, world.telemetry.turn("s", "turn/3", 3):
        raise error
    assert raised.value is error
    assert (world.span.status.status_code, world.span.status.description) == (StatusCode.ERROR, None)
    assert (world.span.attributes or {})["error.type"] == kind
    assert (world.span.attributes or {})["fastness.turn.outcome"] == "failed"
    points = world.points()
    assert points["fastness.turns.failed"] == [({"error.type": kind}, 1, 1)]
    assert points["gen_ai.invoke_agent.duration"][0][0]["error.type"] == kind
    assert QUOTED not in world.span.to_json() + json.dumps(points)


async def test_a_task_that_is_cancelled_ends_its_span(world: World) -> None:
    """The cancellation goes on."""

    async def body(begun: asyncio.Event) -> None:
        with world.telemetry.turn("s", "turn/3", 3):
            begun.set()
            await asyncio.Event().wait()

    begun = asyncio.Event()
    task = asyncio.create_task(body(begun))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (world.span.attributes or {})["error.type"] == "CancelledError"


def test_a_turn_that_says_why_it_failed_fails_for_that(world: World) -> None:
    """A lane that was lost cancels the block: the cancellation is not the reason."""
    with contextlib.suppress(asyncio.CancelledError), world.telemetry.turn("s", "turn/3", 3) as turn:
        turn.failed(LeaseExpiredError("s", 3, "superseded", "bob"))
        raise asyncio.CancelledError
    assert (world.span.attributes or {})["error.type"] == "LeaseExpiredError"
    assert world.points()["fastness.turns.failed"] == [({"error.type": "LeaseExpiredError"}, 1, 1)]


@pytest.mark.parametrize(
    ("say", "outcome", "interrupts"),
    [
        (lambda turn: turn.interrupted(), "interrupted", [({}, 1, 1)]),
        (lambda turn: turn.released(), "released", None),
    ],
    ids=["interrupted", "released"],
)
def test_a_turn_that_was_stopped_on_purpose_has_not_failed(
    world: World, say: Callable[[object], None], outcome: str, interrupts: object
) -> None:
    """The cancellation that stops it is no error of the span."""
    with contextlib.suppress(asyncio.CancelledError), world.telemetry.turn("s", "turn/3", 3) as turn:
        say(turn)
        raise asyncio.CancelledError
    assert world.span.status.status_code is StatusCode.UNSET
    assert "error.type" not in (world.span.attributes or {})
    assert (world.span.attributes or {})["fastness.turn.outcome"] == outcome
    assert world.points().get("fastness.interrupts") == interrupts
    assert "fastness.turns.failed" not in world.points()


def test_a_turn_that_has_settled_has_not_failed_whatever_follows(world: World) -> None:
    """Its commit has landed, and what comes after is another matter."""
    with contextlib.suppress(KeyError), world.telemetry.turn("s", "turn/3", 3) as turn:
        turn.settled(result(8))
        raise KeyError
    assert (world.span.attributes or {})["fastness.turn.outcome"] == "settled"
    assert "fastness.turns.failed" not in world.points()


@pytest.mark.parametrize(("first", "last"), [("interrupted", "settled"), ("released", "failed"), ("settled", "failed")])
def test_how_a_turn_ended_is_what_was_said_last(world: World, first: str, last: str) -> None:
    """An interrupted turn may settle what it has, and one that is given up may fail at that."""
    with world.telemetry.turn("s", "turn/3", 3) as turn:
        say: dict[str, Callable[[], None]] = {
            "interrupted": turn.interrupted,
            "released": turn.released,
            "settled": lambda: turn.settled(result(8)),
            "failed": lambda: turn.failed(KeyError()),
        }
        say[first]()
        say[last]()
    assert (world.span.attributes or {})["fastness.turn.outcome"] == last
    assert ("fastness.interrupts" in world.points()) == (first == "interrupted")
    assert ("fastness.turns.failed" in world.points()) == (last == "failed")


async def test_spans_of_a_turn_are_found_in_it_and_in_no_other(world: World) -> None:
    """Turns that run beside each other have each their own trace, also in threads."""
    both = asyncio.Barrier(2)

    async def turn(session_id: str, token: int) -> None:
        with world.telemetry.turn(session_id, f"turn/{token}", token):
            await both.wait()
            with world.tracer.start_as_current_span(f"tool of {session_id}"):
                await both.wait()
            await asyncio.to_thread(lambda: world.tracer.start_span(f"thread of {session_id}").end())
            with world.telemetry.commit(session_id, f"turn/{token}", token):
                await both.wait()

    await asyncio.gather(turn("a", 1), turn("b", 2))
    assert trace.get_current_span() is trace.INVALID_SPAN
    turns = {(span.attributes or {})["gen_ai.conversation.id"]: span for span in world.spans if span.parent is None}
    inside = sorted(
        (span.name, next(name for name, turn in turns.items() if span.parent.span_id == turn.context.span_id))
        for span in world.spans
        if span.parent is not None
    )
    assert inside == [
        ("fastness.commit", "a"),
        ("fastness.commit", "b"),
        ("thread of a", "a"),
        ("thread of b", "b"),
        ("tool of a", "a"),
        ("tool of b", "b"),
    ]


def test_a_turn_that_moves_to_another_context_ends_its_span_without_a_complaint(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """As where a synchronous face enters it in one task and leaves it in another."""
    turn = world.telemetry.turn("s", "turn/3", 3)
    contextvars.copy_context().run(turn.__enter__)
    with caplog.at_level(logging.DEBUG):
        contextvars.copy_context().run(turn.__exit__, None, None, None)
    assert caplog.records == []
    assert (world.span.attributes or {})["fastness.turn.outcome"] == "released"


def test_a_commit_that_lands_is_counted_and_timed(world: World) -> None:
    """One that was there already is told apart."""
    for replayed in (False, True):
        with world.telemetry.commit("s", "turn/3", 3) as commit:
            world.now += 0.25
            commit.landed(result(8, replayed=replayed))
    assert [span.name for span in world.spans] == ["fastness.commit", "fastness.commit"]
    assert world.spans[1].attributes == {
        "gen_ai.conversation.id": "s",
        "fastness.turn.id": "turn/3",
        "fastness.fencing_token": 3,
        "fastness.head.revision": 8,
        "fastness.commit.replayed": True,
    }
    points = world.points()
    assert points["fastness.commits"] == [
        ({"fastness.commit.replayed": False}, 1, 1),
        ({"fastness.commit.replayed": True}, 1, 1),
    ]
    assert points["fastness.commit.duration"] == [({}, 0.5, 2)]


@pytest.mark.parametrize(
    ("error", "counter"),
    [
        (HeadRevisionConflictError("s", 1, 2), "fastness.conflicts"),
        (TurnCommitConflictError("s", "turn/3", "a", "b"), "fastness.conflicts"),
        (LeaseExpiredError("s", 3, "superseded"), "fastness.fencing.rejections"),
        (TurnInputClaimExpiredError("s", "c", "is gone"), "fastness.fencing.rejections"),
        (ContendedError("the lane is held", 5), None),
        (KeyError(QUOTED), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_what_is_refused_is_counted_by_whose_fault_it_is(world: World, error: Exception, counter: str | None) -> None:
    """As a conflict, as a fencing rejection, or as neither, in a commit and elsewhere; a commit's span has its type."""
    kind = type(error).__name__
    with pytest.raises(type(error)), world.telemetry.commit("s", "turn/3", 3):
        raise error
    world.telemetry.refused(error, "renew")
    points = world.points()
    counters = {"fastness.conflicts", "fastness.fencing.rejections"}
    assert counters & points.keys() == ({counter} if counter else set())
    if counter:
        assert points[counter] == [
            ({"error.type": kind, "fastness.operation": "commit"}, 1, 1),
            ({"error.type": kind, "fastness.operation": "renew"}, 1, 1),
        ]
    assert "fastness.commits" not in points
    assert points["fastness.commit.duration"] == [({"error.type": kind}, 0.0, 1)]
    assert world.span.status.status_code is StatusCode.ERROR
    assert (world.span.attributes or {})["error.type"] == kind
    assert not isinstance(error, StoreError) or str(error) not in world.span.to_json()


def test_usage_is_counted_by_model_and_source(world: World) -> None:
    """All five counters, and none of those that are zero."""
    with world.telemetry.turn("s", "turn/3", 3) as turn:
        turn.settled(
            result(1),
            [
                TokenLedgerEntry("turn", "big", TokenUsage(1, 2, 3, 4, 5)),
                TokenLedgerEntry("summary", "small", TokenUsage(6)),
            ],
        )
    big = {"gen_ai.request.model": "big", "fastness.usage.source": "turn"}
    small = {"gen_ai.request.model": "small", "fastness.usage.source": "summary"}
    assert {name: rows for name, rows in world.points().items() if name.startswith("fastness.usage.")} == {
        "fastness.usage.input_tokens": [(big, 1, 1), (small, 6, 1)],
        "fastness.usage.output_tokens": [(big, 2, 1)],
        "fastness.usage.cache_read_tokens": [(big, 3, 1)],
        "fastness.usage.cache_write_tokens": [(big, 4, 1)],
        "fastness.usage.reasoning_output_tokens": [(big, 5, 1)],
    }
    assert "gen_ai.request.model" not in (world.span.attributes or {})


def test_turns_that_run_are_observed_per_worker(world: World) -> None:
    """The gauge goes up with each and comes back to zero, however they end."""
    telemetry = world.telemetry
    seen = []
    with telemetry.turn("a", "turn/1", 1, worker="w"), telemetry.turn("b", "turn/1", 1, worker="w"):
        with contextlib.suppress(KeyError), telemetry.turn("c", "turn/1", 1):
            seen.append(world.points()["fastness.turns.running"])
            raise KeyError
        seen.append(world.points()["fastness.turns.running"])
    seen.append(world.points()["fastness.turns.running"])
    worker: dict[str, str] = {"fastness.worker.id": "w"}
    assert seen == [
        [(worker, 2, 1), ({}, 1, 1)],
        [(worker, 2, 1), ({}, 0, 1)],
        [(worker, 0, 1), ({}, 0, 1)],
    ]


def test_the_queue_is_measured_and_clocks_that_disagree_give_no_negative_times(world: World) -> None:
    """Each row of a claim by itself; a group and a takeover as they are told."""
    telemetry = world.telemetry
    telemetry.picked_up(0.5)
    telemetry.picked_up(-3.0)
    telemetry.aged("input", [1.0, 2.0, -1.0])
    telemetry.aged("work", [])
    telemetry.quarantined("work", 2)
    telemetry.taken_over("dead")
    telemetry.grouped(17)
    assert world.points() == {
        "fastness.pickup.latency": [({}, 0.5, 2)],
        "fastness.queue.age": [({"fastness.claim.kind": "input"}, 3.0, 3)],
        "fastness.quarantined": [({"fastness.claim.kind": "work"}, 2, 1)],
        "fastness.takeovers": [({"fastness.takeover.reason": "dead"}, 1, 1)],
        "fastness.group.size": [({}, 17, 1)],
    }


def everything(telemetry: Telemetry) -> None:
    """Tell all that can be told."""
    usage = [TokenLedgerEntry("turn", "m", TokenUsage(1, 2, 3, 4, 5))]
    with telemetry.turn("s", "turn/1", 1, worker="w") as turn:
        turn.claimed(1)
        with turn.current(), telemetry.commit("s", "turn/1", 1) as commit:
            commit.landed(result(1))
        turn.settled(result(1), usage)
    for error in (LeaseExpiredError("s", 1, "expired"), HeadRevisionConflictError("s", 1, 2)):
        with pytest.raises(StoreError), telemetry.turn("s", "turn/1", 1), telemetry.commit("s", "turn/1", 1):
            raise error
    with telemetry.turn("s", "turn/1", 1) as turn:
        turn.interrupted()
    with telemetry.turn("s", "turn/1", 1) as turn:
        turn.failed(KeyError())
    with telemetry.turn("s", "turn/1", 1) as turn:
        turn.released()
    telemetry.picked_up(0.5)
    telemetry.aged("input", [1.0])
    telemetry.quarantined("work")
    telemetry.taken_over("expired")
    telemetry.grouped(17)


def test_nobody_has_to_listen() -> None:
    """All that can be told is told to the telemetry that does nothing, and errors come through it."""
    everything(Telemetry())


WITHOUT = """
import sys
sys.modules["opentelemetry"] = None
import fastness.telemetry as t
telemetry = t.default_telemetry()
assert type(telemetry) is t.Telemetry, telemetry
with telemetry.turn("s", "turn/1", 1) as turn, telemetry.commit("s", "turn/1", 1):
    turn.claimed(1)
try:
    import fastness.telemetry.otel
except ModuleNotFoundError:
    print("silent")
"""


def test_without_opentelemetry_all_of_it_is_nothing() -> None:
    """The package imports and works where the library is not there."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", WITHOUT], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("silent\n", "", 0)


BROKEN = """
import sys
sys.modules["fastness.telemetry.names"] = None
from fastness.telemetry import default_telemetry
try:
    default_telemetry()
except ModuleNotFoundError as error:
    print(error.name)
"""


def test_a_module_of_its_own_that_is_missing_is_not_hidden() -> None:
    """Only the library may be absent."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", BROKEN], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("fastness.telemetry.names\n", "", 0)


LATER = """
from fastness.telemetry import default_telemetry
telemetry = default_telemetry()
assert default_telemetry() is telemetry
with telemetry.turn("s", "turn/1", 1):
    pass
telemetry.grouped(1)

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

spans, reader, tracers = InMemorySpanExporter(), InMemoryMetricReader(), TracerProvider()
tracers.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(tracers)
metrics.set_meter_provider(MeterProvider([reader]))
with telemetry.turn("s", "turn/2", 2):
    pass
telemetry.grouped(2)
print([span.attributes["fastness.turn.id"] for span in spans.get_finished_spans()])
(scope,) = reader.get_metrics_data().resource_metrics[0].scope_metrics
print(sorted(metric.name for metric in scope.metrics))
"""


def test_providers_that_are_set_later_are_told_from_then_on() -> None:
    """The default tells the global ones, of whatever time; before, it tells nobody."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", LATER], capture_output=True, text=True, check=False)
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.splitlines() == [
        "['turn/2']",
        "['fastness.group.size', 'fastness.turns.running', 'gen_ai.invoke_agent.duration']",
    ]
