"""What a recorded conversation means as turns: pure, without a store.

Nodes are named by content: a node's id is a hash of its parent's id and of the message as it is exported. So two
conversations that begin alike share their first nodes when they are put into one session and part where they differ,
and a second import finds every node in its place and adds nothing. At the end of a branch stands a node that holds the
rest of the record, so that it can be given back whole.

A turn is one user message, or several in a row, and all that follows up to the next one. What precedes the first user
message belongs to the first turn. A conversation that no user takes part in is one turn without input.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

import msgspec

from fastness.errors import InvalidInputError
from fastness.formats.foreign import fields_or_none, text_or_none
from fastness.formats.openai_chat import FORMAT, from_message, to_message
from fastness.formats.records import ConversationRecord, Frame
from fastness.model.base import Value, encode
from fastness.model.checkpoint import TokenUsage
from fastness.model.transcript import (
    Message,
    MessageOrigin,
    PluginPayload,
    SessionNodeRecord,
    TextPart,
    message_node,
)
from fastness.model.turn_input import NextTurn, PendingTurnInputDraft, StructuredItem, TextItem, TurnInput
from fastness.replay.usage import usage_of

IMPORT_PLUGIN = "fastness.import"
"""The plugin type of the node that keeps a record's own fields."""

_INPUT_KIND = "turn_input"


class ImportedRecord(Value, frozen=True):
    """The body of that node: the record without its messages, and which record of its file it was, from 0."""

    index: int
    frame: Frame


class PlannedNode(msgspec.Struct, frozen=True):
    """A node to be, and what its message says of the tokens it took, if it says anything."""

    record: SessionNodeRecord
    usage: tuple[str, TokenUsage] | None = None


class PlannedTurn(msgspec.Struct, frozen=True):
    """One turn to replay: its nodes in order, parents first, and the inputs that cause it.

    ``index`` counts the turns of the branch from 1, ``usage`` adds up what they took, this one included.
    """

    session_id: str
    index: int
    nodes: tuple[PlannedNode, ...]
    inputs: tuple[PendingTurnInputDraft, ...]
    usage: TokenUsage = TokenUsage()

    @property
    def leaf_node_id(self) -> str:
        """Where the session stands after the turn."""
        return self.nodes[-1].record.node_id

    @property
    def turn_id(self) -> str:
        """The turn's name, which follows from what it says and from all that went before."""
        return f"replay-{self.leaf_node_id}"


class Replay(msgspec.Struct, frozen=True):
    """A conversation as turns of a session. ``record`` says which record it was, for errors."""

    session_id: str
    model: str
    turns: tuple[PlannedTurn, ...]
    record: str = ""

    @property
    def node_ids(self) -> list[str]:
        """All nodes of the branch, root first."""
        return [node.record.node_id for turn in self.turns for node in turn.nodes]

    @property
    def message_count(self) -> int:
        """How many messages the conversation has."""
        return len(self.node_ids) - 1


def plan_replay(record: ConversationRecord, session_id: str) -> Replay:
    """Plan the turns of a record. ``InvalidInputError`` names the record and the message that is none."""
    nodes = list(_nodes(record, _messages(record)))
    model = text_or_none((fields_or_none(record.frame.rest) or {}).get("model")) or ""
    turns: list[PlannedTurn] = []
    usage = TokenUsage()
    for index, part in enumerate(_split(nodes), start=1):
        for node in part:
            usage = usage if node.usage is None else usage + node.usage[1]
        turns.append(PlannedTurn(session_id, index, tuple(part), _inputs(session_id, part), usage))
    return Replay(session_id, model, tuple(turns), str(record))


def node_id_of(parent_node_id: str | None, content: bytes) -> str:
    """Name a node by its content and its ancestry."""
    return hashlib.sha256((parent_node_id or "").encode() + b"\0" + content).hexdigest()[:32]


def _messages(record: ConversationRecord) -> Iterator[tuple[Message, bytes, msgspec.Raw]]:
    for at, source in enumerate(record.messages, start=1):
        try:
            message = to_message(source, "")
        except InvalidInputError as error:
            raise InvalidInputError(f"{record}, message {at}", error.reason) from None
        yield message, from_message(message), source


def _nodes(record: ConversationRecord, messages: Iterable[tuple[Message, bytes, msgspec.Raw]]) -> Iterator[PlannedNode]:
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    parent: str | None = None
    counted = False
    for message, content, source in messages:
        node_id = node_id_of(parent, content)
        origin = MessageOrigin(_INPUT_KIND, node_id) if message.role == "user" else None
        named = msgspec.structs.replace(message, id=node_id, origin=origin)
        usage = usage_of(source)
        yield PlannedNode(message_node(node_id, parent, now, named), usage)
        parent, counted = node_id, counted or usage is not None
    body = msgspec.Raw(encode(ImportedRecord(record.index, record.frame)))
    node_id = node_id_of(parent, IMPORT_PLUGIN.encode() + b"\0" + bytes(body))
    # A record that counts each message and then itself would be counted twice.
    whole = None if counted else usage_of(record.frame.rest)
    yield PlannedNode(SessionNodeRecord(node_id, parent, now, PluginPayload(IMPORT_PLUGIN, body)), whole)


def _split(nodes: list[PlannedNode]) -> list[list[PlannedNode]]:
    turns: list[list[PlannedNode]] = [[]]
    met_user = previous_is_user = False
    for node in nodes:
        is_user = _is_user(node)
        if is_user and not previous_is_user and met_user:
            turns.append([])
        turns[-1].append(node)
        met_user, previous_is_user = met_user or is_user, is_user
    return turns


def _is_user(node: PlannedNode) -> bool:
    message = node.record.message
    return message is not None and message.role == "user"


def _inputs(session_id: str, nodes: list[PlannedNode]) -> tuple[PendingTurnInputDraft, ...]:
    return tuple(_draft(session_id, node.record) for node in nodes if _is_user(node))


def _draft(session_id: str, node: SessionNodeRecord) -> PendingTurnInputDraft:
    message = node.message
    assert message is not None  # only user messages are asked for
    plain = len(message.parts) == 1 and message.provider is None and isinstance(message.parts[0], TextPart)
    item = TextItem(message.text) if plain else StructuredItem(FORMAT, msgspec.Raw(from_message(message)))
    return PendingTurnInputDraft(session_id, NextTurn(), TurnInput((item,)), source_key=node.node_id)
