"""``workers``: who runs turns on a database, and which lanes are held. All ages are by the database's clock."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import typer

from fastness.cli.json_lines import out_json
from fastness.cli.options import DatabaseOption, JsonOption
from fastness.cli.screen import columns, one_line, out
from fastness.cli.session import run
from fastness.factory import EngineSessionStoreFactory
from fastness.model.base import Value
from fastness.model.lease import LocalProcess
from fastness.persistence import HeldLane, WorkerRecord

_SILENT_MS = 15_000
"""A worker says every five seconds that it lives; one that has missed three times is not taken for alive."""

_PAGE = 1000
_NAME_WIDTH = 60
_WORKER_HEADS = ("WORKER", "STATE", "SEEN", "RUNNING", "SETTLED", "FAILED", "HOST", "PID")
_LANE_HEADS = ("LANE", "HELD BY", "TOKEN", "SINCE", "STATE", "INTERRUPT")


class ShownLane(Value, frozen=True):
    """A lane that is held, and whether its holder's process is provably dead: then it is soon taken over."""

    lane: HeldLane
    is_dead: bool


class Staff(Value, frozen=True):
    """Who works and what is held, at one moment of the database's clock."""

    now_ms: int
    workers: Sequence[WorkerRecord]
    lanes: Sequence[ShownLane]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(workers)


def workers(context: typer.Context, database: DatabaseOption = None, as_json: JsonOption = False) -> None:
    """List the workers, with what they run and when they were last seen, and the lanes that are held, by whom."""
    staff = run(context, database, _staff)
    if as_json:
        out_json(_json(staff))
        return
    rows = [_worker_row(staff.now_ms, one) for one in staff.workers]
    out(columns(_WORKER_HEADS, rows) if rows else "no workers")
    held = [_lane_row(staff.now_ms, one) for one in staff.lanes]
    out()
    out(columns(_LANE_HEADS, held) if held else "no lane is held")


async def _staff(factory: EngineSessionStoreFactory) -> Staff:
    registry, is_dead = factory.workers, factory.options.is_dead
    found = await registry.list_workers()
    lanes: list[HeldLane] = []
    while page := await registry.list_held_lanes(after=lanes[-1] if lanes else None, limit=_PAGE):
        lanes += page
    # Read last, so that nothing was seen later than now.
    now_ms = await factory.dispatch.now_ms()
    shown = []
    for lane in lanes:
        process = lane.owner.liveness
        shown.append(ShownLane(lane, isinstance(process, LocalProcess) and is_dead(process)))
    return Staff(now_ms, found, shown)


def _is_silent(now_ms: int, worker: WorkerRecord) -> bool:
    return now_ms - worker.seen_at_epoch_ms > _SILENT_MS


def _worker_row(now_ms: int, worker: WorkerRecord) -> tuple[str, ...]:
    return (
        one_line(worker.worker_id, _NAME_WIDTH),
        "silent" if _is_silent(now_ms, worker) else worker.state,
        f"{_age(now_ms - worker.seen_at_epoch_ms)} ago",
        f"{worker.running} of {worker.concurrency}",
        f"{worker.settled_count:,}",
        f"{worker.failed_count:,}",
        one_line(worker.host, _NAME_WIDTH),
        str(worker.pid),
    )


def _lane_row(now_ms: int, shown: ShownLane) -> tuple[str, ...]:
    lane = shown.lane
    left = _age(abs(lane.expires_at_epoch_ms - now_ms))
    state = f"expired {left} ago" if lane.is_expired else f"expires in {left}"
    return (
        one_line(lane.session_id, _NAME_WIDTH),
        one_line(lane.owner.owner_id, _NAME_WIDTH),
        str(lane.fencing_token),
        f"{_age(now_ms - lane.claimed_at_epoch_ms)} ago",
        f"{state}, its holder is dead" if shown.is_dead else state,
        "asked" if lane.interrupt_requested else "",
    )


def _age(ms: int) -> str:
    """Give a time span in its two greatest units; clocks that disagree make none of less than nothing."""
    seconds = max(ms, 0) // 1000
    for size, unit, smaller, part in ((86_400, "d", "h", 3600), (3600, "h", "m", 60), (60, "m", "s", 1)):
        if seconds >= size:
            return f"{seconds // size}{unit} {seconds % size // part}{smaller}"
    return f"{seconds}s"


def _json(staff: Staff) -> dict[str, object]:
    now_ms = staff.now_ms
    return {
        "now_epoch_ms": now_ms,
        "workers": [msgspec.structs.asdict(one) | {"is_silent": _is_silent(now_ms, one)} for one in staff.workers],
        "lanes": [msgspec.structs.asdict(one.lane) | {"is_dead": one.is_dead} for one in staff.lanes],
    }
