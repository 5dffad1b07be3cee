"""The page for people, as a pure function of the results and the goals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from bench.goals import Goal
from bench.results import Kept, KeptTable, Machine, Measured, Results, Rounds

_HEAD = """# Benchmarks

This page is generated from [bench/results.json](../bench/results.json) by `python -m bench.run --page`; no figure in
its tables is typed. `make bench` measures again in ten minutes or so, `make bench-full` takes longer: more rounds,
larger sizes, every part. `python -m bench.run --list` names the parts, and `--only KEY,KEY` runs some of them. The
systems it is held against live in a virtual environment of their own (`bench/requirements-peers.txt`); one that cannot
be installed is named as missing. Why a goal is not reached is said by hand, in `bench/goals.py`.

The sides of a comparison take turns in one run on one machine, warm up first, and are durable, each as its part says.
Ratios are taken round by round; a figure is the median of the rounds, and in brackets, where there were several, the
smallest and the largest of them. A ratio that is wanted to be large divides our rate by the other's, one that is wanted
to be small our time (or our bytes) by the other's. Every part says how busy the machine was with something else when it
began: figures of a busy machine are worth little.
"""
_TOLD = 300
"""How many characters of an error are told: an error of another process ends with what went wrong."""
_REACHED = {True: "reached", False: "not reached", None: "not measured"}


def page(results: Results, goals: Sequence[Goal]) -> str:
    """Write everything down."""
    lines = [_HEAD, *_machines(results), *_goals(results, goals)]
    for key, part in results.items():
        lines += _part(key, part)
    return "\n".join(lines).rstrip("\n") + "\n"


def _machines(results: Results) -> Iterator[str]:
    """Where and when: one row for each run that differs from the others in anything."""
    runs: dict[str, list[str]] = {}
    for key, part in results.items():
        told = (
            part.date,
            part.size,
            _described(part.machine),
            ", ".join(f"{name} {version}" for name, version in part.versions.items()),
        )
        runs.setdefault(_row(told), []).append(f"`{key}`")
    yield "## Machine and versions"
    yield ""
    yield _row(("date", "size", "machine", "versions", "parts"))
    yield _row(["---"] * 5)
    yield from (f"{told} {' '.join(keys)} |" for told, keys in runs.items())
    yield ""


def _described(machine: Machine) -> str:
    cores = f"{machine.cores} cores, {machine.cpu}, {machine.memory_gib:g} GiB"
    return f"{cores}, Linux {machine.kernel}, {machine.file_system}"


def _goals(results: Results, goals: Sequence[Goal]) -> Iterator[str]:
    yield "## Goals"
    yield ""
    yield _row(("what", "wanted", "measured", ""))
    yield _row(["---"] * 4)
    for goal in goals:
        measured = goal.reached(results)
        value = "" if measured is None else _text(goal.value(results)) + (f" {goal.unit}" if goal.unit else "")
        yield _row((goal.text, goal.wanted, value, _REACHED[measured]))
    yield ""
    notes: dict[str, list[str]] = {}
    for goal in goals:
        if goal.note and goal.reached(results) is False:
            notes.setdefault(goal.note, []).append(goal.text)
    if notes:
        yield "What is not reached, why, and what would be needed:"
        yield ""
        yield from (f"* **{'; '.join(texts)}.** {note}" for note, texts in notes.items())
        yield ""


def _part(key: str, part: Measured) -> Iterator[str]:
    yield f"## {part.title}"
    yield ""
    busy = f"{part.busy:.0%} of the cores were busy with something else when it began"
    yield f"Part `{key}`, {part.date}, {part.size}, {part.seconds:.0f} s; {busy}."
    yield ""
    if part.note:
        yield part.note
        yield ""
    if part.error is not None:
        error = " ".join(part.error.split()).replace("`", "'")
        yield f"**Failed:** `{error if len(error) <= _TOLD else '… ' + error[-_TOLD:]}`"
        yield ""
    yield from _named("Settings", part.settings)
    yield from _named("Missing", part.missing)
    for table in part.tables:
        yield from _table(table)
    if part.figures:
        yield from _table(KeptTable("", ("value",), {name: [value] for name, value in part.figures.items()}))


def _named(title: str, texts: Mapping[str, str]) -> Iterator[str]:
    if texts:
        yield f"{title}:"
        yield ""
        yield from (f"* {name}: {text}" for name, text in texts.items())
        yield ""


def _table(table: KeptTable) -> Iterator[str]:
    if table.title:
        yield f"**{table.title}**"
        yield ""
    yield _row(("", *table.columns))
    yield _row(["---"] * (len(table.columns) + 1))
    yield from (_row((name, *map(_text, row))) for name, row in table.rows.items())
    yield ""


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _text(value: Kept) -> str:
    if value is None:
        return "-"
    if isinstance(value, Rounds):
        spread = f" ({_number(value.low)} to {_number(value.high)})" if value.rounds > 1 else ""
        return _number(value.median) + spread
    return value if isinstance(value, str) else _number(value)


def _number(value: float) -> str:
    """Three digits that count, and never fewer than the whole part has."""
    if isinstance(value, int) or value == 0:
        return f"{value:,}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"
