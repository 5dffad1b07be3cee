"""Opening a database: is the place fit, is the file ours, which steps of the schema does it lack.

It promises that a database appears whole or not at all, that a file which is refused was not changed, that many
processes may start at once, and that every refusal is a typed error with a remedy. It knows migrations, and no program.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import random
import secrets
import stat
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import apsw

from fastness.engines.engine import Clock
from fastness.engines.sqlite_faults import BusyWait, Fault, open_error, store_error
from fastness.engines.sqlite_files import SharedFile, acquire
from fastness.engines.sqlite_mounts import MOUNT_TABLE, file_system_of, is_network
from fastness.engines.sqlite_run import BatchHook, translate
from fastness.engines.sqlite_verify import column_findings
from fastness.errors import (
    ContendedError,
    DatabaseDamagedError,
    DatabaseFullError,
    DatabaseOpenError,
    DatabaseReadOnlyError,
    StoreError,
)
from fastness.sql.migrations import LEDGER_TABLE, READ_LEDGER, Migration, migrations, missing, script
from fastness.sql.schema import SQLITE_TYPES

WAL_SIZE_LIMIT = 48 * 1024 * 1024
"""Bytes that the log keeps on disk once it starts over, a little above what the checkpoint policy lets it grow to."""

_NO_HARD_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
_ANY_USE = apsw.SQLITE_OPEN_READWRITE
_SMALLEST_PAGE = 512
_JOURNAL_PAGES = slice(16, 20)  # where a rollback journal says how long the database was
_STATEMENTS_CACHED = 256
_FINDINGS_TOLD = 3
_WRITER_CACHE_KIB = 32_000
_OTHER_CACHE_KIB = 8_000


@dataclass(frozen=True, slots=True)
class Settings:
    """How an engine was asked to work. ``path`` is absolute; None is a private database in memory."""

    path: Path | None
    clock: Clock
    synchronous: Literal["full", "normal"]
    busy_timeout_ms: int
    allow_network_filesystem: bool
    before_batch: BatchHook | None = None

    @property
    def place(self) -> str:
        """How messages name the database."""
        return str(self.path) if self.path is not None else "the in-memory database"


class Link:
    """One connection with the cursor that runs everything on it, and the wait that its locks get."""

    __slots__ = ("connection", "cursor", "place", "wait")

    def __init__(self, connection: apsw.Connection, place: str, wait: BusyWait) -> None:
        self.connection = connection
        self.cursor = connection.cursor()
        self.place = place
        self.wait = wait

    def explain(self, error: Fault) -> StoreError:
        """Translate an error of this connection."""
        return store_error(error, self.place, self.wait.waited_ms)

    def pragma(self, text: str) -> object:
        """Run a pragma and give the first value that it answers."""
        rows = list(self.cursor.execute(f"pragma {text}"))
        return rows[0][0] if rows else None

    def close(self) -> None:
        """Close the connection, whatever state it is in."""
        with contextlib.suppress(apsw.Error):
            self.connection.close(True)


def open_writer(settings: Settings) -> Link:
    """Open the connection that writes, and migrate where needed. A file must exist already (see ``enter_file``)."""
    link = _connect(settings, settings.path)
    try:
        _bring_up_to_date(link, settings)
        link.pragma(f"cache_size=-{_WRITER_CACHE_KIB}")
    except (apsw.Error, UnicodeDecodeError) as error:
        link.close()
        raise open_error(error, link.place, link.wait.waited_ms) from error
    except BaseException:
        link.close()
        raise
    return link


def open_helper(settings: Settings, *, query_only: bool) -> Link:
    """Open another connection to a database that a writer has opened: for reading, or for checkpoints."""
    link = _connect(settings, settings.path)
    try:
        link.pragma(f"cache_size=-{_OTHER_CACHE_KIB}")
        # A connection that has never read does not know of the log yet: a checkpoint on it would do nothing.
        link.pragma("schema_version")
        if query_only:
            link.pragma("query_only=on")
    except apsw.Error as error:
        link.close()
        raise open_error(error, link.place, link.wait.waited_ms) from error
    return link


def lacking(settings: Settings) -> tuple[Migration, ...]:
    """Give the steps that a file lacks, all of them where there is none. Changes nothing."""
    known = migrations(SQLITE_TYPES)
    if settings.path is None or not _size(settings.path):
        return known
    check_place(settings)
    link = _connect(settings, settings.path)
    try:
        return missing(_applied(link), known)
    except (apsw.Error, UnicodeDecodeError) as error:
        raise open_error(error, link.place, link.wait.waited_ms) from error
    finally:
        link.close()


def enter_file(settings: Settings) -> SharedFile:
    """Check the place, create the database where there is none, and take part in the file."""
    path = settings.path
    assert path is not None
    try:
        check_place(settings)
        create_if_absent(settings)
        return acquire(path)
    except OSError as error:
        raise _os_error(error, settings.place) from error


def _os_error(error: OSError, place: str) -> StoreError:
    name = errno.errorcode.get(error.errno or 0, "unknown error")
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return DatabaseFullError(f"there is no room left for {place}", "free some space, then retry the same call")
    if error.errno in {errno.EROFS, errno.EACCES, errno.EPERM}:
        return DatabaseReadOnlyError(f"{place} cannot be written ({name})", "make the file and its directory writable")
    return DatabaseOpenError(f"{place} cannot be opened ({name})", "check the path and its permissions")


def check_place(settings: Settings) -> None:
    """Refuse a path at which no database can live safely. Touches nothing."""
    path = settings.path
    assert path is not None
    parent = path.parent
    if not parent.is_dir():
        raise DatabaseOpenError(f"the directory {parent} does not exist", "create it, or name another path")
    _check_file_system(settings, _real(path).parent)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise DatabaseReadOnlyError(
            f"the directory {parent} cannot be written", "make it writable, or name another path"
        )
    if path.exists():
        _check_file(path)
    _check_log(path)


def _real(path: Path) -> Path:
    """Follow links as SQLite does, which keeps the log beside the file that they lead to."""
    try:
        return path.resolve()
    except (RuntimeError, OSError) as error:
        raise DatabaseOpenError(f"{path} cannot be resolved ({error})", "check the links on the way to it") from error


def _check_file(path: Path) -> None:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "no regular file"
        raise DatabaseOpenError(f"{path} is {kind}", "name a file")
    if 0 < status.st_size < _SMALLEST_PAGE:  # SQLite would take it for an empty database and write over it
        raise DatabaseOpenError(f"{path} is not a SQLite database", "name another file; this one was not changed")
    if not os.access(path, os.R_OK):
        raise DatabaseOpenError(f"{path} cannot be read", "check its permissions")
    if not os.access(path, os.W_OK):
        raise DatabaseReadOnlyError(f"{path} cannot be written", "make it writable, or work on a copy")


def _check_log(path: Path) -> None:
    """Refuse a log whose database is gone. SQLite would apply it to the next file of that name, or delete it."""
    real = _real(path)
    for suffix in ("-wal", "-journal"):
        log = real.with_name(real.name + suffix)
        if not _size(log):
            continue
        # Looked at after the log: a log that another process began just now has a database by now.
        size = _size(path)
        if size is None:
            fate = "missing"
        elif size == 0 and (suffix == "-wal" or _is_of_pages(log)):
            fate = "empty"
        else:
            continue
        raise DatabaseOpenError(
            f"{path} is {fate} and its log is still there",
            f"restore the database file, or remove the log ({log}, {real.name}-shm) if the database is really gone",
        )


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _is_of_pages(journal: Path) -> bool:
    """Whether a rollback journal was begun on a database that had pages.

    It is not where an empty file is being made a database just now, or a crash came in between.
    """
    try:
        with journal.open("rb") as file:
            return any(file.read(_JOURNAL_PAGES.stop)[_JOURNAL_PAGES])
    except FileNotFoundError:
        return False


def _check_file_system(settings: Settings, directory: Path) -> None:
    if settings.allow_network_filesystem:
        return
    try:
        table = Path(MOUNT_TABLE).read_text(errors="replace")
    except OSError:
        return  # not Linux: nothing tells
    kind = file_system_of(table, str(directory))
    if is_network(kind):
        raise DatabaseOpenError(
            f"{settings.path} is on a network or host-shared file system ({kind}), where SQLite's log is not safe",
            "use a local disk, or pass allow_network_filesystem=True if one machine alone ever opens it",
        )


def create_if_absent(settings: Settings) -> None:
    """Put a complete empty database at the path, in one step, unless something is there.

    It is built under another name and linked into place: who comes second uses the first one's, and a full disk or a
    crash leaves nothing under the path that was asked for.
    """
    path = settings.path
    assert path is not None
    if path.exists():
        return
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}.new")
    try:
        _build(settings, draft)
        _check_log(path)  # once more: building took a while
        try:
            os.link(draft, path)
        except FileExistsError:
            return
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            _make_empty(path)
        _sync_directory(path.parent)
    finally:
        for suffix in ("", "-journal", "-wal", "-shm"):
            draft.with_name(draft.name + suffix).unlink(missing_ok=True)


def _make_empty(path: Path) -> None:
    """Where there are no hard links, the database is built where it stands, from an empty file."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644))


