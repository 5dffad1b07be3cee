"""The audit at the end of the demo: every record against its source, every turn with all that belongs to it.

* lost: a recorded message or field that did not come out equal in its place, an input that was not consumed, usage
  that is missing.
* duplicated: a message, a node, a commit, a session or usage that is there and was never recorded.
* torn: a turn of which a part is there and a part is not (its nodes, its receipt, its consumed input), a head, a
  checkpoint or a ledger that is not what the turns that are there make, or a fault that ``check`` found.

``check`` speaks first, before anything else touches the database. The sources are read by Python's own JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
from jobs import Job

from fastness.factory import EngineSessionStoreFactory
from fastness.persistence import (
    CheckReport,
    FullGraph,
    PersistedSessionRead,
    SessionGraph,
    SessionStoreCreateRequest,
    StoreError,
    TokenUsage,
    snapshot_of,
)
from fastness.replay import PlannedTurn, exported_records
from fastness.sql.program import Program, Read, Statement
from fastness.store import SessionStore

RECEIPTS = """
    select c.turn_id from commit_log c join session s on s.sid = c.sid
    where s.session_id = $1 and c.turn_hash is not null"""


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


async def audit(
    factory: EngineSessionStoreFactory, jobs: list[Job], sources: Sequence[Any]
) -> tuple[Findings, CheckReport]:
    """Compare a database with what was to be replayed into it, and that with the records it was taken from."""
    report = await factory.check()
    found = Findings(torn=len(report.findings))
    await _compare_totals(factory, jobs, report, found)
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
        _compare_records(job, read.graph, sources, found)
        settled = await _compare_turns(factory, job, read.graph, found)
        _compare_head(job, settled, read, found)
        _compare_usage(job.turns, read, found)
        await _compare_inputs(job, settled, store, found)
    return found, report


async def _compare_totals(
    factory: EngineSessionStoreFactory, jobs: list[Job], report: CheckReport, found: Findings
) -> None:
    """Nothing is there but what was to be: what is missing is for the sessions to say."""
    stored = {session_id async for session_id in factory.session_ids()}
    found.duplicated += len(stored - {job.session_id for job in jobs})
    found.duplicated += max(0, report.node_count - sum(len(_nodes_of(job.turns)) for job in jobs))
    found.duplicated += max(0, report.commit_count - sum(len(job.turns) for job in jobs))


def _compare_records(job: Job, graph: SessionGraph, sources: Sequence[Any], found: Findings) -> None:
    """Compare whole records, as text: numbers of another kind and fields in another order are differences as well."""
    exported = [json.loads(record) for record in exported_records(graph)]
    found.duplicated += max(0, len(exported) - len(job.branches))
    for at, branch in enumerate(job.branches):
        source = sources[branch.record.index]
        wanted = _messages(source)
        stored = _messages(exported[at]) if at < len(exported) else []
        found.messages += len(wanted)
        lost = sum(at >= len(stored) or not _same(stored[at], message) for at, message in enumerate(wanted))
        found.duplicated += max(0, len(stored) - len(wanted))
        found.lost += lost
        # Where every message is there, the fields beside them may still be wrong.
        found.lost += not lost and (at >= len(exported) or not _same(exported[at], source))


async def _compare_turns(
    factory: EngineSessionStoreFactory, job: Job, graph: SessionGraph, found: Findings
) -> list[PlannedTurn]:
    """A turn is there with all its nodes and its receipt, or not at all. Gives those that are there, in order."""

    def program() -> Program[set[str]]:
        (rows,) = yield Read(Statement(RECEIPTS, (job.session_id,)))
        return {turn_id for (turn_id,) in rows}

    receipts = await factory.engine.read(program)
    settled: list[PlannedTurn] = []
    own: set[str] = set()
    for turn in job.turns:
        # Nodes that an earlier turn brought along are there whether this turn is or not.
        new = [node.record.node_id for node in turn.nodes if node.record.node_id not in own]
        own.update(new)
        present = sum(graph.node(node_id) is not None for node_id in new)
        is_there = present > 0 or turn.turn_id in receipts
        if is_there:
            found.torn += present < len(new) or turn.turn_id not in receipts
            settled.append(turn)
    return settled


def _compare_head(job: Job, settled: list[PlannedTurn], read: PersistedSessionRead, found: Findings) -> None:
    """The head, its checkpoint and the ledger are written with each turn: they must be those of the last one."""
    meta, state = read.head.meta, snapshot_of(read).turn_state
    stands = (meta.revision, meta.leaf_node_id, state.turn_index, state.token_usage)
    last = settled[-1] if settled else None
    made = (0, None, 0, TokenUsage()) if last is None else (len(settled), last.leaf_node_id, last.index, last.usage)
    found.torn += stands != made
    found.torn += sum((entry.usage for entry in read.head.ledger), TokenUsage()) != _usage_of(settled)
    extra = {node.node_id for node in read.graph.nodes} - set(_nodes_of(job.turns))
    found.duplicated += len(extra)


def _compare_usage(turns: list[PlannedTurn], read: PersistedSessionRead, found: Findings) -> None:
    """Usage is added up by the commits: a turn that was settled twice, or not, shows in the sum."""
    charged = sum((entry.usage for entry in read.head.ledger), TokenUsage())
    counters = zip(msgspec.structs.astuple(_usage_of(turns)), msgspec.structs.astuple(charged), strict=True)
    for wanted, counted in counters:
        found.lost += counted < wanted
        found.duplicated += counted > wanted


async def _compare_inputs(job: Job, settled: list[PlannedTurn], store: SessionStore, found: Findings) -> None:
    """Submitting an input again gives the row that is there (law I1): it must be completed, and none may wait."""
    found.lost += len(await store.list_pending_turn_inputs(job.session_id))
    there = set(_nodes_of(settled))
    drafts = {draft.source_key: draft for turn in job.turns for draft in turn.inputs}
    for draft in drafts.values():
        row = await store.enqueue_pending_turn_input(draft)
        consumed = row.state == "completed"
        found.lost += not consumed
        found.torn += consumed != (draft.source_key in there)


def _nodes_of(turns: list[PlannedTurn]) -> dict[str, TokenUsage]:
    """The nodes of these turns by id, those that turns share once, and the usage of each."""
    return {
        node.record.node_id: TokenUsage() if node.usage is None else node.usage[1]
        for turn in turns
        for node in turn.nodes
    }


def _usage_of(turns: list[PlannedTurn]) -> TokenUsage:
    return sum(_nodes_of(turns).values(), TokenUsage())


def _same(one: Any, other: Any) -> bool:
    return json.dumps(one) == json.dumps(other)


def _messages(record: Any) -> list[Any]:
    if isinstance(record, list):
        return record
    return next((record[key] for key in ("traj", "messages", "conversation") if key in record), [])
