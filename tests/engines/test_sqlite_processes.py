"""Laws that hold between connections and between processes."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import apsw

from fastness.engines.sqlite import SqliteEngine
from fastness.sql.program import Program, Read, Statement
from tests.engines.programs import ADD, ALL, Gate, add, query, refs

STARTER = """
import asyncio, sys
from fastness.engines.sqlite import SqliteEngine
from tests.engines.programs import add

async def main():
    engine = SqliteEngine(sys.argv[1])
    sys.stdin.readline()
    for n in range(5):
        await engine.write(add(f"{sys.argv[2]}-{n}"))
    await engine.close()

asyncio.run(main())
"""


def start_python(code: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a script in an interpreter of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


async def test_ten_processes_may_start_at_once(path: Path) -> None:
    """Ten processes that open a file that is not there make one database, and no write of any is lost."""
    processes = [start_python(STARTER, str(path), str(number)) for number in range(10)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert errors == [""] * 10
    engine = SqliteEngine(path)
    assert await engine.read(refs) == sorted(f"{number}-{n}" for number in range(10) for n in range(5))
    assert await engine.read(query("select count(*) from fastness_migration")) == [(3,)]
    assert await engine.verify() == []
    await engine.close()
    assert [entry.name for entry in path.parent.iterdir()] == ["store.db"]


async def test_ten_processes_may_start_at_once_on_an_empty_file(path: Path) -> None:
    """The same where the file exists and is empty: the switch of the journal and the migration are waited for."""
    path.touch()
    await test_ten_processes_may_start_at_once(path)


LOOP = """
import asyncio, sys
from fastness.engines.sqlite import SqliteEngine
from tests.engines.programs import add

async def main():
    engine = SqliteEngine(sys.argv[1])
    for n in range(1_000_000):
        await engine.write(add(f"{n:07}-a", f"{n:07}-b"))
        print(n, flush=True)

asyncio.run(main())
"""


async def test_a_killed_process_loses_nothing_that_was_acknowledged(path: Path) -> None:
    """What a process was told to be written survives its SIGKILL, whole; what was not is there whole or not at all."""
    process = start_python(LOOP, str(path))
    assert process.stdout is not None
    printed = "".join(process.stdout.readline() for _ in range(30))
    process.send_signal(signal.SIGKILL)
    printed += process.stdout.read()  # communicate() would miss what was read ahead
    process.communicate(timeout=60)
    told = int(printed.split("\n")[-2])  # the last whole line
    engine = SqliteEngine(path)
    found = await engine.read(refs)
    assert found[: 2 * (told + 1)] == [f"{n:07}-{letter}" for n in range(told + 1) for letter in "ab"]
    assert len(found) in {2 * (told + 1), 2 * (told + 2)}
    assert await engine.verify() == []
    await engine.close()


async def test_a_write_waits_for_another_process_and_then_lands(path: Path) -> None:
    """A lock that is given back in time delays a write, and nothing more."""
    engine = SqliteEngine(path)
    await engine.start()
    other = apsw.Connection(str(path))
    other.execute("begin immediate")
    write = asyncio.create_task(engine.write(add("a")))
    await asyncio.sleep(0.05)
    assert not write.done()
    other.execute(ADD.replace("$1", "'b'").replace("$2", "x''"))
    other.execute("commit")
    assert await write == 1
    other.close()
    await engine.close()


async def test_a_read_does_not_wait_for_the_writer(engine: SqliteEngine) -> None:
    """While a write is under way, reads see what was committed before it."""
    await engine.write(add("a"))
    gate = Gate()
    write = asyncio.create_task(engine.write(gate))
    await asyncio.to_thread(gate.entered.wait, 10)
    assert await engine.read(refs) == ["a"]
    gate.open()
    await write


async def test_a_read_sees_one_snapshot(engine: SqliteEngine) -> None:
    """All batches of a reading program see the database as it was at the first, whatever is committed meanwhile."""
    await engine.write(add("a"))
    gate = Gate()

    def program() -> Program[list[int]]:
        (before,) = yield Read(Statement(ALL))
        yield from gate()
        (after,) = yield Read(Statement(ALL))
        return [len(before), len(after)]

    reading = asyncio.create_task(engine.read(program))
    await asyncio.to_thread(gate.entered.wait, 10)
    await engine.write(add("b"))
    gate.open()
    assert await reading == [1, 1]
    assert await engine.read(refs) == ["a", "b"]


async def test_a_failed_read_leaves_its_connection_usable(engine: SqliteEngine) -> None:
    """However many reads fail, later ones see the newest data: no snapshot stays open."""
    outcomes = await asyncio.gather(
        *(engine.read(query("select * from nowhere")) for _ in range(8)), return_exceptions=True
    )
    assert all(isinstance(outcome, Exception) for outcome in outcomes)
    await engine.write(add("a"))
    assert [await engine.read(refs) for _ in range(4)] == [["a"]] * 4
