"""The rules of the transcript graph (laws G1, G4, G5) over the nodes that are there already."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from fastness.errors import GraphInvalidError, NodeIdCollisionError
from fastness.model.graph import dangling_leaf, dangling_parent
from fastness.model.transcript import SessionNodeRecord


class KnownNode(msgspec.Struct, frozen=True, gc=False):
    """A node that the store has. A tombstoned one keeps its id taken and is otherwise not there."""

    seq: int
    tombstoned: bool


class PlacedNode(msgspec.Struct, frozen=True, gc=False):
    """A new node with its place: ``seq`` orders the nodes of a session, ``parent_seq`` is None for a root."""

    node_id: str
    seq: int
    parent_seq: int | None


def place(
    session_id: str,
    nodes: Sequence[SessionNodeRecord],
    leaf_node_id: str | None,
    known: Mapping[str, KnownNode],
    next_seq: int,
    *,
    stands_on: str | None,
    replaces: bool,
) -> list[PlacedNode]:
    """Give every new node its place, or say why the graph may not change so (laws G1, G4).

    ``known`` are the stored nodes among the ids that the change names, ``stands_on`` is the head's leaf. With
    ``replaces`` the live ones go away first, so that their ids are free again and nothing may hang on them. The leaf is
    None only where the session stands on None already: a commit that forgot its leaf must not move it to nowhere.
    """
    live = {} if replaces else {node_id: node.seq for node_id, node in known.items() if not node.tombstoned}
    taken = {node_id for node_id, node in known.items() if not replaces or node.tombstoned}
    placed: dict[str, PlacedNode] = {}
    for at, node in enumerate(nodes):
        if node.node_id in taken or node.node_id in placed:
            raise NodeIdCollisionError(session_id, node.node_id)
        parent_seq = None
        if node.parent_node_id is not None:
            above = placed.get(node.parent_node_id)
            parent_seq = above.seq if above is not None else live.get(node.parent_node_id)
            if parent_seq is None:
                raise _no_parent(session_id, node, nodes)
        placed[node.node_id] = PlacedNode(node.node_id, next_seq + at, parent_seq)
    if leaf_node_id is None and (placed or (stands_on is not None and not replaces)):
        raise GraphInvalidError(
            session_id, "dangling_leaf", None, "the leaf is None beside live nodes; name one of them"
        )
    if leaf_node_id is not None and leaf_node_id not in placed and leaf_node_id not in live:
        raise dangling_leaf(session_id, leaf_node_id)
    return list(placed.values())


def _no_parent(session_id: str, node: SessionNodeRecord, nodes: Sequence[SessionNodeRecord]) -> GraphInvalidError:
    parents = {other.node_id: other.parent_node_id for other in nodes}
    if node.parent_node_id not in parents:
        return dangling_parent(session_id, node)
    seen: set[str] = set()
    at: str | None = node.node_id
    while at is not None and at in parents and at not in seen:
        seen.add(at)
        at = parents[at]
    if at == node.node_id:
        return GraphInvalidError(session_id, "cycle", at, f"the ancestry of node {at!r} runs in a circle")
    detail = f"node {node.node_id!r} comes before its parent {node.parent_node_id!r}; append parents first"
    return GraphInvalidError(session_id, "order", node.node_id, detail)


class Tombstoning(NamedTuple):
    """What a call hides, and where the head's leaf goes if it goes with it."""

    seqs: tuple[int, ...]
    leaf_moves: bool
    leaf_seq: int | None


def tombstone(
    session_id: str, live: Iterable[tuple[int, int | None, str]], wanted: Iterable[str], leaf_node_id: str | None
) -> Tombstoning:
    """Decide what tombstoning some nodes hides (law G5).

    ``live`` are (seq, parent seq, node id) of every live node, in the order of seq. Unknown ids are ignored. A node
    whose live child is not in the same call is refused by name: a branch goes whole.
    """
    rows = list(live)
    ids = set(wanted)
    going = {seq for seq, _, node_id in rows if node_id in ids}
    for _, parent_seq, node_id in rows:
        if parent_seq in going and node_id not in ids:
            above = next(name for seq, _, name in rows if seq == parent_seq)
            detail = f"node {above!r} has the live descendant {node_id!r}; tombstone the branch as a whole"
            raise GraphInvalidError(session_id, "live_descendants", above, detail)
    parent_of = {seq: parent_seq for seq, parent_seq, _ in rows}
    at = next((seq for seq, _, node_id in rows if node_id == leaf_node_id), None)
    leaf_moves = at in going
    while at is not None and at in going:
        at = parent_of.get(at)
    return Tombstoning(tuple(sorted(going)), leaf_moves, at)
