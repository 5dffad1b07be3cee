"""Removes what a server leaves behind, however the process that started it ends.

Run as ``python keeper.py ROOT`` with a pipe as its input. When a byte comes, or the pipe closes because its owner died,
every server with a pid file in a directory below ROOT is killed and ROOT is removed. It imports the standard
library only, so that it starts at once.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

PATIENCE_S = 5.0
"""How long a server may take to end after it was told to, in seconds."""


def main(root: Path) -> None:
    """Wait for the end of the owner, then end the servers below ``root`` and remove it."""
    sys.stdin.buffer.read(1)
    for pid_file in (*root.glob("*/postmaster.pid"), *root.glob("*/pgbouncer.pid")):
        end(pid_file)
    shutil.rmtree(root, ignore_errors=True)


def end(pid_file: Path) -> None:
    """End the process named in a pid file: SIGQUIT first, SIGKILL when that does not help."""
    try:
        pid = int(pid_file.read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return
    for number in (signal.SIGQUIT, signal.SIGKILL):
        deadline = time.monotonic() + PATIENCE_S
        while belongs(pid, pid_file.parent) and time.monotonic() < deadline:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                return
            time.sleep(0.02)


def belongs(pid: int, directory: Path) -> bool:
    """Whether a process works in a directory: a pid file that outlived its process may name a stranger."""
    try:
        return Path(f"/proc/{pid}/cwd").resolve(strict=True) == directory.resolve()
    except OSError:
        return not Path("/proc/self").exists() and directory.exists()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
