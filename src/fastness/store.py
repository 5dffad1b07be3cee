"""The store of one session: the five capabilities, each a program handed to the engine.

A ``SessionStore`` is bound to one session and serves the lanes, inputs and queues of every session of its database. It
draws the random tokens, checks what comes from outside, and holds no rule and no SQL.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from typing import TypeVar

from fastness.decide import limits, limits_directory
from fastness.decide.commit_input import prepare
from fastness.dispatch import check_wants
from fastness.engines.engine import Engine
from fastness.errors import InvalidInputError, LeaseExpiredError, SessionBindingMismatchError
from fastness.manifest import EngineAttachmentManifest, StoreOptions, random_token
from fastness.model import (
    CheckpointKind,
    DurabilityTier,
    GcReport,
    LeaseOwnerIdentity,
    LocalProcess,
    PendingTurnInput,
    PendingTurnInputCancelOutcome,
    PendingTurnInputCancelResult,
    PendingTurnInputCancelTarget,
    PendingTurnInputDraft,
    PendingTurnInputSuffixCancelOutcome,
    PersistedSessionRead,
    QueuedWorkBatch,
    QueuedWorkBatchDraft,
    QueuedWorkClaim,
    QueuedWorkClaimBoundary,
    RuntimeCommit,
    RuntimeCommitResult,
    SessionExecutionLease,
    SessionExecutionLeaseClaimOutcome,
    SessionExecutionLeaseCompletion,
    SessionExecutionLeaseFence,
    SessionHeadMeta,
    SessionMeta,
    SessionNodeRecord,
    SessionReadScope,
    TurnBegun,
    TurnInputClaim,
    VacuumReport,
)
from fastness.ops import directory, lane, load, maintenance, queued_work, turn_input
from fastness.ops.commit import commit as settle
from fastness.ops.dispatch import Drawn, Wants
from fastness.ops.hint import Hint
from fastness.ops.lane import Target
from fastness.ops.succession import Next, commit_and_begin
from fastness.sql.program import ProgramFactory

T = TypeVar("T")


class SessionStore(EngineAttachmentManifest):
    """All five capabilities (``RuntimePersistence``) for one session of one database."""

    def __init__(self, engine: Engine, session_id: str, sid: int | None = None, options: StoreOptions | None = None):
        super().__init__(engine, options)
        self.session_id = limits.check_id("session_id", session_id)
        self.durability_tier: DurabilityTier = engine.durability_tier
        self._sid = sid
        self._hint: Hint | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of session {self.session_id!r}, {self.durability_tier}>"

    async def _bound(self) -> Target:
        """This handle's session. A handle of an unknown session binds itself once the session has come to life."""
        if self._sid is None:
            self._sid = await self._engine.read(lambda: directory.sid_of(self.session_id))
        return Target(self.session_id, self._sid)

    async def _target(self, session_id: str) -> Target:
        return await self._bound() if session_id == self.session_id else await super()._target(session_id)

    # --- the settled state ---

    async def load_session(self, scope: SessionReadScope) -> PersistedSessionRead | None:
        """Load the settled state, None before the first commit (laws G2, G3)."""
        limits.check_scope(scope)
        target = await self._bound()
        loaded = await self._engine.read(lambda: load.load_session(target, scope, self._engine.rows_per_read))
        if loaded is None:
            return None
        if self._engine.decides_ahead:
            self._hint = loaded.hint
        return loaded.read

    async def load_node(self, node_id: str) -> SessionNodeRecord | None:
        """Load one live node."""
        limits.check_id("node_id", node_id)
        target = await self._bound()
        return await self._engine.read(lambda: load.load_node(target, node_id))

    async def load_head(self) -> SessionHeadMeta | None:
        """Load the head's row: is what I hold still current? None before the first commit."""
        target = await self._bound()
        return await self._engine.read(lambda: load.load_head(target))

    async def load_session_meta(self) -> SessionMeta | None:
        """Load what is known of the session, None for one that does not exist."""
        target = await self._bound()
        return await self._engine.read(lambda: load.load_meta(target))

    async def save_session_meta(self, meta: SessionMeta) -> None:
        """Describe the session anew."""
        limits_directory.check_meta(meta)
        limits.check_size(meta, self._options.commit_budget_bytes)
        if meta.session_id != self.session_id:
            raise SessionBindingMismatchError(self.session_id, meta.session_id)
        target = await self._bound()
        self._sid = await self._engine.write(lambda: directory.save_meta(target, meta))

    async def commit_runtime_state(self, commit: RuntimeCommit) -> RuntimeCommitResult:
        """Settle a turn: all of it, exactly once, or nothing (laws C1 to C14)."""
        given = prepare(commit, self._options.commit_budget_bytes)
        target = Target(self.session_id, self._sid) if self._sid is not None else await self._bound()
        if target.sid is None:
            if commit.session_id != self.session_id:
                raise SessionBindingMismatchError(self.session_id, commit.session_id)
            raise LeaseExpiredError(self.session_id, None, "unknown")
        minted = tuple(random_token() for _ in commit.outbox)
        knows = self._engine.decides_ahead
        settled = await self._engine.write(lambda: settle(target, given, minted, self._hint, knows=knows))
        self._hint = settled.hint
        return settled.result

    async def commit_and_begin(
        self,
        commit: RuntimeCommit,
        owner: LeaseOwnerIdentity,
        lease_ttl_ms: int,
        *,
        max_inputs: int = 100,
        max_batches: int = 100,
        max_attempts: int | None = None,
    ) -> tuple[RuntimeCommitResult, TurnBegun | None]:
        """Settle a turn that gives the lane back, and begin the session's next one for ``owner``: one transaction.

        No turn is begun where nothing waits, and by a replay: whoever has lost an answer calls ``begin_turn`` for the
        same owner, which grants again what the lost answer did (law L2). Raises what either of the two raises.
        """
        given = prepare(commit, self._options.commit_budget_bytes)
        limits.check_owner(owner)
        limits.check_ttl(lease_ttl_ms)
        check_wants(max_inputs, max_batches, max_attempts)
        if commit.release_session_execution_lease is None:
            raise InvalidInputError("commit", "keeps the lane; the next turn begins when this one gives it back")
        target = await self._bound()
        if target.sid is None:
            raise LeaseExpiredError(self.session_id, None, "unknown")
        minted = tuple(random_token() for _ in commit.outbox)
        wants = Wants(max_inputs, max_batches, max_attempts, True, True, {})
        successor = Next(owner, lease_ttl_ms, wants, Drawn(random_token(), random_token()))
        knows = self._engine.decides_ahead
        settled, begun = await self._engine.write(
            lambda: commit_and_begin(target, given, minted, self._hint, successor, knows=knows)
        )
        self._hint = settled.hint
        return settled.result, begun

    # --- the lane ---

    async def try_claim_session_execution_lease(
        self, session_id: str, owner: LeaseOwnerIdentity, lease_ttl_ms: int
    ) -> SessionExecutionLeaseClaimOutcome:
        """Claim the lane of a session (laws L1 to L3)."""
        limits.check_owner(owner)
        limits.check_ttl(lease_ttl_ms)
        target, token = await self._target(session_id), random_token()
        return await self._engine.write(lambda: lane.claim(target, owner, token, lease_ttl_ms))

    async def reclaim_session_execution_lease(
        self,
        session_id: str,
        owner: LeaseOwnerIdentity,
        observed_holder: SessionExecutionLeaseFence,
        lease_ttl_ms: int,
    ) -> SessionExecutionLeaseClaimOutcome:
        """Claim the lane from a holder that is provably dead (law L6)."""
        limits.check_owner(owner)
        limits.check_ttl(lease_ttl_ms)
        limits.check_fence(observed_holder)
        target, token = await self._target(session_id), random_token()
        holder = await self.observe_session_execution_lease(session_id)
        dead = None
        # Death is probed outside the transaction; inside, it counts only for the very process that was probed.
        if holder is not None and isinstance(holder.owner.liveness, LocalProcess):
            dead = holder.owner.liveness if self._options.is_dead(holder.owner.liveness) else None
        return await self._engine.write(lambda: lane.reclaim(target, owner, observed_holder, dead, token, lease_ttl_ms))

    async def observe_session_execution_lease(self, session_id: str) -> SessionExecutionLease | None:
        """See who holds the lane of a session now; None while it is free."""
        target = await self._target(session_id)
        return await self._engine.read(lambda: lane.observe(target))

    async def renew_session_execution_lease(
        self, fence: SessionExecutionLeaseFence, lease_ttl_ms: int
    ) -> SessionExecutionLease:
        """Extend a lease that is still live (law L4)."""
        limits.check_fence(fence)
        limits.check_ttl(lease_ttl_ms)
        target = await self._target(fence.session_id)
        return await self._engine.write(lambda: lane.renew(target, fence, lease_ttl_ms))

    async def release_session_execution_lease(self, completion: SessionExecutionLeaseCompletion) -> None:
        """Give the lane back; twice is fine (law L5)."""
        limits.check_completion(completion)
        target = await self._target(completion.session_id)
        await self._engine.write(lambda: lane.release(target, completion))

    # --- turn input ---

    async def enqueue_pending_turn_input(self, draft: PendingTurnInputDraft) -> PendingTurnInput:
        """Keep what a user said until a turn consumes it (law I1)."""
        limits.check_input_draft(draft)
        limits.check_size(draft, self._options.commit_budget_bytes)
        target, minted = await self._target(draft.session_id), random_token()
        return await self._engine.write(lambda: turn_input.enqueue(target, draft, minted))

    async def list_pending_turn_inputs(self, session_id: str) -> list[PendingTurnInput]:
        """List what waits, in the order of admission (law I2)."""
        target = await self._target(session_id)
        return await self._engine.read(lambda: turn_input.list_pending(target))

    async def cancel_pending_turn_input(self, session_id: str, input_id: str) -> PendingTurnInputCancelOutcome:
        """Cancel one input, unless a live claim holds it (law I6)."""
        limits.check_id("input_id", input_id)
        target = await self._target(session_id)
        return await self._engine.write(lambda: turn_input.cancel(target, input_id))

    async def cancel_pending_turn_inputs(
        self, session_id: str, targets: Sequence[PendingTurnInputCancelTarget]
    ) -> list[PendingTurnInputCancelResult]:
        """Cancel several inputs in one transaction, one outcome for each target (law I6)."""
        wanted = limits.check_cancel_targets(targets)
        target = await self._target(session_id)
        return await self._engine.write(lambda: turn_input.cancel_many(target, wanted))

    async def cancel_pending_turn_input_suffix(
        self, session_id: str, anchor: PendingTurnInputCancelTarget
    ) -> PendingTurnInputSuffixCancelOutcome:
        """Cancel an input and everything admitted after it (law I6)."""
        limits.check_cancel_target(anchor)
        target = await self._target(session_id)
        return await self._engine.write(lambda: turn_input.cancel_suffix(target, anchor))

    async def claim_active_turn_inputs(
        self,
        session_id: str,
        fence: SessionExecutionLeaseFence,
        *,
        turn_id: str,
        checkpoint: CheckpointKind,
        max_inputs: int,
    ) -> TurnInputClaim | None:
        """Claim input for the turn that runs, at a safe boundary (laws K, I3)."""
        limits.check_fence(fence)
        limits.check_id("turn_id", turn_id)
        limits.check_checkpoint("checkpoint", checkpoint)
        limits.check_positive("max_inputs", max_inputs)
        target, claim_id = await self._target(session_id), random_token()
        return await self._engine.write(
            lambda: turn_input.claim_active(target, fence, turn_id, checkpoint, max_inputs, claim_id)
        )

    async def claim_next_turn_inputs(
        self, session_id: str, fence: SessionExecutionLeaseFence, *, max_inputs: int
    ) -> TurnInputClaim | None:
        """Claim input for the next turn, between turns (laws K, I3, I4)."""
        limits.check_fence(fence)
        limits.check_positive("max_inputs", max_inputs)
        target, claim_id = await self._target(session_id), random_token()
        return await self._engine.write(lambda: turn_input.claim_next(target, fence, max_inputs, claim_id))

    async def renew_turn_input_claim(self, claim: TurnInputClaim) -> TurnInputClaim:
        """Verify that a claim is live; it lives as long as the lease (law K1)."""
        limits.check_input_claim(claim)
        target = await self._target(claim.session_id)
        return await self._engine.read(lambda: turn_input.renew(target, claim))

    async def abandon_turn_input_claim(self, claim: TurnInputClaim) -> None:
        """Give claimed input back; twice is fine (law K3)."""
        limits.check_input_claim(claim)
        target = await self._target(claim.session_id)
        await self._engine.write(lambda: turn_input.abandon(target, claim))

    # --- queued work ---

    async def enqueue_queued_work(self, draft: QueuedWorkBatchDraft) -> QueuedWorkBatch:
        """Keep work until the session does it (laws W1, W6)."""
        limits.check_batch_draft(draft)
        limits.check_size(draft, self._options.commit_budget_bytes)
        target, minted = await self._target(draft.session_id), random_token()
        return await self._engine.write(lambda: queued_work.enqueue(target, draft, minted))

    async def claim_leading_ready_session_command(
        self, session_id: str, fence: SessionExecutionLeaseFence
    ) -> QueuedWorkClaim | None:
        """Claim the command at the head of the ready queue, if a command is there (law W2)."""
        limits.check_fence(fence)
        target, claim_id = await self._target(session_id), random_token()
        return await self._engine.write(lambda: queued_work.claim_command(target, fence, claim_id))

    async def claim_ready_queued_work(
        self,
        session_id: str,
        fence: SessionExecutionLeaseFence,
        *,
        boundary: QueuedWorkClaimBoundary,
        max_batches: int,
    ) -> QueuedWorkClaim | None:
        """Claim the turn work at the head of the ready queue and what joins it (laws W2 to W4)."""
        limits.check_fence(fence)
        limits.check_claim_boundary(boundary)
        limits.check_positive("max_batches", max_batches)
        target, claim_id = await self._target(session_id), random_token()
        return await self._engine.write(lambda: queued_work.claim_ready(target, fence, boundary, max_batches, claim_id))

    async def claim_ready_queued_work_by_batch_ids(
        self,
        session_id: str,
        fence: SessionExecutionLeaseFence,
        *,
        boundary: QueuedWorkClaimBoundary,
        batch_ids: Sequence[str],
    ) -> QueuedWorkClaim | None:
        """Claim exactly these batches, or nothing (law W5)."""
        limits.check_fence(fence)
        limits.check_claim_boundary(boundary)
        ids = limits.check_ids("batch_ids", batch_ids)
        target, claim_id = await self._target(session_id), random_token()
        return await self._engine.write(lambda: queued_work.claim_exact(target, fence, boundary, ids, claim_id))

    async def renew_queued_work_claim(self, claim: QueuedWorkClaim) -> QueuedWorkClaim:
        """Verify that a claim is live; it lives as long as the lease (law K1)."""
        limits.check_work_claim(claim)
        target = await self._target(claim.session_id)
        return await self._engine.read(lambda: queued_work.renew(target, claim))

    async def abandon_queued_work_claim(self, claim: QueuedWorkClaim) -> None:
        """Give claimed work back; twice is fine (law K3)."""
        limits.check_work_claim(claim)
        target = await self._target(claim.session_id)
        await self._engine.write(lambda: queued_work.abandon(target, claim))

    async def cancel_queued_work_batch(self, session_id: str, batch_id: str) -> QueuedWorkBatch | None:
        """Cancel a batch that no live claim holds (law W6)."""
        limits.check_id("batch_id", batch_id)
        target = await self._target(session_id)
        return await self._engine.write(lambda: queued_work.cancel(target, batch_id))

    async def list_queued_work(self, session_id: str) -> list[QueuedWorkBatch]:
        """List all work that is not settled, held batches included."""
        target = await self._target(session_id)
        return await self._engine.read(lambda: queued_work.list_all(target))

    async def list_pending_queued_work(self, session_id: str) -> list[QueuedWorkBatch]:
        """List all work that is not settled and not held."""
        target = await self._target(session_id)
        return await self._engine.read(lambda: queued_work.list_pending(target))

    # --- maintenance ---

    async def tombstone_nodes(self, node_ids: Sequence[str]) -> None:
        """Hide whole branches of this session from every read (law G5)."""
        ids = limits.check_ids("node_ids", node_ids)
        target = await self._bound()
        await self._engine.write(lambda: maintenance.tombstone(target, ids))

    async def vacuum(
        self, *, evidence_older_than_ms: int | None = None, receipts_older_than_ms: int | None = None
    ) -> VacuumReport:
        """Remove this session's tombstoned nodes, evidence and, when asked to, receipts (law M2)."""
        for cut_off in (evidence_older_than_ms, receipts_older_than_ms):
            if cut_off is not None:
                limits.check_int63("older_than_ms", cut_off)
        target = await self._bound()
        found = maintenance.Vacuumed()
        while not found.is_over:
            found = await _slice(
                self._engine,
                partial(maintenance.vacuum, target, found, evidence_older_than_ms, receipts_older_than_ms),
            )
        return found.report

    async def gc_unreachable(self, *, keep_revisions: int = 1) -> GcReport:
        """Delete the blobs of the database that no retained checkpoint needs (law M1)."""
        limits.check_positive("keep_revisions", keep_revisions)
        return await collect(self._engine, keep_revisions)


async def collect(engine: Engine, keep_revisions: int) -> GcReport:
    """Prove that all roots can be read, on one snapshot, and then delete what nobody needs, some at a time (law M1)."""
    roots = await engine.read(maintenance.read_roots)
    after = 0
    while (upto := await engine.read(partial(maintenance.next_sids, after))) is not None:
        while await _slice(engine, partial(maintenance.drop_old_holders, keep_revisions, after, upto)):
            pass
        after = upto
    at: str | None = ""
    deleted = freed = retained = 0
    while at is not None:
        swept = await _slice(engine, partial(maintenance.sweep_blobs, at))
        at = swept.after
        deleted, freed, retained = deleted + swept.deleted, freed + swept.freed, retained + swept.retained
    return GcReport(roots, retained, deleted, freed)


async def _slice(engine: Engine, make: ProgramFactory[T]) -> T:
    """Write a slice of something long, then leave others as much time as it took.

    Who waits for SQLite's lock in another process naps meanwhile, and would miss a short gap again and again.
    """
    began = time.monotonic()
    result = await engine.write(make)
    await asyncio.sleep(time.monotonic() - began)
    return result
