"""Vacuum goes in slices, so that commits get their turn in between; what it removes and counts is the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fastness.conformance import Lab
from fastness.conformance.builders import chain, commit, lane, node_ids
from fastness.errors import BackendError
from fastness.model import VacuumReport
from fastness.ops import maintenance
from tests.lab import ENGINES

HIDDEN = ["r", "s", "t", "u", "v", "w", "x"]
NUMBERS = "with recursive numbers (n) as (select 1 union all select n + 1 from numbers where n < 7)"
FILL = (
    # The greater the key, the older the row.
    f"""{NUMBERS} insert into turn_input_evidence (sid, seq, input_id, state, enqueued_ms, settled_ms, body)
    select s.sid, 100 + n, 'i' || (7 - n), 'completed', 0, n, '{{}}' from numbers, session s""",
    f"""{NUMBERS} insert into queued_work_evidence (sid, seq, batch_id, state, enqueued_ms, settled_ms, body)
    select s.sid, 200 + n, 'w' || n, case when n < 4 then 'quarantined' else 'completed' end, 0, 1, '{{}}'
    from numbers, session s""",
)


@pytest.fixture(params=sorted(ENGINES))
async def lab(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Lab]:
    """A laboratory on each engine."""
    async with Lab(ENGINES[request.param], tmp_path) as lab:
        yield lab


@pytest.fixture
async def littered(lab: Lab) -> Any:
    """A session with 7 hidden nodes, 4 receipts, and 7 pieces of evidence of each kind, of which 3 are quarantined."""
    store = await lab.store()
    lease = await lane(store)
    branches = (chain("a"), chain("b", after="a"), chain("c", after="a"), chain(*HIDDEN, after="a"))
    for at, branch in enumerate(branches):
        await store.commit_runtime_state(commit(lease, at or None, *branch).with_turn_commit(f"t{at}"))
    await store.tombstone_nodes(HIDDEN)
    for sql in FILL:
        await lab.execute_raw(sql)
    return store


@pytest.fixture
def slices(monkeypatch: pytest.MonkeyPatch) -> list[maintenance.Vacuumed]:
    """Has every slice take 3 rows of a table at most, and keeps how far the vacuum had come before each."""
    begun: list[maintenance.Vacuumed] = []
    vacuum = maintenance.vacuum

    def told(target: Any, so_far: maintenance.Vacuumed, *cut_offs: int | None) -> Any:
        """Note it, and run it."""
        begun.append(so_far)
        return vacuum(target, so_far, *cut_offs)

    monkeypatch.setattr(maintenance, "_ROWS_PER_WRITE", 3)
    monkeypatch.setattr(maintenance, "vacuum", told)
    return begun


async def test_a_vacuum_in_slices_removes_and_counts_all(littered: Any, slices: list[maintenance.Vacuumed]) -> None:
    """Seven rows are three slices of three; what stays is passed over, and the next vacuum finds nothing."""
    assert await littered.vacuum(receipts_older_than_ms=2**62) == VacuumReport(7, 7, 4, 4)
    assert [one.report for one in slices] == [
        VacuumReport(0, 0, 0, 0),
        VacuumReport(3, 3, 3, 3),
        VacuumReport(6, 6, 4, 4),
    ]
    assert await littered.vacuum(receipts_older_than_ms=2**62) == VacuumReport(0, 0, 0, 0)
    assert len(slices) == 4
    assert await node_ids(littered) == ["a", "b", "c"]


async def test_young_evidence_stays_wherever_a_slice_ends(littered: Any, slices: list[maintenance.Vacuumed]) -> None:
    """The cut-off holds in every slice, although the rows do not come in the order of their age."""
    assert await littered.vacuum(evidence_older_than_ms=5) == VacuumReport(7, 5, 4, 0)
    assert [one.input_id for one in slices] == ["", "i4", "i6"]
    assert await littered.vacuum(evidence_older_than_ms=7) == VacuumReport(0, 2, 0, 0)


async def test_a_vacuum_that_fails_has_done_some_and_the_next_does_the_rest(
    littered: Any, slices: list[maintenance.Vacuumed], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It raises, and removes nothing twice."""
    vacuum = maintenance.vacuum

    def failing(target: Any, so_far: maintenance.Vacuumed, *cut_offs: int | None) -> Any:
        """Fail from the second slice on."""
        if so_far.report.removed_node_count:
            raise BackendError("the disk is gone", "mend it")
        return vacuum(target, so_far, *cut_offs)

    with monkeypatch.context() as patch:
        patch.setattr(maintenance, "vacuum", failing)
        with pytest.raises(BackendError, match="the disk is gone"):
            await littered.vacuum()
    assert await littered.vacuum() == VacuumReport(4, 4, 1, 0)
    assert len(slices) == 3
