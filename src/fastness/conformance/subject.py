"""What is put to the laws: how to open it, and what it lets the kit do.

The laws themselves ask for nothing but the public calls of a store. Some can only be shown with more: a clock that is
moved, a process that counts as dead, a look at the rows. A subject names the powers that it gives; a law that needs
another one is skipped, and says which.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastness.conformance.lab import Lab


class Power(Enum):
    """What a subject may let the kit do beside calling it. The value is the reason of a law that goes without."""

    REOPENING = "a second opening does not find what the first one wrote"
    """Opened again with the same lab, the factory finds all that was written before it was closed."""
    SHARED = "nothing else may open its database meanwhile"
    """Opened with the same lab while another factory is open, both work on one database, as two processes would."""
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


ALL_POWERS = frozenset(Power)
"""For an engine of this library, which runs its programs."""
