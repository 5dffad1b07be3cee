"""The page says what was measured and nothing else, and no part gets lost on the way to it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from bench.findings import Found, Part, Size, Spread, Table
from bench.goals import GOALS, Goal
from bench.page import page
from bench.results import Machine, Measured, Results, Rounds, load, measured, merged, save

from bench import run

MACHINE = Machine(2, "A processor", 8, "6.1", "ext4")
OTHER = Machine(64, "Another processor", 256, "6.1", "xfs")
VERSIONS = {"Python": "3.11.7"}


def found(folder: Path, size: Size) -> Found:
    """A part that finds one of everything."""
    (folder / "proof").write_text(size, encoding="utf-8")
    return Found(
        {"ratio": Spread.of([1.5, 2.5, 2.0]), "rounds": 1200, "slow_ms": 12.345, "who": "a | b"},
        [Table("Rates", ("ours", "theirs"), {"1 waiter": [Spread.of([1000.0]), None]})],
        {"ours": "synchronous=2"},
        {"theirs": "not installed"},
    )


def fails(folder: Path, size: Size) -> Found:
    """A part that cannot be measured here."""
    raise FileNotFoundError(f"no server in {folder.name[:4]} for a {size} run")


def dies(folder: Path, size: Size) -> Found:
    """A part whose process does not come back."""
    del folder, size
    os._exit(3)


PARTS = {
    "one": Part("one", "The first part", found, "What has to be known."),
    "two": Part("two", "The second part", fails, in_short=False),
    "three": Part("three", "The third part", dies),
}


@pytest.fixture
def frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A frame with three small parts, whose results and page are somewhere else."""
    monkeypatch.setattr(run, "registry", lambda: PARTS)
    monkeypatch.setattr(run, "HERE", tmp_path)
    monkeypatch.setattr(run, "LOOK_S", 0)
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(run, "PAGE", tmp_path / "benchmarks.md")
    return tmp_path


def results() -> Results:
    """Two parts, measured in two runs on two machines; the second one has failed."""
    return {
        "one": Measured(
            "The first part",
            "2026-05-01",
            "full",
            61.2,
            0.25,
            MACHINE,
            VERSIONS,
            "What has to be known.",
            None,
            {"ours": "synchronous=2"},
            {"theirs": "not installed"},
            {"ratio": Rounds(2.0, 1.5, 2.5, 3), "count": 1200},
        ),
        "two": Measured("The second part", "2026-05-02", "short", 0.4, 0, OTHER, VERSIONS, error="OSError: no\nserver"),
    }


def test_the_page_is_made_of_the_results_and_the_goals_alone() -> None:
    """Machines, goals, parts: everything that was found is there, and a part of another run says so."""
    goals = (
        Goal("Ours / theirs", "≥", 1.8, "one", "ratio"),
        Goal("Their count", "≤", 1000, "one", "count", "rounds", "it takes 1,200; fewer would need a cache"),
        Goal("Not here", "<", 1, "three", "ms", "ms", "a note on what was not measured is not shown"),
    )
    text = page(results(), goals)
    assert text[text.index("## Machine") :] == PAGE
    assert page(results(), goals) == text


PAGE = """## Machine and versions

| date | size | machine | versions | parts |
| --- | --- | --- | --- | --- |
| 2026-05-01 | full | 2 cores, A processor, 8 GiB, Linux 6.1, ext4 | Python 3.11.7 | `one` |
| 2026-05-02 | short | 64 cores, Another processor, 256 GiB, Linux 6.1, xfs | Python 3.11.7 | `two` |

## Goals

| what | wanted | measured |  |
| --- | --- | --- | --- |
| Ours / theirs | ≥ 1.8 | 2.00 (1.50 to 2.50) | reached |
| Their count | ≤ 1000 rounds | 1,200 rounds | not reached |
| Not here | < 1 ms |  | not measured |

What is not reached, why, and what would be needed:

* **Their count.** it takes 1,200; fewer would need a cache

## The first part

Part `one`, 2026-05-01, full, 61 s; 25% of the cores were busy with something else when it began.

What has to be known.

Settings:

* ours: synchronous=2

Missing:

* theirs: not installed

|  | value |
| --- | --- |
| ratio | 2.00 (1.50 to 2.50) |
| count | 1,200 |

## The second part

Part `two`, 2026-05-02, short, 0 s; 0% of the cores were busy with something else when it began.

**Failed:** `OSError: no server`
"""


@pytest.mark.parametrize(
    ("relation", "bound", "reached"),
    [("≥", 2, True), ("≥", 2.1, False), ("≤", 2, True), ("≤", 1.9, False), (">", 2, False), ("<", 2.1, True)],
)
def test_a_goal_is_judged_by_the_median(relation: str, bound: float, reached: bool) -> None:
    """Of 1.5, 2.5 and 2.0, it is 2."""
    assert Goal("", relation, bound, "one", "ratio").reached(results()) is reached


