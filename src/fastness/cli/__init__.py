"""The command line. A thin face: it parses, calls, prints, and has no rule of its own.

Exit status: 0 done, 1 ``check`` found faults or ``copy`` and ``restore`` left sessions out, 2 anything that went wrong
(a line on stderr says what), 130 interrupted.
A reader that goes away before the end has what it wanted: that is quiet, and no failure.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NoReturn


def run() -> None:
    """The entry point ``fastness``."""
    try:
        from fastness.cli.main import main  # noqa: PLC0415 - its libraries are an extra

        # The bars are loaded with the command that shows them.
        status = main()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in {"typer", "rich"}:
            raise
        sys.stderr.write("fastness: the command line needs an extra; install it with: pip install 'fastness[cli]'\n")
        sys.exit(2)
    except KeyboardInterrupt:
        # Before ``main`` can say so: its libraries take a moment to load.
        sys.exit(130)
    if "obstore" in sys.modules:
        # Its threads may still be letting go of a request. One that finds the interpreter half taken down aborts the
        # process; everything is closed by now, so there is nothing left to take down.
        _leave(status)
    sys.exit(status)


def _leave(status: int) -> NoReturn:
    """End the process at once, after what the streams still hold."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.flush()
    os._exit(status)
