"""Laws of the write-ahead log: it stays short, nobody waits for it, and a reader that pins it is told."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path

import apsw
import pytest

from fastness.engines import sqlite_wal, sqlite_writer
from fastness.engines.sqlite import SqliteEngine
from fastness.engines.sqlite_wal import WalWatch
from tests.engines.programs import add, add_many, query


def test_a_short_log_is_left_alone() -> None:
    """Below the soft bound nothing is done."""
    watch = WalWatch()
    assert [watch.committed(pages) for pages in (1, 500, 5_999)] == ["nothing"] * 3


def test_the_soft_bound_starts_one_background_run() -> None:
    """From 6,000 pages on a run is started, and not another one while it lasts."""
    watch = WalWatch()
    assert [watch.committed(pages) for pages in (6_000, 6_100, 9_000)] == ["background", "nothing", "nothing"]


def test_a_log_that_starts_over_begins_anew() -> None:
    """After the tail was copied the next commit starts the log over, and the bounds count from there."""
    watch = WalWatch()
    assert watch.committed(6_500) == "background"
    watch.tail_copied()
    assert [watch.committed(pages) for pages in (20, 5_999, 6_000)] == ["nothing", "nothing", "background"]


def test_a_log_that_does_not_start_over_is_tried_again_later() -> None:
    """If a reader pinned the log, the next run comes 3,000 pages later, not with every commit."""
    watch = WalWatch()
    assert watch.committed(6_500) == "background"
    watch.tail_copied()
    assert [watch.committed(pages) for pages in (6_520, 9_499, 9_500)] == ["nothing", "nothing", "background"]


def test_a_log_is_stubborn_from_a_tail_in_vain_until_it_starts_over() -> None:
    """Where a copied tail did not do, the next one is copied with all writers shut out."""
    watch = WalWatch()
    watch.committed(6_500)
    seen = [watch.stubborn]
    watch.tail_copied()
    watch.committed(6_520)
    seen.append(watch.stubborn)
    watch.committed(10)
    seen.append(watch.stubborn)
    assert seen == [False, True, False]


def test_the_hard_bound_is_handled_by_the_writer() -> None:
    """From 12,000 pages on the writer does it itself, whatever runs, and again only every 3,000 pages."""
    watch = WalWatch()
    assert [watch.committed(pages) for pages in (6_000, 12_000, 12_500, 15_000)] == [
        "background",
        "inline",
        "nothing",
        "inline",
    ]


def test_a_pinned_log_is_news_once_until_it_starts_over() -> None:
    """A log that cannot be copied whole at the hard bound is reported once for each episode."""
    watch = WalWatch()
    watch.committed(12_000)
    assert not watch.is_news(whole=True)
    assert watch.is_news(whole=False)
    assert not watch.is_news(whole=False)
    watch.committed(40)
    watch.committed(12_000)
    assert watch.is_news(whole=False)
    assert not watch.is_news(whole=False)


async def test_the_log_stays_short_under_sustained_load(path: Path) -> None:
    """However much is written, the log stays well under 64 MB while nobody holds an old snapshot."""
    engine = SqliteEngine(path, synchronous="normal")
    log = path.with_name("store.db-wal")
    largest = 0
    for n in range(120):  # about 300 pages each, 144 MB in all
        await engine.write(add_many(300, 3_900, prefix=f"{n:03}-"))
        largest = max(largest, log.stat().st_size)
    assert 4_000_000 < largest < 64_000_000
    assert path.stat().st_size > 100_000_000
    assert await engine.read(query("select count(*) from blob")) == [(36_000,)]
    assert await engine.verify() == []
    await engine.close()


async def test_the_log_stays_short_where_several_commit(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two writers that commit between each other's checkpoints still let the log start over, and nobody is blamed."""
    monkeypatch.setattr(sqlite_writer, "WalWatch", lambda: WalWatch(soft=200, hard=2_000))
    engines = [SqliteEngine(path, synchronous="normal") for _ in range(2)]
    log = path.with_name("store.db-wal")

    async def write(engine: SqliteEngine, name: str) -> None:
        for n in range(150):
            await engine.write(add_many(40, 3_900, prefix=f"{name}{n:03}-"))

    await asyncio.gather(write(engines[0], "a"), write(engines[1], "b"))
    assert log.stat().st_size < 4_500 * 4_120  # of 12,000 pages and more that were written
    assert caplog.records == []
    for engine in engines:
        await engine.close()


