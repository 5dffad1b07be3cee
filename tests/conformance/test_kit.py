"""The kit says what is so: a broken store fails its law, a skipped law is not passed, and the page's example runs."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastness.conformance import laws
from fastness.conformance.report import Report
from fastness.conformance.table import ATTACHMENT_LAWS, LAWS, law_of

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "conformance.md"

Results = dict[str, dict[str, Any]]
"""What came of each law on one subject."""


def run_laws(directory: Path, *options: str) -> tuple[dict[str, Results], str]:
    """Run the laws that a directory asks for; give the report, by subject, and what pytest printed."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=no", *options]
    done = subprocess.run(
        [*command, "--conformance-report=report.json"], cwd=directory, capture_output=True, text=True, check=False
    )
    assert (directory / "report.json").exists(), done.stdout + done.stderr
    report = json.loads((directory / "report.json").read_text())
    return {
        subject: {row["law"]: row["results"][subject] for row in report["laws"]} for subject in report["subjects"]
    }, done.stdout


def laws_of(results: Results, status: str) -> list[str]:
    """The laws that came to a status."""
    return [law for law, result in results.items() if result["status"] == status]


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Results]:
    """The report on stores that break laws and on one without powers, all in one run. The limits are left out.

    So are, for the three that break laws of bytes and of maintenance, all laws but those and one of commits.
    """
    directory = tmp_path_factory.mktemp("broken")
    (directory / "test_broken.py").write_text((Path(__file__).parent / "broken.py").read_text())
    of_three = "(Lenient or Idle or Tidy) and not (test_c3_ or test_a or test_e1_ or test_m)"
    found, _ = run_laws(directory, "-p", "fastness.conformance.plugin", "-k", f"not test_b1_ and not ({of_three})")
    assert sorted(found) == ["Careless", "Idle", "Lenient", "Tidy", "Unchecked", "Uncounted", "powerless"]
    return found


@pytest.fixture(scope="module")
def reported_bytes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Results]:
    """The report on broken stores of attachments, without an engine of theirs. The slowest law is left out."""
    directory = tmp_path_factory.mktemp("broken")
    (directory / "test_broken.py").write_text((Path(__file__).parent / "broken_attachments.py").read_text())
    found, _ = run_laws(directory, "-p", "fastness.conformance.plugin", "-k", "not many_blocks and not large")
    return found


def test_every_test_of_the_kit_is_named_after_a_law() -> None:
    """And is a coroutine, so that none of them is left out when they are imported with a star."""
    found = []
    for module in pkgutil.iter_modules(laws.__path__):
        for name, member in vars(importlib.import_module(f"{laws.__name__}.{module.name}")).items():
            if name.startswith("test_"):
                assert law_of(name) is not None, name
                assert inspect.iscoroutinefunction(member), name
                found.append(name)
    assert sorted(found) == sorted(laws.__all__)


def test_every_law_has_a_test_in_the_kit() -> None:
    """And those that concern a store of attachments are the ones whose tests ask for one."""
    assert {law_of(name) for name in laws.__all__} == set(LAWS)
    asking = {
        law_of(name) for name in laws.__all__ if "attachments" in inspect.signature(getattr(laws, name)).parameters
    }
    assert asking == set(ATTACHMENT_LAWS)


def test_the_page_of_the_laws_tells_the_same_laws() -> None:
    """Number by number and word for word, in the same order."""
    rows = re.findall(r"^\| ([A-Z]\d+) \| (.*) \|$", (ROOT / "docs" / "laws.md").read_text(), re.MULTILINE)
    assert rows == list(LAWS.items())


@pytest.mark.parametrize(
    ("store", "broken"),
    [
        # C7 has the revision in its order of checks; G5 and M2 promise the conflict to those who come too late.
        ("Unchecked", ["C5", "C7", "G5", "M2"]),
        ("Uncounted", ["C10"]),
        # L2 says that what supersedes an entry also supersedes its release.
        ("Careless", ["L2", "L5"]),
        ("Lenient", ["A2", "A3", "A4"]),
        # C3, E1 and M3 promise that a collection takes, or leaves, what they speak of.
        ("Idle", ["C3", "E1", "M1", "M3", "M5"]),
        ("Tidy", ["E1"]),
    ],
)
def test_a_broken_store_fails_the_laws_that_it_breaks(
    reported: dict[str, Results], store: str, broken: list[str]
) -> None:
    """The rows of those laws say failed and name the tests, and no other row does."""
    assert laws_of(reported[store], "failed") == broken
    for law in broken:
        assert {law_of(name) for name in reported[store][law]["failed"]} == {law}


