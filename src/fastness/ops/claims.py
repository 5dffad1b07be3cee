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
from fastness.model.dispatch import QuarantineKind
from fastness.ops.lane import Target, enter, look, of_session
from fastness.sql.program import Expected, Program, Row, Statement, Write, id_list

FREE = "(claim_id is null or lane_token <> $2)"
"""No live claim holds the row. ``$2`` is the lane's live token, 0 while it is free: no row was granted under 0."""

EARLIER = "claim_id is not null and lane_token = $2 and lease_token <> $3"
"""An earlier entry of the live lease holds the row. ``$3`` is the lease token of the entry that asks."""

GRANT_COLUMNS = "claim_id, claim_token, lane_token, lease_token, attempts"
NO_GRANT = "null, 0, 0, null, 0"


class ClaimTable(NamedTuple):
    """The statements over one table of claimable rows: ``keep_…`` copies to the evidence what ``drop_…`` deletes."""

    held: str
    grant: str
    give_back: str
    keep_claimed: str
    drop_claimed: str
    keep_named: str
    drop_named: str
    cancel_kept: str
    forget_why: str


def claim_table(table: str, kind: QuarantineKind, row_id: str, on_grant: str = "") -> ClaimTable:
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
    update {table} set claim_id = $3, claim_token = $4, lane_token = $5, lease_token = $6,
        attempts = attempts + case when lane_token = $5 then 0 else 1 end{on_grant}
    {named}
    returning {row_id}, seq, enqueued_ms, attempts, body""",
        give_back=f"""
    update {table} set claim_id = null, lane_token = 0, lease_token = null,
        attempts = case when attempts > 0 then attempts - 1 else 0 end
    {claimed}""",
        keep_claimed=f"{keep} {claimed}",
        drop_claimed=f"delete from {table} {claimed}",
        keep_named=f"{keep} {named}",
        drop_named=f"delete from {table} {named}",
        cancel_kept=f"""
    update {table}_evidence set state = 'cancelled', settled_ms = now_ms() {named} and state = 'quarantined'""",
        forget_why=f"""
    delete from quarantine where sid = $1 and kind = '{kind}' and row_id in any_of($2)""",
    )


class GrantedRow(NamedTuple):
    """What a grant gives back of a row."""

    row_id: str
    seq: int
    enqueued_ms: int
    attempts: int
    body: str


def grant_rows(
    table: ClaimTable, lane: LaneFacts, claim_id: str, rows: Sequence[Claimable]
) -> Program[tuple[int, list[GrantedRow]]]:
    """Grant the rows under the live lease (law K2): the claim's fencing token, and the rows as they are asked for.

    It is the last thing that a claim does.
    """
    statement, token = grant_statement(table, lane.sid, lane.live_token, lane.lease_token, claim_id, rows)
    (granted,) = yield Write(statement, last=True)
    return token, in_order(granted, rows)


def grant_statement(
    table: ClaimTable, sid: int, lane_token: int, lease_token: str | None, claim_id: str, rows: Sequence[Claimable]
) -> tuple[Statement, int]:
    """Give the statement that grants rows under a lease, and the claim's fencing token; read its rows ``in_order``.

    Only here are bodies read, so that a claim pays for what it takes and for nothing else. What is granted again under
    the very lease that it was granted under is no new attempt.
    """
    token = rules.next_claim_token(row.claim_token for row in rows)
    ids = id_list(row.row_id for row in rows)
    return Statement(table.grant, (sid, ids, claim_id, token, lane_token, lease_token)), token


def in_order(granted: Iterable[Row], rows: Sequence[Claimable]) -> list[GrantedRow]:
    """Read what a grant gave, in the order that was asked for."""
    by_id = {row[0]: GrantedRow(*row) for row in granted}
    return [by_id[row.row_id] for row in rows]


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
    """Give the statements that cancel rows that no live claim holds, in quarantine or not."""
    ids = id_list(row_ids)
    return (
        Statement(table.cancel_kept, (lane.sid, ids)),
        Statement(table.forget_why, (lane.sid, ids)),
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
