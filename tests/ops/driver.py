"""Runs programs on a private in-memory database, each in one transaction, without an engine; tests move the clock."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import apsw

from fastness.engines.sqlite_run import translate
from fastness.model import Acquired, LeaseOwnerIdentity, SessionExecutionLease
from fastness.ops import lane
from fastness.ops.lane import Target
from fastness.sql.program import Lock, LockNames, Many, Program, Read, Rows, Statement
from fastness.sql.schema import SQLITE_TYPES, create_tables

T = TypeVar("T")
ALICE = LeaseOwnerIdentity("alice", "alice-1")
BOB = LeaseOwnerIdentity("bob", "bob-1")
S = Target("s")


class Bench:
    """A database, its clock, and the ids that tests need drawn."""

    def __init__(self) -> None:
        self.now_ms = 1_000
        self.drawn = 0
        self.db = apsw.Connection(":memory:")
        self.db.create_scalar_function("now_ms", self._clock, 0)
        for ddl in create_tables(SQLITE_TYPES):
            self.db.execute(ddl)

    def _clock(self, *_args: object) -> int:
        return self.now_ms

    def draw(self) -> str:
        """Draw an id that was never drawn before."""
        self.drawn += 1
        return f"id-{self.drawn}"

    def run(self, program: Program[T]) -> T:
        """Run a program to its end in one transaction; an error undoes it."""
        self.db.execute("begin")
        try:
            batch = next(program)
            while True:
                rows = self.run_batch(batch.statements)
                batch = program.send(rows if batch.last or isinstance(batch, Read) else [])
        except StopIteration as stop:
            self.db.execute("commit")
            result: T = stop.value
            return result
        except BaseException:
            self.db.execute("rollback")
            raise

    def read(self, program: Program[T]) -> T:
        """Run a program and insist that it only reads, and locks nothing."""
        try:
            batch = next(program)
            while True:
                assert isinstance(batch, Read)
                assert not any(isinstance(item, Lock | LockNames) for item in batch.statements)
                batch = program.send(self.run_batch(batch.statements))
        except StopIteration as stop:
            result: T = stop.value
            return result

    def write(self, *statements: Statement) -> None:
        """Run statements in one transaction."""
        with self.db:
            self.run_batch(statements)

    def lane(self, who: LeaseOwnerIdentity = ALICE, target: Target = S, ttl_ms: int = 10_000) -> SessionExecutionLease:
        """Claim a lane that must be free, expired or one's own."""
        outcome = self.run(lane.claim(target, who, self.draw(), ttl_ms))
        assert isinstance(outcome, Acquired)
        return outcome.lease

    def release(self, lease: SessionExecutionLease) -> None:
        """Give a lane back."""
        self.run(lane.release(Target(lease.session_id), lease.completion()))

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Look into the tables."""
        return [tuple(row) for row in self.db.execute(sql)]

    def plan(self, sql: str) -> str:
        """Say how SQLite would search."""
        count = max((int(number) for number in re.findall(r"\$(\d+)", sql)), default=0)
        rows = self.db.execute("explain query plan " + translate(sql), (None,) * count)
        return "\n".join(str(row[3]) for row in rows)

    def run_batch(self, statements: Any) -> Rows:
        """Run statements and give the rows of each."""
        results: Rows = []
        for statement in statements:
            if isinstance(statement, Lock | LockNames):
                continue
            sql = translate(statement.sql)
            if isinstance(statement, Many):
                self.db.executemany(sql, statement.rows)
                results.append([])
            else:
                results.append([tuple(row) for row in self.db.execute(sql, statement.params)])
        return results
