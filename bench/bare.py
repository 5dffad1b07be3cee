"""The limit: a bare apsw script that writes the rows of the same turn in one transaction, one turn after the other.

Everything is encoded and hashed before the clock starts; the script only reads the lane and the head, looks whether the
node ids are free, and writes. It has the same tables and indexes and the same durability.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import NamedTuple

import apsw

from bench.turns import tool_state, turn_nodes
from fastness.engines.sqlite_run import translate
from fastness.model.base import encode, sha256_hex
from fastness.ops import commit as sql
from fastness.ops import turn_input
from fastness.ops.lane import FENCE
from fastness.sql.schema import SQLITE_TYPES, create_tables


def _now_ms(*_: object) -> int:
    return time.time_ns() // 1_000_000


class EncodedTurn(NamedTuple):
    """Everything that a turn writes, ready to be bound."""

    turn: int
    rows: list[tuple[int, int, str, int | None, int, str]]
    blobs: list[tuple[str, bytes]]
    ids: str


class BareScript:
    """One session in a file of its own, driven by plain statements."""

    def __init__(self, path: Path, turns: int) -> None:
        self.db = apsw.Connection(str(path), statementcachesize=200)
        self.db.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
        self.db.create_scalar_function("now_ms", _now_ms, 0)
        for pragma in ("journal_mode=wal", "synchronous=full", "foreign_keys=on"):
            self.db.execute(f"pragma {pragma}")
        for ddl in create_tables(SQLITE_TYPES):
            self.db.execute(ddl)
        self.db.execute("insert into session (session_id, created_ms) values ('s', 0)")
        self.db.execute("insert into lane (sid, fencing_token, lease_token, expires_ms) values (1, 1, 't', 1 << 60)")
        self.db.execute(translate(sql.ADD_HEAD), (1, 0, None, 0, 1, '{"v":1}', None, None, None))
        body = "x" * 250
        self.db.execute("begin")
        for at in range(1, turns + 1):
            self.db.execute(
                "insert into turn_input (sid, seq, input_id, source_key, state, admission_token, enqueued_ms, body,"
                " claim_id, claim_token, lane_token, lease_token)"
                " values (1, ?1, ?2, ?3, 'deferred_next_turn', 0, 0, ?4, ?5, 1, 1, 't')",
                (at, f"{at:032x}", f"key-{at}", body, f"{at:030x}ff"),
            )
        self.db.execute("commit")
        self._held: list[str] = []
        self.turns = [self._turn(at) for at in range(1, turns + 1)]

    def _turn(self, turn: int) -> EncodedTurn:
        leaf = f"node-{turn - 1}-3" if turn > 1 else None
        nodes = turn_nodes(leaf, turn)
        first = (turn - 1) * 4 + 1
        rows = [
            (1, first + at, node.node_id, first + at - 1 or None, 0, encode(node).decode())
            for at, node in enumerate(nodes)
        ]
        state = tool_state("session-1", turn)
        manifest = b'{"v":1,"turn_state":{"turn_index":%d},"tool_state":{"sha256":"%s"}}' % (turn, b"0" * 64)
        blobs = [(sha256_hex(content), content) for content in (state, manifest)]
        ids = json.dumps([node.node_id for node in nodes] + ([leaf] if leaf else []))
        return EncodedTurn(turn, rows, blobs, ids)

    def run(self, at: int) -> None:
        """Commit one turn."""
        turn, rows, blobs, ids = self.turns[at]
        execute = self.db.execute
        execute("begin immediate")
        list(execute(_FENCE, (1,)))
        ((revision, *_),) = list(execute(_HEAD, (1, None)))
        list(execute(_KNOWN, (1, ids)))
        self.db.executemany(_ADD_NODE, rows)
        for ref, content in blobs:
            execute(_ADD_BLOB, (ref, content))
            execute(_HOLD, (1, "head", ref))
            if at:
                execute(_DROP, (1, "head", self._held.pop(0), revision + 1))
        self._held = [ref for ref, _ in blobs]
        execute(_USAGE, (1, "turn", "model-1", 1200 * turn, 150, 900, 0, 30))
        leaf = rows[-1][2]
        manifest_ref, manifest = blobs[1]
        execute(
            _MOVE, (1, revision + 1, leaf, 4 * turn, 4 * turn + 1, '{"v":1}', None, manifest_ref, manifest.decode())
        )
        execute(_LOG, (1, revision + 1, "turn", f"turn-{turn}", "0" * 64, leaf, manifest_ref, _RESULT, None))
        claim_id = f"{turn:030x}ff"
        execute(_KEEP, (1, claim_id, "completed"))
        execute(_FORGET, (1, claim_id))
        execute("commit")


_FENCE, _HEAD, _KNOWN = translate(FENCE), translate(sql.HEAD_FACTS), translate(sql.KNOWN_NODES)
_ADD_NODE, _ADD_BLOB, _HOLD = translate(sql.ADD_NODE), translate(sql.ADD_BLOB), translate(sql.HOLD_BLOB)
_DROP, _USAGE, _MOVE, _LOG = map(translate, (sql.DROP_BLOB, sql.PUT_USAGE, sql.MOVE_HEAD, sql.ADD_TO_LOG))
_KEEP = translate(turn_input.ACTIVE.keep_claimed)
_FORGET = translate(turn_input.ACTIVE.drop_claimed)
_RESULT = (
    '{"v":1,"head_revision":1,"checkpoint_ref":{"sha256":"' + "0" * 64 + '"},"leaf_node_id":"node-1-3"}' + " " * 120
)
