"""How often a turn has files synced: in runs that are not timed, by strace and by PostgreSQL's own count."""

from __future__ import annotations

from functools import partial

from tests.servers.postgres import PostgresServer
from tests.servers.room import wait_until

from bench.peer_processes import ProcessError
from bench.peers.contestants import STRACE, Running, Side, syncs_in
from bench.peers.ring import Ring

SYNCED = 40
"""Over how many turns it is counted."""
WARM = 5

_LOG_SYNCS = {
    True: "select sum(fsyncs) from pg_stat_io where object = 'wal'",
    False: "select wal_sync from pg_stat_wal",
}
"""Since version 18 the one, before the other."""
_CONNECTED = "select count(*) from pg_stat_activity where datname = %s"


def count_syncs(ring: Ring, server: PostgresServer) -> None:
    """Write the syncs of a turn into the settings of each contestant. The others rest meanwhile."""
    sides = [one.side for one in ring.running if one.side.engine == "sqlite"]
    for one in [one for one in ring.running if one.side.engine == "postgres"]:
        syncs = ring.guarded(one.side, partial(_logged, one, server))
        if syncs is not None:
            _tell(ring, one.side, f"{syncs:.1f} syncs of the log a turn")
    for side, told in _traced(ring, sides):
        _tell(ring, side, told)


def _tell(ring: Ring, side: Side, told: str) -> None:
    ring.found.settings[side.title] += f"; {told}"


def _traced(ring: Ring, sides: list[Side]) -> list[tuple[Side, str]]:
    """Run fresh ones under strace, all at once, since they are not timed."""
    if STRACE is None:
        return [(side, "syncs not measured (no strace)") for side in sides]
    found, started = [], []
    for side in sides:
        trace = ring.folder / f"{side.name}.trace"
        started.append((Running(side, ring.place(side, "traced"), syncs=trace), trace))
    for one, trace in started:
        try:
            one.answer()
            one.ask("open")
            one.ask("turns", count=WARM, is_ready=False)
            one.ask("ahead", count=SYNCED)
            before = syncs_in(trace)
            one.ask("turns", count=SYNCED, is_ready=True)
            told = f"{(syncs_in(trace) - before) / SYNCED:.1f} syncs a turn"
        except ProcessError as error:
            told = f"syncs not measured ({error})"
        found.append((one.side, told))
        one.end()
    return found


def _logged(one: Running, server: PostgresServer) -> float:
    """Have the server count. A connection tells what it did when it ends, so the store is closed between the steps."""
    database = one.place.rpartition("/")[2]

    def step(turns: int) -> int:
        if turns:
            one.ask("turns", count=turns, is_ready=True)
        one.ask("close")
        with server.admin() as admin:

            def is_alone() -> bool:
                return admin.execute(_CONNECTED, [database]).fetchone() == (0,)

            wait_until(is_alone, lambda: f"{one.side.title} did not disconnect", 20)
            row = admin.execute(_LOG_SYNCS[server.major >= 18]).fetchone()
        assert row is not None
        one.ask("open")
        return int(row[0])

    one.ask("ahead", count=SYNCED)
    first = step(0)
    opened = step(0)
    turned = step(SYNCED)
    return (turned - opened - (opened - first)) / SYNCED
