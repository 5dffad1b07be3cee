"""Running a turn: from the grant of a lane to the commit that gives it back, or to whatever ended it before.

It is the one place where the parts of a turn meet (the lane that is kept, the state that it stands on, its commit, what
is told of it), for whoever runs turns: a block of the application, or a worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

from fastness.attachments.session import SessionAttachmentStore
from fastness.factory import EngineSessionStoreFactory
from fastness.model import AttachmentStore, LeaseTimings, TurnBeginning, TurnBegun
from fastness.runtime.ground import Ground, Warm, WarmSession, load_ground
from fastness.runtime.lane import LaneKeeper, turn_id_of
from fastness.runtime.sending import Succession
from fastness.runtime.turn import Turn
from fastness.store import SessionStore
from fastness.telemetry import Telemetry, TurnSpan, turn_logger

OnFailure = Callable[[Turn, BaseException], Awaitable[None]]
"""What is done about a turn that failed, while its lane is still held; the error goes on afterwards."""


class Runner:
    """Runs the turns of one database in one process."""

    def __init__(
        self,
        factory: EngineSessionStoreFactory,
        *,
        timings: LeaseTimings,
        attachments: AttachmentStore | None,
        telemetry: Telemetry,
    ) -> None:
        self.factory = factory
        self.timings = timings
        self.attachments = attachments
        self.telemetry = telemetry
        self.lanes: dict[str, LaneKeeper] = {}
        self._warm = Warm()

    @asynccontextmanager
    async def turn(
        self,
        begun: TurnBegun,
        asked_at: float,
        *,
        max_inputs: int = 100,
        at_node_id: str | None = None,
        worker: str | None = None,
        on_failure: OnFailure | None = None,
        succession: Succession | None = None,
    ) -> AsyncIterator[Turn]:
        """Run a turn that has begun: the block's end commits it, an exception leaves nothing of it.

        ``asked_at`` is when the lane was asked for, on the clock of the event loop. With ``at_node_id`` the turn stands
        on that node instead of the session's leaf. A turn that somebody interrupts is committed as such, and
        ``TurnInterruptedError`` raised. With ``succession`` the session's next turn begins with the commit of this one.
        """
        lease = begun.lease
        self._tell(begun)
        kept = self._warm.take(lease.session_id, begun.session_key)
        store = kept.store if kept else self._store(lease.session_id, begun.session_key)
        lane = LaneKeeper(store, lease, asked_at=asked_at, timings=self.timings, telemetry=self.telemetry)
        span = self.telemetry.turn(
            lease.session_id, turn_id_of(lease.fencing_token), lease.fencing_token, worker=worker
        )
        async with lane:
            with span:
                self.lanes[lease.session_id] = lane
                try:
                    turn = Turn(
                        store,
                        lane,
                        begun,
                        max_inputs=max_inputs,
                        attachments=self.session_attachments(store),
                        telemetry=self.telemetry,
                        span=span,
                        submit=None if succession is None else partial(succession.submit, store),
                    )
                    known = None if kept is None else kept.ground

                    async def load() -> Ground:
                        """Give what the turn stands on."""
                        return await _ground(store, begun, at_node_id, known)

                    async with _settling(turn, lane, span, load, on_failure):
                        yield turn
                finally:
                    if self.lanes.get(lease.session_id) is lane:
                        del self.lanes[lease.session_id]
        after = turn._ground_after()
        if after is not None:
            self._warm.put(lease.session_id, WarmSession(begun.session_key, store, after))

    def session_attachments(self, store: SessionStore) -> SessionAttachmentStore | None:
        """Give the attachments of a session, None where there is no place for any."""
        return None if self.attachments is None else SessionAttachmentStore(store, self.attachments, store.session_id)

    async def give_back(self, begun: TurnBeginning) -> None:
        """Give back a turn that nobody runs, with all that it was granted; it was no attempt."""
        if isinstance(begun, TurnBegun):
            await self.factory.dispatch.fail_turn(
                begun.lease.completion(),
                input_claims=() if begun.input_claim is None else (begun.input_claim,),
                work_claims=() if begun.work_claim is None else (begun.work_claim,),
                error="it was given back before it ran",
                counts=False,
            )

    def _store(self, session_id: str, session_key: int) -> SessionStore:
        return SessionStore(self.factory.engine, session_id, session_key, self.factory.options)

    def _tell(self, begun: TurnBegun) -> None:
        """Tell what is known of a turn when it begins."""
        if begun.took_over_from is not None:
            session_id, token = begun.lease.session_id, begun.lease.fencing_token
            log = turn_logger("fastness.lane", session_id=session_id, turn_id=turn_id_of(token), fencing_token=token)
            log.warning("took the lane from %s, which did not give it back", begun.took_over_from)
            self.telemetry.taken_over("expired" if begun.took_over_expired else "dead")
        if begun.quarantined_count:
            self.telemetry.quarantined("input", begun.quarantined_count)
        now_ms = begun.lease.claimed_at_epoch_ms
        if begun.input_claim is not None:
            self.telemetry.picked_up(begun.waited_ms / 1000)
            ages = [(now_ms - row.enqueued_at_epoch_ms) / 1000 for row in begun.input_claim.inputs]
            self.telemetry.aged("input", ages)
        if begun.work_claim is not None:
            self.telemetry.picked_up(begun.waited_ms / 1000)
            ages = [(now_ms - batch.enqueued_at_epoch_ms) / 1000 for batch in begun.work_claim.batches]
            self.telemetry.aged("work", ages)


async def _ground(store: SessionStore, begun: TurnBegun, at_node_id: str | None, known: Ground | None) -> Ground:
    if at_node_id is None:
        if known is not None and known.revision == begun.head_revision:
            return known
        if begun.head_revision is None:
            return Ground()
    return await load_ground(store, at_node_id, known)


@asynccontextmanager
async def _settling(
    turn: Turn,
    lane: LaneKeeper,
    span: TurnSpan,
    load: Callable[[], Awaitable[Ground]],
    on_failure: OnFailure | None,
) -> AsyncIterator[None]:
    """Begin the turn, and commit it behind the block, or see to it that it ends as it should."""
    stands = False
    try:
        turn._begin(await load())
        stands = True
        yield
        await turn._settle()
    except asyncio.CancelledError as error:
        others = lane.take_back_cancellation()
        interruption = lane.interruption()
        if lane.lost is not None:
            span.failed(lane.lost)
        elif interruption is not None and not others:
            span.interrupted()
            if not stands:
                turn._begin(await load())
            await turn._settle_interrupted()
            raise interruption from error
        else:
            await _failed(turn, lane, error, on_failure)
        raise
    except Exception as error:  # whatever the turn's own code raises
        await _failed(turn, lane, error, on_failure)
        raise


async def _failed(turn: Turn, lane: LaneKeeper, error: BaseException, on_failure: OnFailure | None) -> None:
    # The block has ended: a lane that is lost now, or an interruption, would only cut off what is done about it.
    lane.settle()
    if on_failure is not None:
        await on_failure(turn, error)
