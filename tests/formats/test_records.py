"""Files of conversations: every layout is read, wrong ones are refused by record and place, memory stays flat."""

from __future__ import annotations

import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastness.errors import InvalidInputError
from fastness.formats import values
from fastness.formats.records import ConversationRecord, assemble, read_records
from fastness.formats.values import ValueReader

HELLO = {"role": "user", "content": 'a "quoted" \\ [text] }'}
REPLY = {"content": "b", "role": "assistant"}
ONE = {"id": 7, "traj": [HELLO, REPLY], "reward": 1.50}
TWO = {"messages": [], "meta": {"task": {"id": "t-2"}, "ok": True, "none": None}}


def read(tmp_path: Path, content: str | bytes, **options: Any) -> list[ConversationRecord]:
    """Read the records of a file with this content."""
    path = tmp_path / "file.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_records(path, **options))


def rebuilt(record: ConversationRecord) -> Any:
    """Give the whole record as it would be exported, order of keys included."""
    data = assemble(record.frame, [bytes(message) for message in record.messages])
    return json.loads(data, object_pairs_hook=lambda pairs: ("object", pairs), parse_float=str)


def ordered(value: Any) -> Any:
    """Give a value the way ``rebuilt`` gives a record."""
    return json.loads(json.dumps(value), object_pairs_hook=lambda pairs: ("object", pairs), parse_float=str)


