"""What a turn stands on: the settled state of its session, as much of it as a turn needs.

A process that has just committed a turn knows all of that; ``Warm`` keeps it, so that the next turn of the session need
not load what it has already. The revision that the lane's grant brings says whether that is all; where somebody else
has committed since, only what came behind it is loaded.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import msgspec

from fastness.model import (
    ActivePath,
    BlobRef,
    Message,
    PersistedSessionConfig,
    PersistedSessionRead,
    PersistedTurnState,
    RuntimeSessionState,
)
from fastness.model.base import sha256_hex
from fastness.model.graph import messages_of
from fastness.model.session import runtime_state_of
from fastness.state import load_persisted_session_state_active_path
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


async def load_ground(store: SessionStore, at_node_id: str | None = None, kept: Ground | None = None) -> Ground:
    """Load what a turn stands on, by default the session's leaf. Of what is ``kept`` nothing is loaded again.

    Raises what ``load_session`` raises.
    """
    if kept is not None and kept.revision is not None and at_node_id is None:
        read = await store.load_session(ActivePath(after_revision=kept.revision))
        grown = None if read is None else _grown(kept, read)
        if grown is not None:
            return grown
    return ground_of(await load_persisted_session_state_active_path(store, at_node_id))


def _grown(kept: Ground, read: PersistedSessionRead) -> Ground | None:
    """Give what is kept with what came behind it; None where that is not all there is.

    A branch that does not lead over what is kept was read whole. A frame that has changed may show nodes again that the
    kept one does not.
    """
    behind = read.graph.behind_node_id
    if behind is None:
        return ground_of(runtime_state_of(read))
    if behind != kept.leaf_node_id or read.head.meta.current_agent_frame_id != kept.frame_id:
        return None
    grown = ground_of(runtime_state_of(read))
    return msgspec.structs.replace(grown, messages=(*kept.messages, *grown.messages))


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

    def take(self, session_id: str, session_key: int) -> WarmSession | None:
        """Give a session as it was left, if it still is that one; it is given once, its next turn puts it back."""
        kept = self._kept.pop(session_id, None)
        return kept if kept is not None and kept.session_key == session_key else None

    def put(self, session_id: str, session: WarmSession) -> None:
        """Keep a session that was settled just now."""
        if len(session.ground.messages) <= _MOST_MESSAGES:
            self._kept[session_id] = session
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)
