"""Laws of names: the page for operators, the table in the code, and what is really told are the same."""

from __future__ import annotations

import re
from pathlib import Path

from opentelemetry.sdk.metrics.export import HistogramDataPoint

from fastness.model import TokenUsage
from fastness.telemetry import names
from tests.telemetry.test_otel import World, everything

PAGE = Path(__file__).resolve().parents[2] / "docs" / "observability.md"


def rows(width: int) -> dict[str, tuple[str, ...]]:
    """The table of the page with so many columns: the other cells, by the name in the first."""
    found = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == width:
            found[cells[0].strip("`")] = tuple(cells[1:])
    return found


def test_the_page_lists_every_metric_as_the_code_has_it() -> None:
    """Kind, unit, attributes and meaning, in the same order, and no other."""
    listed = [
        (name, kind, unit.strip("`"), tuple(re.findall("`([^`]+)`", attributes)), said)
        for name, (kind, unit, attributes, said) in rows(5).items()
    ]
    assert listed == [
        (each.name, each.kind, each.unit, each.attributes, each.description) for each in names.INSTRUMENTS
    ]


def test_the_page_lists_every_attribute_of_the_spans() -> None:
    """On which span each is."""
    listed = rows(4)
    assert {name for name, (turn, _, _) in listed.items() if turn == "yes"} == set(names.TURN_ATTRIBUTES)
    assert {name for name, (_, commit, _) in listed.items() if commit == "yes"} == set(names.COMMIT_ATTRIBUTES)
    assert {cell for turn, commit, _ in listed.values() for cell in (turn, commit)} == {"yes", "no"}


def test_what_is_told_is_what_the_table_says() -> None:
    """Every metric with all of its attributes, every attribute of the spans, and nothing beyond."""
    world = World("support")
    everything(world.telemetry)
    told = {name: {key for row in points for key in row[0]} for name, points in world.points().items()}
    assert told == {each.name: set(each.attributes) for each in names.INSTRUMENTS}
    spans = {"invoke_agent support": set[str](), "fastness.commit": set[str]()}
    for span in world.spans:
        spans[span.name] |= set(span.attributes or {})
    assert spans == {
        "invoke_agent support": set(names.TURN_ATTRIBUTES),
        "fastness.commit": set(names.COMMIT_ATTRIBUTES),
    }


def test_histograms_have_buckets_for_what_they_measure() -> None:
    """An exporter gets those of the table, also by default; the buckets of OpenTelemetry are for milliseconds."""
    world = World()
    everything(world.telemetry)
    found = {
        metric.name: (metric.unit, metric.description, tuple(point.explicit_bounds))
        for metric in world.measured()
        for point in metric.data.data_points
        if isinstance(point, HistogramDataPoint)
    }
    assert found == {
        each.name: (each.unit, each.description, each.boundaries)
        for each in names.INSTRUMENTS
        if each.kind == "histogram"
    }
    assert {0.01, 0.05} <= set(names.PICKUP_LATENCY.boundaries or ())


def test_every_counter_of_usage_has_a_metric() -> None:
    """A counter that a later version adds to ``TokenUsage`` is not forgotten here."""
    assert tuple(each.name.removeprefix("fastness.usage.") for each in names.USAGE) == TokenUsage.__struct_fields__


def test_no_metric_is_split_by_session_or_turn() -> None:
    """There are as many series as kinds of things, however many sessions there are."""
    split = {attribute for each in names.INSTRUMENTS for attribute in each.attributes}
    assert split & {names.CONVERSATION, names.TURN_ID, names.FENCING_TOKEN, names.HEAD_REVISION} == set()
