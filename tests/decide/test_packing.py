"""Blobs come out of their stored bodies as they went in, and damaged bodies come out as nothing."""

from __future__ import annotations

import random

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastness.decide.packing import THRESHOLD_BYTES, packed, unpacked

MAGIC = b"\x28\xb5\x2f\xfd"
LONG = b"all work and no play " * 500

contents = st.one_of(
    st.binary(max_size=3000),
    st.binary(max_size=3000).map(lambda rest: MAGIC + rest),
    st.tuples(st.binary(min_size=1, max_size=20), st.integers(1, 400)).map(lambda found: found[0] * found[1]),
    st.binary(max_size=3000).map(packed),
    st.binary(min_size=1100, max_size=3000).map(packed).map(packed),
)


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(contents)
@example(b"")
@example(MAGIC)
@example(MAGIC[:3])
@example(packed(LONG))
def test_content_comes_out_as_it_went_in(content: bytes) -> None:
    """Whatever it is, also content that looks like a packed body or is one."""
    assert unpacked(packed(content)) == content


def test_small_content_is_stored_as_it_is() -> None:
    """Up to the threshold a body is the content, unless it begins like a frame."""
    small = b"a" * (THRESHOLD_BYTES - 1)
    assert THRESHOLD_BYTES == 1024
    assert packed(small) == small
    assert packed(MAGIC) != MAGIC
    assert packed(MAGIC).startswith(MAGIC)


def test_content_that_does_not_get_smaller_is_stored_as_it_is() -> None:
    """A frame that saves nothing is not kept; one that does is a small part of what it holds."""
    noise = random.Random(1).randbytes(5000)
    assert packed(noise) == noise
    assert len(packed(LONG)) < 100
    assert packed(LONG)[:4] == MAGIC


DAMAGED = {
    "only the magic number": MAGIC,
    "a frame that is cut off": packed(LONG)[:-1],
    "a frame that is cut to its header": packed(LONG)[:8],
    "a frame with something behind it": packed(LONG) + b"x",
    "a frame behind a frame": packed(LONG) * 2,
    "noise behind the magic number": MAGIC + b"\xff" * 200,
    "a frame that says that it has 2**62 bytes": MAGIC + b"\xe0" + (2**62).to_bytes(8, "little") + bytes(20),
    "a frame that does not say how large it is": zstandard.ZstdCompressor(write_content_size=False).compress(LONG)[:20],
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_frame_is_nothing(kind: str) -> None:
    """It is not taken for content, and raises nothing."""
    assert unpacked(DAMAGED[kind]) is None


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.integers(4, len(packed(LONG)) - 1), st.integers(1, 255))
def test_no_damage_to_a_frame_raises(at: int, change: int) -> None:
    """A byte that has changed gives nothing, or other content, which its hash will tell: never an error."""
    body = bytearray(packed(LONG))
    body[at] ^= change
    found = unpacked(bytes(body))
    assert found is None or isinstance(found, bytes)
