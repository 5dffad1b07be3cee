"""The JSON values of a file, one after the other, in memory that does not grow with the file.

A file holds values in a row (JSON Lines is the common case), or one array whose elements are wanted. ``ValueReader``
finds where a value ends by counting brackets outside strings; whether it is valid JSON is for its reader to say. No
value may be larger than the limit, so that a hostile file cannot fill the memory either.
"""

from __future__ import annotations

import re
from typing import BinaryIO, NamedTuple

from fastness.errors import InvalidInputError

_CHUNK = 1 << 18
_SPACE = re.compile(rb"[ \t\r\n]*+")
_PLAIN = re.compile(rb'[^"\[\]{}]*+')
_SCALAR = re.compile(rb"[^ \t\r\n,\]}]*+")
_IN_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_MARK = b"\xef\xbb\xbf"


class Place(NamedTuple):
    """Where a value begins in its file: line counted from 1, byte from 0."""

    line: int
    byte: int

    def __str__(self) -> str:
        return f"line {self.line}, byte {self.byte}"


class ValueReader:
    """Reads a file from front to back. ``what`` names the value at hand in errors; the owner keeps it true."""

    def __init__(self, file: BinaryIO, *, max_value_bytes: int) -> None:
        self.what = "value"
        self._file = file
        self._limit = max_value_bytes
        self._data = bytearray()
        self._at = 0
        self._ended = False
        self._place = Place(1, 0)
        while len(self._data) < len(_MARK) and self._fill():
            pass
        if self._data.startswith(_MARK):
            self._advance(len(_MARK))

    @property
    def place(self) -> Place:
        """Where the next value begins, once ``peek`` was called."""
        return self._place

    def peek(self) -> bytes:
        """Skip white space and give the byte that follows, empty at the end of the file."""
        while True:
            match = _SPACE.match(self._data)
            self._advance(match.end() if match else 0)
            if self._data or not self._fill():
                return bytes(self._data[:1])

    def skip(self) -> None:
        """Leave one byte behind: the bracket or comma that ``peek`` gave."""
        self._advance(1)

    def take(self) -> bytes:
        """Take the value that begins here. ``InvalidInputError`` if the file ends inside it or it is too large."""
        end = self._end_of_nested() if self.peek() in (b"{", b"[", b'"') else self._end_of_scalar()
        value = bytes(self._data[:end])
        self._advance(end)
        return value

    def _end_of_nested(self) -> int:
        at = depth = 0
        while True:
            at = self._run(_PLAIN, at)
            byte = self._data[at]
            at += 1
            if byte == 0x22:
                at = self._run(_IN_STRING, at) + 1
            else:
                depth += 1 if byte in b"{[" else -1
            if depth <= 0:
                return at

    def _run(self, pattern: re.Pattern[bytes], at: int) -> int:
        """Run over what the pattern matches, reading on as needed, and give the place of the byte that ends it."""
        while True:
            match = pattern.match(self._data, at)
            at = match.end() if match else at
            # An escape may be cut in two by the end of what was read: it does not end the string.
            if at < len(self._data) and not (pattern is _IN_STRING and self._data[at] == 0x5C):
                return at
            self._check_size()
            if not self._fill():
                raise InvalidInputError(self.what, f"({self._place}) is cut off: the file ends inside it")

    def _end_of_scalar(self) -> int:
        while True:
            match = _SCALAR.match(self._data)
            end = match.end() if match else 0
            if end < len(self._data):
                return max(end, 1)
            self._check_size()
            if not self._fill():
                return end

    def _check_size(self) -> None:
        if len(self._data) > self._limit:
            raise InvalidInputError(self.what, f"({self._place}) is larger than {self._limit} bytes")

    def _fill(self) -> bool:
        chunk = b"" if self._ended else self._file.read(_CHUNK)
        self._ended = not chunk
        self._data += chunk
        return bool(chunk)

    def _advance(self, count: int) -> None:
        if count:
            lines = self._data.count(b"\n", 0, count)
            self._place = Place(self._place.line + lines, self._place.byte + count)
            del self._data[:count]
