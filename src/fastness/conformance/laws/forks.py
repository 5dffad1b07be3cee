"""The laws of forks: sessions that begin with what another one has settled (F1)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fastness.conformance.builders import (
    ALICE,
    BOB,
    WHEN,
    chain,
    checkpoint,
    commit,
    lane,
    loaded,
    node,
    node_ids,
    said,
    some,
    turn,
    usage,
    work,
)
from fastness.conformance.lab import Lab, differences, refused
from fastness.errors import (
    GraphInvalidError,
    LeaseExpiredError,
    StoreError,
)
from fastness.model import (
    Child,
    CommitRecord,
    PersistedSessionConfig,
    PersistedSessionRead,
    RuntimePersistence,
    SessionFilter,
    SessionMeta,
    raw_json,
)
from fastness.persistence import load_persisted_session_state

BEGUN = "2023-11-14T22:13:20.000Z"
"""The time at which every test begins, as people read it."""


async def fork(lab: Lab, new_id: str = "f", **where: Any) -> RuntimePersistence:
    """Fork ``s`` and open the new session."""
    await lab.history().fork_session("s", new_id, **where)
    return await lab.store(new_id)


async def branched(lab: Lab) -> RuntimePersistence:
    """A session ``s`` of four turns and two branches: a-b-c, and a-d-e, on which it stands."""
    store = await lab.store()
    config = PersistedSessionConfig("provider", "model")
    await turn(store, *chain("a", "b"), checkpoint=checkpoint(1, tool_state=b"one"), config=config)
    await turn(store, node("c", "b"), checkpoint=checkpoint(2, tool_state=b"two", execution_state=b"x"))
    await turn(store, node("d", "a"), checkpoint=checkpoint(3, tool_state=b"three"), usage_deltas=(usage(5),))
    await turn(store, node("e", "d"), checkpoint=checkpoint(4, tool_state=b"four"))
    return store


def path(read: PersistedSessionRead) -> list[str]:
    """The ids of all its nodes."""
    return [one.node_id for one in read.graph.nodes]


@pytest.mark.parametrize(
    ("where", "nodes", "kept"),
    [
        ({}, ["a", "d", "e"], checkpoint(4, tool_state=b"four")),
        ({"at_revision": 4}, ["a", "d", "e"], checkpoint(4, tool_state=b"four")),
        ({"at_revision": 3}, ["a", "d"], checkpoint(3, tool_state=b"three")),
        ({"at_revision": 2}, ["a", "b", "c"], checkpoint(2, tool_state=b"two", execution_state=b"x")),
        ({"at_node_id": "e"}, ["a", "d", "e"], checkpoint(4, tool_state=b"four")),
        ({"at_node_id": "b"}, ["a", "b"], checkpoint(1, tool_state=b"one")),
        ({"at_node_id": "a"}, ["a"], None),
    ],
    ids=lambda value: "-".join(map(str, value.values())) or "head" if isinstance(value, dict) else "",
)
async def test_f1_a_fork_is_the_path_to_where_it_begins(lab: Lab, where: Any, nodes: list[str], kept: Any) -> None:
    """Its nodes are those of the source, and its checkpoint is that of the commit which ended there, if one did."""
    store = await branched(lab)
    source = await loaded(store)
    made = await fork(lab, **where)
    async for handle in lab.handles(made, "f"):
        read = await loaded(handle)
        assert path(read) == nodes
        assert read.graph.nodes == source.graph.active_path(nodes[-1])
        assert read.checkpoint == kept
        head = read.head.meta
        assert (head.revision, head.leaf_node_id, head.node_count) == (1, nodes[-1], len(nodes))
        assert (head.config, read.head.ledger) == (PersistedSessionConfig("provider", "model"), ())
        turn_index = some(await load_persisted_session_state(handle)).settled.turn_state.turn_index
        assert turn_index == (0 if kept is None else kept.turn_state.turn_index)
    await lab.assert_sound()


async def test_f1_a_fork_is_described_as_a_child_of_its_source(lab: Lab) -> None:
    """Name, creation and relation are its own, all else is the source's; a listing finds it by its labels."""
    store = await branched(lab)
    await store.save_session_meta(
        SessionMeta("s", "Source", WHEN, "m", "/home", labels=("x", "y"), priority=3, custom=raw_json({"k": 1}))
    )
    assert lab.start_ms == 1_700_000_000_000
    given = await lab.history().fork_session("s", "f", at_node_id="b", name="Second try")
    expected = SessionMeta("f", "Second try", BEGUN, "m", "/home", Child("s", "b"), ("x", "y"), 3, raw_json({"k": 1}))
    assert given == expected
    assert await (await lab.reopen("f")).load_session_meta() == expected
    assert (await lab.history().fork_session("f", "g")).session_name == "g"
    labelled = (await lab.factory.list_sessions(filters=SessionFilter(labels=("x", "y")))).sessions
    assert [one.meta.session_id for one in labelled] == ["s", "f", "g"]
    assert await lab.execute_raw("select distinct priority from lane") == [(3,)]


