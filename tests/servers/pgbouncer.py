"""PgBouncer in transaction mode in front of a server, where the program is installed.

Every transaction may run on another connection to the server: what a session keeps (LISTEN, session locks, SET,
statements prepared by name in versions before 1.21) does not last.
"""

from __future__ import annotations

import atexit
import re
import shutil
import socket
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from psycopg.conninfo import conninfo_to_dict

from tests.servers.binaries import account
from tests.servers.room import Room, free_port, wait_until
from tests.servers.server import Server

PATIENCE_S = 20.0
"""How long the program may take to start or to end, in seconds."""

PLACES = ("/usr/sbin/pgbouncer", "/usr/local/sbin/pgbouncer")
"""Where packages put it, outside the PATH of most accounts."""

CONFIG = """
[databases]
* = {upstream}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = 200
server_login_retry = 1
logfile = {directory}/log
pidfile = {directory}/pgbouncer.pid
"""


def pgbouncer_bin() -> Path | None:
    """The program, or None where it is not installed."""
    found = shutil.which("pgbouncer") or next((place for place in PLACES if Path(place).exists()), None)
    return Path(found) if found else None


def pgbouncer_missing() -> str | None:
    """The reason to skip what needs PgBouncer; None where it is installed."""
    return None if pgbouncer_bin() else "PgBouncer is not installed: install the system's package pgbouncer"


class PgBouncer:
    """A pooler of its own on 127.0.0.1, started by ``with``. All its clients are the server's superuser."""

    def __init__(self, server: Server, *, pool_size: int = 4) -> None:
        program = pgbouncer_bin()
        if program is None:
            raise FileNotFoundError(pgbouncer_missing())
        self._program, self._server, self._pool_size = program, server, pool_size
        self._room: Room | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def version(self) -> str:
        """The version, such as ``1.18.0``."""
        said = subprocess.run([self._program, "--version"], check=True, capture_output=True, text=True).stdout
        return next(re.finditer(r"[0-9.]+", said))[0]

    def url(self, database: str = "postgres") -> str:
        """The URL of a database of the server, through the pooler."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{quote(database, safe='')}"

    def start(self) -> None:
        """Start the pooler and return when it takes connections."""
        self._room = Room("fastness-pgb-")
        atexit.register(self.close)
        directory, self.port = self._room.directory("pgbouncer"), free_port()
        config = directory / "pgbouncer.ini"
        config.write_text(
            CONFIG.format(upstream=self._upstream(), port=self.port, pool_size=self._pool_size, directory=directory)
        )
        account().own(config)
        self._process = subprocess.Popen(
            [self._program, "--quiet", config],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=directory,
            start_new_session=True,
            **account().arguments,  # type: ignore[call-overload]
        )
        wait_until(self._listens, lambda: f"PgBouncer did not start:\n{self._log(directory)}", PATIENCE_S)

    def close(self) -> None:
        """End the pooler and all connections through it. No-op the second time, and in a forked child."""
        if self._room is None or not self._room.mine:
            return
        atexit.unregister(self.close)
        if self._process is not None:
            self._process.terminate()
            self._process.wait(PATIENCE_S)
        self._room.close()
        self._room = self._process = None

    def _upstream(self) -> str:
        """The server's address in the words of the configuration, without the database."""
        parts = conninfo_to_dict(self._server.url())
        known = {key: str(parts[key]) for key in ("host", "port", "user", "password") if parts.get(key)}
        return " ".join(f"{key}='{value.replace(chr(39), chr(39) * 2)}'" for key, value in known.items())

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._room is not None
        if self._process.poll() is not None:
            log = self._log(self._room.path / "pgbouncer")
            raise RuntimeError(f"PgBouncer ended with {self._process.returncode}:\n{log}")
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except ConnectionRefusedError:
            return False
        return True

    @staticmethod
    def _log(directory: Path) -> str:
        path = directory / "log"
        return path.read_text(errors="replace")[-2000:] if path.exists() else "(it wrote no log)"
