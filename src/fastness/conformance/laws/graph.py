"""The laws of the transcript graph (G1 to G5)."""

from __future__ import annotations

import pytest

from fastness.conformance.builders import (
    WHEN,
    append,
    chain,
    commit,
    lane,
    loaded,
    node,
    node_ids,
    revision,
    some,
    turn,
)
from fastness.conformance.lab import Lab, differences, refused
from fastness.errors import GraphInvalidError, HeadRevisionConflictError, InvalidInputError, NodeIdCollisionError
from fastness.model import (
    ActivePath,
    Append,
    FullGraph,
    GraphCommitDelta,
    Message,
    PluginPayload,
    Protocol,
    ProtocolEvent,
    ReplaceFull,
    RuntimePersistence,
    SessionGraph,
    SessionNodeRecord,
    TextPart,
    Unchanged,
    message_node,
    raw_json,
)
from fastness.model.transcript import EventPayload


async def path(store: RuntimePersistence, leaf: str | None = None) -> list[str]:
    """The ids of an active path, root first."""
    read = some(await store.load_session(ActivePath(leaf)))
    return [found.node_id for found in read.graph.nodes]


async def end(store: RuntimePersistence, scope: ActivePath) -> tuple[list[str], str | None]:
    """The ids that a scope gives, root first, and the node that they follow."""
    graph = some(await store.load_session(scope)).graph
    return [found.node_id for found in graph.nodes], graph.behind_node_id


async def tree(lab: Lab) -> RuntimePersistence:
    """A session with the branches a-b-c and a-d-e, and the root r; it stands on e."""
    store = await lab.store()
    await turn(store, *chain("a", "b", "c"))
    await turn(store, *chain("d", "e", after="a"))
    await turn(store, graph=Append((node("r"),), "e"))
    return store


async def change(store: RuntimePersistence, delta: GraphCommitDelta) -> None:
    """Commit one change of the graph."""
    await turn(store, graph=delta)


@pytest.mark.parametrize("taken", ["stored", "in the delta"])
async def test_g1_a_node_id_is_taken_once(lab: Lab, taken: str) -> None:
    """An id that a stored node has, or another node of the same delta, is a collision that names it."""
    store = await lab.store()
    await turn(store, *chain("a", "b"))
    lease = await lane(store)
    nodes = (node("b", "a"),) if taken == "stored" else (node("x", "b"), node("x", "a"))
    attempt = commit(lease, 1, graph=Append(nodes, nodes[0].node_id))
    error = await refused(lab, NodeIdCollisionError, store.commit_runtime_state(attempt))
    assert error.node_id == nodes[0].node_id


async def test_g1_a_tombstoned_id_is_taken_until_it_is_vacuumed(lab: Lab) -> None:
    """The id of a tombstoned node cannot be used again before a vacuum, and can be after it."""
    store = await lab.store()
    await turn(store, *chain("a", "b"))
    await store.tombstone_nodes(["b"])
    lease = await lane(store)
    await refused(lab, NodeIdCollisionError, store.commit_runtime_state(commit(lease, 2, node("b", "a"))))
    assert (await store.vacuum()).removed_node_count == 1
    await store.commit_runtime_state(commit(lease, 2, node("b", "a", "anew")))
    assert await path(await lab.reopen()) == ["a", "b"]


