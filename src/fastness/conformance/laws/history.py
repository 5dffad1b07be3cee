"""The laws of the history: every commit is told, and a session is read as it was, or not at all (H1 to H3)."""

from __future__ import annotations

import asyncio

import pytest

from fastness.conformance.builders import (
    WHEN,
    append,
    chain,
    checkpoint,
    commit,
    lane,
    loaded,
    node,
    some,
    turn,
    usage,
)
from fastness.conformance.lab import Lab, refused
from fastness.errors import DatabaseDamagedError, GraphInvalidError, InvalidInputError, RevisionNotReadableError
from fastness.model import (
    ActivePath,
    AgentFrameRecord,
    CommitPage,
    CommitRecord,
    PersistedSessionRead,
    ReplaceFull,
    RuntimePersistence,
    SessionGraph,
    Unchanged,
)


async def commits(lab: Lab, **options: int | bool) -> list[CommitRecord]:
    """All commits of ``s``, page by page."""
    found: list[CommitRecord] = []
    cursor: int | None = 0
    while cursor is not None:
        page = await lab.history().list_commits("s", after_revision=cursor, **options)  # type: ignore[arg-type]
        found += page.commits
        cursor = page.cursor
    return found


async def at(lab: Lab, revision: int) -> PersistedSessionRead:
    """The session ``s`` as it was."""
    return some(await lab.history().load_session_at("s", revision))


async def unreadable(lab: Lab, revision: int) -> tuple[str, str]:
    """Expect a revision of ``s`` not to be readable; give why, and what is said of it."""
    error = await refused(lab, RevisionNotReadableError, lab.history().load_session_at("s", revision))
    assert (error.session_id, error.revision) == ("s", revision)
    return error.reason, error.detail


async def grown(store: RuntimePersistence) -> list[PersistedSessionRead]:
    """A session that grew, branched, changed frames and moved its leaf; give it as it was loaded each time."""
    frame = AgentFrameRecord("f1", WHEN)
    later = AgentFrameRecord("f2", WHEN, previous_frame_id="f1")
    turns: list[dict[str, object]] = [
        {
            "graph": append(node("a", frame="f1"), node("b", "a", frame="f1")),
            "agent_frames": (frame,),
            "current_agent_frame_id": "f1",
            "checkpoint": checkpoint(1, tool_state=b"one", plugin_snapshot=b"kept"),
            "usage_deltas": (usage(1, 2, 3, 4, 5), usage(1, source="other")),
        },
        {"graph": append(node("c", "b", frame="f1")), "usage_deltas": (usage(10), usage(10, model="m2"))},
        {"graph": append(node("d", "a", frame="f1")), "checkpoint": checkpoint(3, tool_state=b"three")},
        {"graph": Unchanged("c")},
        {
            "graph": append(node("e", "c", frame="f2")),
            "agent_frames": (later,),
            "current_agent_frame_id": "f2",
            "usage_deltas": (usage(0, 0, 0, 0, 7),),
        },
    ]
    seen = []
    for fields in turns:
        await turn(store, **fields)  # type: ignore[arg-type]
        seen.append(await loaded(store))
    return seen


async def test_h1_every_commit_has_its_row(lab: Lab) -> None:
    """A row says which turn it was, when, under which token, where it ended and what it used; a replay adds none."""
    store = await lab.store()
    lease = await lane(store)
    first = commit(
        lease,
        None,
        *chain("a", "b"),
        checkpoint=checkpoint(1),
        usage_deltas=(usage(1, 2), usage(0, 0, 0, 0, 9, source="compaction"), usage(10, 20)),
    ).with_turn_commit("t1")
    result = await store.commit_runtime_state(first)
    start = lab.start_ms
    lab.clock.advance(1_000)
    assert (await store.commit_runtime_state(first)).replayed
    await store.release_session_execution_lease(lease.completion())
    await turn(store, graph=Unchanged("a"), usage_deltas=(usage(5),))
    lab.clock.advance(1_000)
    await store.tombstone_nodes(["b"])
    async for _ in lab.handles(store):
        assert await commits(lab) == [
            CommitRecord(
                "s",
                1,
                "turn",
                "t1",
                start,
                "b",
                (usage(11, 22), usage(0, 0, 0, 0, 9, source="compaction")),
                1,
                result.checkpoint_ref,
            ),
            CommitRecord("s", 2, "turn", None, start + 1_000, "a", (usage(5),), 2, result.checkpoint_ref),
            CommitRecord("s", 3, "tombstone", None, start + 2_000, "a", (), None, result.checkpoint_ref),
        ]


