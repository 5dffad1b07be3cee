"""The laboratory: what surrounds a database, what a law may do without powers, and how a trace is found."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fastness.conformance import ALL_POWERS, Lab, Power, Subject
from fastness.conformance.builders import WHEN, chain, content_id, intent, said, turn, work
from fastness.conformance.lab import refused
from fastness.errors import InvalidInputError, SessionDeletedError
from fastness.model import LocalProcess, RuntimePersistence, SessionMeta
from fastness.persistence import InMemorySessionStoreFactory, SqliteSessionStoreFactory

POWERLESS = Subject(lambda _: InMemorySessionStoreFactory())

CHANGES: dict[str, Callable[[RuntimePersistence], Awaitable[object]]] = {
    "input": lambda store: store.enqueue_pending_turn_input(said("hi")),
    "work": lambda store: store.enqueue_queued_work(work()),
    "head": lambda store: turn(store, *chain("a")),
    "metadata": lambda store: store.save_session_meta(SessionMeta("s", "named", WHEN, "m")),
    "intent": lambda store: store.record_intent(intent(content_id("a"))),
    "session": lambda store: store.enqueue_pending_turn_input(said("hi", session_id="new")),
}


@pytest.mark.parametrize("what", CHANGES)
async def test_a_trace_is_found_without_a_look_at_the_rows(tmp_path: Path, what: str) -> None:
    """What the public calls show gives away a write of any capability; doing nothing is no trace."""
    async with Lab(POWERLESS, tmp_path) as lab:
        store = await lab.store()
        async with lab.unchanged():
            await store.load_head()
        with pytest.raises(AssertionError, match="had to stay"):
            async with lab.unchanged():
                await CHANGES[what](store)


async def test_a_refusal_that_wrote_is_none(tmp_path: Path) -> None:
    """A call that raises what it should, after it has written, is not a refusal; nor is another error."""
    async with Lab(POWERLESS, tmp_path) as lab:
        store = await lab.store()

        async def writes_and_raises() -> None:
            await store.enqueue_pending_turn_input(said("hi"))
            raise InvalidInputError("it", "is wrong")

        with pytest.raises(AssertionError, match="yet something was written"):
            await refused(lab, InvalidInputError, writes_and_raises())
        with pytest.raises(InvalidInputError):
            await refused(lab, SessionDeletedError, writes_and_raises())


async def advance(lab: Lab) -> None:
    """Let time pass."""
    lab.clock.advance(1)


async def bury(lab: Lab) -> None:
    """Declare a process dead."""
    lab.bury(LocalProcess("host", "boot", 1, "1"))


async def look(lab: Lab) -> None:
    """Look at the batches."""
    lab.seen.clear()


async def environments(lab: Lab) -> None:
    """Ask for the environments."""
    lab.envs()


async def dispatch(lab: Lab) -> None:
    """Ask for what dispatches turns."""
    lab.dispatch()


async def workers(lab: Lab) -> None:
    """Ask for the registry of workers."""
    lab.workers()


async def history(lab: Lab) -> None:
    """Ask for the history."""
    lab.history()


NEEDS: dict[Power, Callable[[Lab], Awaitable[object]]] = {
    Power.REOPENING: lambda lab: lab.restart(),
    Power.CLOCK: advance,
    Power.DEATH: bury,
    Power.BATCHES: look,
    Power.ROWS: lambda lab: lab.execute_raw("select 1"),
    Power.CHECK: lambda lab: lab.check(),
    Power.ENVIRONMENTS: environments,
    Power.DISPATCH: dispatch,
    Power.WORKERS: workers,
    Power.HISTORY: history,
}


async def test_a_handle_beside_is_of_another_factory_where_the_database_is_shared(tmp_path: Path) -> None:
    """Where nothing else may open the database, it is of the one that there is. That power alone skips nothing."""
    assert set(NEEDS) == set(Power) - {Power.SHARED}
    openings = []

    def opened(lab: Lab) -> SqliteSessionStoreFactory:
        openings.append(lab)
        return SqliteSessionStoreFactory(lab.directory / f"lab{len(openings)}.db")

    counted = []
    for powers in (ALL_POWERS, ALL_POWERS - {Power.SHARED}):
        async with Lab(Subject(opened, powers), tmp_path) as lab:
            await lab.store()
            before = len(openings)
            await lab.beside()
            await lab.beside("other")
            counted.append(len(openings) - before)
    assert counted == [1, 0]


@pytest.mark.parametrize("power", NEEDS)
async def test_whoever_needs_a_power_that_is_not_there_is_skipped(tmp_path: Path, power: Power) -> None:
    """The reason is the power's; with the power it goes on."""
    async with Lab(Subject(POWERLESS.open, ALL_POWERS - {power}), tmp_path) as lab:
        with pytest.raises(pytest.skip.Exception, match=power.value):
            await NEEDS[power](lab)
    async with Lab(Subject(POWERLESS.open, ALL_POWERS), tmp_path) as lab:
        await NEEDS[power](lab)


async def test_what_surrounds_a_database_is_there_for_all_of_its_openings(tmp_path: Path) -> None:
    """It is made before the first and removed after the last, however often the database is opened between."""
    happened: list[str] = []

    @asynccontextmanager
    async def around(lab: Lab) -> AsyncIterator[None]:
        happened.append(f"made in {lab.directory.name}")
        yield
        happened.append("removed")

    @asynccontextmanager
    async def opened(lab: Lab) -> AsyncIterator[SqliteSessionStoreFactory]:
        happened.append("opened")
        async with SqliteSessionStoreFactory(lab.directory / "lab.db") as factory:
            yield factory
        happened.append("closed")

    async with Lab(Subject(opened, frozenset({Power.REOPENING}), around), tmp_path) as lab:
        await lab.store()
        await lab.reopen()
    assert happened == [f"made in {tmp_path.name}", "opened", "closed", "opened", "closed", "removed"]
