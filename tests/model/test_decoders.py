"""Decoders of records are built when they are first needed, in whatever thread that is."""

from __future__ import annotations

import subprocess
import sys

FIRST_USE = """
import sys, threading
from fastness.model import base

sys.setswitchinterval(1e-6)

def kind_of(name, fields):
    about = {"__module__": "__main__", "__annotations__": fields}
    made = globals()[name] = type(base.Value)(name, (base.Value,), about, frozen=True)
    return made

for number in range(100):
    fields = {f"f{at}": kind_of(f"Inner{number}x{at}", {"n": "int"}).__name__ for at in range(6)}
    outer = kind_of(f"Outer{number}", fields)
    body = b"{%b}" % b",".join(b'"f%d":{"n":%d}' % (at, at) for at in range(6))
    together, seen = threading.Barrier(4), []

    def use():
        together.wait()
        seen.append(base.decoder_of(outer).decode(body).f5.n)
        seen.append(base.list_decoder_of(outer).decode(b"[%b]" % body)[0].f5.n)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert seen == [5] * 8, seen
"""


def test_several_threads_may_be_the_first_to_decode_a_kind() -> None:
    """All at once, and each gets what is there: the process does not end by it."""
    done = subprocess.run([sys.executable, "-c", FIRST_USE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
