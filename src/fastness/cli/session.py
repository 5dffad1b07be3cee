"""Opening what a command works on: the database it was given, and the sessions in it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer

from fastness.errors import InvalidInputError
from fastness.factory import EngineSessionStoreFactory
from fastness.persistence import (
    PersistedSessionRead,
    SessionReadScope,
    SessionStoreCreateRequest,
    open_database,
)
from fastness.store import SessionStore

DEFAULT_DATABASE = "sqlite:///fastness.db"

T = TypeVar("T")

DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database",
        metavar="URL",
        help=f"The database, such as {DEFAULT_DATABASE} (the default) or sqlite:////absolute/path."
        " FASTNESS_DATABASE names another default.",
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


def run(
    context: typer.Context,
    database: str | None,
    work: Callable[[EngineSessionStoreFactory], Awaitable[T]],
    *,
    create: bool = False,
) -> T:
    """Open the database, do the work, close. Only with ``create`` a missing database is made."""
    return asyncio.run(_opened(database_url(context, database), work, create=create))


async def _opened(url: str, work: Callable[[EngineSessionStoreFactory], Awaitable[T]], *, create: bool) -> T:
    async with open_database(url, existing_only=not create) as factory:
        return await work(factory)


async def open_session(factory: EngineSessionStoreFactory, session_id: str) -> SessionStore:
    """Open a session that is there. ``InvalidInputError`` for an unknown one."""
    store = await factory.open_existing_store(SessionStoreCreateRequest(session_id))
    if store is None:
        raise InvalidInputError(f"session {session_id!r}", "does not exist; 'fastness sessions' lists what is there")
    return store


async def load(
    factory: EngineSessionStoreFactory, session_id: str, scope: SessionReadScope
) -> PersistedSessionRead | None:
    """Load a session that is there, None before its first commit."""
    return await (await open_session(factory, session_id)).load_session(scope)
