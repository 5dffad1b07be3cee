"""What commands have in common on their line: the database, the place of attachments, a session, JSON.

It loads nothing of the library but its errors, so that help costs no more than the parser.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from fastness.errors import InvalidInputError

DEFAULT_DATABASE = "sqlite:///fastness.db"
IN_MEMORY = "memory:"
"""What is named so lives in one process: a command that ends would take it along."""

DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database",
        metavar="URL",
        help=f"The database, such as {DEFAULT_DATABASE} (the default) or sqlite:////absolute/path."
        " FASTNESS_DATABASE names another default.",
    ),
]
AttachmentsOption = Annotated[
    str | None,
    typer.Option(
        "--attachments",
        metavar="PLACE",
        help="Where the bytes of attachments are: a directory, s3://…, gs://… or az://…. For sqlite:///x.db the default"
        " is the directory x.db.attachments. FASTNESS_ATTACHMENTS names another default.",
    ),
]
SessionArgument = Annotated[str, typer.Argument(metavar="ID", help="The session.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def remember_database(context: typer.Context, database: str | None) -> None:
    """Keep the database that stood before the command."""
    context.obj = database


def database_url(context: typer.Context, database: str | None) -> str:
    """Give the database that is meant: named behind the command, before it, by the environment, or the default."""
    named = (database, context.obj, os.environ.get("FASTNESS_DATABASE"), DEFAULT_DATABASE)
    # An empty name is a name, and refused: a variable that was never set must not lead to another database.
    return next(name for name in named if name is not None)


def refuse_memory(url: str) -> None:
    """Raise ``InvalidInputError`` for a database that nobody else would ever see."""
    if url == IN_MEMORY:
        raise InvalidInputError(IN_MEMORY, "is private to the process that uses it; name a database that others see")
