"""``worker``: a process that runs turns until it is told to end.

It promises to end with status 0 when all it ran was finished or given back, at the first SIGTERM or SIGINT; a second
SIGINT has it give back at once what still runs. What it tells goes to stderr, with the turn it is about.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from types import FrameType
from typing import Annotated

import typer

from fastness.cli.handler import find_handler
from fastness.cli.options import AttachmentsOption, DatabaseOption, database_url, refuse_memory
from fastness.cli.screen import counted, one_line, safe
from fastness.cli.session import attachments_place, run
from fastness.decide.limits import check_optional_id
from fastness.decide.limits_directory import check_label
from fastness.errors import InvalidInputError
from fastness.factory import EngineSessionStoreFactory
from fastness.runtime.database import Database
from fastness.runtime.retry import RetryPolicy
from fastness.runtime.turn import Turn
from fastness.runtime.worker import Answer, Handler, Worker
from fastness.telemetry import TurnContextFilter, turn_logger

logger = turn_logger("fastness.worker")

_PLAIN = re.compile(r"[^\s\"=]+")
_LONGEST_S = 10.0 * 365 * 86_400
"""So that any number of seconds has its ``timedelta``."""


class Level(StrEnum):
    """How much is told."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(worker)


def worker(
    context: typer.Context,
    handler: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:FUNCTION", help="What runs a turn: async def handler(turn). The working directory counts."
        ),
    ],
    concurrency: Annotated[int, typer.Option(min=1, help="Run so many sessions at a time.")] = 8,
    name: Annotated[str | None, typer.Option(help="What 'workers' calls it. It must be the only one.")] = None,
    max_attempts: Annotated[int, typer.Option(min=1, help="Set aside what has failed so often.")] = 5,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL=N",
            help="Run N sessions with this label at a time, in all workers together; may be repeated.",
        ),
    ] = None,
    turn_timeout: Annotated[
        float | None, typer.Option(min=0.001, metavar="SECONDS", help="A turn that takes longer has failed.")
    ] = None,
    drain: Annotated[
        float, typer.Option(metavar="SECONDS", help="When told to end, let turns go on for so long.")
    ] = 30.0,
    log_level: Annotated[Level, typer.Option(help="How much to tell; debug shows what handlers raise.")] = Level.INFO,
    place: AttachmentsOption = None,
    database: DatabaseOption = None,
) -> None:
    """Run turns of all sessions with a handler, until SIGTERM or Ctrl-C: then what runs is finished, or given back.

    A second Ctrl-C gives it back at once. A SQLite file is made if missing.
    """
    refuse_memory(database_url(context, database))
    limits = _limits(limit or ())
    time_limit = None if turn_timeout is None else _seconds("--turn-timeout", turn_timeout)
    patience = _seconds("--drain", drain)
    check_optional_id("--name", name)
    _log_to_stderr(log_level)
    found = find_handler(handler)
    where = attachments_place(context, database, place)
    kept = None if where.where is None else where.open()

    async def work(factory: EngineSessionStoreFactory) -> None:
        """Run turns until told to end. A worker bears with a database that is away, but it must have been there."""
        await factory.migrate()
        db = Database(factory, attachments=kept)
        one = Worker(
            db,
            _telling(found),
            concurrency=concurrency,
            name=name,
            retry=RetryPolicy(max_attempts),
            label_limits=limits,
            turn_timeout=time_limit,
            drain=patience,
        )
        await _until_told(one, f"worker {one.worker_id} runs {handler}, {concurrency} at a time")

    run(context, database, work, create=True)


async def _until_told(one: Worker, started: str) -> None:
    running = asyncio.create_task(one.run(), name="worker")
    with _signals(one, running):
        logger.info("%s", started)
        try:
            await running
        except asyncio.CancelledError:
            logger.warning("ended at once; what was running is given back")
            raise KeyboardInterrupt from None
    logger.info("ended; %s settled, %d failed", counted(one.settled_count, "turn"), one.failed_count)


@contextlib.contextmanager
def _signals(one: Worker, running: asyncio.Task[None]) -> Iterator[None]:
    """Drain at the first signal; at the second SIGINT cancel, and at the third leave code that does not listen."""
    loop = asyncio.get_running_loop()
    interrupts = 0

    def hear(number: int, _: FrameType | None) -> None:
        """Note a signal. It may come while the loop is blocked, and counts all the same."""
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        if interrupts > 2:
            raise KeyboardInterrupt
        loop.call_soon_threadsafe(running.cancel if interrupts == 2 else one.stop)

    both = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(each, hear) for each in both]
    try:
        yield
    finally:
        for each, old in zip(both, before, strict=True):
            signal.signal(each, old)


def _telling(handler: Handler) -> Handler:
    """Have a handler's errors told in full to whoever asked for it. Elsewhere they are but named: they may quote."""

    async def tell(turn: Turn) -> Answer:
        """Run it."""
        try:
            return await handler(turn)
        except Exception as error:
            trace = error.__traceback__
            assert trace is not None
            # From the handler on: how it came to be called is of no use to whoever wrote it.
            logger.debug("the handler raised", exc_info=(type(error), error, trace.tb_next))
            raise

    return tell


class _Lines(logging.Formatter):
    """One line for each record, with its turn, harmless to a terminal; what was raised stands below."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        """Give the line."""
        about = " ".join(
            f"{name}={_value(getattr(record, key, None))}"
            for name, key in (("session", "session_id"), ("turn", "turn_id"), ("token", "fencing_token"))
        )
        when = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
        return one_line(f"{when}Z {record.levelname} {record.name} {about} {record.message}")

    def format(self, record: logging.LogRecord) -> str:
        """Give the line, and what belongs to it."""
        return safe(super().format(record))


def _value(given: object) -> str:
    """Give what stands behind a name; in quotes where it could be taken for more than that."""
    text = "-" if given is None else str(given)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def _log_to_stderr(level: Level) -> None:
    """Tell on stderr, unless the process has its own way of logging already. A handler's module may still change it."""
    stream = logging.StreamHandler(sys.stderr)
    stream.addFilter(TurnContextFilter())
    stream.setFormatter(_Lines())
    logging.basicConfig(handlers=[stream], level=level.upper())


def _limits(given: Sequence[str]) -> Mapping[str, int]:
    found: dict[str, int] = {}
    for one in given:
        label, mark, number = one.rpartition("=")
        if not mark or not label or not number.isascii() or not number.isdigit() or int(number) < 1:
            raise InvalidInputError(f"--limit {one!r}", "is no limit such as batch=4, with 1 or more behind the label")
        found[check_label(f"the label of --limit {one!r}", label)] = int(number)
    return found


def _seconds(option: str, given: float) -> timedelta:
    if not 0 <= given <= _LONGEST_S:
        raise InvalidInputError(f"{option} {given:g}", "is no number of seconds, not negative and up to ten years")
    return timedelta(seconds=given)