async def test_h1_pages_are_bounded_and_complete_in_either_direction(lab: Lab) -> None:
    """Seven commits come in pages of three, two of which say where the next one begins."""
    store = await lab.store()
    for name in "abcdefg":
        await turn(store, node(name))
    history = lab.history()
    for newest_first, expected in (
        (False, [([1, 2, 3], 3), ([4, 5, 6], 6), ([7], None)]),
        (True, [([7, 6, 5], 5), ([4, 3, 2], 2), ([1], None)]),
    ):
        cursor: int | None = 0
        found = []
        while cursor is not None:
            page = await history.list_commits("s", after_revision=cursor, limit=3, newest_first=newest_first)
            found.append(([one.revision for one in page.commits], page.cursor))
            cursor = page.cursor
        assert found == expected
    exact = await history.list_commits("s", limit=7)
    assert (len(exact.commits), exact.cursor) == (7, None)
    assert await history.list_commits("s", after_revision=7) == CommitPage(())


async def test_h1_a_page_reads_no_more_rows_than_it_shows_and_one(lab: Lab) -> None:
    """However long the history is: one statement, with a limit."""
    store = await lab.store()
    for name in "abcde":
        await turn(store, node(name))
    history = lab.history()
    lab.seen.clear()
    await history.list_commits("s", after_revision=1, limit=2)
    statements = [item for batch in lab.seen for item in batch.statements]
    assert [getattr(one, "params", ())[1:] for one in statements] == [(1, 3)]


async def test_h1_an_unknown_session_has_no_history_and_stays_unknown(lab: Lab) -> None:
    """Reading brings nothing to life; a session that was only described has no commits either."""
    await lab.store()
    async with lab.unchanged():
        assert await lab.history().list_commits("nobody") == CommitPage(())
        assert await lab.history().load_session_at("nobody", 1) is None
        assert await lab.history().list_commits("s") == CommitPage(())


async def test_h1_what_is_no_page_is_refused(lab: Lab) -> None:
    """Limits from 1 to 10,000, revisions from 0, ids as everywhere."""
    history = lab.history()
    for call in (
        history.list_commits("s", limit=0),
        history.list_commits("s", limit=10_001),
        history.list_commits("s", after_revision=-1),
        history.list_commits("s", after_revision=2**63),
        history.list_commits(""),
        history.load_session_at("s", 0),
        history.load_session_at("s\0", 1),
    ):
        await refused(lab, InvalidInputError, call)


async def test_h2_each_revision_is_read_as_it_was_loaded_then(lab: Lab) -> None:
    """Graph, leaf, frames, usage and checkpoint: what a load gave after the commit, a load of its revision gives."""
    store = await lab.store()
    seen = await grown(store)
    async for _ in lab.handles(store):
        for revision, expected in enumerate(seen, 1):
            assert await at(lab, revision) == expected


async def test_h2_usage_is_what_was_used_until_then(lab: Lab) -> None:
    """Of each source and model, all five counters."""
    await grown(await lab.store())
    assert [(await at(lab, revision)).head.ledger for revision in (1, 2, 4, 5)] == [
        (usage(1, source="other"), usage(1, 2, 3, 4, 5)),
        (usage(1, source="other"), usage(11, 2, 3, 4, 5), usage(10, model="m2")),
        (usage(1, source="other"), usage(11, 2, 3, 4, 5), usage(10, model="m2")),
        (usage(1, source="other"), usage(11, 2, 3, 4, 12), usage(10, model="m2")),
    ]


async def test_h2_a_branch_that_was_hidden_since_is_left_out(lab: Lab) -> None:
    """The active path of the revision is whole; what was hidden beside it stays hidden, as it does everywhere."""
    store = await lab.store()
    await turn(store, *chain("a", "b"))
    await turn(store, node("c", "a"))
    await store.tombstone_nodes(["b"])
    read = await at(lab, 2)
    assert [one.node_id for one in read.graph.nodes] == ["a", "c"]
    assert (read.graph.leaf_node_id, read.head.meta.node_count) == ("c", 2)
    await store.vacuum()
    assert await at(lab, 2) == read


