"""What a part of the benchmark finds: figures with their spread, tables, what settles durability, and who is missing.

A part is a function of a folder on the disk and a size. It interleaves its contestants round by round, warms up first,
and knows nothing of how it is written down or of what is wanted.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

Size: TypeAlias = Literal["short", "full"]


class Spread(NamedTuple):
    """The median of rounds, and the smallest and largest of them."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Sum up the values of the rounds."""
        return cls(statistics.median(values), min(values), max(values), len(values))

    @classmethod
    def of_ratios(cls, ours: Sequence[float], theirs: Sequence[float]) -> Spread:
        """Sum up the ratio of the two sides, round by round, since what disturbs a round disturbs both."""
        return cls.of([one / other for one, other in zip(ours, theirs, strict=True)])


Value: TypeAlias = "Spread | float | int | str | None"


class Table(NamedTuple):
    """Values by name, for people; None is printed as a dash."""

    title: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[Value]]


@dataclass
class Found:
    """What a part has found.

    ``figures`` are named with their unit at the end (``ours_4000_ms``, ``ratio_sqlite_session``). ``settings`` say what
    decides durability, as it was read back from the contestants. ``missing`` names who could not take part, and why.
    """

    figures: dict[str, Value] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


class Part(NamedTuple):
    """One scenario. ``note`` is what has to be known to read its figures. Only ``in_short`` ones are in a short run."""

    key: str
    title: str
    measure: Callable[[Path, Size], Found]
    note: str = ""
    in_short: bool = True
