"""The laws of the registry: workers as they announce themselves, and the lanes that are held (R1 and R2)."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from fastness.conformance.builders import ALICE, BOB, TTL_MS, lane, owner, release
from fastness.conformance.lab import Lab, differences, refused
from fastness.conformance.subject import Power
from fastness.errors import InvalidInputError
from fastness.model import HeldLane, LeaseOwnerIdentity, LocalProcess, WorkerRecord
from fastness.model.base import encode
from fastness.model.protocols import WorkerRegistry

DRAINING = WorkerRecord("w2", "höst", 2**40, 1_000, 5, 8, "draining", 3, 2**63 - 1, 17)


def worker(worker_id: str = "w1", **fields: Any) -> WorkerRecord:
    """What a worker that has just begun says of itself."""
    return msgspec.structs.replace(WorkerRecord(worker_id, "host", 4711, 1_000), **fields)


async def ids(registry: WorkerRegistry, since_ms: int | None = None) -> list[str]:
    """The ids of the workers that are listed."""
    return [each.worker_id for each in await registry.list_workers(seen_since_ms=since_ms)]


# --- R1: workers ---


async def test_r1_a_worker_is_listed_as_it_announced_itself(lab: Lab) -> None:
    """By id, whatever it said of when it was seen: that is the database's to say."""
    registry = lab.workers()
    await registry.announce_worker(DRAINING)
    lab.clock.advance(7)
    await registry.announce_worker(worker(seen_at_epoch_ms=2**62))
    async for _ in lab.handles(await lab.store()):
        assert await lab.workers().list_workers() == [
            worker(seen_at_epoch_ms=lab.start_ms + 7),
            msgspec.structs.replace(DRAINING, seen_at_epoch_ms=lab.start_ms),
        ]
    await lab.assert_sound()


async def test_r1_what_a_worker_says_last_counts(lab: Lab) -> None:
    """All of it, and the time at which it said so."""
    registry = lab.workers()
    await registry.announce_worker(worker(running=2, settled_count=5))
    lab.clock.advance(100)
    said = worker(state="draining", settled_count=7, failed_count=1)
    await registry.announce_worker(said)
    assert await registry.list_workers() == [msgspec.structs.replace(said, seen_at_epoch_ms=lab.start_ms + 100)]


async def test_r1_a_worker_that_retires_is_gone(lab: Lab) -> None:
    """Twice is fine, so is one that never was; others stay."""
    store = await lab.store()
    registry = lab.workers()
    for name in ("w1", "w2", "w3"):
        await registry.announce_worker(worker(name))
    for name in ("w2", "w2", "never was"):
        await registry.retire_worker(name)
    async for _ in lab.handles(store):
        assert await ids(lab.workers()) == ["w1", "w3"]


async def test_r1_the_time_at_which_a_worker_was_seen_bounds_lists_and_forgetting(lab: Lab) -> None:
    """Both bounds are inclusive; a worker that announced itself again since is not forgotten."""
    registry = lab.workers()
    start = lab.start_ms
    for name in ("w1", "w2", "w3", "w4"):
        await registry.announce_worker(worker(name))
        lab.clock.advance(10)
    await registry.announce_worker(worker("w1"))
    assert await ids(registry, start + 20) == ["w1", "w3", "w4"]
    assert await ids(registry, start + 21) == ["w1", "w4"]
    assert await ids(registry, start + 41) == []
    assert [await registry.forget_workers(start + until) for until in (9, 10, 29, 29, 30)] == [0, 1, 1, 0, 1]
    assert await ids(registry) == ["w1"]
    assert [await registry.forget_workers(until) for until in (-(2**63), 2**63 - 1, 2**63 - 1)] == [0, 1, 0]