def _build(settings: Settings, draft: Path) -> None:
    place = settings.place
    try:
        link = _connect(settings, draft, apsw.SQLITE_OPEN_CREATE)
        try:
            _bring_up_to_date(link, settings)
            link.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        finally:
            link.close()
    except apsw.Error as error:
        raise open_error(error, place) from error


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_connections: weakref.WeakSet[apsw.Connection] = weakref.WeakSet()


def _keep_open_in_child() -> None:
    # A connection must not even be closed in a forked child: that would work on the parent's files. So none of them may
    # ever be collected there, not at the end of the interpreter either.
    for connection in list(_connections):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_open_in_child)


def _connect(settings: Settings, path: Path | None, also: int = 0) -> Link:
    # SQLite itself may make a file for a draft only: one that vanished meanwhile may have left its log behind.
    wait = BusyWait(settings.busy_timeout_ms)
    name = ":memory:" if path is None else str(path)
    try:
        connection = apsw.Connection(name, flags=_ANY_USE | also, statementcachesize=_STATEMENTS_CACHED)
    except apsw.Error as error:
        raise open_error(error, settings.place) from error
    _connections.add(connection)
    link = Link(connection, settings.place, wait)
    connection.set_busy_handler(wait)
    connection.config(apsw.SQLITE_DBCONFIG_DQS_DML, 0)
    # Plans must not depend on bound values: else every new value has its statement prepared again.
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
    connection.create_scalar_function("now_ms", _now_of(settings.clock), 0, deterministic=False)
    try:
        for text in (
            f"synchronous={settings.synchronous}",
            "foreign_keys=on",
            "trusted_schema=off",
            "temp_store=memory",
            "wal_autocheckpoint=0",
            f"journal_size_limit={WAL_SIZE_LIMIT}",
        ):
            link.pragma(text)
    except apsw.Error as error:
        link.close()
        raise open_error(error, link.place, wait.waited_ms) from error
    return link


