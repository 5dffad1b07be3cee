"""The transcript graph in memory: a forest of nodes with a leaf, and the change that a commit makes to it.

Operations are pure and give new graphs. Walks are iterative: a conversation may be deeper than the interpreter's stack.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import TypeAlias

import msgspec

from fastness.errors import GraphInvalidError, NodeIdCollisionError
from fastness.model.base import Value
from fastness.model.transcript import EventPayload, Message, Protocol, ProtocolEvent, SessionNodeRecord


class MessageTreeEntry(Value, frozen=True):
    """A message in the tree of all branches; ``parent_node_id`` is the nearest ancestor that is a message."""

    node_id: str
    parent_node_id: str | None
    message: Message


class MessageTree(msgspec.Struct, frozen=True, dict=True):
    """All messages of all branches, parents before children, flat (a nested tree would exhaust the stack)."""

    entries: tuple[MessageTreeEntry, ...]

    @cached_property
    def _by_parent(self) -> dict[str | None, list[MessageTreeEntry]]:
        found: dict[str | None, list[MessageTreeEntry]] = {}
        for entry in self.entries:
            found.setdefault(entry.parent_node_id, []).append(entry)
        return found

    @property
    def roots(self) -> tuple[MessageTreeEntry, ...]:
        """The messages that begin a conversation."""
        return self.children(None)

    def children(self, node_id: str | None) -> tuple[MessageTreeEntry, ...]:
        """The messages that follow a message directly, in commit order."""
        return tuple(self._by_parent.get(node_id, ()))


class SessionGraph(msgspec.Struct, frozen=True, dict=True):
    """Nodes in commit order and the leaf that the session stands on (None: before the first node).

    ``behind_node_id`` names the node that the first one follows, where only the end of a path was loaded.
    """

    nodes: tuple[SessionNodeRecord, ...] = ()
    leaf_node_id: str | None = None
    behind_node_id: str | None = None

    @cached_property
    def _by_id(self) -> dict[str, SessionNodeRecord]:
        return {node.node_id: node for node in self.nodes}

    def node(self, node_id: str) -> SessionNodeRecord | None:
        """The node of that id, if the graph has it."""
        return self._by_id.get(node_id)

    def append(self, *nodes: SessionNodeRecord, session_id: str = "") -> SessionGraph:
        """Add nodes, parents first; the last one becomes the leaf.

        Raises ``NodeIdCollisionError`` and ``GraphInvalidError`` (dangling parent).
        """
        known = {*self._by_id, self.behind_node_id} - {None}
        for node in nodes:
            if node.node_id in known:
                raise NodeIdCollisionError(session_id, node.node_id)
            if node.parent_node_id is not None and node.parent_node_id not in known:
                raise dangling_parent(session_id, node)
            known.add(node.node_id)
        leaf = nodes[-1].node_id if nodes else self.leaf_node_id
        return SessionGraph(self.nodes + nodes, leaf, self.behind_node_id)

    def branch(self, node_id: str | None, *, session_id: str = "") -> SessionGraph:
        """Stand on another node, from where the next append grows. Raises ``GraphInvalidError`` for an unknown one."""
        if node_id not in (None, self.behind_node_id) and node_id not in self._by_id:
            raise dangling_leaf(session_id, node_id)
        return SessionGraph(self.nodes, node_id, self.behind_node_id)

    def active_path(self, leaf_node_id: str | None = None, *, session_id: str = "") -> tuple[SessionNodeRecord, ...]:
        """The ancestry of a leaf (default: the graph's), root first; ``GraphInvalidError`` where it is broken.

        Where only the end of a path was loaded, it is as much of it as is there.
        """
        at = self.leaf_node_id if leaf_node_id is None else leaf_node_id
        path: list[SessionNodeRecord] = []
        while at is not None and at != self.behind_node_id:
            node = self._by_id.get(at)
            if node is None:
                raise dangling_parent(session_id, path[-1]) if path else dangling_leaf(session_id, at)
            path.append(node)
            if len(path) > len(self.nodes):
                raise GraphInvalidError(session_id, "cycle", at, f"the ancestry of node {at!r} runs in a circle")
            at = node.parent_node_id
        path.reverse()
        return tuple(path)

    def active_messages(self, leaf_node_id: str | None = None) -> tuple[Message, ...]:
        """The messages of the active path, root first."""
        return messages_of(self.active_path(leaf_node_id))

    def message_tree(self) -> MessageTree:
        """All messages of all branches. Nodes that are no messages are seen through."""
        nearest: dict[str, str | None] = {}
        entries: list[MessageTreeEntry] = []
        for node in self.nodes:
            above = None if node.parent_node_id is None else nearest.get(node.parent_node_id)
            if node.message is None:
                nearest[node.node_id] = above
            else:
                nearest[node.node_id] = node.node_id
                entries.append(MessageTreeEntry(node.node_id, above, node.message))
        return MessageTree(tuple(entries))

    def leaves(self) -> tuple[str, ...]:
        """The ends of all branches, in commit order."""
        parents = {node.parent_node_id for node in self.nodes}
        return tuple(node.node_id for node in self.nodes if node.node_id not in parents)


def messages_of(nodes: Iterable[SessionNodeRecord]) -> tuple[Message, ...]:
    """The messages among the nodes, in their order."""
    return tuple(message for node in nodes if (message := node.message) is not None)


def events_of(nodes: Iterable[SessionNodeRecord]) -> tuple[ProtocolEvent, ...]:
    """The protocol events among the nodes, in their order."""
    return tuple(
        node.payload.event.event
        for node in nodes
        if isinstance(node.payload, EventPayload) and isinstance(node.payload.event, Protocol)
    )


def dangling_parent(session_id: str, node: SessionNodeRecord) -> GraphInvalidError:
    """The error for a node whose parent is not there."""
    detail = f"the parent {node.parent_node_id!r} of node {node.node_id!r} is not there; append parents first"
    return GraphInvalidError(session_id, "dangling_parent", node.node_id, detail)


def dangling_leaf(session_id: str, node_id: str) -> GraphInvalidError:
    """The error for a leaf that is not there."""
    return GraphInvalidError(
        session_id, "dangling_leaf", node_id, f"the leaf {node_id!r} is not there; name a live node or None"
    )


class Unchanged(Value, frozen=True, tag_field="type", tag="unchanged"):
    """No node is added; the leaf moves at most."""

    leaf_node_id: str | None


class Append(Value, frozen=True, tag_field="type", tag="append"):
    """Nodes are added, parents first; the leaf is any live node."""

    nodes: tuple[SessionNodeRecord, ...]
    leaf_node_id: str | None


class ReplaceFull(msgspec.Struct, frozen=True, tag_field="type", tag="replace_full"):
    """The whole graph is replaced; the ids of the replaced nodes may be used again."""

    graph: SessionGraph


GraphCommitDelta: TypeAlias = Unchanged | Append | ReplaceFull
