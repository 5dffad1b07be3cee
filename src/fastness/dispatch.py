"""Dispatch on any engine: what there is to do in a database, turns that begin and fail, interrupts, the quarantine.

As thin as the other stores: it checks what comes from outside, draws the random tokens and hands a program to the
engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastness.decide import limits
from fastness.engines.engine import Engine
from fastness.errors import InvalidInputError
from fastness.manifest import StoreOptions, random_token
from fastness.model import (
    Agenda,
    LeaseOwnerIdentity,
    LocalProcess,
    QuarantineKind,
    QuarantinePage,
    QueuedWorkClaim,
    SessionExecutionLease,
    SessionExecutionLeaseCompletion,
    SessionExecutionLeaseFence,
    TurnBeginning,
    TurnFailure,
    TurnInputClaim,
)
from fastness.ops import dispatch, lane, quarantine
from fastness.ops.dispatch import Drawn, Failed, Takeover, Wants
from fastness.ops.lane import Target

_MAX_ERROR_CHARS = 4_000


class EngineSessionDispatch:
    """What a worker needs of a database, beside its sessions; ``factory.dispatch`` gives it."""

    def __init__(self, engine: Engine, options: StoreOptions | None = None) -> None:
        self._engine = engine
        self._options = options or StoreOptions()

    async def now_ms(self) -> int:
        """Give the database's time, in milliseconds since the epoch: what ``available_at_ms`` is compared with."""
        return await self._engine.read(dispatch.read_clock)

    async def read_agenda(
        self, *, limit: int = 100, owner_id: str | None = None, saturated_labels: Sequence[str] = ()
    ) -> Agenda:
        """Say which sessions have something to do and a free lane, at most ``limit``, and which come first.

        A session of a greater priority comes first, among equals the one that has waited longest. Those with one of the
        ``saturated_labels`` are passed over. ``interrupts`` are those asked of the lanes that ``owner_id`` holds. It is
        a hint: by the time that somebody begins a turn, another may have.
        """
        limits.check_page_size(limit)
        limits.check_optional_id("owner_id", owner_id)
        labels = limits.check_ids("saturated_labels", saturated_labels)
        return await self._engine.read(lambda: dispatch.read_agenda(limit, owner_id, labels))

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
    ) -> TurnBeginning:
        """Claim a session's lane and, with it, the input or the work that leads its line: one transaction.

        Without anything to claim the lane is left alone, unless ``needs_something`` is false; without ``claims`` the
        lane is all that is claimed. Rows that were granted ``max_attempts`` times already are set aside first.
        ``label_limits`` say how many sessions with a label may have a turn running. ``observed_holder`` is taken over
        where its process is provably dead (law L6).
        """
        target = Target(limits.check_id("session_id", session_id))
        limits.check_owner(owner)
        limits.check_ttl(lease_ttl_ms)
        check_wants(max_inputs, max_batches, max_attempts)
        if needs_something and not claims:
            raise InvalidInputError("needs_something", "cannot be asked of a turn that claims nothing")
        bounds = _label_limits(label_limits or {})
        wants = Wants(max_inputs, max_batches, max_attempts, needs_something, claims, bounds)
        drawn = Drawn(random_token(), random_token())
        over = None if observed_holder is None else await self._takeover(target, observed_holder)
        return await self._engine.write(lambda: dispatch.begin(target, owner, lease_ttl_ms, wants, drawn, over))

    async def _takeover(self, target: Target, observed: SessionExecutionLeaseFence) -> Takeover:
        """Probe for death outside the transaction; inside, it counts only for the very process that was probed."""
        limits.check_fence(observed)
        holder = await self._engine.read(lambda: lane.observe(target))
        if holder is None or not isinstance(holder.owner.liveness, LocalProcess):
            return Takeover(observed, None)
        process = holder.owner.liveness
        return Takeover(observed, process if self._options.is_dead(process) else None)

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
    ) -> TurnFailure:
        """Give back what a turn has claimed, set aside what was granted ``max_attempts`` times, and release the lane.

        The session is not looked at again before ``delay_ms`` are over. Unless it ``counts``, the turn was no attempt:
        it was stopped for no fault of its own. Raises ``LeaseExpiredError`` where the lease is not live any more; its
        rows are free then, and their attempts are counted all the same.
        """
        limits.check_completion(completion)
        limits.check_count("delay_ms", delay_ms)
        if max_attempts is not None:
            limits.check_positive("max_attempts", max_attempts)
        if not isinstance(error, str):
            raise InvalidInputError("error", "must be a text")
        for claim in input_claims:
            limits.check_input_claim(claim)
        for batch in work_claims:
            limits.check_work_claim(batch)
        failed = Failed(
            tuple(claim.claim_id for claim in input_claims),
            tuple(claim.claim_id for claim in work_claims),
            _printable(error),
            delay_ms,
            max_attempts,
            counts,
        )
        target = Target(completion.session_id)
        return await self._engine.write(lambda: dispatch.fail(target, completion, failed))

    async def request_interrupt(
        self, session_id: str, *, reason: str | None = None, fencing_token: int | None = None
    ) -> SessionExecutionLease | None:
        """Ask the turn that runs to end; its holder sees it with the next renewal, or when it reads its agenda.

        With ``fencing_token`` only the turn under that grant is meant. Gives the lease of the turn that was asked, None
        where nobody was.
        """
        target = Target(limits.check_id("session_id", session_id))
        if reason is not None:
            limits.check_text("reason", reason)
            reason = reason[:_MAX_ERROR_CHARS]
        if fencing_token is not None:
            limits.check_positive("fencing_token", fencing_token)
        return await self._engine.write(lambda: dispatch.ask_interrupt(target, reason, fencing_token))

    async def list_quarantine(
        self, *, session_id: str | None = None, limit: int = 100, cursor: str | None = None
    ) -> QuarantinePage:
        """List what was set aside, a page at a time: oldest first, or in one session by kind and id."""
        limits.check_optional_id("session_id", session_id)
        limits.check_page_size(limit)
        try:
            behind = None if cursor is None else quarantine.read_cursor(cursor)
        except (ValueError, TypeError) as error:
            raise InvalidInputError("cursor", "is not one that a page has given") from error
        return await self._engine.read(lambda: quarantine.list_page(session_id, behind, limit))

    async def retry_quarantined(self, session_id: str, kind: QuarantineKind, row_id: str) -> bool:
        """Let a row be tried again, behind everything that waits by now. False: it is not in quarantine."""
        target = _quarantined(session_id, kind, row_id)
        return await self._engine.write(lambda: quarantine.retry(target, kind, row_id))

    async def discard_quarantined(self, session_id: str, kind: QuarantineKind, row_id: str) -> bool:
        """Cancel a row for good. False: it is not in quarantine."""
        target = _quarantined(session_id, kind, row_id)
        return await self._engine.write(lambda: quarantine.discard(target, kind, row_id))


def check_wants(max_inputs: int, max_batches: int, max_attempts: int | None) -> None:
    """Take the bounds of what a turn begins with. Raises ``InvalidInputError``."""
    limits.check_positive("max_inputs", max_inputs)
    limits.check_positive("max_batches", max_batches)
    if max_attempts is not None:
        limits.check_positive("max_attempts", max_attempts)


def _quarantined(session_id: str, kind: QuarantineKind, row_id: str) -> Target:
    limits.check_choice("kind", kind, ("input", "work"))
    limits.check_id("row_id", row_id)
    return Target(limits.check_id("session_id", session_id))


def _label_limits(given: Mapping[str, int]) -> dict[str, int]:
    for label, bound in given.items():
        limits.check_id("label_limits", label)
        limits.check_positive("label_limits", bound)
    return dict(given)


def _printable(error: str) -> str:
    """Give as much of an error's text as is kept, in a form that every database takes."""
    told = error.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
    return told if len(told) <= _MAX_ERROR_CHARS else f"{told[:_MAX_ERROR_CHARS]}…"
