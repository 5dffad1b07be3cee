"""What is to be replayed: every session of the demo with its branches, the same list in every process."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from fastness.formats.records import ConversationRecord, read_records
from fastness.replay import Replay, plan_replay

OWN_CONVERSATIONS = Path(__file__).with_name("conversations.json")
OWN_COPIES = 8


class Branch(NamedTuple):
    """One conversation: as it was recorded, and as it is replayed."""

    record: ConversationRecord
    replay: Replay


class Job(NamedTuple):
    """One session and the conversations that become its branches, in order."""

    session_id: str
    branches: tuple[Branch, ...]

    @property
    def turn_count(self) -> int:
        """How many turns the session has, those that branches share counted once."""
        return len({turn.turn_id for branch in self.branches for turn in branch.replay.turns})


def jobs_of(path: Path) -> list[Job]:
    """Read the input. The project's own conversations are few: each becomes several sessions, trials are branches."""
    is_own = path.resolve() == OWN_CONVERSATIONS.resolve()
    groups: dict[str, list[ConversationRecord]] = defaultdict(list)
    for record in read_records(path):
        for copy in range(1, OWN_COPIES + 1) if is_own else (0,):
            name = f"{record.field('scenario')}-{copy}" if is_own else f"{path.stem}-{record.index}"
            groups[name].append(record)
    return [
        Job(name, tuple(Branch(record, plan_replay(record, name)) for record in records))
        for name, records in groups.items()
    ]
