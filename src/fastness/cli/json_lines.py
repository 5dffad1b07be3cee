"""What is printed as JSON, a value a line."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import msgspec

from fastness.cli.screen import INVISIBLE
from fastness.model.base import encode

_BROKEN_JSON = re.compile(rb"[ \t]*[\r\n][ \t\r\n]*")
_UNSAFE_IN_JSON = re.compile(f"[\x7f-\x9f{INVISIBLE}]")
_PROOF = "lease_token"


def out_json(value: Any) -> None:
    """Print a value as one line of JSON, every field of it, but for the token that proves a lease."""
    out_bytes(encode(_whole(value)))


def out_bytes(data: bytes) -> None:
    """Print JSON as it is, on one line; on a terminal, with escapes for what a terminal could take for a command."""
    # A line break inside JSON is white space between values: text has it as an escape.
    data = _BROKEN_JSON.sub(b"", data)
    if sys.stdout.isatty():
        data = _UNSAFE_IN_JSON.sub(lambda match: json.dumps(match[0])[1:-1], data.decode()).encode()
    sys.stdout.flush()
    binary = getattr(sys.stdout, "buffer", None)
    if binary is None:
        sys.stdout.write(data.decode() + "\n")
    else:
        binary.write(data + b"\n")


def _whole(value: Any) -> Any:
    """Give a value for JSON with the fields that a record leaves out where they hold their default."""
    if isinstance(value, msgspec.Struct):
        config = value.__struct_config__
        tag = {} if config.tag_field is None else {config.tag_field: config.tag}
        names = zip(value.__struct_encode_fields__, value.__struct_fields__, strict=True)
        return tag | {key: _whole(getattr(value, name)) for key, name in names if name != _PROOF}
    if isinstance(value, dict):
        return {key: _whole(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_whole(one) for one in value]
    return value
