"""Laws of a handle: its loop, its process, its end."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import apsw
import pytest

from fastness.engines import sqlite_files
from fastness.engines.engine import system_clock
from fastness.engines.sqlite import SqliteEngine
from fastness.errors import HandleUnusableError
from tests.engines.programs import add, query, refs


def run_python(code: str, *arguments: str) -> str:
    """Run a script in a fresh interpreter; give what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


async def test_a_closed_engine_refuses_and_closes_again(any_engine: SqliteEngine) -> None:
    """After close every call is refused; a second close is fine."""
    await any_engine.write(add("a"))
    await any_engine.close()
    await any_engine.close()
    for call in (any_engine.write(add("b")), any_engine.read(refs), any_engine.verify(), any_engine.start()):
        with pytest.raises(HandleUnusableError, match="is closed"):
            await call


async def test_close_finishes_what_was_started(path: Path) -> None:
    """What was queued before the close is done, and answered."""
    engine = SqliteEngine(path)
    await engine.start()
    writes = [asyncio.create_task(engine.write(add(f"r{n:02}"))) for n in range(20)]
    reads = [asyncio.create_task(engine.read(refs)) for _ in range(5)]
    await asyncio.sleep(0)
    await asyncio.gather(engine.close(), engine.close())
    assert [write.result() for write in writes] == list(range(20))
    assert all(read.done() for read in reads)
    assert [entry.name for entry in path.parent.iterdir()] == ["store.db"]


async def test_a_cancelled_close_still_closes(path: Path) -> None:
    """Cancelling ends the waiting, not the closing."""
    engine = SqliteEngine(path)
    await engine.write(add("a"))
    closing = asyncio.create_task(engine.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    await engine.close()
    assert [entry.name for entry in path.parent.iterdir()] == ["store.db"]


def test_another_event_loop_is_refused(path: Path) -> None:
    """An engine belongs to the loop of its first use and refuses another; once that loop is gone it can be closed."""
    engine = SqliteEngine(path)
    first = asyncio.new_event_loop()
    first.run_until_complete(engine.write(add("a")))

    async def elsewhere() -> None:
        for call in (engine.write(add("b")), engine.read(refs), engine.close()):
            with pytest.raises(HandleUnusableError, match="another event loop"):
                await call

    asyncio.run(elsewhere())
    assert first.run_until_complete(engine.read(refs)) == ["a"]
    first.close()
    asyncio.run(engine.close())
    assert [entry.name for entry in path.parent.iterdir()] == ["store.db"]


FORK = """
import asyncio, os, sys, warnings
# Newer interpreters warn of a fork beside threads: that is just what is tried here.
warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
from fastness.engines.sqlite import SqliteEngine
from fastness.errors import HandleUnusableError
from tests.engines.programs import add, refs

path = sys.argv[1]
parent = asyncio.new_event_loop()
engine = SqliteEngine(path)
unused = SqliteEngine(path + ".other")
parent.run_until_complete(engine.write(add("a")))
parent.run_until_complete(engine.read(refs))

async def child():
    for open_one in (lambda: engine, lambda: SqliteEngine(path)):
        for call in ("read", "write"):
            try:
                await getattr(open_one(), call)(refs)
            except HandleUnusableError as error:
                print("fork" in str(error))
    await engine.close()
    await engine.close()
    await unused.write(add("mine"))
    await unused.close()
    print(os.path.exists(path + "-wal"))

pid = os.fork()
if pid == 0:
    asyncio.set_event_loop(None)
    asyncio.run(child())
    sys.stdout.flush()
    os._exit(0)  # the parent's loop is not the child's to close
assert os.waitpid(pid, 0)[1] == 0
parent.run_until_complete(engine.write(add("b")))
print(parent.run_until_complete(engine.read(refs)))
parent.run_until_complete(engine.close())
parent.close()
print(os.path.exists(path + "-wal"))
"""


def test_a_forked_child_can_do_no_harm(path: Path) -> None:
    """In a forked child the handle is refused, and so is a new one on a file that the parent has open.

    Closing touches nothing there, and the parent goes on as if nothing had been.
    """
    answer = run_python(FORK, str(path))
    assert answer.split("\n") == ["True"] * 5 + ["['a', 'b']", "False", ""]


async def test_an_engine_that_was_closed_before_the_fork_is_no_obstacle(path: Path) -> None:
    """What was closed is forgotten: no descriptor of the file stays open."""
    engine = SqliteEngine(path)
    await engine.write(add("a"))
    await engine.close()
    assert sqlite_files._open == {}
    assert str(path) not in {os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()}


FORGOTTEN = """
import asyncio, sys
from fastness.engines.sqlite import SqliteEngine
from tests.engines.programs import add, refs

engine = SqliteEngine(sys.argv[1])

async def main():
    await engine.write(add("a"))
    await engine.read(refs)
    asyncio.ensure_future(engine.write(add("b")))
    await asyncio.sleep(0)

asyncio.run(main())
"""


def test_an_interpreter_that_ends_without_a_close_ends_in_order(path: Path) -> None:
    """Threads end with the interpreter, without an error; the log is copied, and what was acknowledged is there."""
    assert run_python(FORGOTTEN, str(path)) == ""
    assert [entry.name for entry in path.parent.iterdir()] == ["store.db"]
    kept = apsw.Connection(str(path))
    assert kept.execute("select ref from blob where ref = 'a'").fetchall() == [("a",)]
    kept.close()


async def test_an_engine_that_is_dropped_lets_go_of_its_threads(path: Path) -> None:
    """Whoever forgets an engine does not keep its threads and files for ever."""
    engine = SqliteEngine(path)
    await engine.write(add("a"))
    await engine.read(refs)
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("fastness")]
    assert len(threads) == 3
    del engine
    gc.collect()
    await asyncio.gather(*(asyncio.to_thread(thread.join, 10) for thread in threads))
    assert not any(thread.is_alive() for thread in threads)
    assert sqlite_files._open == {}


