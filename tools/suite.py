"""Runs the whole test suite as a few pytest processes beside each other: most of it waits for disks and processes.

Each group's output is printed when it is done; the last group is whatever no other one names, so that nothing is left
out. What has failed is told once more at the very end, where a reader of a cut log still finds it. Exit status 1 if any
group has failed. ``--list`` prints the commands.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import IO, NamedTuple

GROUPS: Sequence[Sequence[str]] = (
    ("tests/test_conformance.py", "tests/conformance", "tests/test_state_machine.py", "tests/test_agenda.py"),
    ("tests/runtime", "tests/sync", "tests/examples", "tests/proof", "tests/cli", "tests/testing", "tests/telemetry"),
)

# A group that takes longer hangs where no bound of a single test ends it. It is aborted, and shows where it stands.
_LIMIT_S = 1_500

# How much of a failed group's output is told again, in characters: its short summary and the end of a traceback.
_LAST = 6_000


class Running(NamedTuple):
    """A group on its way, and where it writes."""

    paths: str
    process: subprocess.Popen[str]
    output: IO[str]


def commands() -> list[list[str]]:
    """Give the commands of all groups."""
    pytest = [sys.executable, "-m", "pytest"]
    named = [path for group in GROUPS for path in group]
    return [*([*pytest, *group] for group in GROUPS), [*pytest, *(f"--ignore={path}" for path in named)]]


def main() -> int:
    """Run all groups, print what each has said, and tell whether all is well."""
    if "--list" in sys.argv[1:]:
        print("\n".join(" ".join(command) for command in commands()))
        return 0
    started = time.monotonic()
    running = [_start(command) for command in commands()]
    failed: list[str] = []
    while running:
        time.sleep(0.2)
        if time.monotonic() - started > _LIMIT_S:
            for group in running:
                group.process.send_signal(signal.SIGABRT)
        for group in [each for each in running if each.process.poll() is not None]:
            running.remove(group)
            group.output.seek(0)
            said = group.output.read()
            print(f"== {group.paths}: {time.monotonic() - started:.0f} s\n{said}", flush=True)
            if group.process.returncode != 0:
                failed.append(f"== failed, exit status {group.process.returncode}: {group.paths}\n{said[-_LAST:]}")
    for end in failed:
        print(end)
    print(f"{len(failed)} of {len(GROUPS) + 1} groups failed" if failed else "all groups passed")
    return 1 if failed else 0


def _start(command: list[str]) -> Running:
    output = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - it is read when the process has ended
    process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, text=True)  # noqa: S603 - our own
    return Running(" ".join(command[3:]), process, output)


if __name__ == "__main__":
    sys.exit(main())
