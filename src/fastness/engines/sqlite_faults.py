"""What SQLite's errors mean to a caller: one typed error for each, and for how long a lock is waited for.

It promises that no driver error leaves the engine as it is, that messages carry paths and names of tables but never
values, and that every wait is bounded. It knows no connection and no transaction.
"""

from __future__ import annotations

import copy
import random
import time
from typing import TypeAlias

import apsw

from fastness.errors import (
    BackendError,
    CommitOutcomeUnknownError,
    ContendedError,
    DatabaseDamagedError,
    DatabaseFullError,
    DatabaseOpenError,
    DatabaseReadOnlyError,
    StoreError,
)

_SHORTEST_NAP_S = 0.000_5
_LONGEST_NAP_S = 0.008

_DAMAGED_BELOW = frozenset({"SQLITE_IOERR_CORRUPTFS", "SQLITE_IOERR_DATA"})  # by what the file system tells
_MEND = "run check to see how far it goes, and restore the database from a backup"

Fault: TypeAlias = apsw.Error | UnicodeDecodeError
"""What a statement raises through the fault of the database; the driver decodes stored text as it hands it out."""

KNOWN_ROLLED_BACK = (apsw.FullError, apsw.BusyError, apsw.LockedError, apsw.ConstraintError, apsw.ReadOnlyError)
"""What COMMIT may raise without leaving a doubt: the record that makes it count was not written whole."""


class BusyWait:
    """SQLite's busy handler: naps of random length, until the time is up.

    Random, because processes that wake in step meet at the same lock again; short, because a busy writer leaves only
    short gaps. ``waited_ms`` is what the last wait took.
    """

    def __init__(self, timeout_ms: int) -> None:
        self.timeout_ms = timeout_ms
        self.waited_ms = 0
        self._since = 0.0

    def __call__(self, attempt: int) -> bool:
        """Nap, and say whether to try again. ``attempt`` counts from 0 for each lock."""
        now = time.monotonic()
        if attempt == 0:
            self._since = now
        self.waited_ms = round((now - self._since) * 1000)
        left = self.timeout_ms / 1000 - (now - self._since)
        if left <= 0:
            return False
        ceiling = min(_LONGEST_NAP_S, _SHORTEST_NAP_S * 2 ** min(attempt, 8))
        time.sleep(min(left, random.uniform(_SHORTEST_NAP_S, 2 * ceiling)))  # noqa: S311 - jitter, no secret
        return True


def code_of(error: apsw.Error) -> str:
    """Give SQLite's own name of the failure, such as ``SQLITE_IOERR_FSYNC``."""
    extended = getattr(error, "extendedresult", -1)
    name = apsw.mapping_extended_result_codes.get(extended) or apsw.mapping_result_codes.get(extended)
    return str(name or type(error).__name__)


def is_damage(error: BaseException | None) -> bool:
    """Whether an error says that what is stored cannot be read. Text that is no UTF-8 was not written by us."""
    if isinstance(error, apsw.IOError):
        return code_of(error) in _DAMAGED_BELOW
    return isinstance(error, DatabaseDamagedError | apsw.CorruptError | apsw.NotADBError | UnicodeDecodeError)


def store_error(error: Fault, place: str, waited_ms: int = 0) -> StoreError:
    """Translate what SQLite raised in a transaction that is rolled back. ``place`` names the database."""
    typed = _typed(error, place, waited_ms)
    typed.__cause__ = error
    return typed


def open_error(error: Fault, place: str, waited_ms: int = 0) -> StoreError:
    """Translate what SQLite raised while a database was opened."""
    typed: StoreError
    if isinstance(error, apsw.NotADBError):
        typed = DatabaseOpenError(f"{place} is not a SQLite database", "name another file; this one was not changed")
    elif is_damage(error):
        typed = DatabaseOpenError(f"{place} is truncated or damaged", "restore it from a backup; nothing was changed")
    elif isinstance(error, apsw.CantOpenError | apsw.SQLError):
        typed = DatabaseOpenError(f"{place} cannot be opened ({code_of(error)})", "check the path and its permissions")
    else:
        return store_error(error, place, waited_ms)
    typed.__cause__ = error
    return typed


def _typed(error: Fault, place: str, waited_ms: int) -> StoreError:
    if isinstance(error, UnicodeDecodeError) or is_damage(error):
        what = "contains text that is not UTF-8" if isinstance(error, UnicodeDecodeError) else code_of(error)
        return DatabaseDamagedError(f"{place} is damaged ({what})", _MEND)
    if isinstance(error, apsw.FullError):
        return DatabaseFullError(f"there is no room left for {place}", "free some space, then retry the same call")
    if isinstance(error, apsw.ReadOnlyError):
        return DatabaseReadOnlyError(
            f"{place} cannot be written ({code_of(error)})", "make the file and its directory writable"
        )
    if isinstance(error, apsw.BusyError | apsw.LockedError | apsw.ProtocolError):
        return ContendedError(f"{place} stayed locked by another connection", waited_ms)
    if isinstance(error, apsw.ConstraintError | apsw.SQLError | apsw.MismatchError | apsw.TooBigError):
        return BackendError(f"{place} refused a statement ({code_of(error)}: {error})", "this is a fault of the caller")
    return BackendError(f"{place} failed ({code_of(error)})")


def commit_error(error: Exception, place: str, waited_ms: int) -> StoreError:
    """Translate what COMMIT raised: an error that says "nothing happened" only where that is certain (law C12)."""
    if isinstance(error, StoreError):
        return error
    if not isinstance(error, apsw.Error):
        typed: StoreError = BackendError(f"the transaction on {place} was given up ({type(error).__name__})")
    elif isinstance(error, KNOWN_ROLLED_BACK):
        return store_error(error, place, waited_ms)
    else:
        typed = CommitOutcomeUnknownError(f"{place}: {code_of(error)} during COMMIT")
    typed.__cause__ = error
    return typed


def same_for_another(error: StoreError) -> StoreError:
    """Copy an error that goes to several callers: a raised exception collects the traceback of whoever raises it."""
    twin = copy.copy(error)
    twin.__cause__ = error.__cause__
    return twin