async def test_two_engines_of_one_process_share_the_descriptor(path: Path) -> None:
    """Each file has one descriptor until its last engine closes; the locks of the other survive a close."""
    one, two = SqliteEngine(path), SqliteEngine(path)
    await one.write(add("a"))
    await two.write(add("b"))
    assert [(file.users, len(file.descriptors)) for file in sqlite_files._open.values()] == [(2, 1)]
    await one.close()
    code = "import apsw, sys; c = apsw.Connection(sys.argv[1]); c.execute('select * from blob').fetchall(); c.close()"
    run_python(code, str(path))
    assert path.with_name("store.db-wal").exists()  # the other process saw that it was not alone
    assert await two.read(refs) == ["a", "b"]
    await two.close()
    assert sqlite_files._open == {}


async def test_time_comes_from_the_engine_clock(path: Path) -> None:
    """``now_ms()`` is the clock that the engine was given, on every connection, read each time."""
    now = [1000]
    for where in (path, None):
        engine = SqliteEngine(where, clock=lambda: now[0])
        now[0] = 1000
        assert await engine.read(query("select now_ms()")) == [(1000,)]
        now[0] = 2000
        assert await engine.write(query("select now_ms()")) == [(2000,)]
        assert await engine.read(query("select now_ms()")) == [(2000,)]
        await engine.close()


def test_the_system_clock_counts_milliseconds_since_the_epoch() -> None:
    """The default clock is in the right unit: between 2020 and 2100."""
    assert 1_577_836_800_000 < system_clock() < 4_102_444_800_000


async def test_the_tier_says_whether_data_outlives_the_process(path: Path) -> None:
    """A file is durable, memory is not; two engines in memory share nothing."""
    assert SqliteEngine(path).durability_tier == "durable"
    one, two = SqliteEngine(None), SqliteEngine(None)
    assert one.durability_tier == "inline"
    await one.write(add("a"))
    assert await two.read(refs) == []
    await one.close()
    await two.close()