async def test_f1_the_history_of_a_fork_begins_with_one_commit(lab: Lab) -> None:
    """It is of the kind ``fork``, used nothing, and can be read as any other; what follows is the fork's own."""
    await branched(lab)
    made = await fork(lab, at_revision=2)
    begun = await loaded(made)
    await turn(made, node("new", "c"), session_id="f", usage_deltas=(usage(1),))
    ref = begun.head.meta.checkpoint_ref
    history = lab.history()
    page = await history.list_commits("f")
    assert [msgspec.structs.replace(one, committed_at_epoch_ms=0) for one in page.commits] == [
        CommitRecord("f", 1, "fork", None, 0, "c", (), None, ref),
        CommitRecord("f", 2, "turn", None, 0, "new", (usage(1),), 1, ref),
    ]
    assert await history.load_session_at("f", 1) == begun
    assert page.commits[0].committed_at_epoch_ms == lab.start_ms


async def test_f1_the_source_stays_as_it_is(lab: Lab) -> None:
    """A fork adds rows of its own and touches no other."""
    await branched(lab)
    before = await lab.dump()
    await lab.history().fork_session("s", "f")
    gone = {table: rows[0] for table, rows in differences(before, await lab.dump()).items() if rows[0]}
    assert gone == {}


async def test_f1_source_and_fork_go_on_apart(lab: Lab) -> None:
    """The same node ids are free in both, and neither sees what the other one does."""
    store = await branched(lab)
    made = await fork(lab)
    await turn(store, node("z", "e", "of the source"))
    await turn(made, node("z", "e", "of the fork"), session_id="f")
    texts = [some(some(await each.load_node("z")).message).text for each in (store, made)]
    assert texts == ["of the source", "of the fork"]
    await store.tombstone_nodes(["z", "e", "d"])
    assert await node_ids(made) == ["a", "d", "e", "z"]
    await lab.assert_sound()


async def test_f1_what_waits_stays_with_the_source(lab: Lab) -> None:
    """Neither input nor work, claims, tokens nor receipts come along."""
    store = await lab.store()
    lease = await lane(store)
    await store.commit_runtime_state(commit(lease, None, node("a")).with_turn_commit("t1"))
    await store.enqueue_pending_turn_input(said("later"))
    await store.enqueue_queued_work(work())
    made = await fork(lab)
    assert await made.list_pending_turn_inputs("f") == []
    assert await made.list_queued_work("f") == []
    own = await lane(made, ALICE, session_id="f")
    assert own.fencing_token == 1
    again = commit(own, 1, node("b", "a")).with_turn_commit("t1")
    assert (await made.commit_runtime_state(again)).replayed is False


async def test_f1_a_source_that_runs_is_forked_as_it_is_settled(lab: Lab) -> None:
    """The turn is neither waited for nor disturbed: it settles under its lease, and the fork has none of it."""
    store = await branched(lab)
    lease = await lane(store, BOB)
    made = await fork(lab)
    await store.commit_runtime_state(commit(lease, 4, node("late", "e")))
    assert await node_ids(made) == ["a", "d", "e"]
    forged = commit(msgspec.structs.replace(lease, session_id="f"), 1, node("late", "e"))
    await refused(lab, LeaseExpiredError, made.commit_runtime_state(forged))


