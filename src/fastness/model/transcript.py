"""The transcript: messages in the vocabulary of the OpenTelemetry GenAI conventions, events, and their nodes."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from fastness.model.base import NO_JSON, Id, Record, Timestamp, Value

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]


class TextPart(Value, frozen=True, tag_field="type", tag="text"):
    """Text that a person or a model wrote."""

    content: str


class ReasoningPart(Value, frozen=True, tag_field="type", tag="reasoning"):
    """What a model thought aloud."""

    content: str


class ToolCallPart(Value, frozen=True, tag_field="type", tag="tool_call"):
    """A model asks for a tool. ``arguments`` is the model's own JSON, byte for byte; ``id`` the provider's call id."""

    name: str
    arguments: msgspec.Raw = NO_JSON
    id: str | None = None


class ToolCallResponsePart(Value, frozen=True, tag_field="type", tag="tool_call_response"):
    """What the tool answered to the call of that id, as JSON."""

    response: msgspec.Raw
    id: str | None = None


class BlobPart(Value, frozen=True, tag_field="type", tag="blob"):
    """Binary content inline, base64 in ``content``. Large content belongs to an attachment store."""

    content: str
    mime_type: str | None = None
    modality: str = "image"


class FilePart(Value, frozen=True, tag_field="type", tag="file"):
    """Content that a provider or an attachment store keeps under an id."""

    file_id: str
    mime_type: str | None = None
    modality: str = "image"


class UriPart(Value, frozen=True, tag_field="type", tag="uri"):
    """Content at an address."""

    uri: str
    mime_type: str | None = None
    modality: str = "image"


class GenericPart(Value, frozen=True, tag_field="type", tag="generic"):
    """A part of any other type: ``kind`` is the type it came with, ``body`` its JSON, byte for byte."""

    kind: str
    body: msgspec.Raw


MessagePart: TypeAlias = (
    TextPart | ReasoningPart | ToolCallPart | ToolCallResponsePart | BlobPart | FilePart | UriPart | GenericPart
)


class MessageOrigin(Value, frozen=True):
    """Where a message came from: ``kind`` such as ``turn_input`` or ``queued_work``, ``ref`` the id of it there."""

    kind: str
    ref: str | None = None


class ProviderFields(Value, frozen=True):
    """What a provider's message had and the vocabulary lacks. ``fields`` means what the adapter of ``format`` says."""

    format: str
    fields: msgspec.Raw


class Message(Value, frozen=True):
    """One message. ``provider`` keeps what the parts do not say, so that it goes out exactly as it came in."""

    id: Id
    role: Role
    parts: tuple[MessagePart, ...]
    origin: MessageOrigin | None = None
    provider: ProviderFields | None = None

    @property
    def text(self) -> str:
        """The text parts joined: what a person would read."""
        return "".join(part.content for part in self.parts if isinstance(part, TextPart))


class ProtocolEvent(Value, frozen=True):
    """A typed event of whoever drives the agent. ``payload`` is the plugin's own JSON, byte for byte."""

    plugin_id: str
    payload: msgspec.Raw


class Conversation(Value, frozen=True, tag_field="type", tag="conversation"):
    """A message as an event of the session."""

    message: Message


class Protocol(Value, frozen=True, tag_field="type", tag="protocol"):
    """A protocol event as an event of the session."""

    event: ProtocolEvent


SessionEventRecord: TypeAlias = Conversation | Protocol


class EventPayload(Value, frozen=True, tag_field="type", tag="event"):
    """A node that carries an event."""

    event: SessionEventRecord


class PluginPayload(Value, frozen=True, tag_field="type", tag="plugin"):
    """A node that carries a plugin's own JSON, byte for byte."""

    plugin_type: str
    body: msgspec.Raw


NodePayload: TypeAlias = EventPayload | PluginPayload


class SessionNodeRecord(Record, frozen=True):
    """One node of the transcript graph. ``timestamp`` is RFC 3339; ``parent_node_id`` is None for a root."""

    node_id: Id
    parent_node_id: Id | None
    timestamp: Timestamp
    payload: NodePayload
    caused_by: Id | None = None
    agent_frame_id: Id | None = None

    @property
    def message(self) -> Message | None:
        """The message this node carries, if it carries one."""
        if isinstance(self.payload, EventPayload) and isinstance(self.payload.event, Conversation):
            return self.payload.event.message
        return None


def message_node(
    node_id: str,
    parent_node_id: str | None,
    timestamp: str,
    message: Message,
    *,
    caused_by: str | None = None,
    agent_frame_id: str | None = None,
) -> SessionNodeRecord:
    """Wrap a message as a node."""
    payload = EventPayload(Conversation(message))
    return SessionNodeRecord(node_id, parent_node_id, timestamp, payload, caused_by, agent_frame_id)
