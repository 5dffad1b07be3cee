"""A turn that begins with the commit of the one before it: both programs, one after the other, in one transaction.

Where more waits for a session than its turn has taken, the lane need not be given back, found on the agenda and taken
again. The next turn has a grant of its own all the same: another incarnation, and a greater fencing token.
"""

from __future__ import annotations

from typing import NamedTuple

from fastness.decide.commit_input import CommitInput
from fastness.model.dispatch import TurnBegun
from fastness.model.lease import LeaseOwnerIdentity
from fastness.ops import dispatch
from fastness.ops.commit import Settled, commit
from fastness.ops.dispatch import Drawn, Wants
from fastness.ops.hint import Hint
from fastness.ops.lane import Target
from fastness.sql.program import Program


class Next(NamedTuple):
    """Who is to hold the lane next, and what that turn may begin with."""

    owner: LeaseOwnerIdentity
    ttl_ms: int
    wants: Wants
    drawn: Drawn


def commit_and_begin(
    target: Target, given: CommitInput, minted_ids: tuple[str, ...], hint: Hint | None, successor: Next, *, knows: bool
) -> Program[tuple[Settled, TurnBegun | None]]:
    """Settle a turn that gives the lane back, and begin the next one if anything waits. A replay begins none."""
    settled = yield from commit(target, given, minted_ids, hint, knows=knows)
    if settled.result.replayed:
        return settled, None
    owner, ttl_ms, wants, drawn = successor
    begun = yield from dispatch.begin(target, owner, ttl_ms, wants, drawn, settled=settled.result.head_revision)
    return settled, begun if isinstance(begun, TurnBegun) else None
