"""Runs every benchmark and writes results.json and RESULTS.md beside this file.

Figures are medians of rounds that alternate between the two sides in one process on one disk; what counts are the
ratios. Nothing here passes or fails.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import apsw
import msgspec
import psycopg

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from bench import attachments, commits, dispatch, dispatch_history, fleet, fleet_loads, loads, sweeps  # noqa: E402 - the checkout has to be on the path first

ROWS = (
    ("Full turn commit, 1 waiter, against the bare script", "≥ 0.6", "commit", "ratio_one_waiter"),
    ("Full turn commit, 64 waiters, against the bare script", "≥ 1.8", "commit", "ratio_many_waiters"),
    ("p99 / p50 under sustained load, 1 waiter", "≤ 10", "load", "ratio_p99_p50"),
    ("Largest log under sustained load, MiB", "< 64", "load", "largest_wal_mib"),
    ("Commit on 100,000 nodes / on 100 nodes", "≤ 1.2", "growth", "ratio"),
    ("Loading 10,000 nodes / raw rows plus decoding", "≤ 1.5", "reading", "ratio"),
    ("Peak memory of an import, 5 times the file", "about 1", "import", "ratio"),
    ("PostgreSQL: full turn commit, 1 connection, against one function", "≥ 0.7", "fleet", "ratio_1_connection"),
    ("PostgreSQL: full turn commit, 8 connections, against one function", "≥ 0.4", "fleet", "ratio_8_connections"),
    ("PostgreSQL: commit with 1 ms of round-trip time, ms", "≤ 2.2", "fleet over a network", "commit_ms"),
    ("PostgreSQL: loading 10,000 nodes / raw rows plus decoding", "≤ 1.5", "fleet reading", "ratio"),
    ("Attachment of 1 KB to a file / bare write, fsync, rename, fsync", "≤ 1.3", "attachments", "ratio_1_kb"),
    ("Attachment of 1 MB to a file / the same bare", "≤ 1.3", "attachments", "ratio_1_mb"),
    ("Attachment of 100 MB to a file / the same bare", "≤ 1.3", "attachments", "ratio_100_mb"),
    ("Growth of memory by a put of up to 1 GB, MiB", "≤ 64", "attachments memory", "largest_mib"),
    ("Sweep of 1,000 orphans beside 100,000 committed rows / none", "about 1", "sweeps", "ratio_no_rows"),
    ("Sweep of 1,000 orphans beside 400,000 committed rows / 100,000", "about 1", "sweeps", "ratio_rows"),
    ("Sweep beside 100,000 rows, 2,000 orphans / 1,000", "about 2", "sweeps", "ratio_orphans"),
    ("SQLite: from send to the handler's first line, p50, ms", "< 10", "pickup", "ours_sqlite_p50_ms"),
    ("SQLite: the same, p99, ms", "< 50", "pickup", "ours_sqlite_p99_ms"),
    ("SQLite: DBOS as it comes, p50, ms", "", "pickup", "dbos_sqlite_p50_ms"),
    ("PostgreSQL: from send to the handler's first line, p50, ms", "< 10", "pickup", "ours_postgres_p50_ms"),
    ("PostgreSQL: the same, p99, ms", "< 50", "pickup", "ours_postgres_p99_ms"),
    ("PostgreSQL: DBOS as it comes, p50, ms", "", "pickup", "dbos_postgres_p50_ms"),
    ("SQLite: no-op turns on 8 sessions / DBOS' queued no-ops, 8 at a time", "> 1", "turns", "ratio_dbos_sqlite"),
    ("PostgreSQL: no-op turns on 8 sessions / DBOS' queued no-ops, 8 at a time", "> 1", "turns", "ratio_dbos_postgres"),
    ("PostgreSQL: the same / DBOS without a limit", "", "turns", "ratio_dbos_unlimited_postgres"),
    ("PostgreSQL: no-op turns / procrastinate's fetch+finish", "> 1", "turns", "ratio_fetch_finish_postgres"),
    ("SQLite: claim beside 1,000,000 settled inputs, 100,000 idle sessions / empty", "≤ 1.2", "claims", "sqlite_ratio"),
    ("PostgreSQL: the same", "≤ 1.2", "claims", "postgres_ratio"),
    ("SQLite: an idle worker, % of a core", "< 1", "idle", "ours_sqlite_percent"),
    ("PostgreSQL: an idle worker, % of a core", "< 1", "idle", "ours_postgres_percent"),
)

NOTES = {
    "fleet": """
