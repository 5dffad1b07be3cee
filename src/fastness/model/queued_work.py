"""Queued work: what a session has to do that no user said (wakes, commands, tasks)."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

from fastness.model.base import NO_JSON, Record, Value
from fastness.model.lease import LeaseOwnerIdentity


class ProcessWake(Value, frozen=True, tag_field="type", tag="process_wake"):
    """A process of another session has news. ``wake`` is the driver's own JSON."""

    wake: msgspec.Raw


class SessionCommand(Value, frozen=True, tag_field="type", tag="session_command"):
    """A command that changes the session itself, applied between turns. ``command`` is the driver's own JSON."""

    command: msgspec.Raw


class Task(Value, frozen=True, tag_field="type", tag="task"):
    """Work of the application. ``data`` is its own JSON."""

    kind: str
    data: msgspec.Raw = NO_JSON

    def decode(self, as_type: Any = Any) -> Any:
        """Read ``data`` as a type of msgspec's, by default as plain values. Raises ``msgspec.ValidationError``."""
        return msgspec.json.decode(self.data, type=as_type)


QueuedWorkPayload: TypeAlias = ProcessWake | SessionCommand | Task
QueuedWorkClass: TypeAlias = Literal["session_command", "turn_work"]
DeliveryPolicy: TypeAlias = Literal["earliest_safe_boundary", "after_current_turn_commit"]
SlotPolicy: TypeAlias = Literal["join", "exclusive"]
QueuedWorkClaimBoundary: TypeAlias = Literal["active_turn_checkpoint", "idle"]
QueuedWorkBatchState: TypeAlias = Literal["pending", "claimed", "completed", "cancelled", "quarantined"]


class Never(Value, frozen=True, tag_field="type", tag="never"):
    """Joins nothing, not even another ``Never``."""


class PayloadDefault(Value, frozen=True, tag_field="type", tag="payload_default"):
    """Joins every other ``PayloadDefault``."""


class Group(Value, frozen=True, tag_field="type", tag="group"):
    """Joins batches of the same group name."""

    name: str


MergeKey: TypeAlias = Never | PayloadDefault | Group


class QueuedWorkItem(Value, frozen=True):
    """One payload of a batch; ``item_id`` is ``<batch_id>/<position>``."""

    item_id: str
    payload: QueuedWorkPayload


class QueuedWorkBatchDraft(Record, frozen=True):
    """Work to be enqueued, all payloads of one class. ``source_key`` makes it idempotent (law W1).

    ``available_at_ms`` is milliseconds since the epoch; a batch is ready from then on.
    """

    session_id: str
    delivery_policy: DeliveryPolicy
    slot_policy: SlotPolicy
    payloads: tuple[QueuedWorkPayload, ...]
    merge_key: MergeKey = Never()
    source_key: str | None = None
    available_at_ms: int = 0


class QueuedWorkBatch(Value, frozen=True):
    """Work as the store keeps it. ``admission_seq`` orders all input and work of a session.

    ``attempts`` says how often it was granted without being given back.
    """

    session_id: str
    batch_id: str
    admission_seq: int
    state: QueuedWorkBatchState
    work_class: QueuedWorkClass
    delivery_policy: DeliveryPolicy
    slot_policy: SlotPolicy
    merge_key: MergeKey
    items: tuple[QueuedWorkItem, ...]
    source_key: str | None = None
    available_at_ms: int = 0
    enqueued_at_epoch_ms: int = 0
    attempts: int = 0


class QueuedWorkCompletion(Value, frozen=True):
    """What a commit shows to complete a claim: exactly its batches, in order."""

    session_id: str
    claim_id: str
    fencing_token: int
    batch_ids: tuple[str, ...]


class QueuedWorkClaim(Value, frozen=True):
    """Work granted to the holder of the lane; the tokens mean what they mean in a ``TurnInputClaim``."""

    session_id: str
    claim_id: str
    owner: LeaseOwnerIdentity
    fencing_token: int
    lane_fencing_token: int
    expires_at_epoch_ms: int
    batches: tuple[QueuedWorkBatch, ...]

    def completion(self) -> QueuedWorkCompletion:
        """Give what a commit needs to settle this claim."""
        ids = tuple(batch.batch_id for batch in self.batches)
        return QueuedWorkCompletion(self.session_id, self.claim_id, self.fencing_token, ids)
