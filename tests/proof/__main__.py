"""Runs the proof in full size: ``python -m tests.proof --engine sqlite|postgres [--faults none]``.

The exit status is 0 where nothing was found. The seed is printed: the plan and the faults are drawn from it, what they
hit is the machine's.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import tempfile
from pathlib import Path

from tests.proof.plan import Size
from tests.proof.run import Outcome, prove
from tests.servers.postgres import PostgresServer


def size_of(given: argparse.Namespace) -> Size:
    """Give the size that was asked for. Without faults, clocks agree and handlers are healthy."""
    bad = given.faults != "none"
    return Size(
        sessions=given.sessions,
        inputs=given.inputs,
        workers=given.workers,
        senders=given.senders,
        kills=given.kills if bad else 0,
        stops=given.stops if bad else 0,
        crashes=given.crashes if bad and given.engine == "postgres" else 0,
        sender_kills=given.senders if bad else 0,
        skew_s=given.skew if bad else 0.0,
        sick=bad,
        pause_s=given.pause,
        seed=given.seed,
        limit_s=given.limit,
    )


def run(engine: str, size: Size, directory: Path) -> Outcome:
    """Run it on an engine."""
    if engine == "sqlite":
        return asyncio.run(prove(size, f"sqlite:///{directory}/proof.db", directory))
    with PostgresServer() as server, server.database() as url:
        return asyncio.run(prove(size, url, directory, server=server))


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m tests.proof", description=__doc__.partition("\n")[0])
    parser.add_argument("--engine", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--faults", choices=("all", "none"), default="all")
    for name, default in (("sessions", 500), ("inputs", 5000), ("workers", 8), ("senders", 4), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("kills", 60), ("stops", 20), ("crashes", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--skew", type=float, default=3.0, help="seconds that the clocks of SQLite's processes are off")
    parser.add_argument("--pause", type=float, default=0.01, help="seconds between two inputs of a sender")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds after which it is given up")
    given = parser.parse_args()
    # The pool tells its log of each connection that a crash has cut.
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)
    size = size_of(given)
    sys.stdout.write(f"{given.engine}, seed {size.seed}: {size}\n")
    sys.stdout.flush()
    with tempfile.TemporaryDirectory(prefix="fastness-proof-") as directory:
        outcome = run(given.engine, size, Path(directory))
    sys.stdout.write(outcome.explain() + "\n")
    return 0 if outcome.ok else 1


if __name__ == "__main__":
    sys.exit(main())
