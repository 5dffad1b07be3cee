"""What a listing by labels and one of held lanes cost the server: what they show, however many sessions there are."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from fastness.decide.directory import FEW as FEW_FIT
from fastness.model import SessionFilter
from fastness.persistence import PostgresSessionStoreFactory
from tests.engines.postgres_lab import Ground
from tests.engines.test_postgres_growth import Meter

FEW, MANY = 20, 20_000
SLACK = 50
"""Rows that another plan may read beside those it shows: far from all, and from all with a label."""
COUNTED = FEW_FIT
"""Where there is a choice of ways, it is made by counting so far."""

ADD = """
    with made as (
        insert into session (session_id, created_ms) select 's' || n, n from generate_series(%s::int, %s::int) n
        returning sid
    ), lanes as (insert into lane (sid) select sid from made)
    insert into session_label (sid, label)
    select sid, label from made, lateral (values ('common'), ('own ' || sid)) l (label)"""
SHOWN = (
    "insert into session_label (sid, label) select sid, 'rare' from session where session_id in ('s3', 's9')",
    """update lane set owner_id = 'alice', incarnation_id = 'alice-1', liveness = '{"type":"opaque"}', lease_token = 't'
    where sid in (select sid from session where session_id in ('s4', 's7'))""",
)


class Listings:
    """A database that grows behind the back of an engine with one connection, whose plans are made when it is small."""

    def __init__(self, ground: Ground, factory: PostgresSessionStoreFactory) -> None:
        self.factory = factory
        self.meter = Meter(ground, factory)

    async def labelled(self, *labels: str, limit: int = 2) -> int:
        """What a page by labels reads; it is full."""
        read = await self.meter(self.factory.list_sessions(limit=limit, filters=SessionFilter(labels=labels)))
        assert len(self.meter.answer.sessions) == limit
        return read

    async def held(self, owner_id: str | None) -> int:
        """What a page of held lanes reads."""
        read = await self.meter(self.factory.workers.list_held_lanes(owner_id=owner_id))
        assert [each.session_id for each in self.meter.answer] == ["s4", "s7"]
        return read

    async def measure(self) -> dict[str, int]:
        """What each listing reads."""
        return {
            "rare": await self.labelled("rare"),
            "common": await self.labelled("common"),
            "common page": await self.labelled("common", limit=15),
            "both": await self.labelled("rare", "common"),
            "held": await self.held(None),
            "held by one": await self.held("alice"),
        }


@pytest.fixture
async def listings(own_ground: Ground) -> AsyncIterator[Listings]:
    """A few sessions, two of them with a rare label and two with a held lane."""
    if own_ground.server.major < 15:
        pytest.skip("before PostgreSQL 15 there is no telling when statistics are written down")
    async with own_ground.factory(pool_size=1) as factory:
        await factory.migrate()
        own_ground.execute(ADD, 1, FEW)
        for statement in SHOWN:
            own_ground.execute(statement)
        yield Listings(own_ground, factory)


@pytest.mark.parametrize("is_analyzed", [False, True])
async def test_listings_read_what_they_show_however_many_sessions_there_are(
    listings: Listings, own_ground: Ground, is_analyzed: bool
) -> None:
    """Beside 20,000 sessions they read what they read beside 20, by plans that were made then, or by new ones."""
    for _ in range(12):  # so often that the server keeps its plans
        await listings.measure()
    small = await listings.measure()
    assert min(small.values()) >= 2, "nothing was measured"
    own_ground.execute(ADD, FEW + 1, MANY)
    if is_analyzed:
        for table in ("session", "lane", "session_label", "head"):
            own_ground.execute(f"analyze {table}")
    large = await listings.measure()
    allowed = {name: read + SLACK + (COUNTED if name == "both" else 0) for name, read in small.items()}
    assert {name: read for name, read in large.items() if read > allowed[name]} == {}, (small, large)
