"""What people and models say, as messages of the transcript."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from fastness.decide import limits
from fastness.errors import InvalidInputError
from fastness.formats.openai_chat import to_message
from fastness.model import (
    AttachmentItem,
    FilePart,
    GenericPart,
    Message,
    MessageOrigin,
    MessagePart,
    PendingTurnInput,
    ProtocolEvent,
    StructuredItem,
    TextItem,
    TextPart,
    TurnInput,
)
from fastness.model.base import encode

Item: TypeAlias = "str | Message | Mapping[str, Any] | ProtocolEvent"
"""What a turn may append: the assistant's text, a message, a provider's dictionary, or an event of the driver."""

Said: TypeAlias = "str | TurnInput | AttachmentItem | Sequence[str | TextItem | AttachmentItem | StructuredItem]"
"""What may be sent to a session: text, an attachment, several of them, or an input as it is stored."""


def new_id() -> str:
    """Draw the id of a node."""
    return secrets.token_hex(16)


def message_of(item: str | Message | Mapping[str, Any], message_id: str) -> Message:
    """Give what a turn appends as a message; text is the assistant's. Raises ``InvalidInputError``."""
    if isinstance(item, Message):
        return item
    if isinstance(item, str):
        return Message(message_id, "assistant", (TextPart(limits.check_text("item", item)),))
    if isinstance(item, Mapping):
        return to_message(encode(dict(item)), message_id)
    raise InvalidInputError("item", f"must be text, a message or a dictionary, not {type(item).__name__}")


def message_of_input(row: PendingTurnInput) -> Message:
    """Give what a user said as a message. Its id is that of the input: claimed again, it is the same message."""
    return Message(row.input_id, "user", _parts(row.input.items), MessageOrigin("turn_input", row.input_id))


def input_of(said: Said) -> TurnInput:
    """Give what somebody sends as turn input. Raises ``InvalidInputError``."""
    if isinstance(said, TurnInput):
        return said
    if isinstance(said, str):
        return TurnInput.of_text(said)
    items = [said] if isinstance(said, AttachmentItem) else said
    if isinstance(items, bytes | Mapping) or not isinstance(items, Sequence):
        raise InvalidInputError("said", f"must be text, an attachment or a TurnInput, not {type(said).__name__}")
    return TurnInput(tuple(TextItem(item) if isinstance(item, str) else item for item in items))


def attachment_ids_of(row: PendingTurnInput) -> list[str]:
    """Give the attachments that an input refers to."""
    return [item.attachment.attachment_id for item in row.input.items if isinstance(item, AttachmentItem)]


def _parts(items: Sequence[TextItem | AttachmentItem | StructuredItem]) -> tuple[MessagePart, ...]:
    parts: list[MessagePart] = []
    for item in items:
        if isinstance(item, TextItem):
            parts.append(TextPart(item.text))
        elif isinstance(item, AttachmentItem):
            reference = item.attachment
            modality = reference.media_type.partition("/")[0]
            parts.append(FilePart(reference.attachment_id, reference.media_type, modality))
        else:
            parts.append(GenericPart(item.kind, item.data))
    return tuple(parts)
