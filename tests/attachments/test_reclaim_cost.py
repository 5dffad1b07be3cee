"""What a sweep costs: it looks at what nobody needs, by indexes, and never at what is committed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from fastness.attachments.memory import InMemoryAttachmentStore
from fastness.attachments.reclaim import reclaim_orphaned_attachments, release_unnamed_attachments
from fastness.attachments.session import SessionAttachmentStore
from fastness.conformance import Lab
from fastness.model import AttachmentReclamationReport
from fastness.sql.program import Many, Param, Read, Statement, Write
from tests.lab import ENGINES

ORPHANS = 7
BATCH = 3


@pytest.fixture
async def sqlite(tmp_path: Path) -> AsyncIterator[Lab]:
    """A laboratory on a SQLite file, whose plans can be read."""
    async with Lab(ENGINES["sqlite"], tmp_path) as lab:
        yield lab


async def fill(lab: Lab, store: InMemoryAttachmentStore, session_id: str, contents: Sequence[str]) -> None:
    """Put and commit content in a session."""
    opened = await lab.store(session_id)
    mine = SessionAttachmentStore(opened, store, session_id)
    for content in contents:
        await mine.put(content.encode(), name="content")
    await mine.commit_refs()


async def orphan(lab: Lab, store: InMemoryAttachmentStore) -> None:
    """Leave intents that were never committed, and releases of a session that was deleted."""
    mine = SessionAttachmentStore(await lab.store("s"), store, "s")
    for number in range(ORPHANS):
        await mine.put(b"orphan %d" % number, name="orphan")
    await fill(lab, store, "gone", [f"of a session that is gone {number}" for number in range(ORPHANS)])
    await lab.factory.delete_session("gone")


async def sweep(lab: Lab, store: InMemoryAttachmentStore) -> AttachmentReclamationReport:
    """Sweep all there is, and note only what that sends."""
    opened = await lab.store("s")
    lab.seen.clear()
    return await reclaim_orphaned_attachments(opened, store, lab.now_ms, batch_size=BATCH)


def statements(batches: Sequence[Read | Write]) -> Iterator[tuple[str, tuple[Param, ...]]]:
    """Every statement of some batches, once, with parameters that it was sent with."""
    found: dict[str, tuple[Param, ...]] = {}
    for batch in batches:
        for item in batch.statements:
            if isinstance(item, Statement):
                found[item.sql] = item.params
            elif isinstance(item, Many):
                found[item.sql] = item.rows[0]
    yield from found.items()


async def plan(lab: Lab, sql: str, params: tuple[Param, ...]) -> list[str]:
    """How SQLite would run a statement: a line for each table that it looks into."""
    return [detail for *_, detail in await lab.execute_raw(f"explain query plan {sql}", *params)]


def scanned(lines: Sequence[str]) -> list[str]:
    """The lines that read a whole table of ours: all but the lists of ids, and what has no table at all."""
    return [line for line in lines if line.startswith("SCAN") and "json_each" not in line and "CONSTANT" not in line]


async def test_no_statement_of_a_sweep_reads_a_whole_table(sqlite: Lab) -> None:
    """Each finds its rows by an index, of the sweep itself, of a dry run, and of the search for unnamed bytes."""
    store = InMemoryAttachmentStore()
    await fill(sqlite, store, "s", ["kept"])
    await orphan(sqlite, store)
    await store.put(b"unnamed")
    opened = await sqlite.store("s")
    sqlite.seen.clear()
    await reclaim_orphaned_attachments(opened, store, sqlite.now_ms, batch_size=BATCH, dry_run=True)
    await release_unnamed_attachments(opened, store)
    await reclaim_orphaned_attachments(opened, store, sqlite.now_ms, batch_size=BATCH)
    sent = list(statements(sqlite.seen))
    assert len(sent) >= 10
    plans = {sql: await plan(sqlite, sql, params) for sql, params in sent}
    assert {sql: scanned(lines) for sql, lines in plans.items() if scanned(lines)} == {}
    used = "\n".join(line for lines in plans.values() for line in lines)
    assert "attachment_intent" in used
    assert "attachment_release_time" in used
    assert "attachment_by_content" in used


async def test_a_statement_that_reads_a_whole_table_would_be_seen(sqlite: Lab) -> None:
    """The plan of a statement without an index says so."""
    await sqlite.store("s")
    lines = await plan(sqlite, "select * from attachment where reference = $1", ("x",))
    assert len(scanned(lines)) == 1


async def test_a_sweep_sends_as_much_however_much_is_committed(lab: Lab) -> None:
    """It is the same number of batches and statements beside one committed row and beside three hundred."""
    sizes, reports = [], []
    for number, rows in enumerate((1, 300)):
        store = InMemoryAttachmentStore()
        await fill(lab, store, f"full {number}", [f"content {number} {row}" for row in range(rows)])
        await orphan(lab, store)
        reports.append(await sweep(lab, store))
        sizes.append((len(lab.seen), sum(len(batch.statements) for batch in lab.seen)))
        assert len(await store.list()) == rows
    assert sizes[0] == sizes[1]
    assert reports[0] == reports[1]
    assert reports[0].reclaimed_count == 2 * ORPHANS


async def test_a_page_of_a_sweep_is_read_in_its_order(sqlite: Lab) -> None:
    """What a deleted session held was all released in one moment: no page may have to sort all of it."""
    opened = await sqlite.store("s")
    sqlite.seen.clear()
    await opened.list_uncommitted(sqlite.now_ms, limit=BATCH)
    plans = [await plan(sqlite, sql, params) for sql, params in statements(sqlite.seen)]
    (releases,) = [lines for lines in plans if any("attachment_release" in line for line in lines)]
    assert [line for line in releases if "TEMP B-TREE" in line] == []
