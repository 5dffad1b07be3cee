"""Files of recorded conversations, read one at a time.

A record is an object that holds its messages under ``traj``, ``messages`` or ``conversation``, or a bare list of
messages. A file is a JSON array of records, records in a row (JSON Lines), or one record. Everything of a record but
its messages is kept, so that ``assemble`` gives the record back as it came. Errors say which record is wrong and where.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from fastness.errors import InvalidInputError
from fastness.formats.foreign import elements_or_none, fields_or_none, foreign_json, text_or_none
from fastness.formats.values import Place, ValueReader
from fastness.model.base import encode

MESSAGE_KEYS = ("traj", "messages", "conversation")
"""The fields under which a record may hold its messages, the first that is there counts."""

MAX_RECORD_BYTES = 48 << 20
"""The largest record that is read. A store takes 64 MiB at once unless configured otherwise, and nodes need a frame."""


class Frame(msgspec.Struct, frozen=True, omit_defaults=True):
    """A record without its messages: their key (None: the record is a bare list), its position, all other fields."""

    key: str | None = None
    position: int = 0
    rest: msgspec.Raw = msgspec.Raw(b"{}")


class ConversationRecord(msgspec.Struct, frozen=True):
    """One recorded conversation. ``index`` counts the records of a file from 0."""

    index: int
    place: Place
    frame: Frame
    messages: tuple[msgspec.Raw, ...]

    def __str__(self) -> str:
        return f"record {self.index + 1} ({self.place})"

    def field(self, path: str) -> str:
        """Give a text, number or truth value beside the messages, by its dotted path, as text.

        ``InvalidInputError`` where it is missing or holds more than one value.
        """
        value: msgspec.Raw | None = self.frame.rest
        for name in path.split("."):
            value = (fields_or_none(value) or {}).get(name) if value is not None else None
        if value is None or bytes(value)[:1] in (b"{", b"[", b"n"):
            raise InvalidInputError(str(self), f"has no single value in the field {path!r}")
        text = text_or_none(value)
        return text if text is not None else bytes(value).decode()


def read_records(path: Path, *, max_record_bytes: int = MAX_RECORD_BYTES) -> Iterator[ConversationRecord]:
    """Read the records of a file in their order. ``InvalidInputError`` for what is none, naming record and place."""
    try:
        with path.open("rb") as file:
            reader = ValueReader(file, max_value_bytes=max_record_bytes)
            if not reader.peek():
                raise InvalidInputError(f"file {str(path)!r}", "is empty; it must hold recorded conversations")
            for index, (place, value) in enumerate(_values(reader, max_record_bytes)):
                reader.what = f"record {index + 2}"
                yield _record(index, place, value)
    except OSError as error:
        raise InvalidInputError(f"file {str(path)!r}", f"cannot be read: {error.strerror or error}") from error


def assemble(frame: Frame, messages: Sequence[bytes]) -> bytes:
    """Give the record that a frame was taken from, with its messages in their place."""
    listed = msgspec.Raw(b"[" + b",".join(messages) + b"]")
    if frame.key is None:
        return bytes(listed)
    fields = list((fields_or_none(frame.rest) or {}).items())
    fields.insert(frame.position, (frame.key, listed))
    return encode(dict(fields))


def _values(reader: ValueReader, limit: int) -> Iterator[tuple[Place, bytes]]:
    reader.what = "record 1"
    while first := reader.peek():
        place = reader.place
        if first != b"[":
            yield place, reader.take()
        else:
            yield from _values_of_array(reader, place, limit)


def _values_of_array(reader: ValueReader, place: Place, limit: int) -> Iterator[tuple[Place, bytes]]:
    """Tell an array of records from a record that is a bare list of messages by its first element."""
    messages: list[bytes] | None = None
    size = 0
    for at, (inner, value) in enumerate(_elements(reader)):
        if at == 0 and _is_message(value):
            messages = []
        if messages is None:
            yield inner, value
            continue
        messages.append(value)
        size += len(value) + 1
        if size > limit:
            raise InvalidInputError(reader.what, f"({place}) is larger than {limit} bytes")
    if messages is not None:
        yield place, b"[" + b",".join(messages) + b"]"


def _elements(reader: ValueReader) -> Iterator[tuple[Place, bytes]]:
    reader.skip()
    if reader.peek() == b"]":
        reader.skip()
        return
    while True:
        if not reader.peek():
            raise InvalidInputError(reader.what, f"({reader.place}) is missing: the file ends inside the list")
        yield reader.place, reader.take()
        end = reader.peek()
        if end not in (b",", b"]"):
            found = f"{end!r}" if end else "the end of the file"
            raise InvalidInputError(
                reader.what, f"cannot be told from the one before: {found} ({reader.place}) is no comma and no bracket"
            )
        reader.skip()
        if end == b"]":
            return


def _is_message(value: bytes) -> bool:
    try:
        fields = fields_or_none(foreign_json(value, "message")) or {}
    except InvalidInputError:
        return False
    return "role" in fields and not any(key in fields for key in MESSAGE_KEYS)


def _record(index: int, place: Place, data: bytes) -> ConversationRecord:
    what = f"record {index + 1} ({place})"
    value = foreign_json(data, what)
    bare = elements_or_none(value)
    if bare is not None:
        return ConversationRecord(index, place, Frame(), tuple(bare))
    fields = fields_or_none(value)
    key = next((key for key in MESSAGE_KEYS if key in fields), None) if fields is not None else None
    if fields is None or key is None:
        names = ", ".join(map(repr, MESSAGE_KEYS))
        raise InvalidInputError(what, f"is no conversation: it needs a list of messages under one of {names}")
    position = list(fields).index(key)
    messages = elements_or_none(fields.pop(key))
    if messages is None:
        raise InvalidInputError(what, f"is no conversation: its field {key!r} is not a list of messages")
    rest = msgspec.Raw(encode(fields))
    return ConversationRecord(index, place, Frame(key, position, rest), tuple(messages))
