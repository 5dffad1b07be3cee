"""Liveness and ownership of claims, on facts alone (laws K1, K2, L2, C6)."""

from __future__ import annotations

import pytest

from fastness.decide.claims import Claimable, Grant, HeldRow, ShownClaim, is_held, next_claim_token, pick, require_owned
from fastness.decide.lane import LaneFacts
from fastness.errors import TurnInputClaimExpiredError
from fastness.model import LeaseOwnerIdentity


def lane(token: int, *, lease: str | None = "l", now_ms: int = 0) -> LaneFacts:
    """A lane whose lease ends at 10."""
    return LaneFacts(1, "s", 0, token, LeaseOwnerIdentity("o", "i"), lease, 0, 10, now_ms)


GRANT = Grant("c", 1, 3, "l")
ROWS = (HeldRow("a", "c", 5, 3), HeldRow("b", "c", 5, 3))
SHOWN = ShownClaim("s", "c", 5, ("a", "b"))


def test_a_claim_is_live_as_long_as_its_lease() -> None:
    """K1: granted under the live token: held, whichever entry; else free: released, expired, taken over, given back."""
    assert is_held(GRANT, lane(3))
    assert is_held(GRANT, lane(3, lease="re-entered"))
    assert not is_held(GRANT, lane(3, lease=None))
    assert not is_held(GRANT, lane(3, now_ms=10))
    assert not is_held(GRANT, lane(4))
    assert not is_held(Grant(), lane(3))
    assert not is_held(Grant(), lane(0, lease=None))


def test_rows_of_the_earlier_entry_come_first() -> None:
    """L2: held rows are chosen before free ones up to the limit; what was chosen is in the order of admission."""
    held, free = [Claimable("h", 3, 1)], [Claimable("a", 1, 0), Claimable("b", 2, 0)]
    assert [row.row_id for row in pick(held, free, 1)] == ["h"]
    assert [row.row_id for row in pick(held, free, 2)] == ["a", "h"]
    assert next_claim_token([1, 7, 0]) == 8


def test_a_claim_that_owns_its_rows_passes() -> None:
    """C6: all of the rows, none twice, all still held; the order does not matter."""
    require_owned("s", [SHOWN], ROWS, lane(3), TurnInputClaimExpiredError)
    require_owned("s", [ShownClaim("s", "c", 5, ("b", "a"))], ROWS, lane(3), TurnInputClaimExpiredError)
    require_owned("s", [], (), lane(3), TurnInputClaimExpiredError)


@pytest.mark.parametrize(
    ("shown", "rows", "token"),
    [
        ([SHOWN, SHOWN], ROWS, 3),
        ([ShownClaim("s", "c", 5, ("a",))], ROWS, 3),
        ([ShownClaim("s", "c", 5, ("a", "b", "x"))], ROWS, 3),
        ([ShownClaim("s", "c", 5, ("a", "b", "b"))], ROWS, 3),
        ([ShownClaim("s", "c", 4, ("a", "b"))], ROWS, 3),
        ([ShownClaim("other", "c", 5, ("a", "b"))], ROWS, 3),
        ([ShownClaim("s", "x", 5, ())], ROWS, 3),
        ([SHOWN], ROWS[:1], 3),
        ([SHOWN], (), 3),
        ([SHOWN], ROWS, 4),
    ],
)
def test_a_claim_that_does_not_is_refused(shown: list[ShownClaim], rows: tuple[HeldRow, ...], token: int) -> None:
    """C6: named twice, too few rows, too many, one twice, another grant or session, unknown, partly gone, dead."""
    with pytest.raises(TurnInputClaimExpiredError):
        require_owned("s", shown, rows, lane(token), TurnInputClaimExpiredError)


def test_a_dead_lane_owns_nothing() -> None:
    """K1: rows under token 0 are nobody's: a free lane completes nothing."""
    with pytest.raises(TurnInputClaimExpiredError):
        require_owned("s", [SHOWN], ROWS, lane(3, now_ms=10), TurnInputClaimExpiredError)
