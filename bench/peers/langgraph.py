"""The savers of LangGraph: ``AsyncSqliteSaver`` and ``AsyncPostgresSaver``, with a plain channel or a delta channel.

Options: ``place``, a path or a URL; ``delta``, which channel.
A turn is what a graph of one node has its saver store for it, and no more. With a plain channel, whose reducer appends,
that is one ``aput`` of a checkpoint; the graph's own writes of the step are left out. With a delta channel, it is the
``aput_writes`` of the four messages and the ``aput`` of a checkpoint that has them only at each of its snapshots.
LangGraph's own functions make the checkpoints, and decide when there is a snapshot.
"""

from __future__ import annotations

import json
import operator
from collections import deque
from contextlib import AsyncExitStack
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langgraph._internal._typing import MISSING
from langgraph.channels.base import BaseChannel
from langgraph.channels.binop import BinaryOperatorAggregate
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.pregel._checkpoint import (
    achannels_from_checkpoint,
    create_checkpoint,
    delta_channels_to_snapshot,
)

from bench.peers.messages import Spoken, spoken
from bench.peers.roles import POSTGRES_QUESTIONS, SQLITE_QUESTIONS, Options, main, sqlite_settings, versions

_CHANNEL = "messages"
_COUNTERS = "counters_since_delta_snapshot"


class LangGraph:
    """A saver."""

    def __init__(self, options: Options) -> None:
        self._place = str(options["place"])
        self._on_postgres = self._place.startswith("postgresql:")
        self.is_delta = bool(options["delta"])
        self._opened = AsyncExitStack()
        self.saver: Any = None

    async def open(self) -> None:
        """Open the saver as its guide says, and make its tables."""
        kind: Any = AsyncPostgresSaver if self._on_postgres else AsyncSqliteSaver
        self.saver = await self._opened.enter_async_context(kind.from_conn_string(self._place))
        await self.saver.setup()

    async def close(self) -> None:
        """Close its connection."""
        await self._opened.aclose()

    def session(self, name: str) -> Thread:
        """Name a thread."""
        return Thread(self, name)

    def channel(self) -> BaseChannel[Any, Any, Any]:
        """Make the channel of the messages, with nothing in it."""
        if self.is_delta:
            return DeltaChannel(_append, list)
        return BinaryOperatorAggregate(list, operator.add)

    async def settings(self) -> dict[str, str]:
        """Ask the saver's connection."""
        connection = self.saver.conn
        packages = versions("langgraph", "langgraph-checkpoint")
        if self._on_postgres:
            found = {}
            for name in POSTGRES_QUESTIONS:
                (found[name],) = (await (await connection.execute(f"show {name}")).fetchone()).values()
            return found | packages | versions("langgraph-checkpoint-postgres", "psycopg")
        answers = [await (await connection.execute(question)).fetchone() for question in SQLITE_QUESTIONS]
        return sqlite_settings(*answers) | packages | versions("langgraph-checkpoint-sqlite", "aiosqlite")


class Thread:
    """One thread of a graph."""

    def __init__(self, owner: LangGraph, name: str) -> None:
        self._owner = owner
        self._config: Any = {"configurable": {"thread_id": name, "checkpoint_ns": ""}}
        self._top = self._config
        self._channels = {_CHANNEL: owner.channel().from_checkpoint(MISSING)}
        self._checkpoint = empty_checkpoint()
        self._counters = (0, 0)
        self._step = -1
        self._waiting: deque[list[BaseMessage]] = deque()
        self._built = 0

    async def attach(self) -> None:
        """Store the empty checkpoint that a thread begins with."""
        if self._step < 0:
            metadata = {"source": "input", "step": -1, "parents": {}}
            self._config = await self._owner.saver.aput(self._config, self._checkpoint, metadata, {})
            self._step = 0

    async def ahead(self, count: int) -> None:
        """Build the messages of the next turns."""
        for _ in range(count):
            self._waiting.append(_spoken(self._built))
            self._built += 1

    async def turn(self) -> None:
        """Store the next turn."""
        messages, saver = self._waiting.popleft(), self._owner.saver
        self._step += 1
        if self._owner.is_delta:
            await saver.aput_writes(self._config, [(_CHANNEL, messages)], f"task-{self._step}")
        self._channels[_CHANNEL].update([messages])
        known = self._checkpoint["channel_versions"]
        new = {_CHANNEL: saver.get_next_version(known.get(_CHANNEL), None)}
        self._checkpoint["channel_versions"] = {**known, **new}
        metadata: dict[str, Any] = {"source": "loop", "step": self._step, "parents": {}}
        self._checkpoint = create_checkpoint(
            self._checkpoint,
            self._channels,
            self._step,
            updated_channels={_CHANNEL},
            channels_to_snapshot=self._snapshot(metadata),
        )
        self._config = await saver.aput(self._config, self._checkpoint, metadata, new)

    def _snapshot(self, metadata: dict[str, Any]) -> set[str]:
        """Count the step as LangGraph's loop does; say whether the delta channel is stored as a whole."""
        if not self._owner.is_delta:
            return set()
        updates, steps = self._counters
        self._counters = updates + 1, steps + 1
        found: set[str] = delta_channels_to_snapshot(
            self._channels, {_CHANNEL: self._counters}, self._checkpoint["channel_versions"]
        )
        if found:
            self._counters = 0, 0
        else:
            metadata[_COUNTERS] = {_CHANNEL: self._counters}
        return found

    async def fill(self, count: int) -> bool:
        """Do nothing: each checkpoint is kept, so that many turns at once are not the same."""
        return False

    async def load(self) -> int:
        """Get the newest checkpoint, and its channel as a graph has it."""
        saver = self._owner.saver
        found = await saver.aget_tuple(self._top)
        specs = {_CHANNEL: self._owner.channel()}
        channels, _ = await achannels_from_checkpoint(specs, found.checkpoint, saver=saver, config=found.config)
        return len(channels[_CHANNEL].get())


def _append(known: list[BaseMessage], writes: list[list[BaseMessage]]) -> list[BaseMessage]:
    """Reduce as a plain channel does."""
    return known + [message for write in writes for message in write]


def _spoken(turn: int) -> list[BaseMessage]:
    """Build the four messages of a turn."""
    return [_message(message, turn, at) for at, message in enumerate(spoken(turn))]


def _message(message: Spoken, turn: int, at: int) -> BaseMessage:
    number, call = f"message-{turn}-{at}", f"call-{turn}"
    match message["kind"]:
        case "user":
            return HumanMessage(message["text"], id=number)
        case "call":
            asked = {"name": message["name"], "args": json.loads(message["json"]), "id": call}
            return AIMessage("", tool_calls=[asked], id=number)
        case "response":
            return ToolMessage(message["json"], tool_call_id=call, id=number)
    return AIMessage(message["text"], id=number)


if __name__ == "__main__":
    main(LangGraph)
