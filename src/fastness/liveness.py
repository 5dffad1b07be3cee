"""Who this process is, and whether the process that holds a lane is provably dead (law L6).

It promises to say *dead* only of a process that cannot run again: same host, pid namespace and boot, and the pid is
gone, belongs to a process that started at another time, or is a zombie. Every doubt is *not dead*, since the lease
expires anyway and two live holders would be far worse. It reads ``/proc``, and knows nothing of stores and leases
beyond their owner's identity.
"""

from __future__ import annotations

import os
import platform
import secrets
from functools import cache
from pathlib import Path
from typing import NamedTuple

from fastness.model.lease import LeaseOwnerIdentity, LeaseOwnerLiveness, LocalProcess, Opaque

_PROC = Path("/proc")
_MACHINE_ID = Path("/etc/machine-id")
_BOOT_ID = _PROC / "sys/kernel/random/boot_id"
_ZOMBIE = ("Z", "X")


class _Stat(NamedTuple):
    """What ``/proc/<pid>/stat`` says that matters here. ``start`` is in clock ticks since boot, as text."""

    state: str
    start: str


@cache
def current_process() -> LeaseOwnerLiveness:
    """Give the identity of this process, ``Opaque`` where the system does not tell it.

    It is read once, and once more in a forked child.
    """
    try:
        # A /proc of another pid namespace numbers processes differently: nothing in it can be compared.
        if int(str((_PROC / "self").readlink())) != os.getpid():
            return Opaque()
        namespace = (_PROC / "self/ns/pid").readlink()
        boot_id = _BOOT_ID.read_text("ascii").strip()
        start = _read_stat(os.getpid()).start
    except (OSError, ValueError):
        return Opaque()
    return LocalProcess(f"{_machine_id()}/{namespace}", boot_id, os.getpid(), start)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=current_process.cache_clear)


def is_dead(process: LocalProcess) -> bool:
    """Tell whether a process is provably dead. False where this process cannot know."""
    here = current_process()
    if not isinstance(here, LocalProcess) or (here.host_id, here.boot_id) != (process.host_id, process.boot_id):
        return False
    if process.pid <= 0 or _is_gone(process.pid):
        return process.pid > 0
    try:
        found = _read_stat(process.pid)
    except ProcessLookupError:
        return True
    except (OSError, ValueError):
        # Present, but hidden from this user: no proof.
        return _is_gone(process.pid)
    return found.start != process.process_start or (found.state in _ZOMBIE and not _has_other_threads(process.pid))


def mint_owner(owner_id: str | None = None) -> LeaseOwnerIdentity:
    """Make a new holder of a lane: a fresh incarnation that lives in this process.

    ``owner_id`` says whose it is, for people; it defaults to the host's name and the pid.
    """
    name = owner_id if owner_id is not None else f"{platform.node() or 'host'}:{os.getpid()}"
    return LeaseOwnerIdentity(name, secrets.token_hex(16), current_process())


def _machine_id() -> str:
    try:
        found = _MACHINE_ID.read_text("ascii").strip()
    except (OSError, ValueError):
        found = ""
    return found or platform.node()


def _read_stat(pid: int) -> _Stat:
    text = (_PROC / str(pid) / "stat").read_text("utf-8", "replace")
    # The second field is the command in brackets and may itself hold brackets and blanks.
    fields = text.rpartition(")")[2].split()
    if len(fields) < 20:
        raise ValueError(text)
    return _Stat(fields[0], fields[19])


def _is_gone(pid: int) -> bool:
    # Signal 0 sees processes that /proc may hide from this user.
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _has_other_threads(pid: int) -> bool:
    # The first thread of a process may end before the others: that looks like a zombie and is none.
    try:
        return any(task.name != str(pid) for task in (_PROC / str(pid) / "task").iterdir())
    except ProcessLookupError:
        return False
    except OSError:
        return not _is_gone(pid)
