"""The documents say what the code does: snippets run, links lead somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")])
SNIPPET = re.compile(r"```python\n(.*?)```\n+```\n(.*?)```", re.DOTALL)
CONSOLE = re.compile(r"```console\n(.*?)```", re.DOTALL)
REAL = ROOT.parent / "shared" / "data" / "tau-bench-gpt-4o-airline.json"
LINK = re.compile(r"\[[^\]]+\]\((?!https?://|#)([^)#]+)[^)]*\)")


def snippets(path: Path) -> list[tuple[str, str]]:
    """Every Python snippet of a document that is followed by its output."""
    return SNIPPET.findall(path.read_text(encoding="utf-8"))


def test_there_are_snippets_to_run() -> None:
    """The README shows programs with their output: a session, a worker, attachments."""
    assert len(snippets(ROOT / "README.md")) >= 3


@pytest.mark.parametrize(
    "path", [each for each in DOCUMENTS if snippets(each)], ids=lambda path: str(path.relative_to(ROOT))
)
def test_programs_print_what_their_document_says(path: Path, tmp_path: Path) -> None:
    """They run as they stand, in order and in one directory, and print exactly what stands below them."""
    for code, output in snippets(path):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert (done.stdout, done.stderr, done.returncode) == (output, "", 0)


def test_the_program_with_attachments_prints_the_same_again(tmp_path: Path) -> None:
    """It gives its lane back, and its commit is recognised, however often it runs."""
    code, output = snippets(ROOT / "docs" / "stores.md")[1]
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.stdout, done.stderr) == (output, "")


def transcripts() -> list[str]:
    """Every transcript of commands and what they print; those of the examples have tests of their own."""
    pages = [path for path in DOCUMENTS if path.parent.name != "examples"]
    return [block for path in pages for block in CONSOLE.findall(path.read_text(encoding="utf-8"))]


def test_there_are_transcripts_to_replay() -> None:
    """The README shows the command line at work."""
    assert len(transcripts()) >= 2


@pytest.mark.parametrize("transcript", transcripts())
def test_a_transcript_prints_what_the_document_says(transcript: str, tmp_path: Path) -> None:
    """The commands of a document, typed in order, print exactly what stands below them; … stands for anything."""
    if REAL.name in transcript and not REAL.exists():
        pytest.skip(f"{REAL.name} is not on this machine")
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    (tmp_path / REAL.name).symlink_to(REAL)
    for step in transcript.split("$ ")[1:]:
        command, _, expected = step.partition("\n")
        words = [str(Path(sys.executable).with_name("fastness")), *shlex.split(command)[1:]]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        pattern = ".*".join(map(re.escape, expected.split("…")))
        assert re.fullmatch(pattern, done.stdout, re.DOTALL), f"{command}\n{done.stdout}{done.stderr}"
        assert done.returncode == 0


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    """Every link to a file of the project leads to one that is there."""
    for target in LINK.findall(path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"