def test_about_leaves_a_fourth_on_both_sides() -> None:
    """2 is about 2.5 and about 1.6, and not about 2.7 or 1.5."""
    reached = [Goal("", "about", bound, "one", "ratio").reached(results()) for bound in (2.7, 2.5, 1.6, 1.5)]
    assert reached == [False, True, True, False]


@pytest.mark.parametrize(("part", "figure"), [("one", "nothing"), ("nobody", "ratio"), ("two", "ratio")])
def test_a_figure_that_is_not_there_is_neither_reached_nor_missed(part: str, figure: str) -> None:
    """Not one of a part, not one of no part, not one of a part that has failed."""
    assert Goal("", "≥", 1, part, figure).reached(results()) is None


def test_each_goal_names_another_figure() -> None:
    """No figure has two bounds."""
    assert len({(goal.part, goal.figure) for goal in GOALS}) == len(GOALS)


def test_results_come_back_as_they_were_kept(tmp_path: Path) -> None:
    """All kinds of values, by name."""
    kept = {"one": measured(PARTS["one"], found(tmp_path, "full"), "full", "2026-05-01", 2.04, 0.123)}
    save(tmp_path / "results.json", kept)
    assert load(tmp_path / "results.json") == kept
    assert (kept["one"].seconds, kept["one"].busy) == (2.0, 0.12)
    assert load(tmp_path / "nothing.json") == {}


def test_a_part_that_is_measured_again_takes_its_old_place() -> None:
    """The others stay as they were, and a part that is gone goes."""
    again = Measured("The first part", "2026-06-01", "short", 1.0, 0, MACHINE, VERSIONS)
    new = merged({**results(), "gone": again}, "one", again, ["zero", "one", "two"])
    assert [(key, part.date) for key, part in new.items()] == [("one", "2026-06-01"), ("two", "2026-05-02")]


def test_a_part_runs_in_a_folder_that_is_gone_afterwards(frame: Path) -> None:
    """In another process, and what it has found is in the results and on the page."""
    assert run.main(["--only", "one"]) == 0
    assert sorted(path.name for path in frame.iterdir()) == ["benchmarks.md", "results.json"]
    assert "| ratio | 2.00 (1.50 to 2.50) |" in (frame / "benchmarks.md").read_text(encoding="utf-8")
    assert "| 1 waiter | 1,000 | - |" in (frame / "benchmarks.md").read_text(encoding="utf-8")
    assert "| who | a \\| b |" in (frame / "benchmarks.md").read_text(encoding="utf-8")


def test_a_part_that_fails_stands_on_the_page_and_the_others_go_on(frame: Path) -> None:
    """Whether it raises or its process dies. Exit status 1."""
    assert run.main(["--full"]) == 1
    text = (frame / "benchmarks.md").read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if "Failed" in line] == [
        "**Failed:** `FileNotFoundError: no server in out- for a full run`",
        "**Failed:** `its process has died`",
    ]
    assert list(load(frame / "results.json")) == ["one", "two", "three"]


def test_a_short_run_leaves_out_what_only_full_runs_have() -> None:
    """The second part says so of itself; who asks for it by name gets it in any size."""
    assert run.chosen(PARTS, None, "short") == [PARTS["one"], PARTS["three"]]
    assert run.chosen(PARTS, None, "full") == [PARTS["one"], PARTS["two"], PARTS["three"]]
    assert run.chosen(PARTS, "two,one", "short") == [PARTS["two"], PARTS["one"]]


def test_a_key_that_is_not_there_is_refused_with_those_that_are(
    frame: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is run and nothing is written."""
    with pytest.raises(SystemExit) as refused:
        run.main(["--only", "one,four,five"])
    assert refused.value.code == 2
    assert capsys.readouterr().err.endswith("no such part: four, five; there are: one, two, three\n")
    assert list(frame.iterdir()) == []


def test_parts_are_listed_without_running_them(frame: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each."""
    assert run.main(["--list"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "one                  The first part",
        "two                  The second part (full runs only)",
        "three                The third part",
    ]
    assert list(frame.iterdir()) == []


def test_the_page_of_the_project_is_made_of_its_results() -> None:
    """Nobody has typed on it: ``python -m bench.run --page`` makes the very same."""
    assert run.PAGE.read_text(encoding="utf-8") == page(load(run.RESULTS), GOALS)


def test_goals_name_parts_that_there_are() -> None:
    """A part that was renamed would leave its goals unmeasured for ever."""
    assert {goal.part for goal in GOALS} <= run.registry().keys()
