"""Laws of the writer: groups, failures inside them, cancellation."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest

from fastness.engines.sqlite import SqliteEngine
from fastness.errors import BackendError, CommitOutcomeUnknownError, ContendedError, DatabaseFullError, StoreError
from fastness.sql.program import Program, Read, Statement, Write
from tests.engines.programs import ADD, FaultError, Gate, add, query, refs, refuse_after_write, refuse_before_write


class Script:
    """A batch hook that counts commits and raises what a test asks for at the n-th call for a batch or a commit."""

    def __init__(self) -> None:
        self.commits = 0
        self.batches = 0
        self.at_batch: dict[int, BaseException] = {}
        self.at_commit: dict[int, BaseException] = {}

    def __call__(self, batch: Read | Write | None) -> None:
        if batch is None:
            self.commits += 1
            error = self.at_commit.get(self.commits)
        else:
            self.batches += 1
            error = self.at_batch.get(self.batches)
        if error is not None:
            raise error


async def in_one_group(engine: SqliteEngine, *programs: Callable[[], Program[object]]) -> list[object]:
    """Run programs in one group; give their results or errors."""
    gate = Gate()
    first = asyncio.create_task(engine.write(gate))
    while not gate.entered.is_set():
        await asyncio.sleep(0.001)
    tasks = [asyncio.create_task(engine.write(program)) for program in programs]
    await asyncio.sleep(0)
    gate.open()
    _, *outcomes = await asyncio.gather(first, *tasks, return_exceptions=True)
    return outcomes


async def test_a_write_returns_its_result_and_is_read_back(any_engine: SqliteEngine) -> None:
    """What a program returns comes back, and its rows are there."""
    assert await any_engine.write(add("a", "b")) == 0
    assert await any_engine.write(add("c")) == 2
    assert await any_engine.read(refs) == ["a", "b", "c"]


async def test_programs_that_wait_share_one_commit(path: Path) -> None:
    """Every program that waits runs in the same transaction, in the order of the calls."""
    script = Script()
    engine = SqliteEngine(path, before_batch=script)
    assert await in_one_group(engine, *[add(f"r{n}") for n in range(10)]) == list(range(10))
    assert script.commits == 1
    await engine.close()


async def test_a_group_is_bounded(path: Path) -> None:
    """However many wait, a transaction takes 256 of them, and all are answered."""
    script = Script()
    engine = SqliteEngine(path, before_batch=script)
    assert await in_one_group(engine, *[add(f"r{n}") for n in range(600)]) == list(range(600))
    assert script.commits == 3
    await engine.close()


async def test_a_refusal_before_the_first_write_fails_alone_without_a_second_run(path: Path) -> None:
    """A program that refused before it wrote takes nobody with it and costs no second run."""
    script = Script()
    engine = SqliteEngine(path, before_batch=script)
    outcomes = await in_one_group(engine, add("a"), refuse_before_write, add("b"))
    assert [type(outcome) for outcome in outcomes] == [int, FaultError, int]
    assert script.batches == 1 + 2 + 1 + 2
    assert await engine.read(refs) == ["a", "b"]
    await engine.close()


async def test_a_failure_after_a_write_fails_alone(any_engine: SqliteEngine) -> None:
    """A program that fails after it wrote leaves no trace, and the others of its group are committed."""
    outcomes = await in_one_group(any_engine, add("a"), refuse_after_write("ghost"), add("b"))
    assert [type(outcome) for outcome in outcomes] == [int, FaultError, int]
    assert await any_engine.read(refs) == ["a", "b"]


async def test_a_constraint_that_fails_is_a_backend_error_without_values(any_engine: SqliteEngine) -> None:
    """A statement that the database refuses fails its own program only; the message shows no value."""
    await any_engine.write(add("payload"))
    outcomes = await in_one_group(any_engine, add("a"), add("b", "payload"), add("c"))
    assert [type(outcome) for outcome in outcomes] == [int, BackendError, int]
    assert "SQLITE_CONSTRAINT" in str(outcomes[1])
    assert "payload" not in str(outcomes[1])
    assert await any_engine.read(refs) == ["a", "c", "payload"]


@pytest.mark.parametrize("value", ["\ud800", 2**63, 1.5j])
async def test_a_value_that_sqlite_cannot_hold_is_a_backend_error(any_engine: SqliteEngine, value: object) -> None:
    """A parameter outside SQLite's types is refused, and the next write works."""
    with pytest.raises(BackendError, match="a parameter does not fit SQLite"):
        await any_engine.write(query("select $1", value))
    await any_engine.write(add("next"))
    assert await any_engine.read(refs) == ["next"]


@pytest.mark.parametrize("fault_at", [1, 2, 3, "commit"])
async def test_a_fault_between_any_two_batches_leaves_no_trace(path: Path, fault_at: int | str) -> None:
    """Wherever a lone program is struck, nothing of it stays, and the engine goes on."""
    script = Script()
    engine = SqliteEngine(path, before_batch=script)
    where = script.at_commit if fault_at == "commit" else script.at_batch
    where[1 if fault_at == "commit" else int(fault_at)] = FaultError()
    with pytest.raises(BackendError if fault_at == "commit" else FaultError):
        await engine.write(add("a", "b"))
    assert await engine.read(refs) == []
    script.at_batch.clear()
    script.at_commit.clear()
    await engine.write(add("c"))
    assert await engine.read(refs) == ["c"]
    await engine.close()


async def test_a_lost_outer_transaction_gives_each_program_its_own(path: Path) -> None:
    """Where a failure takes the whole transaction away, the others of the group still land."""
    engine = SqliteEngine(path)

    def lose() -> Program[None]:
        yield Write(Statement(ADD, ("ghost", b"")))
        yield Write(Statement("rollback"))
        yield Write(Statement("select * from nowhere"))

    outcomes = await in_one_group(engine, add("a"), lose, add("b"))
    assert [type(outcome) for outcome in outcomes] == [int, BackendError, int]
    assert await engine.read(refs) == ["a", "b"]
    await engine.close()


