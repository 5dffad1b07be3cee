"""What a healthy session looks like, row against row: every difference is a finding, none is an error.

The facts are plain columns, so that a record that cannot be read is one finding among others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from fastness.model.reports import CheckFinding


class NodeFact(msgspec.Struct, frozen=True):
    """A stored node: its columns, whether its body and its checksum are sound, and the frame that it names."""

    seq: int
    node_id: str
    parent_seq: int | None
    tombstoned: bool
    sound: bool
    agent_frame_id: str | None


class HeadFact(msgspec.Struct, frozen=True):
    """The head's row."""

    revision: int
    leaf_node_id: str | None
    node_count: int
    next_seq: int
    agent_frame_id: str | None
    checkpoint_ref: str | None
    checkpoint: str | None


class LogFact(msgspec.Struct, frozen=True):
    """The newest row of the commit log, and how many rows there are."""

    count: int
    revision: int
    leaf_node_id: str | None
    checkpoint_ref: str | None


class LaneFact(msgspec.Struct, frozen=True):
    """The lane's row, and the database's time."""

    admission_seq: int
    fencing_token: int
    ready_ms: int | None
    backoff_ms: int
    expires_ms: int
    now_ms: int


class ClaimFact(msgspec.Struct, frozen=True):
    """A waiting or claimed row of input or work; ``settled`` says that evidence of its id or key is there as well."""

    kind: str
    row_id: str
    seq: int
    claim_id: str | None
    lane_token: int
    available_ms: int
    readable: bool
    settled: bool


class SessionFacts(msgspec.Struct, frozen=True):
    """All rows of one session, from one snapshot.

    ``needed`` are the blobs that the checkpoint of each holder (the head, a frame) needs, None where it cannot be read;
    ``held`` those on record as held by it; ``broken`` those that are missing or whose bytes are not what their name
    says. ``unreadable_attachments`` are ids whose reference in the manifest cannot be read, or is one to other content.
    ``lost_quarantined`` are kind and id of what is in quarantine without a reason, or of a reason without its row.
    """

    session_id: str
    meta_readable: bool
    lane: LaneFact | None
    head: HeadFact | None
    log: LogFact
    frames: frozenset[str]
    needed: Mapping[str, frozenset[str] | None]
    held: Mapping[str, frozenset[str]]
    broken: frozenset[str]
    rows: Sequence[ClaimFact]
    unreadable_attachments: Sequence[str] = ()
    lost_quarantined: Sequence[tuple[str, str]] = ()


def session_findings(facts: SessionFacts) -> Iterator[CheckFinding]:
    """Everything about a session but its nodes."""

    def finding(rule: str, detail: str) -> CheckFinding:
        return CheckFinding(rule, facts.session_id, detail)

    if not facts.meta_readable:
        yield finding("record", "the metadata or configuration cannot be read")
    if facts.lane is None:
        yield finding("lane", "the session has no lane")
    yield from _log_findings(facts)
    for ref in sorted(facts.broken):
        yield finding("blob", f"blob {ref} is missing or is not what its name says")
    for holder in sorted({*facts.needed, *facts.held}):
        needed, held = facts.needed.get(holder, frozenset()), facts.held.get(holder, frozenset())
        if needed is None:
            yield finding("blob", f"the checkpoint of {holder} cannot be read, or is not what its name says")
        elif needed != held:
            differ = ", ".join(sorted(needed ^ held))
            yield finding("refs", f"what the checkpoint of {holder} needs and what is held for it differ: {differ}")
    for row in facts.rows:
        yield from _row_findings(facts, row)
    yield from _dispatch_findings(facts)
    for attachment_id in facts.unreadable_attachments:
        yield finding("record", f"the reference of attachment {attachment_id!r} cannot be read, or names other content")


def _log_findings(facts: SessionFacts) -> Iterator[CheckFinding]:
    head, log = facts.head, facts.log
    if head is None:
        if log.count:
            yield CheckFinding("log", facts.session_id, f"there are {log.count} commits and no head")
        return
    if (log.count, log.revision) != (head.revision, head.revision):
        detail = f"the head is at revision {head.revision}, the log has {log.count} rows up to {log.revision}"
        yield CheckFinding("log", facts.session_id, detail)
    elif (log.leaf_node_id, log.checkpoint_ref) != (head.leaf_node_id, head.checkpoint_ref):
        yield CheckFinding(
            "log", facts.session_id, "the newest commit ends on another leaf or checkpoint than the head"
        )
    if head.agent_frame_id is not None and head.agent_frame_id not in facts.frames:
        yield CheckFinding("frames", facts.session_id, f"the head's frame {head.agent_frame_id!r} is missing")


