"""Holds the size limits: no file over 500 lines, no function over 60, no room with more than a quarter of the house.

Run from the root of the checkout. Prints what is too big and exits 1, or prints one line and exits 0.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from pathlib import Path

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
MAX_ROOM_SHARE = 0.25
ROOTS = ("src", "tests", "bench", "demo", "examples", "tools")


def faults(path: Path) -> list[str]:
    """What is too big in one file."""
    text = path.read_text(encoding="utf-8")
    count = text.count("\n")
    found = [f"{path}: {count} lines, at most {MAX_FILE_LINES}"] if count > MAX_FILE_LINES else []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                found.append(f"{path}:{node.lineno}: {node.name} has {length} lines, at most {MAX_FUNCTION_LINES}")
    return found


def crowded_rooms(files: list[Path]) -> list[str]:
    """Which rooms of the package hold more than their share of its lines."""
    lines: Counter[str] = Counter()
    house = Path("src/fastness")
    for path in files:
        if house in path.parents:
            lines[path.relative_to(house).parts[0]] += path.read_text(encoding="utf-8").count("\n")
    total = sum(lines.values())
    return [
        f"{house / room}: {count} of {total} lines, at most {MAX_ROOM_SHARE:.0%}"
        for room, count in lines.items()
        if count > MAX_ROOM_SHARE * total
    ]


def main() -> int:
    """Check every Python file of the project."""
    files = sorted(path for root in ROOTS for path in Path(root).rglob("*.py"))
    found = [fault for path in files for fault in faults(path)] + crowded_rooms(files)
    for fault in found:
        sys.stderr.write(fault + "\n")
    if not found:
        sys.stdout.write(f"sizes: {len(files)} files within limits\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
