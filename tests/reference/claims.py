"""The naive lane, claims, turn input and queued work, law by law."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import msgspec

from fastness import model as m
from tests.reference.rows import RefusedError, Row, Session


class World(Protocol):
    """What a handle needs of the whole: the clock, proof of death, fresh ids, and sessions by name."""

    clock: Callable[[], int]
    is_dead: Callable[[m.LocalProcess], bool]
    sessions: dict[str, Session]

    def mint(self) -> str: ...
    def born(self, session_id: str) -> Session: ...


class ReferenceClaims:
    """A handle that is bound to one session, with the store's methods, not asynchronous."""

    def __init__(self, factory: World, session: Session) -> None:
        self.factory = factory
        self.session = session

    # --- sessions and the lane ---

    def _own(self) -> Session:
        if self.session.deleted:
            raise RefusedError("SessionDeletedError")
        return self.session

    def _find(self, session_id: str) -> Session | None:
        return self._own() if session_id == self.session.session_id else self.factory.sessions.get(session_id)

    def _found_or_born(self, session_id: str) -> Session:
        return self._own() if session_id == self.session.session_id else self.factory.born(session_id)

    def _live_token(self, session: Session) -> int:
        lease = session.lease
        return 0 if lease is None or self.factory.clock() >= lease.expires_at_epoch_ms else lease.fencing_token

    def _names(self, session: Session, shown: Any) -> bool:
        lease = session.lease
        return (
            lease is not None
            and (lease.lease_token, lease.fencing_token) == (shown.lease_token, shown.fencing_token)
            and (lease.owner.owner_id, lease.owner.incarnation_id) == (shown.owner.owner_id, shown.owner.incarnation_id)
        )

    def _require_live(
        self, session: Session | None, session_id: str, fence: m.SessionExecutionLeaseFence | None
    ) -> Session:
        if session is None or fence is None or fence.session_id != session_id:
            raise RefusedError("LeaseExpiredError")
        if not self._names(session, fence) or not self._live_token(session):
            raise RefusedError("LeaseExpiredError")
        return session

    def try_claim_session_execution_lease(self, session_id: str, owner: m.LeaseOwnerIdentity, ttl_ms: int) -> Any:
        """L1 to L3."""
        session = self._found_or_born(session_id)
        now, lease = self.factory.clock(), session.lease
        if lease is not None and self._live_token(session):
            if (lease.owner.owner_id, lease.owner.incarnation_id) != (owner.owner_id, owner.incarnation_id):
                return m.Busy(lease)
            claimed_ms, expires_ms = lease.claimed_at_epoch_ms, max(lease.expires_at_epoch_ms, now + ttl_ms)
        else:
            session.fencing_token += 1
            claimed_ms, expires_ms = now, now + ttl_ms
        session.lease = m.SessionExecutionLease(
            session_id, owner, self.factory.mint(), session.fencing_token, claimed_ms, expires_ms
        )
        return m.Acquired(session.lease)

    def reclaim_session_execution_lease(
        self, session_id: str, owner: m.LeaseOwnerIdentity, observed: m.SessionExecutionLeaseFence, ttl_ms: int
    ) -> Any:
        """L6."""
        session = self._found_or_born(session_id)
        lease = session.lease
        if lease is not None and self._live_token(session) and self._names(session, observed):
            holder = lease.owner.liveness
            if isinstance(holder, m.LocalProcess) and self.factory.is_dead(holder):
                session.lease = None
        return self.try_claim_session_execution_lease(session_id, owner, ttl_ms)

    def renew_session_execution_lease(self, fence: m.SessionExecutionLeaseFence, ttl_ms: int) -> Any:
        """L4."""
        session = self._require_live(self._find(fence.session_id), fence.session_id, fence)
        assert session.lease is not None
        expires = max(session.lease.expires_at_epoch_ms, self.factory.clock() + ttl_ms)
        session.lease = msgspec.structs.replace(session.lease, expires_at_epoch_ms=expires)
        return session.lease

    def release_session_execution_lease(self, completion: m.SessionExecutionLeaseCompletion) -> None:
        """L5."""
        session = self._find(completion.session_id)
        if session is not None and self._names(session, completion):
            session.lease = None

    # --- claims ---

    def _is_held(self, session: Session, row: Row) -> bool:
        live = self._live_token(session)
        return row.settled is None and row.claim_id is not None and live != 0 and row.lane_token == live

    def _is_of_earlier_entry(self, session: Session, row: Row) -> bool:
        lease = session.lease
        return self._is_held(session, row) and lease is not None and row.lease_token != lease.lease_token

    def _grant(self, session: Session, rows: Sequence[Row]) -> tuple[str, int]:
        assert session.lease is not None
        claim_id, token = self.factory.mint(), max(row.claim_token for row in rows) + 1
        for row in rows:
            again = row.claim_id is not None and row.lane_token == session.lease.fencing_token
            row.attempts += 0 if again else 1
            row.claim_id, row.claim_token = claim_id, token
            row.lane_token, row.lease_token = session.lease.fencing_token, session.lease.lease_token
        return claim_id, token

    def _owned(self, session: Session | None, rows: Iterable[Row], shown: Any, ids: Sequence[str]) -> list[Row] | None:
        """The rows of a claim if it owns exactly these (C6, K1), else None."""
        if session is None or shown.session_id != session.session_id:
            return None
        mine = [row for row in rows if row.settled is None and row.claim_id == shown.claim_id]
        held = all(self._is_held(session, row) and row.claim_token == shown.fencing_token for row in mine)
        return mine if mine and held and sorted(row.row_id for row in mine) == sorted(ids) else None

    def is_live(self, claim: m.TurnInputClaim | m.QueuedWorkClaim) -> bool:
        """Whether a claim still owns exactly its rows (K1)."""
        session = self._find(claim.session_id)
        rows = [] if session is None else session.inputs + session.work
        done = claim.completion()
        ids = done.input_ids if isinstance(done, m.TurnInputCompletion) else done.batch_ids
        return self._owned(session, rows, claim, ids) is not None

    def _abandon(self, rows: Iterable[Row], claim_id: str) -> None:
        for row in rows:
            if row.settled is None and row.claim_id == claim_id:
                row.claim_id, row.attempts = None, row.attempts - 1

    # --- turn input ---

    def _input_state(self, session: Session, row: Row) -> Any:
        if row.settled is not None:
            return row.settled
        if self._is_held(session, row):
            return row.state
        active = row.admission_token == self._live_token(session) and row.turn_id not in session.receipts
        return "pending_active" if row.state == "pending_active" and active else "deferred_next_turn"

    def _as_input(self, row: Row, state: Any) -> m.PendingTurnInput:
        draft = row.draft
        return m.PendingTurnInput(
            draft.session_id,
            row.row_id,
            row.seq,
            state,
            draft.ingress,
            draft.input,
            draft.source_key,
            row.enqueued_ms,
            attempts=0 if row.settled else row.attempts,
        )

    def enqueue_pending_turn_input(self, draft: m.PendingTurnInputDraft) -> m.PendingTurnInput:
        """I1, I2."""
        session = self._found_or_born(draft.session_id)
        for row in session.inputs:
            if draft.source_key is not None and row.draft.source_key == draft.source_key:
                if (row.draft.ingress, row.draft.input) != (draft.ingress, draft.input):
                    raise RefusedError("InputSourceKeyConflictError")
                return self._as_input(row, self._input_state(session, row))
        session.admission_seq += 1
        turn = draft.ingress if isinstance(draft.ingress, m.ActiveTurn) else None
        row = Row(draft.input_id or self.factory.mint(), session.admission_seq, draft, self.factory.clock())
        row.state = "pending_active" if turn else "deferred_next_turn"
        row.turn_id, row.boundary = (turn.turn_id, turn.min_boundary) if turn else (None, None)
        row.admission_token = self._live_token(session)
        session.inputs.append(row)
        return self._as_input(row, self._input_state(session, row))

    def list_pending_turn_inputs(self, session_id: str) -> list[m.PendingTurnInput]:
        """I2, I4."""
        session = self._find(session_id)
        if session is None:
            return []
        rows = [row for row in session.inputs if row.settled is None and not self._is_held(session, row)]
        return [self._as_input(row, self._input_state(session, row)) for row in rows]

    def claim_active_turn_inputs(
        self, session_id: str, fence: m.SessionExecutionLeaseFence, *, turn_id: str, checkpoint: str, max_inputs: int
    ) -> m.TurnInputClaim | None:
        """I3, L2."""
        session = self._require_live(self._find(session_id), session_id, fence)

        def wanted(row: Row) -> bool:
            return bool(row.turn_id == turn_id and row.boundary in {"after_work", checkpoint})

        return self._claim_inputs(session, max_inputs, wanted, wanted, "accepted")

    def claim_next_turn_inputs(
        self, session_id: str, fence: m.SessionExecutionLeaseFence, *, max_inputs: int
    ) -> m.TurnInputClaim | None:
        """I3, I4, L2."""
        session = self._require_live(self._find(session_id), session_id, fence)

        def free(row: Row) -> bool:
            return bool(self._input_state(session, row) == "deferred_next_turn")

        def earlier(row: Row) -> bool:
            return row.turn_id is None

        return self._claim_inputs(session, max_inputs, earlier, free, "deferred_next_turn")

    def _claim_inputs(
        self,
        session: Session,
        limit: int,
        earlier: Callable[[Row], bool],
        free: Callable[[Row], bool],
        state: m.TurnInputState,
    ) -> m.TurnInputClaim | None:
        open_rows = [row for row in session.inputs if row.settled is None]
        first = [row for row in open_rows if self._is_of_earlier_entry(session, row) and earlier(row)]
        then = [row for row in open_rows if not self._is_held(session, row) and free(row)]
        rows = sorted((first + then)[:limit], key=lambda row: row.seq)
        if not rows:
            return None
        claim_id, token = self._grant(session, rows)
        for row in rows:
            row.state = state
            if state == "deferred_next_turn":
                row.turn_id = row.boundary = None
        lease = session.lease
        assert lease is not None
        inputs = tuple(self._as_input(row, state) for row in rows)
        return m.TurnInputClaim(
            session.session_id, claim_id, lease.owner, token, lease.fencing_token, lease.expires_at_epoch_ms, inputs
        )

    def renew_turn_input_claim(self, claim: m.TurnInputClaim) -> m.TurnInputClaim:
        """K1."""
        session = self._find(claim.session_id)
        rows = session.inputs if session is not None else []
        if self._owned(session, rows, claim, claim.completion().input_ids) is None:
            raise RefusedError("TurnInputClaimExpiredError")
        assert session is not None
        assert session.lease is not None
        return msgspec.structs.replace(claim, expires_at_epoch_ms=session.lease.expires_at_epoch_ms)

    def abandon_turn_input_claim(self, claim: m.TurnInputClaim) -> None:
        """K3."""
        session = self._find(claim.session_id)
        self._abandon(session.inputs if session is not None else [], claim.claim_id)

    def _cancel(self, session: Session, row: Row | None) -> m.PendingTurnInputCancelOutcome:
        if row is None:
            return m.NotFound()
        if row.settled is not None:
            return m.AlreadyCompleted(row.row_id) if row.settled == "completed" else m.AlreadyCancelled(row.row_id)
        if self._is_held(session, row):
            lease = session.lease
            assert lease is not None
            assert row.claim_id is not None
            shown = m.PendingTurnInputClaimDiagnostics(
                row.claim_id, lease.owner, row.claim_token, lease.expires_at_epoch_ms
            )
            return m.AlreadyClaimed(row.row_id, shown)
        cancelled = m.Cancelled(self._as_input(row, "cancelled"))
        row.settled, row.settled_ms = "cancelled", self.factory.clock()
        return cancelled

    def _named(self, session: Session, target: Any) -> Row | None:
        for row in session.inputs:
            if isinstance(target, m.ByInputId):
                if row.row_id == target.input_id:
                    return row
            elif row.draft.source_key == target.source_key:
                return row
        return None

    def cancel_pending_turn_inputs(self, session_id: str, targets: Sequence[Any]) -> list[Any]:
        """I6."""
        session = self._find(session_id)
        if session is None:
            return [m.PendingTurnInputCancelResult(target, m.NotFound()) for target in targets]
        return [
            m.PendingTurnInputCancelResult(target, self._cancel(session, self._named(session, target)))
            for target in targets
        ]

    def cancel_pending_turn_input(self, session_id: str, input_id: str) -> Any:
        """I6."""
        return self.cancel_pending_turn_inputs(session_id, [m.ByInputId(input_id)])[0].outcome

    def cancel_pending_turn_input_suffix(self, session_id: str, anchor: Any) -> Any:
        """I6."""
        session = self._find(session_id)
        row = None if session is None else self._named(session, anchor)
        if session is None or row is None:
            return m.AnchorNotFound()
        later = [other for other in session.inputs if other.seq > row.seq and other.settled is None]
        targets = [anchor, *(m.ByInputId(other.row_id) for other in later)]
        return m.SuffixOutcomes(tuple(self.cancel_pending_turn_inputs(session_id, targets)))

    # --- queued work ---

    def _work_state(self, session: Session, row: Row) -> Any:
        if row.settled is not None:
            return row.settled
        return "claimed" if self._is_held(session, row) else "pending"

    def _as_batch(self, row: Row, state: Any) -> m.QueuedWorkBatch:
        draft = row.draft
        items = tuple(m.QueuedWorkItem(f"{row.row_id}/{at}", payload) for at, payload in enumerate(draft.payloads))
        return m.QueuedWorkBatch(
            draft.session_id,
            row.row_id,
            row.seq,
            state,
            row.work_class,
            draft.delivery_policy,
            draft.slot_policy,
            draft.merge_key,
            items,
            draft.source_key,
            draft.available_at_ms,
            row.enqueued_ms,
            attempts=0 if row.settled else row.attempts,
        )

    def enqueue_queued_work(self, draft: m.QueuedWorkBatchDraft) -> m.QueuedWorkBatch:
        """W1, W6."""
        classes = {isinstance(payload, m.SessionCommand) for payload in draft.payloads}
        if len(classes) != 1:
            raise RefusedError("InvalidInputError")
        session = self._found_or_born(draft.session_id)
        for row in session.work:
            if draft.source_key is not None and row.draft.source_key == draft.source_key:
                return self._as_batch(row, self._work_state(session, row))
        session.admission_seq += 1
        row = Row(self.factory.mint(), session.admission_seq, draft, self.factory.clock())
        row.work_class = "session_command" if classes == {True} else "turn_work"
        session.work.append(row)
        return self._as_batch(row, "pending")

    def list_queued_work(self, session_id: str) -> list[m.QueuedWorkBatch]:
        """Held batches included."""
        session = self._find(session_id)
        if session is None:
            return []
        rows = [row for row in session.work if row.settled is None]
        return [self._as_batch(row, self._work_state(session, row)) for row in rows]

    def list_pending_queued_work(self, session_id: str) -> list[m.QueuedWorkBatch]:
        """Held batches hidden."""
        return [batch for batch in self.list_queued_work(session_id) if batch.state == "pending"]

    def cancel_queued_work_batch(self, session_id: str, batch_id: str) -> m.QueuedWorkBatch | None:
        """W6."""
        session = self._find(session_id)
        for row in session.work if session is not None else []:
            if session is not None and row.row_id == batch_id and self._work_state(session, row) == "pending":
                cancelled = self._as_batch(row, "cancelled")
                row.settled, row.settled_ms = "cancelled", self.factory.clock()
                return cancelled
        return None

    def _queue(self, session: Session, work_class: str, boundary: str) -> list[Row]:
        def admitted(row: Row) -> bool:
            return boundary == "idle" or row.draft.delivery_policy == "earliest_safe_boundary"

        now = self.factory.clock()
        again = [row for row in session.work if self._is_of_earlier_entry(session, row)]
        again = [row for row in again if row.work_class == work_class and admitted(row)]
        ready = [row for row in session.work if self._work_state(session, row) == "pending"]
        return again + [row for row in ready if row.draft.available_at_ms <= now]

    def _run(self, queue: list[Row], boundary: str, limit: int) -> list[Row]:
        if not queue or queue[0].work_class == "session_command":
            return []
        head = queue[0]
        if boundary != "idle" and head.draft.delivery_policy != "earliest_safe_boundary":
            return []
        run = [head]
        for row in queue[1:limit]:
            same = (row.draft.delivery_policy, row.draft.merge_key) == (
                head.draft.delivery_policy,
                head.draft.merge_key,
            )
            both_join = row.draft.slot_policy == head.draft.slot_policy == "join"
            if not (same and both_join and row.work_class == "turn_work") or isinstance(head.draft.merge_key, m.Never):
                break
            run.append(row)
        return run

    def _claim_work(self, session: Session, rows: list[Row]) -> m.QueuedWorkClaim | None:
        if not rows:
            return None
        claim_id, token = self._grant(session, rows)
        lease = session.lease
        assert lease is not None
        batches = tuple(self._as_batch(row, "claimed") for row in rows)
        return m.QueuedWorkClaim(
            session.session_id, claim_id, lease.owner, token, lease.fencing_token, lease.expires_at_epoch_ms, batches
        )

    def claim_leading_ready_session_command(
        self, session_id: str, fence: m.SessionExecutionLeaseFence
    ) -> m.QueuedWorkClaim | None:
        """W2."""
        session = self._require_live(self._find(session_id), session_id, fence)
        queue = self._queue(session, "session_command", "idle")
        return self._claim_work(session, [row for row in queue[:1] if row.work_class == "session_command"])

    def claim_ready_queued_work(
        self, session_id: str, fence: m.SessionExecutionLeaseFence, *, boundary: str, max_batches: int
    ) -> m.QueuedWorkClaim | None:
        """W2 to W4."""
        session = self._require_live(self._find(session_id), session_id, fence)
        return self._claim_work(session, self._run(self._queue(session, "turn_work", boundary), boundary, max_batches))

    def claim_ready_queued_work_by_batch_ids(
        self, session_id: str, fence: m.SessionExecutionLeaseFence, *, boundary: str, batch_ids: Sequence[str]
    ) -> m.QueuedWorkClaim | None:
        """W5."""
        session = self._require_live(self._find(session_id), session_id, fence)
        run = self._run(self._queue(session, "turn_work", boundary), boundary, len(batch_ids))
        return self._claim_work(session, run if [row.row_id for row in run] == list(batch_ids) else [])

    def renew_queued_work_claim(self, claim: m.QueuedWorkClaim) -> m.QueuedWorkClaim:
        """K1."""
        session = self._find(claim.session_id)
        rows = session.work if session is not None else []
        if self._owned(session, rows, claim, claim.completion().batch_ids) is None:
            raise RefusedError("QueuedWorkClaimExpiredError")
        assert session is not None
        assert session.lease is not None
        return msgspec.structs.replace(claim, expires_at_epoch_ms=session.lease.expires_at_epoch_ms)

    def abandon_queued_work_claim(self, claim: m.QueuedWorkClaim) -> None:
        """K3."""
        session = self._find(claim.session_id)
        self._abandon(session.work if session is not None else [], claim.claim_id)
