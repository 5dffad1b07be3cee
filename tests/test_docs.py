"""The documents say what the code does: snippets run, links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
SNIPPET = re.compile(r"```python\n(.*?)```\n+```\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\[[^\]]+\]\((?!https?://|#)([^)#]+)[^)]*\)")


def snippets() -> list[tuple[str, str]]:
    """Every Python snippet that is followed by its output."""
    return [pair for path in DOCUMENTS for pair in SNIPPET.findall(path.read_text(encoding="utf-8"))]


def test_there_are_snippets_to_run() -> None:
    """The README shows at least one program with its output."""
    assert len(snippets()) >= 1


@pytest.mark.parametrize(("code", "output"), snippets())
def test_a_snippet_prints_what_the_document_says(code: str, output: str, tmp_path: Path) -> None:
    """A program in a document runs as it stands and prints exactly what stands below it."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == (output, "", 0)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    """Every link to a file of the project leads to one that is there."""
    for target in LINK.findall(path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"
