"""A system that does not fence is found out, and one that does is not, however wrong the clocks are."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

import fastness
from fastness.decide import lane as lane_rules
from fastness.engines.engine import system_clock
from fastness.errors import HeadRevisionConflictError, LeaseExpiredError
from fastness.factory import SqliteSessionStoreFactory
from fastness.testing import Journal, JournalSender, JournalTelemetry, Report, check, read_final, read_journals

AHEAD_MS = 60_000


async def overtake(tmp_path: Path, *, blind: bool = False) -> Report:
    """A slow turn is overtaken by one whose clock is a minute ahead, and tries to commit all the same.

    A ``blind`` one does not compare revisions: it takes whatever is there for what it stands on.
    """
    journals = tmp_path / "journals"
    journals.mkdir()
    path = tmp_path / "fencing.db"
    timings = fastness.LeaseTimings(timedelta(seconds=30), timedelta(seconds=10))

    def member(clock: Callable[[], int]) -> tuple[fastness.Database, JournalTelemetry]:
        told = JournalTelemetry(Journal.create_in(journals))
        return fastness.Database(SqliteSessionStoreFactory(path, clock=clock), timings=timings, telemetry=told), told

    slow, slow_told = member(system_clock)
    fast, fast_told = member(lambda: system_clock() + AHEAD_MS)
    async with slow, fast:
        async with slow.turn("s") as turn:
            slow_told.begun(turn)
            turn.append("begun")
        await JournalSender(slow, slow_told.journal).send("s", "hello", key="k")
        try:
            async with slow.turn("s", claims=False) as turn:
                slow_told.begun(turn)
                turn.append("from the slow one")
                async with fast.turn("s") as other:
                    fast_told.begun(other)
                    other.append("from the fast one")
                if blind:
                    turn._made.ground = msgspec.structs.replace(turn._made.ground, revision=2)
        except LeaseExpiredError:
            pass
        events, findings = read_journals(journals)
        return check(events, await read_final(slow.factory), journal_findings=findings)


async def test_a_turn_that_was_overtaken_by_a_clock_commits_nothing(tmp_path: Path) -> None:
    """The lane went to whoever held it expired; the commit under the older token is refused, and nothing is wrong."""
    report = await overtake(tmp_path)
    assert report.ok, report.explain()
    assert (report.counts.commits, report.counts.turns_failed) == (2, 1)


async def test_a_database_that_does_not_fence_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the fence and the comparison of revisions switched off, the old turn's commit lands, and is named.

    The log has the token that the lane had then: it is the newer turn's, and not the one that the older turn has shown.
    """

    def lax(lane: Any, *_: object) -> Any:
        """Let everybody in."""
        return lane

    monkeypatch.setattr(lane_rules, "require_live", lax)
    report = await overtake(tmp_path, blind=True)
    assert [finding.kind for finding in report.findings] == ["token_shared", "commit_disagrees"], report.explain()
    assert report.verdict == "0 lost, 0 duplicated, 2 torn"


async def test_that_revisions_are_compared_is_a_second_lock_on_the_door(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the fence alone, the old turn's commit is still refused: it stands on a revision that is gone."""
    monkeypatch.setattr(lane_rules, "require_live", lambda lane, *_: lane)
    with pytest.raises(HeadRevisionConflictError):
        await overtake(tmp_path)
