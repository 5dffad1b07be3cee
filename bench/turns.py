"""The turn that is measured: four messages, a checkpoint whose tool state changed, usage, one input consumed.

``Turns`` prepares sessions so that nothing but the commits is left to do: the lane is held, each turn's input is
enqueued and claimed, and its values are built, as they are for the script it is held against. Stamping, checking,
encoding and hashing are the library's work and are measured.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from fastness.persistence import (
    Acquired,
    Append,
    EngineSessionStoreFactory,
    HydratedSessionCheckpoint,
    Message,
    MessagePart,
    NextTurn,
    PendingTurnInputDraft,
    PersistedTurnState,
    Role,
    RuntimeCommit,
    SessionExecutionLease,
    SessionNodeRecord,
    SessionStore,
    SessionStoreCreateRequest,
    TextPart,
    TokenLedgerEntry,
    TokenUsage,
    ToolCallPart,
    ToolCallResponsePart,
    TurnInput,
    TurnInputClaim,
    message_node,
    mint_owner,
    raw_json,
)

HOUR_MS = 3_600_000
_USER = "I would like to change my flight on the fourteenth to the evening, if that is possible at all. " * 2
_ANSWER = "There are two flights that evening. The one at 18:40 has seats in your class, without a change fee. " * 4
USAGE = TokenLedgerEntry("turn", "model-1", TokenUsage(1200, 150, 900, 0, 30))
"""What every turn says it used."""
_TOOL_STATE = b"open reservations and what was said about them, " * 20


@dataclass
class Turns:
    """A session with its lane held, and the commits of its turns built but not stamped."""

    store: SessionStore
    lease: SessionExecutionLease
    waiting: deque[RuntimeCommit]
    revision: int | None = None
    leaf: str | None = None
    count: int = 0

    @classmethod
    async def prepare(cls, factory: EngineSessionStoreFactory, session_id: str, turns: int, nodes: int = 0) -> Turns:
        """Make a session that has so many nodes already, claim the input of all its turns, and build their commits."""
        store = await factory.create_store(SessionStoreCreateRequest(session_id))
        for at in range(turns):
            await store.enqueue_pending_turn_input(
                PendingTurnInputDraft(session_id, NextTurn(), TurnInput.of_text(_USER), source_key=f"key-{at}")
            )
        outcome = await store.try_claim_session_execution_lease(session_id, mint_owner("bench"), HOUR_MS)
        assert isinstance(outcome, Acquired)
        made = cls(store, outcome.lease, deque())
        await made._grow(nodes)
        revision, leaf = made.revision, made.leaf
        for at in range(turns):
            claim = await store.claim_next_turn_inputs(session_id, outcome.lease.fence(), max_inputs=1)
            assert claim is not None
            commit = made._commit(at + 1, revision, leaf, claim)
            made.waiting.append(commit)
            revision, leaf = (revision or 0) + 1, commit.graph.leaf_node_id  # type: ignore[union-attr]
        return made

    def _commit(self, turn: int, revision: int | None, leaf: str | None, claim: TurnInputClaim) -> RuntimeCommit:
        nodes = turn_nodes(leaf, turn)
        state = PersistedTurnState(turn_index=turn)
        return RuntimeCommit(
            self.store.session_id,
            revision,
            self.lease.fence(),
            graph=Append(nodes, nodes[-1].node_id),
            checkpoint=HydratedSessionCheckpoint(state, tool_state(self.store.session_id, turn)),
            usage_deltas=(USAGE,),
        ).completing_turn_input_claim(claim)

    async def turn(self) -> None:
        """Stamp the next commit and send it."""
        self.count += 1
        await self._land(self.waiting.popleft().with_turn_commit(f"turn-{self.count}"))

    async def _land(self, commit: RuntimeCommit) -> None:
        result = await self.store.commit_runtime_state(commit)
        self.revision, self.leaf = result.head_revision, result.leaf_node_id

    async def _grow(self, node_count: int) -> None:
        """Add nodes in commits of a thousand."""
        for start in range(0, node_count, 1000):
            nodes = []
            for at in range(start, min(start + 1000, node_count)):
                message = Message(f"old-message-{at}", "user", (TextPart(_USER),))
                nodes.append(message_node(f"old-{at}", self.leaf, "2026-05-01T12:00:00.000Z", message))
                self.leaf = f"old-{at}"
            graph = Append(tuple(nodes), self.leaf)
            commit = RuntimeCommit(self.store.session_id, self.revision, self.lease.fence(), graph=graph)
            await self._land(commit.with_turn_commit(f"grow-{start}"))


def tool_state(session_id: str, turn: int) -> bytes:
    """Build what the tools keep after a turn: no two sessions have the same."""
    return _TOOL_STATE + f"{session_id} {turn}".encode()


def turn_nodes(leaf: str | None, turn: int) -> tuple[SessionNodeRecord, ...]:
    """Build the four messages of a turn: question, tool call, tool answer, answer."""
    call = ToolCallPart(
        "find_flights", raw_json({"date": "2026-05-14", "from": "JFK", "after": "17:00"}), f"call-{turn}"
    )
    found = ToolCallResponsePart(raw_json([{"flight": "HAT136", "at": "18:40", "seats": 4}] * 3), f"call-{turn}")
    spoken: list[tuple[Role, MessagePart]] = [
        ("user", TextPart(_USER)),
        ("assistant", call),
        ("tool", found),
        ("assistant", TextPart(_ANSWER)),
    ]
    nodes = []
    for at, (role, part) in enumerate(spoken):
        node_id = f"node-{turn}-{at}"
        message = Message(f"message-{turn}-{at}", role, (part,))
        nodes.append(message_node(node_id, leaf, "2026-05-01T12:00:00.000Z", message))
        leaf = node_id
    return tuple(nodes)
