"""Runs the turns of one conversation against its session: enqueue, enter the lane, claim, commit.

It promises that a turn lands once, whatever was interrupted before: what is there is found by its name and skipped,
input that a crashed run left behind is found by its source key, and a lane whose holder is provably dead is taken over.
It goes through the public capabilities and knows no database.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import msgspec

from fastness.errors import (
    ClaimExpiredError,
    CommitOutcomeUnknownError,
    ContendedError,
    HeadRevisionConflictError,
    InvalidInputError,
    LeaseExpiredError,
    StoreError,
    TurnCommitConflictError,
)
from fastness.liveness import is_dead, mint_owner
from fastness.model.checkpoint import HydratedSessionCheckpoint, PersistedTurnState, TokenLedgerEntry
from fastness.model.commit import RuntimeCommit, RuntimeCommitResult
from fastness.model.graph import Append
from fastness.model.lease import Acquired, LeaseTimings, LocalProcess, SessionExecutionLease
from fastness.model.protocols import RuntimePersistence
from fastness.model.turn_input import TurnInputClaim
from fastness.replay.plan import PlannedNode, PlannedTurn, Replay
from fastness.replay.usage import model_to_charge

_ATTEMPTS = 8
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 0.5
_USAGE_SOURCE = "turn"
_SETTLED = ("completed", "cancelled")


class TurnOutcome(msgspec.Struct, frozen=True):
    """What became of a turn: whether this run settled it (else it was there before), and how many messages it added."""

    turn: PlannedTurn
    replayed: bool
    messages_added: int = 0


class Settings(msgspec.Struct, frozen=True):
    """How a replay behaves.

    ``while_claimed`` is awaited between the claim of a turn and its commit, where a live agent would call its model.
    ``lane_patience_s`` bounds the wait for a lane whose holder is alive, or cannot be proven dead.
    """

    owner_id: str | None = None
    timings: LeaseTimings = LeaseTimings()
    lane_patience_s: float = 120.0
    while_claimed: Callable[[PlannedTurn], Awaitable[None]] | None = None
    on_turn: Callable[[TurnOutcome], None] | None = None


class _OvertakenError(Exception):
    """Somebody else moved the session on: look again at where it stands."""


# A turn conflict means that another run settled the same turn: it claimed the input that this one found consumed.
_LOOK_AGAIN = (
    _OvertakenError,
    HeadRevisionConflictError,
    LeaseExpiredError,
    ClaimExpiredError,
    CommitOutcomeUnknownError,
    TurnCommitConflictError,
)


class Replayer:
    """Replays one conversation. ``take_over_count`` counts the lanes that were taken from dead processes."""

    def __init__(self, store: RuntimePersistence, replay: Replay, settings: Settings | None = None) -> None:
        self.take_over_count = 0
        self._store = store
        self._replay = replay
        self._settings = settings or Settings()
        self._node_ids = replay.node_ids
        self._revision: int | None = None
        self._present = 0
        """How many nodes of the branch are there, from the root on. A node is never there without its parent."""

    async def run(self) -> None:
        """Settle every turn that is not there yet. Raises the ``StoreError`` that stood in the way to the last."""
        await self._look()
        end = 0
        for turn in self._replay.turns:
            end += len(turn.nodes)
            outcome = await self._settle(turn, end)
            if self._settings.on_turn is not None:
                self._settings.on_turn(outcome)

    async def _look(self) -> None:
        """Find out where the session stands: the head's revision, and how far the branch is there already."""
        head = await self._store.load_head()
        self._revision = head.revision if head is not None else None
        low, high = 0, 0 if head is None else len(self._node_ids)
        probe = high
        while low < high:
            if await self._store.load_node(self._node_ids[probe - 1]) is not None:
                low = probe
            else:
                high = probe - 1
            probe = (low + high + 1) // 2
        self._present = low

    async def _settle(self, turn: PlannedTurn, end: int) -> TurnOutcome:
        unanswered = 0
        for attempt in range(_ATTEMPTS):
            if self._present >= end:
                # A commit whose answer was lost may have been ours: its messages are there, once.
                return TurnOutcome(turn, replayed=unanswered > 0, messages_added=unanswered)
            missing = turn.nodes[self._present - end :]
            try:
                result = await self._attempt(turn, missing)
            except _LOOK_AGAIN as error:
                if isinstance(error, CommitOutcomeUnknownError):
                    unanswered = _count_messages(missing)
                if attempt == _ATTEMPTS - 1:
                    raise _final(error, turn) from error
                await asyncio.sleep(_pause(attempt))
                await self._look()
            else:
                self._revision, self._present = result.head_revision, end
                ours = not result.replayed or unanswered > 0
                return TurnOutcome(turn, ours, _count_messages(missing) if ours else 0)
        raise AssertionError("the last attempt returns or raises")

    async def _attempt(self, turn: PlannedTurn, missing: tuple[PlannedNode, ...]) -> RuntimeCommitResult:
        """Run the turn once."""
        input_ids = await self._enqueue(turn, missing)
        lease = await self._enter_lane()
        try:
            claim = await self._claim(lease, input_ids)
            if self._settings.while_claimed is not None:
                await self._settings.while_claimed(turn)
            result = await self._store.commit_runtime_state(self._commit(turn, missing, lease, claim))
        except BaseException:
            await self._leave_lane(lease)
            raise
        if result.replayed and await self._store.load_node(turn.leaf_node_id) is None:
            what = f"turn {turn.turn_id!r} of session {turn.session_id!r}"
            raise InvalidInputError(what, "was settled before and removed since; vacuum the receipts to import it anew")
        return result

    async def _enqueue(self, turn: PlannedTurn, missing: tuple[PlannedNode, ...]) -> tuple[str, ...]:
        """Enqueue what the user says, and give the ids of what waits for a turn.

        The input of a node that is there was consumed when another branch was written: this turn answers it anew. What
        a user has cancelled meanwhile is not claimed either.
        """
        new = {node.record.node_id for node in missing}
        rows = [await self._store.enqueue_pending_turn_input(draft) for draft in turn.inputs if draft.source_key in new]
        return tuple(row.input_id for row in rows if row.state not in _SETTLED)

    async def _enter_lane(self) -> SessionExecutionLease:
        session_id, ttl_ms = self._replay.session_id, self._settings.timings.ttl_ms
        owner = mint_owner(self._settings.owner_id)
        outcome = await self._store.try_claim_session_execution_lease(session_id, owner, ttl_ms)
        loop = asyncio.get_running_loop()
        started, polls = loop.time(), 0
        while not isinstance(outcome, Acquired):
            holder = outcome.holder
            dead = isinstance(holder.owner.liveness, LocalProcess) and is_dead(holder.owner.liveness)
            outcome = await self._store.reclaim_session_execution_lease(session_id, owner, holder.fence(), ttl_ms)
            if isinstance(outcome, Acquired):
                self.take_over_count += dead
                break
            waited_s = loop.time() - started
            if waited_s > self._settings.lane_patience_s:
                what = f"the lane of session {session_id!r} is held by {outcome.holder.owner.owner_id!r}"
                raise ContendedError(what, int(waited_s * 1000))
            await asyncio.sleep(_pause(polls))
            polls += 1
        return outcome.lease

    async def _leave_lane(self, lease: SessionExecutionLease) -> None:
        # The next attempt is another incarnation: it would wait for this lease to expire.
        try:
            await self._store.release_session_execution_lease(lease.completion())
        except StoreError:
            return

    async def _claim(self, lease: SessionExecutionLease, input_ids: tuple[str, ...]) -> TurnInputClaim | None:
        if not input_ids:
            return None
        claim = await self._store.claim_next_turn_inputs(
            self._replay.session_id, lease.fence(), max_inputs=len(input_ids)
        )
        if claim is None or tuple(row.input_id for row in claim.inputs) != input_ids:
            raise _OvertakenError
        return claim

    def _commit(
        self,
        turn: PlannedTurn,
        missing: tuple[PlannedNode, ...],
        lease: SessionExecutionLease,
        claim: TurnInputClaim | None,
    ) -> RuntimeCommit:
        usage = tuple(
            TokenLedgerEntry(_USAGE_SOURCE, model_to_charge(node.usage[0], self._replay.model), node.usage[1])
            for node in missing
            if node.usage is not None
        )
        commit = RuntimeCommit(
            turn.session_id,
            self._revision,
            graph=Append(tuple(node.record for node in missing), turn.leaf_node_id),
            checkpoint=HydratedSessionCheckpoint(PersistedTurnState(turn.index, turn.usage)),
            usage_deltas=usage,
        )
        if claim is not None:
            commit = commit.completing_turn_input_claim(claim)
        commit = commit.with_session_execution_lease(lease.fence())
        return commit.releasing_session_execution_lease(lease.completion()).with_turn_commit(turn.turn_id)


def _count_messages(nodes: tuple[PlannedNode, ...]) -> int:
    return sum(node.record.message is not None for node in nodes)


def _pause(count: int) -> float:
    pause: float = min(_FIRST_PAUSE_S * 2**count, _LONGEST_PAUSE_S)
    return pause * (0.5 + random.random())  # noqa: S311 - jitter


def _final(error: Exception, turn: PlannedTurn) -> Exception:
    if not isinstance(error, _OvertakenError):
        return error
    return InvalidInputError(
        f"session {turn.session_id!r}",
        "has other input waiting before that of this import; let its runner settle it, or cancel it, and import again",
    )