@pytest.mark.parametrize(
    ("nodes", "leaf"),
    [
        ((node("x", "nowhere"),), "x"),
        ((node("x", "y"), node("y", "a")), "x"),
        ((node("x", "x"),), "x"),
        ((node("x", "y"), node("y", "x")), "y"),
        ((node("x", "gone"),), "x"),
        ((node("x", "a"),), "nowhere"),
        ((node("x", "a"),), "gone"),
        ((), "nowhere"),
        ((), "gone"),
        ((node("x", "a"),), None),
        ((), None),
    ],
    ids=[
        "no such parent",
        "parent after its child",
        "its own parent",
        "cycle",
        "tombstoned parent",
        "no such leaf",
        "tombstoned leaf",
        "unchanged to no such leaf",
        "unchanged to a tombstoned leaf",
        "no leaf beside nodes",
        "unchanged to no leaf beside nodes",
    ],
)
async def test_g1_a_graph_that_would_not_be_a_forest_is_refused(
    lab: Lab, nodes: tuple[SessionNodeRecord, ...], leaf: str | None
) -> None:
    """Parents are live or earlier in the delta, the leaf is live; None is a leaf only before the first node."""
    store = await lab.store()
    await turn(store, *chain("a", "gone"))
    await store.tombstone_nodes(["gone"])
    lease = await lane(store)
    graph = Append(nodes, leaf) if nodes else Unchanged(leaf)
    await refused(lab, GraphInvalidError, store.commit_runtime_state(commit(lease, 2, graph=graph)))


async def test_g1_no_leaf_is_right_before_the_first_node(lab: Lab) -> None:
    """A session may be committed without a node, and then stands on none."""
    store = await lab.store()
    await change(store, Unchanged(None))
    read = await loaded(await lab.reopen())
    assert (read.graph.leaf_node_id, read.graph.nodes, read.head.meta.node_count) == (None, (), 0)


async def test_g1_several_roots_are_allowed(lab: Lab) -> None:
    """Nodes without a parent begin conversations of their own."""
    store = await lab.store()
    await change(store, append(node("a"), node("b"), node("c", "a")))
    again = await lab.reopen()
    assert await node_ids(again) == ["a", "b", "c"]
    assert await path(again) == ["a", "c"]
    assert await path(again, "b") == ["b"]


async def test_g2_the_full_graph_is_every_live_node_in_commit_order(lab: Lab) -> None:
    """All branches come in the order in which they were committed, each node as it went in."""
    store = await lab.store()
    odd = (
        node("z"),
        SessionNodeRecord("p", "z", WHEN, PluginPayload("memo", raw_json({"k": [1, None]})), "cause"),
        SessionNodeRecord("e", "p", WHEN, EventPayload(Protocol(ProtocolEvent("agent", raw_json("go"))))),
    )
    await change(store, append(*odd))
    await change(store, append(node("b", "z")))
    read = await loaded(await lab.reopen())
    assert read.graph.nodes == (*odd, node("b", "z"))
    assert read.graph.leaf_node_id == "b"


async def test_g2_the_active_path_is_the_ancestry_of_a_leaf_root_first(lab: Lab) -> None:
    """The default is the head's leaf; any live node can be asked for."""
    await tree(lab)
    again = await lab.reopen()
    assert await path(again) == ["a", "d", "e"]
    assert await path(again, "c") == ["a", "b", "c"]
    assert await path(again, "b") == ["a", "b"]
    assert await path(again, "r") == ["r"]


async def test_g2_the_end_of_a_path_can_be_loaded_alone(lab: Lab) -> None:
    """As many nodes as are asked for, the leaf last, and what they follow; all of the path where it is no longer."""
    await tree(lab)
    again = await lab.reopen()
    assert await end(again, ActivePath(last=1)) == (["e"], "d")
    assert await end(again, ActivePath(last=2)) == (["d", "e"], "a")
    assert await end(again, ActivePath(last=3)) == (["a", "d", "e"], None)
    assert await end(again, ActivePath(last=2**63 - 1)) == (["a", "d", "e"], None)
    assert await end(again, ActivePath("c", last=2)) == (["b", "c"], "a")
    assert await end(again, ActivePath("r", last=2)) == (["r"], None)
    graph = some(await again.load_session(ActivePath(last=2))).graph
    assert [found.node_id for found in graph.active_path()] == ["d", "e"]