@pytest.mark.parametrize(
    ("store", "broken"),
    [
        ("OtherHash", ["A1", "A2", "A3", "A4", "A5"]),
        ("Gullible", ["A1", "A5"]),
        ("Unverified", ["A5"]),
        ("Undeleted", ["A3", "A4", "A5"]),
        ("Truncated", ["A1", "A5"]),
        ("Unsorted", ["A5"]),
        ("Trusting", ["A5"]),
        ("Ragged", ["A3", "A5"]),
        ("Late", ["A2"]),
        ("Open", ["A3"]),
        ("Hasty", ["A2"]),
    ],
)
def test_a_broken_store_of_attachments_fails_the_laws_that_it_breaks(
    reported_bytes: dict[str, Results], store: str, broken: list[str]
) -> None:
    """And only the laws that concern such a store have a row in its column; the kit's own engine has none."""
    assert len(reported_bytes) == 11
    found = reported_bytes[f"attachments: {store}"]
    assert laws_of(found, "failed") == broken
    assert laws_of(found, "not applicable") == [law for law in LAWS if law not in ATTACHMENT_LAWS]


def test_a_store_without_powers_is_skipped_with_reasons(reported: dict[str, Results]) -> None:
    """No law fails for a lack of powers, and none passes: its row says how many tests went without what."""
    found = reported["powerless"]
    assert laws_of(found, "failed") == []
    assert {law: (found[law]["status"], found[law]["reasons"]) for law in ("L3", "C11", "G3", "L6", "A4", "E1")} == {
        "L3": ("skipped", {"the kit cannot move its clock": 2}),
        "C11": ("skipped", {"the kit does not see its batches": 2}),
        "G3": ("skipped", {"the kit cannot reach its rows": 12}),
        "L6": ("skipped", {"the kit cannot declare a process dead": 6, "the kit cannot move its clock": 2}),
        "A4": ("skipped", {"the kit does not see its batches": 1, "the kit cannot move its clock": 17}),
        "E1": ("skipped", {"it keeps no environments": 8}),
    }
    assert [found[law]["status"] for law in ("C2", "C5", "G1", "W2")] == ["passed"] * 4


def test_a_passed_law_had_all_its_tests_run(reported: dict[str, Results]) -> None:
    """Whatever the subject: nothing was skipped, nothing left out, and there was something to run."""
    for results in reported.values():
        for law in laws_of(results, "passed"):
            assert results[law]["passed"] == results[law]["tests"] >= 1
            assert results[law]["reasons"] == {}


def test_a_law_that_was_deselected_is_not_covered(reported: dict[str, Results]) -> None:
    """The limits were left out of that run, and their row says so."""
    (result,) = {json.dumps(results["B1"]) for results in reported.values()}
    assert json.loads(result) == {
        "status": "not covered",
        "tests": 105,
        "passed": 0,
        "failed": [],
        "reasons": {"not run": 105},
    }


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """A directory with the files that the page shows, as they stand."""
    for code in re.findall(r"```python\n(# \w+\.py\n.*?)```", PAGE.read_text(), re.DOTALL):
        (tmp_path / code.partition("\n")[0].removeprefix("# ")).write_text(code)
    return tmp_path


def test_several_engines_share_a_run_as_the_page_says(example: Path) -> None:
    """Each parameter of the fixture is a column of the report."""
    found, _ = run_laws(example, "test_engines.py", "-k", "test_c5_ or test_m4_a_newer")
    assert {name: (results["C5"]["status"], results["C5"]["tests"]) for name, results in found.items()} == {
        "memory": ("passed", 6),
        "sqlite": ("passed", 6),
    }
    assert found["memory"]["M4"]["reasons"] == {
        "a second opening does not find what the first one wrote": 1,
        "not run": 28,
    }


