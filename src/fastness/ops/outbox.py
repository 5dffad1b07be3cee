"""The outbox of a commit: input and work for this and other sessions, enqueued by its transaction (law C14).

All lanes are locked first, in the order of the sessions' ids, so that no two commits wait for each other; all facts are
read with the commit's own, and all rows written behind its settlement. However many entries there are, they cost no
round trip of their own; only bringing unknown sessions to life takes one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from fastness.decide import turn_input as rules
from fastness.decide.turn_input import InputRow
from fastness.model.base import MAX_INT, checked
from fastness.model.commit import OutboxEntry, OutboxInput
from fastness.model.queued_work import QueuedWorkBatchDraft
from fastness.model.turn_input import PendingTurnInputDraft
from fastness.ops import queued_work, turn_input
from fastness.ops.lane import Target, birth, draw_admission, lane_facts, lane_lock, lane_statement
from fastness.sql.program import Item, Lock, Many, Param, Program, Read, Row, Rows, Statement, Write


class Delivery(NamedTuple):
    """What goes to one session, in the order of the outbox, with the ids that were drawn for it."""

    target: Target
    entries: Sequence[tuple[OutboxEntry, str]]


def deliveries(sender: Target, outbox: Sequence[OutboxEntry], minted_ids: Sequence[str]) -> list[Delivery]:
    """Sort an outbox by session. The sender's own session is bound, the others are known by name."""
    found: dict[str, list[tuple[OutboxEntry, str]]] = {}
    for entry, minted_id in zip(outbox, minted_ids, strict=True):
        found.setdefault(entry.draft.session_id, []).append((entry, minted_id))
    return [
        Delivery(sender if session_id == sender.session_id else Target(session_id), found[session_id])
        for session_id in sorted(found)
    ]


def locks(sender: Target, given: Sequence[Delivery]) -> list[Lock]:
    """Give the locks of all lanes that the commit writes to, in the order of the sessions' ids."""
    if not given:
        return [lane_lock(sender)]
    targets = {delivery.target.session_id: delivery.target for delivery in given} | {sender.session_id: sender}
    return [lane_lock(targets[session_id]) for session_id in sorted(targets)]


def facts(given: Iterable[Delivery]) -> list[Statement]:
    """Give the statements that read what ``admitted`` decides on, four for each delivery."""
    statements: list[Statement] = []
    for target, entries in given:
        inputs = [entry.draft for entry, _ in entries if isinstance(entry, OutboxInput)]
        work = [entry.draft for entry, _ in entries if not isinstance(entry, OutboxInput)]
        keys = [draft.source_key for draft in work if draft.source_key is not None]
        statements += [
            lane_statement(target),
            *turn_input.named(target, inputs),
            queued_work.named(target, keys),
        ]
    return statements


def admitted(given: Sequence[Delivery], rows: Rows, released: Target | None) -> Program[list[Item]]:
    """Decide which entries are new, and give the statements that admit them. Brings unknown sessions to life.

    It comes after the commit was decided: one that is replayed, or refused, brings nothing to life (law M3). ``rows``
    are those of ``facts``; ``released`` is the session whose lane this very commit releases.
    """
    known = {delivery.target: rows[4 * at : 4 * at + 4] for at, delivery in enumerate(given)}
    # More than once only where somebody deletes the session between its birth and the lock.
    while new := [delivery for delivery in given if not known[delivery.target][0]]:
        for delivery in new:
            yield Write(*birth(delivery.target.session_id), lane_lock(delivery.target))
        found = yield Read(*facts(new))
        known |= {delivery.target: found[4 * at : 4 * at + 4] for at, delivery in enumerate(new)}
    items: list[Item] = []
    for delivery in given:
        items += _admitted(delivery, known[delivery.target], is_released=delivery.target == released)
    return items


def _admitted(delivery: Delivery, rows: Rows, *, is_released: bool) -> list[Item]:
    lane = lane_facts(delivery.target, rows[0])
    assert lane is not None  # it was there, or it was brought to life
    if is_released:
        lane = msgspec.structs.replace(lane, owner=None, lease_token=None, expires_ms=0, backoff_ms=0)
    inputs: list[tuple[Param, ...]] = []
    work: list[tuple[Param, ...]] = []
    known = _Known(turn_input.input_rows(rows[1:3]), rows[3])
    seq, earliest = lane.admission_seq, MAX_INT
    for entry, minted_id in delivery.entries:
        if isinstance(entry, OutboxInput):
            draft, body = checked(PendingTurnInputDraft, entry.draft)
            if rules.resubmitted(draft, known.inputs_like(draft)) is None:
                seq += 1
                earliest = min(earliest, draft.available_at_ms)
                row, params = turn_input.admission(lane, seq, draft, draft.input_id or minted_id, body)
                known.add(row)
                inputs.append(params)
        elif entry.draft.source_key is None or entry.draft.source_key not in known.work_keys:
            batch, body = checked(QueuedWorkBatchDraft, entry.draft)
            seq += 1
            earliest = min(earliest, batch.available_at_ms)
            work.append(queued_work.admission(lane, seq, batch, minted_id, body)[1])
            known.work_keys.add(batch.source_key)
    items = [Many(turn_input.ADD_INPUT, inputs), Many(queued_work.ADD_WORK, work)]
    new = [item for item in items if item.rows]
    return [draw_admission(lane, earliest, seq - lane.admission_seq), *new] if new else []


class _Known:
    """What a session knows of source keys and input ids, the entries before this one included."""

    def __init__(self, inputs: Iterable[InputRow], work: Iterable[Row]) -> None:
        self.work_keys: set[str | None] = {queued_work.source_key_of(row) for row in work}
        self._by_id: dict[str, InputRow] = {}
        self._by_key: dict[str, InputRow] = {}
        for row in inputs:
            self.add(row)

    def add(self, row: InputRow) -> None:
        """Take note of a row."""
        self._by_id[row.input_id] = row
        if row.draft.source_key is not None:
            self._by_key[row.draft.source_key] = row

    def inputs_like(self, draft: PendingTurnInputDraft) -> list[InputRow]:
        """The rows that have the draft's id or its source key."""
        found = (self._by_id.get(draft.input_id or ""), self._by_key.get(draft.source_key or ""))
        return [row for row in found if row is not None]