async def test_g2_what_was_there_at_a_revision_can_be_left_out(lab: Lab) -> None:
    """Where the path leads over the leaf of that revision, only what came behind it is given; else all of it."""
    store = await tree(lab)
    assert await end(store, ActivePath(after_revision=2)) == ([], "e")
    assert await end(store, ActivePath(after_revision=1)) == (["a", "d", "e"], None)
    await turn(store, *chain("f", "g", after="e"))
    again = await lab.reopen()
    assert await end(again, ActivePath(after_revision=3)) == (["f", "g"], "e")
    assert await end(again, ActivePath(after_revision=2)) == (["f", "g"], "e")
    assert await end(again, ActivePath(after_revision=4)) == ([], "g")
    assert await end(again, ActivePath(last=1, after_revision=3)) == (["g"], "f")
    assert await end(again, ActivePath("f", after_revision=3)) == (["f"], "e")
    assert await end(again, ActivePath("d", after_revision=3)) == (["a", "d"], None)
    assert await end(again, ActivePath("c", after_revision=3)) == (["a", "b", "c"], None)
    assert await end(again, ActivePath(after_revision=77)) == (["a", "d", "e", "f", "g"], None)


async def test_g2_what_was_replaced_or_hidden_since_a_revision_is_not_left_out(lab: Lab) -> None:
    """Also where other nodes have the ids that were on the path then."""
    store = await lab.store()
    await turn(store, *chain("a", "b"))
    await change(store, ReplaceFull(SessionGraph((node("a", None, "new a"), node("b", "a")), "b")))
    assert await end(store, ActivePath(after_revision=1)) == (["a", "b"], None)
    await store.tombstone_nodes(["b"])
    assert await end(store, ActivePath(after_revision=2)) == (["a"], None)
    await store.vacuum()
    await turn(store, node("b", "a", "new b"))
    assert await end(store, ActivePath(after_revision=2)) == (["a", "b"], None)
    assert await end(store, ActivePath(after_revision=3)) == (["b"], "a")


@pytest.mark.parametrize("scope", [ActivePath(last=0), ActivePath(last=-1), ActivePath(after_revision=0)])
async def test_g2_a_path_of_no_length_is_refused(lab: Lab, scope: ActivePath) -> None:
    """At least one node is asked for, and revisions begin with 1."""
    store = await tree(lab)
    await refused(lab, InvalidInputError, store.load_session(scope))


async def test_g2_an_unknown_leaf_is_an_error(lab: Lab) -> None:
    """A leaf that does not exist, or was tombstoned, is not an empty conversation."""
    store = await tree(lab)
    await store.tombstone_nodes(["c"])
    for leaf in ("nowhere", "c"):
        await refused(lab, GraphInvalidError, store.load_session(ActivePath(leaf)))


async def test_g2_one_node_can_be_loaded(lab: Lab) -> None:
    """A node is given by its id exactly as it went in; an unknown or hidden one is None."""
    store = await tree(lab)
    await store.tombstone_nodes(["c"])
    again = await lab.reopen()
    assert await again.load_node("b") == node("b", "a")
    assert await again.load_node("c") is None
    assert await again.load_node("nowhere") is None


async def test_g2_a_path_may_be_deeper_than_any_stack(lab: Lab) -> None:
    """A conversation of 5,000 nodes loads whole on both scopes."""
    store = await lab.store()
    ids = [f"n{at}" for at in range(5000)]
    await change(store, append(*chain(*ids)))
    again = await lab.reopen()
    assert await path(again) == ids
    assert await node_ids(again) == ids