async def test_f1_a_path_is_copied_byte_for_byte(lab: Lab) -> None:
    """Bodies and checksums are those of the source."""
    await branched(lab)
    await fork(lab, at_node_id="c")
    rows = await lab.execute_raw(
        "select s.session_id, n.node_id, n.crc, n.body from node n join session s on s.sid = n.sid order by n.node_id"
    )
    found = {name: {tuple(row[1:]) for row in rows if row[0] == name and row[1] in "abc"} for name in ("s", "f")}
    assert found["s"] == found["f"]
    assert len(found["f"]) == 3


async def test_f1_a_fork_can_be_forked(lab: Lab) -> None:
    """From what it took over as well as from what is its own."""
    await branched(lab)
    made = await fork(lab, at_node_id="c")
    await turn(made, node("x", "c"), session_id="f")
    history = lab.history()
    for where, expected in (({}, ["a", "b", "c", "x"]), ({"at_node_id": "b"}, ["a", "b"]), ({"at_revision": 1}, "abc")):
        name = "".join(expected)
        await history.fork_session("f", name, **where)
        assert await node_ids(await lab.store(name)) == list(expected)
    await lab.assert_sound()


async def test_f1_a_session_without_nodes_can_be_forked(lab: Lab) -> None:
    """Where something was committed to it: its checkpoint comes along, and the first node may follow."""
    store = await lab.store()
    await turn(store, checkpoint=checkpoint(1, tool_state=b"tools"))
    meta = await lab.history().fork_session("s", "f")
    assert meta.relation == Child("s", None)
    made = await lab.reopen("f")
    assert (await loaded(made)).checkpoint == checkpoint(1, tool_state=b"tools")
    await turn(made, node("a"), session_id="f")
    assert await node_ids(made) == ["a"]
    await lab.assert_sound()


async def test_f1_a_fork_costs_its_path_and_not_its_source(lab: Lab) -> None:
    """Beside a branch of 3,000 nodes it takes as many statements as without, and none of that branch comes over."""
    small, large = await lab.store(), await lab.store("large")
    for store, name in ((small, "s"), (large, "large")):
        await turn(store, *chain("a", "b"), session_id=name)
    await turn(large, *chain(*(f"n{at}" for at in range(3_000)), after="a"), session_id="large")
    history = lab.history()
    counts = []
    for source in ("s", "large"):
        lab.seen.clear()
        await history.fork_session(source, f"of {source}", at_node_id="b")
        items = [item for batch in lab.seen for item in batch.statements]
        counts.append((len(items), max(map(len, map(repr, items))) < 10_000))
    # Where the head stands elsewhere, the newest commit of that node is looked for: one statement more.
    assert counts == [(counts[0][0], True), (counts[0][0] + 1, True)]
    assert await node_ids(await lab.store("of large")) == ["a", "b"]


async def test_f1_a_fork_is_there_whole_or_not_at_all(lab: Lab) -> None:
    """Whatever batch fails, and COMMIT with them: nothing of it is left, and the same call succeeds afterwards."""
    await branched(lab)
    history = lab.history()
    lab.seen.clear()
    await history.fork_session("s", "first")
    failures = len(lab.seen) + 1

    class BrokenError(Exception):
        """What breaks it."""

    for at in range(failures):
        left = [at]

        def fail(_: object, left: list[int] = left) -> None:
            """Let so many batches pass."""
            left[0] -= 1
            if left[0] < 0:
                raise BrokenError

        async with lab.unchanged():
            lab.on_batch = fail
            with pytest.raises((BrokenError, StoreError)):
                await history.fork_session("s", "f")
            lab.on_batch = None
    await history.fork_session("s", "f")
    await lab.assert_sound()


async def test_f1_a_damaged_path_is_not_copied(lab: Lab) -> None:
    """A fork is no way past law G3."""
    await branched(lab)
    await lab.execute_raw("update node set crc = crc + 1 where node_id = 'a'")
    await refused(lab, GraphInvalidError, lab.history().fork_session("s", "f"))
