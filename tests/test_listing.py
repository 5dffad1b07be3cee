"""A listing shows the sessions that its filter fits, all of them, in their order, whichever index it goes by."""

from __future__ import annotations

import random
from typing import NamedTuple

import pytest

from fastness.conformance import Lab
from fastness.decide.directory import FEW, Way, way_through, worth_counting
from fastness.model import SessionFilter, SessionStoreCreateRequest

SESSIONS = 3 * FEW
LABELS = {"common": 2, "some": 7, "rare": 1000}
FILL = (
    f"""with recursive numbers (n) as (select 1 union all select n + 1 from numbers where n < {SESSIONS})
    insert into session (session_id, created_ms, parent_session_id)
    select case when n > {FEW} then 't' else 's' end || n, n * 10 + case when n % 97 = 0 then 30000 else 0 end,
        case when n % 3 = 0 then 's1' when n % 500 = 1 then 's2' end
    from numbers order by n""",
    "insert into lane (sid) select sid from session",
    *(
        f"insert into session_label (sid, label) select sid, '{label}' from session where sid % {every} = 0"
        for label, every in LABELS.items()
    ),
)


class Known(NamedTuple):
    """A session as it was filled in."""

    number: int

    @property
    def name(self) -> str:
        """Its id."""
        return f"{'t' if self.number > FEW else 's'}{self.number}"

    @property
    def created_ms(self) -> int:
        """When it was made; the clock was set back now and then."""
        return self.number * 10 + (30000 if self.number % 97 == 0 else 0)

    @property
    def parent(self) -> str | None:
        """Who started it."""
        return "s1" if self.number % 3 == 0 else "s2" if self.number % 500 == 1 else None

    def fits(self, filters: SessionFilter) -> bool:
        """Whether a filter shows it."""
        since, until = filters.created_from_ms, filters.created_until_ms
        return (
            self.name.startswith(filters.id_prefix or "")
            and filters.parent_session_id in (None, self.parent)
            and (since is None or self.created_ms >= since)
            and (until is None or self.created_ms <= until)
            and all(self.number % LABELS[label] == 0 for label in filters.labels)
        )


def drawn(dice: random.Random) -> SessionFilter:
    """Any filter."""
    labels = dice.sample(sorted(LABELS), dice.choice([0, 0, 1, 2]))
    return SessionFilter(
        dice.choice([None, None, "s", "t", "s1", "t4999", "x"]),
        dice.choice([None, None, "s1", "s2"]),
        dice.choice([None, None, 1, FEW * 20, SESSIONS * 10 - 500, SESSIONS * 10 + 29_000, SESSIONS * 20 + 30_000]),
        dice.choice([None, None, 500, FEW * 30, SESSIONS * 10]),
        tuple(labels),
    )


async def test_a_listing_by_any_filter_shows_what_fits_it(lab: Lab) -> None:
    """Page by page, from wherever it goes on, beside so many sessions that it has a choice of ways."""
    await lab.factory.migrate()
    for statement in FILL:
        await lab.execute_raw(statement)
    known = [Known(number) for number in range(1, SESSIONS + 1)]
    dice = random.Random(6)
    for filters in (SessionFilter(), *(drawn(dice) for _ in range(150))):
        fitting = [each.name for each in known if each.fits(filters)]
        shown: list[str] = []
        cursor, limit = None, dice.choice([1, 10, 100])
        for _ in range(3):
            page = await lab.factory.list_sessions(limit=limit, cursor=cursor, filters=filters)
            shown += [each.meta.session_id for each in page.sessions]
            cursor = page.next_cursor
            if cursor is None:
                break
        assert shown == fitting[: 3 * limit], filters
        assert (cursor is None) == (len(fitting) <= 3 * limit), filters


async def test_a_prefix_fits_every_id_that_begins_with_it(lab: Lab) -> None:
    """Up to the last code point of all, as often as it may stand there, and nothing behind it."""
    last = "\U0010ffff"
    fitting = ["a", "ab", f"a{last}", f"a{last}x", "a" + last * 127]
    for name in (*fitting, "A", "b"):
        await lab.factory.create_store(SessionStoreCreateRequest(name))
    page = await lab.factory.list_sessions(filters=SessionFilter("a"))
    assert [each.meta.session_id for each in page.sessions] == fitting


@pytest.mark.parametrize(
    ("ordered", "counts", "way"),
    [
        ([], [], Way(None, True)),
        ([True], [], Way(0, True)),
        ([False], [FEW - 1], Way(0, False)),
        ([False], [FEW], Way(None, True)),
        ([True, True], [FEW, 3], Way(1, True)),
        ([True, False], [FEW, FEW], Way(0, True)),
        ([False, True], [FEW, FEW], Way(1, True)),
        ([True, False], [5, 4], Way(1, False)),
    ],
)
def test_the_fewest_lead_where_they_are_few(ordered: list[bool], counts: list[int], way: Way) -> None:
    """Else what gives the sessions in their order, and without a choice nothing is counted."""
    assert worth_counting(ordered) == bool(counts)
    assert way_through(ordered, counts) == way
