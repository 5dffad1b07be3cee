"""``migrate``: bringing the tables of a database up to date, or printing what that takes."""

from __future__ import annotations

from typing import Annotated

import typer

from fastness.cli.json_lines import out_json
from fastness.cli.options import DatabaseOption, JsonOption
from fastness.cli.screen import out
from fastness.cli.session import run
from fastness.factory import EngineSessionStoreFactory


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(migrate)


def migrate(
    context: typer.Context,
    show: Annotated[bool, typer.Option("--show", help="Print the SQL instead of running it.")] = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create or migrate the tables of a database. Opening it does the same by itself, where it has the right to."""
    lacking = run(context, database, _show if show else _migrate, create=True)
    if as_json:
        out_json(lacking)
    elif not lacking:
        out("-- up to date: nothing to run" if show else "up to date")
    elif show:
        out("\n".join(f"{statement.strip()};" for statement in lacking))
    else:
        out(f"migrated: {len(lacking)} statements")


async def _show(factory: EngineSessionStoreFactory) -> list[str]:
    return await factory.migration_script()


async def _migrate(factory: EngineSessionStoreFactory) -> list[str]:
    lacking = await factory.migration_script()
    await factory.migrate()
    return lacking
