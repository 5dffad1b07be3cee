"""Tiny programs over the blob table, and a gate that makes programs wait for each other, for tests of engines."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from fastness.sql.program import Many, Program, Read, Statement, Write

ADD = "insert into blob (ref, body) values ($1, $2)"
ALL = "select ref from blob order by ref"


class FaultError(Exception):
    """What a test throws into an engine."""


def add(*refs: str) -> Callable[[], Program[int]]:
    """Write each ref in a batch of its own, after reading how many there are; give that number."""

    def program() -> Program[int]:
        ((row,),) = yield Read(Statement("select count(*) from blob"))
        for ref in refs:
            yield Write(Statement(ADD, (ref, b"")))
        return int(row[0])

    return program


def add_many(count: int, size: int, prefix: str = "m") -> Callable[[], Program[None]]:
    """Write that many rows of that many bytes in one batch."""

    def program() -> Program[None]:
        yield Write(Many(ADD, [(f"{prefix}{n:06}", b"x" * size) for n in range(count)]))

    return program


def refs() -> Program[list[str]]:
    """Give every ref there is."""
    (rows,) = yield Read(Statement(ALL))
    return [ref for (ref,) in rows]


def refuse_before_write() -> Program[None]:
    """Read, then refuse."""
    yield Read(Statement(ALL))
    raise FaultError("refused")


def refuse_after_write(ref: str) -> Callable[[], Program[None]]:
    """Write, then refuse."""

    def program() -> Program[None]:
        yield Write(Statement(ADD, (ref, b"")))
        raise FaultError("refused")

    return program


def query(sql: str, *params: Any) -> Callable[[], Program[list[tuple[Any, ...]]]]:
    """Read one statement."""

    def program() -> Program[list[tuple[Any, ...]]]:
        (rows,) = yield Read(Statement(sql, params))
        return rows

    return program


class Gate:
    """A program that holds the thread it runs on until it is opened: what is queued meanwhile joins its group."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self._opened = threading.Event()

    def __call__(self) -> Program[None]:
        self.entered.set()
        assert self._opened.wait(30)
        yield Read(Statement(ALL))

    def open(self) -> None:
        """Let the program go on."""
        self._opened.set()
