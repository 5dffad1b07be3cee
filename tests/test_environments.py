"""Environments: named by their canonical hash, immutable, and refused where they are no such document (law E1)."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastness.conformance import Lab
from fastness.environments import EngineProcessExecutionEnvStore, InMemoryProcessExecutionEnvStore
from fastness.errors import InvalidInputError
from fastness.model import process_execution_env_ref

EMPTY = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
ONE = "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"
DOCUMENT = b'{"b": [1, 2.5, "\xc3\xa9"], "a": {"d": null, "c": true}}'


def test_a_name_is_the_sha256_of_the_canonical_form() -> None:
    """Literally: sorted keys, no white space, characters as they are."""
    assert process_execution_env_ref(b"{}") == EMPTY == hashlib.sha256(b"{}").hexdigest()
    assert process_execution_env_ref(b'{"a": 1}') == ONE == hashlib.sha256(b'{"a":1}').hexdigest()
    canonical = '{"a":{"c":true,"d":null},"b":[1,2.5,"é"]}'.encode()
    assert process_execution_env_ref(DOCUMENT) == hashlib.sha256(canonical).hexdigest()


SAME = [
    (b'{"a":1,"b":2}', b'{"b":2,"a":1}'),
    (b'{"a":1}', b' {\n "a" :\t1 }\r\n'),
    (b'{"a":{"x":1,"y":[{"p":1,"q":2}]}}', b'{"a":{"y":[{"q":2,"p":1}],"x":1}}'),
    (b'{"a":"\\u00e9"}', '{"a":"é"}'.encode()),
    (b'{"a":"\\ud83d\\ude00"}', '{"a":"😀"}'.encode()),
    (b'{"a":"\\/"}', b'{"a":"/"}'),
    (b'{"a":1e2}', b'{"a":100.0}'),
    (b'{"a":0.10}', b'{"a":1e-1}'),
]
OTHER = [
    (b'{"a":1}', b'{"a":2}'),
    (b'{"a":1}', b'{"a":"1"}'),
    (b'{"a":1}', b'{"a":1.0}'),
    (b'{"a":1}', b'{"a":true}'),
    (b'{"a":null}', b"{}"),
    (b'{"a":[1,2]}', b'{"a":[2,1]}'),
    (b'{"a":"x"}', b'{"a":"x "}'),
    (b'{"a":"\\u00e9"}', b'{"a":"e\\u0301"}'),
    (b'{"a":9007199254740993}', b'{"a":9007199254740992}'),
    (b'{"a":' + b"9" * 300 + b"}", b'{"a":' + b"9" * 299 + b"8}"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_layout_and_order_do_not_count(one: bytes, other: bytes) -> None:
    """Two ways to write one document have one name."""
    assert process_execution_env_ref(one) == process_execution_env_ref(other)


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_every_value_counts(one: bytes, other: bytes) -> None:
    """Two documents have two names, however near they are to each other."""
    assert process_execution_env_ref(one) != process_execution_env_ref(other)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.dictionaries(st.text(max_size=5), values, max_size=4), st.sampled_from((None, 2)), st.booleans())
def test_however_a_document_is_written_its_name_is_the_same(
    document: dict[str, Any], indent: int | None, escaped: bool
) -> None:
    """Reversed, indented, escaped: what is read from it is what counts."""
    backwards = dict(reversed(list(document.items())))
    written = json.dumps(backwards, indent=indent, ensure_ascii=escaped).encode()
    assert process_execution_env_ref(written) == process_execution_env_ref(json.dumps(document).encode())


REFUSED = [
    pytest.param(b"", "is not JSON", id="nothing"),
    pytest.param(b"{", "is not JSON", id="half of it"),
    pytest.param(b"{} {}", "is not JSON", id="two documents"),
    pytest.param(b"[1]", "must be a JSON object", id="an array"),
    pytest.param(b'"a"', "must be a JSON object", id="a text"),
    pytest.param(b"null", "must be a JSON object", id="null"),
    pytest.param(b'{"a":1,"a":1}', "a key comes twice", id="a key twice"),
    pytest.param(b'{"a":1,"\\u0061":2}', "a key comes twice", id="a key twice, once in disguise"),
    pytest.param(b'{"a":[{"b":1,"b":2}]}', "a key comes twice", id="a key twice, deep inside"),
    pytest.param(b'{"a":NaN}', "NaN is no number of JSON", id="NaN"),
    pytest.param(b'{"a":-Infinity}', "-Infinity is no number of JSON", id="infinity"),
    pytest.param(b'{"a":' + b"9" * 5000 + b"}", "is not JSON", id="a number of 5000 digits"),
    pytest.param(b'{"a":1e400}', "environment", id="a number beyond all floats"),
    pytest.param(b'{"a":-1e400}', "environment", id="a number beyond all floats, below"),
    pytest.param(b'{"a":"\\ud800"}', "lone surrogate", id="a lone surrogate"),
    pytest.param(b'{"\\udc00":1}', "lone surrogate", id="a lone surrogate in a key"),
    pytest.param(b'{"a":"\xff"}', "is not JSON", id="not UTF-8"),
    pytest.param(b"\xef\xbb\xbf{}", "is not JSON", id="a byte order mark"),
    pytest.param('{"a":1}'.encode("utf-16"), "is not JSON", id="UTF-16"),
    pytest.param(b'{"a":"\0"}', "is not JSON", id="NUL that is not escaped"),
    pytest.param(b'{"a":' * 100_000, "is not JSON", id="objects without end"),
    pytest.param(b"[" * 100_000, "is not JSON", id="arrays without end"),
    pytest.param(bytearray(b"{}"), "must be bytes", id="not bytes"),
    pytest.param("{}", "must be bytes", id="text"),
]


@pytest.mark.parametrize(("data", "why"), REFUSED)
def test_what_is_no_such_document_has_no_name(data: Any, why: str) -> None:
    """It is refused with the reason, whatever it is."""
    with pytest.raises(InvalidInputError, match=why):
        process_execution_env_ref(data)


async def test_an_environment_comes_back_as_it_was_put_first(lab: Lab) -> None:
    """Byte for byte, also when it is put again in another layout, and after the database was opened again."""
    envs: EngineProcessExecutionEnvStore = lab.factory.process_execution_envs
    ref = process_execution_env_ref(DOCUMENT)
    await envs.put_process_execution_env(ref, DOCUMENT)
    async with lab.unchanged():
        await envs.put_process_execution_env(ref, json.dumps(json.loads(DOCUMENT), indent=4).encode())
    assert await envs.get_process_execution_env(ref) == DOCUMENT
    assert await envs.get_process_execution_env(EMPTY) is None
    await lab.assert_sound()


@pytest.mark.parametrize(
    ("ref", "data", "what"),
    [
        (ONE, b'{"a": 2}', "ref"),
        (ONE, b"[1]", "environment"),
        (hashlib.sha256(b'{"a": 1}').hexdigest(), b'{"a": 1}', "ref"),
        (ONE.upper(), b'{"a": 1}', "ref"),
        ("", b'{"a": 1}', "ref"),
        ("a\0b", b'{"a": 1}', "ref"),
        ("a" * 513, b'{"a": 1}', "ref"),
    ],
)
async def test_only_a_document_under_its_own_name_is_taken(lab: Lab, ref: str, data: bytes, what: str) -> None:
    """Another document, no document, the hash of the layout, a name that is none: refused, and nothing is written."""
    envs: EngineProcessExecutionEnvStore = lab.factory.process_execution_envs
    async with lab.unchanged():
        with pytest.raises(InvalidInputError) as caught:
            await envs.put_process_execution_env(ref, data)
    assert caught.value.what == what


async def test_an_environment_beyond_the_budget_is_refused(lab: Lab) -> None:
    """One byte more than the budget is refused, and nothing is written; as much as the budget is taken."""
    data = b'{"a":"' + b"x" * 92 + b'"}'
    assert len(data) == 100
    ref = process_execution_env_ref(data)
    small = EngineProcessExecutionEnvStore(lab.factory.engine, budget_bytes=99)
    async with lab.unchanged():
        with pytest.raises(InvalidInputError, match="100 bytes, over the configured budget of 99"):
            await small.put_process_execution_env(ref, data)
    await EngineProcessExecutionEnvStore(lab.factory.engine, budget_bytes=100).put_process_execution_env(ref, data)
    assert await lab.factory.process_execution_envs.get_process_execution_env(ref) == data


async def test_environments_in_memory_are_gone_with_their_store() -> None:
    """They live in a database of their own, and say that they die with the process."""
    envs = InMemoryProcessExecutionEnvStore()
    assert envs.durability_tier == "inline"
    await envs.put_process_execution_env(ONE, b'{"a": 1}')
    assert await envs.get_process_execution_env(ONE) == b'{"a": 1}'
    await envs.close()
    other = InMemoryProcessExecutionEnvStore()
    assert await other.get_process_execution_env(ONE) is None
    await other.close()
