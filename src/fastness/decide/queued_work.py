"""Which queued work a claim takes: the rules of the queue (laws W2 to W6), pure and public.

The rules look at few facts of a batch (``QueuedWorkFacts``), so they serve a store that read just these from its rows
as well as an application that holds the ``QueuedWorkBatch`` values of a list and wants to know what comes next::

    ready = ready_queue(await store.list_pending_queued_work(session_id), now_ms)
    leading_turn_work(ready, "idle", max_batches=10)

A *ready queue* is the sequence of batches that no live claim holds and whose time has come, in the order of admission.
Its head decides what can be claimed at all. Nothing here knows how batches are stored or what time it is.

After its holder re-entered the lane, a claim call has to grant again what the earlier entry holds (law L2).
``queue_after_reentry`` says what that means for the queue, and why.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Protocol, TypeVar

import msgspec

from fastness.decide import claims
from fastness.decide.claims import Grant, HeldRow, ShownClaim, is_held
from fastness.decide.lane import Lane, LaneFacts
from fastness.errors import InvalidInputError, QueuedWorkClaimExpiredError
from fastness.model.queued_work import (
    DeliveryPolicy,
    MergeKey,
    Never,
    QueuedWorkBatch,
    QueuedWorkBatchDraft,
    QueuedWorkBatchState,
    QueuedWorkClaim,
    QueuedWorkClaimBoundary,
    QueuedWorkClass,
    QueuedWorkCompletion,
    QueuedWorkItem,
    QueuedWorkPayload,
    SessionCommand,
    SlotPolicy,
)

HeldWork = HeldRow
"""A row of work that carries a claim's id."""


class QueuedWorkFacts(Protocol):
    """What the rules need to know of a batch. A ``QueuedWorkBatch`` has it all."""

    @property
    def batch_id(self) -> str:
        """The id that an exact claim names."""
        ...

    @property
    def work_class(self) -> QueuedWorkClass:
        """A command to the session, or work for a turn."""
        ...

    @property
    def delivery_policy(self) -> DeliveryPolicy:
        """When the batch may be delivered at the earliest."""
        ...

    @property
    def slot_policy(self) -> SlotPolicy:
        """Whether the batch shares a claim with others."""
        ...

    @property
    def merge_key(self) -> MergeKey:
        """Which others it shares one with."""
        ...


B = TypeVar("B", bound=QueuedWorkFacts)


def class_of(payloads: Sequence[QueuedWorkPayload]) -> QueuedWorkClass:
    """Give the one class of a batch's payloads. An empty or mixed batch is an ``InvalidInputError`` (law W6)."""
    commands = sum(isinstance(payload, SessionCommand) for payload in payloads)
    if not payloads:
        raise InvalidInputError("draft.payloads", "is empty; a batch has at least one payload")
    if 0 < commands < len(payloads):
        raise InvalidInputError("draft.payloads", "mixes session commands with turn work; enqueue them apart")
    return "session_command" if commands else "turn_work"


def ready_queue(batches: Iterable[QueuedWorkBatch], now_ms: int) -> tuple[QueuedWorkBatch, ...]:
    """Give the ready queue of listed batches: pending ones whose time has come, in the order of admission.

    ``now_ms`` is milliseconds since the epoch; a batch is ready from its ``available_at_ms`` on, inclusive.
    """
    ready = (batch for batch in batches if batch.state == "pending" and batch.available_at_ms <= now_ms)
    return tuple(sorted(ready, key=lambda batch: batch.admission_seq))


def admits(boundary: QueuedWorkClaimBoundary, delivery_policy: DeliveryPolicy) -> bool:
    """Whether work of this policy may be delivered at the boundary (law W3)."""
    return boundary == "idle" or delivery_policy == "earliest_safe_boundary"


def joins(head: QueuedWorkFacts, follower: QueuedWorkFacts) -> bool:
    """Whether a batch may share the claim of the head (law W4). ``Never`` joins nothing, not even another ``Never``."""
    return (
        head.slot_policy == "join"
        and follower.slot_policy == "join"
        and follower.work_class == head.work_class
        and follower.delivery_policy == head.delivery_policy
        and follower.merge_key == head.merge_key
        and not isinstance(head.merge_key, Never)
    )


def leading_command(ready: Sequence[B]) -> B | None:
    """Give the session command that can be claimed: the head, if it is one (law W2). Commands go one at a time."""
    return ready[0] if ready and ready[0].work_class == "session_command" else None