LAYOUTS: dict[str, tuple[str, list[Any]]] = {
    "array": (json.dumps([ONE, TWO]), [ONE, TWO]),
    "indented array": (json.dumps([ONE, TWO], indent=2), [ONE, TWO]),
    "lines": (json.dumps(ONE) + "\n" + json.dumps(TWO) + "\n", [ONE, TWO]),
    "lines with carriage returns and gaps": (json.dumps(ONE) + "\r\n\r\n" + json.dumps(TWO), [ONE, TWO]),
    "one record": (json.dumps(ONE, indent=1), [ONE]),
    "one bare list": (json.dumps([HELLO, REPLY]), [[HELLO, REPLY]]),
    "lines of bare lists": (json.dumps([HELLO]) + "\n" + json.dumps([REPLY]), [[HELLO], [REPLY]]),
    "array of bare lists": (json.dumps([[HELLO], [], [REPLY]]), [[HELLO], [], [REPLY]]),
    "byte order mark": ("\ufeff" + json.dumps([ONE]), [ONE]),
    "empty array": ("[ ]", []),
    "under conversation": (json.dumps([{"conversation": [HELLO]}]), [{"conversation": [HELLO]}]),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("chunk", [1, 7, 1 << 18])
def test_every_layout_gives_its_records_as_they_are(
    tmp_path: Path, name: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrays, lines and single records are read alike, wherever a read ends, and assemble to what they were."""
    monkeypatch.setattr(values, "_CHUNK", chunk)
    content, expected = LAYOUTS[name]
    found = read(tmp_path, content)
    assert [rebuilt(record) for record in found] == [ordered(record) for record in expected]
    assert [record.index for record in found] == list(range(len(expected)))


def test_a_record_says_where_it_begins_and_what_it_holds(tmp_path: Path) -> None:
    """The place counts lines from 1 and bytes from 0; messages are the bytes of the file."""
    first, second = read(tmp_path, '[\n {"traj": [{"a": 1e2}], "x": 0},\n {"traj": []}\n]')
    assert str(first) == "record 1 (line 2, byte 3)"
    assert str(second) == "record 2 (line 3, byte 36)"
    assert [bytes(message) for message in first.messages] == [b'{"a": 1e2}']


@pytest.mark.parametrize(
    ("path", "expected"), [("meta.task.id", "t-2"), ("meta.ok", "true"), ("n", "1e2"), ("meta", None), ("nix.x", None)]
)
def test_a_field_is_found_by_its_dotted_path(tmp_path: Path, path: str, expected: str | None) -> None:
    """Single values are given as text, numbers as they were spelled; anything else is refused by record and path."""
    (record,) = read(tmp_path, json.dumps(TWO)[:-1] + ', "n": 1e2}')
    if expected is not None:
        assert record.field(path) == expected
        return
    with pytest.raises(InvalidInputError, match=rf"record 1 \(line 1, byte 0\) has no single value .* '{path}'"):
        record.field(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is empty; it must hold recorded conversations"),
        (" \n", "is empty; it must hold recorded conversations"),
        ("hello", "record 1 (line 1, byte 0) is not valid JSON"),
        ("7", "record 1 (line 1, byte 0) is no conversation"),
        ('"text"', "record 1 (line 1, byte 0) is no conversation"),
        ('{"a": 1}', "record 1 (line 1, byte 0) is no conversation"),
        ('{"messages": "x"}', "record 1 (line 1, byte 0) is no conversation: its field 'messages' is not a list"),
        ('{"traj": []}\n{"traj": [', "record 2 (line 2, byte 13) is cut off"),
        ('{"traj": []}\n{"traj": ["\\', "record 2 (line 2, byte 13) is cut off"),
        ('{"traj": []}\n{"traj": [1,]}', "record 2 (line 2, byte 13) is not valid JSON"),
        ('[{"traj": []},\n {"traj": [}]', "record 2 (line 2, byte 16) is not valid JSON"),
        ('[{"traj": []}', "record 2 cannot be told from the one before: the end of the file"),
        ('[{"traj": []},', "record 2 (line 1, byte 14) is missing"),
        ('[{"traj": []} {"traj": []}]', "record 2 cannot be told from the one before"),
        ('[{"traj": []}] x', "record 2 (line 1, byte 15) is not valid JSON"),
        ("[{'traj': []}]", "record 1 (line 1, byte 1) is not valid JSON"),
        (b'{"traj": ["\xff"]}', "record 1 (line 1, byte 0) is not UTF-8"),
        (b"\x1f\x8b\x08\x00binary", "record 1 (line 1, byte 0) is not"),
        (b"SQLite format 3\x00", "record 1 (line 1, byte 0) is not valid JSON"),
        ("]", "record 1 (line 1, byte 0) is not valid JSON"),
    ],
)
def test_what_is_no_file_of_conversations_is_refused_by_record_and_place(
    tmp_path: Path, content: str | bytes, reason: str
) -> None:
    """A malformed or wrong file is a typed error that says which record is at fault, and where it begins."""
    with pytest.raises(InvalidInputError) as caught:
        read(tmp_path, content)
    assert reason in str(caught.value)


def test_a_file_that_cannot_be_read_is_a_typed_error(tmp_path: Path) -> None:
    """A missing file and a directory are refused by name."""
    for path in (tmp_path / "missing.json", tmp_path):
        with pytest.raises(InvalidInputError, match="cannot be read"):
            list(read_records(path))


@pytest.mark.parametrize(
    "content",
    [
        '{"traj": ["' + "x" * 2000 + '"]}',
        '[{"role": "user"}, "' + "x" * 300 + '"' + ',"' + "x" * 300 + '","' + "x" * 900 + '"]',
        "7" * 2000,
    ],
)
def test_a_record_above_the_limit_is_refused(tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record cannot fill the memory, whatever it is made of."""
    monkeypatch.setattr(values, "_CHUNK", 64)
    with pytest.raises(InvalidInputError, match=r"record 1 \(line 1, byte 0\) is larger than 1000 bytes"):
        read(tmp_path, content, max_record_bytes=1000)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(json_values, max_size=4), st.sampled_from(["\n", " ", "\r\n\t"]), st.booleans())
def test_values_in_a_row_are_told_apart_as_a_json_reader_does(found: list[Any], gap: str, escaped: bool) -> None:
    """Every value of a file is taken whole, and nothing but it."""
    content = gap.join(json.dumps(value, ensure_ascii=escaped) for value in found).encode()
    reader = ValueReader(io.BytesIO(content), max_value_bytes=1 << 20)
    taken = []
    while reader.peek():
        taken.append(json.loads(reader.take()))
    assert taken == found


def peak_of_reading(path: Path) -> int:
    """The most memory that reading the file takes, in bytes."""
    tracemalloc.start()
    for _ in read_records(path):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_is_flat_in_the_size_of_the_file(tmp_path: Path) -> None:
    """A file sixteen times as long takes no more memory than twice what the short one takes."""
    record = json.dumps({"messages": [{"role": "user", "content": "x" * 10_000}]})
    short, long = tmp_path / "short.json", tmp_path / "long.json"
    short.write_text("[" + ",\n".join([record] * 60) + "]")
    long.write_text("[" + ",\n".join([record] * 960) + "]")
    assert peak_of_reading(long) < 2 * peak_of_reading(short)
