"""Reading a whole session out of one database and writing it into another (the rim drives the two).

A session is read some rows at a time and handed to a ``Sink``, so that what is in memory is a page (250 rows of each
table, or 8 blobs) and not a session. It is written in one transaction, under a new surrogate key, with the blobs it
needs: a session that is there is whole. Both databases must have the schema of this release, which opening them sees
to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeAlias

import msgspec

from fastness.decide.transfer import SessionDigest, free_lane, lane_identity
from fastness.errors import DatabaseDamagedError
from fastness.ops.commit import ADD_BLOB
from fastness.ops.transfer_tables import MOVED, TABLES, Table
from fastness.sql.program import Many, Program, Read, Row, Statement, Write, id_list
from fastness.sql.records import page_end, stored_content

BLOB = "blob"
ROWS_PER_PAGE = 250
BLOBS_PER_PAGE = 8
"""A blob may have many megabytes, a row seldom has."""

_WORK = frozenset({"turn_input", "queued_work"})
_SESSION = TABLES["session"]
_RELEASE = TABLES["attachment_release"]

COUNT = "select count(*) from session"
SESSIONS = "select sid, session_id from session where sid > $1 order by sid limit $2"
SID = "select sid from session where session_id = $1"
NEW_SID = """
    select s.sid, (select count(*) from lane l where l.sid = s.sid) from session s where s.session_id = $1"""
SESSION = f"select session_id, {', '.join(_SESSION.columns)} from session where sid = $1"
ADD_SESSION = f"{_SESSION.insert} on conflict (session_id) do nothing"
BLOBS = "select ref, body from blob where ref in any_of($1)"
ADD_RELEASE = f"""
    {_RELEASE.insert} on conflict (attachment_id, session_id) do update set released_ms = excluded.released_ms
    where attachment_release.released_ms < excluded.released_ms"""

Page: TypeAlias = "tuple[str, list[Row]]"
"""Rows of one table, without the surrogate key of the session."""


class Sink(Protocol):
    """Takes the rows of a session in, a page at a time, in an order in which they can be written."""

    def begin(self) -> None:
        """Forget what was taken in: the session is read from its beginning."""
        ...

    def put(self, table: str, rows: list[Row]) -> None:
        """Take in some rows of a table."""
        ...


class SessionImage(msgspec.Struct, frozen=True):
    """What a session is, in a few words: its row in the directory, and the digest of all its rows.

    ``position`` (fencing token, admission number, revision) tells whether somebody worked on it since.
    """

    session_id: str
    row: tuple[str | int | None, ...]
    digest: str
    position: tuple[int, int, int]
    node_count: int
    blob_count: int


def count_sessions() -> Program[int]:
    """Count the sessions of a database."""
    (((count,),),) = yield Read(Statement(COUNT))
    return int(count)


def sessions_after(sid: int, limit: int) -> Program[list[tuple[int, str]]]:
    """Give the keys and ids of the sessions that were made after one, oldest first."""
    (rows,) = yield Read(Statement(SESSIONS, (sid, limit)))
    return [(found, session_id) for found, session_id in rows]


def find_session(session_id: str) -> Program[SessionImage | None]:
    """Look at a session by its id; None where there is none."""
    (found,) = yield Read(Statement(SID, (session_id,)))
    return (yield from read_session(found[0][0], None)) if found else None


def read_session(sid: int, sink: Sink | None) -> Program[SessionImage | None]:
    """Go through all rows of a session and the blobs it needs; None where it is gone.

    Raises ``DatabaseDamagedError`` for a blob that is missing or is not what its name says.
    """
    if sink is not None:
        sink.begin()
    found, *pages = yield Read(
        Statement(SESSION, (sid,)), *(Statement(table.first_page, (sid, ROWS_PER_PAGE)) for table in MOVED)
    )
    if not found:
        return None
    reading = _Reading(found[0][0], tuple(found[0][1:]), sink)
    for table, rows in zip(MOVED, pages, strict=True):
        yield from _read_table(sid, table, rows, reading)
    return reading.image()


def _read_table(sid: int, table: Table, rows: list[Row], reading: _Reading) -> Program[None]:
    after: tuple[Any, ...] = ()
    while rows:
        if table.name == "blob_holder":
            yield from _read_blobs(reading.new_refs(table, rows), reading)
        reading.take(table, rows)
        if len(rows) < ROWS_PER_PAGE or not table.key:
            return
        after = page_end(after, table.key_of(rows[-1]))
        (rows,) = yield Read(Statement(table.next_page, (sid, *after, ROWS_PER_PAGE)))


def _read_blobs(refs: list[str], reading: _Reading) -> Program[None]:
    for at in range(0, len(refs), BLOBS_PER_PAGE):
        wanted = refs[at : at + BLOBS_PER_PAGE]
        (blobs,) = yield Read(Statement(BLOBS, (id_list(wanted),)))
        sound = [(ref, bytes(body)) for ref, body in blobs if stored_content(ref, body) is not None]
        if len(sound) < len(wanted):
            raise DatabaseDamagedError(
                f"a blob that session {reading.session_id!r} needs is missing or damaged",
                "'check' lists what is damaged; restore it from a backup",
            )
        reading.take_blobs(sound)


class _Reading:
    """What was seen of a session so far."""

    def __init__(self, session_id: str, row: Row, sink: Sink | None) -> None:
        self.session_id = session_id
        self._row = row
        self._sink = sink
        self._digest = SessionDigest()
        self._digest.add(_SESSION.name, [row])
        self._refs: set[str] = set()
        self._counts: dict[str, int] = {}
        self._position = (0, 0, 0)

    def new_refs(self, holders: Table, rows: list[Row]) -> list[str]:
        """Give the blobs that these holders need and that nobody needed before them."""
        at = holders.columns.index("ref")
        new = sorted({row[at] for row in rows} - self._refs)
        self._refs.update(new)
        return new

    def take_blobs(self, blobs: list[Row]) -> None:
        """Take in blobs. They are in the digest by their names, which are hashes: holders refer to them."""
        if self._sink is not None:
            self._sink.put(BLOB, blobs)

    def take(self, table: Table, rows: list[Row]) -> None:
        """Take in rows of a table of the session."""
        self._counts[table.name] = self._counts.get(table.name, 0) + len(rows)
        counted = rows
        if table.name == "lane":
            counted = [lane_identity(table.columns, row) for row in rows]
        self._digest.add(table.name, counted)
        if table.name in {"lane", "head"}:
            self._note_position(dict(zip(table.columns, rows[0], strict=True)))
        if self._sink is not None:
            self._sink.put(table.name, rows)

    def _note_position(self, row: dict[str, int]) -> None:
        token, admission, revision = self._position
        self._position = (
            row.get("fencing_token", token),
            row.get("admission_seq", admission),
            row.get("revision", revision),
        )

    def image(self) -> SessionImage:
        """Give what was seen."""
        nodes = self._counts.get("node", 0)
        digest = self._digest.hexdigest()
        return SessionImage(self.session_id, self._row, digest, self._position, nodes, len(self._refs))


def write_session(image: SessionImage, pages: Callable[[], Iterable[Page]], advance: int) -> Program[bool]:
    """Write a session that was read, with a free lane whose fencing token is moved on by ``advance``.

    False: there is a session of that id, and nothing was written.
    """
    yield Write(Statement(ADD_SESSION, image.row))
    (((sid, lanes),),) = yield Read(Statement(NEW_SID, (image.session_id,)))
    if lanes:
        return False  # it was there, whole, and adding it did nothing
    for name, rows in pages():
        yield Write(_addition(sid, name, rows, advance), wakes=name in _WORK)
    return True


def _addition(sid: int, name: str, rows: list[Row], advance: int) -> Many:
    if name == BLOB:
        return Many(ADD_BLOB, rows)
    table = TABLES[name]
    if name == "lane":
        rows = [free_lane(table.columns, row, advance) for row in rows]
    return Many(table.insert, [(sid, *row) for row in rows])


def releases_after(last: Row | None) -> Program[list[Row]]:
    """Give a page of what deleted sessions held of attachments, from behind its last row."""
    if last is None:
        (rows,) = yield Read(Statement(_RELEASE.first_page, (ROWS_PER_PAGE,)))
    else:
        (rows,) = yield Read(Statement(_RELEASE.next_page, (*_RELEASE.key_of(last), ROWS_PER_PAGE)))
    return rows


def write_releases(rows: list[Row]) -> Program[None]:
    """Write releases. Of two times for one, the later stays, so that a sweep waits for the longer."""
    yield Write(Many(ADD_RELEASE, rows))
