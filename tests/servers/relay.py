"""The process behind :class:`tests.servers.proxy.Proxy`: relays bytes, and is told what to do over its input.

Run as ``python -m tests.servers.relay HOST PORT``. Each line of input is a JSON list, the name of a command and its
arguments; each gets one line of JSON as its answer. The process ends with ``end``, or with its input.

A client's message is counted when it arrives here, a server's when it is handed on to the client, after the delay:
what the client sent without having seen an answer therefore counts as sent before it. Requests for encryption are
answered with no, because what is encrypted could not be read. There is no back-pressure: what one side sends is held
in memory until the other takes it.

Delays are kept by ``select``, whose timeouts are not rounded to milliseconds as those of ``epoll`` are.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import re
import selectors
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from tests.servers.wire import GSS_REQUEST, HANDSHAKE, TLS_REQUEST, Conversation, Frames, Message, Statements

TIMER_SLACK = 29
"""Linux's number for how late a sleeping thread may be woken (PR_SET_TIMERSLACK); it is 50 µs unless set."""

AWAKE_S = 0.00015
"""The last part of a delay is spent looking at the clock and the sockets in turn: a sleep would end too late."""

HOP_S = 0.00006
"""What a message costs here without any delay, in seconds; a delay contains it."""


class Side(asyncio.Protocol):
    """One of the two sockets of a link."""

    def __init__(self, received: Callable[[bytes], None], lost: Callable[[], None]) -> None:
        self._received, self._lost = received, lost
        self._transport: asyncio.Transport | None = None
        self._queue: deque[tuple[float, Callable[[], None]]] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is open."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Bytes came in."""
        self._received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed."""
        self._lost()

    def write(self, data: bytes) -> None:
        """Send bytes, unless the socket is closed already."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """Close after what was written."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        """Do something with this side after the delay, in the order of the calls."""
        loop = asyncio.get_running_loop()
        self._queue.append((loop.time() + max(delay_s - HOP_S, 0.0), action))
        if len(self._queue) == 1:
            self._work()

    def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queue and self._queue[0][0] <= loop.time():
            self._queue[0][1]()
            self._queue.popleft()
        if not self._queue:
            return
        if self._queue[0][0] - loop.time() > AWAKE_S:
            loop.call_at(self._queue[0][0] - AWAKE_S, self._work)
        else:
            loop.call_soon(self._work)


class Link:
    """A client's connection and the one to the server that belongs to it."""

    def __init__(self, relay: Relay, number: int) -> None:
        self.number, self.talk = number, Conversation()
        self._relay = relay
        self._frames, self._answers = Frames(untyped=True), Frames(untyped=False)
        self._statements = Statements()
        self._fresh, self._doomed, self._closed = True, False, False
        self._waiting: list[bytes] = []
        self.client = Side(self.from_client, self.client_lost)
        self.server = Side(self.from_server, self.server_lost)
        self._up = False

    async def connect(self, host: str, port: int) -> None:
        """Open the server's side; what the client said meanwhile follows."""
        loop = asyncio.get_running_loop()
        try:
            if host.startswith("/"):
                await loop.create_unix_connection(lambda: self.server, f"{host}/.s.PGSQL.{port}")
            else:
                await loop.create_connection(lambda: self.server, host, port)
        except OSError:
            self.cut()
            return
        self._up = True
        if self._closed:
            self.server.abort()
        for data in self._waiting:
            self.to_server(data)
        self._waiting.clear()

    def from_client(self, data: bytes) -> None:
        """Count and hand on what the client said, unless it is what a cut waits for."""
        passed: list[bytes] = []
        for message in self._frames.feed(data):
            if message.kind == HANDSHAKE and message.code in {TLS_REQUEST, GSS_REQUEST}:
                self._relay.note(self.number, ">", "*")
                self.talk.sent(message)
                self.client.later(2 * self._relay.delay_s, self._refuse)
                continue
            lost = self._relay.lost_by(self, message)
            if lost == "request":
                self._relay.cuts += 1
                self.cut()
                return
            self._doomed = self._doomed or lost == "answer"
            self._relay.note(self.number, ">", message.kind)
            self.talk.sent(message, last=self._doomed and message.kind in "SQH")
            passed.append(message.raw)
        if passed:
            self.to_server(b"".join(passed))

    def to_server(self, data: bytes) -> None:
        """Hand bytes on to the server, after the delay."""
        if self._up:
            self.server.later(self._relay.delay_s, lambda: self.server.write(data))
        else:
            self._waiting.append(data)

    def from_server(self, data: bytes) -> None:
        """Hand on what the server said, after the delay."""
        self.client.later(self._relay.delay_s, lambda: self.to_client(data))

    def to_client(self, data: bytes) -> None:
        """The client gets what the server said: count it now, or swallow it when the answer is to be lost."""
        if self._closed:
            return
        swallowed = self._doomed
        for message in self._answers.feed(data):
            self._relay.note(self.number, "<", message.kind)
            if self.talk.answered(message):
                self._relay.cuts += 1
                self.cut()
        if not swallowed:
            self.client.write(data)

    def executes(self, message: Message, pattern: re.Pattern[str] | None) -> bool:
        """Whether a client's message executes a statement that fits; without a pattern, whether it begins a batch."""
        text = self._statements.executed(message)
        fresh = self._fresh
        self._fresh = message.kind in "SQH"
        if pattern is None:
            return fresh and message.kind != "H"  # a Flush after a Sync belongs to the batch before it
        return text is not None and pattern.search(text) is not None

    def cut(self) -> None:
        """Close both sides at once; what was on its way is lost."""
        self._closed = True
        self.client.abort()
        self.server.abort()

    def client_lost(self) -> None:
        """The client hung up: so does the proxy, after what was said."""
        self._relay.links.pop(self.number, None)
        self.server.later(self._relay.delay_s, self.server.close)

    def server_lost(self) -> None:
        """The server hung up: the client hears it after the server's last words."""
        self.client.later(self._relay.delay_s, self.client.close)

    def _refuse(self) -> None:
        self._relay.note(self.number, "<", "N")
        self.talk.refused()
        self.client.write(b"N")