async def test_a_reader_that_pins_the_log_is_reported_once(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An old snapshot lets the log grow: one warning, no failed write; when it ends, the log starts over."""
    monkeypatch.setattr(sqlite_writer, "WalWatch", lambda: WalWatch(soft=50, hard=200))
    engine = SqliteEngine(path, synchronous="normal")
    await engine.write(add("a"))
    reader = apsw.Connection(str(path))
    reader.execute("begin")
    reader.execute("select count(*) from blob").fetchall()
    with caplog.at_level(logging.WARNING, logger="fastness.sqlite"):
        for n in range(60):
            await engine.write(add_many(10, 3_900, prefix=f"{n:03}-"))
    assert [record.getMessage().split(": ")[-1] for record in caplog.records] == [
        "a long-running reader keeps it from starting over"
    ]
    pinned = path.with_name("store.db-wal").stat().st_size
    assert pinned > 600 * 4096
    reader.close()
    for n in range(60, 90):
        await engine.write(add_many(10, 3_900, prefix=f"{n:03}-"))
        await asyncio.sleep(0.001)
    assert path.with_name("store.db-wal").stat().st_size <= pinned + 200 * 4120
    assert await engine.verify() == []
    await engine.close()


async def test_a_checkpoint_that_fails_fails_no_write(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another process at its checkpoint, or a disk that fails in ours, costs nobody a write."""
    monkeypatch.setattr(sqlite_writer, "WalWatch", lambda: WalWatch(soft=20, hard=60))

    def no_disk(_file: object) -> None:
        raise OSError(5, "no disk")

    monkeypatch.setattr("fastness.engines.sqlite_files.SharedFile.sync", no_disk)
    engine = SqliteEngine(path)
    with caplog.at_level(logging.WARNING, logger="fastness.sqlite"):
        for n in range(30):
            await engine.write(add_many(10, 3_900, prefix=f"{n:03}-"))
        await engine.close()
    assert {record.getMessage() for record in caplog.records} == {
        "a background checkpoint failed (OSError); it is tried again later"
    }


async def test_the_background_does_the_work(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the background run copied is left of the log: the writer's tail finds next to nothing to copy."""
    copied: list[tuple[str, int]] = []
    checkpoint = sqlite_wal.passive_checkpoint

    def watched(connection: apsw.Connection) -> sqlite_wal.Copied | None:
        found = checkpoint(connection)
        assert found is not None
        copied.append((threading.current_thread().name, found.copied))
        return found

    monkeypatch.setattr(sqlite_wal, "passive_checkpoint", watched)
    monkeypatch.setattr(sqlite_writer, "passive_checkpoint", watched)
    monkeypatch.setattr(sqlite_writer, "WalWatch", lambda: WalWatch(soft=300, hard=100_000))
    engine = SqliteEngine(path)
    await engine.write(add_many(310, 3_900))
    while len(copied) < 3:
        await asyncio.sleep(0.001)
    log = path.with_name("store.db-wal")
    size = log.stat().st_size
    await engine.write(add("b"))
    assert log.stat().st_size == size  # it started over
    await engine.close()
    background, tail = "fastness-sqlite-checkpoints", "fastness-sqlite-writer"
    assert [name for name, _ in copied] == [background, background, tail]
    assert copied[0][1] == copied[1][1] == copied[2][1] > 300


async def test_a_checkpoint_beside_another_is_no_failure(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two connections cannot checkpoint at once; who comes second does without."""
    engine = SqliteEngine(path)
    await engine.write(add("a"))
    one, two, reader = (apsw.Connection(str(path)) for _ in range(3))
    for connection in (one, two):
        connection.execute("select * from blob").fetchall()
    seen: list[object] = []

    def meanwhile(_attempt: int) -> bool:
        seen.append(sqlite_wal.passive_checkpoint(two))
        return False

    reader.execute("begin")
    reader.execute("select * from blob").fetchall()
    await engine.write(add("b"))
    one.set_busy_handler(meanwhile)  # called while the first one holds the lock of checkpoints
    with pytest.raises(apsw.BusyError):
        one.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_FULL)
    assert seen == [None]
    assert caplog.records == []
    for connection in (one, two, reader):
        connection.close()
    await engine.close()
