"""The law of collection: blobs are stored once, given back as they were, and go when nothing needs them (M1)."""

from __future__ import annotations

import asyncio
import hashlib
import re
from typing import Any

import msgspec
import pytest

from fastness.conformance.builders import WHEN, chain, checkpoint, loaded, some, turn
from fastness.conformance.lab import Lab, sql_of
from fastness.errors import DatabaseDamagedError, StoreError
from fastness.model import AgentFrameRecord, GcReport, RuntimePersistence

MAGIC = b"\x28\xb5\x2f\xfd"
"""What a frame of Zstandard begins with."""
NOISE = b"".join(hashlib.sha256(number.to_bytes(4)).digest() for number in range(3_125))
"""100,000 bytes that cannot be compressed."""
CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "a frame's beginning": MAGIC,
    "a long frame's beginning": MAGIC + b"\0" * 5_000,
    "1023 bytes": b"a" * 1_023,
    "1024 bytes": b"a" * 1_024,
    "noise": NOISE,
    "a megabyte of nothing": b"\0" * 2**20,
}


async def tools(store: RuntimePersistence) -> object:
    """The tool state of the head's checkpoint."""
    read = await loaded(store)
    assert read.checkpoint is not None
    return read.checkpoint.tool_state


async def test_m1_superseded_checkpoints_are_collected_and_retained_ones_are_not(lab: Lab) -> None:
    """Of two checkpoints of one session and one of another, only the superseded one goes, once."""
    store = await lab.store()
    other = await lab.store("other")
    await turn(store, checkpoint=checkpoint(1, tool_state=b"old", plugin_snapshot=b"kept"))
    await turn(store, checkpoint=checkpoint(2, tool_state=b"new", plugin_snapshot=b"kept"))
    await turn(other, session_id="other", checkpoint=checkpoint(2, tool_state=b"theirs"))
    before = await lab.execute_raw("select sum(length(body)) from blob")
    report = await store.gc_unreachable()
    after = await lab.execute_raw("select sum(length(body)) from blob")
    # What is left: two manifests, the new tools, the shared plugins, the other session's tools.
    assert report == GcReport(2, 5, 2, before[0][0] - after[0][0])
    again = await lab.reopen()
    assert await again.gc_unreachable() == GcReport(2, 5, 0, 0)
    assert await tools(again) == b"new"
    await lab.assert_sound()


async def test_m1_the_checkpoints_of_the_last_revisions_can_be_kept(lab: Lab) -> None:
    """With three revisions kept, only what all of them do without is collected."""
    store = await lab.store()
    for at in range(1, 6):
        await turn(store, checkpoint=checkpoint(at, tool_state=b"tools %d" % at))
    reports = [await store.gc_unreachable(keep_revisions=keep) for keep in (9, 5, 3, 3, 1)]
    deleted = [report.deleted_blob_count for report in reports]
    assert deleted == [0, 0, 4, 0, 4]
    assert await tools(await lab.reopen()) == b"tools 5"


async def test_m1_a_frame_keeps_the_checkpoint_that_it_started_from(lab: Lab) -> None:
    """A checkpoint that a frame names is a root, however old it is."""
    store = await lab.store()
    first = await turn(store, checkpoint=checkpoint(1, tool_state=b"old"))
    frame = AgentFrameRecord("f1", WHEN, checkpoint_ref=first.checkpoint_ref)
    await turn(store, agent_frames=(frame,), current_agent_frame_id="f1", checkpoint=checkpoint(2, tool_state=b"new"))
    await turn(store, checkpoint=checkpoint(3, tool_state=b"newer"))
    assert (await store.gc_unreachable()).deleted_blob_count == 2
    left = await lab.execute_raw("select count(*) from blob where body in ($1, $2, $3)", b"old", b"new", b"newer")
    assert left == [(2,)]
    await lab.assert_sound()


async def test_m1_content_that_comes_back_is_kept(lab: Lab) -> None:
    """A checkpoint part that was dropped and is used again by a later commit survives the collection."""
    store = await lab.store()
    for at, part in enumerate((b"x", b"y", b"x")):
        await turn(store, checkpoint=checkpoint(at, tool_state=part))
    await store.gc_unreachable()
    assert await tools(await lab.reopen()) == b"x"


@pytest.mark.parametrize("damage", ["garbage", "unknown version", "missing"])
async def test_m1_a_root_that_cannot_be_read_aborts_the_collection(lab: Lab, damage: str) -> None:
    """A damaged or missing checkpoint deletes nothing, of no session: the sweep raises (M5)."""
    store = await lab.store()
    result = await turn(store, checkpoint=checkpoint(1, tool_state=b"old"))
    await turn(store, checkpoint=checkpoint(2, tool_state=b"new"))
    result = await turn(store, checkpoint=checkpoint(3, tool_state=b"newest"))
    assert result.checkpoint_ref is not None
    ref = result.checkpoint_ref.sha256
    if damage == "missing":
        await lab.execute_raw("update head set checkpoint_ref = $1", "0" * 64)
    else:
        body = b'{"v":99,"turn_state":{}}' if damage == "unknown version" else b"garbage"
        await lab.execute_raw("update blob set body = $1 where ref = $2", body, ref)
    async with lab.unchanged():
        with pytest.raises(StoreError):
            await store.gc_unreachable()
    report = await lab.check()
    assert report.findings != ()


