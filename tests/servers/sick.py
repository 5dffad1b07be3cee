"""A tiny HTTP server on loopback that answers what it is told to: errors, half a body, or nothing at all.

It knows no protocol above HTTP/1.1. A *script* says for each request what is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import NamedTuple, Self, TypeAlias


class Request(NamedTuple):
    """A request as it came: its body was read and left out."""

    method: str
    target: str
    headers: Mapping[str, str]
    """By their names in lower case."""


class Answer(NamedTuple):
    """What to answer. ``length`` is what the answer says its body has; more than there is means a cut connection."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = {}
    length: int | None = None
    hangs: bool = False
    """Whether nothing is said at all, and the connection stays open."""


HANGS = Answer(hangs=True)

OBJECT = {"etag": '"of-this-object"', "last-modified": "Mon, 02 Jan 2006 15:04:05 GMT"}
"""The headers without which a client of S3 takes nothing for an object."""

Script: TypeAlias = Callable[[Request], Answer]


def in_turn(*answers: Answer) -> Script:
    """A script that gives one answer after the other, and the last one for ever."""
    left = list(answers)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


class SickServer:
    """The server, started by ``async with`` in the running event loop, at a port that the system chooses."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._talks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.requests: list[Request] = []
        self.endpoint = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.endpoint = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for talk in self._talks:
            talk.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)

    def seen(self, method: str) -> int:
        """How many requests of a method came."""
        return sum(request.method == method for request in self.requests)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = asyncio.ensure_future(self._talk(reader, writer))
        self._talks.add(talk)
        talk.add_done_callback(self._talks.discard)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            try:
                while await self._answered(await _request(reader), writer):
                    pass
            finally:
                writer.close()

    async def _answered(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; whether the connection goes on."""
        self.requests.append(request)
        answer = self._script(request)
        if answer.hangs:
            await asyncio.Event().wait()
        length = len(answer.body) if answer.length is None else answer.length
        headers = {"content-length": str(length), **answer.headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        body = b"" if request.method == "HEAD" else answer.body
        writer.write(f"HTTP/1.1 {answer.status} Told\r\n{head}\r\n".encode() + body)
        await writer.drain()
        return request.method == "HEAD" or length == len(answer.body)


async def _request(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, _ = head[0].split(" ", 2)
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, target, headers)
