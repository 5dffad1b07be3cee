"""Reads the final state of a database through the public capabilities of its factory.

It takes several reads for each session and no lock: let everybody who writes come to an end first. A session that
cannot be read raises what its load raises.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

from fastness.model import (
    FullGraph,
    Message,
    PendingTurnInput,
    SessionNodeRecord,
    SessionStoreCreateRequest,
    TextItem,
    ToolCallPart,
    ToolCallResponsePart,
)
from fastness.persistence import EngineSessionStoreFactory, SessionStore
from fastness.testing.events import text_hash
from fastness.testing.final import FinalCommit, FinalInput, FinalNode, FinalSession, FinalState

_PAGE = 1000


async def read_final(factory: EngineSessionStoreFactory, session_ids: Iterable[str] | None = None) -> FinalState:
    """Read what there is of the named sessions, or of all. One that does not exist is left out."""
    sessions = []
    async for session_id in _names(factory, session_ids):
        store = await factory.open_existing_store(SessionStoreCreateRequest(session_id))
        if store is not None:
            sessions.append(await _read_session(factory, store))
    return FinalState(tuple(sessions))


async def _names(factory: EngineSessionStoreFactory, session_ids: Iterable[str] | None) -> AsyncIterator[str]:
    if session_ids is None:
        async for session_id in factory.session_ids():
            yield session_id
    else:
        for session_id in dict.fromkeys(session_ids):
            yield session_id


async def _read_session(factory: EngineSessionStoreFactory, store: SessionStore) -> FinalSession:
    session_id = store.session_id
    read = await store.load_session(FullGraph())
    lease = await store.observe_session_execution_lease(session_id)
    pending = await store.list_pending_turn_inputs(session_id)
    return FinalSession(
        session_id,
        0 if read is None else read.head.meta.revision,
        None if read is None else read.head.meta.leaf_node_id,
        await _commits(factory, session_id),
        () if read is None else tuple(map(final_node, read.graph.nodes)),
        tuple(map(final_input, pending)),
        await _quarantined(factory, session_id),
        None if lease is None else lease.owner.owner_id,
    )


async def _commits(factory: EngineSessionStoreFactory, session_id: str) -> tuple[FinalCommit, ...]:
    found: list[FinalCommit] = []
    after: int | None = 0
    while after is not None:
        page = await factory.history.list_commits(session_id, after_revision=after, limit=_PAGE)
        found += [
            FinalCommit(row.revision, row.turn_id, row.fencing_token, row.kind, row.leaf_node_id)
            for row in page.commits
        ]
        after = page.cursor
    return tuple(found)


async def _quarantined(factory: EngineSessionStoreFactory, session_id: str) -> tuple[str, ...]:
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = await factory.dispatch.list_quarantine(session_id=session_id, limit=_PAGE, cursor=cursor)
        found += [row.row_id for row in page.rows if row.kind == "input"]
        cursor = page.cursor
        if cursor is None:
            return tuple(found)


def final_input(row: PendingTurnInput) -> FinalInput:
    """Give what a check looks at of input that waits."""
    said = "".join(item.text for item in row.input.items if isinstance(item, TextItem))
    return FinalInput(row.input_id, text_hash(said))


def final_node(node: SessionNodeRecord) -> FinalNode:
    """Give what a check looks at of a node."""
    message = node.message
    if message is None:
        return FinalNode(node.node_id, node.parent_node_id)
    return FinalNode(
        node.node_id,
        node.parent_node_id,
        message.role,
        _input_of(message),
        text_hash(message.text),
        tuple(part.id for part in message.parts if isinstance(part, ToolCallPart)),
        tuple(part.id for part in message.parts if isinstance(part, ToolCallResponsePart)),
    )


def _input_of(message: Message) -> str | None:
    """Name the input of a user's message: the one its origin says, else, where it has no origin, its own id."""
    if message.role != "user":
        return None
    if message.origin is None:
        return message.id
    return message.origin.ref if message.origin.kind == "turn_input" else None
