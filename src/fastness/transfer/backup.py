"""Backups: a database as it was at one moment, in a SQLite file of its own, and the way back.

It promises that a backup appears whole under its name or not at all, that it was verified before it got the name, and
that nobody who held a lane when it was taken, or later, can write to what was restored from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
from functools import partial
from pathlib import Path

from fastness.decide.transfer import RESTORE_ADVANCE
from fastness.engines.engine import Engine, Snapshot
from fastness.engines.sqlite import check_path, holds_bytes
from fastness.errors import BackendError, DatabaseDamagedError, DatabaseOpenError, InvalidInputError
from fastness.factory import EngineSessionStoreFactory, SqliteSessionStoreFactory
from fastness.ops import transfer
from fastness.transfer.copying import Mover, Progress, TransferReport, refuse_same, sessions_of

_LOGS = ("-wal", "-shm", "-journal")
_NO_HARD_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


async def backup(
    source: EngineSessionStoreFactory, file: str | Path, *, progress: Progress | None = None
) -> TransferReport:
    """Write all sessions, as they are at this moment, into a new file, while the source is in use.

    The file is a database that every command reads. Its lanes are free; their fencing tokens are as they were. It is
    made under another name in the same directory (``.NAME.….part``), verified, synced, and named last. A source on
    SQLite keeps its whole log until the end.

    Raises ``InvalidInputError`` where the file exists, ``DatabaseOpenError`` or ``DatabaseReadOnlyError`` where it
    cannot be made, ``DatabaseDamagedError`` where the source has faults, ``BackendError`` for a source in memory.
    """
    path = _new_file(file)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    try:
        # No commit needs to survive the loss of power before the file has its name; it is synced as a whole then.
        async with source.engine.snapshot() as snapshot, SqliteSessionStoreFactory(draft, synchronous="normal") as made:
            report = await Mover(snapshot, made.engine, 0, progress).run()
            await _refuse_faults(made, "what was read for the backup", progress)
        await asyncio.to_thread(_publish, draft, path)
    finally:
        for suffix in ("", *_LOGS):
            with contextlib.suppress(OSError):
                draft.with_name(draft.name + suffix).unlink()
    return report


async def restore(
    file: str | Path, destination: EngineSessionStoreFactory, *, progress: Progress | None = None
) -> TransferReport:
    """Bring all sessions of a backup into an empty database, each with its fencing token far ahead (law L3).

    The backup is verified first. A restore that was broken off is completed by another one of the same file; a
    destination that holds any other session is refused before anything is written.

    Raises ``InvalidInputError`` for such a destination, ``DatabaseOpenError`` for a file that is no backup, and
    ``DatabaseDamagedError`` for one that has faults.
    """
    check_path(file)
    if not holds_bytes(file):
        raise DatabaseOpenError(f"there is no backup at {str(file)!r}", "name a file that 'fastness backup' made")
    async with SqliteSessionStoreFactory(file) as kept:
        refuse_same(kept.engine, destination.engine)
        await kept.engine.read(transfer.count_sessions)  # what is no database of ours is told from a damaged one
        await _refuse_faults(kept, f"the backup {str(file)!r}", progress)
        async with kept.engine.snapshot() as snapshot:
            await _refuse_strangers(snapshot, destination.engine, progress)
            return await Mover(snapshot, destination.engine, RESTORE_ADVANCE, progress).run()


async def _refuse_faults(made: EngineSessionStoreFactory, what: str, progress: Progress | None) -> None:
    report = await made.check(None if progress is None else partial(progress, "checking"))
    if report.findings:
        first = report.findings[0]
        where = "" if first.session_id is None else f"session {first.session_id!r}: "
        raise DatabaseDamagedError(
            f"{what} has faults ({len(report.findings)}), the first one: {where}{first.detail}",
            "nothing was written; 'fastness check' lists the faults of a database",
        )


async def _refuse_strangers(snapshot: Snapshot, destination: Engine, progress: Progress | None) -> None:
    """Refuse a destination with a session that no earlier restore of this backup has brought there."""
    total = await destination.read(transfer.count_sessions)
    done = 0
    async for sid, session_id in sessions_of(destination):
        there = await destination.read(partial(transfer.read_session, sid, None))
        here = await snapshot.read(partial(transfer.find_session, session_id))
        done += 1
        if progress is not None:
            progress("comparing", done, max(total, done))
        if there is None:
            continue
        if here is None or here.digest != there.digest or there.position[0] != here.position[0] + RESTORE_ADVANCE:
            raise InvalidInputError(
                "the destination",
                f"holds sessions that this restore did not bring there, such as {session_id!r}; nothing was written:"
                " name an empty database, or 'fastness copy' the backup into this one",
            )


def _new_file(file: str | Path) -> Path:
    check_path(file)
    path = Path(file).absolute()
    try:
        if path.is_symlink() or path.exists():
            raise InvalidInputError(
                f"file {str(file)!r}", "exists; a backup is written to a new file, name another one"
            )
        if not path.name or not path.parent.is_dir():
            raise DatabaseOpenError(f"the directory {path.parent} does not exist", "create it, or name another file")
    except OSError as error:
        raise _unwritable(path, error) from error
    return path


def _publish(draft: Path, path: Path) -> None:
    """Give a finished backup its name, durably, unless something has it by now."""
    try:
        if any(draft.with_name(draft.name + suffix).exists() for suffix in _LOGS):
            raise BackendError(f"the log of the backup {path} could not be merged into it", "run it again")
        _sync(draft)
        try:
            os.link(draft, path)
        except FileExistsError:
            raise InvalidInputError(
                f"file {str(path)!r}", "was made by somebody else meanwhile; name another"
            ) from None
        except OSError as error:
            if error.errno not in {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}:
                raise
            draft.rename(path)  # no hard links here
        _sync(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error


def _sync(place: Path) -> None:
    descriptor = os.open(place, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(path: Path, error: OSError) -> DatabaseOpenError:
    name = errno.errorcode.get(error.errno or 0, "unknown error")
    return DatabaseOpenError(f"{path} cannot be written ({name})", "check the directory and its permissions")
