"""How fast attachments reach the disk as files, and how much memory that takes at any size."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from bench.findings import Found, Part, Size, Spread, Table, Value
from fastness.attachments.files import FileAttachmentStore

ROOT = Path(__file__).resolve().parent.parent
KIB, MIB = 1024, 1024**2
PIECE = MIB

SIZES = {"1_kb": KIB, "1_mb": MIB, "100_mb": 100 * MIB}
"""What is put, in bytes."""
ROUNDS: Mapping[Size, Mapping[str, int]] = {
    "short": {"1_kb": 200, "1_mb": 50, "100_mb": 5},
    "full": {"1_kb": 500, "1_mb": 150, "100_mb": 15},
}

WARM_UP = 20

LARGEST_KEPT = MIB
"""What is larger is removed after each round. Nothing else is: ext4 makes new files slowly where some were removed."""

MEMORY_SIZES = {"100_mb": 100 * MIB, "1_gb": 1024 * MIB}


def against_bare_files(folder: Path, size: Size) -> Found:
    """Puts from a path against reading, writing, syncing, renaming and syncing the directory, round by round.

    Both sides read files of random content that no round before had, and that are on the disk already.
    """
    figures: dict[str, Value] = {}
    rows: dict[str, list[Value]] = {}
    for name, length in SIZES.items():
        ours, bare = asyncio.run(_rounds(folder / name, length, ROUNDS[size][name]))
        ours_ms, bare_ms = ([seconds * 1e3 for seconds in side] for side in (ours, bare))
        figures[f"ratio_{name}"] = statistics.median(ours_ms) / statistics.median(bare_ms)
        rows[name.replace("_", " ").upper()] = [Spread.of(ours_ms), Spread.of(bare_ms), len(ours)]
    settings = {
        "ours": "as it comes: the file synced, renamed, its directory synced",
        "bare": "read, write, fsync, rename, fsync of the directory, by one thread that does nothing else",
    }
    return Found(figures, [Table("Milliseconds for one", ("ours", "bare", "rounds"), rows)], settings)


async def _rounds(folder: Path, size: int, rounds: int) -> tuple[list[float], list[float]]:
    store = FileAttachmentStore(folder / "store")
    plain = folder / "plain"
    plain.mkdir(parents=True)
    ours, bare = [], []
    for number in range(-min(WARM_UP, rounds // 3), rounds):
        sources = [_source(folder / side, size) for side in ("ours", "bare")]

        async def put(source: Path = sources[0]) -> float:
            started = time.perf_counter()
            attachment_id = await store.put(source)
            seconds = time.perf_counter() - started
            if size > LARGEST_KEPT:
                await store.delete(attachment_id)
            return seconds

        # Whoever comes second finds the disk busy with the other's leavings: they take turns.
        if number % 2:
            seconds, theirs = await put(), _bare(sources[1], plain)
        else:
            theirs, seconds = _bare(sources[1], plain), await put()
        if number >= 0:
            ours.append(seconds)
            bare.append(theirs)
    _remove(folder)
    return ours, bare


def _source(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        for _ in range(0, size, PIECE):
            file.write(os.urandom(min(PIECE, size)))
        file.flush()
        os.fsync(file.fileno())
    return path


def _bare(source: Path, folder: Path) -> float:
    """What has to be done at the very least, by one thread that does nothing else."""
    started = time.perf_counter()
    name = os.urandom(16).hex()
    reading = os.open(source, os.O_RDONLY)
    writing = os.open(folder / "unfinished", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    while piece := os.read(reading, PIECE):
        os.write(writing, piece)
    os.fsync(writing)
    os.close(writing)
    os.close(reading)
    os.rename(folder / "unfinished", folder / name)  # noqa: PTH104 - nothing that is not needed
    directory = os.open(folder, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    seconds = time.perf_counter() - started
    if source.stat().st_size > LARGEST_KEPT:
        (folder / name).unlink()
    return seconds


def _remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def memory_of_puts(folder: Path, size: Size) -> Found:
    """How far the peak memory of a fresh process grows by one large put, beyond that of one small put."""
    del size  # it is of one size
    figures: dict[str, Value] = {}
    grown = []
    for name, length in MEMORY_SIZES.items():
        source = _source(folder / "source", length)
        for kind in ("path", "stream"):
            command = [sys.executable, "-m", "bench.attachments", kind, str(source), str(folder / "store")]
            process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
            grown.append(int(process.stdout) / KIB)
            figures[f"{kind}_{name}_mib"] = round(grown[-1], 1)
            _remove(folder / "store")
        source.unlink()
    return Found(figures | {"largest_mib": max(grown)})


async def _pieces(source: Path) -> AsyncIterator[bytes]:
    with source.open("rb") as file:
        while piece := file.read(64 * KIB):
            yield piece


async def _grow(kind: str, source: Path, root: Path) -> int:
    """Give by how many KiB the peak of this process grows by a put."""
    store = FileAttachmentStore(root)
    await store.put(b"small")
    before = _peak_kib()
    await store.put(source if kind == "path" else _pieces(source))
    return _peak_kib() - before


def _peak_kib() -> int:
    # ru_maxrss would begin with what the parent held when this process was forked from it.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1])


PARTS = (
    Part(
        "attachments",
        "Attachments as files",
        against_bare_files,
        """Puts from a path, each of random content that no round before had and that is on the disk already.""",
    ),
    Part(
        "attachments_memory",
        "Memory of large attachments",
        memory_of_puts,
        """How far the peak memory of a fresh process grows by one put, from a path and from a stream.""",
        in_short=False,
    ),
)

if __name__ == "__main__":
    print(asyncio.run(_grow(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))))
