"""The PostgreSQL protocol as far as a proxy must read it: messages, round trips, and which statement is executed.

Pure bookkeeping over bytes; it knows no sockets and no time. One :class:`Conversation` follows one connection.

A *round trip* is counted when the client sends a message after it got the whole answer to something it could wait for
(a Sync, a Flush, a simple Query) since its last round trip began. So a batch is one round trip however TCP cuts it,
and however early the server begins to answer; a second batch that was sent before the answer to the first came back
belongs to the same trip. The handshake, up to the first ReadyForQuery, is counted apart.
"""

from __future__ import annotations

import re
import struct
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

TLS_REQUEST, GSS_REQUEST, CANCEL_REQUEST = 80877103, 80877104, 80877102
"""What a message without a type may ask for instead of a session."""

ENDS = {"P": "1", "B": "2", "D": "Tn", "E": "CIs", "C": "3", "S": "Z", "Q": "Z", "F": "Z"}
"""The answers that complete the answer to a client's message, by the message's type."""

UNANSWERED = "XHdcf"
"""Client messages that get no answer of their own: Terminate, Flush, and the three of COPY."""

HANDSHAKE = "*"
"""The type given to messages of the handshake: the startup message and all passwords."""


class Message(NamedTuple):
    """One message as it went over the wire; its type is HANDSHAKE for the ones that carry none."""

    kind: str
    raw: bytes

    @property
    def body(self) -> bytes:
        """The bytes after the type and the length."""
        return self.raw[4:] if self.kind == HANDSHAKE else self.raw[5:]

    @property
    def code(self) -> int:
        """The first number of the body: what a startup message asks for, or what an Authentication answer wants."""
        return int(struct.unpack_from("!i", self.body)[0])

    def text(self, position: int, start: int = 0) -> str:
        """The zero-terminated string at a position among those that begin at byte ``start`` of the body."""
        return self.body[start:].split(b"\0", position + 1)[position].decode(errors="replace")


class Frames:
    """Cuts a stream into messages. A client's stream begins with messages that have no type."""

    def __init__(self, *, untyped: bool) -> None:
        self._untyped = untyped
        self._held = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """All messages that are complete now."""
        self._held += data
        found: list[Message] = []
        start = 0
        while (size := self._size(start)) is not None and start + size <= len(self._held):
            raw = bytes(self._held[start : start + size])
            found.append(Message(HANDSHAKE if self._untyped else chr(raw[0]), raw))
            self._untyped = self._untyped and found[-1].code in {TLS_REQUEST, GSS_REQUEST}
            start += size
        del self._held[:start]
        return found

    def _size(self, start: int) -> int | None:
        prefix = 0 if self._untyped else 1
        if len(self._held) < start + prefix + 4:
            return None
        return prefix + int(struct.unpack_from("!i", self._held, start + prefix)[0])


COMMIT_BY_SYNC = "commit by the end of a pipeline"
"""The text of a Sync that commits: what was written before it had no ``begin``."""

_WRITES = re.compile(r"\b(insert|update|delete)\b", re.IGNORECASE)
_BEGINS = re.compile(r"\s*(begin|start transaction)\b", re.IGNORECASE)
_ENDS = re.compile(r"\s*(commit|rollback|end|abort)\b(?! to\b)", re.IGNORECASE)


class Statements:
    """Which text is executed by a message: follows the names of prepared statements and of portals."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._portals: dict[str, str] = {}
        self._begun = False
        self._wrote = False

    def executed(self, message: Message) -> str | None:
        """Take note of a client's message; the text of the statement when this message executes one."""
        if message.kind == "P":
            self._texts[message.text(0)] = message.text(1)
        elif message.kind == "B":
            self._portals[message.text(0)] = self._texts.get(message.text(1), "")
        elif message.kind == "E":
            text = self._portals.get(message.text(0), "")
            ends = _ENDS.match(text) is not None
            self._begun = not ends and (self._begun or _BEGINS.match(text) is not None)
            self._wrote = not ends and (self._wrote or _WRITES.search(text) is not None)
            return text
        elif message.kind == "S":
            wrote, self._wrote = self._wrote, False
            return COMMIT_BY_SYNC if wrote and not self._begun else None
        elif message.kind == "Q":
            return message.text(0)
        return None


@dataclass(slots=True)
class Awaited:
    """A client's message that the server has not answered in full."""

    kind: str
    trip: int
    """The round trip that it was sent in."""
    point: bool
    """Whether the client may be waiting for this answer."""
    last: bool = False
    """Whether the connection is to end with this answer."""


@dataclass
class Conversation:
    """What one connection has said so far: what is unanswered, and how many round trips were made."""

    trips: int = 0
    """Round trips after the handshake."""
    handshakes: int = 0
    """Round trips of the handshake."""
    ready: bool = False
    """Whether the handshake is over."""
    _begun: int = 0
    _answered: int = 0
    _skipping: bool = False
    _awaited: deque[Awaited] = field(default_factory=deque)

    def sent(self, message: Message, *, last: bool = False) -> None:
        """The client sent a message; with ``last``, :meth:`answered` says when its answer is complete."""
        if message.kind == "X" or (message.kind == HANDSHAKE and message.code == CANCEL_REQUEST):
            return
        if self._answered >= self._begun:
            self._begun += 1
            self.trips, self.handshakes = self.trips + self.ready, self.handshakes + (not self.ready)
        if message.kind == "H" and self._awaited:
            self._awaited[-1].point = True
            self._awaited[-1].last |= last
        if message.kind == "S":
            self._skipping = False
        if message.kind not in UNANSWERED and not self._skipping:
            kind = HANDSHAKE if message.kind == "p" else message.kind
            self._awaited.append(Awaited(kind, self._begun, kind in {HANDSHAKE, "S", "Q", "F"}, last))

    def refused(self) -> None:
        """The proxy itself answered the last message, a request for encryption, with no."""
        self._done()

    def answered(self, message: Message) -> bool:
        """The client got a message from the server; whether it completes an answer that was the last one wanted."""
        if message.kind in "GW":  # the server wants the data of a COPY: the client may go on
            self._answered = self._begun
        if not self._awaited:
            return False
        kind = self._awaited[0].kind
        if kind == HANDSHAKE:
            self.ready = message.kind == "Z"
            asks = message.kind == "R" and message.code not in {0, 12}  # 0: welcome, 12: the end of SASL
            return self._done() if self.ready or asks else False
        if message.kind == "E" and kind not in "SQF":
            return self._fail()
        return self._done() if message.kind in ENDS[kind] else False

    def _done(self) -> bool:
        first = self._awaited.popleft()
        if first.point:
            self._answered = max(self._answered, first.trip)
        return first.last

    def _fail(self) -> bool:
        """After an error the server answers nothing up to the next Sync."""
        over = False
        while self._awaited and self._awaited[0].kind != "S":
            over |= self._done()
        self._skipping = not self._awaited
        return over
