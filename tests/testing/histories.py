"""Histories that never happened: healthy ones, as a fleet that keeps every law would have left them.

A ``Tale`` is drawn with the troubles that a fleet has: attempts that never arrive, answers that are lost, senders that
die and begin anew, turns that fail, crash or are overtaken, commits that are acknowledged twice or never. In each of
its sessions one sender has said three things one after the other, the first turn calls a tool and hears of its commit,
and the last turn of all has committed: what the mutations need.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import msgspec
from hypothesis import strategies as st

from fastness.testing import (
    AnyEvent,
    Committed,
    FinalCommit,
    FinalInput,
    FinalNode,
    FinalSession,
    FinalState,
    Interrupted,
    Sent,
    TurnFailed,
    TurnStarted,
    text_hash,
)


@dataclass
class Chapter:
    """A session while it is told. ``queue`` has the inputs that no turn has settled, as (id, text)."""

    session_id: str
    token: int = 1
    queue: list[tuple[str, str]] = field(default_factory=list)
    admitted: dict[str, str] = field(default_factory=dict)
    commits: list[FinalCommit] = field(default_factory=list)
    nodes: list[FinalNode] = field(default_factory=list)
    leaf: str | None = None
    head: int | None = None
    pending: list[FinalInput] = field(default_factory=list)
    quarantined: list[str] = field(default_factory=list)
    holder: str | None = None
    sequential: list[str] = field(default_factory=list)
    turns: int = 0

    @property
    def revision(self) -> int:
        """Where the head is."""
        return len(self.commits) if self.head is None else self.head

    def final(self) -> FinalSession:
        """The session in the end."""
        return FinalSession(
            self.session_id,
            self.revision,
            self.leaf,
            tuple(self.commits),
            tuple(self.nodes),
            tuple(self.pending),
            tuple(self.quarantined),
            self.holder,
        )


class Tale:
    """A whole history, still open to change."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.events: list[AnyEvent] = []
        self.chapters: list[Chapter] = []
        self._sequences: dict[str, int] = {}
        self._texts = 0

    def say(self, writer: str, event: AnyEvent) -> None:
        """Have a process write an event, by a clock that is anything."""
        sequence = self._sequences[writer] = self._sequences.get(writer, 0) + 1
        wall_ms = self.chance.randrange(10**12)
        self.events.append(msgspec.structs.replace(event, writer=writer, pid=1, sequence=sequence, wall_ms=wall_ms))

    def final(self) -> FinalState:
        """The end of it."""
        return FinalState(tuple(chapter.final() for chapter in self.chapters))

    # --- senders ---

    def admit(self, chapter: Chapter, key: str, text: str) -> str:
        """The store takes an input, once for each key."""
        if key not in chapter.admitted:
            chapter.admitted[key] = f"{chapter.session_id}.{len(chapter.admitted)}"
            chapter.queue.append((chapter.admitted[key], text))
        return chapter.admitted[key]

    def send(self, chapter: Chapter, writer: str, key: str, text: str, fate: str = "acknowledged") -> str | None:
        """Try once to send; the fate is that it is acknowledged, that only the answer is lost, or all of it."""
        event = Sent(chapter.session_id, key, text_hash=text_hash(text))
        self.say(writer, event)
        if fate == "lost":
            return None
        input_id = self.admit(chapter, key, text)
        if fate == "acknowledged":
            self.say(writer, msgspec.structs.replace(event, input_id=input_id, acknowledged=True))
        return input_id

    def some_sender(self, chapter: Chapter, writer: str, number: int) -> None:
        """Send a thing, with what may come between; who was not answered tries again, or dies and begins anew."""
        self._texts += 1
        key, text = f"{writer}-{number}", f"text {self._texts}"
        fate = self.chance.choice(["acknowledged", "acknowledged", "unanswered", "lost"])
        self.send(chapter, writer, key, text, fate)
        if fate != "acknowledged" and self.chance.random() < 0.7:
            again = self.chance.choice([writer, f"{writer} again"])
            self.send(chapter, again, key, text)

    # --- turns ---

    def turn(self, chapter: Chapter, end: str = "acknowledged", tool: bool = True) -> None:
        """Run a turn to its end, whatever that is."""
        chapter.token += self.chance.choice([1, 1, 2])
        token, worker = chapter.token, f"worker-{self.chance.randrange(3)}"
        turn_id = f"turn/{token}"
        taken = chapter.queue[: self.chance.choice([1, 2])]
        ids = tuple(input_id for input_id, _ in taken)
        seen = self.chance.choice([chapter.revision, chapter.revision, None])
        self.say(worker, TurnStarted(chapter.session_id, turn_id, token, ids, worker, seen))
        if end == "crashed":
            return
        if end == "failed":
            event = self.chance.choice([TurnFailed, Interrupted])
            self.say(worker, event(chapter.session_id, turn_id, token, "KeyError"))
            return
        if end == "overtaken":
            self.turn(chapter)
            self.say(worker, TurnFailed(chapter.session_id, turn_id, token, "LeaseExpiredError"))
            return
        del chapter.queue[: len(taken)]
        self._write(chapter, taken, tool)
        if self.chance.random() < 0.3 and chapter.queue:
            joined = chapter.queue.pop(0)
            ids = (*ids, joined[0])
            self._write(chapter, [joined], False)
        revision = len(chapter.commits) + 1
        chapter.commits.append(FinalCommit(revision, turn_id, token, "turn", chapter.leaf))
        if end == "acknowledged":
            self.say(worker, Committed(chapter.session_id, turn_id, token, revision, ids))
        elif end == "replayed":
            later = chapter.token = token + self.chance.choice([0, 1])
            self.say(worker, Committed(chapter.session_id, turn_id, later, revision, ids, replayed=True))

    def _write(self, chapter: Chapter, taken: list[tuple[str, str]], tool: bool) -> None:
        for input_id, text in taken:
            self.node(chapter, input_id, role="user", input_id=input_id, text_hash=text_hash(text))
        if tool:
            call_id = self.chance.choice(["call", None, f"call {len(chapter.nodes)}"])
            self.node(chapter, f"n{len(chapter.nodes)}", role="assistant", calls=(call_id,))
            self.node(chapter, f"n{len(chapter.nodes)}", role="tool", results=(call_id,))
        self.node(chapter, f"n{len(chapter.nodes)}", role="assistant")

    def node(self, chapter: Chapter, node_id: str, **fields: object) -> None:
        """Add a node behind the leaf."""
        chapter.nodes.append(msgspec.structs.replace(FinalNode(node_id, chapter.leaf), **fields))
        chapter.leaf = node_id

    # --- a whole session ---

    def tell(self, session_id: str) -> None:
        """Add a session, from its first word to the last turn."""
        chapter = Chapter(session_id)
        self.chapters.append(chapter)
        if self.chance.random() < 0.5:
            self.turn(chapter, "failed")
        first = f"{session_id}.first"
        for number in range(3):
            if self.chance.random() < 0.5:
                self.some_sender(chapter, f"{session_id}.other", number)
            sent = self.send(chapter, first, f"first-{number}", f"{session_id} first {number}")
            assert sent is not None
            chapter.sequential.append(sent)
            if number == 0:
                self.turn(chapter)
            if number == 1:
                self.turn(chapter, self.chance.choice(["failed", "crashed", "overtaken", "replayed", "unheard"]))
            self.some_sender(chapter, f"{session_id}.third", number)
        while chapter.queue:
            self.turn(chapter, self.chance.choice(["acknowledged", "acknowledged", "replayed", "unheard", "failed"]))
        self.turn(chapter, tool=self.chance.random() < 0.5)


@st.composite
def tales(draw: st.DrawFn) -> Tale:
    """Healthy histories of one to three sessions."""
    tale = Tale(draw(st.randoms(use_true_random=False)))
    for number in range(draw(st.integers(1, 3))):
        tale.tell(f"s{number}")
    return tale
