"""Opening what a command works on: the database it was given, and the sessions in it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import typer

from fastness.cli.options import IN_MEMORY, database_url
from fastness.errors import InvalidInputError
from fastness.factory import EngineSessionStoreFactory
from fastness.persistence import (
    AttachmentStore,
    PersistedSessionRead,
    SessionReadScope,
    SessionStoreCreateRequest,
    open_attachments,
    open_database,
)
from fastness.store import SessionStore

NO_DIRECTORY = "is no directory; name the one that is in use"
HOLDS_NOTHING = "holds no attachment, while sessions refer to some; name the place where they are"

T = TypeVar("T")


class AttachmentsPlace(NamedTuple):
    """Where the bytes of a database's attachments are: as somebody said, by default, or (None) nobody knows."""

    where: str | Path | None
    is_named: bool

    def open(self) -> AttachmentStore:
        """Open the store. ``InvalidInputError`` where there is none to open, ``AttachmentStoreError`` from it."""
        if self.where is None:
            raise InvalidInputError(
                "attachments", "of this database have no default place; name it with --attachments PLACE"
            )
        if self.where == IN_MEMORY:
            raise InvalidInputError(IN_MEMORY, "is private to the process that uses it; name a place that others see")
        return open_attachments(self.where)

    def is_absent(self) -> bool:
        """Whether it is, as far as one can see from here, not there. Services are not asked."""
        if self.where is None or "://" in str(self.where):
            return self.where is None
        try:
            return not Path(self.where).is_dir()
        except OSError:
            return False  # the store says what is wrong

    def refusal(self, reason: str) -> InvalidInputError:
        """Say that this place cannot be the one. A place that somebody named is not shown: a url may hold a secret."""
        named = "the place named for attachments"
        return InvalidInputError(
            named if self.is_named else f"the default place for attachments, {self.where},", reason
        )

    async def require_content(self, store: AttachmentStore) -> None:
        """Raise ``InvalidInputError`` if nothing at all is kept here: whoever misses some content looks elsewhere."""
        if self.is_absent():
            raise self.refusal(NO_DIRECTORY)
        if not await store.list(limit=1):
            raise self.refusal(HOLDS_NOTHING)


def attachments_place(context: typer.Context, database: str | None, attachments: str | None) -> AttachmentsPlace:
    """Give the place that is meant: named behind the command, by the environment, or the one beside a SQLite file."""
    named = attachments if attachments is not None else os.environ.get("FASTNESS_ATTACHMENTS")
    if named is not None:
        return AttachmentsPlace(named, is_named=True)
    scheme, mark, path = database_url(context, database).partition(":///")
    beside = Path(f"{path}.attachments") if scheme == "sqlite" and mark and path else None
    return AttachmentsPlace(beside, is_named=False)


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
