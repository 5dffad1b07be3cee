"""Four stores side by side: the reference model and three engines, given the same calls and expected to answer alike.

Ids and tokens are random in the stores and counted in the model. They are compared by bijection: the first time that an
id of one world stands where an id of another does, the two are bound to each other for good.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import secrets
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import msgspec
from psycopg import sql

from fastness.conformance.lab import Clock
from fastness.errors import StoreError
from fastness.model import FullGraph, LocalProcess, SessionStoreCreateRequest
from fastness.persistence import (
    InMemorySessionStoreFactory,
    PostgresSessionStoreFactory,
    SqliteSessionStoreFactory,
)
from fastness.sql.schema import SESSION_TABLES
from tests.reference.model import ReferenceFactory, answer
from tests.reference.rows import RefusedError
from tests.servers.postgres import PostgresServer
from tests.servers.server import EXTERNAL, ExternalServer, Server

IDS = {"lease_token", "claim_id", "input_id", "batch_id", "item_id"}
MODEL = "model"
SCHEMA = f"worlds_{secrets.token_hex(6)}"
"""The schema of this process: all its worlds use it, one after the other."""
TABLES = ("session", *SESSION_TABLES, "blob", "attachment_release", "attachment_mark")
"""All that holds rows of sessions, or of what they share."""

Each = dict[str, Any]
"""One value for each world."""


@cache
def quick_server() -> Server:
    """A server that does not wait for its disk: what is compared is answers, and nobody pulls the plug here."""
    if given := os.environ.get(EXTERNAL):
        return ExternalServer(given)
    server = PostgresServer(fsync=False)
    server.start()
    return server


def empty_schema() -> None:
    """Leave nothing in the schema but its tables: making them anew takes longer than a short run of calls."""
    with quick_server().admin() as connection, connection.pipeline():
        for table in TABLES:
            connection.execute(sql.SQL("delete from {}").format(sql.Identifier(SCHEMA, table)))


@contextmanager
def own_schema() -> Iterator[None]:
    """Have the schema that the worlds make, and leave nothing on the server."""
    try:
        yield
    finally:
        with quick_server().admin() as connection:
            connection.execute(sql.SQL("drop schema if exists {} cascade").format(sql.Identifier(SCHEMA)))


class MismatchError(AssertionError):
    """A store did not answer what the model did."""


class World:
    """One store, and how its ids map to the model's."""

    def __init__(self, name: str, factory: Any) -> None:
        self.name = name
        self.factory = factory
        self.to_model: dict[str, str] = {}
        self.from_model: dict[str, str] = {}

    def bind(self, real: Any, wanted: Any, path: str) -> None:
        """Take two ids as the same, for good."""
        if real is None and wanted is None:
            return
        if not (self.to_model.setdefault(real, wanted) == wanted and self.from_model.setdefault(wanted, real) == real):
            raise MismatchError(f"{self.name}: {path} is {real!r}, and not the id that the model calls {wanted!r}")

    def compare(self, real: Any, wanted: Any, path: str = "answer") -> None:
        """Expect two answers to be equal but for ids."""
        if isinstance(wanted, msgspec.Struct):
            if type(real) is not type(wanted):
                raise MismatchError(f"{self.name}: {path} is {real!r}\nthe model says {wanted!r}")
            for name in wanted.__struct_fields__:
                one, other = getattr(real, name), getattr(wanted, name)
                (self.bind if name in IDS else self.compare)(one, other, f"{path}.{name}")
        elif isinstance(wanted, list | tuple):
            if not isinstance(real, list | tuple) or len(real) != len(wanted):
                raise MismatchError(f"{self.name}: {path} is {real!r}\nthe model says {wanted!r}")
            for at, (one, other) in enumerate(zip(real, wanted, strict=True)):
                self.compare(one, other, f"{path}[{at}]")
        elif real != wanted:
            raise MismatchError(f"{self.name}: {path} is {real!r}\nthe model says {wanted!r}")


def kind_of(refusal: object, call: str) -> str:
    """The name of a refusal. Which of two dead claims a commit names first is not laid down."""
    kind = refusal.kind if isinstance(refusal, RefusedError) else type(refusal).__name__
    return "ClaimExpiredError" if call == "commit" and kind.endswith("ClaimExpiredError") else kind