async def test_r1_workers_that_announce_themselves_at_once_are_there_once(lab: Lab) -> None:
    """Through whichever handle, and each with what it said."""
    registries = (lab.workers(), lab.workers(await lab.second()))
    said = [(at % 2, worker(f"w{at % 3}", running=at % 3)) for at in range(24)]
    await asyncio.gather(*(registries[which].announce_worker(each) for which, each in said))
    found = await registries[0].list_workers()
    assert [(each.worker_id, each.running) for each in found] == [("w0", 0), ("w1", 1), ("w2", 2)]
    assert found == await registries[1].list_workers()


async def test_r1_the_registry_touches_nothing_else(lab: Lab) -> None:
    """No session, no lane: what depends on them does not depend on who is announced."""
    await lane(await lab.store())
    before = await lab.dump()
    registry = lab.workers()
    await registry.announce_worker(worker())
    assert set(differences(before, await lab.dump())) == {"worker"}
    await registry.list_held_lanes()
    assert await registry.forget_workers(2**63 - 1) == 1
    assert differences(before, await lab.dump()) == {}


BAD_WORKERS: dict[str, Any] = {
    "an id of nothing": {"worker_id": ""},
    "an id with NUL": {"worker_id": "a\0b"},
    "a long host": {"host": "x" * 513},
    "a host with a lone surrogate": {"host": "\ud800"},
    "a negative pid": {"pid": -1},
    "a start beyond 63 bits": {"started_at_epoch_ms": 2**63},
    "a time that is none": {"seen_at_epoch_ms": None},
    "no room for a turn": {"concurrency": 0},
    "half a turn": {"running": 0.5},
    "a negative count": {"settled_count": -1},
    "a count that is a truth": {"failed_count": True},
    "another state": {"state": "asleep"},
}


@pytest.mark.parametrize("bad", BAD_WORKERS)
async def test_r1_what_is_no_worker_is_refused(lab: Lab, bad: str) -> None:
    """And nothing is written."""
    registry = lab.workers()
    await refused(lab, InvalidInputError, registry.announce_worker(worker(**BAD_WORKERS[bad])))
    assert await registry.list_workers() == []


async def test_r1_bounds_that_are_none_are_refused(lab: Lab) -> None:
    """Ids, times and what is no record at all."""
    registry: Any = lab.workers()
    await registry.announce_worker(worker())
    await refused(lab, InvalidInputError, registry.announce_worker({"worker_id": "w1"}))
    await refused(lab, InvalidInputError, registry.retire_worker(""))
    await refused(lab, InvalidInputError, registry.forget_workers(None))
    await refused(lab, InvalidInputError, registry.forget_workers(2**63))
    await refused(lab, InvalidInputError, registry.list_workers(seen_since_ms="1"))


# --- R2: held lanes ---


async def names(registry: WorkerRegistry, **bounds: Any) -> list[tuple[str, str]]:
    """Owner and session of the lanes on a page."""
    return [(each.owner.owner_id, each.session_id) for each in await registry.list_held_lanes(**bounds)]


async def test_r2_a_held_lane_is_listed_with_its_holder(lab: Lab) -> None:
    """Who, under which token, since when and until when, and never with the token that proves it."""
    store = await lab.store()
    process = LocalProcess("host", "boot", 17, "start")
    await lab.store("free")
    lab.clock.advance(5)
    lease = await lane(store, LeaseOwnerIdentity("alice", "alice-1", process))
    start = lab.start_ms
    wanted = HeldLane("s", LeaseOwnerIdentity("alice", "alice-1", process), 1, start + 5, start + 30_005, False, False)
    async for _ in lab.handles(store):
        (found,) = await lab.workers().list_held_lanes()
        assert found == wanted
        assert lease.lease_token.encode() not in encode(found)


