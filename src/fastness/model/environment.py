"""Environments: what an agent's process ran in, as a JSON document that others write and read."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from fastness.errors import InvalidInputError
from fastness.model.base import canonical_json, sha256_hex


def process_execution_env_ref(data: bytes) -> str:
    """Give the name of an environment: the sha256 of its canonical form, so that its layout and order do not count.

    ``data`` is one JSON object in UTF-8, no key of which comes twice. In the canonical form its keys are sorted, white
    space is gone, and numbers and escapes are written in one way. Raises ``InvalidInputError`` for what is no such
    document.
    """
    if not isinstance(data, bytes):
        raise InvalidInputError("environment", f"must be bytes, not {type(data).__name__}")
    try:
        # The standard library's reader: it keeps large numbers whole, and lets us see what comes twice.
        document = json.loads(
            data.decode(),
            object_pairs_hook=_without_repetition,
            parse_constant=_no_number,
            parse_float=_finite,
        )
    except (ValueError, RecursionError) as error:
        raise InvalidInputError("environment", f"is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise InvalidInputError("environment", "must be a JSON object")
    return sha256_hex(canonical_json(document, "environment"))


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key comes twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:20]} is beyond all numbers")
    return number


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
