"""What some content is: its media type, and for images their size.

The libraries that know the formats are imported when they are first needed. It promises an answer for any bytes, empty
ones included, and looks at nothing but the beginning of the content and its name.
"""

from __future__ import annotations

import io
import mimetypes
from pathlib import PurePosixPath
from typing import NamedTuple

# The names that Python knows by itself, since what a machine has in its files must not change an answer; and some that
# not every version of it knows, or not by the same type.
_NAMES = mimetypes.MimeTypes()
for _suffix, _type in {
    ".js": "text/javascript",
    ".md": "text/markdown",
    ".toml": "application/toml",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
}.items():
    _NAMES.add_type(_type, _suffix)

_UNKNOWN = "application/octet-stream"
_TEXT = "text/plain"
_ARCHIVE = "application/zip"
_CERTAIN = 0.4
"""Below this a match is two or three bytes long, and text may well begin with them."""


class Media(NamedTuple):
    """A media type without parameters; ``width`` and ``height`` in pixels, where it is an image that tells them."""

    media_type: str
    width: int | None = None
    height: int | None = None


def describe(head: bytes, name: str) -> Media:
    """Tell what content is from its beginning and from its name where that fits it."""
    matches = _matches(head)
    suffix = PurePosixPath(name).suffix.lower()
    named = next((match.media_type for match in matches if match.suffix == suffix != ""), None)
    if named is None:
        named = _NAMES.guess_type(f"name{suffix}", strict=False)[0]
    media_type = choose([(match.media_type, match.confidence) for match in matches], _is_text(head), named)
    if not media_type.startswith("image/"):
        return Media(media_type)
    return Media(media_type, *_pixels(head))


def choose(matches: list[tuple[str, float]], is_text: bool, named: str | None) -> str:
    """Decide between what the bytes look like, as (media type, confidence), and what the name says.

    A name cannot turn one format into another; it can say which of several that begin alike, and what kind of text.
    """
    certain = [media_type for media_type, confidence in matches if confidence >= _CERTAIN]
    if named is not None and named in certain:
        return named
    if certain and is_text and named is not None and _is_textual(named) and _is_textual(certain[0]):
        return named
    if certain:
        return _ARCHIVE if _ARCHIVE in certain else certain[0]
    if is_text:
        return named if named is not None and _is_textual(named) else _TEXT
    possible = [media_type for media_type, _ in matches]
    if named is not None and named in possible:
        return named
    return possible[0] if possible else _UNKNOWN


def _is_textual(media_type: str) -> bool:
    kind, _, rest = media_type.partition("/")
    return (
        kind == "text"
        or rest.endswith(("+json", "+xml"))
        or rest in {"json", "xml", "javascript", "x-javascript", "x-sh", "yaml", "x-yaml", "toml", "sql", "x-tex"}
    )


def _is_text(head: bytes) -> bool:
    if b"\0" in head:
        return False
    try:
        head.decode()
    except UnicodeDecodeError as error:
        # A character that the end of the head cut in two is no fault of the text.
        return error.start >= len(head) - 3 and error.reason == "unexpected end of data"
    return True


class _Match(NamedTuple):
    media_type: str
    confidence: float
    suffix: str


def _matches(head: bytes) -> list[_Match]:
    import puremagic  # noqa: PLC0415 - it reads its tables when it is imported

    try:
        found = puremagic.magic_string(head)
    except (puremagic.PureError, ValueError):  # it knows no such beginning; there is none
        return []
    return [_Match(match.mime_type, match.confidence, match.extension) for match in found if match.mime_type]


def _pixels(head: bytes) -> tuple[int | None, int | None]:
    import imagesize  # type: ignore[import-untyped]  # noqa: PLC0415

    try:
        width, height = imagesize.get(io.BytesIO(head))
    except Exception:  # noqa: BLE001 - a parser of foreign bytes; an image without a size is still an image
        return None, None
    if width is None or height is None or width <= 0 or height <= 0:
        return None, None
    return int(width), int(height)
