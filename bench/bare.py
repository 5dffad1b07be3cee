"""The limit: a bare apsw script that writes the rows of the same turns, one transaction for each.

It works on a copy of a database that the library has prepared. What it writes was recorded from the library's own run
on another copy, row by row and byte by byte, so that everything is encoded and hashed before the clock starts. It
reads the lane, the head with the turn's receipt, and which node ids are taken; then it writes. Its tables, indexes and
durability are those of the library. ``contents`` shows whether the two have left the same database behind.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple, TypeAlias

import apsw

Row: TypeAlias = "tuple[apsw.SQLiteValue, ...]"

_PRAGMAS = ("journal_mode=wal", "synchronous=full", "foreign_keys=on")

_LANE = "select fencing_token, owner_id, incarnation_id, lease_token, expires_ms from lane where sid = ?"
_HEAD = """
    select h.revision, h.leaf_node_id, h.next_seq, h.checkpoint_ref, c.turn_hash
    from head h left join commit_log c on c.sid = h.sid and c.turn_id = ? and c.turn_hash is not null
    where h.sid = ?"""
_TAKEN = "select node_id from node where sid = ? and node_id in (select value from json_each(?))"
_ADD_BLOB = "insert into blob (ref, body) values (?, ?) on conflict (ref) do nothing"
_DROP = "update blob_holder set until_revision = ? where sid = ? and holder = ? and ref = ?"
_SETTLE = """
    insert into turn_input_evidence (sid, seq, input_id, source_key, state, enqueued_ms, settled_ms, body)
    select sid, seq, input_id, source_key, ?, enqueued_ms, ?, body from turn_input where sid = ? and claim_id = ?"""
_FORGET = "delete from turn_input where sid = ? and claim_id = ?"


class EncodedTurn(NamedTuple):
    """Everything that a turn writes, ready to be bound."""

    sid: int
    turn_id: str
    ids: str
    nodes: list[Row]
    blobs: list[Row]
    gained: list[Row]
    dropped: list[Row]
    usage: list[Row]
    head: Row
    log: Row
    settled: Row
    claim_id: str
    is_first: bool


class Recorder:
    """Reads what each turn of the library has written, on a connection of its own."""

    def __init__(self, path: Path) -> None:
        self._db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        self._held: dict[int, set[str]] = {}
        self._next_seq: dict[int, int] = {}

    def turn(self, session_id: str, turn_id: str, claim_id: str) -> EncodedTurn:
        """Give the turn that was committed last in a session."""
        ((sid,),) = self._rows("select sid from session where session_id = ?", session_id)
        ((revision, next_seq),) = self._rows("select revision, next_seq from head where sid = ?", sid)
        assert isinstance(sid, int)
        assert isinstance(next_seq, int)
        nodes = self._rows("select * from node where sid = ? and seq >= ?", sid, self._next_seq.get(sid, 0))
        holders = self._rows("select * from blob_holder where sid = ? and until_revision is null", sid)
        held = {str(row[2]) for row in holders}
        before = self._held.get(sid, set())
        gained = [row for row in holders if row[2] not in before]
        blobs = [row for each in gained for row in self._rows("select * from blob where ref = ?", each[2])]
        settled = "select state, settled_ms from turn_input_evidence where sid = ? order by seq desc limit 1"
        found = EncodedTurn(
            sid,
            turn_id,
            json.dumps([row[2] for row in nodes]),
            nodes,
            blobs,
            gained,
            [(revision, sid, "head", ref) for ref in sorted(before - held)],
            self._rows("select * from token_usage where sid = ?", sid),
            self._rows("select * from head where sid = ?", sid)[0],
            self._rows("select * from commit_log where sid = ? and revision = ?", sid, revision)[0],
            self._rows(settled, sid)[0],
            claim_id,
            sid not in self._held,
        )
        self._held[sid], self._next_seq[sid] = held, next_seq
        return found

    def _rows(self, statement: str, *values: apsw.SQLiteValue) -> list[Row]:
        return list(self._db.execute(statement, values))

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()


class BareScript:
    """The same sessions, driven by plain statements."""

    def __init__(self, path: Path) -> None:
        self.db = apsw.Connection(str(path), statementcachesize=200)
        self.db.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
        for pragma in _PRAGMAS:
            self.db.execute(f"pragma {pragma}")
        self._add_node, self._hold, self._log, self._begin = map(
            self._insert, ("node", "blob_holder", "commit_log", "head")
        )
        self._use = self._insert("token_usage") + self._on_conflict("token_usage", "sid, source, model")
        columns = self._columns("head")
        moved = ", ".join(f"{name} = ?{at}" for at, name in enumerate(columns, 1) if name != "sid")
        self._move = f"update head set {moved} where sid = ?{columns.index('sid') + 1}"

    def _columns(self, table: str) -> list[str]:
        return [str(row[1]) for row in self.db.execute(f"pragma table_info({table})")]

    def _insert(self, table: str) -> str:
        return f"insert into {table} values ({', '.join('?' for _ in self._columns(table))})"

    def _on_conflict(self, table: str, key: str) -> str:
        changed = [name for name in self._columns(table) if name not in key.split(", ")]
        return f" on conflict ({key}) do update set {', '.join(f'{name} = excluded.{name}' for name in changed)}"

    def run(self, turn: EncodedTurn) -> None:
        """Commit one turn."""
        execute = self.db.execute
        execute("begin immediate")
        list(execute(_LANE, (turn.sid,)))
        list(execute(_HEAD, (turn.turn_id, turn.sid)))
        list(execute(_TAKEN, (turn.sid, turn.ids)))
        self.db.executemany(self._add_node, turn.nodes)
        self.db.executemany(_ADD_BLOB, turn.blobs)
        self.db.executemany(self._hold, turn.gained)
        self.db.executemany(_DROP, turn.dropped)
        self.db.executemany(self._use, turn.usage)
        execute(self._begin if turn.is_first else self._move, turn.head)
        execute(self._log, turn.log)
        execute(_SETTLE, (*turn.settled, turn.sid, turn.claim_id))
        execute(_FORGET, (turn.sid, turn.claim_id))
        execute("commit")

    def close(self) -> None:
        """Let go of the file."""
        self.db.close()


def contents(path: Path) -> dict[str, list[Row]]:
    """Give every row of every table."""
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    tables = [str(name) for (name,) in db.execute("select name from sqlite_schema where type = 'table' order by name")]
    found = {table: sorted(map(tuple, db.execute(f"select * from {table}")), key=repr) for table in tables}
    db.close()
    return found
