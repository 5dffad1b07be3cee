"""Messages in the format of OpenAI's chat completions, both ways, without loss.

``from_message(to_message(source, id))`` is equal to ``source`` for every JSON object: order of keys, unknown fields and
odd shapes included, and JSON inside it byte for byte. What the vocabulary can say becomes parts; the rest is the
difference to what the parts would be written as, kept in ``Message.provider``. A message that has no such fields (one
that this library's user made) is written the way the API documents it.

Roles of the format that the vocabulary lacks are read as the nearest one: ``developer`` as system, ``function`` as
tool, and any other, or none, as system, since nobody knows who speaks. The original is kept.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, TypeAlias

import msgspec

from fastness.errors import InvalidInputError
from fastness.formats.delta import Delta, Tree, difference, patch
from fastness.formats.foreign import (
    MAX_DEPTH,
    depth_of,
    elements_or_none,
    fields_of,
    fields_or_none,
    foreign_json,
    opening,
    text_or_none,
)
from fastness.model.base import encode
from fastness.model.transcript import (
    BlobPart,
    FilePart,
    GenericPart,
    Message,
    MessageOrigin,
    MessagePart,
    ProviderFields,
    ReasoningPart,
    Role,
    TextPart,
    ToolCallPart,
    ToolCallResponsePart,
    UriPart,
)

FORMAT = "openai.chat"
"""The name under which the fields of this format are kept beside a message."""

_ROLES: dict[str | None, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_Content: TypeAlias = Literal["auto", "list", "raw"]
_DATA_URL = re.compile(r"data:([^;,]+);base64,(.*)", re.DOTALL)
_OCTETS = "application/octet-stream"
_NULL = msgspec.Raw(b"null")


class _Fields(Delta, frozen=True, omit_defaults=True):
    """What is kept beside a message: the difference, and two choices that the parts leave open.

    ``content`` is ``list`` where it was a list although text would say it, ``raw`` where a tool's answer was neither
    text nor a list; ``function_call`` says that the last call stood in the older field of that name.
    """

    content: _Content = "auto"
    function_call: bool = False


_fields_decoder = msgspec.json.Decoder(_Fields)
_raw = msgspec.json.Decoder(msgspec.Raw)


def to_message(source: bytes | msgspec.Raw, message_id: str, origin: MessageOrigin | None = None) -> Message:
    """Read one message. ``InvalidInputError`` for what is no JSON object, naming what is wrong with it."""
    value = foreign_json(source, "message")
    fields = fields_of(value, "message")
    role = _ROLES.get(text_or_none(fields.get("role")), "system")
    parts = _tool_parts(fields) if role == "tool" else _spoken_parts(fields)
    content = _content_choice(role, fields.get("content", _NULL))
    function_call = role != "tool" and _call_of(fields.get("function_call")) is not None
    plain = Message(message_id, role, parts, origin)
    found = difference(value, _render(plain, content, function_call))
    delta = found if isinstance(found, Delta) else Delta()
    kept = _Fields(delta.keys, delta.set, delta.within, content, function_call)
    if kept == _Fields():
        return plain
    return msgspec.structs.replace(plain, provider=ProviderFields(FORMAT, msgspec.Raw(encode(kept))))


def from_message(message: Message) -> bytes:
    """Write one message as a JSON object. ``InvalidInputError`` if its provider fields are damaged."""
    kept = _kept(message)
    return encode(patch(_render(message, kept.content, kept.function_call), kept))


def _kept(message: Message) -> _Fields:
    if message.provider is None or message.provider.format != FORMAT:
        return _Fields()
    try:
        return _fields_decoder.decode(message.provider.fields)
    except msgspec.DecodeError as error:
        raise InvalidInputError(f"provider fields of message {message.id!r}", f"are damaged: {error}") from None


def _content_choice(role: Role, content: msgspec.Raw) -> _Content:
    first = opening(content)
    if role == "tool":
        return "auto" if first in (b'"', b"[") else "raw"
    return "list" if first == b"[" else "auto"


# From the format to parts. Every reader gives its best guess: a wrong one costs readability, never a byte.


def _tool_parts(fields: dict[str, msgspec.Raw]) -> tuple[MessagePart, ...]:
    return (ToolCallResponsePart(fields.get("content", _NULL), text_or_none(fields.get("tool_call_id"))),)


def _spoken_parts(fields: dict[str, msgspec.Raw]) -> tuple[MessagePart, ...]:
    parts: list[MessagePart] = []
    thought = text_or_none(fields.get("reasoning_content"))
    if thought is not None:
        parts.append(ReasoningPart(thought))
    content = fields.get("content", _NULL)
    text = text_or_none(content)
    if text is not None:
        parts.append(TextPart(text))
    parts.extend(_content_part(item) for item in elements_or_none(content) or ())
    parts.extend(_tool_calls(fields.get("tool_calls", _NULL)))
    legacy = _call_of(fields.get("function_call"))
    if legacy is not None:
        parts.append(legacy)
    return tuple(parts)


def _tool_calls(value: msgspec.Raw) -> list[ToolCallPart]:
    """Read the calls, all or none: an array with an element that is no function call is kept as it is."""
    calls = []
    for element in elements_or_none(value) or ():
        fields = fields_or_none(element) or {}
        call = _call_of(fields.get("function"), text_or_none(fields.get("id")))
        if call is None:
            return []
        calls.append(call)
    return calls


def _call_of(function: msgspec.Raw | None, call_id: str | None = None) -> ToolCallPart | None:
    fields = fields_or_none(function) if function is not None else None
    name = text_or_none(fields.get("name")) if fields else None
    arguments = text_or_none(fields.get("arguments")) if fields else None
    if name is None or arguments is None:
        return None
    return ToolCallPart(name, _arguments(arguments), call_id)


def _arguments(text: str) -> msgspec.Raw:
    """Keep arguments as the JSON that their text holds if it is an object or array exactly, else as a JSON string."""
    data = text.encode()
    if data[:1] in (b"{", b"[") and data[-1:] in (b"}", b"]"):
        try:
            value = _raw.decode(data)
        except (msgspec.DecodeError, RecursionError):
            value = msgspec.Raw(b"")
        if bytes(value) == data and depth_of(data) <= MAX_DEPTH:
            return msgspec.Raw(data)
    return msgspec.Raw(encode(text))


def _content_part(item: msgspec.Raw) -> MessagePart:
    fields = fields_or_none(item) or {}
    kind = text_or_none(fields.get("type"))
    part: MessagePart | None = None
    if kind == "text":
        text = text_or_none(fields.get("text"))
        part = TextPart(text) if text is not None else None
    elif kind in ("image_url", "input_audio", "file") and kind in fields:
        part = _media_part(kind, fields_or_none(fields[kind]) or {})
    return part if part is not None else GenericPart(kind or "unknown", item)


def _media_part(kind: str, media: dict[str, msgspec.Raw]) -> MessagePart | None:
    if kind == "image_url":
        url = text_or_none(media.get("url"))
        return None if url is None else _blob_of(url, "image") or UriPart(url)
    if kind == "input_audio":
        data, name = text_or_none(media.get("data")), text_or_none(media.get("format"))
        return None if data is None or name is None else BlobPart(data, f"audio/{name}", "audio")
    file_id, url = text_or_none(media.get("file_id")), text_or_none(media.get("file_data"))
    if file_id is not None:
        return FilePart(file_id, modality="document")
    return None if url is None else _blob_of(url, "document")


def _blob_of(url: str, modality: str) -> BlobPart | None:
    match = _DATA_URL.fullmatch(url)
    return BlobPart(match[2], match[1], modality) if match else None


# From parts to the format.


def _render(message: Message, choice: _Content, function_call: bool) -> dict[str, Tree]:
    """Write the parts alone, in the order of keys that the API documents."""
    if message.role == "tool":
        return _render_tool(message, choice)
    calls = [part for part in message.parts if isinstance(part, ToolCallPart)]
    thoughts = [part.content for part in message.parts if isinstance(part, ReasoningPart)]
    content = [part for part in message.parts if not isinstance(part, ToolCallPart | ReasoningPart)]
    fields: dict[str, Tree] = {"role": message.role, "content": _render_content(content, choice)}
    if thoughts:
        fields["reasoning_content"] = "".join(thoughts)
    legacy = calls.pop() if function_call and calls else None
    if calls:
        fields["tool_calls"] = [_render_call(call) for call in calls]
    if legacy is not None:
        fields["function_call"] = _render_function(legacy)
    return fields


def _render_tool(message: Message, choice: _Content) -> dict[str, Tree]:
    answers = [part for part in message.parts if isinstance(part, ToolCallResponsePart)]
    fields: dict[str, Tree] = {"role": "tool"}
    if answers and answers[0].id is not None:
        fields["tool_call_id"] = answers[0].id
    fields["content"] = _render_answer(answers[0].response, choice) if answers else message.text
    return fields


def _render_answer(response: msgspec.Raw, choice: _Content) -> Tree:
    # The API takes text or a list of content parts; an answer that is other JSON goes out as its text.
    return response if choice == "raw" or opening(response) in (b'"', b"[") else _as_text(response)


def _render_content(parts: Sequence[MessagePart], choice: _Content) -> Tree:
    if choice != "list":
        if not parts:
            return None
        if len(parts) == 1 and isinstance(parts[0], TextPart):
            return parts[0].content
    return [_render_part(part) for part in parts]


def _render_part(part: MessagePart) -> Tree:
    match part:
        case TextPart(text) | ReasoningPart(text):
            return _item("text", text)
        case GenericPart(_, body):
            return body
        case ToolCallPart():
            return _render_call(part)
        case ToolCallResponsePart(response):
            return _item("text", _as_text(response))
        case _:
            return _render_media(part)


def _render_media(part: BlobPart | FilePart | UriPart) -> Tree:
    match part:
        case BlobPart(data, mime_type, "audio") if mime_type and mime_type.startswith("audio/"):
            return _item("input_audio", {"data": data, "format": mime_type.removeprefix("audio/")})
        case BlobPart(data, mime_type, "image"):
            return _item("image_url", {"url": _data_url(data, mime_type)})
        case BlobPart(data, mime_type):
            return _item("file", {"file_data": _data_url(data, mime_type)})
        case FilePart(file_id):
            return _item("file", {"file_id": file_id})
        case UriPart(uri, _, modality):
            # The API takes the address of an image alone; any other goes out as text.
            return _item("image_url", {"url": uri}) if modality == "image" else _item("text", uri)


def _item(kind: str, value: Tree) -> dict[str, Tree]:
    return {"type": kind, kind: value}


def _data_url(data: str, mime_type: str | None) -> str:
    return f"data:{mime_type or _OCTETS};base64,{data}"


def _render_call(call: ToolCallPart) -> dict[str, Tree]:
    fields: dict[str, Tree] = {"type": "function", "function": _render_function(call)}
    return fields if call.id is None else {"id": call.id, **fields}


def _render_function(call: ToolCallPart) -> dict[str, Tree]:
    # A call without arguments is an empty object in this format.
    arguments = "{}" if bytes(call.arguments) == b"null" else _as_text(call.arguments)
    return {"name": call.name, "arguments": arguments}


def _as_text(value: msgspec.Raw) -> str:
    text = text_or_none(value)
    return text if text is not None else bytes(value).decode()
