"""What is sent, to whom and by whom: the same in every process, drawn from a seed.

The text of an input says what the agent is to do about it, and its key says which it is. Each kind is a way in which
real turns go, or go wrong.
"""

from __future__ import annotations

import random
from typing import Literal, NamedTuple, TypeAlias

import msgspec

Kind: TypeAlias = Literal["plain", "tools", "slow", "wake", "joins", "later", "fails", "blocks", "poison", "long"]

HEALTHY: dict[Kind, int] = {"plain": 50, "tools": 15, "slow": 10, "wake": 8, "joins": 10, "later": 4}
"""What goes well, and how often of a hundred or so: an answer; tool calls with a checkpoint behind; a turn that takes
its time; work that the agent leaves to itself for later; input for the turn that runs; delayed input."""

SICK: tuple[tuple[Kind, int], ...] = (("fails", 20), ("blocks", 500), ("poison", 250), ("long", 150))
"""What goes wrong, and one of how many does: a handler that raises at first; one that blocks the event loop past its
lease; one that raises whenever it is tried; a turn that its sender interrupts."""

MAX_ATTEMPTS = 25
"""So many that no input is set aside for the deaths of its workers alone."""


class Size(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How big it is and how bad. Times are seconds; the clocks of SQLite's processes are off by up to ``skew_s``."""

    sessions: int
    inputs: int
    workers: int = 8
    senders: int = 4
    kills: int = 0
    stops: int = 0
    crashes: int = 0
    sender_kills: int = 0
    skew_s: float = 0.0
    ttl_s: float = 1.5
    pause_s: float = 0.0
    sick: bool = True
    seed: int = 1
    limit_s: float = 60.0


class Planned(NamedTuple):
    """One input, and which sender sends it."""

    sender: int
    session_id: str
    key: str
    kind: Kind

    @property
    def text(self) -> str:
        """What is said: the kind, then the key."""
        return f"{self.kind} {self.key}"


def plan(size: Size) -> list[Planned]:
    """Draw all inputs. Those of one sender are sent in the order of the list; senders share the sessions."""
    chance = random.Random(size.seed)
    kinds: list[Kind] = chance.choices([*HEALTHY], [*HEALTHY.values()], k=size.inputs)
    if size.sick:
        free = chance.sample(range(size.inputs), size.inputs)
        for kind, one_of in SICK:
            for _ in range(max(1, size.inputs // one_of)):
                kinds[free.pop()] = kind
    return [_planned(number, kind, chance, size) for number, kind in enumerate(kinds)]


def _planned(number: int, kind: Kind, chance: random.Random, size: Size) -> Planned:
    # What an interrupted turn has not answered is settled all the same: wakes are counted, and poison is set aside,
    # where no turn is interrupted.
    at = chance.randrange(size.sessions)
    apart = max(1, size.sessions // 10)
    if kind == "long":
        at %= apart
    elif kind == "poison" and at < apart < size.sessions:
        at += apart
    elif kind == "wake" and at < apart:
        kind = "plain"
    return Planned(chance.randrange(size.senders), f"s{at}", f"k{number}", kind)


def clock_offset_ms(size: Size, role: str, number: int) -> int:
    """Say how much the clock of one process is off: evenly from one end to the other, the roles mixed."""
    members = [("worker", each) for each in range(size.workers)] + [("sender", each) for each in range(size.senders)]
    random.Random(size.seed).shuffle(members)
    at = members.index((role, number)) / max(1, len(members) - 1)
    return int(size.skew_s * 1000 * (2 * at - 1))
