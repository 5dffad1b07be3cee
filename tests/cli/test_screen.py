"""What reaches a terminal: one line where one is meant, columns that align, JSON that is still the same JSON."""

from __future__ import annotations

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastness.cli.json_lines import out_bytes, out_json
from fastness.cli.screen import columns, counted, moment, one_line, safe
from fastness.liveness import mint_owner
from fastness.model import CheckReport, Child, SessionExecutionLeaseFence


@given(st.text())
def test_no_text_leaves_with_a_control_character(text: str) -> None:
    """Whatever comes in, only line feeds and tabs of all control characters go out."""
    assert all(char.isprintable() or char in "\n\t" or ord(char) > 0x9F for char in safe(text))
    assert "\n" not in one_line(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\u200bb\u200cc\u200dd", "a<U+200B>b<U+200C>c<U+200D>d"),
        ("\ufeffa\u2060b", "<U+FEFF>a<U+2060>b"),
        ("\U000e0001\U000e0041\U000e007f", "<U+E0001><U+E0041><U+E007F>"),
        (
            "\U0001f469\u200d\U0001f4bb \u2764\ufe0f\u200d\U0001f525",
            "\U0001f469\u200d\U0001f4bb \u2764\ufe0f\u200d\U0001f525",
        ),
        ("\U0001f469\u200dx", "\U0001f469<U+200D>x"),
    ],
)
def test_what_cannot_be_seen_is_shown(text: str, expected: str) -> None:
    """Characters without width and tags are signs; a joiner stays where it makes one picture of two."""
    assert safe(text) == expected


@pytest.mark.parametrize(
    ("text", "limit", "expected"), [("abc", 3, "abc"), ("abcd", 3, "ab…"), ("a\nb\tc", 9, "a b c")]
)
def test_a_line_is_cut_to_its_length(text: str, limit: int, expected: str) -> None:
    """A cut is marked and within the length."""
    assert one_line(text, limit) == expected


def test_columns_align() -> None:
    """Cells are padded to the widest; nothing trails."""
    assert columns(("A", "BB"), [("long", "x"), ("s", "y\n")]) == "A     BB\nlong  x\ns     y"


@pytest.mark.parametrize(("count", "expected"), [(0, "0 batches"), (1, "1 batch"), (1200, "1,200 batches")])
def test_counts_read_as_words(count: int, expected: str) -> None:
    """One is one, everything else is many."""
    assert counted(count, "batch", "batches") == expected


@pytest.mark.parametrize(("ms", "expected"), [(0, "1970-01-01 00:00:00Z"), (2**62, f"{2**62} ms")])
def test_times_are_given_in_utc(ms: int, expected: str) -> None:
    """A time that no calendar has is given as it is stored."""
    assert moment(ms) == expected


def test_json_says_every_field_and_no_proof(capsys: pytest.CaptureFixture[str]) -> None:
    """Fields that hold their default are there, deep down as well; the token that proves a lease never is."""
    report = CheckReport(0, 0, 0, 0, 0, 0)
    fence = SessionExecutionLeaseFence("s", mint_owner("o"), "secret", 1)
    out_json({"report": report, "relation": (Child("p"),), "fence": fence})
    found = json.loads(capsys.readouterr().out)
    assert found["report"]["findings"] == []
    assert found["relation"] == [{"type": "child", "parent_session_id": "p", "caused_by": None}]
    assert found["fence"]["fencing_token"] == 1
    assert "lease_token" not in found["fence"]


def test_json_for_a_terminal_is_escaped_and_still_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a terminal would obey is escaped there; a file gets the bytes; both on one line."""
    data = '{\n  "a": "\u009b31m \u202e é\U000e0041"\n}'.encode()
    out_bytes(data)
    assert capsys.readouterr().out == '{"a": "\u009b31m \u202e é\U000e0041"}\n'
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    out_bytes(data)
    escaped = capsys.readouterr().out
    assert escaped == '{"a": "\\u009b31m \\u202e é\\udb40\\udc41"}\n'
    assert json.loads(escaped) == json.loads(data)
