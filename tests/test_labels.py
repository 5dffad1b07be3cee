"""Labels, priority and the application's JSON of a session: their budget, where they go along, and what they cost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fastness.conformance import Lab
from fastness.conformance.builders import WHEN
from fastness.errors import InvalidInputError
from fastness.model import SessionFilter, SessionMeta, SessionStoreCreateRequest
from fastness.persistence import InMemorySessionStoreFactory, SqliteSessionStoreFactory
from fastness.sql.program import Program, Read, Row, Statement
from fastness.transfer import backup, copy, restore
from tests.lab import ENGINES

META = SessionMeta(
    "s", "My trip", WHEN, "m", labels=("blue", "north shore"), priority=7, custom=msgspec.Raw(b'{"n":1e2,"n":2}')
)
FILL = (
    """with recursive numbers (n) as (select 1 union all select n + 1 from numbers where n < 2000)
    insert into session (session_id, created_ms) select 's' || n, n from numbers""",
    "insert into lane (sid) select sid from session",
    "insert into session_label (sid, label) select sid, 'common' from session where sid % 2 = 0",
    "insert into session_label (sid, label) select sid, 'rare' from session where sid % 100 = 0",
    "insert into session_label (sid, label) select sid, 'own ' || sid from session",
    """update lane set owner_id = 'alice', incarnation_id = '1', liveness = '{"type":"opaque"}', lease_token = 't'
    where sid % 100 = 0""",
)


async def test_the_applications_json_counts_for_the_budget() -> None:
    """One byte more than the budget is refused, as much as the budget is taken."""
    meta = SessionMeta("s", "n", WHEN, "m", custom=msgspec.Raw(b'"' + b"x" * 898 + b'"'))
    size = len(msgspec.json.encode(meta))
    async with InMemorySessionStoreFactory(commit_budget_bytes=size) as factory:
        store = await factory.create_store(SessionStoreCreateRequest("s"))
        await store.save_session_meta(meta)
        longer = msgspec.structs.replace(meta, session_name="nn")
        with pytest.raises(InvalidInputError, match=f"{size + 1} bytes, over the configured budget of {size}"):
            await store.save_session_meta(longer)
        assert await store.load_session_meta() == meta


async def found_by(factory: Any) -> tuple[SessionMeta, list[str], int]:
    """The description of the session ``s``, the sessions with all its labels, and the priority of its lane."""

    def priorities() -> Program[list[Row]]:
        """Read past every rule."""
        (rows,) = yield Read(Statement("select l.priority from lane l join session s on s.sid = l.sid"))
        return rows

    store = await factory.open_existing_store(SessionStoreCreateRequest("s"))
    meta = await store.load_session_meta()
    page = await factory.list_sessions(filters=SessionFilter(labels=META.labels))
    ((priority,),) = await factory.engine.read(priorities)
    return meta, [one.meta.session_id for one in page.sessions], priority


async def test_a_copy_and_a_restored_backup_are_found_by_the_same(lab: Lab, tmp_path: Path) -> None:
    """Description, labels and priority go where the session goes."""
    store = await lab.factory.create_store(SessionStoreCreateRequest("s", labels=("gone",), priority=2))
    await store.save_session_meta(META)
    async with InMemorySessionStoreFactory() as target:
        await copy(lab.factory, target)
        assert await found_by(target) == (META, ["s"], 7)
    async with SqliteSessionStoreFactory(tmp_path / "copy.db") as target:
        await copy(lab.factory, target)
        await backup(target, tmp_path / "backup.db")
    async with InMemorySessionStoreFactory() as target:
        await restore(tmp_path / "backup.db", target)
        assert await found_by(target) == (META, ["s"], 7)


async def plans(lab: Lab, call: Awaitable[object]) -> list[str]:
    """How SQLite would run what a call reads: a line for each table that it looks into."""
    lab.seen.clear()
    await call
    found = [each for batch in lab.seen for each in batch.statements if isinstance(each, Statement)][-1]
    return [line for *_, line in await lab.execute_raw(f"explain query plan {found.sql}", *found.params)]


@pytest.fixture
async def sqlite(tmp_path: Path) -> AsyncIterator[Lab]:
    """A laboratory on a SQLite file, whose plans can be read."""
    async with Lab(ENGINES["sqlite"], tmp_path) as lab:
        yield lab


BY_LABEL = "SEARCH l USING COVERING INDEX session_label_sessions (label=? AND sid>?)"
BY_NAME = "SEARCH s USING INDEX sqlite_autoindex_session_1 (session_id>? AND session_id<?)"
BY_TIME = "SEARCH s USING INDEX session_created (created_ms>? AND created_ms<?)"
BY_PARENT = "SEARCH s USING INDEX session_parent (parent_session_id=? AND sid>?)"
IN_ORDER = "SEARCH s USING INTEGER PRIMARY KEY (rowid>?)"
WAYS = {
    "all": (SessionFilter(), IN_ORDER),
    "a label": (SessionFilter(labels=("rare",)), BY_LABEL),
    "two labels": (SessionFilter(labels=("common", "rare")), BY_LABEL),
    "a label and all names": (SessionFilter(labels=("common",), id_prefix="s"), BY_LABEL),
    "a label and all times": (SessionFilter(labels=("common",), created_from_ms=1), BY_LABEL),
    "a label and few names": (SessionFilter(labels=("common",), id_prefix="s12"), BY_NAME),
    "few times": (SessionFilter(created_from_ms=1, created_until_ms=9), BY_TIME),
    "a label and few times": (SessionFilter(labels=("rare",), created_until_ms=9), BY_TIME),
    "few names": (SessionFilter(id_prefix="s12"), BY_NAME),
    "all names": (SessionFilter(id_prefix="s"), IN_ORDER),
    "a parent": (SessionFilter(parent_session_id="s1"), BY_PARENT),
    "a parent and all names": (SessionFilter(parent_session_id="s1", id_prefix="s"), BY_PARENT),
}


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("is_analyzed", [False, True])
async def test_a_listing_goes_by_the_index_of_what_fits_the_fewest(sqlite: Lab, name: str, is_analyzed: bool) -> None:
    """Where none fits few it goes in the order of the listing, so that a page costs what it shows."""
    filters, way = WAYS[name]
    await fill(sqlite, is_analyzed)
    lines = await plans(sqlite, sqlite.factory.list_sessions(limit=3, filters=filters))
    assert way in lines
    assert {line for line in lines if line.startswith("SCAN")} <= {"SCAN p", "SCAN few", "SCAN k", "SCAN CONSTANT ROW"}
    sorts = [line for line in lines if "TEMP B-TREE" in line]
    assert len(sorts) == (way in {BY_NAME, BY_TIME})


@pytest.mark.parametrize("owner_id", [None, "alice"])
@pytest.mark.parametrize("is_analyzed", [False, True])
async def test_held_lanes_are_found_by_the_index_of_holders(
    sqlite: Lab, owner_id: str | None, is_analyzed: bool
) -> None:
    """It has the lanes that are held and no other, by holder; those of one holder are sorted."""
    await fill(sqlite, is_analyzed)
    lines = await plans(sqlite, sqlite.factory.workers.list_held_lanes(owner_id=owner_id))
    assert lines[0].startswith("SEARCH l USING INDEX lane_owner (owner_id")
    assert lines[1:] == ["SEARCH s USING INTEGER PRIMARY KEY (rowid=?)", "USE TEMP B-TREE FOR LAST TERM OF ORDER BY"]


async def fill(lab: Lab, is_analyzed: bool) -> None:
    """Make many sessions, some with a rare label, one of a hundred held."""
    await lab.factory.migrate()
    for statement in FILL:
        await lab.execute_raw(statement)
    if is_analyzed:
        await lab.execute_raw("analyze")
