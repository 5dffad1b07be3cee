"""The lane of a session: who holds it, under which lease, and how a holder proves it."""

from __future__ import annotations

from datetime import timedelta
from typing import TypeAlias

import msgspec

from fastness.errors import InvalidInputError
from fastness.model.base import Value


class LocalProcess(Value, frozen=True, tag_field="type", tag="local_process"):
    """A process that others of the same host can probe.

    ``host_id`` includes the pid namespace, since containers share a boot id; ``process_start`` tells a pid from its
    reuse.
    """

    host_id: str
    boot_id: str
    pid: int
    process_start: str


class Opaque(Value, frozen=True, tag_field="type", tag="opaque"):
    """A holder whose death nobody can prove: its lease has to expire."""


LeaseOwnerLiveness: TypeAlias = LocalProcess | Opaque


class LeaseOwnerIdentity(Value, frozen=True):
    """One holder of a lane. ``incarnation_id`` is minted for each turn or drain, never once per process."""

    owner_id: str
    incarnation_id: str
    liveness: LeaseOwnerLiveness = Opaque()


class SessionExecutionLeaseFence(Value, frozen=True):
    """What a holder shows to prove that it still holds the lane."""

    session_id: str
    owner: LeaseOwnerIdentity
    lease_token: str
    fencing_token: int


class SessionExecutionLeaseCompletion(Value, frozen=True):
    """What a holder shows to give the lane back."""

    session_id: str
    owner: LeaseOwnerIdentity
    lease_token: str
    fencing_token: int


class InterruptRequest(Value, frozen=True):
    """Somebody wants the turn that runs under a lease to end. ``reason`` is for people and for the handler."""

    reason: str | None = None
    requested_at_epoch_ms: int = 0


class SessionExecutionLease(Value, frozen=True):
    """The lane, granted. Times are milliseconds since the epoch of the database's clock.

    ``interrupt`` is what was asked of its holder, as it was seen when the lease was renewed or observed last.
    """

    session_id: str
    owner: LeaseOwnerIdentity
    lease_token: str
    fencing_token: int
    claimed_at_epoch_ms: int
    expires_at_epoch_ms: int
    interrupt: InterruptRequest | None = None

    def fence(self) -> SessionExecutionLeaseFence:
        """Give the proof of holding this lease."""
        return SessionExecutionLeaseFence(self.session_id, self.owner, self.lease_token, self.fencing_token)

    def completion(self) -> SessionExecutionLeaseCompletion:
        """Give what releases this lease and no other."""
        return SessionExecutionLeaseCompletion(self.session_id, self.owner, self.lease_token, self.fencing_token)


class Acquired(Value, frozen=True, tag_field="type", tag="acquired"):
    """The lane is the caller's."""

    lease: SessionExecutionLease


class Busy(Value, frozen=True, tag_field="type", tag="busy"):
    """The lane is somebody else's; ``holder`` is the lease that stands in the way."""

    holder: SessionExecutionLease


SessionExecutionLeaseClaimOutcome: TypeAlias = Acquired | Busy


class LeaseTimings(msgspec.Struct, frozen=True):
    """How long a lease lives and how often its holder renews it. A ttl under three intervals is refused."""

    ttl: timedelta = timedelta(seconds=30)
    renew_interval: timedelta = timedelta(seconds=10)

    def __post_init__(self) -> None:
        if not isinstance(self.ttl, timedelta) or not isinstance(self.renew_interval, timedelta):
            raise InvalidInputError("lease timings", "must be timedeltas")
        if self.renew_interval <= timedelta(0):
            raise InvalidInputError("renew_interval", "must be positive")
        if self.ttl < 3 * self.renew_interval:
            raise InvalidInputError("ttl", f"of {self.ttl} must be at least three times {self.renew_interval}")

    @property
    def ttl_ms(self) -> int:
        """The ttl in milliseconds, as the store takes it."""
        return self.ttl // timedelta(milliseconds=1)
