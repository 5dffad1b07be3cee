"""Our side of the comparison with the peers: the full turn, on SQLite or PostgreSQL.

A turn has four messages, a checkpoint, usage, and one input that it consumes. Input is enqueued and claimed before the
turns, and not measured; nor do the peers keep any.
"""

from __future__ import annotations

import asyncio
from collections import deque

import msgspec

from bench.peers.messages import Spoken, spoken
from bench.peers.roles import POSTGRES_QUESTIONS, SQLITE_QUESTIONS, Options, main, sqlite_settings, versions
from bench.turns import HOUR_MS, Turns
from fastness.persistence import (
    Acquired,
    Append,
    EngineSessionStoreFactory,
    FullGraph,
    Message,
    MessagePart,
    NextTurn,
    PendingTurnInputDraft,
    PostgresSessionStoreFactory,
    Role,
    SessionNodeRecord,
    SessionStoreCreateRequest,
    SqliteSessionStoreFactory,
    TextPart,
    ToolCallPart,
    ToolCallResponsePart,
    TurnInput,
    TurnInputClaim,
    message_node,
    mint_owner,
)
from fastness.sql.program import Program, Read, Statement

_AT_ONCE = 64


class Ours:
    """A database of ours."""

    def __init__(self, options: Options) -> None:
        self._place = str(options["place"])
        self._on_postgres = self._place.startswith("postgresql:")
        self.factory: EngineSessionStoreFactory

    async def open(self) -> None:
        """Open the factory."""
        self.factory = (PostgresSessionStoreFactory if self._on_postgres else SqliteSessionStoreFactory)(self._place)

    async def close(self) -> None:
        """Close the factory."""
        await self.factory.close()

    def session(self, name: str) -> OurSession:
        """Name a session."""
        return OurSession(self, name)

    async def settings(self) -> dict[str, str]:
        """Ask the connection that writes."""
        if self._on_postgres:
            found = [await self._ask(f"select current_setting('{name}')") for name in POSTGRES_QUESTIONS]
            return dict(zip(POSTGRES_QUESTIONS, map(str, found), strict=True)) | versions("psycopg")
        return sqlite_settings(*[[await self._ask(question)] for question in SQLITE_QUESTIONS]) | versions("apsw")

    async def _ask(self, question: str) -> object:
        def program() -> Program[object]:
            (((answer,),),) = yield Read(Statement(question), last=True)
            return answer

        return await self.factory.engine.write(program)


class OurSession:
    """A session whose lane is held."""

    def __init__(self, owner: Ours, name: str) -> None:
        self._owner = owner
        self._name = name
        self._sent = 0
        self._turns: _Growing | None = None

    async def attach(self) -> None:
        """Open the store, and claim the lane the first time."""
        store = await self._owner.factory.create_store(SessionStoreCreateRequest(self._name))
        if self._turns is not None:
            self._turns.store = store
            return
        outcome = await store.try_claim_session_execution_lease(self._name, mint_owner("bench"), HOUR_MS)
        assert isinstance(outcome, Acquired)
        self._turns = _Growing(store, outcome.lease, deque())

    async def ahead(self, count: int) -> None:
        """Enqueue and claim the input of the next turns, and build their commits."""
        turns = self._held()
        for first in range(0, count, _AT_ONCE):
            await asyncio.gather(*(self._enqueue() for _ in range(first, min(first + _AT_ONCE, count))))
        for _ in range(count):
            claim = await turns.store.claim_next_turn_inputs(self._name, turns.lease.fence(), max_inputs=1)
            assert claim is not None
            turns.expect(claim)

    async def _enqueue(self) -> None:
        self._sent += 1
        said = TurnInput.of_text(spoken(self._sent)[0]["text"])
        draft = PendingTurnInputDraft(self._name, NextTurn(), said, source_key=f"key-{self._sent}")
        await self._held().store.enqueue_pending_turn_input(draft)

    async def turn(self) -> None:
        """Stamp the next commit and send it."""
        await self._held().turn()

    def next_claim_id(self) -> str:
        """Name the claim that the next turn completes."""
        (claim,) = self._held().waiting[0].completed_turn_input_claims
        return claim.claim_id

    async def fill(self, count: int) -> bool:
        """Do nothing: turns that are stored at once leave other rows than turns of their own."""
        return False

    async def load(self) -> int:
        """Load the session with all its nodes, as typed values."""
        loaded = await self._held().store.load_session(FullGraph())
        assert loaded is not None
        return len(loaded.graph.nodes)

    def _held(self) -> _Growing:
        assert self._turns is not None
        return self._turns


class _Growing(Turns):
    """Turns that are built as they are needed, each of other words."""

    def expect(self, claim: TurnInputClaim) -> None:
        """Build the commit that follows all that wait."""
        ahead = len(self.waiting)
        leaf = self.leaf
        if ahead:
            leaf = self.waiting[-1].graph.leaf_node_id  # type: ignore[union-attr]
        turn, revision = self.count + ahead + 1, (self.revision or 0) + ahead or None
        nodes = _nodes(leaf, turn)
        commit = self._commit(turn, revision, leaf, claim)
        self.waiting.append(msgspec.structs.replace(commit, graph=Append(nodes, nodes[-1].node_id)))


def _nodes(leaf: str | None, turn: int) -> tuple[SessionNodeRecord, ...]:
    nodes = []
    for at, said in enumerate(spoken(turn)):
        node_id, (role, part) = f"node-{turn}-{at}", _part(said, f"call-{turn}")
        message = Message(f"message-{turn}-{at}", role, (part,))
        nodes.append(message_node(node_id, leaf, "2026-05-01T12:00:00.000Z", message))
        leaf = node_id
    return tuple(nodes)


def _part(said: Spoken, call: str) -> tuple[Role, MessagePart]:
    match said["kind"]:
        case "user":
            return "user", TextPart(said["text"])
        case "call":
            return "assistant", ToolCallPart(said["name"], msgspec.Raw(said["json"].encode()), call)
        case "response":
            return "tool", ToolCallResponsePart(msgspec.Raw(said["json"].encode()), call)
    return "assistant", TextPart(said["text"])


if __name__ == "__main__":
    main(Ours)