One function on the server that does the same work (`bench/function.sql`), called by `pgbench -M prepared` with 1 and 8
clients, against the library with 1 and 8 connections in one process, on one server, in turns. Rates are per second
while all clients are warm. Rows, bytes and bytes of the server's log per turn show that both sides write the same; they
are those of the last round. Noise is the function's largest rate of a round divided by its smallest.""",
    "fleet over a network": f"""
A proxy in a process of its own holds everything for {fleet.ONE_WAY_S * 1e3} ms each way; a `select 1` on a connection
of its own goes through it after each commit.""",
    "fleet reading": """
Each side in a fresh interpreter; the ratio is to the faster way of decoding.""",
    "pickup": """
One process sends, another has one idle worker, the database is new. Pauses of 50 to 150 ms between sends; 120 sends,
the first 20 not counted. From before the sending call, which is durable when it returns, to the handler's first line,
on one clock of the machine. DBOS has no limit on its queue here; "1 ms" polls as often as it lets one ask.""",
    "turns": """
A backlog is sent before; the time runs from the first handler's beginning until the database says that all are settled.
Ours: 8 sessions, one input a turn, 8 at a time; "new sessions": a session for each input. The peers have jobs of their
own without an order. DBOS has a queue of 8 at a time, polled as it comes and each ms, and one without a limit, which
takes the whole backlog at once. procrastinate's rates are those of its worker, and of fetch and finish alone on 1 and 8
connections; the ratio is to the faster of the two. It runs on PostgreSQL only.""",
    "claims": """
Filled by SQL in bulk, then analysed. 400 rounds on each database in turns, each on a session that was not touched
since: the agenda is read and a turn begun, not run.""",
    "idle": """
CPU time of a worker process with nothing to do, over 10 s.""",
}
"""What has to be said of a part's figures."""


def measure() -> dict[str, dict[str, object]]:
    """Run everything, each part in a fresh interpreter and in a folder of its own on the disk of the checkout."""
    parts = {
        "commit": commits.against_the_bare_script,
        "load": commits.under_load,
        "growth": commits.as_a_session_grows,
        "reading": loads.against_raw_rows,
        "import": loads.memory_of_an_import,
        "fleet": fleet.against_one_function,
        "fleet over a network": fleet.over_a_network,
        "fleet reading": fleet_loads.against_raw_rows,
        "attachments": attachments.against_bare_files,
        "attachments memory": attachments.memory_of_puts,
        "sweeps": sweeps.as_rows_and_orphans_grow,
        "pickup": dispatch.pickup,
        "turns": dispatch.rates,
        "claims": dispatch_history.beside_history,
        "idle": dispatch.idle,
    }
    results: dict[str, dict[str, object]] = {}
    fresh = multiprocessing.get_context("spawn")
    for name, part in parts.items():
        print(f"measuring {name} …", flush=True)
        with (
            tempfile.TemporaryDirectory(dir=HERE, prefix="out-") as folder,
            ProcessPoolExecutor(1, fresh) as interpreter,
        ):
            results[name] = interpreter.submit(part, Path(folder)).result()
    return results


def report(results: dict[str, dict[str, object]]) -> str:
    """Write the results for people."""
    postgres = f"{results['fleet']['server']}, psycopg {psycopg.__version__}"
    versions = f"Python {platform.python_version()}, SQLite {apsw.sqlite_lib_version()}, msgspec {msgspec.__version__}"
    machine = f"{os.cpu_count()} cores, {versions}"
    lines = [
        "# Results of `make bench`",
        "",
        f"{machine}, `synchronous=FULL`; {postgres}.",
        "",
        "| what | wanted | measured |",
        "|---|---|---|",
    ]
    lines += [f"| {what} | {wanted} | {_figure(results[part][key])} |" for what, wanted, part, key in ROWS]
    for part, figures in results.items():
        lines += ["", f"## {part}", *NOTES.get(part, "").splitlines(), "", "| figure | value |", "|---|---|"]
        lines += [f"| {name} | {_figure(value)} |" for name, value in figures.items()]
    return "\n".join(lines) + "\n"


def _figure(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def main() -> None:
    """Measure, write, print."""
    results = measure()
    (HERE / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    text = report(results)
    (HERE / "RESULTS.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
