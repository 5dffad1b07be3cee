"""Token usage as recorders write it: an OpenAI ``usage`` object beside a message or a record, if there is one.

What is wrong with a counter or with the name of a model never stands in the way of the conversation it belongs to.
"""

from __future__ import annotations

import msgspec

from fastness.decide.limits import check_id
from fastness.errors import InvalidInputError
from fastness.formats.foreign import fields_or_none, text_or_none
from fastness.model.checkpoint import TokenUsage

_MAX = 2**43 - 1
"""The largest counter that is believed: a million of them still add up within 63 bits."""

UNKNOWN_MODEL = "unknown"
"""What usage is charged to where nobody says which model it was."""

_number = msgspec.json.Decoder(int)


def usage_of(owner: msgspec.Raw) -> tuple[str, TokenUsage] | None:
    """Give the model and the usage that a message or a record names. Counters that are none count as zero."""
    fields = fields_or_none(owner) or {}
    usage = _object(fields, "usage")
    if usage is None:
        return None
    read = _object(usage, "prompt_tokens_details") or {}
    written = _object(usage, "completion_tokens_details") or {}
    found = TokenUsage(
        input_tokens=_count(usage, "prompt_tokens"),
        output_tokens=_count(usage, "completion_tokens"),
        cache_read_tokens=_count(read, "cached_tokens"),
        reasoning_output_tokens=_count(written, "reasoning_tokens"),
    )
    return None if found == TokenUsage() else (text_or_none(fields.get("model")) or "", found)


def model_to_charge(*names: str) -> str:
    """Give the first of these names that can be a key of the ledger, else ``UNKNOWN_MODEL``."""
    for name in names:
        try:
            return check_id("model", name)
        except InvalidInputError:
            continue
    return UNKNOWN_MODEL


def _object(fields: dict[str, msgspec.Raw], key: str) -> dict[str, msgspec.Raw] | None:
    value = fields.get(key)
    return fields_or_none(value) if value is not None else None


def _count(fields: dict[str, msgspec.Raw], key: str) -> int:
    try:
        found = _number.decode(fields.get(key, b"0"))
    except msgspec.DecodeError:
        return 0
    # A counter that a store must refuse is no reason to refuse the conversation: its record is kept whole anyway.
    return found if 0 <= found <= _MAX else 0