def test_the_example_of_the_page_runs(example: Path) -> None:
    """It gives the summary that the page shows, and a report that agrees with it."""
    found, printed = run_laws(example, "test_conformance.py")
    shown = "subject: 43 passed, 0 failed, 33 skipped, 0 not covered"
    assert shown in PAGE.read_text()
    assert shown in printed
    assert list(found) == ["subject"]
    counts = [len(laws_of(found["subject"], status)) for status in ("passed", "failed", "skipped", "not covered")]
    assert counts == [43, 0, 33, 0]


def test_a_store_of_attachments_needs_no_engine_as_the_page_says(example: Path) -> None:
    """One fixture: its column has the laws of bytes, all of them passed, and nobody else has one."""
    found, printed = run_laws(example, "test_bytes.py")
    assert "attachments: 5 passed, 0 failed, 0 skipped, 0 not covered" in printed
    assert list(found) == ["attachments"]
    assert laws_of(found["attachments"], "passed") == ["A1", "A2", "A3", "A4", "A5"]


def test_an_engine_that_was_not_named_is_no_engine_that_passed(example: Path) -> None:
    """The kit's own engine stands in where bytes are put to the laws, and nowhere else."""
    (example / "test_unnamed.py").write_text("from fastness.conformance.laws import *\n")
    found, printed = run_laws(example, "test_unnamed.py", "-k", "test_c2 or test_a1_all_but")
    assert (found, "1 error" in printed, "1 passed" in printed) == ({}, True, True)


def test_engines_and_stores_meet_in_the_pairs_that_are_named(example: Path) -> None:
    """A test of both counts in both columns; one of an engine alone, or of bytes alone, in one."""
    (example / "conftest.py").write_text((example / "conftest.py").read_text() + (example / "pairs.py").read_text())
    code = (example / "test_engines.py").read_text() + (example / "test_bytes.py").read_text()
    head, _, tail = code.rpartition("@pytest.fixture\n")
    stores = '@pytest.fixture(params=["files", "s3"])\n'
    (example / "test_both.py").write_text(
        head + stores + tail.replace("attachment_subject()", "attachment_subject(request)")
    )
    found, _ = run_laws(example, "test_both.py", "-k", "test_a3_what_was_forgotten or test_c2 or test_a1_content_put")
    tests = {name: [results[law].get("passed") for law in ("C2", "A1", "A3")] for name, results in found.items()}
    assert tests == {
        "memory": [1, 0, 2],
        "sqlite": [1, 0, 1],
        "attachments: files": [None, 1, 2],
        "attachments: s3": [None, 1, 1],
    }
    assert found["attachments: s3"]["C2"] == {"status": "not applicable"}


def test_one_skipped_or_missing_test_takes_a_law_its_pass() -> None:
    """A row is passed only if all of its tests are."""
    report = Report()
    row = report.row("x", "C1")
    assert (row.status, str(row)) == ("not covered", "not covered: no test")
    row.collected = 3
    assert (row.status, str(row)) == ("not covered", "not covered: none of 3 tests ran")
    row.passed = 2
    assert (row.status, str(row)) == ("skipped", "skipped: not run (1 of 3)")
    row.skipped["no | clock"] = 1
    assert (row.status, str(row)) == ("skipped", "skipped: no | clock (1 of 3)")
    assert "| C1 | skipped: no \\| clock (1 of 3) | A commit is visible whole" in report.markdown()
    row.failed.append("test_c1_it")
    assert (row.status, str(row)) == ("failed", "**failed**: test_c1_it (1 of 4)")
    assert report.summary() == ["x: 0 passed, 1 failed, 0 skipped, 75 not covered", "x: C1 failed: test_c1_it"]
    report.row("y", "A1", ("A1",)).passed = 1
    assert report.summary()[-1] == "y: 1 passed, 0 failed, 0 skipped, 0 not covered"
    assert "| C2 | not covered: no test | — | A handle serves" in report.markdown()


def test_a_report_that_cannot_be_written_is_refused_before_anything_runs(tmp_path: Path) -> None:
    """The option names a directory that is not there."""
    (tmp_path / "test_nothing.py").write_text("def test_nothing(): pass\n")
    command = [sys.executable, "-m", "pytest", "-p", "fastness.conformance.plugin", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "--conformance-report=nowhere/laws.md"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--conformance-report: there is no directory nowhere" in done.stderr
