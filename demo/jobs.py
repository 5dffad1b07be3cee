"""What is to be replayed: every session of the demo with its branches, the same list in every process."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from fastness.formats.records import ConversationRecord, read_records
from fastness.replay import PlannedTurn, Replay, plan_replay

OWN_CONVERSATIONS = Path(__file__).with_name("conversations.json")
OWN_COPIES = 8
DATABASE = "FASTNESS_DEMO_DATABASE"
"""The environment variable that tells a worker the url of the database."""

_SPACE = re.compile(r"\s*")


class Branch(NamedTuple):
    """One conversation: as it was recorded, and as it is replayed."""

    record: ConversationRecord
    replay: Replay


class Job(NamedTuple):
    """One session and the conversations that become its branches, in order."""

    session_id: str
    branches: tuple[Branch, ...]

    @property
    def turns(self) -> list[PlannedTurn]:
        """The turns of the session in the order they are settled, those that branches share once."""
        return list({turn.turn_id: turn for branch in self.branches for turn in branch.replay.turns}.values())


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


def sources_of(path: Path) -> list[Any]:
    """Read the records with Python's own JSON and nothing else: an audit must not trust the reader it audits."""
    text = path.read_text(encoding="utf-8-sig")
    decoder = json.JSONDecoder()
    found: list[Any] = []
    at = 0
    while (at := _end_of_space(text, at)) < len(text):
        value, at = decoder.raw_decode(text, at)
        is_list_of_records = isinstance(value, list) and not (value and "role" in value[0])
        found.extend(value if is_list_of_records else [value])
    return found


def _end_of_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at
