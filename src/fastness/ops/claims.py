"""What the programs of input and of work share: the statements over their claim columns, written once for both tables.

The two tables have the same claim columns and evidence tables of the same form, so a ``ClaimTable`` is made from the
names of a table and its id. Everything here runs under the lane's lock, except ``verify``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fastness.decide import claims as rules
from fastness.decide.claims import Claimable, HeldRow, ShownClaim
from fastness.decide.lane import LaneFacts
from fastness.errors import ClaimExpiredError
from fastness.ops.lane import Target, enter, look, of_session
from fastness.sql.program import Expected, Program, Row, Statement, Write, id_list

FREE = "(claim_id is null or lane_token <> $2)"
"""No live claim holds the row. ``$2`` is the lane's live token, 0 while it is free: no row was granted under 0."""

EARLIER = "claim_id is not null and lane_token = $2 and lease_token <> $3"
"""An earlier entry of the live lease holds the row. ``$3`` is the lease token of the entry that asks."""

GRANT_COLUMNS = "claim_id, claim_token, lane_token, lease_token"
NO_GRANT = "null, 0, 0, null"


class ClaimTable(NamedTuple):
    """The statements over one table of claimable rows: ``keep_…`` copies to the evidence what ``drop_…`` deletes."""

    held: str
    grant: str
    give_back: str
    keep_claimed: str
    drop_claimed: str
    keep_named: str
    drop_named: str


def claim_table(table: str, row_id: str, on_grant: str = "") -> ClaimTable:
    """Write the statements for a table. ``on_grant`` is what else a grant sets."""
    keep = f"""
    insert into {table}_evidence (sid, seq, {row_id}, source_key, state, enqueued_ms, settled_ms, body)
    select sid, seq, {row_id}, source_key, $3, enqueued_ms, now_ms(), body from {table}"""
    facts = f"{row_id}, claim_id, claim_token, lane_token"
    claimed = "where sid = $1 and claim_id = $2"
    named = f"where sid = $1 and {row_id} in any_of($2)"
    return ClaimTable(
        held=f"select {facts} from {table} where sid = $1 and claim_id in any_of($2)",
        grant=f"""
    update {table} set claim_id = $3, claim_token = $4, lane_token = $5, lease_token = $6{on_grant}
    {named}
    returning {row_id}, seq, enqueued_ms, body""",
        give_back=f"update {table} set claim_id = null, lane_token = 0, lease_token = null {claimed}",
        keep_claimed=f"{keep} {claimed}",
        drop_claimed=f"delete from {table} {claimed}",
        keep_named=f"{keep} {named}",
        drop_named=f"delete from {table} {named}",
    )


class GrantedRow(NamedTuple):
    """What a grant gives back of a row."""

    row_id: str
    seq: int
    enqueued_ms: int
    body: str


def grant_rows(
    table: ClaimTable, lane: LaneFacts, claim_id: str, rows: Sequence[Claimable]
) -> Program[tuple[int, list[GrantedRow]]]:
    """Grant the rows under the live lease (law K2): the claim's fencing token, and the rows as they are asked for.

    It is the last thing that a claim does.

    Only here are bodies read, so that a claim pays for what it takes and for nothing else.
    """
    token = rules.next_claim_token(row.claim_token for row in rows)
    ids = id_list(row.row_id for row in rows)
    params = (lane.sid, ids, claim_id, token, lane.live_token, lane.lease_token)
    (granted,) = yield Write(Statement(table.grant, params), last=True)
    by_id = {row[0]: GrantedRow(*row) for row in granted}
    return token, [by_id[row.row_id] for row in rows]


def held_statement(table: ClaimTable, sid: int, shown: Iterable[ShownClaim]) -> Statement:
    """Give the statement that reads what carries the claims' ids, for ``held_row``."""
    return Statement(table.held, (sid, id_list(claim.claim_id for claim in shown)))


def expected_held(shown: Iterable[ShownClaim], lane_token: int) -> Expected:
    """The rows of ``held_statement`` while the claims are as their holder shows them, granted under this lease."""
    return Expected(
        [(row_id, claim.claim_id, claim.fencing_token, lane_token) for claim in shown for row_id in claim.row_ids]
    )


def held_row(row: Row) -> HeldRow:
    """Read a row of ``held_statement``."""
    return HeldRow(*row)


def settle_claim(table: ClaimTable, sid: int, claim_id: str) -> tuple[Statement, ...]:
    """Give the statements that complete a claim that was found to own its rows under this very lock (law C6)."""
    return (
        Statement(table.keep_claimed, (sid, claim_id, "completed")),
        Statement(table.drop_claimed, (sid, claim_id)),
    )


def cancel_rows(table: ClaimTable, lane: LaneFacts, row_ids: Iterable[str]) -> tuple[Statement, ...]:
    """Give the statements that cancel rows that no live claim holds."""
    ids = id_list(row_ids)
    return (
        Statement(table.keep_named, (lane.sid, ids, "cancelled")),
        Statement(table.drop_named, (lane.sid, ids)),
    )


def verify(table: ClaimTable, target: Target, shown: ShownClaim, error: type[ClaimExpiredError]) -> Program[LaneFacts]:
    """Check that a claim is live for exactly its rows, and give the lane that it lives by (law K1). Writes nothing."""
    lane, rows = yield from look(target, of_session(target, table.held, id_list((shown.claim_id,))))
    if lane is None:
        raise error(shown.session_id, shown.claim_id, "holds nothing: there is no such session")
    rules.require_owned(lane.session_id, (shown,), [held_row(row) for row in rows[0]], lane, error)
    return lane


def abandon(table: ClaimTable, target: Target, claim_id: str) -> Program[None]:
    """Free what the claim still owns (law K3). The greatest grant of each row stays known."""
    lane, _ = yield from enter(target)
    if lane is not None:
        yield Write(Statement(table.give_back, (lane.sid, claim_id)), wakes=True)