def _now_of(clock: Clock) -> Callable[..., int]:
    def now_ms(*_none: object) -> int:
        return clock()

    return now_ms


def _bring_up_to_date(link: Link, settings: Settings) -> None:
    """Look first, and write only what is lacking: a database that is current is opened without a lock."""
    known = migrations(SQLITE_TYPES)
    steps = missing(_applied(link), known)
    if link.connection.readonly("main"):
        raise DatabaseReadOnlyError(f"{link.place} cannot be written", "make it writable, or work on a copy")
    if not steps:
        _check_columns(link)
    if settings.path is not None:
        _switch_to_wal(link)
    if steps:
        _migrate(link, known)


def _applied(link: Link) -> list[int]:
    things = set(link.cursor.execute("select type, name from sqlite_schema"))
    if ("table", LEDGER_TABLE) in things:
        return [version for (version,) in link.cursor.execute(translate(READ_LEDGER))]
    # We number neither the file nor its version, so one that has a number is somebody else's, however empty.
    if things or link.pragma("application_id") or link.pragma("user_version"):
        raise DatabaseOpenError(
            f"{link.place} is a SQLite database of something else", "name another file; this one was not changed"
        )
    return []


def _check_columns(link: Link) -> None:
    """Refuse a database whose ledger is current and whose tables are not: each statement on them would fail."""
    findings = column_findings(link.cursor)
    if not findings:
        return
    more = len(findings) - _FINDINGS_TOLD
    told = ", ".join(findings[:_FINDINGS_TOLD]) + (f", and {more} more" if more > 0 else "")
    damage = DatabaseDamagedError(f"{link.place} was changed by something else", "restore it from a backup")
    raise DatabaseOpenError(
        f"{link.place} does not have the tables that this release made in it ({told})",
        "restore it from a backup, or use the build that changed it; nothing was changed now",
    ) from damage


def _switch_to_wal(link: Link) -> None:
    if link.pragma("journal_mode") == "wal":
        return
    # The switch does not call the busy handler where waiting could deadlock.
    mode = _patiently(link, lambda: link.pragma("journal_mode=wal"))
    if mode != "wal":
        raise DatabaseOpenError(f"{link.place} is on a file system without shared memory", "use a local disk")


def _patiently(link: Link, attempt: Callable[[], object]) -> object:
    started = time.monotonic()
    while True:
        try:
            return attempt()
        except (apsw.BusyError, apsw.ProtocolError) as error:
            waited_ms = round((time.monotonic() - started) * 1000)
            if waited_ms >= link.wait.timeout_ms:
                raise ContendedError(f"{link.place} stayed locked by another connection", waited_ms) from error
            time.sleep(random.uniform(0.001, 0.02))  # noqa: S311 - jitter, no secret


def _migrate(link: Link, known: tuple[Migration, ...]) -> None:
    """Take the lock, look again (another process may have been faster), and run what is still missing."""
    cursor = link.cursor
    cursor.execute("begin immediate")
    try:
        steps = missing(_applied(link), known)
        for statement in script(steps):
            cursor.execute(statement)
        # Before it counts: what was changed by hand stays as it was, for the build that can read it.
        _check_columns(link)
        cursor.execute("commit")
    except BaseException as error:
        if link.connection.in_transaction:
            cursor.execute("rollback")
        if isinstance(error, apsw.SQLError):  # not the file's fault: what it holds does not fit the statements
            raise DatabaseOpenError(
                f"{link.place} could not be migrated ({error})", "restore it from a backup; nothing was changed"
            ) from error
        raise