class Worlds:
    """The model and the engines, one clock, one event loop, and a count of what was called and what came of it."""

    def __init__(self, seen: Counter[str]) -> None:
        self.seen = seen
        self.clock = Clock()
        self.dead: set[LocalProcess] = set()
        self.runner = asyncio.Runner()
        self.directory = tempfile.TemporaryDirectory(prefix="fastness-")
        self.model = ReferenceFactory(self.clock, self.is_dead)
        self.worlds = {world.name: world for world in self._open()}

    def _open(self) -> list[World]:
        path = Path(self.directory.name) / "worlds.db"
        memory = InMemorySessionStoreFactory(clock=self.clock, is_dead=self.is_dead)
        sqlite = SqliteSessionStoreFactory(path, clock=self.clock, is_dead=self.is_dead, synchronous="normal")
        postgres = PostgresSessionStoreFactory(
            quick_server().url(), schema=SCHEMA, pool_size=1, clock=self.clock, is_dead=self.is_dead
        )
        named = {MODEL: self.model, "memory": memory, "sqlite": sqlite, "postgres": postgres}
        return [World(name, factory) for name, factory in named.items()]

    def is_dead(self, process: LocalProcess) -> bool:
        """What stands in for probing the operating system."""
        return process in self.dead

    def run(self, call: Callable[[], Any]) -> Any:
        """What a call of a real store comes to: its value, or the error that it raised."""

        async def awaited() -> Any:
            value = call()
            return await value if inspect.isawaitable(value) else value

        try:
            return self.runner.run(awaited())
        except StoreError as error:
            return error

    def call(self, name: str, make: Callable[[str], Any]) -> Each | None:
        """Make the same call of every world and compare the answers; None where all refuse it alike.

        ``make`` gives for the name of a world what its call returns.
        """
        wanted = answer(lambda: make(MODEL))
        refused = isinstance(wanted, RefusedError)
        outcome = kind_of(wanted, name) if refused else type(wanted).__name__
        self.seen[f"{name}: {outcome}"] += 1
        answers: Each = {MODEL: wanted}
        for world in self.worlds.values():
            if world.name == MODEL:
                continue
            real = answers[world.name] = self.run(lambda name=world.name: make(name))  # type: ignore[misc]
            if refused or isinstance(real, StoreError):
                got = kind_of(real, name) if isinstance(real, StoreError) else repr(real)
                if got != outcome or not refused:
                    raise MismatchError(f"{world.name}: {name} came to {got} ({real})\nthe model says {wanted!r}")
            else:
                world.compare(real, wanted, name)
        return None if refused else answers

    def create(self, session_id: str) -> Each:
        """Open a session everywhere."""
        request = SessionStoreCreateRequest(session_id)
        made = {MODEL: self.model.create_store(request)}
        for world in self.worlds.values():
            if world.name != MODEL:
                made[world.name] = self.run(lambda world=world: world.factory.create_store(request))  # type: ignore[misc]
        return made

    def compare_everything(self) -> None:
        """Compare the whole state of every session, and let the stores verify themselves."""
        for session_id in sorted(self.model.sessions):
            handle = self.create(session_id)
            reads: dict[str, tuple[Any, ...]] = {
                "load_session": (FullGraph(),),
                "load_head": (),
                "list_pending_turn_inputs": (session_id,),
                "list_queued_work": (session_id,),
            }
            for name, arguments in reads.items():
                self.call(f"final {name}", partial(self._read, handle, name, arguments))
        for world in self.worlds.values():
            if world.name != MODEL:
                report = self.run(lambda world=world: world.factory.check())  # type: ignore[misc]
                if report.findings:
                    raise MismatchError(f"{world.name}: the check found {report.findings}")

    def _read(self, handle: Each, name: str, arguments: tuple[Any, ...], world: str) -> Any:
        return getattr(handle[world], name)(*arguments)

    def close(self) -> None:
        """Let go of files, rows and loop."""
        for world in self.worlds.values():
            if world.name != MODEL:
                self.runner.run(world.factory.close())
        empty_schema()
        self.runner.close()
        self.directory.cleanup()
