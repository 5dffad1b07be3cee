"""The OpenAI chat format: what comes in goes out, and what the vocabulary can say is said in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Raw

from fastness.errors import InvalidInputError
from fastness.formats.openai_chat import FORMAT, from_message, to_message
from fastness.model import (
    BlobPart,
    FilePart,
    GenericPart,
    Message,
    MessageOrigin,
    MessagePart,
    ProviderFields,
    ReasoningPart,
    SessionNodeRecord,
    TextPart,
    ToolCallPart,
    ToolCallResponsePart,
    UriPart,
)
from fastness.model.base import checked, decode_record
from fastness.model.transcript import message_node

REAL = Path(__file__).parents[3] / "shared/data/tau-bench-gpt-4o-airline.json"


def ordered(data: bytes) -> Any:
    """Decode so that equality sees the order and repetition of keys and the spelling of numbers."""
    return json.loads(data, object_pairs_hook=lambda pairs: ("object", pairs), parse_int=str, parse_float=str)


def stored(message: Message) -> Message:
    """Give the message after a trip through a stored node, refusing one that cannot be stored."""
    _, body = checked(SessionNodeRecord, message_node("n", None, "2025-01-01T00:00:00Z", message))
    found = decode_record(SessionNodeRecord, body).message
    assert found is not None
    return found


def round_trip(source: bytes) -> bytes:
    """Read a message, store it, load it and write it."""
    return from_message(stored(to_message(source, "m")))


def check(value: Any) -> Message:
    """Assert that a message comes out as it came in, and give it as it was read."""
    source = json.dumps(value).encode()
    assert ordered(round_trip(source)) == ordered(source)
    return to_message(source, "m")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
texts = st.text(max_size=20) | st.sampled_from(
    ['{"a": 1e2}', '{"a":1,"a":2}', "[1, 2]", " {}", "{} ", '{"a"', "null", "7", '"x"', "data:image/png;base64,AA=="]
)
roles = st.sampled_from(["system", "user", "assistant", "tool", "developer", "function", "critic"])


def objects(known: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with some of the known fields, odd values among them, foreign fields, and keys in any order."""
    fields = [st.tuples(st.just(key), value | json_values) for key, value in known.items()]
    foreign = st.tuples(st.sampled_from(["refusal", "name", "audio", "annotations", "index", "x"]), json_values)
    return st.lists(st.one_of(*fields, *fields, foreign), max_size=8).map(dict)


functions = objects({"name": texts, "arguments": texts})
calls = objects({"id": texts, "type": st.sampled_from(["function", "custom"]), "function": functions})
items = objects(
    {
        "type": st.sampled_from(["text", "image_url", "input_audio", "file", "refusal"]),
        "text": texts,
        "image_url": objects({"url": texts, "detail": texts}),
        "input_audio": objects({"data": texts, "format": texts}),
        "file": objects({"file_id": texts, "file_data": texts, "filename": texts}),
    }
)
messages = objects(
    {
        "role": roles,
        "content": texts | st.lists(items | json_values, max_size=3),
        "tool_calls": st.lists(calls | json_values, max_size=3),
        "tool_call_id": texts,
        "function_call": functions,
        "reasoning_content": texts,
    }
)


@given(st.dictionaries(st.text(max_size=5), json_values, max_size=5) | messages)
@example({})
@example({"role": 7, "content": 7})
def test_any_object_comes_out_as_it_came_in(value: dict[str, Any]) -> None:
    """Reading, storing and writing a message gives the same JSON: keys in order, numbers as they were spelled."""
    check(value)


@pytest.mark.parametrize(
    "source",
    [
        b'{"role":"assistant","content":null,"x":{"a":1,"a":2},"y":1e2,"z":1.50,"n":123456789012345678901234567890}',
        b'{"role":"tool","tool_call_id":"c","content":{"a":1e2,"a":-0.0}}',
        b'{"role":"user","content":[{"type":"audio_clip","clip":[1e2,  2]}]}',
    ],
)
def test_foreign_json_is_kept_byte_for_byte(source: bytes) -> None:
    """Numbers, repeated keys and white space inside foreign JSON leave as they came."""
    assert round_trip(source) == source