class Relay:
    """All links, what is counted over them, and the commands."""

    def __init__(self, host: str, port: int) -> None:
        self.links: dict[int, Link] = {}
        self.delay_s = 0.0
        self.cuts = 0
        self._aim = (host, port)
        self._opened: list[Link] = []
        self._before: dict[int, tuple[int, int]] = {}
        self._trace: deque[list[Any]] = deque(maxlen=1000)
        self._cut: tuple[str, re.Pattern[str] | None, int] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    def accept(self) -> Side:
        """The client's side of a new link, on its way to the server."""
        link = Link(self, len(self._opened) + 1)
        self._opened.append(link)
        self.links[link.number] = link
        task = asyncio.get_running_loop().create_task(link.connect(*self._aim))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return link.client

    def note(self, number: int, direction: str, kind: str) -> None:
        """Add a message to the trace, to the last burst when the same side goes on. Many rows are shown as one."""
        if self._trace and self._trace[-1][:2] == [number, direction]:
            if kind not in "Dd" or not self._trace[-1][2].endswith(kind):
                self._trace[-1][2] += kind
        else:
            self._trace.append([number, direction, kind])

    def lost_by(self, link: Link, message: Message) -> str | None:
        """What the armed cut takes from this message, ``request`` or ``answer``; None when it passes."""
        if message.kind in "Xp" or not link.talk.ready:
            return None
        fits = link.executes(message, self._cut[1] if self._cut else None)
        if self._cut is None or not fits:
            return None
        lost, pattern, left = self._cut
        self._cut = (lost, pattern, left - 1) if left else None
        return None if left else lost

    def obey(self, what: str, *arguments: Any) -> Any:
        """Carry out one command and give its answer."""
        match what, arguments:
            case "port", ():
                return self.port
            case "trips", ():
                return {link.number: link.talk.trips - self._start(link)[0] for link in self._opened}
            case "handshakes", ():
                return sum(link.talk.handshakes - self._start(link)[1] for link in self._opened)
            case "trace", ():
                return list(self._trace)
            case "cuts", ():
                return self.cuts
            case "reset", ():
                self._before = {link.number: (link.talk.trips, link.talk.handshakes) for link in self._opened}
                self._trace.clear()
            case "delay", (delay_s,):
                self.delay_s = delay_s
            case "cut", (lost, pattern, after):
                self._cut = (lost, None if pattern is None else re.compile(pattern, re.IGNORECASE), after)
            case "spare", ():
                self._cut = None
            case "drop", ():
                for link in list(self.links.values()):
                    link.cut()
            case "aim", (host, port):
                self._aim = (host, int(port))
            case "end", ():
                pass
            case _:
                raise ValueError(f"unknown command {what} {arguments}")
        return None

    def _start(self, link: Link) -> tuple[int, int]:
        return self._before.get(link.number, (0, 0))


async def main(host: str, port: int) -> None:
    """Relay until the input ends."""
    loop = asyncio.get_running_loop()
    relay = Relay(host, port)
    server = await loop.create_server(relay.accept, "127.0.0.1", 0, backlog=200)
    relay.port = server.sockets[0].getsockname()[1]
    over = loop.create_future()

    def listen() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(answer, line)
            if json.loads(line) == ["end"]:
                break
        loop.call_soon_threadsafe(over.set_result, None)

    def answer(line: str) -> None:
        sys.stdout.write(json.dumps(relay.obey(*json.loads(line))) + "\n")
        sys.stdout.flush()

    threading.Thread(target=listen, daemon=True).start()
    await over
    server.close()
    for link in list(relay.links.values()):
        link.cut()


if __name__ == "__main__":
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(TIMER_SLACK, 1, 0, 0, 0)
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(main(sys.argv[1], int(sys.argv[2])))
