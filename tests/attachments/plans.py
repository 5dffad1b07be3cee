"""Plans for processes that share a database and a byte store: who does what, and who moves when."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from hypothesis import strategies as st

SESSIONS = ("a", "b", "c")
CONTENTS = (b"zero", b"one", b"two")
IDS = tuple(hashlib.sha256(content).hexdigest() for content in CONTENTS)
STEP_MS = 20_000
"""How far the clock goes at a time: a mark lives for three steps, and a sweep deletes during the first two."""
PUNCTUAL_MS = STEP_MS
"""How far back the cut-offs are of those who know how long a put may take: two steps."""
GRACES_MS = (0, 0, STEP_MS)


class Act(NamedTuple):
    """What a process does next; ``other`` is a session."""

    kind: str
    content: int = 0
    other: int = 0
    grace_ms: int = 0
    batch_size: int = 1


class Script(NamedTuple):
    """One process, at work on one session."""

    session: int
    acts: tuple[Act, ...]


class Move(NamedTuple):
    """``go``: a process makes some calls. ``die``: it ends at the next one. ``tick``: a step of time passes."""

    kind: str
    who: int = 0
    calls: int = 1


class Plan(NamedTuple):
    """Who there is, and who moves when. What is left after the last move is done in turns."""

    scripts: tuple[Script, ...]
    moves: tuple[Move, ...]


_KINDS = ("keep", "keep", "put", "put", "commit", "share", "get", "forget", "delete", *("sweep",) * 5, "clean")
_MOVES = tuple(
    Move(kind, who, calls)
    for kind, many in (("go", (1, 1, 1, 2, 3, 6) * 2), ("die", (1,)), ("tick", (1, 1)))
    for calls in many
    for who in range(6)
)


def plans(
    graces_ms: tuple[int, ...] = GRACES_MS, contents: tuple[int, ...] = (0, 0, 0, 1, 2), kinds: tuple[str, ...] = _KINDS
) -> st.SearchStrategy[Plan]:
    """From 3 to 6 processes on a few sessions and a few contents, so that they meet."""
    # One draw for each: drawing would take longer than playing.
    acts = tuple(
        Act(kind, content, other, grace_ms, batch_size)
        for kind in kinds
        for content in contents
        for other in range(len(SESSIONS))
        for grace_ms in graces_ms
        for batch_size in (1, 2)
    )
    scripts = st.builds(
        Script, st.sampled_from((0, 0, 1, 1, 2)), st.lists(st.sampled_from(acts), min_size=1, max_size=5).map(tuple)
    )
    return st.builds(
        Plan,
        st.lists(scripts, min_size=3, max_size=6).map(tuple),
        st.lists(st.sampled_from(_MOVES), min_size=20, max_size=80).map(tuple),
    )
