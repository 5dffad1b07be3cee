"""The project's own engines, as the conformance kit sees them.

An engine joins by one entry. What it needs before its first opening, and what is to be removed after its last, goes
into the entry's ``around``, where it may also skip what has no server to run on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastness.conformance import ALL_POWERS, Lab, Power, Subject
from fastness.persistence import (
    InMemorySessionStoreFactory,
    PostgresSessionStoreFactory,
    SqliteSessionStoreFactory,
)
from tests.servers.postgres import shared_server


def _memory(lab: Lab) -> Any:
    return InMemorySessionStoreFactory(clock=lab.clock, is_dead=lab.is_dead, batch_hook=lab.batch_hook)


def _sqlite(lab: Lab) -> Any:
    path = lab.directory / "lab.db"
    return SqliteSessionStoreFactory(path, clock=lab.clock, is_dead=lab.is_dead, batch_hook=lab.batch_hook)


def _postgres(lab: Lab) -> Any:
    return PostgresSessionStoreFactory(
        shared_server().url(),
        schema=schema_of(lab),
        clock=lab.clock,
        is_dead=lab.is_dead,
        batch_hook=lab.batch_hook,
        pool_size=4,
    )


def schema_of(lab: Lab) -> str:
    """A schema of a test's own; its directory is, too."""
    return f"t{abs(hash(lab.directory)):x}"


@asynccontextmanager
async def _own_schema(lab: Lab) -> AsyncIterator[None]:
    try:
        yield
    finally:
        with shared_server().admin() as connection:
            connection.execute(f'drop schema if exists "{schema_of(lab)}" cascade')


ENGINES: dict[str, Subject] = {
    "memory": Subject(_memory, ALL_POWERS - {Power.REOPENING, Power.SHARED}),
    "postgres": Subject(_postgres, ALL_POWERS, _own_schema),
    "sqlite": Subject(_sqlite, ALL_POWERS),
}
"""The engines that every law is proved on."""