async def test_h2_a_revision_that_hid_nodes_is_read_like_any_other(lab: Lab) -> None:
    """Its leaf is the one the session went back to, and what came later is not in it."""
    store = await lab.store()
    await turn(store, *chain("a", "b"), checkpoint=checkpoint(1), usage_deltas=(usage(1),))
    await store.tombstone_nodes(["b"])
    expected = await loaded(store)
    await turn(store, node("c", "a"), usage_deltas=(usage(1),))
    assert await at(lab, 2) == expected
    assert expected.graph.leaf_node_id == "a"


async def test_h2_a_revision_without_nodes_is_read_as_such(lab: Lab) -> None:
    """Nothing that came later is in it."""
    store = await lab.store()
    await turn(store, checkpoint=checkpoint(1))
    expected = await loaded(store)
    await turn(store, *chain("a", "b"))
    assert await at(lab, 1) == expected
    assert (expected.graph.nodes, expected.graph.leaf_node_id) == ((), None)


async def test_h2_commits_beside_it_do_not_show(lab: Lab) -> None:
    """While turns are settled, each read of a revision gives the same."""
    store = await lab.store()
    await turn(store, *chain("a", "b"), usage_deltas=(usage(1),))
    expected = await loaded(store)

    async def settle() -> None:
        """Settle turn after turn."""
        for number in range(20):
            await turn(store, node(f"n{number}", "b"), usage_deltas=(usage(1),))

    async def read() -> None:
        """Read the first revision again and again."""
        for _ in range(20):
            assert await at(lab, 1) == expected

    await asyncio.gather(settle(), read())
    assert (await at(lab, 11)).head.ledger == (usage(11),)


async def test_h3_a_revision_that_there_is_not_is_an_error(lab: Lab) -> None:
    """The next one, one far beyond, and any of a session that nothing was committed to; the newest is named."""
    store = await lab.store()
    assert await unreadable(lab, 1) == ("unknown", "there is no such revision, the newest is 0; list_commits shows all")
    await turn(store, node("a"))
    for revision in (2, 2**63 - 1):
        reason, detail = await unreadable(lab, revision)
        assert (reason, "the newest is 1" in detail) == ("unknown", True)


async def test_h3_a_revision_whose_checkpoint_was_collected_is_an_error(lab: Lab) -> None:
    """Unless the collection kept it. The error says how to have the transcript, which is still there."""
    store = await lab.store()
    for number, name in enumerate("abc", 1):
        await turn(store, node(name), checkpoint=checkpoint(number, tool_state=b"tools %d" % number))
    await store.gc_unreachable(keep_revisions=2)
    assert (await at(lab, 2)).checkpoint == checkpoint(2, tool_state=b"tools 2")
    reason, detail = await unreadable(lab, 1)
    assert (reason, "load ActivePath('a') for the transcript alone" in detail) == ("checkpoint", True)
    read = some(await store.load_session(ActivePath("a")))
    assert [one.node_id for one in read.graph.nodes] == ["a"]
    await store.gc_unreachable()
    assert [(await unreadable(lab, revision))[0] for revision in (1, 2)] == ["checkpoint"] * 2
    assert (await at(lab, 3)).checkpoint == checkpoint(3, tool_state=b"tools 3")


async def test_h3_a_checkpoint_that_is_half_collected_is_gone(lab: Lab) -> None:
    """A collection goes on in batches: where a part has gone and the manifest not yet, nothing is read without it."""
    store = await lab.store()
    part = some(some((await turn(store, checkpoint=checkpoint(1, tool_state=b"old"))).manifest).tool_state)
    await turn(store, checkpoint=checkpoint(2))
    await lab.execute_raw("delete from blob_holder where ref = $1", part.sha256)
    await lab.execute_raw("delete from blob where ref = $1", part.sha256)
    assert (await unreadable(lab, 1))[0] == "checkpoint"
    error = await refused(lab, RevisionNotReadableError, lab.history().fork_session("s", "f", at_revision=1))
    assert error.reason == "checkpoint"


