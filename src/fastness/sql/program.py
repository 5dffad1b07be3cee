"""Programs: operations as generators that yield batches of statements and receive their rows.

A program reads facts, decides with a pure function, and writes. It is written once for all engines. An engine runs it
inside one transaction and knows no table; a program knows no connection, clock or randomness.

The rules that both sides keep:

* An engine is given a *factory* of programs, never a started one: a retry runs it anew. Random tokens are drawn before
  the factory, so that a retry means the same.
* A program that raises before its first ``Write`` needs no undo. After a ``Write`` the engine undoes everything.
* A program does not catch database errors, and its result counts only once COMMIT has answered.
* Times come from ``now_ms()`` in a statement, read after the lane is locked.

The SQL is shared by all dialects. Parameters are ``$1``, ``$2``, … ; four words are the seam to a dialect:

* ``now_ms()`` is the database's clock;
* ``any_of($n)`` is a subquery over a JSON array of texts given as the text parameter ``$n`` (``x in any_of($2)``);
* ``utf8(column)`` gives a text as its bytes;
* a trailing ``for update`` locks rows where the dialect has row locks.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, TypeAlias, TypeVar

import msgspec

from fastness.model.base import encode

Param: TypeAlias = "str | int | bytes | None"
Row: TypeAlias = tuple[Any, ...]
Rows: TypeAlias = "list[list[Row]]"
"""One list of rows for each statement of a batch."""


class Statement(msgspec.Struct, frozen=True, gc=False):
    """One SQL statement and its parameters."""

    sql: str
    params: tuple[Param, ...] = ()


class Many(msgspec.Struct, frozen=True, gc=False):
    """One statement run for each tuple of parameters; it gives no rows."""

    sql: str
    rows: Sequence[tuple[Param, ...]]


class Read:
    """A batch that changes nothing (it may lock). ``Rows`` come back, a list for each statement."""

    __slots__ = ("statements",)

    def __init__(self, *statements: Statement) -> None:
        self.statements: Sequence[Statement | Many] = statements


class Write:
    """A batch that changes the database. Rows of ``returning`` come back as from a ``Read``."""

    __slots__ = ("statements",)

    def __init__(self, *statements: Statement | Many) -> None:
        self.statements: Sequence[Statement | Many] = statements


def id_list(ids: Iterable[str]) -> str:
    """Give ids as the parameter of ``any_of``."""
    return encode(list(ids)).decode()


T = TypeVar("T")
Program: TypeAlias = Generator["Read | Write", "Rows", T]
ProgramFactory: TypeAlias = Callable[[], "Generator[Read | Write, Rows, T]"]
