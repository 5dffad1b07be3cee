"""The commands put together, and the one place where errors become an exit status and a line on stderr."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from fastness.cli.commands import Commands
from fastness.cli.options import DatabaseOption, remember_database
from fastness.cli.screen import note, silence
from fastness.errors import StoreError

_FAILED = 2
_INTERRUPTED = 130

# The library that parses is inside typer in some of its releases and beside it in others; its errors share this root.
_ParserError: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

app = typer.Typer(
    name="fastness",
    cls=Commands,
    help="Durable sessions for AI agents: talk to them, run their turns, look at them, move them, take care of them.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog="Exit status: 0 all is well, 1 check found faults, 2 wrong input or a failure, 130 interrupted."
    " copy and restore give 1 where they left sessions out, because the destination has others of the same id,"
    " attachments verify where content is missing or damaged.",
)


@app.callback(invoke_without_command=True)
def fastness(
    context: typer.Context,
    database: DatabaseOption = None,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Print help where no command is given."""
    if show_version:
        from importlib.metadata import version  # noqa: PLC0415 - only this needs it, and it costs more than help

        print(f"fastness {version('fastness')}")
        raise typer.Exit
    remember_database(context, database)
    if context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and give the exit status. Nothing that goes wrong on purpose leaves a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a character is no reason to stop.
            stream.reconfigure(errors="backslashreplace")
    if sys.stderr is None:
        # What has nobody to tell still must not fail over it.
        sys.stderr = io.StringIO()
    if sys.stdout is None:
        return _fail("cannot write the output: it is closed")
    status: object = 0
    try:
        status = app(args=arguments, standalone_mode=False)
        sys.stdout.flush()
    except StoreError as error:
        return _fail(str(error))
    except _ParserError as error:
        return _fail(getattr(error, "format_message", error.__str__)())
    except (KeyboardInterrupt, typer.Abort):
        return _INTERRUPTED
    except (BrokenPipeError, SystemExit):
        # The reader has gone, with all it wanted; the parser turns that into an exit.
        silence(sys.stdout)
    except OSError as error:
        silence(sys.stdout)
        return _fail(f"cannot write the output: {error.strerror or error}")
    return status if isinstance(status, int) else 0


def _fail(message: str) -> int:
    note(message)
    return _FAILED