CORRUPTIONS = {
    "one letter is another": "update node set body = replace(body, 'hello', 'hallo') where node_id = 'b'",
    "no JSON": "update node set body = 'garbage' where node_id = 'b'",
    "half a record": "update node set body = substr(body, 1, 20) where node_id = 'b'",
    "another shape": "update node set body = '{\"v\":1,\"node_id\":7}' where node_id = 'b'",
    "a missing parent": "delete from node where node_id = 'b'",
    "another id": "update node set node_id = 'z' where node_id = 'b'",
    "another parent": "update node set parent_seq = 1 where node_id = 'c'",
    "no parent": "update node set parent_seq = null where node_id = 'b'",
    "another place": "update node set seq = 9 where node_id = 'b'",
    "a place before all others": "update node set seq = -9 where node_id = 'c'",
    "two places swapped": (
        "update node set seq = case node_id when 'a' then -2 else -1 end where node_id in ('a', 'b');"
        "update node set seq = -seq where seq < 0"
    ),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
async def test_g3_a_corrupt_graph_is_never_a_shorter_conversation(lab: Lab, name: str) -> None:
    """A node that cannot be read, or whose parent is missing, fails the load on both scopes, and the check finds it."""
    store = await lab.store()
    await turn(store, *chain("a", "b", "c"))
    for statement in CORRUPTIONS[name].split(";"):
        await lab.execute_raw(statement)
    async for handle in lab.handles(store):
        for scope in (FullGraph(), ActivePath(), ActivePath("c")):
            with pytest.raises(GraphInvalidError):
                await handle.load_session(scope)
    report = await lab.check()
    assert report.findings != ()


async def test_g3_what_a_node_follows_is_not_taken_on_trust(lab: Lab) -> None:
    """The end of a path names the node before it, and a single node its parent: another name for it is damage."""
    store = await lab.store()
    await turn(store, *chain("a", "b", "c"))
    await lab.execute_raw("update node set node_id = 'z' where node_id = 'b'")
    async for handle in lab.handles(store):
        with pytest.raises(GraphInvalidError):
            await handle.load_session(ActivePath(last=1))
        with pytest.raises(GraphInvalidError):
            await handle.load_node("c")


async def test_g4_replace_takes_the_place_of_everything(lab: Lab) -> None:
    """After a full replacement only its nodes are there; it may use the replaced ids again."""
    store = await tree(lab)
    graph = SessionGraph((node("b", None, "new b"), node("x", "b")), "x")
    await change(store, ReplaceFull(graph))
    again = await lab.reopen()
    assert await node_ids(again) == ["b", "x"]
    assert await again.load_node("b") == node("b", None, "new b")
    head = some(await again.load_head())
    assert (head.revision, head.leaf_node_id, head.node_count) == (4, "x", 2)
    await lab.assert_sound()


async def test_g4_a_replacement_leaves_a_sound_database_beside_tombstones(lab: Lab) -> None:
    """A tombstoned node whose parent was replaced keeps its id until its vacuum, and the check finds no fault."""
    store = await tree(lab)
    await store.tombstone_nodes(["c"])
    await change(store, ReplaceFull(SessionGraph((node("b"),), "b")))
    await lab.assert_sound()
    lease = await lane(store)
    await refused(lab, NodeIdCollisionError, store.commit_runtime_state(commit(lease, 5, node("c", "b"))))
    assert (await store.vacuum()).removed_node_count == 1
    await store.commit_runtime_state(commit(lease, 5, node("c", "b")))
    await lab.assert_sound()


async def test_g4_a_replacement_stands_on_its_own_nodes(lab: Lab) -> None:
    """Nothing of a replacement may hang on a node that it replaces."""
    store = await tree(lab)
    lease = await lane(store)
    for graph in (SessionGraph((node("x", "a"),), "x"), SessionGraph((node("x"),), "a")):
        await refused(lab, GraphInvalidError, store.commit_runtime_state(commit(lease, 3, graph=ReplaceFull(graph))))
    twice = SessionGraph((node("x"), node("x")), "x")
    await refused(lab, NodeIdCollisionError, store.commit_runtime_state(commit(lease, 3, graph=ReplaceFull(twice))))


async def test_g4_a_replacement_may_be_empty(lab: Lab) -> None:
    """A session can be replaced by nothing, and goes on from no leaf."""
    store = await tree(lab)
    await change(store, ReplaceFull(SessionGraph()))
    await change(store, append(node("a")))
    assert await node_ids(await lab.reopen()) == ["a"]
    await lab.assert_sound()


async def test_g4_append_adds_and_unchanged_moves_the_leaf_at_most(lab: Lab) -> None:
    """An append leaves all stored nodes as they are; without change only the leaf moves."""
    store = await tree(lab)
    before = await lab.dump()
    await change(store, append(node("f", "c")))
    await change(store, Unchanged("b"))
    gone, come = differences(before, await lab.dump())["node"]
    assert (gone, len(come)) == ([], 1)
    again = await lab.reopen()
    assert await path(again) == ["a", "b"]
    assert await node_ids(again) == ["a", "b", "c", "d", "e", "r", "f"]


async def test_g5_tombstoned_nodes_disappear_from_every_read_at_once(lab: Lab) -> None:
    """A hidden branch is in no load and in no count; other branches stay."""
    store = await tree(lab)
    await store.tombstone_nodes(["b", "c"])
    async for handle in lab.handles(store):
        assert await node_ids(handle) == ["a", "d", "e", "r"]
        assert await handle.load_node("b") is None
        head = some(await handle.load_head())
        assert (head.revision, head.leaf_node_id, head.node_count) == (4, "e", 4)
    await lab.assert_sound()


async def test_g5_the_head_moves_to_its_nearest_live_ancestor(lab: Lab) -> None:
    """When the leaf goes, the head stands on the nearest ancestor that is left, and on None when none is."""
    store = await tree(lab)
    await store.tombstone_nodes(["d", "e"])
    assert await path(store) == ["a"]
    await store.tombstone_nodes(["a", "b", "c"])
    head = some(await (await lab.reopen()).load_head())
    assert (head.leaf_node_id, head.revision, head.node_count) == (None, 5, 1)


async def test_g5_a_session_that_stands_on_none_goes_on(lab: Lab) -> None:
    """Where tombstones left the head without a leaf, a commit that does not move it lands, other roots or not."""
    store = await tree(lab)
    await store.tombstone_nodes(["a", "b", "c", "d", "e"])
    await change(store, Unchanged(None))
    await change(store, Unchanged("r"))
    head = some(await (await lab.reopen()).load_head())
    assert (head.leaf_node_id, head.revision, head.node_count) == ("r", 6, 1)


async def test_g5_a_branch_goes_whole(lab: Lab) -> None:
    """A node with a live descendant that is not named in the same call is refused, by name."""
    store = await tree(lab)
    error = await refused(lab, GraphInvalidError, store.tombstone_nodes(["b"]))
    assert error.node_id == "b"
    await refused(lab, GraphInvalidError, store.tombstone_nodes(["a", "b", "d", "e"]))
    await store.tombstone_nodes(["c"])
    await store.tombstone_nodes(["b"])
    assert await node_ids(store) == ["a", "d", "e", "r"]


async def test_g5_unknown_ids_are_ignored(lab: Lab) -> None:
    """Ids that are not there, and a call that hides nothing, change nothing, not even the revision."""
    store = await tree(lab)
    async with lab.unchanged():
        await store.tombstone_nodes(["nowhere"])
        await store.tombstone_nodes([])
    await store.tombstone_nodes(["nowhere", "c"])
    await store.tombstone_nodes(["c"])
    assert await revision(await lab.reopen()) == 4


async def test_g5_a_running_turn_is_told_that_something_was_hidden(lab: Lab) -> None:
    """A call that hides a node advances the revision, so that a turn built on the old graph gets a head conflict."""
    store = await tree(lab)
    lease = await lane(store)
    await store.tombstone_nodes(["c"])
    await refused(lab, HeadRevisionConflictError, store.commit_runtime_state(commit(lease, 3, node("f", "e"))))
    assert (await store.commit_runtime_state(commit(lease, 4, node("f", "e")))).head_revision == 5


async def test_g2_a_message_goes_in_and_comes_out_equal(lab: Lab) -> None:
    """What a message holds, NUL and text outside the basic plane included, is what a load gives."""
    store = await lab.store()
    message = Message("m", "assistant", (TextPart('a\0b \U0001f600 \u2028 \\ " \r\n'),))
    await change(store, append(message_node("a", None, WHEN, message)))
    found = some(await (await lab.reopen()).load_node("a"))
    assert found.message == message
