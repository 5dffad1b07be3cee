"""What the reference model remembers: a row of input or work, and a session."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from fastness import model as m


class RefusedError(Exception):
    """The model's refusal: the name of the error that the store has to raise."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        super().__init__(kind)


@dataclass
class Row:
    """Input or work, from its admission to the vacuum of its evidence."""

    row_id: str
    seq: int
    draft: Any
    enqueued_ms: int
    state: m.TurnInputState = "deferred_next_turn"
    work_class: m.QueuedWorkClass = "turn_work"
    turn_id: str | None = None
    boundary: str | None = None
    admission_token: int = 0
    claim_id: str | None = None
    claim_token: int = 0
    lane_token: int = 0
    lease_token: str | None = None
    attempts: int = 0
    settled: Literal["completed", "cancelled"] | None = None
    settled_ms: int = 0


@dataclass
class Receipt:
    """A stamped commit: its hash, its result and its time."""

    turn_hash: str
    result: m.RuntimeCommitResult
    committed_ms: int


@dataclass
class Session:
    """All there is to know of one session. ``history`` has for each revision the blobs that its checkpoint needs."""

    session_id: str
    created_ms: int
    deleted: bool = False
    admission_seq: int = 0
    fencing_token: int = 0
    lease: m.SessionExecutionLease | None = None
    revision: int | None = None
    leaf: str | None = None
    config: m.PersistedSessionConfig = field(default_factory=m.PersistedSessionConfig)
    current_frame: str | None = None
    checkpoint: m.HydratedSessionCheckpoint | None = None
    checkpoint_ref: m.BlobRef | None = None
    nodes: list[m.SessionNodeRecord] = field(default_factory=list)
    tombstoned: list[str] = field(default_factory=list)
    frames: dict[str, m.AgentFrameRecord] = field(default_factory=dict)
    frame_refs: dict[str, list[str]] = field(default_factory=dict)
    usage: dict[tuple[str, str], m.TokenUsage] = field(default_factory=dict)
    receipts: dict[str, Receipt] = field(default_factory=dict)
    history: list[list[str]] = field(default_factory=list)
    inputs: list[Row] = field(default_factory=list)
    work: list[Row] = field(default_factory=list)
    attachments: dict[str, str] = field(default_factory=dict)
