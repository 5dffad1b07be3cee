"""What reaches the terminal: text made safe, columns, JSON.

Transcripts hold what models and tools wrote. Control characters in them could move the cursor, change the title or
forge lines; marks of writing direction and characters without width could disguise what is read. All are shown as
visible signs instead.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fastness.model.base import encode

# What has no width or changes the direction: marks of direction, joiners, the byte order mark, tags.
_INVISIBLE = "\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2064\u2066-\u2069\ufeff\U000e0000-\U000e007f"
_PICTURE = "\u2190-\u23ff\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff"
# A joiner between two pictures makes one picture of them.
_JOINS_PICTURES = f"(?<=[{_PICTURE}\ufe0f])\u200d(?=[{_PICTURE}])"
_UNSAFE = re.compile(f"(?!{_JOINS_PICTURES})[\x00-\x08\x0b-\x1f\x7f-\x9f{_INVISIBLE}]")
_LINE_BREAKS = re.compile("[\n\t]")
_BROKEN_JSON = re.compile(rb"[ \t]*[\r\n][ \t\r\n]*")
_UNSAFE_IN_JSON = re.compile(f"[\x7f-\x9f{_INVISIBLE}]")
_PROOF = "lease_token"


def safe(text: str) -> str:
    """Make text harmless to a terminal; line feeds and tabs stay."""
    return _UNSAFE.sub(_sign, text)


def one_line(text: str, limit: int | None = None) -> str:
    """Make text harmless and put it on one line, cut to a length where one is given."""
    found = safe(_LINE_BREAKS.sub(" ", text))
    return found if limit is None or len(found) <= limit else found[: max(limit - 1, 0)] + "…"


def out(text: str = "") -> None:
    """Print text that is safe already."""
    print(text)


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


def note(text: str) -> None:
    """Say something besides the result, on stderr. Where nobody can be told, nobody is: the result stands."""
    try:
        print(f"fastness: {one_line(text)}", file=sys.stderr, flush=True)
    except OSError:
        silence(sys.stderr)


def silence(stream: TextIO) -> None:
    """Send what a stream still holds nowhere: Python would flush it at the end, complain and change the status."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def columns(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows under their heads, two blanks between columns."""
    table = [heads, *(tuple(one_line(cell) for cell in row) for row in rows)]
    widths = [max(len(row[at]) for row in table) for at in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
    )


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Say how many there are."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def progress_bar(unit: str) -> Progress:
    """Make a bar that counts ``unit`` on stderr, and that is not there where stderr is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
        console=Console(file=sys.stderr),
        disable=not sys.stderr.isatty(),
        transient=True,
    )


def moment(epoch_ms: int) -> str:
    """Give a time of the database as a person reads it, in UTC."""
    try:
        return datetime.fromtimestamp(epoch_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return f"{epoch_ms} ms"


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


def _sign(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"<U+{code:04X}>"
