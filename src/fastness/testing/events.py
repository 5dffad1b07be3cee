"""What a process says of itself in its journal: what it sent, which turns it began, and how they ended.

An event states what its writer knew when it wrote it, and no more. Wall clocks disagree between machines and jump on
one, so no verdict ever rests on ``wall_ms``; the order within one process is ``sequence``, and nothing here claims an
order between processes.
"""

from __future__ import annotations

import hashlib
from typing import TypeAlias

from fastness.errors import InvalidInputError
from fastness.model.base import Value


class Event(Value, frozen=True, kw_only=True):
    """The stamp that a journal puts on everything it writes; callers leave it alone.

    ``writer`` names the process for good (a pid alone comes back), ``sequence`` counts its events from 1, ``wall_ms``
    is its wall clock in milliseconds since the epoch, for people to read.
    """

    writer: str = ""
    pid: int = 0
    sequence: int = 0
    wall_ms: int = 0


class Sent(Event, frozen=True, tag_field="event", tag="sent"):
    """An input on its way: written once before the call, and again with ``acknowledged`` when it has returned.

    ``key`` is the source key; sent again after a failure, it is the same input. ``input_id`` is what the store
    answered, needed once it is acknowledged. ``text_hash`` (see ``text_hash``) ties an input whose answer was lost to
    what the transcript shows. ``ordered`` is for input that its sender's next one must not overtake; say False for what
    may be overtaken or overtake: input for the turn that runs, and delayed input.
    """

    session_id: str
    key: str
    input_id: str | None = None
    text_hash: str | None = None
    acknowledged: bool = False
    ordered: bool = True

    def __post_init__(self) -> None:
        if self.acknowledged and self.input_id is None:
            raise InvalidInputError("input_id", "must be given for input that was acknowledged")


class TurnStarted(Event, frozen=True, tag_field="event", tag="turn_started"):
    """A turn is about to run; written before anything of it can be committed.

    ``input_ids`` are those that it began with. ``head_revision`` is what it found when it had the lane already, 0 where
    there was no commit; a commit behind it under a smaller token is one that fencing should have refused. None: not
    looked at.
    """

    session_id: str
    turn_id: str
    fencing_token: int
    input_ids: tuple[str, ...] = ()
    worker: str = ""
    head_revision: int | None = None


class Committed(Event, frozen=True, tag_field="event", tag="committed"):
    """A commit was acknowledged to its turn: under this token, as this revision, with all these inputs settled.

    With ``replayed`` the commit was found to have landed before, perhaps under the smaller token of an earlier entry.
    """

    session_id: str
    turn_id: str
    fencing_token: int
    revision: int
    input_ids: tuple[str, ...] = ()
    replayed: bool = False


class TurnFailed(Event, frozen=True, tag_field="event", tag="turn_failed"):
    """A turn ended with an error. Its commit may have landed all the same, where only the answer was lost."""

    session_id: str
    turn_id: str
    fencing_token: int
    error: str


class Quarantined(Event, frozen=True, tag_field="event", tag="quarantined"):
    """An input was set aside, so that its session can go on. Tried again from there, it has lost its place in line."""

    session_id: str
    input_id: str
    error: str = ""


class Interrupted(Event, frozen=True, tag_field="event", tag="interrupted"):
    """A turn was told to stop, and did."""

    session_id: str
    turn_id: str
    fencing_token: int
    reason: str = ""


AnyEvent: TypeAlias = Sent | TurnStarted | Committed | TurnFailed | Quarantined | Interrupted


def text_hash(text: str) -> str:
    """Give the name of a text that senders and the transcript are compared by: 16 hexadecimal digits."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
