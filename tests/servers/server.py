"""What the tests need of any PostgreSQL server, and the server that somebody else runs.

Databases and roles are made over a superuser's connection, the same for every kind of server.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlencode

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from tests.servers import binaries

EXTERNAL = "FASTNESS_TEST_POSTGRES_URL"
"""The environment variable that names a server to use instead of starting one; its role must be a superuser."""

GUARDED = "password_needed"
"""The role whose members must give their password to a server of our own."""


class Server(ABC):
    """A server to test with. Everything but its address and its version follows from a superuser's connection."""

    can_restart: bool
    """Whether the server belongs to the tests and may be stopped."""

    @property
    @abstractmethod
    def version(self) -> str:
        """The version, such as ``16.4``."""

    @abstractmethod
    def url(self, database: str = "postgres", user: str | None = None, password: str | None = None) -> str:
        """The URL of a database, for the superuser or for another role."""

    @abstractmethod
    def bin(self, name: str) -> Path:
        """The path of a tool such as ``psql`` or ``pgbench``; FileNotFoundError where there is none."""

    @property
    def major(self) -> int:
        """The major version as a number."""
        return binaries.major(self.version)

    def admin(self, database: str = "postgres") -> psycopg.Connection:
        """A superuser's connection in autocommit; the caller closes it (``with``)."""
        return psycopg.connect(self.url(database), autocommit=True)

    def create_database(self, name: str | None = None) -> str:
        """Create an empty database, under a name of its own where none is given, and return its URL."""
        chosen = name or f"t_{secrets.token_hex(6)}"
        with self.admin() as connection:
            connection.execute(sql.SQL("create database {}").format(sql.Identifier(chosen)))
        return self.url(chosen)

    def drop_database(self, name: str) -> None:
        """Drop a database if it exists, and end the sessions that use it."""
        with self.admin() as connection:
            connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """The URL of a new database that is dropped at the end."""
        url = self.create_database()
        try:
            yield url
        finally:
            self.drop_database(str(conninfo_to_dict(url)["dbname"]))

    def create_role(self, name: str, password: str | None = None, *, reads: bool = False) -> None:
        """Create a role that may log in and nothing else; a role of that name is replaced.

        With a ``password``, it must give it (scram). With ``reads``, it may read everything, and write nothing.
        """
        role = sql.Identifier(name)
        with self.admin() as connection:
            connection.execute(sql.SQL("drop role if exists {}").format(role))
            connection.execute(sql.SQL("create role {} login password {}").format(role, sql.Literal(password)))
            if password is not None:
                known = connection.execute("select from pg_roles where rolname = %s", [GUARDED]).fetchone()
                if known is not None:
                    connection.execute(sql.SQL("grant {} to {}").format(sql.Identifier(GUARDED), role))
            if reads:
                connection.execute(sql.SQL("grant pg_read_all_data to {}").format(role))

    def drop_role(self, name: str) -> None:
        """Drop a role if it exists."""
        with self.admin() as connection:
            connection.execute(sql.SQL("drop role if exists {}").format(sql.Identifier(name)))


class ExternalServer(Server):
    """A server that exists already and belongs to somebody else: it is used, never stopped."""

    can_restart = False

    def __init__(self, url: str) -> None:
        self._parts = {key: str(value) for key, value in conninfo_to_dict(url).items() if value is not None}
        with self.admin() as connection:
            self._number = connection.info.server_version

    def __repr__(self) -> str:
        return f"<PostgreSQL {self.version} of {EXTERNAL}>"

    @property
    def version(self) -> str:
        """The version, such as ``16.4``."""
        return f"{self._number // 10_000}.{self._number % 10_000}"

    def url(self, database: str = "postgres", user: str | None = None, password: str | None = None) -> str:
        """The given URL with another database, and with another role where one is named."""
        parts = {**self._parts, "dbname": database}
        if user is not None:
            parts = {**parts, "user": user, "password": password or ""}
        elif password is not None:
            parts = {**parts, "password": password}
        who = quote(parts.pop("user", ""), safe="")
        secret = quote(parts.pop("password", ""), safe="")
        where = quote(parts.pop("host", ""), safe=":,[]") + (f":{port}" if (port := parts.pop("port", "")) else "")
        name = quote(parts.pop("dbname"), safe="")
        rest = urlencode(parts, quote_via=quote)
        account = who + (f":{secret}" if secret else "") + ("@" if who else "")
        return f"postgresql://{account}{where}/{name}" + (f"?{rest}" if rest else "")

    def bin(self, name: str) -> Path:
        """The path of a tool, from the wheel, the system's packages or the PATH."""
        for found in (*binaries.wheel_bins(), *binaries.system_bins()):
            if (path := found / name).exists():
                return path
        if path_found := shutil.which(name):
            return Path(path_found)
        raise FileNotFoundError(f"{name} is not installed")
