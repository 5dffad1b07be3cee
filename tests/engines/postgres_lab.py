"""What the tests of faults on PostgreSQL share: a schema of a test's own, and ways to see and end server processes."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

from fastness.conformance import ALL_POWERS, Lab, Subject
from fastness.persistence import PostgresSessionStoreFactory
from tests.servers.room import wait_until
from tests.servers.server import Server

PATIENCE_S = 30.0
"""How long a test waits for what must come, in seconds."""

HASTE_MS = 3_000
"""A patience of an engine that a test waits out: long enough for all that a slow machine has to do within it."""


class Ground(NamedTuple):
    """A schema that nothing else uses, in a database of a server. Engines and watchers find it by ``schema``."""

    server: Server
    database: str
    schema: str

    @property
    def url(self) -> str:
        """The URL of the database; its sessions carry the name of the schema."""
        return named(self.server.url(self.database), self.schema)

    def factory(self, url: str | None = None, **options: Any) -> PostgresSessionStoreFactory:
        """An engine on the schema, by default straight to the server."""
        return PostgresSessionStoreFactory(url or self.url, schema=self.schema, **options)

    def admin(self) -> psycopg.Connection:
        """A superuser's connection to the database that finds the tables."""
        connection = self.server.admin(self.database)
        connection.execute(sql.SQL("set search_path to {}").format(sql.Identifier(self.schema)))
        return connection

    def execute(self, statement: str, *params: object) -> list[tuple[Any, ...]]:
        """Run one statement behind the engine's back."""
        with self.admin() as connection:
            cursor = connection.execute(statement, params or None)
            return cursor.fetchall() if cursor.description else []

    def sessions(self, *states: str) -> list[int]:
        """The process ids of the server's processes that serve the schema's engines, in these states or in any."""
        text = "select pid from pg_stat_activity where application_name = %s and (%s = '{}' or state = any(%s))"
        with self.server.admin() as connection:
            return [pid for (pid,) in connection.execute(text, [self.schema, list(states), list(states)]).fetchall()]

    def terminate(self) -> int:
        """End all server processes that serve the schema's engines, wait until they are gone, and count them."""
        with self.server.admin() as connection:
            text = "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = %s"
            row = connection.execute(text, [self.schema]).fetchone()
        self.await_none()
        return row[0] if row else 0

    def await_none(self, *states: str) -> None:
        """Wait until no server process serves the schema's engines, or none in these states."""
        wait_until(lambda: not self.sessions(*states), lambda: f"still there: {self.sessions(*states)}", PATIENCE_S)


def named(url: str, name: str) -> str:
    """A URL whose connections carry a name that watchers find."""
    return f"{url}{'&' if '?' in url else '?'}application_name={name}"


@contextlib.contextmanager
def ground_of(server: Server, database: str = "postgres") -> Iterator[Ground]:
    """A schema's name that is free, and is free again afterwards."""
    ground = Ground(server, database, f"t_{secrets.token_hex(6)}")
    try:
        yield ground
    finally:
        if getattr(server, "running", True):
            with server.admin(database) as connection:
                connection.execute(sql.SQL("drop schema if exists {} cascade").format(sql.Identifier(ground.schema)))


def subject(ground: Ground, url: str | None = None, **options: Any) -> Subject:
    """The engine as the conformance kit opens it, on a ground."""

    def make(lab: Lab) -> Any:
        return ground.factory(
            url, clock=lab.clock, is_dead=lab.is_dead, batch_hook=lab.batch_hook, **{"pool_size": 2, **options}
        )

    return Subject(make, ALL_POWERS)


async def until(ready: Callable[[], bool], excuse: str = "it never came to be") -> None:
    """Wait for something without holding up the event loop."""
    async with asyncio.timeout(PATIENCE_S):
        while not ready():
            await asyncio.sleep(0.005)
    assert ready(), excuse