@pytest.mark.parametrize(
    "value",
    [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": None},
        {"role": "tool", "tool_call_id": "c1", "content": "[]"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "reasoning_content": "Hm.",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"q": 1e2}'}},
                {"id": "c2", "type": "function", "function": {"name": "find", "arguments": '{"broken'}},
            ],
        },
    ],
)
def test_a_message_as_documented_needs_nothing_beside_its_parts(value: dict[str, Any]) -> None:
    """Provider fields are kept only where the parts do not say it all."""
    assert check(value).provider is None


PARTS: list[tuple[dict[str, Any], tuple[MessagePart, ...]]] = [
    ({"role": "user", "content": ""}, (TextPart(""),)),
    ({"role": "user", "content": None}, ()),
    ({"role": "user"}, ()),
    ({"role": "user", "content": 7}, ()),
    ({"role": "user", "content": []}, ()),
    (
        {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {}}, {"type": "x"}, 5]},
        (TextPart("a"), GenericPart("x", Raw(b'{"type": "x"}')), GenericPart("unknown", Raw(b"5"))),
    ),
    (
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://a/b.png", "detail": "low"}}]},
        (UriPart("https://a/b.png"),),
    ),
    (
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]},
        (BlobPart("AA==", "image/png", "image"),),
    ),
    (
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}]},
        (BlobPart("AA==", "audio/wav", "audio"),),
    ),
    (
        {"role": "user", "content": [{"type": "file", "file": {"file_id": "f1"}}]},
        (FilePart("f1", modality="document"),),
    ),
    (
        {"role": "assistant", "content": None, "function_call": {"name": "find", "arguments": "{}"}},
        (ToolCallPart("find", Raw(b"{}")),),
    ),
    (
        {"role": "assistant", "tool_calls": [{"function": {"arguments": " {}", "name": "f"}, "id": "c", "index": 0}]},
        (ToolCallPart("f", Raw(b'" {}"'), "c"),),
    ),
    ({"role": "assistant", "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "f"}}]}, ()),
    (
        {"role": "tool", "tool_call_id": "c1", "name": "find", "content": [{"type": "text", "text": "a"}]},
        (ToolCallResponsePart(Raw(b'[{"type": "text", "text": "a"}]'), "c1"),),
    ),
    ({"role": "function", "name": "find", "content": "a"}, (ToolCallResponsePart(Raw(b'"a"')),)),
    ({"role": "assistant", "content": "a", "reasoning_content": "b"}, (ReasoningPart("b"), TextPart("a"))),
]


@pytest.mark.parametrize(("value", "parts"), PARTS)
def test_what_the_vocabulary_can_say_becomes_parts(value: dict[str, Any], parts: tuple[MessagePart, ...]) -> None:
    """Text, media, calls and answers are read as parts, and the message still comes out as it came in."""
    assert check(value).parts == parts


@pytest.mark.parametrize(
    ("role", "expected"),
    [("developer", "system"), ("function", "tool"), ("critic", "system"), (None, "system"), (7, "system")],
)
def test_a_role_that_the_vocabulary_lacks_is_read_as_the_nearest(role: object, expected: str) -> None:
    """Developers instruct like the system, functions answer like tools; the original role goes out again."""
    assert check({"role": role, "content": "a"}).role == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"a": 1e2, "a": 3}', b'{"a": 1e2, "a": 3}'),
        ("[1]", b"[1]"),
        ('{"a"', b'"{\\"a\\""'),
        (" {}", b'" {}"'),
        ("null", b'"null"'),
        ("", b'""'),
        ("[" * 300 + "]" * 300, b'"' + b"[" * 300 + b"]" * 300 + b'"'),
    ],
)
def test_arguments_are_json_only_where_their_text_is_exactly_that(arguments: str, expected: bytes) -> None:
    """An object or array is kept as JSON, byte for byte; any other text stays the text that the model wrote."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    (part,) = check({"role": "assistant", "content": None, "tool_calls": [call]}).parts
    assert isinstance(part, ToolCallPart)
    assert bytes(part.arguments) == expected


NATIVE: list[tuple[Message, dict[str, Any]]] = [
    (Message("m", "user", (TextPart("a"),)), {"role": "user", "content": "a"}),
    (Message("m", "assistant", ()), {"role": "assistant", "content": None}),
    (
        Message("m", "assistant", (TextPart("a"), ToolCallPart("now", id="c1"))),
        {
            "role": "assistant",
            "content": "a",
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}}],
        },
    ),
    (
        Message("m", "tool", (ToolCallResponsePart(Raw(b'{"a": 1}'), "c1"),)),
        {"role": "tool", "tool_call_id": "c1", "content": '{"a": 1}'},
    ),
    (Message("m", "tool", (TextPart("a"),)), {"role": "tool", "content": "a"}),
    (
        Message("m", "user", (TextPart("a"), BlobPart("AA=="), UriPart("https://a", modality="video"), FilePart("f"))),
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "a"},
                {"type": "image_url", "image_url": {"url": "data:application/octet-stream;base64,AA=="}},
                {"type": "text", "text": "https://a"},
                {"type": "file", "file": {"file_id": "f"}},
            ],
        },
    ),
    (
        Message("m", "user", (TextPart("a"),), provider=ProviderFields("other", Raw(b'{"set":{"role":"x"}}'))),
        {"role": "user", "content": "a"},
    ),
]


@pytest.mark.parametrize(("message", "expected"), NATIVE)
def test_a_message_of_our_own_is_written_as_documented(message: Message, expected: dict[str, Any]) -> None:
    """A message without fields of this format goes out in the form that the API documents."""
    assert json.loads(from_message(message)) == expected


def test_edited_parts_go_out_and_kept_fields_stay() -> None:
    """Provider fields are a difference: a changed text is written, the fields beside it remain."""
    found = to_message(b'{"content":"secret","role":"assistant","refusal":null}', "m")
    edited = Message("m", "assistant", (TextPart("gone"),), provider=found.provider)
    assert from_message(edited) == b'{"content":"gone","role":"assistant","refusal":null}'


def test_id_and_origin_are_the_callers() -> None:
    """The format has neither an id nor an origin; both are what the caller says."""
    origin = MessageOrigin("turn_input", "in-1")
    found = to_message(b'{"role":"user","content":"a"}', "m-1", origin)
    assert (found.id, found.origin) == ("m-1", origin)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (b"", "message is not valid JSON"),
        (b"[]", "message is not a JSON object"),
        (b'"a"', "message is not a JSON object"),
        (b'{"role":', "message is not valid JSON"),
        (b'{"role":"user"} x', "message is not valid JSON"),
        (b'{"content":"\xff"}', "message is not UTF-8 (byte 12)"),
        (b'{"content":"\\ud800 a"}', "message holds a lone surrogate, NaN or Infinity"),
        (b'{"content":NaN}', "message holds a lone surrogate, NaN or Infinity"),
        (b'{"a":' + b"[" * 256 + b"]" * 256 + b"}", "message is nested deeper than 256 levels"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "message is nested deeper than 256 levels"),
    ],
)
def test_what_is_no_message_is_refused_with_its_reason(source: bytes, reason: str) -> None:
    """A typed error says what is wrong."""
    with pytest.raises(InvalidInputError) as caught:
        to_message(source, "m")
    assert str(caught.value).startswith(reason)


def test_the_deepest_message_that_is_accepted_can_be_stored() -> None:
    """256 levels survive the trip, brackets inside text not counted."""
    deepest = b'{"a":' + b"[" * 255 + b'"[[[[[[\\"[[["' + b"]" * 255 + b"}"
    assert round_trip(deepest) == deepest


def test_damaged_provider_fields_are_a_typed_error() -> None:
    """Fields that this adapter cannot have written are refused by name."""
    damaged = Message("m-1", "user", (), provider=ProviderFields(FORMAT, Raw(b'{"keys":7}')))
    with pytest.raises(InvalidInputError, match="provider fields of message 'm-1' are damaged"):
        from_message(damaged)


@pytest.mark.skipif(not REAL.exists(), reason="the recorded conversations are not beside this checkout")
def test_every_message_of_real_transcripts_comes_out_equal() -> None:
    """All 5,308 recorded messages leave as they came, key order included."""
    found = [message for record in json.loads(REAL.read_bytes()) for message in record["traj"]]
    assert len(found) == 5308
    for message in found:
        check(message)
