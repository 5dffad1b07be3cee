"""What reaches the terminal: text made safe, columns.

Transcripts hold what models and tools wrote. Control characters in them could move the cursor, change the title or
forge lines; marks of writing direction and characters without width could disguise what is read. All are shown as
visible signs instead.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TextIO

# What has no width or changes the direction: marks of direction, joiners, the byte order mark, tags.
INVISIBLE = "\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2064\u2066-\u2069\ufeff\U000e0000-\U000e007f"
_PICTURE = "\u2190-\u23ff\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff"
# A joiner between two pictures makes one picture of them.
_JOINS_PICTURES = f"(?<=[{_PICTURE}\ufe0f])\u200d(?=[{_PICTURE}])"
_UNSAFE = re.compile(f"(?!{_JOINS_PICTURES})[\x00-\x08\x0b-\x1f\x7f-\x9f{INVISIBLE}]")
_LINE_BREAKS = re.compile("[\n\t]")


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


def moment(epoch_ms: int) -> str:
    """Give a time of the database as a person reads it, in UTC."""
    try:
        return datetime.fromtimestamp(epoch_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return f"{epoch_ms} ms"


def _sign(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"<U+{code:04X}>"
