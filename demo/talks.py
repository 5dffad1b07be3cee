"""Recorded conversations as a script: what users say, and what a model has answered. The same in every process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from fastness.formats.openai_chat import from_message
from fastness.formats.records import read_records
from fastness.model import Message

OWN_CONVERSATIONS = Path(__file__).with_name("conversations.json")
OWN_COPIES = 8
"""The project's own conversations are few: each is held several times."""


class Exchange(NamedTuple):
    """What a user says and, up to the next thing that a user says, what is recorded behind it."""

    key: str
    said: str
    answers: tuple[dict[str, Any], ...]


class Talk(NamedTuple):
    """One conversation, which becomes one session. ``opening`` is what stands before anybody says anything."""

    session_id: str
    opening: tuple[dict[str, Any], ...]
    exchanges: tuple[Exchange, ...]

    @property
    def lines(self) -> list[str]:
        """The whole conversation, a line for each message, as it has to be in the end."""
        said = [[_user_line(each.said), *map(json.dumps, each.answers)] for each in self.exchanges]
        return [*map(json.dumps, self.opening), *(line for lines in said for line in lines)]


def talks_of(path: Path) -> list[Talk]:
    """Read a file of conversations. Raises ``InvalidInputError`` for what is none."""
    copies = OWN_COPIES if path.resolve() == OWN_CONVERSATIONS else 1
    records = [[json.loads(bytes(message)) for message in record.messages] for record in read_records(path)]
    return [
        _talk(f"{path.stem}-{index}.{copy}", messages)
        for index, messages in enumerate(records, 1)
        for copy in range(1, copies + 1)
    ]


def line_of(message: Message) -> str:
    """Give a message of a session as a line; what a user said is its text."""
    return _user_line(message.text) if message.origin is not None else json.dumps(json.loads(from_message(message)))


def _talk(session_id: str, messages: list[dict[str, Any]]) -> Talk:
    users = [at for at, message in enumerate(messages) if message.get("role") == "user"]
    ends = [*users[1:], len(messages)]
    exchanges = [
        Exchange(f"{session_id}/{number}", _text(messages[at]), tuple(messages[at + 1 : end]))
        for number, (at, end) in enumerate(zip(users, ends, strict=False), 1)
    ]
    return Talk(session_id, tuple(messages[: users[0]] if users else messages), tuple(exchanges))


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else json.dumps(content)


def _user_line(text: str) -> str:
    return json.dumps({"role": "user", "content": text})
