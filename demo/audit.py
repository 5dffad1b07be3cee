"""The audit at the end of the demo: every transcript against its source, every input, every token, every row.

* lost: a recorded message that did not come out equal in its place, an input that was not consumed, missing usage.
* duplicated: a message, a node or usage that is there and was never recorded.
* torn: a turn of which a part is there, or a fault that ``check`` found.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
from jobs import Branch, Job

from fastness.factory import EngineSessionStoreFactory
from fastness.persistence import (
    CheckReport,
    FullGraph,
    PersistedSessionRead,
    SessionGraph,
    SessionStoreCreateRequest,
    StoreError,
    TokenUsage,
)
from fastness.replay import exported_records
from fastness.store import SessionStore


class Findings(msgspec.Struct):
    """What the audit counted."""

    messages: int = 0
    lost: int = 0
    duplicated: int = 0
    torn: int = 0

    @property
    def clean(self) -> bool:
        """Whether there is nothing to complain about."""
        return self.lost == self.duplicated == self.torn == 0


async def audit(factory: EngineSessionStoreFactory, jobs: list[Job]) -> tuple[Findings, CheckReport]:
    """Compare a database with what was to be replayed into it."""
    found = Findings()
    for job in jobs:
        store = await factory.open_existing_store(SessionStoreCreateRequest(job.session_id))
        try:
            read = await store.load_session(FullGraph()) if store is not None else None
        except StoreError:
            # A graph with a hole in it is refused as a whole (law G3).
            found.torn += 1
            continue
        if store is None or read is None:
            found.lost += sum(len(branch.record.messages) for branch in job.branches)
            continue
        _compare_transcripts(job, read.graph, found)
        _compare_nodes(job, read.graph, found)
        _compare_usage(job, read, found)
        await _compare_inputs(job, store, found)
    report = await factory.check()
    found.torn += len(report.findings)
    return found, report


def _compare_transcripts(job: Job, graph: SessionGraph, found: Findings) -> None:
    exported = [_messages(record) for record in exported_records(graph)]
    found.duplicated += max(0, len(exported) - len(job.branches))
    for at, branch in enumerate(job.branches):
        source = [json.loads(bytes(message)) for message in branch.record.messages]
        stored = exported[at] if at < len(exported) else []
        found.messages += len(source)
        found.lost += sum(at >= len(stored) or stored[at] != message for at, message in enumerate(source))
        found.duplicated += max(0, len(stored) - len(source))


def _compare_nodes(job: Job, graph: SessionGraph, found: Findings) -> None:
    expected = {node_id for branch in job.branches for node_id in branch.replay.node_ids}
    stored = [node.node_id for node in graph.nodes]
    found.duplicated += len(stored) - len(expected.intersection(stored))
    turns = {turn.turn_id: turn for branch in job.branches for turn in branch.replay.turns}
    for turn in turns.values():
        present = sum(graph.node(node.record.node_id) is not None for node in turn.nodes)
        found.torn += 0 < present < len(turn.nodes)


def _compare_usage(job: Job, read: PersistedSessionRead, found: Findings) -> None:
    """Usage is added up by the commits: a turn that was settled twice, or not, shows in the sum."""
    once = {
        node.record.node_id: node.usage
        for branch in job.branches
        for turn in branch.replay.turns
        for node in turn.nodes
    }
    expected = sum((usage[1] for usage in once.values() if usage is not None), TokenUsage())
    charged = sum((entry.usage for entry in read.head.ledger), TokenUsage())
    counters = zip(msgspec.structs.astuple(expected), msgspec.structs.astuple(charged), strict=True)
    for wanted, counted in counters:
        found.lost += counted < wanted
        found.duplicated += counted > wanted


async def _compare_inputs(job: Job, store: SessionStore, found: Findings) -> None:
    """Submitting an input again gives the row that is there (law I1): it must be completed, and none may wait."""
    found.lost += len(await store.list_pending_turn_inputs(job.session_id))
    drafts = {draft.source_key: draft for branch in job.branches for turn in _turns(branch) for draft in turn}
    for draft in drafts.values():
        row = await store.enqueue_pending_turn_input(draft)
        found.lost += row.state != "completed"


def _turns(branch: Branch) -> list[tuple[Any, ...]]:
    return [turn.inputs for turn in branch.replay.turns]


def _messages(record: bytes) -> list[Any]:
    found = json.loads(record)
    if isinstance(found, list):
        return found
    return next(found[key] for key in ("traj", "messages", "conversation") if key in found)
