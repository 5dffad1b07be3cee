"""The two base classes of the vocabulary, and JSON the way records use it.

A ``Value`` is immutable and round-trips through JSON. A ``Record`` is a value that is stored on its own: its JSON opens
with its schema version (``{"v":1,…``, an array with the number alone), so that a reader can refuse a version it does
not know by number (law M4).
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec

from fastness.errors import (
    InvalidInputError,
    RecordVersionInvalidError,
    RecordVersionMissingError,
    RecordVersionUnsupportedError,
)

RECORD_VERSION = 1
"""The schema version that this release writes and reads, for every kind of record."""

_VERSION_PREFIX = b'{"v":1,'

MAX_ID_BYTES = 512
"""The longest id or key, in bytes of UTF-8."""

MAX_TIMESTAMP_BYTES = 64
MAX_INT = 2**63 - 1

# What a record is held to when it is read back. That a text has no NUL, and how many bytes it has where it is not
# ASCII, is beyond a schema: ``checked_bodies`` has that looked at.
Id: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID_BYTES)]
Timestamp: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_TIMESTAMP_BYTES)]
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=MAX_INT)]


class Value(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """An immutable value. Fields that hold their default are left out of its JSON.

    What is immutable cannot be part of a cycle, so the collector need not look at it: a session has many of them.
    """


class Record(Value, frozen=True, tag_field="v", tag=RECORD_VERSION):
    """A value that is stored on its own, versioned."""


V = TypeVar("V", bound=Value)
R = TypeVar("R", bound=Record)

_encoder = msgspec.json.Encoder()
_canonical_encoder = msgspec.json.Encoder(order="sorted")


def encode(value: Any) -> bytes:
    """Give the JSON of a value; text that is no Unicode (a lone surrogate) is an ``InvalidInputError``."""
    try:
        return _encoder.encode(value)
    except UnicodeEncodeError:
        raise InvalidInputError(type(value).__name__, "contains a lone surrogate, which is not valid text") from None
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise InvalidInputError(type(value).__name__, f"is not JSON: {error}") from None


def canonical_json(value: Any, what: str | None = None) -> bytes:
    """Give the one JSON that equal values share: keys sorted, no white space. For hashes only.

    ``what`` names the value in an ``InvalidInputError``, if not its type.
    """
    try:
        return _canonical_encoder.encode(value)
    except UnicodeEncodeError:
        raise InvalidInputError(
            what or type(value).__name__, "contains a lone surrogate, which is not valid text"
        ) from None
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise InvalidInputError(what or type(value).__name__, f"is not JSON: {error}") from None


def sha256_hex(data: bytes) -> str:
    """Give the lower-case hexadecimal sha256 of the bytes."""
    return hashlib.sha256(data).hexdigest()


NO_JSON = msgspec.Raw(b"null")
"""Foreign JSON that was not given. (A union of ``Raw`` and None cannot be decoded.)"""


def raw_json(value: Any) -> msgspec.Raw:
    """Make foreign JSON from Python data, for fields that are kept byte for byte."""
    return msgspec.Raw(encode(value))


_decoders: dict[type[Value], msgspec.json.Decoder[Any]] = {}
_list_decoders: dict[type[Value], msgspec.json.Decoder[Any]] = {}

# A decoder that is being built leaves what it knows of its types half done where another one finds it: two threads that
# build at once can end the process with a segmentation fault. What is built is safe in any thread.
_building = threading.Lock()


def list_decoder_of(kind: type[V]) -> msgspec.json.Decoder[list[V]]:
    """Give the one decoder of lists of a kind of value."""
    known = _list_decoders.get(kind)
    if known is None:
        with _building:
            known = _list_decoders[kind] = msgspec.json.Decoder(list[kind])  # type: ignore[valid-type]
    return known


def decoder_of(kind: type[V]) -> msgspec.json.Decoder[V]:
    """Give the one decoder of a kind of value (building one is costly)."""
    known = _decoders.get(kind)
    if known is None:
        with _building:
            known = _decoders[kind] = msgspec.json.Decoder(kind)
    return known


def decode_record(kind: type[R], body: bytes | str) -> R:
    """Read a stored record.

    Raises one of the ``RecordVersionError`` kinds (law M4), and ``msgspec.DecodeError`` (or its subclass
    ``msgspec.ValidationError``) for a body that is damaged otherwise.
    """
    data = body.encode() if isinstance(body, str) else body
    if not data.startswith(_VERSION_PREFIX):
        check_version(kind, data)
    return decoder_of(kind).decode(data)


def check_version(kind: type[Record], data: bytes) -> None:
    """Refuse a record whose schema version is missing, invalid or unknown. The slow path: it reads the whole record."""
    found = msgspec.json.decode(data)
    if isinstance(found, list) and found:
        version = found[0]
    elif isinstance(found, dict) and "v" in found:
        version = found["v"]
    else:
        raise RecordVersionMissingError(kind.__name__)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise RecordVersionInvalidError(kind.__name__, version)
    if version != RECORD_VERSION:
        raise RecordVersionUnsupportedError(kind.__name__, version, (RECORD_VERSION,))


def checked(kind: type[R], value: R) -> tuple[R, str]:
    """Give a record as it will be read back, and the JSON that is about to be stored.

    Struct fields are not checked when a value is built. A record that could be written and not be read would poison
    its session, so whatever does not round-trip exactly is an ``InvalidInputError`` here, before anything is written.
    """
    if type(value) is not kind:  # a subclass may encode itself otherwise
        raise InvalidInputError(kind.__name__, f"must be exactly that, not {type(value).__name__}")
    data = encode(value)
    try:
        body = data.decode()  # foreign JSON is taken as it is, and may not even be text
        again = decoder_of(kind).decode(data)
        same = again == value or _encoder.encode(again) == data
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise InvalidInputError(kind.__name__, f"does not fit its own schema: {error}") from None
    if not same:
        raise InvalidInputError(
            kind.__name__, "does not round-trip (foreign JSON must be exactly one value without outer white space)"
        )
    return again, body


def checked_bodies(kind: type[R], values: Sequence[R], look: Callable[[R], object]) -> list[str]:
    """Give the JSON of several records, each as ``checked`` gives it, at less cost.

    ``look`` raises for a record whose ids break a limit. It is called for each, unless the JSON as a whole shows that
    there is nothing to find: it fits its schema and reads back as what was given, all of it is ASCII, and nowhere is
    a NUL.
    """
    bodies: list[str] | None = None
    is_plain = False
    try:
        encoded = [_encoder.encode(value) for value in values]
        whole = b"[%b]" % b",".join(encoded)
        again = list_decoder_of(kind).decode(whole)
        # One by one: foreign JSON that ends its record early could pass for two in the list as a whole. Values that are
        # not equal may still read back as themselves, such as a list for a tuple.
        equal = again == list(values)
        same = equal or [_encoder.encode(value) for value in again] == encoded
        if same and set(map(type, values)) <= {kind}:
            bodies = [body.decode() for body in encoded]
            # Bytes, UUIDs and members of enumerations become texts in JSON; the ids themselves are bound to statements.
            is_plain = equal and _types(values) <= _types(again) and whole.isascii() and b"\\u0000" not in whole
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError):
        pass  # what is wrong, and with which of them, is for the slow way to say
    if not is_plain:
        for value in values:
            look(value)
    return [checked(kind, value)[1] for value in values] if bodies is None else bodies


def _types(values: Sequence[Record]) -> set[type]:
    """The classes of what the fields of records hold."""
    return set(map(type, chain.from_iterable(map(msgspec.structs.astuple, values))))