async def test_h3_a_revision_that_shares_the_checkpoint_of_the_head_outlives_collections(lab: Lab) -> None:
    """What the head needs is kept, whichever revisions need it, too."""
    store = await lab.store()
    await turn(store, node("a"), checkpoint=checkpoint(1, tool_state=b"tools"))
    await turn(store, node("b"))
    await store.gc_unreachable()
    assert (await at(lab, 1)).checkpoint == checkpoint(1, tool_state=b"tools")


async def test_h3_a_revision_whose_leaf_was_hidden_is_an_error(lab: Lab) -> None:
    """At once, and after the node has gone from disk; the revisions of what is above it stay readable."""
    store = await lab.store()
    await turn(store, *chain("a"))
    await turn(store, node("b", "a"))
    await turn(store, node("c", "a"))
    await store.tombstone_nodes(["b"])
    for _ in range(2):
        reason, detail = await unreadable(lab, 2)
        assert (reason, "its leaf 'b' was tombstoned or replaced since" in detail) == ("transcript", True)
        assert (await at(lab, 1)).graph.leaf_node_id == "a"
        await store.vacuum()


async def test_h3_a_replaced_graph_cannot_be_read_under_the_same_ids(lab: Lab) -> None:
    """A node of the new graph that has the leaf's id is another node."""
    store = await lab.store()
    await turn(store, node("a", text="first"))
    await turn(store, graph=ReplaceFull(SessionGraph((node("a", text="second"),), "a")))
    assert (await unreadable(lab, 1))[0] == "transcript"
    read = await at(lab, 2)
    assert [some(one.message).text for one in read.graph.nodes] == ["second"]


async def test_h3_a_revision_from_before_there_was_a_history_is_an_error(lab: Lab) -> None:
    """And those that came after it are read with the usage of all."""
    store = await lab.store()
    for name in "abc":
        await turn(store, node(name), usage_deltas=(usage(1, source=name), usage(1)))
    await lab.execute_raw(
        "update commit_log set usage = null, next_seq = null, fencing_token = null where revision = 1"
    )
    assert (await unreadable(lab, 1))[0] == "before_history"
    assert (await at(lab, 2)).head.ledger == (usage(1, source="a"), usage(1, source="b"), usage(2))
    assert [(one.usage, one.fencing_token) for one in (await commits(lab))[:1]] == [((), None)]


async def test_h3_the_newest_revision_can_be_read_whatever_its_row_lacks(lab: Lab) -> None:
    """It is where the head stands."""
    store = await lab.store()
    await turn(store, node("a"), usage_deltas=(usage(1),), checkpoint=checkpoint(1))
    await lab.execute_raw("update commit_log set usage = null, next_seq = null, fencing_token = null")
    assert await at(lab, 1) == await loaded(store)


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        ("update node set crc = crc + 1 where node_id = 'a'", GraphInvalidError),
        ("delete from node where node_id = 'a'", GraphInvalidError),
        ("update commit_log set usage = '[' where revision = 2", DatabaseDamagedError),
        ("""update commit_log set usage = '[["turn","m",-5,0,0,0,0]]' where revision = 2""", DatabaseDamagedError),
        ("delete from token_usage", DatabaseDamagedError),
    ],
    ids=["node", "no parent", "usage", "negative usage", "ledger"],
)
async def test_h3_damage_is_an_error_of_its_own(lab: Lab, damage: str, error: type[Exception]) -> None:
    """It is never taken for what was let go of on purpose, and never read over (G3)."""
    store = await lab.store()
    await turn(store, *chain("a", "b"), usage_deltas=(usage(1),))
    await turn(store, node("c", "b"), usage_deltas=(usage(1),))
    await lab.execute_raw(damage)
    with pytest.raises(error):
        await at(lab, 1)


async def test_h3_a_checkpoint_that_is_damaged_was_not_collected(lab: Lab) -> None:
    """A part that is there and is not what its name says is damage, also in a revision of the past."""
    store = await lab.store()
    part = some(some((await turn(store, checkpoint=checkpoint(1, tool_state=b"old"))).manifest).tool_state)
    await turn(store, checkpoint=checkpoint(2))
    await lab.execute_raw("update blob set body = $1 where ref = $2", b"other", part.sha256)
    with pytest.raises(DatabaseDamagedError, match=part.sha256):
        await at(lab, 1)
