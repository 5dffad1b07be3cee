"""What a turn stands on: the settled state of its session, as much of it as a turn needs.

A process that has just committed a turn knows all of that; ``Warm`` keeps it, so that the next turn of the session need
not load what nobody else has changed. The revision that the lane's grant brings says whether that is so.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import msgspec

from fastness.model import (
    BlobRef,
    Message,
    PersistedSessionConfig,
    PersistedTurnState,
    RuntimeSessionState,
)
from fastness.model.base import sha256_hex
from fastness.model.graph import messages_of
from fastness.store import SessionStore


class Ground(msgspec.Struct, frozen=True):
    """A session between two turns. ``revision`` is None before its first commit; the refs are carried on unread."""

    revision: int | None = None
    leaf_node_id: str | None = None
    frame_id: str | None = None
    messages: tuple[Message, ...] = ()
    config: PersistedSessionConfig = PersistedSessionConfig()
    turn_state: PersistedTurnState = PersistedTurnState()
    state: bytes | None = None
    tool_state: BlobRef | None = None
    plugin_snapshot: BlobRef | None = None


def ground_of(loaded: RuntimeSessionState | None) -> Ground:
    """Give what a turn stands on, of a state that was loaded along its branch."""
    if loaded is None:
        return Ground()
    settled = loaded.settled
    frame_id = settled.current_agent_frame_id
    path = settled.graph.active_path()
    return Ground(
        loaded.observed_head_revision,
        settled.graph.leaf_node_id,
        frame_id,
        messages_of(node for node in path if node.agent_frame_id == frame_id),
        settled.config,
        settled.turn_state,
        settled.execution_state,
        carried(settled.tool_state),
        carried(settled.plugin_snapshot),
    )


def carried(content: bytes | None) -> BlobRef | None:
    """Name content that the head holds already: it is neither read nor written again."""
    return None if content is None else BlobRef(sha256_hex(content))


class WarmSession(NamedTuple):
    """A session as this process has left it: its handle, and what the next turn would stand on."""

    session_key: int
    store: SessionStore
    ground: Ground


_MOST_SESSIONS = 256
_MOST_MESSAGES = 2_000


class Warm:
    """The sessions that this process has worked on last, the most recent ones of them, and only short ones."""

    def __init__(self, most: int = _MOST_SESSIONS) -> None:
        self._most = most
        self._kept: OrderedDict[str, WarmSession] = OrderedDict()

    def take(self, session_id: str, session_key: int, revision: int | None) -> WarmSession | None:
        """Give a session if it still is as it was left; it is given once, its next turn puts it back."""
        kept = self._kept.pop(session_id, None)
        if kept is None or kept.session_key != session_key or kept.ground.revision != revision:
            return None
        return kept

    def put(self, session_id: str, session: WarmSession) -> None:
        """Keep a session that was settled just now."""
        if len(session.ground.messages) <= _MOST_MESSAGES:
            self._kept[session_id] = session
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)
