"""``copy``, ``backup`` and ``restore``: moving sessions between databases, and keeping them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress as Bar

from fastness.cli.json_lines import out_json
from fastness.cli.options import DatabaseOption, JsonOption, database_url, refuse_memory
from fastness.cli.progress import progress_bar
from fastness.cli.screen import counted, one_line, out
from fastness.cli.session import run
from fastness.errors import InvalidInputError
from fastness.factory import EngineSessionStoreFactory, open_database
from fastness.transfer import Progress, TransferReport
from fastness.transfer import backup as back_up
from fastness.transfer import copy as copy_sessions
from fastness.transfer import restore as bring_back

_LEFT_OUT = 1


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(copy)
    app.command()(backup)
    app.command()(restore)


def copy(
    source: Annotated[str, typer.Argument(metavar="SRC", help="The database to read, such as sqlite:///a.db.")],
    destination: Annotated[str, typer.Argument(metavar="DST", help="The database to write; it is made if missing.")],
    as_json: JsonOption = False,
) -> None:
    """Copy every session to another database and verify it there, while the source is in use.

    Running it again completes a copy that was interrupted. A session that DST has with other content is left alone;
    exit status 1 says that there was one. Bytes of attachments are not in the database and stay
    where they are; fastness.transfer.copy_attachments takes them to another place.
    """
    for url in (source, destination):
        refuse_memory(url)
    if source == destination:
        raise InvalidInputError("the destination", "is the source itself; name another database")
    report = asyncio.run(_copy(source, destination))
    _tell(report, "copied", "to copy", as_json=as_json)


def backup(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="A new file. It appears when it is complete and verified.")],
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write all sessions, as they are at this moment, into a new file, while the database is in use.

    The file is itself a database: --database sqlite:///FILE reads it. Bytes of attachments are not in it:
    back up the place where they are as well.
    """
    refuse_memory(database_url(context, database))

    async def work(factory: EngineSessionStoreFactory) -> TransferReport:
        """Back up with a bar."""
        with progress_bar("sessions") as bar:
            return await back_up(factory, file, progress=_shown(bar))

    _tell(run(context, database, work), "backed up", "to back up", as_json=as_json)


def restore(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="A file that backup made.")],
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Verify a backup and bring all of it into an empty database, which is made if missing.

    Every fencing token is moved far ahead: who held a session before the restore can no longer write to it. Running it
    again completes a restore that was interrupted.
    """
    refuse_memory(database_url(context, database))

    async def work(factory: EngineSessionStoreFactory) -> TransferReport:
        """Restore with a bar."""
        with progress_bar("sessions") as bar:
            return await bring_back(file, factory, progress=_shown(bar))

    _tell(run(context, database, work, create=True), "restored", "to restore", as_json=as_json)


async def _copy(source: str, destination: str) -> TransferReport:
    async with open_database(source, existing_only=True) as old, open_database(destination) as new:
        with progress_bar("sessions") as bar:
            return await copy_sessions(old, new, progress=_shown(bar))


def _shown(bar: Bar) -> Progress:
    task = bar.add_task("", total=None)

    def show(doing: str, done: int, total: int) -> None:
        bar.update(task, description=doing, completed=done, total=total)

    return show


def _tell(report: TransferReport, done: str, to_do: str, *, as_json: bool) -> None:
    if as_json:
        out_json(report)
    else:
        for session_id in report.conflicting:
            out(one_line(f"session {session_id}: is in the destination with other content, and was left alone"))
        out(_summary(report, done, to_do))
    if report.conflicting:
        raise typer.Exit(_LEFT_OUT)


def _summary(report: TransferReport, done: str, to_do: str) -> str:
    there = counted(report.present_count, "session")
    were = "was" if report.present_count == 1 else "were"
    if report.copied_count:
        text = f"{done} {counted(report.copied_count, 'session')}"
        text += f" ({counted(report.node_count, 'node')}, {counted(report.blob_count, 'blob')}"
        text += f", {counted(report.environment_count, 'environment')}" if report.environment_count else ""
        text += "), verified"
        text += f"; {there} {were} there" if report.present_count else ""
    elif report.present_count:
        text = f"nothing {to_do}: {there} {were} there, the same"
    else:
        text = f"nothing {to_do}"
    if report.conflicting:
        text += f"; {counted(len(report.conflicting), 'session')} left out: delete what is there in their place"
        text += " ('fastness delete') and run this again, or name an empty database"
    return text
