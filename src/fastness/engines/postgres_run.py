"""One attempt to run a program on a connection: the round trips that it takes, and no more.

A writing program takes two: lock and facts, then writes and COMMIT. One that says which facts it expects takes one: it
is decided on those, and the server is told to refuse the writes if the facts are others; then a fresh program takes the
two. No rule is restated for it, since the same facts make the same plan.

It promises that COMMIT was not sent unless ``committing`` says so. What an error means, and whether to try again, is
the engine's to say. It knows no table, no pool and no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeAlias

from fastness.engines.postgres_dialect import GIVEN_CLOCK, SERVER_CLOCK, Command, commands, fused, requirement
from fastness.engines.postgres_wire import Refused, Wire
from fastness.errors import BackendError, StoreError
from fastness.sql.program import Expected, Lock, LockNames, Many, Read, Row, Rows, Statement, Write
from fastness.sql.schema import FACTS_DIFFER

BatchHook: TypeAlias = Callable[[Read | Write | None], None]
"""Called before each batch, and with None before COMMIT. Tests raise from it: a fault at that very point."""

_WRITING = Command("begin isolation level read committed read write", ())
_READING = Command("begin isolation level repeatable read read only", ())
_HOLD = Command("set local idle_in_transaction_session_timeout to 0", ())  # it holds up nobody, however long it is
_UNBOUND = Command("set local transaction_timeout to 0", ())  # what it does takes as long as there is much of it
_GO_ON = Command("begin", ())  # what stands in the pipeline already belongs to it
_COMMIT = Command("commit", ())
_ROLLBACK = Command("rollback", ())
_DISCARD_PLANS = Command("discard plans", ())

_LOCKS = (Lock, LockNames)
_MUCH = 1 << 20
_FEW_ROWS = 32

_TAKEN, _REFERENCE_GONE, _SEVERAL_ROWS = "23505", "23503", "21000"
_MISTAKEN = frozenset({FACTS_DIFFER, _TAKEN, _REFERENCE_GONE, _SEVERAL_ROWS})
"""What a server refuses of writes that were decided on facts which turned out to be others."""


class Session(NamedTuple):
    """What holds for every transaction of an engine: its settings by name, and the clock that tests give."""

    settings: tuple[tuple[str, str], ...]
    clock: Callable[[], int] | None
    before_batch: BatchHook | None

    @property
    def time(self) -> str:
        """How a statement asks for the time."""
        return SERVER_CLOCK if self.clock is None else GIVEN_CLOCK


class Outcome(NamedTuple):
    """What a program came to, and whether its writes may have left something to do for others."""

    result: Any
    wakes: bool


class Attempt:
    """One attempt to run a program in a transaction of its own.

    ``alone``: nothing else is under way in this process, so that there is time to let the server begin early. It does
    only where the server would also end the transaction if this process stood still right then.
    """

    def __init__(self, wire: Wire, session: Session, *, alone: bool = False) -> None:
        self.committing = False
        self._alone = alone and wire.bounded
        self._wire = wire
        self._session = session
        self._wrote = self._wakes = self._begun = False
        self._queued_bytes = 0

    async def write(self, make: Callable[[], Any]) -> Outcome:
        """Run a program that may write, and commit."""
        program = make()
        try:
            first = next(program)
            if type(first) is Read and first.expect is not None and _is_worth_it(first.expect):
                outcome = await self._speculate(program, first, first.expect)
                if outcome is not None:
                    return outcome
                program.close()
                program = make()
                first = next(program)
            return await self._run(program, first, _WRITING)
        except StopIteration as stop:
            return Outcome(stop.value, wakes=False)
        finally:
            program.close()

    async def read(self, make: Callable[[], Any]) -> Any:
        """Run a program that only reads, on one snapshot."""
        program = make()
        try:
            return (await self._run(program, next(program), _READING)).result
        except StopIteration as stop:
            return stop.value
        finally:
            program.close()

    async def hold(self) -> None:
        """Begin a transaction that only reads, and take its snapshot."""
        self._begin(_READING)
        self._wire.put(_HOLD)
        if self._wire.bounded:
            self._wire.put(_UNBOUND)
        self._wire.put(Command("select 1", ()))
        await self._wire.answers()

    async def read_held(self, make: Callable[[], Any]) -> Any:
        """Run a program that only reads in the transaction that is held."""
        program = make()
        try:
            batch = next(program)
            while True:
                self._enter(batch, reads_only=True)
                batch = program.send(await self._answer(batch))
        except StopIteration as stop:
            return stop.value
        finally:
            program.close()

    async def _speculate(self, program: Any, read: Read, expect: Sequence[Expected]) -> Outcome | None:
        """Decide on the facts that are expected, and have the server refuse if they are others.

        None: it did, or there is nothing to write on them. Where there is time for it, the server locks and looks while
        the program is decided here. Where many programs wait for this process, that would cost another packet for each.
        """
        wire, time = self._wire, self._session.time
        self._before(read)
        self._begin(None if wire.own_session else _WRITING)
        for command in commands([item for item in read.statements if type(item) in _LOCKS], time):
            wire.put(command)
        wire.put(requirement(read.statements, expect, time))
        if self._alone:
            wire.push()
        guess = _decide(program, expect)
        if guess is None:
            await self._leave()
            return None
        for batch in guess.writes:
            self._before(batch)
            self._put(batch)
        if guess.then is not None:
            return await self._go_on_from(program, guess.writes, guess.then)
        try:
            rows = await self._commit()
        except Refused as refused:
            if refused.sqlstate not in _MISTAKEN:
                raise
            self.committing = False
            if self._begun:
                wire.put(_ROLLBACK)
            return None
        result = _finished(program, _aligned(guess.writes[-1], rows)) if guess.waits else guess.result
        return Outcome(result, any(batch.wakes for batch in guess.writes))

    async def _leave(self) -> None:
        """Leave a transaction in which nothing was written."""
        if self._begun:
            await self._wire.rollback()
        else:
            with suppress(Refused):
                await self._wire.answers()

    async def _go_on_from(self, program: Any, writes: Sequence[Write], then: Read) -> Outcome | None:
        """Go on with a program that has written on a guess and asks on. None: the server refused the guess."""
        self._wrote, self._wakes = True, any(batch.wakes for batch in writes)
        if not self._begun:
            self._wire.put(_GO_ON)
            self._begun = True
        self._enter(then, reads_only=False)
        try:
            rows = await self._answer(then)
        except Refused as refused:
            if refused.sqlstate not in _MISTAKEN:
                raise
            await self._wire.rollback()
            return None
        try:
            batch = program.send(rows)
        except StopIteration as stop:
            return await self._end(stop.value)
        return await self._go_on(program, batch, reads_only=False)

    async def _run(self, program: Any, batch: Read | Write, begin: Command) -> Outcome:
        """Run a program from its first batch."""
        self._wrote = self._wakes = False
        one_pipeline = self._wire.own_session and batch.last and begin is _WRITING
        self._begin(None if one_pipeline else begin)
        return await self._go_on(program, batch, reads_only=begin is _READING)

    async def _go_on(self, program: Any, batch: Read | Write, *, reads_only: bool) -> Outcome:
        try:
            while True:
                self._enter(batch, reads_only=reads_only)
                if batch.last:
                    rows = await self._commit(say_so=self._wrote)
                    return Outcome(_finished(program, _aligned(batch, rows)), self._wakes)
                batch = program.send(await self._answer(batch))
        except StopIteration as stop:
            return await self._end(stop.value)

    async def _end(self, result: Any) -> Outcome:
        """End the transaction of a program that has come to its result."""
        if self._wrote:
            await self._commit()
        else:
            self._wire.put(_ROLLBACK)
            await self._wire.answers()
        return Outcome(result, self._wakes)

    def _enter(self, batch: Read | Write, *, reads_only: bool) -> None:
        self._before(batch)
        if type(batch) is Write:
            if reads_only:
                raise BackendError("a program that reads asked for a Write", "run it as a write")
            self._wrote = True
            self._wakes |= batch.wakes
        given = self._put(batch)
        if type(batch) is Write and not batch.last:
            self._queued_bytes += sum(map(_size, given))

    async def _answer(self, batch: Read | Write) -> Rows:
        """What a batch is answered that is not the last: rows to a Read; a Write waits for what follows it."""
        if type(batch) is Read:
            return _aligned(batch, await self._wire.answers())
        if self._queued_bytes > _MUCH:
            self._queued_bytes = 0
            if self._wire.bounded:
                self._wire.put(_UNBOUND)
            await self._wire.answers()  # much that is written goes out in parts, and is not all held in memory
        return []

    def _begin(self, begin: Command | None) -> None:
        """Begin a transaction. None: all of it is one pipeline, whose end commits it; nobody has to say so."""
        wire, session = self._wire, self._session
        self._begun = begin is not None
        if begin is not None:
            wire.put(begin)
        settings = () if wire.own_session else session.settings
        if session.clock is not None:
            settings = (*settings, ("fastness.now_ms", str(session.clock())))
        if settings:
            calls = ", ".join(f"set_config(${2 * at + 1}, ${2 * at + 2}, true)" for at in range(len(settings)))
            wire.put(Command(f"select {calls}", tuple(text for setting in settings for text in setting)))
        count = wire.transactions
        if count >= 16 and count & (count - 1) == 0:
            # A plan that was made while the tables were small may search them whole. The planner looks at how large
            # they are now, but only when it plans; so what it planned is dropped as they grow, ever more seldom.
            wire.put(_DISCARD_PLANS)

    def _put(self, batch: Read | Write) -> list[Command]:
        time = self._session.time
        if isinstance(batch, Write) and batch.apart:
            given = fused(batch.statements, time, gives_rows=batch.last)
        else:
            given = commands(batch.statements, time)
        wants_rows = batch.last or type(batch) is Read
        for command in given:
            self._wire.put(command, wants_rows=wants_rows)
        return given

    async def _commit(self, *, say_so: bool = True) -> list[list[Row]]:
        """Send what is queued and have it committed, and wait until that is answered."""
        if say_so:
            self._before(None)
            self.committing = True
        if not self._begun:
            return await self._wire.answers(commits=True)
        self._wire.put(_COMMIT)
        rows = await self._wire.answers()
        if self._wire.tag != b"COMMIT":
            raise BackendError("the server rolled the transaction back and gave no reason", "retry the same call")
        return rows

    def _before(self, batch: Read | Write | None) -> None:
        if self._session.before_batch is not None:
            self._session.before_batch(batch)


def _size(command: Command) -> int:
    """How much of what a command brings is not small, in bytes or characters."""
    return sum(len(value) for value in command.params if isinstance(value, str | bytes))


class _Guess(NamedTuple):
    """What a program writes on the facts that it expects.

    It may still wait for the rows of its last batch, or ask for more: ``then`` comes behind its writes.
    """

    writes: Sequence[Write]
    waits: bool
    result: Any
    then: Read | None = None


def _is_worth_it(expect: Sequence[Expected]) -> bool:
    """Whether it is few rows that the server would have to compare. It compares each with each."""
    return sum(len(expected.rows) for expected in expect if not expected.implied) <= _FEW_ROWS


def _decide(program: Any, expect: Sequence[Expected]) -> _Guess | None:
    """Give a program the facts that it expects. None: it would not write on them, or not at once."""
    writes: list[Write] = []
    try:
        batch = program.send([list(expected.rows) for expected in expect])
        while type(batch) is Write:
            writes.append(batch)
            if batch.last:
                return _Guess(writes, True, None)
            batch = program.send([])
        if writes and not batch.last:
            return _Guess(writes, False, None, batch)
    except StopIteration as stop:
        return _Guess(writes, False, stop.value) if writes else None
    except StoreError:
        pass  # what it refuses on a guess, it may refuse for another reason on the facts
    return None


def _finished(program: Any, rows: Rows) -> Any:
    try:
        program.send(rows)
    except StopIteration as stop:
        return stop.value
    raise BackendError("a program went on after its last batch", "this is a fault of the program")


def _aligned(batch: Read | Write, rows: list[list[Row]]) -> Rows:
    """Give a list of rows for each statement that is no lock; what runs many times gives none."""
    if not any(isinstance(item, Many) for item in batch.statements):
        return rows
    given = iter(rows)
    return [next(given) if isinstance(item, Statement) else [] for item in batch.statements if _gives(item)]


def _gives(item: object) -> bool:
    return not isinstance(item, Lock | LockNames)
