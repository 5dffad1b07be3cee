"""How blobs are stored: compressed where that saves room. Pure.

A stored body that begins with the magic number of Zstandard is a frame of it, every other body is the content itself.
Content that happens to begin with that number is framed, whatever its size, so that no body can be taken for the other
kind and none needs a column that says so.
"""

from __future__ import annotations

import zstandard

THRESHOLD_BYTES = 1024
"""Smaller content is stored as it is: the frame would save little."""

_MAGIC = zstandard.FRAME_HEADER
_LEVEL = 1


def packed(content: bytes) -> bytes:
    """Give the body to store for some content."""
    ambiguous = content.startswith(_MAGIC)
    if len(content) < THRESHOLD_BYTES and not ambiguous:
        return content
    # One that is made for the purpose: a compressor must not be used by two threads at once, and making it is cheap.
    frame = zstandard.ZstdCompressor(level=_LEVEL).compress(content)
    return frame if ambiguous or len(frame) < len(content) else content


def unpacked(body: bytes) -> bytes | None:
    """Give the content of a stored body; None for a frame that is damaged."""
    if not body.startswith(_MAGIC):
        return body
    try:
        return zstandard.ZstdDecompressor().decompress(body, read_across_frames=False, allow_extra_data=False)
    except (zstandard.ZstdError, MemoryError):
        return None
