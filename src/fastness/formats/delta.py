"""The difference between a JSON value as it came and as we would write it, kept small and kept exactly.

An adapter renders a message from its parts; where the original differs (a field that the vocabulary lacks, another
order of keys, an odd shape), the difference is stored beside the parts. ``patch(render, difference(original, render))``
is the original, whatever the render is: losslessness needs no knowledge of any provider.

The render is a tree of objects (dict), arrays (list), text (str), null (None) and foreign JSON (``Raw``). Text is equal
by what it says, foreign JSON by its bytes.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from fastness.errors import InvalidInputError
from fastness.formats.foreign import elements_or_none, fields_or_none, text_or_none

Tree: TypeAlias = "dict[str, Tree] | list[Tree] | str | msgspec.Raw | None"


class Delta(msgspec.Struct, frozen=True, omit_defaults=True):
    """How an object or array differs from its render.

    ``keys`` are all keys of an object in their order, given where they are not those of the render. ``set`` replaces or
    adds values, ``within`` goes deeper; both are by key, or by position in decimal for an array.
    """

    keys: tuple[str, ...] | None = None
    set: dict[str, msgspec.Raw] = {}
    within: dict[str, Delta] = msgspec.field(default_factory=dict, name="in")


def difference(original: msgspec.Raw, render: Tree) -> Delta | msgspec.Raw | None:
    """Compare: None if the render says the same, a ``Delta`` between objects or arrays, else the original itself."""
    if isinstance(render, dict):
        fields = fields_or_none(original)
        return original if fields is None else _object_difference(fields, render)
    if isinstance(render, list):
        elements = elements_or_none(original)
        if elements is None or len(elements) != len(render):
            return original
        replaced, within = _compare(
            {str(at): value for at, value in enumerate(elements)}, {str(at): value for at, value in enumerate(render)}
        )
        return Delta(None, replaced, within) if replaced or within else None
    if isinstance(render, str):
        return None if text_or_none(original) == render else original
    expected = b"null" if render is None else bytes(render)
    return None if bytes(original) == expected else original


def _object_difference(fields: dict[str, msgspec.Raw], render: dict[str, Tree]) -> Delta | None:
    keys = None if list(fields) == list(render) else tuple(fields)
    replaced, within = _compare(fields, render)
    return Delta(keys, replaced, within) if keys is not None or replaced or within else None


def _compare(
    fields: dict[str, msgspec.Raw], render: dict[str, Tree]
) -> tuple[dict[str, msgspec.Raw], dict[str, Delta]]:
    replaced: dict[str, msgspec.Raw] = {}
    within: dict[str, Delta] = {}
    for key, value in fields.items():
        found = difference(value, render[key]) if key in render else value
        if isinstance(found, Delta):
            within[key] = found
        elif found is not None:
            replaced[key] = found
    return replaced, within


def patch(render: Tree, delta: Delta) -> Tree:
    """Apply a difference. What a changed render no longer has is passed over, so that edited parts still go out."""
    if isinstance(render, list):
        return [_patched(str(at), value, delta) for at, value in enumerate(render)]
    if not isinstance(render, dict):
        raise InvalidInputError("provider fields", "do not fit the message they stand beside")
    keys = delta.keys if delta.keys is not None else tuple(render)
    return {key: _patched(key, render.get(key), delta) for key in keys if key in render or key in delta.set}


def _patched(key: str, value: Tree, delta: Delta) -> Tree:
    if key in delta.set:
        return delta.set[key]
    inner = delta.within.get(key)
    return patch(value, inner) if inner is not None and isinstance(value, dict | list) else value
