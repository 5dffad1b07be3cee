"""What a load may return: a graph that is whole, or an error (laws G2, G3)."""

from __future__ import annotations

from collections.abc import Sequence

from fastness.errors import GraphInvalidError
from fastness.model.graph import SessionGraph, dangling_leaf, dangling_parent
from fastness.model.transcript import SessionNodeRecord


def full_graph(
    session_id: str, nodes: Sequence[SessionNodeRecord], leaf_node_id: str | None, node_count: int
) -> SessionGraph:
    """Check that every live node is there, and the leaf among them. That each has its parent is seen as it is read."""
    ids = {node.node_id for node in nodes}
    if leaf_node_id is not None and leaf_node_id not in ids:
        raise dangling_leaf(session_id, leaf_node_id)
    if len(ids) != node_count or len(nodes) != node_count:
        detail = f"{len(nodes)} nodes are stored where the head counts {node_count}; run 'check', restore from a backup"
        raise GraphInvalidError(session_id, "node_count", None, detail)
    return SessionGraph(tuple(nodes), leaf_node_id)


def active_path(
    session_id: str, path: Sequence[SessionNodeRecord], leaf_node_id: str | None, behind_node_id: str | None = None
) -> SessionGraph:
    """Check that the nodes are the unbroken ancestry of the leaf, from the root or from behind a node on."""
    if leaf_node_id is None or (not path and leaf_node_id == behind_node_id):
        return SessionGraph((), leaf_node_id, behind_node_id)
    if not path or path[-1].node_id != leaf_node_id:
        raise dangling_leaf(session_id, leaf_node_id)
    above = behind_node_id
    for node in path:
        if node.parent_node_id != above:
            raise dangling_parent(session_id, node)
        above = node.node_id
    return SessionGraph(tuple(path), leaf_node_id, behind_node_id)
