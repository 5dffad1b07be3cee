"""Runs the benchmark: ``python -m bench.run [--full] [--only KEY[,KEY]] [--list] [--page]``.

Each part runs in a fresh interpreter and in a folder of its own on the disk of the checkout. What it found is put into
``bench/results.json`` when it is done, and ``docs/benchmarks.md`` is made of that file. A part that fails is on the
page with its error, and the exit status is 1; the others go on. No figure makes anything fail.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib
import importlib.util
import multiprocessing
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from bench.findings import Found, Part, Size
from bench.goals import GOALS
from bench.page import page
from bench.results import busy_share, load, measured, merged, save

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results.json"
PAGE = ROOT / "docs" / "benchmarks.md"

LOOK_S = 1.0
"""How long is looked, before each part, whether the machine does something else."""

MODULES = (
    "commits",
    "fleet",
    "fleet_sessions",
    "peers.part",
    "loads",
    "fleet_loads",
    "dispatch.part",
    "dispatch.history",
    "maintenance",
    "attachments",
    "sweeps",
    "startup",
    "conversations",
)
"""Whoever has parts, in the order of the page."""


def registry() -> dict[str, Part]:
    """Give all parts by their keys. ``ValueError`` where two have the same one."""
    parts: dict[str, Part] = {}
    for name in MODULES:
        if importlib.util.find_spec(f"bench.{name}") is None:
            continue
        module = importlib.import_module(f"bench.{name}")
        for part in module.PARTS:
            if part.key in parts:
                raise ValueError(f"two parts have the key {part.key!r}")
            parts[part.key] = part
    return parts


def chosen(parts: dict[str, Part], only: str | None, size: Size) -> list[Part]:
    """Give the parts to run. ``ValueError`` names the keys that there are where one is asked for that is not there."""
    if only is None:
        return [part for part in parts.values() if size == "full" or part.in_short]
    keys = only.split(",")
    unknown = [key for key in keys if key not in parts]
    if unknown:
        raise ValueError(f"no such part: {', '.join(unknown)}; there are: {', '.join(parts)}")
    return [parts[key] for key in keys]


def run(part: Part, size: Size, parent: Path) -> Found | str:
    """Run a part in a fresh interpreter, in a folder that is gone afterwards: what it found, or its error."""
    folder = Path(tempfile.mkdtemp(dir=parent, prefix="out-"))
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as interpreter:
            return interpreter.submit(_guarded, *_name(part), folder, size).result()
    except BrokenProcessPool:
        return "its process has died"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _name(part: Part) -> tuple[str, str]:
    return part.measure.__module__, part.measure.__name__


def _guarded(module: str, name: str, folder: Path, size: Size) -> Found | str:
    """Turn whatever goes wrong into a text: not every exception survives the way to another process."""
    try:
        found: Found = getattr(importlib.import_module(module), name)(folder, size)
    except Exception as error:  # noqa: BLE001 - it is reported, whatever it is
        traceback.print_exc()
        return f"{type(error).__name__}: {error}".replace(str(ROOT), ".")
    return found


def run_all(parts: Sequence[Part], order: Sequence[str], size: Size) -> bool:
    """Run parts one after the other, keep what each has found, and tell whether all of them went well."""
    went_well = True
    for part in parts:
        print(f"{part.key}: {part.title} …", flush=True)
        date = dt.datetime.now(dt.UTC).date().isoformat()
        busy = busy_share(LOOK_S)
        started = time.monotonic()
        found = run(part, size, HERE)
        seconds = time.monotonic() - started
        kept = measured(part, found, size, date, seconds, busy)
        save(RESULTS, merged(load(RESULTS), part.key, kept, order))
        write_page()
        print(f"{part.key}: {'failed: ' + found if isinstance(found, str) else 'done'}, {seconds:.0f} s", flush=True)
        went_well = went_well and isinstance(found, Found)
    return went_well


def write_page() -> None:
    """Make the page of what is known."""
    PAGE.write_text(page(load(RESULTS), GOALS), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says. Exit status 1 if a part has failed, 2 for a wrong word."""
    parser = argparse.ArgumentParser(prog="python -m bench.run", description="Measure, and write docs/benchmarks.md.")
    parser.add_argument("--full", action="store_true", help="take more rounds and larger sizes, and run every part")
    parser.add_argument("--only", metavar="KEY[,KEY]", help="run these parts; what is known of the others stays")
    parser.add_argument("--list", action="store_true", help="print the parts and run nothing")
    parser.add_argument("--page", action="store_true", help="write the page of what is known, and run nothing")
    given = parser.parse_args(arguments)
    parts = registry()
    size: Size = "full" if given.full else "short"
    if given.list:
        for part in parts.values():
            print(f"{part.key:20} {part.title}{'' if part.in_short else ' (full runs only)'}")
        return 0
    if given.page:
        write_page()
        return 0
    try:
        wanted = chosen(parts, given.only, size)
    except ValueError as error:
        parser.error(str(error))
    started = time.monotonic()
    went_well = run_all(wanted, list(parts), size)
    print(f"{len(wanted)} parts in {time.monotonic() - started:.0f} s; the page is docs/benchmarks.md")
    return 0 if went_well else 1


if __name__ == "__main__":
    sys.exit(main())
