"""What a turn begins with, and what becomes of the rows of a failed one. Pure.

One order of admission goes through a session's input and work, and its head decides: a turn takes input up to the first
work behind it, or work up to the first input behind it, never both. What has failed before is tried alone, so that it
takes nothing else with it if it fails again, and what has failed too often is set aside.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile

import msgspec

from fastness.decide.claims import Claimable
from fastness.decide.queued_work import WaitingWork, leading_command, leading_turn_work


class WaitingInput(msgspec.Struct, frozen=True):
    """The facts of input that a turn may begin with, in the order of admission."""

    input_id: str
    seq: int
    claim_token: int
    attempts: int


class Beginning(msgspec.Struct, frozen=True):
    """What a turn takes (one of the two is empty), and what is set aside before."""

    inputs: tuple[Claimable, ...] = ()
    work: tuple[Claimable, ...] = ()
    spoiled_inputs: tuple[str, ...] = ()
    spoiled_work: tuple[str, ...] = ()

    @property
    def takes_something(self) -> bool:
        """Whether there is anything to run a turn for."""
        return bool(self.inputs or self.work)

    @property
    def spoiled_count(self) -> int:
        """How many rows are set aside."""
        return len(self.spoiled_inputs) + len(self.spoiled_work)


def begin(
    inputs: Sequence[WaitingInput],
    work: Sequence[WaitingWork],
    *,
    max_inputs: int,
    max_batches: int,
    max_attempts: int | None,
) -> Beginning:
    """Choose what a turn begins with, of rows whose time has come and that no other lease holds, in their order."""
    spoiled_inputs = tuple(row.input_id for row in inputs if _is_spoiled(row.attempts, max_attempts))
    spoiled_work = tuple(row.batch_id for row in work if _is_spoiled(row.attempts, max_attempts))
    fit_inputs = [row for row in inputs if not _is_spoiled(row.attempts, max_attempts)]
    fit_work = [row for row in work if not _is_spoiled(row.attempts, max_attempts)]
    chosen_inputs: tuple[Claimable, ...] = ()
    chosen_work: tuple[Claimable, ...] = ()
    if fit_inputs and (not fit_work or fit_inputs[0].seq < fit_work[0].seq):
        before = fit_work[0].seq if fit_work else None
        chosen_inputs = _inputs(fit_inputs, before, max_inputs)
    elif fit_work:
        before = fit_inputs[0].seq if fit_inputs else None
        chosen_work = _work(fit_work, before, max_batches)
    return Beginning(chosen_inputs, chosen_work, spoiled_inputs, spoiled_work)


def spoiled(attempts: Iterable[tuple[str, int]], max_attempts: int | None) -> tuple[str, ...]:
    """Give the rows, of (id, attempts), that are not tried again. None: all are, for ever."""
    return tuple(row_id for row_id, count in attempts if _is_spoiled(count, max_attempts))


def backoff_ms(attempts: int, *, base_ms: int, longest_ms: int, jitter: float) -> int:
    """Give the pause before a turn is tried again: doubled with each attempt, and shortened by up to a half of it.

    ``jitter`` is from 0 (not shortened) to 1; it keeps sessions that failed together from coming back together.
    """
    whole = min(longest_ms, base_ms << min(max(attempts - 1, 0), 32))
    return int(whole * (1 - jitter / 2))


def _inputs(rows: Sequence[WaitingInput], before: int | None, limit: int) -> tuple[Claimable, ...]:
    head, *others = rows
    if head.attempts > 0:
        others = []
    joined = takewhile(lambda row: row.attempts == 0 and (before is None or row.seq < before), others)
    return tuple(Claimable(row.input_id, row.seq, row.claim_token) for row in (head, *joined))[:limit]


def _work(rows: Sequence[WaitingWork], before: int | None, limit: int) -> tuple[Claimable, ...]:
    command = leading_command(rows)
    if command is not None:
        run: tuple[WaitingWork, ...] = (command,)
    elif rows[0].attempts > 0:
        run = (rows[0],)
    else:
        ahead = [row for row in rows if before is None or row.seq < before]
        fresh = takewhile(lambda row: row.attempts == 0, ahead)
        run = leading_turn_work(tuple(fresh), "idle", limit)
    return tuple(Claimable(row.batch_id, row.seq, row.claim_token) for row in run)


def _is_spoiled(attempts: int, max_attempts: int | None) -> bool:
    return max_attempts is not None and attempts >= max_attempts
