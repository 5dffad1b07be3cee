"""Laws of the transcript graph in memory."""

from __future__ import annotations

import pytest

from fastness.errors import GraphInvalidError, NodeIdCollisionError
from fastness.persistence import (
    EventPayload,
    Message,
    PluginPayload,
    Protocol,
    ProtocolEvent,
    SessionGraph,
    SessionNodeRecord,
    TextPart,
    message_node,
    raw_json,
)

NOW = "2026-01-01T00:00:00Z"


def said(node_id: str, parent: str | None) -> SessionNodeRecord:
    """A message whose text is its node's id."""
    return message_node(node_id, parent, NOW, Message(f"m-{node_id}", "user", (TextPart(node_id),)))


def noted(node_id: str, parent: str | None) -> SessionNodeRecord:
    """A node that is no message."""
    return SessionNodeRecord(node_id, parent, NOW, PluginPayload("note", raw_json({})))


def test_append_grows_the_leaf_and_leaves_the_old_graph_alone() -> None:
    """Appending gives a new graph that stands on the last node."""
    empty = SessionGraph()
    graph = empty.append(said("a", None), said("b", "a"))
    assert (empty.nodes, empty.leaf_node_id) == ((), None)
    assert ([node.node_id for node in graph.nodes], graph.leaf_node_id) == (["a", "b"], "b")
    assert graph.append() == graph


def test_append_refuses_a_taken_id() -> None:
    """An id is used once, also within one append."""
    graph = SessionGraph().append(said("a", None))
    with pytest.raises(NodeIdCollisionError) as taken:
        graph.append(said("b", "a"), said("b", "a"))
    assert taken.value.node_id == "b"


def test_append_refuses_a_parent_that_is_not_there() -> None:
    """Parents come first."""
    with pytest.raises(GraphInvalidError) as fault:
        SessionGraph().append(said("b", "a"), said("a", None))
    assert (fault.value.fault, fault.value.node_id) == ("dangling_parent", "b")


def test_a_branch_stands_on_any_node_and_shares_the_ancestry() -> None:
    """Branching moves the leaf; what is appended then shares the path up to there."""
    graph = SessionGraph().append(said("a", None), said("b", "a"), said("c", "b"))
    graph = graph.branch("a").append(said("d", "a"))
    assert [message.text for message in graph.active_messages()] == ["a", "d"]
    assert [message.text for message in graph.active_messages("c")] == ["a", "b", "c"]
    assert graph.leaves() == ("c", "d")
    with pytest.raises(GraphInvalidError) as fault:
        graph.branch("nowhere")
    assert fault.value.fault == "dangling_leaf"


def test_a_path_through_a_missing_node_or_in_a_circle_is_an_error() -> None:
    """A broken ancestry is never a shorter one."""
    broken = SessionGraph((said("b", "a"),), "b")
    circle = SessionGraph((said("a", "b"), said("b", "a")), "b")
    for graph, fault in ((broken, "dangling_parent"), (circle, "cycle")):
        with pytest.raises(GraphInvalidError) as found:
            graph.active_path()
        assert found.value.fault == fault
    with pytest.raises(GraphInvalidError) as found:
        broken.active_path("nowhere")
    assert found.value.fault == "dangling_leaf"


def test_the_message_tree_sees_through_what_is_no_message() -> None:
    """A message's parent in the tree is its nearest ancestor that is one; all branches and roots are there."""
    graph = SessionGraph().append(
        said("a", None), noted("n", "a"), said("b", "n"), said("c", "n"), noted("m", None), said("d", "m")
    )
    tree = graph.message_tree()
    assert [entry.node_id for entry in tree.roots] == ["a", "d"]
    assert [entry.node_id for entry in tree.children("a")] == ["b", "c"]
    assert tree.children("c") == ()


def test_a_conversation_may_be_deeper_than_the_stack() -> None:
    """Walks are iterative: 20,000 messages in a row are no problem."""
    nodes = [said("0", None), *(said(str(at), str(at - 1)) for at in range(1, 20_000))]
    graph = SessionGraph().append(*nodes)
    assert len(graph.active_path()) == len(graph.message_tree().entries) == 20_000


def test_the_end_of_a_path_grows_from_what_it_follows() -> None:
    """The node that it follows is known to be there, if nothing else is; its id is taken."""
    end = SessionGraph((), "a", "a")
    grown = end.append(said("b", "a"), said("c", "b"))
    assert [node.node_id for node in grown.active_path()] == ["b", "c"]
    back = grown.branch("a")
    assert (back.active_path(), back.leaf_node_id) == ((), "a")
    with pytest.raises(NodeIdCollisionError):
        end.append(said("a", None))
    with pytest.raises(GraphInvalidError):
        end.append(said("c", "b"))


def test_a_node_gives_its_message_only_if_it_carries_one() -> None:
    """Events and plugin nodes have no message."""
    event = SessionNodeRecord("e", None, NOW, EventPayload(Protocol(ProtocolEvent("plugin", raw_json(1)))))
    assert (event.message, noted("n", None).message) == (None, None)
    assert said("a", None).message == Message("m-a", "user", (TextPart("a"),))
