"""Counting how often SQLite has files synced, in this process."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

import apsw

_NAME = "counted-syncs"


class _File(apsw.VFSFile):
    """A file that tells of its syncs, and passes everything on."""

    def __init__(self, syncs: CountedSyncs, name: apsw.URIFilename | str | None, flags: list[int]) -> None:
        super().__init__(syncs.base, name, flags)
        self._syncs = syncs

    def xSync(self, flags: int) -> None:  # noqa: N802 - SQLite's name
        """Count, and sync."""
        self._syncs.add()
        super().xSync(flags)


class CountedSyncs(apsw.VFS):
    """A VFS that is the default while the block runs. ``count`` is how often files were synced."""

    def __init__(self) -> None:
        self.base = apsw.vfs_names()[0]
        self.count = 0
        self._lock = threading.Lock()
        super().__init__(_NAME, self.base, makedefault=True)

    def add(self) -> None:
        """Count one."""
        with self._lock:
            self.count += 1

    def xOpen(self, name: apsw.URIFilename | str | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        """Open a file that is counted."""
        return _File(self, name, flags)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        apsw.set_default_vfs(self.base)
        self.unregister()
