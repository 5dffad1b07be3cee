"""The registry of workers beyond its laws: faults at every point, and records that a later release has written."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from fastness.conformance import Lab
from fastness.conformance.builders import lane
from fastness.conformance.lab import differences
from fastness.conformance.laws.settlement import Cut, CutError
from fastness.errors import DatabaseDamagedError, RecordVersionUnsupportedError, StoreError
from fastness.model import WorkerRecord
from fastness.model.protocols import WorkerRegistry
from tests.test_faults import coroutines_of

ONE = WorkerRecord("w1", "host", 1, 1)
OPERATIONS: dict[str, Callable[[WorkerRegistry], Awaitable[object]]] = {
    "announce_worker": lambda registry: registry.announce_worker(WorkerRecord("w2", "host", 2, 2)),
    "retire_worker": lambda registry: registry.retire_worker("w1"),
    "forget_workers": lambda registry: registry.forget_workers(2**63 - 1),
    "list_workers": lambda registry: registry.list_workers(),
    "list_held_lanes": lambda registry: registry.list_held_lanes(),
}


def test_every_call_of_the_registry_is_faulted() -> None:
    """One that is added to the protocol has to be added here."""
    assert set(OPERATIONS) == coroutines_of(WorkerRegistry)


@pytest.mark.parametrize("name", OPERATIONS)
async def test_a_fault_at_any_point_leaves_the_registry_as_it_was(lab: Lab, name: str) -> None:
    """Wherever it comes; and the call that is not cut off does what it does."""
    await lane(await lab.store())
    registry = lab.workers()
    await registry.announce_worker(ONE)
    before = await lab.snapshot()
    for point in range(10):
        lab.on_batch = Cut(point)
        try:
            await OPERATIONS[name](registry)
            break
        except (CutError, StoreError):
            assert differences(before, await lab.snapshot()) == {}
        finally:
            lab.on_batch = None
    assert point >= 1
    assert set(differences(before, await lab.snapshot())) == (set() if name.startswith("list_") else {"worker"})


@pytest.mark.parametrize(
    ("body", "error"),
    [('{"v":2,"x":1}', RecordVersionUnsupportedError), ('{"v":1,"worker_id":1}', DatabaseDamagedError)],
)
async def test_a_worker_that_cannot_be_read_is_an_error_until_it_is_forgotten(
    lab: Lab, body: str, error: type[StoreError]
) -> None:
    """Who is alive is not told in part (M4); announcing, retiring and forgetting need no reading."""
    registry = lab.workers()
    await registry.announce_worker(ONE)
    await lab.execute_raw("update worker set body = $1", body)
    with pytest.raises(error):
        await registry.list_workers()
    await registry.announce_worker(ONE)
    assert [each.worker_id for each in await registry.list_workers()] == ["w1"]
    await lab.execute_raw("update worker set body = $1", body)
    assert await registry.forget_workers(2**63 - 1) == 1
    assert await registry.list_workers() == []
