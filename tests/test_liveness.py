"""Who is dead: only a process that cannot run again (law L6)."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from fastness.liveness import current_process, is_dead, mint_owner
from fastness.model import LocalProcess

REPORT = (
    "from fastness.liveness import current_process; import msgspec, sys;"
    "sys.stdout.write(msgspec.json.encode(current_process()).decode() + '\\n'); sys.stdout.flush(); sys.stdin.read()"
)
needs_proc = pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="identities are read from /proc")


def here() -> LocalProcess:
    """The identity of the test process."""
    process = current_process()
    assert isinstance(process, LocalProcess)
    return process


def start_child() -> tuple[subprocess.Popen[bytes], LocalProcess]:
    """Start a process that says who it is and waits."""
    child = subprocess.Popen([sys.executable, "-c", REPORT], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    return child, msgspec.json.decode(child.stdout.readline(), type=LocalProcess)


@needs_proc
def test_a_process_that_runs_is_not_dead() -> None:
    """The own process and a live child are alive."""
    child, process = start_child()
    try:
        assert not is_dead(here())
        assert not is_dead(process)
    finally:
        child.kill()
        child.communicate()


@needs_proc
def test_a_killed_process_is_dead_also_while_it_is_a_zombie() -> None:
    """A process is dead from the moment it was killed, whether or not its parent has reaped it."""
    child, process = start_child()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    state = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0]
    assert state == "Z"
    assert is_dead(process)
    child.communicate()
    assert is_dead(process)


@needs_proc
def test_a_pid_that_was_used_again_is_no_life_sign() -> None:
    """A process that started at another time than the holder is another process."""
    assert is_dead(msgspec.structs.replace(here(), process_start="1"))


@needs_proc
@pytest.mark.parametrize("field", ["host_id", "boot_id"])
def test_a_process_of_elsewhere_is_never_provably_dead(field: str) -> None:
    """Of another host, pid namespace or boot nothing is known, not even that a pid is gone."""
    child, process = start_child()
    child.kill()
    child.communicate()
    assert is_dead(process)
    assert not is_dead(msgspec.structs.replace(process, **{field: "elsewhere"}))


@needs_proc
@pytest.mark.parametrize("pid", [0, -1])
def test_a_pid_that_names_no_process_proves_nothing(pid: int) -> None:
    """Zero and negative pids address groups; they are no proof of a death."""
    assert not is_dead(msgspec.structs.replace(here(), pid=pid))


@needs_proc
def test_a_process_whose_first_thread_ended_is_alive() -> None:
    """A process lives as long as one of its threads does, although its stat line says zombie."""
    code = (
        "import ctypes, threading, sys, time\n"
        "from fastness.liveness import current_process\n"
        "import msgspec\n"
        "print(msgspec.json.encode(current_process()).decode(), flush=True)\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "ctypes.CDLL(None).syscall(60, 0)\n"
    )
    if os.uname().machine != "x86_64":
        pytest.skip("ends its first thread by the number of a system call of x86_64")
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout is not None
    process = msgspec.json.decode(child.stdout.readline(), type=LocalProcess)
    try:
        while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            pass
        assert not is_dead(process)
    finally:
        child.kill()
        child.communicate()


def test_every_holder_is_a_new_incarnation_of_the_same_process() -> None:
    """Two holders of one process differ in their incarnation and share their liveness."""
    one, other = mint_owner("worker"), mint_owner("worker")
    assert (one.owner_id, other.owner_id) == ("worker", "worker")
    assert one.incarnation_id != other.incarnation_id
    assert one.liveness == other.liveness == current_process()


@needs_proc
def test_the_identity_is_that_of_the_process_not_of_the_thread() -> None:
    """Every thread gives the same identity."""
    seen: list[object] = []
    thread = threading.Thread(target=lambda: seen.append(current_process()))
    thread.start()
    thread.join()
    assert seen == [here()]
