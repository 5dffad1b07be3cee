"""``quarantine list``, ``retry`` and ``discard``: what was set aside because its turns failed again and again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, TypeAlias

import typer

from fastness.cli.json_lines import out_json
from fastness.cli.options import DatabaseOption, JsonOption, SessionArgument
from fastness.cli.screen import columns, counted, moment, one_line, out
from fastness.cli.session import open_session, run
from fastness.errors import InvalidInputError
from fastness.factory import EngineSessionStoreFactory
from fastness.persistence import QuarantinedRow, QuarantineKind
from fastness.runtime.database import Database

_ERROR_WIDTH = 72

SomeSession = Annotated[str | None, typer.Argument(metavar="[ID]", help="The session; all of them if left out.")]
RowArgument = Annotated[str, typer.Argument(metavar="ROW", help="What was set aside, by its id.")]

_Act: TypeAlias = "Callable[[str, QuarantineKind, str], Awaitable[bool]]"


def register(app: typer.Typer) -> None:
    """Add the commands, as a group."""
    group = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)
    group.callback(invoke_without_command=True)(quarantine)
    group.command("list")(list_)
    group.command()(retry)
    group.command()(discard)
    app.add_typer(group, name="quarantine")


def quarantine(context: typer.Context) -> None:
    """List, retry and discard what was set aside because its turns failed too often."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def list_(
    context: typer.Context, session_id: SomeSession = None, database: DatabaseOption = None, as_json: JsonOption = False
) -> None:
    """List what was set aside, in a session or in all of them, with what its last turn failed with."""

    async def work(factory: EngineSessionStoreFactory) -> None:
        """Go through it."""
        rows = []
        if session_id is not None:
            await open_session(factory, session_id)
        async for row in Database(factory).quarantine(session_id):
            out_json(row) if as_json else rows.append(_row(row))
        if not as_json:
            heads = ("SESSION", "KIND", "ROW", "ATTEMPTS", "SINCE", "ERROR")
            out(columns(heads, rows) if rows else "nothing is in quarantine")

    run(context, database, work)


def _row(row: QuarantinedRow) -> tuple[str, ...]:
    since = moment(row.quarantined_at_epoch_ms)
    return row.session_id, row.kind, row.row_id, str(row.attempts), since, one_line(row.error, _ERROR_WIDTH)


def retry(
    context: typer.Context,
    session_id: SomeSession = None,
    row_id: Annotated[str | None, typer.Argument(metavar="[ROW]", help="What was set aside, by its id.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of the session, or of all sessions.")] = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have what was set aside tried again, behind all that waits, with its attempts counted anew."""
    if everything == (row_id is not None) or (not everything and session_id is None):
        raise InvalidInputError("quarantine retry", "needs a session and a row, or --all")

    async def work(factory: EngineSessionStoreFactory) -> int:
        """Retry the one, or all."""
        if session_id is not None:
            await open_session(factory, session_id)
        if row_id is None:
            return await _retry_all(Database(factory), session_id)
        assert session_id is not None
        await _one(factory.dispatch.retry_quarantined, session_id, row_id)
        return 1

    count = run(context, database, work)
    out_json({"retried_count": count}) if as_json else out(f"{counted(count, 'row')} will be tried again")


async def _retry_all(db: Database, session_id: str | None) -> int:
    # Listed before the first is retried: what fails once more meanwhile comes back to the end of the list.
    named = [(row.session_id, row.kind, row.row_id) async for row in db.quarantine(session_id)]
    return sum([await db.factory.dispatch.retry_quarantined(*one) for one in named])


def discard(
    context: typer.Context, session_id: SessionArgument, row_id: RowArgument, database: DatabaseOption = None
) -> None:
    """Give up for good what was set aside. Its key stays taken: sent again under it, it is not tried again."""

    async def work(factory: EngineSessionStoreFactory) -> None:
        """Discard it, if it is there."""
        await open_session(factory, session_id)
        await _one(factory.dispatch.discard_quarantined, session_id, row_id)

    run(context, database, work)
    out(f"discarded {one_line(row_id)}")


async def _one(act: _Act, session_id: str, row_id: str) -> None:
    """Do it to the row of that id, of whichever kind it is."""
    if not (await act(session_id, "input", row_id) or await act(session_id, "work", row_id)):
        raise InvalidInputError(
            f"row {row_id!r}",
            f"is not in the quarantine of session {session_id!r}; 'fastness quarantine list' shows what is",
        )
