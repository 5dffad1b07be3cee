"""What is said in the comparison with the peers: four messages a turn, the same for everybody, no two turns alike.

A database that compresses would find a conversation that repeats itself far smaller than one of people. So the words
are prose that comes with Python, the help of its language, a slice for each turn.
"""

from __future__ import annotations

import json
from functools import cache
from pydoc_data.topics import topics
from typing import TypeAlias

Spoken: TypeAlias = dict[str, str]
"""``kind`` is user, call, response or assistant; then ``text``, or ``name`` and ``json``."""

_ASKED, _ANSWERED, _FOUND = 190, 400, 30
"""How long the texts are, in characters."""


def spoken(turn: int) -> list[Spoken]:
    """Give question, tool call, tool answer and answer of a turn."""
    words = _slice(turn)
    asked, found, answer = words[:_ASKED], words[_ASKED : _ASKED + 3 * _FOUND], words[_ASKED + 3 * _FOUND :]
    hits = [{"hit": found[at * _FOUND : (at + 1) * _FOUND], "rank": turn % (97 - at)} for at in range(3)]
    return [
        {"kind": "user", "text": asked},
        {"kind": "call", "name": "search_help", "json": json.dumps({"query": asked[:_FOUND], "most": 3})},
        {"kind": "response", "name": "search_help", "json": json.dumps(hits)},
        {"kind": "assistant", "text": answer},
    ]


def _slice(turn: int) -> str:
    prose = _prose()
    length = _ASKED + 3 * _FOUND + _ANSWERED
    first = turn * length % (len(prose) - length)
    return prose[first : first + length]


@cache
def _prose() -> str:
    """Give all the help in one line of ASCII, so that nobody's escapes make a difference."""
    return " ".join(" ".join(topics.values()).encode("ascii", "ignore").decode().split())
