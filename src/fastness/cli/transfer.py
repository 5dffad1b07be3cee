"""``import`` and ``export``: conversations in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastness.cli.json_lines import out_bytes, out_json
from fastness.cli.options import DatabaseOption, JsonOption
from fastness.cli.progress import progress_bar
from fastness.cli.screen import counted, out
from fastness.cli.session import load, run
from fastness.errors import InvalidInputError
from fastness.factory import EngineSessionStoreFactory
from fastness.persistence import FullGraph
from fastness.replay import ImportOptions, ImportReport, Survey, exported_records, import_file, survey


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("import")(import_)
    app.command("export")(export)


def import_(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="Records as a JSON array, as JSON Lines, or a single one. No pipe.")],
    branch_by: Annotated[
        str | None,
        typer.Option(metavar="FIELD", help="Records with an equal value of this field become branches of one session."),
    ] = None,
    session_id: Annotated[
        str | None,
        typer.Option(
            metavar="TEMPLATE", help="Names sessions: {stem} of the file, {index} of the record, {value} of the field."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many records.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=1024, help="Conversations replayed at once.")] = 16,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replay recorded conversations as durable turns. Running it again adds nothing.

    A record is an object with its messages (OpenAI chat format) under traj, messages or conversation, or a bare list.
    """
    options = ImportOptions(branch_by, session_id, limit, concurrency)
    surveyed = survey(file, options)
    report = run(context, database, lambda factory: _import(factory, file, options, surveyed), create=True)
    out_json(report) if as_json else out(_summary(surveyed, report))


def export(
    context: typer.Context,
    session_ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="The sessions.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Export every session.")] = False,
    leaf: Annotated[str | None, typer.Option(metavar="NODE", help="Only the branch that ends here.")] = None,
    database: DatabaseOption = None,
) -> None:
    """Print sessions in the format they came in, one record a line (JSON Lines); every branch is a record."""
    wanted = session_ids or []
    if every == bool(wanted) or (leaf is not None and len(wanted) != 1):
        raise InvalidInputError("export", "needs the ids of sessions, or --all; --leaf goes with a single id")
    run(context, database, lambda factory: _export(factory, wanted, leaf))


async def _import(
    factory: EngineSessionStoreFactory, file: Path, options: ImportOptions, surveyed: Survey
) -> ImportReport:
    with progress_bar("turns") as bar:
        task = bar.add_task("replaying", total=surveyed.turns)
        return await import_file(factory, file, options, surveyed=surveyed, progress=lambda outcome: bar.advance(task))


async def _export(factory: EngineSessionStoreFactory, session_ids: list[str], leaf: str | None) -> None:
    """Export these sessions, or every one where none is named."""
    for session_id in session_ids:
        await _export_one(factory, session_id, leaf)
    if not session_ids:
        async for session_id in factory.session_ids():
            await _export_one(factory, session_id, None)


async def _export_one(factory: EngineSessionStoreFactory, session_id: str, leaf: str | None) -> None:
    read = await load(factory, session_id, FullGraph())
    if read is None:
        return
    for record in exported_records(read.graph, leaf, session_id=session_id):
        out_bytes(record)


def _summary(surveyed: Survey, report: ImportReport) -> str:
    conversations = counted(surveyed.conversations, "conversation")
    if not surveyed.conversations:
        return "the file holds no conversations"
    if not report.turns_replayed:
        return f"nothing to add: all {counted(report.turns_present, 'turn')} of {conversations} are there"
    text = f"replayed {counted(report.turns_replayed, 'turn')} of {conversations},"
    text += f" {counted(report.messages_added, 'message')} added"
    if report.turns_present:
        text += f"; {counted(report.turns_present, 'turn')} {'was' if report.turns_present == 1 else 'were'} there"
    if report.lanes_taken_over:
        text += f"; {counted(report.lanes_taken_over, 'lane')} taken over from dead processes"
    return text
