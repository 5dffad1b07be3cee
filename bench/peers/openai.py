"""The sessions of the OpenAI Agents SDK: ``SQLiteSession``, and ``SQLAlchemySession`` on SQLite or PostgreSQL.

Options: ``place``, a path or a URL; ``sqlalchemy``, which of the two.
A turn is one ``add_items``, as the SDK's runner has items of a turn stored.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from agents.extensions.memory import SQLAlchemySession
from agents.memory import SQLiteSession
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from bench.peers.engine import engine_settings, engine_url
from bench.peers.messages import Spoken, spoken
from bench.peers.roles import SQLITE_QUESTIONS, Options, main, sqlite_settings, versions

Item = dict[str, Any]


class OpenAi:
    """One database, and the sessions in it."""

    def __init__(self, options: Options) -> None:
        self._place = str(options["place"])
        self._on_postgres = self._place.startswith("postgresql:")
        self._sqlalchemy = bool(options["sqlalchemy"])
        self._open: list[Any] = []
        self._engine: AsyncEngine | None = None

    async def open(self) -> None:
        """Make the engine that SQLAlchemy's sessions share; the SDK configures it."""
        if self._sqlalchemy:
            self._engine = create_async_engine(engine_url(self._place))

    async def close(self) -> None:
        """Close the sessions, or the engine."""
        while self._open:
            session = self._open.pop()
            if not self._sqlalchemy:
                session.close()
        if self._engine is not None:
            await self._engine.dispose()

    def handle(self, name: str) -> Any:
        """Open a session of the SDK."""
        if self._engine is not None:
            handle: Any = SQLAlchemySession(name, engine=self._engine, create_tables=True)
        else:
            handle = SQLiteSession(name, self._place)
        self._open.append(handle)
        return handle

    def session(self, name: str) -> OpenAiSession:
        """Name a session."""
        return OpenAiSession(self, name)

    async def settings(self) -> dict[str, str]:
        """Ask a connection that the sessions have made."""
        packages = versions("openai-agents")
        if self._engine is not None:
            return await engine_settings(self._engine) | packages | versions("sqlalchemy")
        # The SDK has no call for it; its thread's connection is the one that it writes on.
        session = self._open[0]

        def ask() -> list[Any]:
            with session._locked_connection() as connection:
                return [connection.execute(question).fetchone() for question in SQLITE_QUESTIONS]

        return sqlite_settings(*await asyncio.to_thread(ask)) | packages


class OpenAiSession:
    """One session of the SDK."""

    def __init__(self, owner: OpenAi, name: str) -> None:
        self._owner = owner
        self._name = name
        self._handle: Any = None
        self._waiting: deque[list[Item]] = deque()
        self._built = 0

    async def attach(self) -> None:
        """Open it; a new one makes the tables where they are not there."""
        self._handle = self._owner.handle(self._name)
        await self._handle.get_items(limit=1)

    async def ahead(self, count: int) -> None:
        """Build the items of the next turns."""
        for _ in range(count):
            self._waiting.append(_items(self._built))
            self._built += 1

    async def turn(self) -> None:
        """Add the items of a turn."""
        await self._handle.add_items(self._waiting.popleft())

    async def fill(self, count: int) -> bool:
        """Add the items of many turns with one call: the rows are the same."""
        items = [item for turn in range(self._built, self._built + count) for item in _items(turn)]
        self._built += count
        await self._handle.add_items(items)
        return True

    async def load(self) -> int:
        """Get all items, as dictionaries."""
        return len(await self._handle.get_items())


def _items(turn: int) -> list[Item]:
    """Build the four items of a turn, in the form of the Responses API."""
    return [_item(message, turn, at) for at, message in enumerate(spoken(turn))]


def _item(message: Spoken, turn: int, at: int) -> Item:
    call = f"call-{turn}"
    match message["kind"]:
        case "user":
            return {"role": "user", "content": message["text"]}
        case "call":
            name, arguments = message["name"], message["json"]
            return {
                "id": f"fc-{turn}",
                "type": "function_call",
                "call_id": call,
                "name": name,
                "arguments": arguments,
                "status": "completed",
            }
        case "response":
            return {"type": "function_call_output", "call_id": call, "output": message["json"]}
    content = [{"type": "output_text", "text": message["text"], "annotations": [], "logprobs": []}]
    return {
        "id": f"msg-{turn}-{at}",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": content,
    }


if __name__ == "__main__":
    main(OpenAi)
