"""The contestants that take part, and what is done with each of them in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import psycopg
from tests.servers.postgres import PostgresServer

from bench.findings import Found
from bench.peer_processes import ProcessError
from bench.peers.contestants import Running, Side

T = TypeVar("T")

_TABLES = """
    select coalesce(sum(pg_total_relation_size(c.oid)), 0) from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'm') and n.nspname <> 'information_schema' and n.nspname not like 'pg\\_%'"""


class Ring:
    """Running contestants, each with a file or a database of its own. Who fails is out, and named with the reason."""

    def __init__(self, folder: Path, server: PostgresServer, found: Found, purpose: str) -> None:
        self.folder = folder
        self.found = found
        self.running: list[Running] = []
        self._server = server
        self._purpose = purpose

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        while self.running:
            self.running.pop().end()

    def enter(self, sides: Sequence[Side]) -> None:
        """Start them all, then have them open their stores."""
        for side in sides:
            one = self.guarded(side, partial(self._start, side))
            if one is not None:
                self.running.append(one)
        self.each(Running.answer)
        for one, answer in self.each(lambda one: one.ask("open")):
            told = ", ".join(f"{name} {value}" for name, value in answer["settings"].items())
            self.found.settings[one.side.title] = told

    def _start(self, side: Side) -> Running:
        return Running(side, self.place(side, self._purpose))

    def place(self, side: Side, purpose: str) -> str:
        """Give a contestant a file, or a database."""
        name = f"{purpose}_{side.name}"
        return self._server.create_database(name) if side.engine == "postgres" else str(self.folder / f"{name}.db")

    def each(self, do: Callable[[Running], T], some: Sequence[Running] | None = None) -> list[tuple[Running, T]]:
        """Do something with one after the other: with all of them, or with some."""
        answers = []
        for one in tuple(self.running if some is None else some):
            if one not in self.running:
                continue
            answer = self.guarded(one.side, partial(do, one))
            if answer is None:
                self.running.remove(one)
                one.end()
            else:
                answers.append((one, answer))
        return answers

    def together(self, do: str, some: Sequence[Running], **details: Any) -> list[tuple[Running, dict[str, Any]]]:
        """Have them do something at the same time, which is not timed."""

        def tell(one: Running) -> bool:
            one.tell(do, **details)
            return True

        return self.each(Running.answer, [one for one, _ in self.each(tell, some)])

    def guarded(self, side: Side, do: Callable[[], T]) -> T | None:
        """Do something; None where the contestant failed in it."""
        try:
            return do()
        except ProcessError as error:
            self.found.missing[side.title] = str(error)
            return None

    def calm(self) -> None:
        """Have the server write down what it holds, so that it does not do so while somebody is timed."""
        with self._server.admin() as admin:
            admin.execute("checkpoint")

    def size(self, one: Running) -> int:
        """Give the bytes of a contestant: its files, or its tables with all that belongs to them."""
        if one.side.engine == "postgres":
            with psycopg.connect(one.place) as connection:
                row = connection.execute(_TABLES).fetchone()
                assert row is not None
                return int(row[0])
        return sum(path.stat().st_size for path in self.folder.glob(f"{Path(one.place).name}*"))
