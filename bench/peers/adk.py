"""The sessions of the Google Agent Development Kit: ``DatabaseSessionService`` on SQLite or PostgreSQL.

Options: ``place``, a path or a URL. A turn is four ``append_event``, one for
each message: the service has no call for several.
"""

from __future__ import annotations

import json
from collections import deque
from typing import Any

from google.adk.events.event import Event
from google.adk.sessions.database_session_service import DatabaseSessionService
from google.genai import types

from bench.peers.engine import engine_settings, engine_url
from bench.peers.messages import Spoken, spoken
from bench.peers.roles import Options, main, versions

_APP = "bench"
_USER = "user"


class Adk:
    """One service."""

    def __init__(self, options: Options) -> None:
        self._url = engine_url(str(options["place"]))
        self.service: Any = None

    async def open(self) -> None:
        """Open the service; it makes its tables with its first session."""
        self.service = DatabaseSessionService(self._url)
        await self.service.prepare_tables()

    async def close(self) -> None:
        """Close it."""
        await self.service.close()

    def session(self, name: str) -> AdkSession:
        """Name a session."""
        return AdkSession(self, name)

    async def settings(self) -> dict[str, str]:
        """Ask a connection of the service's engine."""
        return await engine_settings(self.service.db_engine) | versions("google-adk", "sqlalchemy")


class AdkSession:
    """One session of the service."""

    def __init__(self, owner: Adk, name: str) -> None:
        self._owner = owner
        self._name = name
        self._held: Any = None
        self._waiting: deque[list[Event]] = deque()
        self._built = 0

    async def attach(self) -> None:
        """Create it the first time; what the application holds of it stays valid."""
        if self._held is None:
            create = self._owner.service.create_session
            self._held = await create(app_name=_APP, user_id=_USER, session_id=self._name)

    async def ahead(self, count: int) -> None:
        """Build the events of the next turns."""
        for _ in range(count):
            self._waiting.append(_events(self._built))
            self._built += 1

    async def turn(self) -> None:
        """Append the events of a turn."""
        for event in self._waiting.popleft():
            await self._owner.service.append_event(self._held, event)

    async def fill(self, count: int) -> bool:
        """Do nothing: events are appended one by one."""
        return False

    async def load(self) -> int:
        """Get the session with all its events."""
        found = await self._owner.service.get_session(app_name=_APP, user_id=_USER, session_id=self._name)
        return len(found.events)


def _events(turn: int) -> list[Event]:
    """Build the four events of a turn."""
    return [_event(message, turn) for message in spoken(turn)]


def _event(message: Spoken, turn: int) -> Event:
    by_user = message["kind"] == "user"
    role = "user" if message["kind"] in {"user", "response"} else "model"
    content = types.Content(role=role, parts=[_part(message, f"call-{turn}")])
    return Event(author="user" if by_user else "agent", content=content, invocation_id=f"invocation-{turn}")


def _part(message: Spoken, call: str) -> types.Part:
    match message["kind"]:
        case "call":
            arguments = json.loads(message["json"])
            return types.Part(function_call=types.FunctionCall(id=call, name=message["name"], args=arguments))
        case "response":
            answer = {"result": json.loads(message["json"])}
            return types.Part(function_response=types.FunctionResponse(id=call, name=message["name"], response=answer))
    return types.Part(text=message["text"])


if __name__ == "__main__":
    main(Adk)
