"""The final state of a database, as much of it as a check looks at: plain values, however they were read.

Whoever keeps sessions in another kind of store fills these, and has the same checks.
"""

from __future__ import annotations

from fastness.model.base import Value
from fastness.model.transcript import Role


class FinalCommit(Value, frozen=True):
    """A row of a commit log. ``turn_id`` is None where no turn did it, ``fencing_token`` where none is on record."""

    revision: int
    turn_id: str | None
    fencing_token: int | None
    kind: str = "turn"
    leaf_node_id: str | None = None


class FinalNode(Value, frozen=True):
    """A node of the transcript. ``role`` is None where it is no message.

    ``input_id`` is the input that a user's message came from. ``calls`` and ``results`` are the ids of the tool calls
    and tool results in it, None for one without an id.
    """

    node_id: str
    parent_node_id: str | None
    role: Role | None = None
    input_id: str | None = None
    text_hash: str | None = None
    calls: tuple[str | None, ...] = ()
    results: tuple[str | None, ...] = ()


class FinalInput(Value, frozen=True):
    """Input that waits."""

    input_id: str
    text_hash: str | None = None


class FinalSession(Value, frozen=True):
    """One session: its head, its commit log, all nodes in the order of their commits, and what is beside them.

    ``revision`` is the head's, 0 before the first commit. ``quarantined`` are ids of inputs; ``lane_holder`` is who
    holds the lane, None while it is free. Inputs that a holder has claimed need not be among ``pending``.
    """

    session_id: str
    revision: int = 0
    leaf_node_id: str | None = None
    commits: tuple[FinalCommit, ...] = ()
    nodes: tuple[FinalNode, ...] = ()
    pending: tuple[FinalInput, ...] = ()
    quarantined: tuple[str, ...] = ()
    lane_holder: str | None = None


class FinalState(Value, frozen=True):
    """All sessions that are looked at, each once."""

    sessions: tuple[FinalSession, ...] = ()
