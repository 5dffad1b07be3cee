"""Durable sessions for AI agents: every turn lands exactly once.

What applications call stands here; engines, stores and the values of the contract in ``fastness.persistence``. Names
are imported when they are first asked for, so that what needs one part does not pay for the others.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastness.errors import StoreError, TurnInterruptedError
    from fastness.model import (
        AttachmentItem,
        LeaseTimings,
        Message,
        ProtocolEvent,
        SessionCommand,
        SessionFilter,
        SessionReadView,
        StructuredItem,
        Task,
        TextItem,
        TokenUsage,
        TurnInput,
    )
    from fastness.runtime.database import Database, connect
    from fastness.runtime.retry import RetryPolicy
    from fastness.runtime.turn import Turn
    from fastness.runtime.worker import Worker
    from fastness.telemetry import TurnContextFilter

_HOMES = {
    "fastness.errors": ("StoreError", "TurnInterruptedError"),
    "fastness.model": (
        "AttachmentItem",
        "LeaseTimings",
        "Message",
        "ProtocolEvent",
        "SessionCommand",
        "SessionFilter",
        "SessionReadView",
        "StructuredItem",
        "Task",
        "TextItem",
        "TokenUsage",
        "TurnInput",
    ),
    "fastness.runtime.database": ("Database", "connect"),
    "fastness.runtime.retry": ("RetryPolicy",),
    "fastness.runtime.turn": ("Turn",),
    "fastness.runtime.worker": ("Worker",),
    "fastness.telemetry": ("TurnContextFilter",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AttachmentItem",
    "Database",
    "LeaseTimings",
    "Message",
    "ProtocolEvent",
    "RetryPolicy",
    "SessionCommand",
    "SessionFilter",
    "SessionReadView",
    "StoreError",
    "StructuredItem",
    "Task",
    "TextItem",
    "TokenUsage",
    "Turn",
    "TurnContextFilter",
    "TurnInput",
    "TurnInterruptedError",
    "Worker",
    "connect",
]


def __getattr__(name: str) -> Any:
    if name == "sync":
        return import_module("fastness.sync")
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
