"""From a store to what a running turn holds."""

from __future__ import annotations

from fastness.model.protocols import SessionCommitStore
from fastness.model.session import ActivePath, FullGraph, RuntimeSessionState, SessionReadScope, runtime_state_of


async def load_persisted_session_state(store: SessionCommitStore) -> RuntimeSessionState | None:
    """Load the state that a turn starts from, with every branch; None before the first commit.

    Raises what ``load_session`` raises.
    """
    return await _load(store, FullGraph())


async def load_persisted_session_state_active_path(
    store: SessionCommitStore, leaf_node_id: str | None = None
) -> RuntimeSessionState | None:
    """Load the state that a turn starts from, with one branch only: the ancestry of a leaf (default: the head's)."""
    return await _load(store, ActivePath(leaf_node_id))


async def _load(store: SessionCommitStore, scope: SessionReadScope) -> RuntimeSessionState | None:
    read = await store.load_session(scope)
    return None if read is None else runtime_state_of(read)
