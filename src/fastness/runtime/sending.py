"""Sending a turn's commit until it is answered: the same stamped commit, however often, lands once (laws C3, C12)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from fastness.dispatch import EngineSessionDispatch
from fastness.errors import CommitOutcomeUnknownError, ContendedError, LeaseExpiredError
from fastness.liveness import mint_owner
from fastness.model import RuntimeCommit, RuntimeCommitResult, TurnBegun
from fastness.runtime.lane import LaneKeeper, turn_id_of
from fastness.store import SessionStore
from fastness.telemetry import Telemetry, error_type, turn_logger

logger = turn_logger("fastness.turn")

Submit: TypeAlias = Callable[[RuntimeCommit], Awaitable[RuntimeCommitResult]]
"""Hands a stamped commit to a store, once."""

_ATTEMPTS = 6
_FIRST_PAUSE_S = 0.1


class Succession:
    """Begins the session's next turn with the commit of the one that ends, for an owner of its own.

    ``begun`` is what came of it, None where nothing waits; ``asked_at`` is when it was asked for, on the clock of the
    event loop.
    """

    def __init__(
        self,
        dispatch: EngineSessionDispatch,
        owner_id: str,
        ttl_ms: int,
        *,
        max_inputs: int,
        max_batches: int,
        max_attempts: int | None,
    ) -> None:
        self.begun: TurnBegun | None = None
        self.asked_at = 0.0
        self._in_doubt = False
        self._dispatch = dispatch
        self._owner = mint_owner(owner_id)
        self._ttl_ms = ttl_ms
        self._bounds = (max_inputs, max_batches, max_attempts)

    async def submit(self, store: SessionStore, commit: RuntimeCommit) -> RuntimeCommitResult:
        """Commit, and begin the next turn with it. Where an answer was lost, what it granted is granted again."""
        max_inputs, max_batches, max_attempts = self._bounds
        self.asked_at = asyncio.get_running_loop().time()
        try:
            result, self.begun = await store.commit_and_begin(
                commit,
                self._owner,
                self._ttl_ms,
                max_inputs=max_inputs,
                max_batches=max_batches,
                max_attempts=max_attempts,
            )
        except (CommitOutcomeUnknownError, asyncio.CancelledError):
            self._in_doubt = True
            raise
        if result.replayed:
            self.begun = await self._ask_again(commit.session_id)
        self._in_doubt = False
        return result

    async def outcome(self, session_id: str) -> TurnBegun | None:
        """Give what has begun, also where nobody was there any more to hear the answer that said so."""
        if self._in_doubt:
            self.begun = await self._ask_again(session_id)
            self._in_doubt = False
        return self.begun

    async def _ask_again(self, session_id: str) -> TurnBegun | None:
        max_inputs, max_batches, max_attempts = self._bounds
        begun = await self._dispatch.begin_turn(
            session_id,
            self._owner,
            self._ttl_ms,
            max_inputs=max_inputs,
            max_batches=max_batches,
            max_attempts=max_attempts,
        )
        return begun if isinstance(begun, TurnBegun) else None


async def send(submit: Submit, lane: LaneKeeper, commit: RuntimeCommit, telemetry: Telemetry) -> RuntimeCommitResult:
    """Send a stamped commit under the lane's lease and give the lane back with it.

    A lost answer and contention are tried again, with pauses that double from 0.1 s, six times in all. Raises
    ``LeaseExpiredError`` where the lane was lost, and what else a commit raises.
    """
    turn_id = turn_id_of(lane.fencing_token) if commit.turn_commit is None else commit.turn_commit.turn_id
    unanswered = False
    pause_s = _FIRST_PAUSE_S
    for attempt in range(1, _ATTEMPTS + 1):
        lease = lane.lease
        sent = commit.with_session_execution_lease(lease.fence())
        sent = sent.releasing_session_execution_lease(lease.completion())
        try:
            with telemetry.commit(commit.session_id, turn_id, lease.fencing_token) as told:
                result = await submit(sent)
                told.landed(result)
        except (CommitOutcomeUnknownError, ContendedError) as error:
            unanswered |= isinstance(error, CommitOutcomeUnknownError)
            if attempt == _ATTEMPTS:
                raise
            logger.warning("the commit is sent again: %s", error_type(error))
        except LeaseExpiredError:
            # Had it landed, the receipt would have answered. The lane may only have run out meanwhile.
            if not unanswered or attempt == _ATTEMPTS:
                raise
            await lane.reenter()
        else:
            return result
        await asyncio.sleep(pause_s * (0.5 + random.random()))  # noqa: S311 - jitter
        pause_s *= 2
    raise AssertionError("the last attempt returns or raises")
