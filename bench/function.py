"""The limit on PostgreSQL: ``pgbench`` calling one function on the server for each turn, whose text is in function.sql.

``Limit`` keeps a schema with the tables that the engine made, filled with copies of sessions that the library prepared,
so that both sides go on from the same rows. Leases and claims have names there that a function can work out.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from urllib.parse import quote

import msgspec
import psycopg
from tests.servers.postgres import PostgresServer

from bench.turns import USAGE, tool_state, turn_nodes
from fastness.decide.stored_node import node_body
from fastness.model.base import encode
from fastness.model.checkpoint import SessionCheckpoint
from fastness.persistence import BlobRef, PersistedTurnState

_OWNER, _INCARNATION, _LEASE = "bench", "1" * 32, "2" * 32
_WRITTEN = ("head", "node", "token_usage", "commit_log", "blob_holder", "turn_input", "turn_input_evidence")
_TABLES = ("session", "lane", *_WRITTEN)
_TURN, _SESSION, _REF, _MANIFEST = 987654321, "987650000", "a" * 64, "b" * 64
_VARIABLES = {
    str(_TURN): "turn",
    str(_TURN - 1): "(turn - 1)",
    _SESSION: "of_session",
    _REF: "state_ref",
    _MANIFEST: "manifest_ref",
}


class Limit:
    """A schema for the function, beside the one of ours in the same database."""

    def __init__(self, server: PostgresServer, url: str, schema: str, ours: str, folder: Path) -> None:
        self._server = server
        self._admin = psycopg.connect(url, autocommit=True)
        self._ours = ours
        self._schema = schema
        self._folder = folder
        options = quote(f"-csearch_path={schema} -cenable_seqscan=off")
        self._url = f"{url}?options={options}"
        self._script = folder / "turn.sql"
        self._script.write_text(
            "\\set turn 2 + :step / :each\n\\set sid :first + :client_id + :clients * (:step % :each)\n"
            "\\set step :step + 1\n"
            "select commit_turn(:sid, :turn, 1, :owner, :incarnation, :lease);\n",
            encoding="utf-8",
        )
        self._runs = 0
        self._admin.execute(f"set search_path = {schema}")
        self._admin.execute(function_text())

    def copy(self, first: int, sessions: int) -> None:
        """Take over sessions by their keys, as they stand now, with everything that belongs to them."""
        execute = self._admin.execute
        between = f"sid between {first} and {first + sessions - 1}"
        ours = self._ours
        execute(
            f"insert into blob select * from {ours}.blob where ref in"
            f" (select ref from {ours}.blob_holder where {between}) on conflict do nothing"
        )
        for table in _TABLES:
            keeps_key = "overriding system value" if table == "session" else ""
            execute(f"insert into {table} {keeps_key} select * from {ours}.{table} where {between}")
        execute(
            f"update lane set owner_id = '{_OWNER}', incarnation_id = '{_INCARNATION}', lease_token = '{_LEASE}'"
            f" where {between}"
        )
        execute(f"update turn_input set claim_id = md5(sid || '-' || seq) where {between}")

    def run(self, first: int, sessions: int, turns: int, clients: int | None = None) -> list[list[float]]:
        """Have so many turns of each session made, from the second one on: when each turn was done, by session.

        Each session has a client of its own; where there are fewer ``clients``, each has as many sessions as the
        others, and goes from one to the next after each turn.
        """
        self._runs += 1
        prefix = f"run-{self._runs}"
        clients = clients or sessions
        each, left = divmod(sessions, clients)
        assert not left, f"{sessions} sessions cannot be shared evenly by {clients} clients"
        where = {"step": 0, "first": first, "clients": clients, "each": each}
        given = {**where, "owner": _OWNER, "incarnation": _INCARNATION, "lease": _LEASE}
        defined = [argument for name, value in given.items() for argument in ("-D", f"{name}={value}")]
        how = ["-n", "-M", "prepared", "-c", str(clients), "-j", str(min(clients, 2)), "-t", str(turns * each)]
        command = [
            str(self._server.bin("pgbench")),
            *how,
            "-l",
            f"--log-prefix={prefix}",
            *defined,
            "-f",
            str(self._script),
        ]
        done = subprocess.run([*command, self._url], cwd=self._folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"pgbench failed: {done.stderr[-1000:]}")
        by_client: list[list[float]] = [[] for _ in range(clients)]
        for log in self._folder.glob(f"{prefix}.*"):
            for line in log.read_text(encoding="utf-8").splitlines():
                client, _, _, _, seconds, microseconds = line.split()[:6]
                by_client[int(client)].append(int(seconds) + int(microseconds) / 1e6)
        stamps = [by_client[at % clients][at // clients :: each] for at in range(sessions)]
        assert all(len(session) == turns for session in stamps), done.stdout
        return stamps

    def written(self, schema: str, first: int, sessions: int) -> tuple[int, int]:
        """How many rows there are of sessions in a schema, and how many bytes they have; indexes do not count."""
        between = f"sid between {first} and {first + sessions - 1}"
        rows = size = 0
        for table in _TABLES:
            count, width = self._one(
                f"select count(*), coalesce(sum(pg_column_size(t)), 0)::bigint from {schema}.{table} t where {between}"
            )
            rows, size = rows + count, size + width
        count, width = self._one(
            f"select count(*), sum(pg_column_size(b))::bigint from {schema}.blob b where ref in"
            f" (select ref from {schema}.blob_holder where {between})"
        )
        return rows + count, size + width

    def unlike(self, first: int, sessions: int) -> list[str]:
        """Name the columns in which the two sides do not have as many values, or not as many bytes, for sessions."""
        between = f"sid between {first} and {first + sessions - 1}"
        places = dict.fromkeys(_WRITTEN, between)
        places["blob"] = f"ref in (select ref from {{schema}}.blob_holder where {between})"
        found = []
        for table, where in places.items():
            columns = self._admin.execute(
                "select column_name from information_schema.columns where table_schema = %s and table_name = %s",
                (self._ours, table),
            ).fetchall()
            for (column,) in columns:
                ours, theirs = (
                    self._one(
                        f"select count({column}), coalesce(sum(pg_column_size({column})), 0)::bigint"
                        f" from {schema}.{table} where {where.format(schema=schema)}"
                    )
                    for schema in (self._ours, self._schema)
                )
                if ours != theirs:
                    found.append(f"{table}.{column}: {ours} and {theirs}")
        return found

    def settle(self, *, analyze: bool = False) -> None:
        """Bring both sides to the same start: no dead rows, statistics of now, nothing left to write back."""
        if analyze:
            self._admin.execute("vacuum analyze")
        self._admin.execute("checkpoint")

    def log_position(self) -> int:
        """How much the server has written to its log so far, in bytes."""
        return int(self._one("select (pg_current_wal_insert_lsn() - '0/0')::bigint")[0])

    def log_syncs(self) -> int:
        """How often the clients of the server have synced its log so far. What they count comes in when they leave."""
        self._admin.execute("select pg_stat_force_next_flush()")
        return self._one(
            "select coalesce(sum(fsyncs), 0)::bigint from pg_stat_io"
            " where object = 'wal' and backend_type = 'client backend'"
        )[0]

    def _one(self, statement: str) -> tuple[int, ...]:
        row = self._admin.execute(statement).fetchone()
        assert row is not None
        return tuple(map(int, row))

    def close(self) -> None:
        """Let go of the server."""
        self._admin.close()


def function_text() -> str:
    """Give the function with the library's own values in it, as expressions of the turn and the session."""
    nodes = turn_nodes(f"node-{_TURN - 1}-3", _TURN)
    checkpoint = SessionCheckpoint(PersistedTurnState(turn_index=_TURN), BlobRef(_REF), None, None)
    texts = {f"node_{at}": node_body(node) for at, node in enumerate(nodes)}
    texts["state"] = tool_state(f"session-{_SESSION}", _TURN).decode()
    texts["manifest"] = encode(checkpoint).decode()
    texts["usage"] = encode([(USAGE.source, USAGE.model, *msgspec.structs.astuple(USAGE.usage))]).decode()
    text = Path(__file__).with_name("function.sql").read_text(encoding="utf-8")
    for name, value in texts.items():
        text = text.replace(f"{{{name}}}", _expression(value))
    return text


def _expression(text: str) -> str:
    """Write a text as the pieces that never change, with what changes between them."""
    parts = re.split(f"({'|'.join(_VARIABLES)})", text)
    quoted = (_VARIABLES.get(part) or "'" + part.replace("'", "''") + "'" for part in parts if part)
    return f"({' || '.join(quoted)})"
