"""A proxy between a client and PostgreSQL, in a process of its own: it counts round trips, adds latency, and cuts.

:class:`Proxy` is the handle that tests hold; the relay (:mod:`tests.servers.relay`) runs in a process of its own, so
that it takes nothing from the client's interpreter, and ends with the process that spawned it.

How exact it is, measured with ``select 1`` on a machine of two cores with other work to do: 0.2 ms per round trip
without a delay; 1.1 to 1.2 ms (median) for a round trip with 0.5 ms each way, of which 0.04 ms are the server's.

Usage::

    with Proxy.spawn(server.url(), delay_s=0.0005) as proxy:      # 1 ms of round-trip time
        connection = psycopg.connect(proxy.url(server.url("app")))
        proxy.reset()
        ...
        assert proxy.round_trips == 1
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self
from urllib.parse import urlsplit, urlunsplit

from psycopg.conninfo import conninfo_to_dict

Cut = Literal["request", "answer"]
"""What gets lost: ``request`` never reaches the server; ``answer`` was done by the server and nobody hears of it."""


class Burst(NamedTuple):
    """What one side said before the other spoke again: the connection, ``>`` to or ``<`` from the server, the types."""

    connection: int
    direction: str
    kinds: str


class Proxy:
    """A running proxy on 127.0.0.1. All its methods take effect before they return."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._turn = threading.Lock()
        self.port = int(self._ask("port"))

    @classmethod
    def spawn(cls, upstream: str, *, delay_s: float = 0.0) -> Self:
        """Start a proxy in front of the server of a URL; ``delay_s`` is added in each direction, in seconds."""
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.servers.relay", *_address(upstream)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            start_new_session=True,
        )
        made = cls(process)
        made.delay(delay_s)
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def url(self, behind: str) -> str:
        """A URL of the server, led through the proxy; a host and port in its query are not understood."""
        parts = urlsplit(behind)
        account, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{account}{at}127.0.0.1:{self.port}"))

    @property
    def round_trips(self) -> int:
        """Round trips on all connections since the last :meth:`reset`, without handshakes."""
        return sum(self.per_connection.values())

    @property
    def per_connection(self) -> dict[int, int]:
        """Round trips by connection, in the order in which they were opened (1, 2, …), closed ones included."""
        return {int(number): count for number, count in self._ask("trips").items()}

    @property
    def handshakes(self) -> int:
        """Round trips that were spent on opening connections since the last :meth:`reset`."""
        return int(self._ask("handshakes"))

    @property
    def trace(self) -> list[Burst]:
        """The last thousand bursts since the last :meth:`reset`: why a count is what it is."""
        return [Burst(*burst) for burst in self._ask("trace")]

    @property
    def cuts(self) -> int:
        """How many connections were cut by :meth:`cut` so far."""
        return int(self._ask("cuts"))

    def reset(self) -> None:
        """Forget counts and trace. Connections stay open."""
        self._ask("reset")

    def delay(self, one_way_s: float) -> None:
        """Hold what arrives from now on for so many seconds, in each direction."""
        self._ask("delay", one_way_s)

    def cut(self, lost: Cut, pattern: str | None = None, *, after: int = 0) -> None:
        """Cut the connection that next executes a statement whose text has ``pattern`` (a regex, case ignored).
        A Sync that commits what no ``begin`` stood before counts as one that begins with ``commit``.

        ``request``: the message and all after it are dropped, and both sides are closed. ``answer``: the server gets
        the message and what follows up to its Sync; its answers are swallowed, and when it has answered all, both
        sides are closed. Without a pattern, every batch of messages fits. The first ``after`` that fit pass unharmed.
        One call makes one cut, and replaces a cut that has not happened yet.
        """
        re.compile(pattern or "")  # a bad pattern is the caller's error, not the relay's
        self._ask("cut", lost, pattern, after)

    def spare(self) -> None:
        """Take back a cut that has not happened yet."""
        self._ask("spare")

    def drop(self) -> None:
        """Close all connections that are open now, on both sides."""
        self._ask("drop")

    def aim(self, upstream: str) -> None:
        """Lead new connections to another server, as after a fail-over."""
        self._ask("aim", *_address(upstream))

    def close(self) -> None:
        """End the proxy and all connections through it. No-op the second time."""
        if self._process.poll() is None:
            self._ask("end")
        self._process.communicate()

    def _ask(self, what: str, *arguments: Any) -> Any:
        with self._turn:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps([what, *arguments]) + "\n")
            self._process.stdin.flush()
            if not (line := self._process.stdout.readline()):
                raise RuntimeError(f"the proxy ended with {self._process.wait()}; its standard error says why")
            return json.loads(line)


def _address(url: str) -> tuple[str, str]:
    parts = conninfo_to_dict(url)
    return str(parts.get("host", "127.0.0.1")), str(parts.get("port", "5432"))
