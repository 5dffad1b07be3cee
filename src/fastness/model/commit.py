"""The commit: everything that one turn changed, settled at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import msgspec

from fastness.errors import InvalidInputError
from fastness.model.attachments import AttachmentProof
from fastness.model.base import Record, Value
from fastness.model.checkpoint import BlobRef, HydratedSessionCheckpoint, SessionCheckpoint, TokenLedgerEntry
from fastness.model.graph import GraphCommitDelta, Unchanged
from fastness.model.lease import SessionExecutionLeaseCompletion, SessionExecutionLeaseFence
from fastness.model.queued_work import QueuedWorkBatchDraft, QueuedWorkClaim, QueuedWorkCompletion
from fastness.model.session import AgentFrameRecord, PersistedSessionConfig
from fastness.model.turn_hash import turn_commit_hash
from fastness.model.turn_input import PendingTurnInputDraft, TurnInputClaim, TurnInputCompletion


class OutboxInput(Value, frozen=True, tag_field="type", tag="input"):
    """Turn input that the commit enqueues."""

    draft: PendingTurnInputDraft


class OutboxWork(Value, frozen=True, tag_field="type", tag="work"):
    """Work that the commit enqueues."""

    draft: QueuedWorkBatchDraft


OutboxEntry: TypeAlias = OutboxInput | OutboxWork


class RuntimeTurnCommitStamp(Value, frozen=True):
    """Names a turn and what it means, so that the same commit sent again lands once (law C3)."""

    session_id: str
    turn_id: str
    turn_commit_hash: str


class RuntimeCommit(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a turn changed. Built by the ``with_…`` methods, each of which gives a new commit; stamped last.

    ``expected_head_revision`` is the revision the turn was built on, None for "there is no head yet" (law C5).
    ``config``, ``current_agent_frame_id`` and ``checkpoint`` stay as they are in the head where they are None.
    ``attachment_proofs``, where they are given, tie references to the very intents that their bytes were put under.
    ``agent_frames`` are the frames added or changed. ``graph`` defaults to no change of a session without nodes.
    """

    session_id: str
    expected_head_revision: int | None
    session_execution_lease: SessionExecutionLeaseFence | None = None
    release_session_execution_lease: SessionExecutionLeaseCompletion | None = None
    config: PersistedSessionConfig | None = None
    agent_frames: tuple[AgentFrameRecord, ...] = ()
    current_agent_frame_id: str | None = None
    graph: GraphCommitDelta = Unchanged(None)
    checkpoint: HydratedSessionCheckpoint | None = None
    usage_deltas: tuple[TokenLedgerEntry, ...] = ()
    turn_commit: RuntimeTurnCommitStamp | None = None
    completed_queue_claims: tuple[QueuedWorkCompletion, ...] = ()
    completed_turn_input_claims: tuple[TurnInputCompletion, ...] = ()
    interrupted_turn_input_turn_id: str | None = None
    committed_attachment_ids: tuple[str, ...] = ()
    outbox: tuple[OutboxEntry, ...] = ()
    attachment_proofs: tuple[AttachmentProof, ...] = ()

    def turn_commit_hash(self) -> str:
        """Give the hash of what this commit means (law C9)."""
        return turn_commit_hash(self)

    def with_session_execution_lease(self, fence: SessionExecutionLeaseFence) -> RuntimeCommit:
        """Commit under this lease. Allowed after stamping: a retry may have re-entered the lane."""
        return msgspec.structs.replace(self, session_execution_lease=fence)

    def releasing_session_execution_lease(self, completion: SessionExecutionLeaseCompletion) -> RuntimeCommit:
        """Give the lane back with the commit. Allowed after stamping."""
        return msgspec.structs.replace(self, release_session_execution_lease=completion)

    def completing_queue_claim(self, claim: QueuedWorkClaim | QueuedWorkCompletion) -> RuntimeCommit:
        """Settle claimed work."""
        return self.completing_queue_claims((claim,))

    def completing_queue_claims(self, claims: tuple[QueuedWorkClaim | QueuedWorkCompletion, ...]) -> RuntimeCommit:
        """Settle several claims of work."""
        added = tuple(claim.completion() if isinstance(claim, QueuedWorkClaim) else claim for claim in claims)
        return msgspec.structs.replace(self._unstamped(), completed_queue_claims=(*self.completed_queue_claims, *added))

    def completing_turn_input_claim(self, claim: TurnInputClaim | TurnInputCompletion) -> RuntimeCommit:
        """Settle claimed input."""
        return self.completing_turn_input_claims((claim,))

    def completing_turn_input_claims(self, claims: tuple[TurnInputClaim | TurnInputCompletion, ...]) -> RuntimeCommit:
        """Settle several claims of input."""
        added = tuple(claim.completion() if isinstance(claim, TurnInputClaim) else claim for claim in claims)
        return msgspec.structs.replace(
            self._unstamped(), completed_turn_input_claims=(*self.completed_turn_input_claims, *added)
        )

    def deferring_interrupted_turn_inputs(self, turn_id: str) -> RuntimeCommit:
        """Leave what the interrupted turn did not consume to the next turn (law I5)."""
        return msgspec.structs.replace(self._unstamped(), interrupted_turn_input_turn_id=turn_id)

    def with_committed_attachments(
        self, attachment_ids: Sequence[str], proofs: Sequence[AttachmentProof] = ()
    ) -> RuntimeCommit:
        """Refer to these attachments from now on. ``proofs`` tie some of them to the intents their bytes came under."""
        if isinstance(attachment_ids, str):
            raise InvalidInputError("attachment_ids", "must be several ids, not one text")
        return msgspec.structs.replace(
            self._unstamped(),
            committed_attachment_ids=(*self.committed_attachment_ids, *attachment_ids),
            attachment_proofs=(*self.attachment_proofs, *proofs),
        )

    def with_outbox(self, *drafts: PendingTurnInputDraft | QueuedWorkBatchDraft) -> RuntimeCommit:
        """Enqueue these drafts with the commit, or not at all (law C14)."""
        added = tuple(
            OutboxInput(draft) if isinstance(draft, PendingTurnInputDraft) else OutboxWork(draft) for draft in drafts
        )
        return msgspec.structs.replace(self._unstamped(), outbox=(*self.outbox, *added))

    def with_turn_commit(self, turn_id: str) -> RuntimeCommit:
        """Stamp the commit: last of all, since the stamp covers what the commit means."""
        stamp = RuntimeTurnCommitStamp(self.session_id, turn_id, self.turn_commit_hash())
        return msgspec.structs.replace(self, turn_commit=stamp)

    def _unstamped(self) -> RuntimeCommit:
        if self.turn_commit is not None:
            raise InvalidInputError("commit", "is stamped already; change what it means first and stamp it last")
        return self


class RuntimeCommitResult(Record, frozen=True):
    """What a commit came to. ``replayed`` says that a receipt was found and nothing was written.

    The caller goes on from ``leaf_node_id``, never from the ids it meant to write (law C3).
    """

    head_revision: int
    checkpoint_ref: BlobRef | None
    manifest: SessionCheckpoint | None
    leaf_node_id: str | None
    replayed: bool = False
