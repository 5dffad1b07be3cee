"""Turn input: what users said and no turn has consumed yet."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from fastness.model.attachments import AttachmentRef
from fastness.model.base import NO_JSON, Record, Value
from fastness.model.checkpoint import CheckpointKind
from fastness.model.lease import LeaseOwnerIdentity


class ActiveTurn(Value, frozen=True, tag_field="type", tag="active_turn"):
    """For the turn that runs now, from the given safe boundary on."""

    turn_id: str
    min_boundary: CheckpointKind = "after_work"


class NextTurn(Value, frozen=True, tag_field="type", tag="next_turn"):
    """For the turn after the one that runs now."""


TurnInputIngress: TypeAlias = ActiveTurn | NextTurn


class TextItem(Value, frozen=True, tag_field="type", tag="text"):
    """Text."""

    text: str


class AttachmentItem(Value, frozen=True, tag_field="type", tag="attachment"):
    """Something the session's manifest holds."""

    attachment: AttachmentRef


class StructuredItem(Value, frozen=True, tag_field="type", tag="structured"):
    """The application's own JSON, byte for byte."""

    kind: str
    data: msgspec.Raw


TurnInputItem: TypeAlias = TextItem | AttachmentItem | StructuredItem


class TurnInput(Value, frozen=True):
    """One submission. ``metadata`` is the application's own JSON."""

    items: tuple[TurnInputItem, ...]
    metadata: msgspec.Raw = NO_JSON

    @property
    def text(self) -> str:
        """The texts among the items, one below the other."""
        return "\n".join(item.text for item in self.items if isinstance(item, TextItem))

    @classmethod
    def of_text(cls, text: str) -> TurnInput:
        """Make the commonest input."""
        return cls((TextItem(text),))


class PendingTurnInputDraft(Record, frozen=True):
    """Input to be enqueued. ``source_key`` makes it idempotent; ``input_id`` is minted when it is not given.

    ``available_at_ms`` is milliseconds since the epoch; the input is claimable from then on. It is no part of what a
    source key is bound to: the same thing said again may name another time, and the first one stays.
    """

    session_id: str
    ingress: TurnInputIngress
    input: TurnInput
    input_id: str | None = None
    source_key: str | None = None
    available_at_ms: int = 0


TurnInputState: TypeAlias = Literal[
    "pending_active", "deferred_next_turn", "accepted", "cancelled", "completed", "quarantined"
]


class PendingTurnInput(Value, frozen=True):
    """Input as the store keeps it. ``admission_seq`` orders all input and work of a session.

    ``attempts`` says how often it was granted without being given back: 1 in the claim of the first turn.
    """

    session_id: str
    input_id: str
    admission_seq: int
    state: TurnInputState
    ingress: TurnInputIngress
    input: TurnInput
    source_key: str | None = None
    enqueued_at_epoch_ms: int = 0
    available_at_ms: int = 0
    attempts: int = 0

    @property
    def text(self) -> str:
        """What was said in words."""
        return self.input.text


class TurnInputCompletion(Value, frozen=True):
    """What a commit shows to complete a claim: exactly its rows, in order."""

    session_id: str
    claim_id: str
    fencing_token: int
    input_ids: tuple[str, ...]


class TurnInputClaim(Value, frozen=True):
    """Input granted to the holder of the lane.

    ``fencing_token`` is greater than that of any earlier grant of any of these rows; ``lane_fencing_token`` is the
    lease's. The claim lives as long as the lease; ``expires_at_epoch_ms`` is the lease's expiry as last seen.
    """

    session_id: str
    claim_id: str
    owner: LeaseOwnerIdentity
    fencing_token: int
    lane_fencing_token: int
    expires_at_epoch_ms: int
    inputs: tuple[PendingTurnInput, ...]

    def completion(self) -> TurnInputCompletion:
        """Give what a commit needs to settle this claim."""
        ids = tuple(row.input_id for row in self.inputs)
        return TurnInputCompletion(self.session_id, self.claim_id, self.fencing_token, ids)


class ByInputId(Value, frozen=True, tag_field="type", tag="input_id"):
    """Cancel the input of this id."""

    input_id: str


class BySourceKey(Value, frozen=True, tag_field="type", tag="source_key"):
    """Cancel the input that was submitted under this key."""

    source_key: str


PendingTurnInputCancelTarget: TypeAlias = ByInputId | BySourceKey


class PendingTurnInputClaimDiagnostics(Value, frozen=True):
    """Who holds a row that could not be cancelled."""

    claim_id: str
    owner: LeaseOwnerIdentity
    fencing_token: int
    expires_at_epoch_ms: int


class Cancelled(Value, frozen=True, tag_field="type", tag="cancelled"):
    """The row was waiting and is cancelled now."""

    input: PendingTurnInput


class AlreadyClaimed(Value, frozen=True, tag_field="type", tag="already_claimed"):
    """A live claim holds the row."""

    input_id: str
    claim: PendingTurnInputClaimDiagnostics


class AlreadyCompleted(Value, frozen=True, tag_field="type", tag="already_completed"):
    """A commit has consumed the row."""

    input_id: str


class AlreadyCancelled(Value, frozen=True, tag_field="type", tag="already_cancelled"):
    """The row was cancelled before."""

    input_id: str


class NotFound(Value, frozen=True, tag_field="type", tag="not_found"):
    """There is no such row, or its evidence was vacuumed."""


PendingTurnInputCancelOutcome: TypeAlias = Cancelled | AlreadyClaimed | AlreadyCompleted | AlreadyCancelled | NotFound


class PendingTurnInputCancelResult(Value, frozen=True):
    """The outcome of one target of a bulk cancel."""

    target: PendingTurnInputCancelTarget
    outcome: PendingTurnInputCancelOutcome


class AnchorNotFound(Value, frozen=True, tag_field="type", tag="anchor_not_found"):
    """The anchor of a suffix cancel is not there; nothing was cancelled."""


class SuffixOutcomes(Value, frozen=True, tag_field="type", tag="outcomes"):
    """The outcomes of a suffix cancel, in the order of admission, the anchor first."""

    outcomes: tuple[PendingTurnInputCancelResult, ...]


PendingTurnInputSuffixCancelOutcome: TypeAlias = AnchorNotFound | SuffixOutcomes
