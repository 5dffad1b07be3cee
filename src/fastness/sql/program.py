"""Programs: operations as generators that yield batches of statements and receive their rows.

A program reads facts, decides with a pure function, and writes. It is written once for all engines. An engine runs it
inside one transaction and knows no table; a program knows no connection, clock or randomness.

The rules that both sides keep:

* An engine is given a *factory* of programs, never a started one: a retry runs it anew. Random tokens are drawn before
  the factory, so that a retry means the same.
* A program that raises before its first ``Write`` needs no undo. After a ``Write`` the engine undoes everything.
* A program does not catch database errors, and its result counts only once COMMIT has answered.
* A ``Write`` gives no rows, so that an engine may hold it back and send it together with what follows. The last batch
  of a program may say so: then its rows are given, and COMMIT goes with it.
* Times come from ``now_ms()`` in a statement that comes after the lock of the lane.

The SQL is shared by all dialects. Parameters are ``$1``, ``$2``, … ; four words are the seam to a dialect:

* ``now_ms()`` is the database's clock;
* ``in any_of($n)`` looks into a JSON array of texts that is given as the text parameter ``$n``;
* ``utf8(column)`` gives a text as its bytes;
* a trailing ``for update of x`` locks the rows that are read of ``x``, where the dialect has row locks.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

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


class Lock(msgspec.Struct, frozen=True, gc=False):
    """A statement that is there for its ``for update`` alone; it gives no rows.

    What is read to decide stands in statements behind it, so that they see what was committed before the lock was
    granted. An engine whose transactions exclude each other passes it over.
    """

    sql: str
    params: tuple[Param, ...] = ()


class LockNames(msgspec.Struct, frozen=True, gc=False):
    """Locks names until the transaction ends, for what has no row of its own; it gives no rows.

    Row locks are taken before names, so that nobody who has one waits for the other; who has to take more rows behind
    a name may meet a deadlock, which is found and tried again.
    """

    names: tuple[str, ...]


Item: TypeAlias = "Statement | Many | Lock | LockNames"


class Expected(NamedTuple):
    """The rows that a statement of a ``Read`` will give, if nothing happened that the caller does not know of.

    ``implied``: they follow from the other expected facts or from a constraint, and need no look.
    """

    rows: Sequence[Row]
    implied: bool = False


class Read:
    """A batch that changes nothing (it may lock). ``Rows`` come back, a list for each statement.

    ``expect`` has an entry for each ``Statement`` (locks have none): an engine to which a round trip is dear may decide
    on these rows, and have the database refuse the writes where the facts are others. ``last``: nothing follows.
    """

    __slots__ = ("expect", "last", "statements")

    def __init__(self, *statements: Item, expect: Sequence[Expected] | None = None, last: bool = False) -> None:
        self.statements: Sequence[Item] = statements
        self.expect = expect
        self.last = last


class Write:
    """A batch that changes the database. It gives no rows, unless it is the ``last`` batch of its program.

    ``apart``: no statement depends on what another one of the batch does, so that an engine may run them as one. Of a
    ``last`` batch that is ``apart``, nothing but the rows of its last statement counts.
    ``wakes``: once this is committed, there may be something to do for whoever waits for work.
    """

    __slots__ = ("apart", "last", "statements", "wakes")

    def __init__(self, *statements: Item, last: bool = False, apart: bool = False, wakes: bool = False) -> None:
        self.statements: Sequence[Item] = statements
        self.last = last
        self.apart = apart
        self.wakes = wakes


def id_list(ids: Iterable[str]) -> str:
    """Give ids as the parameter of ``any_of``."""
    return encode(list(ids)).decode()


T = TypeVar("T")
Program: TypeAlias = Generator["Read | Write", "Rows", T]
ProgramFactory: TypeAlias = Callable[[], "Generator[Read | Write, Rows, T]"]