def leading_turn_work(ready: Sequence[B], boundary: QueuedWorkClaimBoundary, max_batches: int) -> tuple[B, ...]:
    """Give the turn work that one claim takes: the head and the batches that join it, at most ``max_batches``.

    Empty when the queue is, when a command leads it (W2), or when the head has to wait for the turn's end (W3). The run
    ends at the first batch that does not join: nothing is skipped (W4).
    """
    if (
        not ready
        or max_batches < 1
        or ready[0].work_class != "turn_work"
        or not admits(boundary, ready[0].delivery_policy)
    ):
        return ()
    head, followers = ready[0], ready[1:max_batches]
    return (head, *takewhile(lambda follower: joins(head, follower), followers))


def exact_turn_work(ready: Sequence[B], boundary: QueuedWorkClaimBoundary, batch_ids: Sequence[str]) -> tuple[B, ...]:
    """Give exactly the named batches, or none (law W5).

    They must be what a claim of that many batches would take anyway, in that order: an exact claim is a claim that
    refuses to take anything else. A session command is not claimed this way; it has a call of its own.
    """
    run = leading_turn_work(ready, boundary, len(batch_ids))
    return run if [batch.batch_id for batch in run] == list(batch_ids) else ()


def queue_after_reentry(
    earlier: Iterable[B], ready: Sequence[B], work_class: QueuedWorkClass, boundary: QueuedWorkClaimBoundary
) -> tuple[B, ...]:
    """Put what an earlier entry of the same lease holds in front of the ready queue (law L2).

    ``earlier`` is in the order of admission. Only what this very call could have been granted counts: the class asked
    for, deliverable at the boundary. The rest stays with its claim, which is live and can still be completed; it is not
    in the ready queue, so it blocks nothing. On the sequence that results the rules hold as always, so that an
    exclusive batch is granted again alone, and batches that join are granted again together and may be topped up.
    """
    again = (batch for batch in earlier if batch.work_class == work_class and admits(boundary, batch.delivery_policy))
    return (*again, *ready)


class WaitingWork(msgspec.Struct, frozen=True):
    """The facts of a batch that is about to be claimed; its content is read when the claim is decided."""

    batch_id: str
    seq: int
    claim_token: int
    work_class: QueuedWorkClass
    delivery_policy: DeliveryPolicy
    slot_policy: SlotPolicy
    merge_key: MergeKey
    attempts: int = 0


class WorkRow(msgspec.Struct, frozen=True):
    """Work as the store keeps it; ``settled`` is how it ended, if it did, and ``draft`` what was submitted."""

    batch_id: str
    seq: int
    settled: QueuedWorkBatchState | None
    enqueued_ms: int
    grant: Grant
    draft: QueuedWorkBatchDraft


def state_of(row: WorkRow, lane: LaneFacts) -> QueuedWorkBatchState:
    """Say where a batch stands now: a claim that is dead counts for nothing (laws K2, W1)."""
    if row.settled is not None:
        return row.settled
    return "claimed" if is_held(row.grant, lane) else "pending"


def as_batch(row: WorkRow, state: QueuedWorkBatchState) -> QueuedWorkBatch:
    """Give the public value of a row."""
    draft = row.draft
    items = (QueuedWorkItem(f"{row.batch_id}/{at}", payload) for at, payload in enumerate(draft.payloads))
    return QueuedWorkBatch(
        session_id=draft.session_id,
        batch_id=row.batch_id,
        admission_seq=row.seq,
        state=state,
        work_class=class_of(draft.payloads),
        delivery_policy=draft.delivery_policy,
        slot_policy=draft.slot_policy,
        merge_key=draft.merge_key,
        items=tuple(items),
        source_key=draft.source_key,
        available_at_ms=draft.available_at_ms,
        enqueued_at_epoch_ms=row.enqueued_ms,
        attempts=row.grant.attempts,
    )


def shown(claim: QueuedWorkClaim | QueuedWorkCompletion) -> ShownClaim:
    """Give a claim as it is checked."""
    completion = claim.completion() if isinstance(claim, QueuedWorkClaim) else claim
    return ShownClaim(completion.session_id, completion.claim_id, completion.fencing_token, completion.batch_ids)


def require_owned(
    session_id: str,
    completions: Sequence[QueuedWorkClaim | QueuedWorkCompletion],
    rows: Sequence[HeldWork],
    lane: Lane,
) -> None:
    """Refuse completions that do not own exactly their batches, with ``QueuedWorkClaimExpiredError`` (law C6)."""
    claims.require_owned(session_id, [shown(one) for one in completions], rows, lane, QueuedWorkClaimExpiredError)
