"""JSON that others wrote: checked once at the door, kept byte for byte behind it.

What passes here can be stored as ``Raw`` and read back by every JSON reader: it is UTF-8, strict JSON, without lone
surrogates (law B1), and nested no deeper than ``MAX_DEPTH``, so that no reader runs out of stack on it later.
"""

from __future__ import annotations

import json
import re
from typing import NoReturn

import msgspec

from fastness.errors import InvalidInputError

MAX_DEPTH = 256
"""How deep foreign JSON may be nested. Records wrap it in a few levels more; readers give up at about a thousand."""

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")

_raw = msgspec.json.Decoder(msgspec.Raw)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_elements = msgspec.json.Decoder(list[msgspec.Raw])
_text = msgspec.json.Decoder(str)


def foreign_json(source: bytes | msgspec.Raw, what: str) -> msgspec.Raw:
    """Check one JSON value from outside and give it without its outer white space.

    ``what`` names the value in the ``InvalidInputError``.
    """
    data = bytes(source)
    try:
        data.decode()
        value = bytes(_raw.decode(data))
    except UnicodeDecodeError as error:
        raise InvalidInputError(what, f"is not UTF-8 (byte {error.start})") from None
    except (msgspec.DecodeError, RecursionError) as error:
        _refuse(data, what, error)
    # Counting the brackets is a cheap upper bound that spares nearly everything the exact measure.
    if value.count(b"{") + value.count(b"[") > MAX_DEPTH and depth_of(value) > MAX_DEPTH:
        raise InvalidInputError(what, f"is nested deeper than {MAX_DEPTH} levels")
    return msgspec.Raw(value)


def depth_of(data: bytes) -> int:
    """Measure how deep valid JSON is nested, without recursion."""
    depth = deepest = 0
    for bracket in _BRACKET.findall(_STRING.sub(b"", data)):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def opening(value: msgspec.Raw) -> bytes:
    """Give the first byte of a checked value, which says what kind of value it is."""
    return bytes(memoryview(value)[:1])


def fields_of(value: msgspec.Raw, what: str) -> dict[str, msgspec.Raw]:
    """Give the fields of a checked JSON object in their order. ``InvalidInputError`` for any other value."""
    try:
        return _fields.decode(value)
    except msgspec.DecodeError:
        raise InvalidInputError(what, "is not a JSON object") from None


def fields_or_none(value: msgspec.Raw) -> dict[str, msgspec.Raw] | None:
    """Give the fields of a checked value if it is an object."""
    return _fields.decode(value) if opening(value) == b"{" else None


def elements_or_none(value: msgspec.Raw) -> list[msgspec.Raw] | None:
    """Give the elements of a checked value if it is an array."""
    return _elements.decode(value) if opening(value) == b"[" else None


def text_or_none(value: msgspec.Raw | None) -> str | None:
    """Give the text of a checked value if it is a string."""
    return _text.decode(value) if value is not None and opening(value) == b'"' else None


def _refuse(data: bytes, what: str, error: Exception) -> NoReturn:
    """Say why data is no JSON that can be kept; lenient readers take some of it, so say what they overlook."""
    if isinstance(error, RecursionError):
        raise InvalidInputError(what, f"is nested deeper than {MAX_DEPTH} levels") from None
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        raise InvalidInputError(what, f"is not valid JSON: {error}") from None
    raise InvalidInputError(what, "holds a lone surrogate, NaN or Infinity, which JSON cannot carry") from None
