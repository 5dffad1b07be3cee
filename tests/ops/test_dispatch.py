"""How the agenda and the beginning of a turn search (laws T1, T4, T8, Q3)."""

from __future__ import annotations

import re

import pytest

from fastness.ops import dispatch, lane, quarantine
from tests.ops.driver import Bench

IN_ORDER = [
    (dispatch.READY, "lane_agenda (priority=? AND ready_ms>? AND ready_ms<?)"),
    (dispatch.READY_UNLIMITED, "lane_agenda (priority=? AND ready_ms>? AND ready_ms<?)"),
    (dispatch.READY_UNLIMITED, "sqlite_autoindex_session_label_1 (sid=? AND label=?)"),
    (dispatch.NEXT_READY, "lane_agenda (priority=? AND ready_ms>?)"),
    (dispatch.NEXT_END, "lane_owner (owner_id>?)"),
    (dispatch.INTERRUPTS, "lane_owner (owner_id=?)"),
    (dispatch.WAITING_INPUT, "turn_input_by_seq (sid=?)"),
    (dispatch.WAITING_WORK, "queued_work_by_seq (sid=?)"),
    (dispatch.INPUT_ATTEMPTS, "turn_input_by_claim (sid=? AND claim_id=?)"),
    (dispatch.WORK_ATTEMPTS, "queued_work_by_claim (sid=? AND claim_id=?)"),
    (dispatch.FREE_INPUT, "turn_input_by_claim (sid=? AND claim_id=?)"),
    (dispatch.FREE_WORK, "queued_work_by_claim (sid=? AND claim_id=?)"),
    (dispatch.LIMITED_LABELS, "sqlite_autoindex_session_label_1 (sid=? AND label=?)"),
    (lane.FREE_LANE, "turn_input_by_seq (sid=?)"),
    (lane.FREE_LANE, "turn_input_by_time (sid=? AND available_ms>?)"),
    (lane.FREE_LANE, "queued_work_by_seq (sid=?)"),
    (lane.FREE_LANE, "queued_work_by_time (sid=? AND available_ms>?)"),
    (lane.CORRECT_AGENDA, "turn_input_by_time (sid=? AND available_ms>?)"),
    (lane.CORRECT_AGENDA, "queued_work_by_time (sid=? AND available_ms>?)"),
    (quarantine.LIST_ALL, "quarantine_by_time ((quarantined_ms,sid,kind,row_id)>(?,?,?,?))"),
    (quarantine.LIST_ALL, "sqlite_autoindex_turn_input_evidence_1 (sid=? AND input_id=?)"),
    (quarantine.LIST_ALL, "sqlite_autoindex_queued_work_evidence_1 (sid=? AND batch_id=?)"),
    (quarantine.LIST_SESSION, "sqlite_autoindex_quarantine_1 (sid=? AND (kind,row_id)>(?,?))"),
]
SORTED = [
    (dispatch.HELD_INPUT, "turn_input_by_claim (sid=? AND claim_id>?)"),
    (dispatch.HELD_WORK, "queued_work_by_claim (sid=? AND claim_id>?)"),
    (dispatch.RUNNING_BY_LABEL, "lane_owner (owner_id>?)"),
    (dispatch.RUNNING_BY_LABEL, "sqlite_autoindex_session_label_1 (sid=? AND label=?)"),
]


@pytest.mark.parametrize(("sql", "index"), IN_ORDER)
def test_every_search_has_its_index_and_reads_in_order(bench: Bench, sql: str, index: str) -> None:
    """No table is gone through, and nothing is sorted."""
    plan = bench.plan(sql)
    assert index in plan, plan
    assert "USE TEMP B-TREE" not in plan, plan
    assert not re.search(r"SCAN (?!CONSTANT|p\d|\(|json_each|w\b)", plan), plan


@pytest.mark.parametrize(("sql", "index"), SORTED)
def test_what_is_sorted_is_found_by_its_index(bench: Bench, sql: str, index: str) -> None:
    """Only what is held is sorted: as many rows as a claim has, or as turns run."""
    plan = bench.plan(sql)
    assert index in plan, plan
    assert not re.search(r"SCAN (?!CONSTANT|json_each)", plan), plan
