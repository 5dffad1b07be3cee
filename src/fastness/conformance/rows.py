"""One face for claimable rows of both kinds, so that a law of claims is written once (K1 to K4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from fastness.conformance.builders import kinds, said, texts, work
from fastness.errors import ClaimExpiredError, QueuedWorkClaimExpiredError, TurnInputClaimExpiredError
from fastness.model import (
    AlreadyClaimed,
    Cancelled,
    PayloadDefault,
    RuntimeCommit,
    RuntimePersistence,
    SessionExecutionLease,
    Task,
)


class InputRows:
    """Rows of next-turn input."""

    error: type[ClaimExpiredError] = TurnInputClaimExpiredError
    table = "turn_input"
    completed = "completed_turn_input_claims"

    async def add(self, store: RuntimePersistence, name: str) -> str:
        """Enqueue a row of this name; give its id."""
        return (await store.enqueue_pending_turn_input(said(name, input_id=name))).input_id

    def ids(self, done: Any) -> tuple[str, ...]:
        """The ids that a completion names."""
        return tuple(done.input_ids)

    def naming(self, done: Any, *ids: str) -> Any:
        """The completion with these ids instead."""
        return msgspec.structs.replace(done, input_ids=ids)

    async def claim(self, store: RuntimePersistence, lease: SessionExecutionLease, limit: int = 10) -> Any:
        """Claim up to so many rows."""
        return await store.claim_next_turn_inputs("s", lease.fence(), max_inputs=limit)

    async def renew(self, store: RuntimePersistence, claim: Any) -> Any:
        """Verify a claim."""
        return await store.renew_turn_input_claim(claim)

    async def abandon(self, store: RuntimePersistence, claim: Any) -> None:
        """Give a claim back."""
        await store.abandon_turn_input_claim(claim)

    async def cancel(self, store: RuntimePersistence, name: str) -> bool:
        """Cancel a row; False: a live claim holds it."""
        outcome = await store.cancel_pending_turn_input("s", name)
        assert isinstance(outcome, Cancelled | AlreadyClaimed), f"unexpected outcome {outcome}"
        return isinstance(outcome, Cancelled)

    async def waiting(self, store: RuntimePersistence) -> list[str]:
        """The names of the rows that no live claim holds."""
        return texts(await store.list_pending_turn_inputs("s"))

    def names(self, claim: Any) -> list[str]:
        """The names of the rows of a claim."""
        return texts(claim.inputs)

    def settle(self, commit: RuntimeCommit, claim: Any) -> RuntimeCommit:
        """Complete a claim with a commit."""
        return commit.completing_turn_input_claim(claim)


class WorkRows:
    """Batches of joinable work."""

    error: type[ClaimExpiredError] = QueuedWorkClaimExpiredError
    table = "queued_work"
    completed = "completed_queue_claims"

    async def add(self, store: RuntimePersistence, name: str) -> str:
        """Enqueue a batch of this name; give its id."""
        return (await store.enqueue_queued_work(work(Task(name), merge=PayloadDefault()))).batch_id

    def ids(self, done: Any) -> tuple[str, ...]:
        """The ids that a completion names."""
        return tuple(done.batch_ids)

    def naming(self, done: Any, *ids: str) -> Any:
        """The completion with these ids instead."""
        return msgspec.structs.replace(done, batch_ids=ids)

    async def claim(self, store: RuntimePersistence, lease: SessionExecutionLease, limit: int = 10) -> Any:
        """Claim up to so many batches."""
        return await store.claim_ready_queued_work("s", lease.fence(), boundary="idle", max_batches=limit)

    async def renew(self, store: RuntimePersistence, claim: Any) -> Any:
        """Verify a claim."""
        return await store.renew_queued_work_claim(claim)

    async def abandon(self, store: RuntimePersistence, claim: Any) -> None:
        """Give a claim back."""
        await store.abandon_queued_work_claim(claim)

    async def cancel(self, store: RuntimePersistence, name: str) -> bool:
        """Cancel a batch; False: a live claim holds it."""
        (found,) = [batch for batch in await store.list_queued_work("s") if kinds([batch]) == [name]]
        return await store.cancel_queued_work_batch("s", found.batch_id) is not None

    async def waiting(self, store: RuntimePersistence) -> list[str]:
        """The names of the batches that no live claim holds."""
        return kinds(await store.list_pending_queued_work("s"))

    def names(self, claim: Any) -> list[str]:
        """The names of the batches of a claim."""
        return kinds(claim.batches)

    def settle(self, commit: RuntimeCommit, claim: Any) -> RuntimeCommit:
        """Complete a claim with a commit."""
        return commit.completing_queue_claim(claim)


Rows = InputRows | WorkRows
ROWS: Sequence[Rows] = (InputRows(), WorkRows())


class Held(NamedTuple):
    """A session with rows of one kind, the lane, and a claim of the first rows."""

    store: RuntimePersistence
    lease: SessionExecutionLease
    claim: Any


async def held(store: RuntimePersistence, lease: SessionExecutionLease, rows: Rows, names: str, limit: int) -> Held:
    """Enqueue rows of these one-letter names and claim the first of them."""
    for name in names:
        await rows.add(store, name)
    claim = await rows.claim(store, lease, limit)
    assert claim is not None
    return Held(store, lease, claim)
