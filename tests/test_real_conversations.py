"""Real conversations through the whole of it: imported, imported again, exported, equal to the source.

The recorded conversations do not belong to the project. Where they are not on the machine, this says so and skips.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "tau-bench-gpt-4o-airline.json"

pytestmark = pytest.mark.skipif(not SOURCE.exists(), reason=f"{SOURCE.name} is not on this machine")


def fastness(folder: Path, *words: str) -> str:
    """Run a command in a folder, and give what it prints."""
    program = str(Path(sys.executable).with_name("fastness"))
    done = subprocess.run([program, *words], cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("branches", [(), ("--branch-by", "task_id")], ids=["a session each", "trials as branches"])
def test_every_record_comes_out_equal_to_what_went_in(branches: tuple[str, ...], tmp_path: Path) -> None:
    """200 conversations are replayed once, a second run adds nothing, and every record is exported as it came."""
    first = fastness(tmp_path, "import", str(SOURCE), *branches)
    assert "200 conversations" in first
    assert fastness(tmp_path, "import", str(SOURCE), *branches).startswith("nothing to add")
    exported = [json.loads(line) for line in fastness(tmp_path, "export", "--all").splitlines()]
    source: list[dict[str, Any]] = json.loads(SOURCE.read_bytes())

    def name(record: dict[str, Any]) -> tuple[int, int]:
        return record["task_id"], record["trial"]

    assert len(exported) == 200
    assert sum(len(record["traj"]) for record in exported) == 5308
    assert sorted(exported, key=name) == sorted(source, key=name)
    assert fastness(tmp_path, "check").endswith("no fault found\n")
