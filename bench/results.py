"""What was measured so far, as it is kept in ``results.json``: each part with its own date, size, machine and versions.

A part that is measured again replaces what was known of it; the others stay, so that a page made of several runs can
say so.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

import apsw
import msgspec
import psycopg

from bench.findings import Found, Part, Size, Spread, Value


class Rounds(msgspec.Struct, frozen=True):
    """A ``Spread``, with its names."""

    median: float
    low: float
    high: float
    rounds: int


Kept: TypeAlias = "Rounds | float | int | str | None"


class KeptTable(msgspec.Struct, frozen=True):
    """A ``Table``, with its names."""

    title: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[Kept]]


class Machine(msgspec.Struct, frozen=True):
    """Where it was measured. ``file_system`` is the kind that the checkout lies on."""

    cores: int
    cpu: str
    memory_gib: float
    kernel: str
    file_system: str


class Measured(msgspec.Struct, frozen=True, omit_defaults=True):
    """One part. ``date`` is a day in UTC; ``error`` is set where the part failed, and then there are no figures.

    ``busy`` is the share of all cores that was taken by something else before it began.
    """

    title: str
    date: str
    size: Size
    seconds: float
    busy: float
    machine: Machine
    versions: Mapping[str, str]
    note: str = ""
    error: str | None = None
    settings: Mapping[str, str] = {}
    missing: Mapping[str, str] = {}
    figures: Mapping[str, Kept] = {}
    tables: Sequence[KeptTable] = ()


Results: TypeAlias = dict[str, Measured]
"""The parts by their keys, in the order of the page."""


def measured(part: Part, found: Found | str, size: Size, date: str, seconds: float, busy: float) -> Measured:
    """Keep what a part has found here and now; a text is the error with which it failed."""
    kept, error = (Found(), found) if isinstance(found, str) else (found, None)
    return Measured(
        part.title,
        date,
        size,
        round(seconds, 1),
        round(busy, 2),
        this_machine(),
        these_versions(),
        part.note.strip(),
        error,
        kept.settings,
        kept.missing,
        {name: _kept(value) for name, value in kept.figures.items()},
        [
            KeptTable(table.title, [*table.columns], {name: [*map(_kept, row)] for name, row in table.rows.items()})
            for table in kept.tables
        ],
    )


def _kept(value: Value) -> Kept:
    return Rounds(*value) if isinstance(value, Spread) else value


def merged(known: Results, key: str, part: Measured, order: Sequence[str]) -> Results:
    """Put a part in its place. What is not in the order (a part that is gone) is dropped."""
    together = {**known, key: part}
    return {each: together[each] for each in order if each in together}


def load(path: Path) -> Results:
    """Read what was measured before; nothing where there is no file. ``msgspec.DecodeError``: it has another form."""
    return msgspec.json.decode(path.read_bytes(), type=Results) if path.exists() else {}


def save(path: Path, results: Results) -> None:
    """Write it in one step: who breaks a run off finds the parts before."""
    draft = path.with_suffix(".new")
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n")
    draft.replace(path)


def busy_share(seconds: float) -> float:
    """Look for a while how much of all cores is taken, while nothing of ours runs."""
    idle, total = _clock_ticks()
    time.sleep(seconds)
    idle_then, total_then = _clock_ticks()
    return 1 - (idle_then - idle) / max(total_then - total, 1)


def _clock_ticks() -> tuple[int, int]:
    """What the cores have idled or waited for disks since the machine started, and all there was."""
    user, nice, system, idle, waiting, *others = map(
        int, Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:9]
    )
    return idle + waiting, user + nice + system + idle + waiting + sum(others)


def this_machine() -> Machine:
    """Describe the machine, as far as Linux tells."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    cores = len(os.sched_getaffinity(0))
    return Machine(cores, _cpu(), round(memory, 1), platform.release(), _file_system(Path(__file__).resolve()))


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _file_system(path: Path) -> str:
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    held_by = [(place, kind) for place, kind in mounts if path.is_relative_to(place)]
    return max(held_by, key=lambda mount: len(mount[0]))[1]


def these_versions() -> dict[str, str]:
    """Say what runs here. Servers and peers are told by the parts that have them."""
    return {
        "fastness": version("fastness"),
        "Python": platform.python_version(),
        "SQLite": apsw.sqlite_lib_version(),
        "apsw": apsw.apsw_version(),
        "msgspec": msgspec.__version__,
        "psycopg": f"{psycopg.__version__} (libpq {psycopg.pq.version()})",
    }
