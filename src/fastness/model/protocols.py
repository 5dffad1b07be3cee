"""The capabilities of a store, as protocols. What each must do stands in ``docs/laws.md``.

Every method that does I/O is a coroutine. All raise ``StoreError`` and nothing else for what goes wrong.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

from fastness.model.attachments import (
    AttachmentIntent,
    AttachmentManifestEntry,
    AttachmentPersistence,
    AttachmentProof,
    AttachmentReclaimGrant,
    AttachmentSource,
)
from fastness.model.checkpoint import CheckpointKind
from fastness.model.commit import RuntimeCommit, RuntimeCommitResult
from fastness.model.dispatch import Agenda, QuarantineKind, QuarantinePage, TurnBeginning, TurnFailure
from fastness.model.history import CommitPage
from fastness.model.lease import (
    LeaseOwnerIdentity,
    SessionExecutionLease,
    SessionExecutionLeaseClaimOutcome,
    SessionExecutionLeaseCompletion,
    SessionExecutionLeaseFence,
)
from fastness.model.queued_work import (
    QueuedWorkBatch,
    QueuedWorkBatchDraft,
    QueuedWorkClaim,
    QueuedWorkClaimBoundary,
)
from fastness.model.reports import GcReport, VacuumReport
from fastness.model.session import (
    DurabilityTier,
    PersistedSessionRead,
    SessionFilter,
    SessionHeadMeta,
    SessionMeta,
    SessionPage,
    SessionReadScope,
    SessionStoreCreateRequest,
)
from fastness.model.transcript import SessionNodeRecord
from fastness.model.turn_input import (
    PendingTurnInput,
    PendingTurnInputCancelOutcome,
    PendingTurnInputCancelResult,
    PendingTurnInputCancelTarget,
    PendingTurnInputDraft,
    PendingTurnInputSuffixCancelOutcome,
    TurnInputClaim,
)
from fastness.model.worker import HeldLane, WorkerRecord


@runtime_checkable
class AttachmentManifest(Protocol):
    """Ties attachments to the sessions that refer to them (laws A2 to A4)."""

    async def record_intent(self, intent: AttachmentIntent) -> None: ...
    async def commit_refs(
        self, session_id: str, attachment_ids: Sequence[str], *, proofs: Sequence[AttachmentProof] = ()
    ) -> None: ...
    async def holds_ref(self, session_id: str, attachment_id: str) -> bool: ...
    async def find_attachment(self, session_id: str, attachment_id: str) -> AttachmentManifestEntry | None: ...
    async def list_uncommitted(
        self, older_than_epoch_ms: int, *, after: AttachmentManifestEntry | None = None, limit: int | None = None
    ) -> list[AttachmentManifestEntry]: ...
    async def list_attachments(
        self, *, session_id: str | None = None, after: AttachmentManifestEntry | None = None, limit: int = 1000
    ) -> list[AttachmentManifestEntry]: ...
    async def list_reclaimable(self, attachment_ids: Sequence[str], *, older_than_epoch_ms: int) -> tuple[str, ...]: ...
    async def begin_reclaim(
        self, attachment_ids: Sequence[str], *, older_than_epoch_ms: int, mark_ttl_ms: int = 60_000
    ) -> AttachmentReclaimGrant: ...
    async def reclaim_left_ms(self, grant: AttachmentReclaimGrant) -> int: ...
    async def finish_reclaim(self, grant: AttachmentReclaimGrant) -> int: ...
    async def release_unnamed(self, attachment_ids: Sequence[str]) -> int: ...
    async def forget(self, session_id: str, attachment_id: str) -> None: ...


@runtime_checkable
class SessionCommitStore(AttachmentManifest, Protocol):
    """Keeps the settled state of the one session that the handle is bound to (laws C, G)."""

    durability_tier: DurabilityTier

    async def load_session(self, scope: SessionReadScope) -> PersistedSessionRead | None: ...
    async def load_node(self, node_id: str) -> SessionNodeRecord | None: ...
    async def commit_runtime_state(self, commit: RuntimeCommit) -> RuntimeCommitResult: ...
    async def save_session_meta(self, meta: SessionMeta) -> None: ...
    async def load_session_meta(self) -> SessionMeta | None: ...
    async def load_head(self) -> SessionHeadMeta | None: ...


@runtime_checkable
class SessionExecutionLeaseStore(Protocol):
    """The single-writer lane of each session (law L)."""

    async def try_claim_session_execution_lease(
        self, session_id: str, owner: LeaseOwnerIdentity, lease_ttl_ms: int
    ) -> SessionExecutionLeaseClaimOutcome: ...
    async def reclaim_session_execution_lease(
        self,
        session_id: str,
        owner: LeaseOwnerIdentity,
        observed_holder: SessionExecutionLeaseFence,
        lease_ttl_ms: int,
    ) -> SessionExecutionLeaseClaimOutcome: ...
    async def renew_session_execution_lease(
        self, fence: SessionExecutionLeaseFence, lease_ttl_ms: int
    ) -> SessionExecutionLease: ...
    async def release_session_execution_lease(self, completion: SessionExecutionLeaseCompletion) -> None: ...


@runtime_checkable
class TurnInputStore(Protocol):
    """What users said and no turn has consumed yet (laws K, I)."""

    async def enqueue_pending_turn_input(self, draft: PendingTurnInputDraft) -> PendingTurnInput: ...
    async def list_pending_turn_inputs(self, session_id: str) -> list[PendingTurnInput]: ...
    async def cancel_pending_turn_input(self, session_id: str, input_id: str) -> PendingTurnInputCancelOutcome: ...
    async def cancel_pending_turn_inputs(
        self, session_id: str, targets: Sequence[PendingTurnInputCancelTarget]
    ) -> list[PendingTurnInputCancelResult]: ...
    async def cancel_pending_turn_input_suffix(
        self, session_id: str, anchor: PendingTurnInputCancelTarget
    ) -> PendingTurnInputSuffixCancelOutcome: ...
    async def claim_active_turn_inputs(
        self,
        session_id: str,
        fence: SessionExecutionLeaseFence,
        *,
        turn_id: str,
        checkpoint: CheckpointKind,
        max_inputs: int,
    ) -> TurnInputClaim | None: ...
    async def claim_next_turn_inputs(
        self, session_id: str, fence: SessionExecutionLeaseFence, *, max_inputs: int
    ) -> TurnInputClaim | None: ...
    async def renew_turn_input_claim(self, claim: TurnInputClaim) -> TurnInputClaim: ...
    async def abandon_turn_input_claim(self, claim: TurnInputClaim) -> None: ...


@runtime_checkable
class QueuedWorkStore(Protocol):
    """Work that no user said (laws K, W)."""

    async def enqueue_queued_work(self, draft: QueuedWorkBatchDraft) -> QueuedWorkBatch: ...
    async def claim_leading_ready_session_command(
        self, session_id: str, fence: SessionExecutionLeaseFence
    ) -> QueuedWorkClaim | None: ...
    async def claim_ready_queued_work(
        self,
        session_id: str,
        fence: SessionExecutionLeaseFence,
        *,
        boundary: QueuedWorkClaimBoundary,
        max_batches: int,
    ) -> QueuedWorkClaim | None: ...
    async def claim_ready_queued_work_by_batch_ids(
        self,
        session_id: str,
        fence: SessionExecutionLeaseFence,
        *,
        boundary: QueuedWorkClaimBoundary,
        batch_ids: Sequence[str],
    ) -> QueuedWorkClaim | None: ...
    async def renew_queued_work_claim(self, claim: QueuedWorkClaim) -> QueuedWorkClaim: ...
    async def abandon_queued_work_claim(self, claim: QueuedWorkClaim) -> None: ...
    async def cancel_queued_work_batch(self, session_id: str, batch_id: str) -> QueuedWorkBatch | None: ...
    async def list_queued_work(self, session_id: str) -> list[QueuedWorkBatch]: ...
    async def list_pending_queued_work(self, session_id: str) -> list[QueuedWorkBatch]: ...


@runtime_checkable
class StoreMaintenance(Protocol):
    """Levers that the host pulls (laws M, G5). Nodes and vacuum: this session; collection: the whole database."""

    async def tombstone_nodes(self, node_ids: Sequence[str]) -> None: ...
    async def vacuum(
        self, *, evidence_older_than_ms: int | None = None, receipts_older_than_ms: int | None = None
    ) -> VacuumReport: ...
    async def gc_unreachable(self, *, keep_revisions: int = 1) -> GcReport: ...


@runtime_checkable
class RuntimePersistence(
    SessionCommitStore, SessionExecutionLeaseStore, TurnInputStore, QueuedWorkStore, StoreMaintenance, Protocol
):
    """All five capabilities over one transactional domain."""


@runtime_checkable
class SessionStoreFactory(Protocol):
    """Creates, opens, lists and deletes the sessions of one database (law M3)."""

    durability_tier: DurabilityTier

    async def create_store(self, request: SessionStoreCreateRequest) -> RuntimePersistence: ...
    async def open_existing_store(self, request: SessionStoreCreateRequest) -> RuntimePersistence | None: ...
    async def delete_session(self, session_id: str) -> None: ...
    async def list_sessions(
        self, *, limit: int = 100, cursor: str | None = None, filters: SessionFilter | None = None
    ) -> SessionPage: ...


@runtime_checkable
class AttachmentStore(Protocol):
    """Content-addressed bytes (laws A1, A5). An id is the sha256 of the content, in lower-case hexadecimal.

    A store belongs to one database: its sweeps delete what that database does not name. Several may share a bucket or a
    disk, each under a prefix or in a directory of its own.

    ``put`` gives the id; where the caller says which one it expects, other content is refused, and nothing is visible.
    ``get`` and ``stream`` give the bytes from ``start`` up to ``end`` the way a slice does; with ``verify`` they hash
    the whole content on the way and raise ``AttachmentDamagedError`` (``stream`` at its end). ``delete`` and
    ``discard_unfinished`` give how many bytes were freed; the latter removes what puts left that never came to their
    end, untouched since then. A store whose place is not there raises ``AttachmentStoreError`` for a delete: what it
    says is gone, a sweep forgets. ``list`` gives a page of ids, in their order, from behind ``after``.
    """

    persistence: AttachmentPersistence

    async def put(self, source: AttachmentSource, *, attachment_id: str | None = None) -> str: ...
    async def get(
        self, attachment_id: str, *, start: int = 0, end: int | None = None, verify: bool = False
    ) -> bytes: ...
    def stream(
        self, attachment_id: str, *, start: int = 0, end: int | None = None, verify: bool = False
    ) -> AsyncIterator[bytes]: ...
    async def size(self, attachment_id: str) -> int: ...
    async def delete(self, attachment_id: str) -> int: ...
    async def list(self, *, after: str = "", limit: int = 1000) -> Sequence[str]: ...
    async def discard_unfinished(self, older_than_epoch_ms: int) -> int: ...


@runtime_checkable
class ProcessExecutionEnvStore(Protocol):
    """Immutable environments, JSON documents named by their canonical hash (law E1)."""

    durability_tier: DurabilityTier

    async def put_process_execution_env(self, ref: str, data: bytes) -> None: ...
    async def get_process_execution_env(self, ref: str) -> bytes | None: ...


@runtime_checkable
class SessionDispatchStore(Protocol):
    """What there is to do in a database, its turns' beginnings and failures, and what was set aside (laws T, Q).

    ``begin_turn`` answers with the turn, or says why there is none; without ``claims`` it takes the lane alone.
    ``fail_turn`` raises ``LeaseExpiredError`` where the lease is not live any more. Retrying and discarding what is not
    in quarantine gives False.
    """

    async def now_ms(self) -> int: ...
    async def read_agenda(
        self, *, limit: int = 100, owner_id: str | None = None, saturated_labels: Sequence[str] = ()
    ) -> Agenda: ...
    async def begin_turn(
        self,
        session_id: str,
        owner: LeaseOwnerIdentity,
        lease_ttl_ms: int,
        *,
        max_inputs: int = 100,
        max_batches: int = 100,
        max_attempts: int | None = None,
        needs_something: bool = True,
        claims: bool = True,
        label_limits: Mapping[str, int] | None = None,
        observed_holder: SessionExecutionLeaseFence | None = None,
    ) -> TurnBeginning: ...
    async def fail_turn(
        self,
        completion: SessionExecutionLeaseCompletion,
        *,
        input_claims: Sequence[TurnInputClaim] = (),
        work_claims: Sequence[QueuedWorkClaim] = (),
        error: str,
        delay_ms: int = 0,
        max_attempts: int | None = None,
        counts: bool = True,
    ) -> TurnFailure: ...
    async def request_interrupt(
        self, session_id: str, *, reason: str | None = None, fencing_token: int | None = None
    ) -> SessionExecutionLease | None: ...
    async def list_quarantine(
        self, *, session_id: str | None = None, limit: int = 100, cursor: str | None = None
    ) -> QuarantinePage: ...
    async def retry_quarantined(self, session_id: str, kind: QuarantineKind, row_id: str) -> bool: ...
    async def discard_quarantined(self, session_id: str, kind: QuarantineKind, row_id: str) -> bool: ...


@runtime_checkable
class WorkerRegistry(Protocol):
    """Who runs turns on a database, as they say it themselves, and which lanes are held (laws R)."""

    async def announce_worker(self, record: WorkerRecord) -> None: ...
    async def retire_worker(self, worker_id: str) -> None: ...
    async def list_workers(self, *, seen_since_ms: int | None = None) -> list[WorkerRecord]: ...
    async def forget_workers(self, seen_until_ms: int) -> int: ...
    async def list_held_lanes(
        self, *, after: HeldLane | None = None, limit: int = 1000, owner_id: str | None = None
    ) -> list[HeldLane]: ...


@runtime_checkable
class SessionHistoryStore(Protocol):
    """What was committed to the sessions of a database, each as it was, and forks of them (laws H, F)."""

    async def list_commits(
        self, session_id: str, *, after_revision: int = 0, limit: int = 100, newest_first: bool = False
    ) -> CommitPage: ...
    async def load_session_at(self, session_id: str, revision: int) -> PersistedSessionRead | None: ...
    async def fork_session(
        self,
        session_id: str,
        new_session_id: str,
        *,
        at_node_id: str | None = None,
        at_revision: int | None = None,
        name: str | None = None,
    ) -> SessionMeta: ...
