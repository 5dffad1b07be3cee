"""What claims of input and claims of work have in common (laws K1 to K3, L2, C6).

A claim has no lifetime of its own. A row remembers the lease that it was granted under, and whether that lease is still
the live one is a question to the lane. So nothing expires by itself, nothing has to be renewed beside the lease, and a
crashed holder's rows are free the moment its lease ends. Nothing here knows what a row contains.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from fastness.decide.lane import Lane
from fastness.errors import ClaimExpiredError


class Grant(msgspec.Struct, frozen=True):
    """What a row says about its latest grant.

    ``claim_id`` is None when it was given back or never granted; ``claim_token`` is the greatest grant so far and
    stays. ``lane_token`` and ``lease_token`` name the lease: the lane's fencing token, and which entry of its holder.
    ``attempts`` counts the grants, those left out that were given back.
    """

    claim_id: str | None = None
    claim_token: int = 0
    lane_token: int = 0
    lease_token: str | None = None
    attempts: int = 0


class Claimable(msgspec.Struct, frozen=True):
    """A row that a claim may take: its id, its place in the order of admission, its greatest grant so far."""

    row_id: str
    seq: int
    claim_token: int


class HeldRow(msgspec.Struct, frozen=True):
    """A row that carries a claim's id, as a completion is checked against it."""

    row_id: str
    claim_id: str
    claim_token: int
    lane_token: int


class ShownClaim(msgspec.Struct, frozen=True):
    """A claim as its holder shows it, be it to renew or to complete it."""

    session_id: str
    claim_id: str
    fencing_token: int
    row_ids: tuple[str, ...]


def is_held(grant: Grant, lane: Lane) -> bool:
    """Whether a live claim holds the row: granted, not given back, and its lease is the live one (law K1)."""
    return grant.claim_id is not None and lane.live_token != 0 and grant.lane_token == lane.live_token


def pick(earlier: Iterable[Claimable], free: Iterable[Claimable], limit: int) -> tuple[Claimable, ...]:
    """Choose at most ``limit`` rows: first those that an earlier entry of this lease holds (law L2), then free ones.

    ``earlier`` and ``free`` are what the call admits. Whom the limit leaves out is chosen by a later call; what was
    chosen is given in the order of admission.
    """
    by_seq = [*sorted(earlier, key=_seq), *sorted(free, key=_seq)]
    return tuple(sorted(by_seq[:limit], key=_seq))


def next_claim_token(tokens: Iterable[int]) -> int:
    """Give the token of a grant of rows with these greatest grants so far (law K2)."""
    return max(tokens) + 1


def require_owned(
    session_id: str,
    shown: Sequence[ShownClaim],
    rows: Sequence[HeldRow],
    lane: Lane,
    error: type[ClaimExpiredError],
) -> None:
    """Refuse claims that do not own exactly their rows (law C6): all of them, none twice, all still held.

    ``rows`` are all rows that carry one of the claims' ids. The lane's live lease decides what is held, so a commit
    checks its fence first. ``error`` is the one to raise.
    """
    seen: set[str] = set()
    for claim in shown:
        if claim.claim_id in seen:
            raise error(claim.session_id, claim.claim_id, "is named twice")
        seen.add(claim.claim_id)
        fault = _fault(session_id, claim, [row for row in rows if row.claim_id == claim.claim_id], lane)
        if fault is not None:
            raise error(claim.session_id, claim.claim_id, fault)


def _fault(session_id: str, claim: ShownClaim, rows: Sequence[HeldRow], lane: Lane) -> str | None:
    if not rows or claim.session_id != session_id:
        return "holds nothing: it was completed, abandoned or granted again"
    if any(row.lane_token != lane.live_token for row in rows):
        return "ended with the lease that it was granted under"
    if any(row.claim_token != claim.fencing_token for row in rows):
        return f"does not have the fencing token {claim.fencing_token}"
    if len(set(claim.row_ids)) != len(claim.row_ids):
        return "names a row twice"
    if {row.row_id for row in rows} != set(claim.row_ids):
        return f"holds {len(rows)} rows, and not exactly the {len(claim.row_ids)} that are named"
    return None


def _seq(row: Claimable) -> int:
    return row.seq
