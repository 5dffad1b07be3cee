"""The laws of the transcript: a tree, no tool call without its result, and answers behind what they answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from fastness.testing.events import Committed
from fastness.testing.final import FinalNode, FinalSession
from fastness.testing.history import SessionHistory
from fastness.testing.report import Finding
from fastness.testing.turns import agrees

_Call: TypeAlias = tuple[str, str | None]
"""The node and the id of a tool call or of a result."""


def check_transcript(history: SessionHistory) -> Iterator[Finding]:
    """Find every fault of the graph, of its tool calls and of the order inside of turns."""
    yield from _check_chain(history.session)
    yield from _check_calls(history.session)
    yield from _check_answers(history)


def _check_chain(session: FinalSession) -> Iterator[Finding]:
    seen: set[str] = set()
    for node in session.nodes:
        if node.node_id in seen:
            yield Finding("broken_chain", session.session_id, f"node {node.node_id!r} is there twice")
        if node.parent_node_id is not None and node.parent_node_id not in seen:
            detail = f"node {node.node_id!r} hangs on {node.parent_node_id!r}, which is not there before it"
            yield Finding("broken_chain", session.session_id, detail)
        seen.add(node.node_id)
    if session.leaf_node_id is not None and session.leaf_node_id not in seen:
        detail = f"the session stands on {session.leaf_node_id!r}, which is not there"
        yield Finding("broken_chain", session.session_id, detail)


def _path(nodes: Mapping[str, FinalNode], leaf_node_id: str | None) -> Iterator[FinalNode]:
    """Walk from a leaf to its root, as far as that goes."""
    at = None if leaf_node_id is None else nodes.get(leaf_node_id)
    for _ in nodes:  # a graph that is damaged may run in a circle
        if at is None:
            return
        yield at
        at = None if at.parent_node_id is None else nodes.get(at.parent_node_id)


def _check_calls(session: FinalSession) -> Iterator[Finding]:
    nodes = {node.node_id: node for node in session.nodes}
    active = list(_path(nodes, session.leaf_node_id))
    calls, results = _unmatched(nodes, list(nodes.values()))
    cut_off, _ = _unmatched(nodes, active)  # what a switch of branch has left without its result
    for node_id, call_id in dict.fromkeys((*calls, *cut_off)):
        yield Finding("orphan_call", session.session_id, f"call {call_id!r} in node {node_id!r} has no result")
    for node_id, call_id in results:
        yield Finding("orphan_result", session.session_id, f"result {call_id!r} in node {node_id!r} has no call")


def _unmatched(nodes: Mapping[str, FinalNode], among: Sequence[FinalNode]) -> tuple[list[_Call], list[_Call]]:
    """Give each result to the nearest call of its id above it that has none yet; give what is left of both."""
    answered: Counter[_Call] = Counter()
    results: list[_Call] = []
    for node in among:
        for at, call_id in enumerate(node.results):
            asked = _asked_by(nodes, node, call_id, node.results[:at].count(call_id))
            if asked is None:
                results.append((node.node_id, call_id))
            else:
                answered[asked, call_id] += 1
    calls = [
        (node.node_id, call_id)
        for node in among
        for call_id, times in Counter(node.calls).items()
        if answered[node.node_id, call_id] < times
    ]
    return calls, results


def _asked_by(nodes: Mapping[str, FinalNode], node: FinalNode, call_id: str | None, before: int) -> str | None:
    """Find the node whose call a result answers. Providers use ids again: what was answered on the way is passed by."""
    for above in _path(nodes, node.node_id):
        before += 0 if above is node else above.results.count(call_id)
        calls = above.calls.count(call_id)
        if calls > before:
            return above.node_id
        before -= calls
    return None


def _check_answers(history: SessionHistory) -> Iterator[Finding]:
    added = _added(history.session)
    logged = {(commit.revision, commit.turn_id): commit for commit in history.session.commits}
    told: dict[tuple[int, str], Committed] = {}
    for event in history.committed:
        commit = logged.get((event.revision, event.turn_id))
        if commit is not None and agrees(event, commit):
            told.setdefault((event.revision, event.turn_id), event)
    for (revision, _), event in sorted(told.items()):
        yield from _check_turn(event, added[revision])


def _check_turn(event: Committed, nodes: Sequence[FinalNode]) -> Iterator[Finding]:
    positions = {node.input_id: at for at, node in enumerate(nodes) if node.input_id is not None}
    for input_id in event.input_ids:
        if input_id not in positions:
            detail = f"turn {event.turn_id!r} settled input {input_id!r}, and did not add it"
            yield Finding("misplaced_input", event.session_id, detail)
    last = max((positions[input_id] for input_id in event.input_ids if input_id in positions), default=None)
    if last is not None and all(node.role != "assistant" for node in nodes[last:]):
        detail = f"turn {event.turn_id!r} gives no answer behind input {nodes[last].input_id!r}"
        yield Finding("unanswered", event.session_id, detail)


def _added(session: FinalSession) -> dict[int, list[FinalNode]]:
    """Give the nodes that each revision brought to the branch it stood on, root first."""
    nodes = {node.node_id: node for node in session.nodes}
    known: set[str] = set()
    added: dict[int, list[FinalNode]] = {}
    for commit in sorted(session.commits, key=lambda commit: commit.revision):
        fresh: list[FinalNode] = []
        for node in _path(nodes, commit.leaf_node_id):
            if node.node_id in known:
                break
            fresh.append(node)
        known.update(node.node_id for node in fresh)
        added.setdefault(commit.revision, []).extend(reversed(fresh))
    return added