async def test_r2_a_lane_is_listed_until_it_is_given_back(lab: Lab) -> None:
    """Past its expiry it says so, and whoever claims it then is its holder."""
    store = await lab.store()
    registry = lab.workers()
    await lane(store)
    lab.clock.advance(TTL_MS - 1)
    assert [each.is_expired for each in await registry.list_held_lanes()] == [False]
    lab.clock.advance(1)
    assert [(each.owner, each.is_expired) for each in await registry.list_held_lanes()] == [(ALICE, True)]
    lease = await lane(store, BOB)
    (found,) = await registry.list_held_lanes()
    assert (found.owner, found.fencing_token, found.is_expired) == (BOB, 2, False)
    await release(store, lease)
    assert await registry.list_held_lanes() == []


async def test_r2_a_lane_of_a_deleted_session_is_held_by_nobody(lab: Lab) -> None:
    """Nor is that of a session of the same name that is made anew."""
    await lane(await lab.store())
    await lab.factory.delete_session("s")
    assert await lab.workers().list_held_lanes() == []
    await lab.store()
    assert await lab.workers().list_held_lanes() == []


async def hold(lab: Lab) -> None:
    """Let two owners hold five lanes among others that are free, claimed in no order."""
    store = await lab.store("s0")
    for session_id, who in (("s4", "b"), ("s1", "b"), ("s3", "a"), ("s5", "b"), ("s2", "a"), ("s6", "c")):
        lease = await lane(store, owner(who, session_id), session_id=session_id)
    await release(store, lease)


async def test_r2_held_lanes_are_listed_by_owner_and_session(lab: Lab) -> None:
    """All of them, or those of one owner."""
    await hold(lab)
    registry = lab.workers()
    assert await names(registry) == [("a", "s2"), ("a", "s3"), ("b", "s1"), ("b", "s4"), ("b", "s5")]
    assert await names(registry, owner_id="b") == [("b", "s1"), ("b", "s4"), ("b", "s5")]
    assert await names(registry, owner_id="c") == await names(registry, owner_id="nobody") == []


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
@pytest.mark.parametrize("owner_id", [None, "b"])
async def test_r2_held_lanes_come_in_pages(lab: Lab, limit: int, owner_id: str | None) -> None:
    """Each once, also where the last one of a page was given back meanwhile."""
    await hold(lab)
    registry = lab.workers()
    whole = await names(registry, owner_id=owner_id)
    assert len(whole) == (5 if owner_id is None else 3)
    found: list[tuple[str, str]] = []
    after = None
    while page := await registry.list_held_lanes(after=after, limit=limit, owner_id=owner_id):
        assert len(page) <= limit
        found += [(each.owner.owner_id, each.session_id) for each in page]
        after = page[-1]
        await lab.factory.delete_session(after.session_id)
    assert found == whole


async def test_r2_a_holder_that_is_asked_to_end_is_listed_so(lab: Lab) -> None:
    """Until it gives the lane back; others are not."""
    lab.needs(Power.ROWS)
    store = await lab.store()
    lease = await lane(store)
    await lane(store, session_id="other")
    await lab.execute_raw(
        "update lane set interrupt = $1 where sid = (select sid from session where session_id = 's')", "{}"
    )
    registry = lab.workers()
    listed = [(each.session_id, each.interrupt_requested) for each in await registry.list_held_lanes()]
    assert listed == [("other", False), ("s", True)]
    await release(store, lease)
    assert [each.interrupt_requested for each in await registry.list_held_lanes()] == [False]


async def test_r2_bounds_of_a_page_that_are_none_are_refused(lab: Lab) -> None:
    """A limit of nothing or of too much, an owner or a place that is none."""
    registry: Any = lab.workers()
    await lane(await lab.store())
    (held,) = await registry.list_held_lanes()
    strange = msgspec.structs.replace(held, session_id="a\0b")
    bad: list[dict[str, Any]] = [
        {"limit": 0},
        {"limit": 10_001},
        {"limit": True},
        {"owner_id": ""},
        {"after": "s"},
        {"after": strange},
    ]
    for bounds in bad:
        await refused(lab, InvalidInputError, registry.list_held_lanes(**bounds))
    assert await registry.list_held_lanes(limit=10_000) == [held]
