"""Going on from another node: switching branches, editing what was said, having an answer made anew.

Each is a turn without an answer: its commit moves the leaf and, where something is to follow, leaves that to the next
turn in its outbox. So it waits for the turn that runs, and is there whole or not at all.
"""

from __future__ import annotations

from fastness.errors import GraphInvalidError
from fastness.runtime.messages import Said
from fastness.runtime.turn import Turn

REGENERATE = "fastness.regenerate"
"""The kind of work by which a turn is asked to answer once more what the session stands on."""


async def switch(turn: Turn, node_id: str | None) -> None:
    """Have the session stand on a node."""
    if node_id is not None:
        await _node(turn, node_id)
    turn._move_to(node_id)


async def edit(turn: Turn, message_id: str, said: Said, key: str | None) -> None:
    """Have the session stand before a message, and say something else instead."""
    turn._move_to(await _node(turn, message_id))
    turn.send(turn.session_id, said, key=key)


async def regenerate(turn: Turn, message_id: str | None) -> None:
    """Have the session stand on what a message answered, and leave the answer to the next turn."""
    answers = [message.id for message in turn.messages if message.role == "assistant"]
    if message_id is None and not answers:
        raise GraphInvalidError(turn.session_id, "no_answer", None, "the session has no answer that could be made anew")
    turn._move_to(await _asked_before(turn, message_id or answers[-1]))
    turn.enqueue(REGENERATE)


async def _node(turn: Turn, node_id: str) -> str | None:
    """Give the parent of a node that is there."""
    node = await turn.node(node_id)
    if node is None:
        raise GraphInvalidError(turn.session_id, "unknown_node", node_id, f"there is no node {node_id!r} to go on from")
    return node.parent_node_id


async def _asked_before(turn: Turn, message_id: str) -> str | None:
    """Give what a user said last before a message: an answer may be several messages long."""
    at: str | None = await _node(turn, message_id)
    while at is not None:
        node = await turn.node(at)
        if node is None or (node.message is not None and node.message.role == "user"):
            return at
        at = node.parent_node_id
    return None