async def test_m1_collections_beside_commits_never_take_what_is_needed(lab: Lab) -> None:
    """While commits and collections run at the same time, every head's checkpoint stays readable."""
    store = await lab.store()

    async def commits() -> None:
        """Replace the checkpoint again and again."""
        for at in range(30):
            await turn(store, checkpoint=checkpoint(at, tool_state=b"part %d" % (at % 3)))
            assert await tools(store) == b"part %d" % (at % 3)

    async def sweeps() -> None:
        """Collect again and again."""
        for _ in range(30):
            await store.gc_unreachable()

    await asyncio.gather(commits(), sweeps())
    assert await tools(await lab.reopen()) == b"part 2"
    await lab.assert_sound()


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
async def test_m1_content_comes_back_as_it_was(lab: Lab, content: bytes) -> None:
    """However a blob is stored, it is given back byte for byte, and a collection that keeps it keeps it so."""
    store = await lab.store()
    await turn(store, checkpoint=checkpoint(1, tool_state=content, execution_state=b"other"))
    assert (await store.gc_unreachable()).deleted_blob_count == 0
    async for handle in lab.handles(store):
        assert (await loaded(handle)).checkpoint == checkpoint(1, tool_state=content, execution_state=b"other")
    await lab.assert_sound()


async def test_m1_content_of_two_sessions_is_stored_once(lab: Lab) -> None:
    """It goes when both have let go of it, and not before; what is freed is counted as it was stored."""
    sessions = {name: await lab.store(name) for name in ("s", "other")}
    for at, (name, store) in enumerate(sessions.items()):
        await turn(store, session_id=name, checkpoint=checkpoint(at, tool_state=NOISE))
    store = sessions["s"]
    # Two manifests, and one part that both name.
    assert await store.gc_unreachable() == GcReport(2, 3, 0, 0)
    await turn(store, checkpoint=checkpoint(2))
    first = await store.gc_unreachable()
    assert (first.retained_blob_count, first.deleted_blob_count) == (3, 1)
    assert await tools(sessions["other"]) == NOISE
    await lab.factory.delete_session("other")
    second = await store.gc_unreachable()
    assert (second.root_count, second.retained_blob_count, second.deleted_blob_count) == (1, 1, 2)
    assert first.deleted_byte_count < 1_000 < len(NOISE) <= second.deleted_byte_count < len(NOISE) + 1_000


async def test_m1_a_part_that_is_carried_is_neither_read_nor_written(lab: Lab) -> None:
    """A commit that refers to a part of its head's checkpoint costs what it adds, however large the part is."""
    store = await lab.store()
    kept = some((await turn(store, checkpoint=checkpoint(1, tool_state=NOISE))).manifest).tool_state
    lab.seen.clear()
    await turn(store, *chain("a"), checkpoint=checkpoint(2, tool_state=kept))
    items = [item for batch in lab.seen for item in batch.statements]
    assert items, "no batch of the commit was seen"
    assert [sql_of(item) for item in items if re.search(r"body.*(from|join) blob\b", sql_of(item), re.DOTALL)] == []
    assert max(map(len, map(repr, items))) < 10_000, "a statement has the bytes of what was carried"
    assert await tools(await lab.reopen()) == NOISE


async def test_m1_a_collection_of_any_size_is_complete_and_works_in_batches(lab: Lab) -> None:
    """Of 1,250 blobs that nobody needs each goes, once, and no statement deletes more than 500 of them."""
    store = await lab.store()
    await turn(store, checkpoint=checkpoint(1, tool_state=b"kept"))
    await lab.execute_raw(
        "with recursive n (i) as (select 1 union all select i + 1 from n where i < 1250)"
        " insert into blob (ref, body) select 'f' || i, $1 from n",
        b"12345",
    )
    lab.seen.clear()
    assert await store.gc_unreachable() == GcReport(1, 2, 1_250, 6_250)
    items: list[Any] = [item for batch in lab.seen for item in batch.statements]
    deletes = [item for item in items if sql_of(item).startswith("delete from blob where")]
    named = [len(msgspec.json.decode(item.params[0])) for item in deletes]
    assert (sum(named), max(named) <= 500) == (1_250, True)
    assert await (await lab.reopen()).gc_unreachable() == GcReport(1, 2, 0, 0)


@pytest.mark.parametrize("damage", [b"other", b"", MAGIC, MAGIC + b"12345678"], ids=repr)
@pytest.mark.parametrize("content", [b"small", b"large" * 1_000], ids=["small", "large"])
async def test_m1_a_damaged_part_is_an_error(lab: Lab, content: bytes, damage: bytes) -> None:
    """A checkpoint is never given with other content than it was committed with."""
    store = await lab.store()
    part = some((await turn(store, checkpoint=checkpoint(1, tool_state=content))).manifest).tool_state
    await lab.execute_raw("update blob set body = $1 where ref = $2", damage, some(part).sha256)
    async with lab.unchanged():
        with pytest.raises(DatabaseDamagedError, match=some(part).sha256):
            await loaded(store)
    assert (await lab.check()).findings != ()
