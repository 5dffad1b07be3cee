"""What is put to the laws: how to open it, and what it lets the kit do.

The laws themselves ask for nothing but the public calls of a store. Some can only be shown with more: a clock that is
moved, a process that counts as dead, a look at the rows. A subject names the powers that it gives; a law that needs
another one is skipped, and says which.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastness.conformance.lab import AttachmentLab, Lab
    from fastness.model import AttachmentStore


class Power(Enum):
    """What a subject may let the kit do beside calling it. The value is the reason of a law that goes without."""

    REOPENING = "a second opening does not find what the first one wrote"
    """Opened again with the same lab, it finds all that was written before it was closed."""
    SHARED = "nothing else may open its database meanwhile"
    """Opened with the same lab while it is open already, both work on one database or place, as two processes would."""
    CLOCK = "the kit cannot move its clock"
    """All its times come from ``lab.clock``."""
    DEATH = "the kit cannot declare a process dead"
    """It asks ``lab.is_dead`` whether a process is gone."""
    BATCHES = "the kit does not see its batches"
    """It calls ``lab.batch_hook`` before each batch, and with None before COMMIT. What that raises, it raises."""
    ROWS = "the kit cannot reach its rows"
    """``factory.engine`` runs programs over the tables of ``fastness.sql.schema``."""
    CHECK = "it does not verify itself"
    """``factory.check()`` goes through the database and reports what is wrong."""
    ENVIRONMENTS = "it keeps no environments"
    """``factory.process_execution_envs`` is the ``ProcessExecutionEnvStore`` of its database."""
    DISPATCH = "it dispatches no turns"
    """``factory.dispatch`` is the ``SessionDispatchStore`` of its database."""
    WORKERS = "it keeps no registry of workers"
    """``factory.workers`` is the ``WorkerRegistry`` of its database."""
    HISTORY = "it keeps no history"
    """``factory.history`` is the ``SessionHistoryStore`` of its database."""


@dataclass(frozen=True)
class Subject:
    """An engine or a wrapped store, as the kit sees it.

    ``open`` gives for a lab an async context manager around a ``SessionStoreFactory``; every test has a lab of its
    own, with an empty ``lab.directory`` and the clock, processes and hook that a subject may offer to the kit.
    ``around`` gives, if anything is to be made before the first opening and removed after the last, an async context
    manager for that: a schema on a server, say.
    """

    open: Callable[[Lab], AbstractAsyncContextManager[Any]]
    powers: frozenset[Power] = frozenset()
    around: Callable[[Lab], AbstractAsyncContextManager[object]] | None = None


@dataclass(frozen=True)
class AttachmentSubject:
    """A store of attachments, as the kit sees it.

    ``open`` and ``around`` are what they are for a ``Subject``, of an ``AttachmentStore`` and an ``AttachmentLab``; of
    the powers, ``REOPENING`` and ``SHARED`` concern it. ``damage`` is a coroutine function that puts other bytes where
    the store keeps some content, behind its back: it takes the lab, the id and those bytes.
    """

    open: Callable[[AttachmentLab], AbstractAsyncContextManager[AttachmentStore]]
    powers: frozenset[Power] = frozenset()
    around: Callable[[AttachmentLab], AbstractAsyncContextManager[object]] | None = None
    damage: Callable[[AttachmentLab, str, bytes], Awaitable[object]] | None = None


ALL_POWERS = frozenset(Power)
"""For an engine of this library, which runs its programs."""