def _row_findings(facts: SessionFacts, row: ClaimFact) -> Iterator[CheckFinding]:
    name = f"{row.kind} {row.row_id!r}"
    if not row.readable:
        yield CheckFinding("record", facts.session_id, f"{name} cannot be read")
    if row.settled:
        yield CheckFinding("claims", facts.session_id, f"{name} waits and is settled at once")
    if facts.lane is None:
        return
    if row.seq > facts.lane.admission_seq:
        yield CheckFinding("claims", facts.session_id, f"{name} has a place the lane has not given out yet")
    if row.claim_id is not None and row.lane_token > facts.lane.fencing_token:
        yield CheckFinding("claims", facts.session_id, f"{name} was granted under a token the lane has not drawn yet")


def _dispatch_findings(facts: SessionFacts) -> Iterator[CheckFinding]:
    """A session that the agenda misses is never run again, and nobody sees what is set aside without a reason."""
    for kind, row_id in facts.lost_quarantined:
        detail = f"{kind} {row_id!r} is set aside without its reason, or its reason without it"
        yield CheckFinding("quarantine", facts.session_id, detail)
    lane = facts.lane
    if lane is None or not facts.rows:
        return
    earliest = min(row.available_ms for row in facts.rows)
    if lane.ready_ms is None:
        yield CheckFinding("agenda", facts.session_id, "the session has something to do and is not on the agenda")
    elif lane.ready_ms > max(earliest, lane.backoff_ms, lane.expires_ms, lane.now_ms):
        yield CheckFinding("agenda", facts.session_id, "the session is on the agenda later than it has something to do")


class NodeAudit:
    """Goes through a session's nodes in the order of seq, some at a time. Remembers (id, live) by seq."""

    def __init__(self, session_id: str, frames: frozenset[str]) -> None:
        self._session_id = session_id
        self._frames = frames
        self._seen: dict[int, tuple[str, bool]] = {}
        self.live_count = 0

    def id_at(self, seq: int | None) -> str | None:
        """The id of the node at a place that was gone through, empty for no place at all; None where there is none."""
        return "" if seq is None else self._seen.get(seq, (None, False))[0]

    def findings(self, nodes: Iterable[NodeFact]) -> Iterator[CheckFinding]:
        """Check the next nodes, each before the next is asked for: it may be the parent of that."""
        for node in nodes:
            detail = self._fault(node)
            if detail is not None:
                yield CheckFinding("graph", self._session_id, f"node {node.node_id!r} {detail}")
            self._seen[node.seq] = (node.node_id, not node.tombstoned)
            self.live_count += not node.tombstoned

    def _fault(self, node: NodeFact) -> str | None:
        if not node.sound:
            return "is damaged"
        if node.agent_frame_id is not None and node.agent_frame_id not in self._frames:
            return f"names the frame {node.agent_frame_id!r}, which is missing"
        # A replaced graph takes the parents of tombstoned nodes away; those only hold their ids.
        return None if node.tombstoned else self._parent_fault(node)

    def _parent_fault(self, node: NodeFact) -> str | None:
        if node.parent_seq is None:
            return None
        parent_id, parent_live = self._seen.get(node.parent_seq, (None, False))
        if parent_id is None:
            return f"has no parent at place {node.parent_seq}"
        if not parent_live:
            return f"is live and hangs on the tombstoned node {parent_id!r}"
        return None

    def closing(self, head: HeadFact | None) -> Iterator[CheckFinding]:
        """Check what all nodes together must say."""
        live = {node_id for node_id, is_live in self._seen.values() if is_live}
        if head is None:
            if self._seen:
                yield CheckFinding("graph", self._session_id, f"there are {len(self._seen)} nodes and no head")
            return
        if head.node_count != self.live_count:
            detail = f"the head counts {head.node_count} nodes, {self.live_count} are there"
            yield CheckFinding("counts", self._session_id, detail)
        if head.leaf_node_id is not None and head.leaf_node_id not in live:
            yield CheckFinding("graph", self._session_id, f"the head's leaf {head.leaf_node_id!r} is not there")
        if max(self._seen, default=0) >= head.next_seq:
            yield CheckFinding("counts", self._session_id, "the next node's place is taken")


def database_findings(orphans: Mapping[str, int], broken_environments: Sequence[str]) -> Iterator[CheckFinding]:
    """What no session owns: rows whose session is gone, by table, and environments that are not what they should be."""
    for ref in broken_environments:
        yield CheckFinding("environment", None, f"environment {ref} is missing or is not what its name says")
    for table, count in orphans.items():
        if count:
            yield CheckFinding("orphans", None, f"table {table} has {count} rows of sessions that are gone")
