"""Transcripts as a person reads them: a branch from top to bottom, or all branches as a tree."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from fastness.cli.screen import counted, one_line, safe
from fastness.formats.foreign import text_or_none
from fastness.model.transcript import PluginPayload, SessionNodeRecord
from fastness.persistence import (
    BlobPart,
    FilePart,
    GenericPart,
    Message,
    MessagePart,
    PersistedSessionRead,
    ReasoningPart,
    TextPart,
    ToolCallPart,
    ToolCallResponsePart,
    UriPart,
    snapshot_of,
)

_LONGEST = 1200
_LINE = 88


def readable(read: PersistedSessionRead, *, full: bool) -> Iterator[str]:
    """Give the lines of the branch that was loaded."""
    path = read.graph.active_path()
    yield _title(read, sum(node.message is not None for node in path))
    for node in path:
        if node.message is not None:
            yield ""
            yield f"{node.message.role}:"
            yield from _body(node.message, full=full)


def tree(read: PersistedSessionRead) -> Iterator[str]:
    """Give a line for each message of all branches. Only a fork indents, so that long conversations stay readable."""
    nodes = read.graph.nodes
    children: dict[str | None, list[SessionNodeRecord]] = {}
    for node in nodes:
        children.setdefault(node.parent_node_id, []).append(node)
    yield _title(read, sum(node.message is not None for node in nodes))
    roots = children.get(None, [])
    stack = [(node, "", len(roots) > 1, at == len(roots) - 1) for at, node in reversed(list(enumerate(roots)))]
    while stack:
        node, indent, is_fork, is_last = stack.pop()
        below = children.get(node.node_id, [])
        mark = ("└─ " if is_last else "├─ ") if is_fork else ""
        yield f"{indent}{mark}{summary(node)}{_end(read, node, bool(below))}"
        inner = indent + (("   " if is_last else "│  ") if is_fork else "")
        forks = len(below) > 1
        stack.extend((child, inner, forks, at == len(below) - 1) for at, child in reversed(list(enumerate(below))))


def _title(read: PersistedSessionRead, messages: int) -> str:
    turns = counted(snapshot_of(read).turn_state.turn_index, "turn")
    found = f"session {one_line(read.meta.session_id)}: {counted(messages, 'message')}, {turns},"
    return f"{found} revision {read.head.meta.revision:,}"


def _end(read: PersistedSessionRead, node: SessionNodeRecord, has_children: bool) -> str:
    if has_children:
        return ""
    active = "active leaf" if node.node_id == read.graph.leaf_node_id else "leaf"
    return f"  [{active} {one_line(node.node_id)}]"


def summary(node: SessionNodeRecord) -> str:
    """Say on one line what a node is: who says what, or the kind of an event."""
    if node.message is not None:
        text = " ".join(" ".join(_part(part)) for part in node.message.parts)
        return f"{node.message.role}: {one_line(' '.join(text.split()), _LINE)}"
    kind = node.payload.plugin_type if isinstance(node.payload, PluginPayload) else "event"
    return f"({one_line(kind)})"


def _body(message: Message, *, full: bool) -> Iterator[str]:
    for part in message.parts:
        text = safe("\n".join(_part(part)))
        if not full and len(text) > _LONGEST:
            text = f"{text[:_LONGEST]}… ({len(text) - _LONGEST:,} more characters, see --full)"
        for line in text.split("\n"):
            yield f"  {line}"


def _part(part: MessagePart) -> list[str]:
    match part:
        case TextPart(text):
            return [text]
        case ReasoningPart(text):
            return [f"(thinks) {text}"]
        case ToolCallPart(name, arguments):
            return [f"→ {name}({_json_text(arguments)})"]
        case ToolCallResponsePart(response):
            return [_json_text(response)]
        case GenericPart(kind, body):
            return [f"[{kind}] {bytes(body).decode()}"]
        case _:
            return [_media(part)]


def _json_text(value: msgspec.Raw) -> str:
    text = text_or_none(value)
    return bytes(value).decode() if text is None else text


def _media(part: BlobPart | FilePart | UriPart) -> str:
    match part:
        case BlobPart(content, mime_type, modality):
            return f"[{modality} {mime_type or ''}, {len(content):,} characters of base64]"
        case FilePart(file_id, _, modality):
            return f"[{modality} file {file_id}]"
        case UriPart(uri, _, modality):
            return f"[{modality} {uri}]"