async def test_a_commit_refused_for_a_full_disk_is_tried_one_by_one(path: Path) -> None:
    """A group that does not fit as a whole is committed as far as it fits; the rest is told that the disk is full."""
    script = Script()
    engine = SqliteEngine(path, before_batch=script)
    await engine.start()
    script.at_commit = {1: apsw.FullError("full"), 3: apsw.FullError("full")}  # the group, then the second alone
    outcomes = await in_one_group(engine, add("a"), add("b"), add("c"))
    assert script.commits == 5  # the group, then the gate and the three
    assert [type(outcome) for outcome in outcomes] == [DatabaseFullError, int, int]
    assert await engine.read(refs) == ["b", "c"]
    await engine.close()


async def test_a_disk_that_fails_in_commit_leaves_the_outcome_unknown(path: Path) -> None:
    """An I/O error in COMMIT is never told as "nothing happened" (law C12), to nobody of the group."""
    script = Script()
    engine = SqliteEngine(path, before_batch=script)
    script.at_commit = {1: apsw.IOError("no sync")}
    gate_error, *outcomes = await asyncio.gather(
        engine.write(refuse_before_write), engine.write(add("a")), return_exceptions=True
    )
    assert type(outcomes[0]) is CommitOutcomeUnknownError
    assert type(gate_error) in {FaultError, CommitOutcomeUnknownError}
    await engine.write(add("later"))
    assert await engine.read(refs) == ["later"]
    await engine.close()


async def test_each_waiter_of_a_failed_group_gets_an_error_of_its_own(path: Path) -> None:
    """Several callers never share one exception object, whose traceback each would write into."""
    script = Script()
    engine = SqliteEngine(path, before_batch=script)
    script.at_commit = {1: apsw.IOError("no sync")}
    await engine.start()
    gate = Gate()
    tasks = [asyncio.create_task(engine.write(program)) for program in (gate, add("a"), add("b"))]
    await asyncio.sleep(0)
    gate.open()
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(error) for error in errors] == [CommitOutcomeUnknownError] * 3
    assert len({id(error) for error in errors}) == 3
    await engine.close()


async def test_a_cancelled_write_that_has_not_started_is_withdrawn(any_engine: SqliteEngine) -> None:
    """Law C13: cancelling before the start means that it never happens."""
    gate = Gate()
    first = asyncio.create_task(any_engine.write(gate))
    waiting = asyncio.create_task(any_engine.write(add("ghost")))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    gate.open()
    await first
    assert waiting.cancelled()
    await any_engine.write(add("a"))
    assert await any_engine.read(refs) == ["a"]


async def test_a_cancelled_write_that_has_started_leaves_no_transaction_open(any_engine: SqliteEngine) -> None:
    """Law C13: cancelling after the start drops the answer, and nothing else."""
    gate = Gate()
    running = asyncio.create_task(any_engine.write(gate))
    while not gate.entered.is_set():
        await asyncio.sleep(0.001)
    running.cancel()
    await asyncio.sleep(0)
    gate.open()
    assert await any_engine.write(add("a")) == 0
    assert running.cancelled()
    assert await any_engine.read(refs) == ["a"]


async def test_a_generator_is_closed_when_its_batch_fails(any_engine: SqliteEngine) -> None:
    """A program whose statement fails is closed at once, so that its finally blocks run."""
    closed = threading.Event()

    def program() -> Program[None]:
        try:
            yield Read(Statement("select * from nowhere"))
        finally:
            closed.set()

    with pytest.raises(BackendError, match="no such table"):
        await any_engine.write(program)
    assert closed.is_set()


async def test_a_read_cannot_write(any_engine: SqliteEngine) -> None:
    """A Write in a reading program is refused before it is run."""
    with pytest.raises(BackendError, match="a program that reads asked for a Write"):
        await any_engine.read(add("a"))
    assert await any_engine.read(refs) == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_writer_that_breaks_fails_every_waiter_and_every_later_call(path: Path) -> None:
    """What nobody foresaw ends the writer with an answer to all, never with a silence."""
    engine = SqliteEngine(path)

    def exit_thread() -> Program[None]:
        yield Write(Statement(ADD, ("ghost", b"")))
        raise SystemExit

    outcomes = await in_one_group(engine, add("a"), exit_thread, add("b"))
    assert [type(outcome) for outcome in outcomes] == [BackendError] * 3
    with pytest.raises(BackendError, match="stopped after an unexpected SystemExit"):
        await engine.write(add("c"))
    await engine.close()
    again = SqliteEngine(path)
    assert await again.read(refs) == []
    await again.close()


async def test_waiting_for_another_process_is_bounded(path: Path) -> None:
    """A lock that is held for longer than the time-out is ``ContendedError``; then the same call works."""
    engine = SqliteEngine(path, busy_timeout_ms=50)
    await engine.start()
    other = apsw.Connection(str(path))
    other.execute("begin immediate")
    with pytest.raises(ContendedError) as caught:
        await engine.write(add("a"))
    assert caught.value.waited_ms >= 50
    assert await engine.read(refs) == []
    other.execute("commit")
    other.close()
    await engine.write(add("a"))
    await engine.close()


async def test_errors_survive_as_store_errors(any_engine: SqliteEngine) -> None:
    """Nothing of the driver leaves the engine."""
    for sql in ("select", "select * from nowhere", "insert into blob values (null, null)", "select json('{')"):
        with pytest.raises(StoreError):
            await any_engine.write(query(sql))
