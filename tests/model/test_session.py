"""Laws of the states and views that are built from a load."""

from __future__ import annotations

import pytest

from fastness.conformance.builders import turn
from fastness.persistence import (
    AgentFrameRecord,
    EventPayload,
    FullGraph,
    HydratedSessionCheckpoint,
    InMemorySessionStore,
    Message,
    PersistedSessionConfig,
    PersistedTurnState,
    Protocol,
    ProtocolEvent,
    RuntimeSessionState,
    SessionGraph,
    SessionNodeRecord,
    SessionReadView,
    TextPart,
    TokenLedgerEntry,
    TokenUsage,
    load_persisted_session_state,
    load_persisted_session_state_active_path,
    message_node,
    raw_json,
)

NOW = "2026-01-01T00:00:00Z"


async def compacted() -> InMemorySessionStore:
    """A session whose context was compacted: a frame with a message, a current one with a message and an event."""
    store = InMemorySessionStore("s")
    frames = (AgentFrameRecord("f1", NOW), AgentFrameRecord("f2", NOW, "compacted", "f1"))
    event = SessionNodeRecord(
        "c", "b", NOW, EventPayload(Protocol(ProtocolEvent("p", raw_json({"step": 1})))), agent_frame_id="f2"
    )
    nodes = (
        message_node("a", None, NOW, Message("m1", "user", (TextPart("old"),)), agent_frame_id="f1"),
        message_node("b", "a", NOW, Message("m2", "user", (TextPart("new"),)), agent_frame_id="f2"),
        event,
    )
    await turn(
        store,
        *nodes,
        agent_frames=frames,
        current_agent_frame_id="f2",
        config=PersistedSessionConfig("provider", "model-1"),
        checkpoint=HydratedSessionCheckpoint(PersistedTurnState(turn_index=7), tool_state=b"tools"),
        usage_deltas=(
            TokenLedgerEntry("turn", "model-1", TokenUsage(1, 2, 3, 4, 5)),
            TokenLedgerEntry("compaction", "model-1", TokenUsage(10, 20, 30, 40, 50)),
        ),
    )
    return store


async def test_a_view_shows_the_current_frame_of_the_active_path() -> None:
    """Messages and events are those of the current frame; the tree, the usage and the rest are whole."""
    store = await compacted()
    read = await store.load_session(FullGraph())
    assert read is not None
    view = SessionReadView.of(read)
    assert [message.text for message in view.messages] == ["new"]
    assert [event.plugin_id for event in view.events] == ["p"]
    assert [entry.message.text for entry in view.message_tree.entries] == ["old", "new"]
    assert (view.turn_index, view.usage) == (7, TokenUsage(11, 22, 33, 44, 55))
    assert view.config == PersistedSessionConfig("provider", "model-1")
    assert view.to_snapshot().tool_state == b"tools"
    await store.close()


async def test_a_loaded_state_is_what_a_turn_starts_from() -> None:
    """The state has the observed revision, and its snapshot none of what only a running turn knows."""
    store = await compacted()
    state = await load_persisted_session_state(store)
    path = await load_persisted_session_state_active_path(store, "a")
    assert isinstance(state, RuntimeSessionState)
    assert path is not None
    assert (state.session_id, state.observed_head_revision, state.replace_graph) == ("s", 1, False)
    assert [node.node_id for node in path.settled.graph.nodes] == ["a"]
    assert not {"observed_head_revision", "replace_graph", "pending_tool_state"} & set(
        state.to_snapshot().__struct_fields__
    )
    assert state.to_snapshot().current_agent_frame_id == "f2"
    await store.close()


async def test_a_session_without_a_commit_has_no_state() -> None:
    """There is nothing to load before the first commit."""
    store = InMemorySessionStore("s")
    assert await load_persisted_session_state(store) is None
    await store.close()


@pytest.mark.parametrize("leaf", ["a", None])
def test_graphs_compare_by_what_they_hold(leaf: str | None) -> None:
    """Two graphs with the same nodes and leaf are equal, whatever was asked of them before."""
    nodes = (message_node("a", None, NOW, Message("m", "user", ())),)
    one, other = SessionGraph(nodes, leaf), SessionGraph(nodes, leaf)
    one.active_path("a")
    assert one == other
