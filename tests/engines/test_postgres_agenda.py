"""What the agenda reads on PostgreSQL: as much as is asked for, however much there is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from fastness.engines.postgres_dialect import translate
from fastness.model import SessionStoreCreateRequest
from fastness.ops import dispatch
from tests.engines.postgres_lab import Ground

IDLE, READY, HELD = 10_000, 1_000, 50
CLOCK = "(extract(epoch from clock_timestamp()) * 1000)::bigint"


@pytest.fixture
async def crowd(ground: Ground) -> Ground:
    """A schema with many idle sessions, all of one label, a thousand that are ready, and fifty whose turn runs."""
    async with ground.factory() as factory:
        await factory.create_store(SessionStoreCreateRequest("s"))
    count = IDLE + READY + HELD
    numbers = f"generate_series(1, {count}) i"
    ground.execute(f"insert into session (session_id, created_ms) select 'n' || i, 0 from {numbers}")
    ground.execute("insert into lane (sid) select sid from session where session_id <> 's'")
    ground.execute("insert into session_label (sid, label) select sid, 'red' from session")
    ground.execute(f"update lane set ready_ms = sid where sid > {IDLE + 1} and sid <= {IDLE + READY + 1}")
    ground.execute(
        f"""update lane set owner_id = 'o' || sid, lease_token = 't', expires_ms = {CLOCK} + 600000, ready_ms = 5
        where sid > {IDLE + READY + 1}"""
    )
    ground.execute("vacuum analyze")
    return ground


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All steps of a plan."""
    yield plan
    for each in plan.get("Plans", ()):
        yield from nodes(each)


def rows_read(ground: Ground, sql: str, *params: object) -> int:
    """How many rows a statement looks at in our tables, those included that it passes over."""
    with ground.admin() as connection, psycopg.RawCursor(connection) as cursor:
        cursor.execute("explain (analyze, format json) " + translate(sql, CLOCK), params)
        (((found,),),) = cursor.fetchall()
    scans = [node for node in nodes(found["Plan"]) if "Relation Name" in node]
    assert scans
    return int(
        sum((node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"] for node in scans)
    )


async def test_the_agenda_reads_as_much_as_is_asked_for(crowd: Ground) -> None:
    """Ten of a thousand that are ready cost ten rows and their names, and the lanes that are held meanwhile."""
    assert rows_read(crowd, dispatch.READY, 10) <= 20 + HELD
    assert rows_read(crowd, dispatch.READY_UNLIMITED, 10, '["blue"]') <= 30 + 2 * HELD
    assert rows_read(crowd, dispatch.NEXT_READY) <= 10
    assert rows_read(crowd, dispatch.NEXT_END) <= HELD
    assert rows_read(crowd, dispatch.INTERRUPTS, "o5") <= 1


async def test_a_label_of_ten_thousand_idle_sessions_costs_what_runs(crowd: Ground) -> None:
    """How many turns of a label run is found by the lanes that are held."""
    assert rows_read(crowd, dispatch.RUNNING_BY_LABEL, '["red"]', 1) <= 2 * HELD
