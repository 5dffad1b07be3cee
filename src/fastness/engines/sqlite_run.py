"""Running one program on one connection, inside a transaction that somebody else began.

It promises that a program is driven to its end or closed, that what it did is told in its ``Job``, and that the dialect
of SQLite stands here and nowhere else. It must not know threads, commits or files.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any, TypeAlias

import apsw

from fastness.errors import BackendError, StoreError
from fastness.sql.program import Many, Read, Rows, Statement, Write

BatchHook: TypeAlias = Callable[[Read | Write | None], None]
"""Called before each batch, and with None before COMMIT. Tests raise from it: a fault at that very point."""

_PARAMETER = re.compile(r"\$(\d+)")
_ANY_OF = re.compile(r"\bany_of\(\s*\$(\d+)\s*\)", re.IGNORECASE)
_UTF8 = re.compile(r"\butf8\(\s*([\w.]+)\s*\)", re.IGNORECASE)
_FOR_UPDATE = re.compile(r"\s+for\s+update(\s+of\s+\w+)?\s*;?\s*$", re.IGNORECASE)

_translated: dict[str, str] = {}


def translate(sql: str) -> str:
    """Give a shared statement in the words of SQLite: it binds ``?n`` by number, ``$n`` by first appearance."""
    text = _FOR_UPDATE.sub("", sql)
    text = _ANY_OF.sub(r"(select value from json_each(?\1))", text)
    text = _UTF8.sub(r"cast(\1 as blob)", text)
    text = _translated[sql] = _PARAMETER.sub(r"?\1", text)
    return text


class Job:
    """A program that waits for its turn, and then what became of it.

    ``result`` counts when ``error`` is None. ``wrote`` tells whether a ``Write`` was begun, so that a failure needs an
    undo, ``wakes`` whether it left something to do. A job whose future was cancelled before its turn is never started
    (law C13).
    """

    __slots__ = ("error", "future", "make", "reads_only", "result", "wakes", "wrote")

    def __init__(self, make: Callable[[], Any], future: asyncio.Future[Any], reads_only: bool = False) -> None:
        self.make = make
        self.future = future
        self.reads_only = reads_only
        self.wrote = False
        self.wakes = False
        self.result: Any = None
        self.error: BaseException | None = None


def run(
    job: Job,
    cursor: apsw.Cursor,
    before_batch: BatchHook | None,
    explain: Callable[[apsw.Error | UnicodeDecodeError], StoreError],
) -> None:
    """Drive a fresh program of the job. Whatever it raises is kept as ``job.error``, translated by ``explain``."""
    job.wrote = job.wakes = False
    job.error = None
    program = None
    try:
        program = job.make()
        batch = next(program)
        while True:
            if before_batch is not None:
                before_batch(batch)
            if type(batch) is Write:
                if job.reads_only:
                    raise BackendError("a program that reads asked for a Write", "run it as a write")
                job.wrote = True
                job.wakes |= batch.wakes
            try:
                rows = execute(batch, cursor)
            except UnicodeDecodeError as error:  # told from one that the program itself may raise
                raise explain(error) from error
            last = batch.last
            batch = program.send(rows if last or type(batch) is Read else [])
            if last:
                raise BackendError("a program went on after its last batch", "this is a fault of the program")
    except StopIteration as stop:
        job.result = stop.value
    except Exception as error:  # noqa: BLE001 - the caller gets it, whatever it is
        job.error = explain(error) if isinstance(error, apsw.Error) else error
        if program is not None:
            program.close()


def execute(batch: Read | Write, cursor: apsw.Cursor) -> Rows:
    """Execute the statements of a batch in order; give a list of rows for each that is no lock.

    Locks are passed over: whoever runs a program here is alone with the database.

    Raises ``BackendError`` for a parameter that no column can hold, ``apsw.Error`` for what SQLite refuses, and
    ``UnicodeDecodeError`` for stored text that cannot be read.
    """
    rows: Rows = []
    try:
        for statement in batch.statements:
            if type(statement) is Statement:
                text = _translated.get(statement.sql) or translate(statement.sql)
                rows.append(cursor.execute(text, statement.params).fetchall())
            elif type(statement) is Many:
                text = _translated.get(statement.sql) or translate(statement.sql)
                cursor.executemany(text, statement.rows)
                rows.append([])
    except UnicodeDecodeError:
        raise  # what is stored is at fault, not what was given: that would be an error of encoding
    except (TypeError, ValueError, OverflowError) as error:
        detail = f"a parameter does not fit SQLite ({type(error).__name__})"
        raise BackendError(detail, "this is a fault of the caller") from error
    return rows


def settle(jobs: list[Job]) -> None:
    """Resolve the futures of a group, on the event loop. Who was cancelled meanwhile is not told (law C13)."""
    for job in jobs:
        if job.future.done():
            continue
        if job.error is None:
            job.future.set_result(job.result)
        else:
            job.future.set_exception(job.error)


def deliver(jobs: list[Job]) -> None:
    """Hand a finished group to its event loop: one wake-up, however many wait."""
    if not jobs:
        return
    try:
        jobs[0].future.get_loop().call_soon_threadsafe(settle, jobs)
    except RuntimeError:
        return  # the loop is closed: nobody is left to be told
