"""Where a session waits between two databases: in memory while it is small, then in a temporary file.

The reader's thread fills it and the writer's empties it, one after the other, as often as they have to begin anew.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from tempfile import SpooledTemporaryFile
from types import TracebackType
from typing import Any, Self

import msgspec

from fastness.errors import BackendError
from fastness.ops.transfer import Page
from fastness.sql.program import Row

_IN_MEMORY_BYTES = 32 * 1024 * 1024
_LENGTH_BYTES = 8

_decode = msgspec.msgpack.Decoder(tuple[str, list[tuple[Any, ...]]]).decode


class Spool:
    """The pages of one session, in the order in which they were put. Nobody else can open the file."""

    def __init__(self) -> None:
        self._file = SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)  # noqa: SIM115 - closed at the end of the context

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def begin(self) -> None:
        """Forget what is here."""
        self._file.seek(0)
        self._file.truncate()

    def put(self, table: str, rows: list[Row]) -> None:
        """Add a page. Raises ``BackendError`` where the temporary directory has no room."""
        page = msgspec.msgpack.encode((table, rows))
        try:
            self._file.write(len(page).to_bytes(_LENGTH_BYTES, "big"))
            self._file.write(page)
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, "unknown error")
            raise BackendError(
                f"the temporary file of a session cannot be written ({name})",
                "free some space there, or let TMPDIR name a directory that has it; then run it again",
            ) from error

    def pages(self) -> Iterator[Page]:
        """Go through the pages from the first one."""
        self._file.seek(0)
        while head := self._file.read(_LENGTH_BYTES):
            yield _decode(self._file.read(int.from_bytes(head, "big")))
