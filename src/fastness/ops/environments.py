"""Environments: documents that never change, by their canonical hash (law E1). Their content is kept as blobs."""

from __future__ import annotations

from fastness.errors import DatabaseDamagedError, InvalidInputError
from fastness.model.environment import process_execution_env_ref
from fastness.ops.commit import ADD_BLOB
from fastness.sql.program import Many, Program, Read, Row, Statement, Write
from fastness.sql.records import stored_content

FIND = "select 1 from environment where ref = $1"
ADD = "insert into environment (ref, blob, recorded_ms) values ($1, $2, now_ms()) on conflict (ref) do nothing"
CONTENT = "select e.blob, b.body from environment e left join blob b on b.ref = e.blob where e.ref = $1"
PAGE = """
    select e.ref, e.blob, b.body, e.recorded_ms from environment e left join blob b on b.ref = e.blob
    where e.ref > $1 order by e.ref limit $2"""
PER_READ = 8
"""An environment may have many megabytes, and seldom has."""

MOVE = "insert into environment (ref, blob, recorded_ms) values ($1, $2, $3) on conflict (ref) do nothing"


def put(ref: str, blob: str, body: bytes) -> Program[None]:
    """Keep an environment, unless one is there already under its name: that one stays as it is.

    ``blob`` is the hash of its content, ``body`` that content as it is stored.
    """
    (known,) = yield Read(Statement(FIND, (ref,)))
    if not known:
        yield Write(Statement(ADD_BLOB, (blob, body)), Statement(ADD, (ref, blob)))


def get(ref: str) -> Program[bytes | None]:
    """Give an environment as it was put first; None where there is none."""
    (rows,) = yield Read(Statement(CONTENT, (ref,)), last=True)
    return _sound(ref, *rows[0]) if rows else None


def page_after(ref: str, limit: int) -> Program[list[Row]]:
    """Give a page of environments, from behind one: name, blob, stored body (None: missing), time."""
    (rows,) = yield Read(Statement(PAGE, (ref, limit)))
    return rows


def require_sound(rows: list[Row]) -> None:
    """Refuse a page with an environment whose content is missing or damaged: ``DatabaseDamagedError``."""
    for ref, blob, body, _ in rows:
        _sound(ref, blob, body)


def _sound(ref: str, blob: str, body: bytes | None) -> bytes:
    content = stored_content(blob, body)
    if content is None:
        raise DatabaseDamagedError(
            f"the content of environment {ref} is missing or damaged", "run 'check', restore from a backup"
        )
    return content


def broken() -> Program[list[str]]:
    """Give the environments whose content is missing or damaged, or that are not what their name says."""
    found: list[str] = []
    after = ""
    while rows := (yield from page_after(after, PER_READ)):
        found += [ref for ref, blob, body, _ in rows if not _is_sound(ref, stored_content(blob, body))]
        after = rows[-1][0]
    return found


def _is_sound(ref: str, content: bytes | None) -> bool:
    try:
        return content is not None and process_execution_env_ref(content) == ref
    except InvalidInputError:
        return False


def write_page(rows: list[Row]) -> Program[None]:
    """Keep environments that were read from another database. What is there stays as it is."""
    yield Write(
        Many(ADD_BLOB, [(blob, bytes(body)) for _, blob, body, _ in rows]),
        Many(MOVE, [(ref, blob, recorded_ms) for ref, blob, _, recorded_ms in rows]),
    )
