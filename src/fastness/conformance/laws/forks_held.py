"""The laws of what a fork holds, and of what is refused (F2 to F4)."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import msgspec
import pytest

from fastness.conformance.builders import (
    WHEN,
    append,
    checkpoint,
    commit,
    content_id,
    intent,
    lane,
    loaded,
    node,
    node_ids,
    said,
    some,
    turn,
)
from fastness.conformance.lab import Lab, refused
from fastness.conformance.laws.forks import branched, fork
from fastness.errors import (
    GraphInvalidError,
    InvalidInputError,
    RevisionNotReadableError,
    SessionIdTakenError,
    SessionNotFoundError,
    StoreError,
)
from fastness.model import (
    ActivePath,
    AgentFrameRecord,
    Child,
    ReplaceFull,
    SessionGraph,
    SessionMeta,
    Unchanged,
)


async def test_f2_no_collection_takes_what_a_fork_began_with(lab: Lab) -> None:
    """Not when the source has moved on, not when it is deleted; and both go when the fork goes."""
    store = await branched(lab)
    made = await fork(lab, at_revision=2)
    expected = await loaded(made)
    await turn(store, checkpoint=checkpoint(5))
    await store.gc_unreachable()
    await lab.assert_sound()
    assert await loaded(made) == expected
    await lab.factory.delete_session("s")
    await store_of_nobody(lab)
    assert await loaded(await lab.reopen("f")) == expected
    assert expected.checkpoint == checkpoint(2, tool_state=b"two", execution_state=b"x")
    await lab.assert_sound()
    await lab.factory.delete_session("f")
    assert (await (await lab.store("other")).gc_unreachable()).retained_blob_count == 0


async def store_of_nobody(lab: Lab) -> None:
    """Collect through a session that has nothing to do with it."""
    await (await lab.store("other")).gc_unreachable()


async def test_f2_the_frames_of_the_path_come_along_with_their_checkpoints(lab: Lab) -> None:
    """Those that the path names and those before them, in their order; the frames of other branches do not."""
    store = await lab.store()
    await turn(store, node("a"), agent_frames=(AgentFrameRecord("zero", WHEN),), current_agent_frame_id="zero")
    base = await turn(store, checkpoint=checkpoint(1, tool_state=b"base"), graph=Unchanged("a"))
    frame = AgentFrameRecord("one", WHEN, previous_frame_id="zero", checkpoint_ref=base.checkpoint_ref)
    await turn(store, node("b", "a", frame="one"), agent_frames=(frame,), current_agent_frame_id="one")
    await turn(store, checkpoint=checkpoint(2, tool_state=b"two"))
    other = AgentFrameRecord("elsewhere", WHEN)
    await turn(store, node("c", "a", frame="elsewhere"), agent_frames=(other,), current_agent_frame_id="elsewhere")
    made = await fork(lab, at_node_id="b")
    await lab.assert_sound()
    await lab.factory.delete_session("s")
    await made.gc_unreachable()
    head = (await loaded(await lab.reopen("f"))).head
    assert head.agent_frames == (AgentFrameRecord("zero", WHEN), frame)
    assert head.meta.current_agent_frame_id == "one"
    left = await lab.execute_raw("select count(*) from blob where body in ($1, $2)", b"base", b"two")
    assert left == [(2,)]
    await lab.assert_sound()


async def test_f2_frames_that_follow_stand_behind_those_that_came_along(lab: Lab) -> None:
    """Also where the source had been through many revisions before its frames came."""
    store = await lab.store()
    await turn(store, node("a"))
    await turn(store, node("b", "a"))
    frames = (AgentFrameRecord("z", WHEN), AgentFrameRecord("y", WHEN, previous_frame_id="z"))
    await turn(store, node("c", "b", frame="y"), agent_frames=frames, current_agent_frame_id="y")
    made = await fork(lab)
    await turn(made, node("d", "c", frame="x"), session_id="f", agent_frames=(AgentFrameRecord("x", WHEN),))
    assert [one.frame_id for one in (await loaded(made)).head.agent_frames] == ["z", "y", "x"]
    began = some(await lab.history().load_session_at("f", 1))
    assert [one.frame_id for one in began.head.agent_frames] == ["z", "y"]


async def test_f2_a_fork_beside_collections_is_whole_or_refused(lab: Lab) -> None:
    """Of a revision whose checkpoint is being collected it has either the checkpoint or the typed error."""
    store = await lab.store()
    for number in range(1, 21):
        await turn(store, node(f"n{number}"), checkpoint=checkpoint(number, tool_state=b"tools %d" % number))
    history = lab.history()
    made: list[int] = []

    async def forks() -> None:
        """Fork at every revision of the past."""
        for number in range(1, 20):
            try:
                await history.fork_session("s", f"f{number}", at_revision=number)
            except RevisionNotReadableError as error:
                assert error.reason == "checkpoint"  # noqa: PT017 - either outcome is right
            else:
                made.append(number)

    async def sweeps() -> None:
        """Keep fewer and fewer revisions."""
        for keep in range(20, 0, -1):
            await store.gc_unreachable(keep_revisions=keep)

    await asyncio.gather(forks(), sweeps())
    for number in made:
        read = await loaded(await lab.store(f"f{number}"))
        assert read.checkpoint == checkpoint(number, tool_state=b"tools %d" % number)
    await lab.assert_sound()


async def test_f3_a_fork_holds_the_attachments_that_its_path_mentions(lab: Lab) -> None:
    """In a message, or escaped in the JSON of others; no intent, and nothing that only another branch mentions."""
    store = await lab.store()
    ids = {name: content_id(name) for name in ("named", "escaped", "beside", "intent", "unnamed")}
    for each in ids.values():
        await store.record_intent(intent(each))
    committed = tuple(each for name, each in ids.items() if name != "intent")
    escaped = msgspec.Raw(b'{"ref":"%b"}' % "".join(f"\\u{ord(each):04x}" for each in ids["escaped"]).encode())
    frame = AgentFrameRecord("frame", WHEN, body=escaped)
    mentions = f"see attachment:{ids['named']} and {ids['intent']}, but {ids['unnamed']}0 is longer"
    await turn(
        store,
        node("a", text=mentions, frame="frame"),
        agent_frames=(frame,),
        current_agent_frame_id="frame",
        committed_attachment_ids=committed,
    )
    await turn(store, node("b", "a", ids["beside"]))
    made = await fork(lab, at_node_id="a")
    async for handle in lab.handles(made, "f"):
        held = {name: await handle.holds_ref("f", each) for name, each in ids.items()}
        assert held == {"named": True, "escaped": True, "beside": False, "intent": False, "unnamed": False}
        entry = some(await handle.find_attachment("f", ids["named"]))
        assert (entry.state, some(entry.reference).name) == ("committed", "a.png")
    await lab.assert_sound()


async def test_f3_what_a_fork_holds_is_kept_when_its_source_lets_go(lab: Lab) -> None:
    """No sweep is granted content that a fork refers to, whatever becomes of the source."""
    store = await lab.store()
    kept, gone = content_id("kept"), content_id("gone")
    for each in (kept, gone):
        await store.record_intent(intent(each))
    await turn(store, node("a", text=f"[{kept}]"), committed_attachment_ids=(kept, gone))
    made = await fork(lab)
    await lab.factory.delete_session("s")
    grant = await made.begin_reclaim([kept, gone], older_than_epoch_ms=2**62)
    assert grant.attachment_ids == (gone,)
    assert await made.holds_ref("f", kept)


async def test_f4_what_is_not_there_is_refused(lab: Lab) -> None:
    """By a typed error that names it, and nothing of the new session is left."""
    store = await branched(lab)
    await turn(store, node("x", "e"))
    await turn(store, graph=Unchanged("e"))
    await store.tombstone_nodes(["x"])
    await lab.store("empty")
    gone = await lab.store("gone")
    await turn(gone, node("a"), session_id="gone")
    await lab.factory.delete_session("gone")
    history = lab.history()
    cases: list[tuple[type[StoreError], str, dict[str, Any]]] = [
        (SessionNotFoundError, "nobody", {}),
        (SessionNotFoundError, "gone", {}),
        (RevisionNotReadableError, "empty", {}),
        (RevisionNotReadableError, "s", {"at_revision": 99}),
        (RevisionNotReadableError, "s", {"at_revision": 5}),
        (GraphInvalidError, "s", {"at_node_id": "nowhere"}),
        (GraphInvalidError, "s", {"at_node_id": "x"}),
        (InvalidInputError, "s", {"at_node_id": "a", "at_revision": 1}),
        (InvalidInputError, "s", {"at_revision": 0}),
        (InvalidInputError, "s", {"name": "\ud800"}),
        (InvalidInputError, "", {}),
    ]
    for error, source, where in cases:
        await refused(lab, error, history.fork_session(source, "f", **where))
    await refused(lab, InvalidInputError, history.fork_session("s", ""))


async def test_f4_an_id_that_is_taken_is_refused(lab: Lab) -> None:
    """By the source itself, by a session without a transcript, by one that only has input. A deleted one's is free."""
    store = await branched(lab)
    await lab.store("other")
    await store.enqueue_pending_turn_input(said("hello", session_id="enqueued"))
    history = lab.history()
    for taken in ("s", "other", "enqueued"):
        error = await refused(lab, SessionIdTakenError, history.fork_session("s", taken))
        assert error.session_id == taken
    old = await fork(lab)
    await lab.factory.delete_session("f")
    assert await node_ids(await fork(lab, at_node_id="a")) == ["a"]
    with pytest.raises(StoreError, match="was deleted"):
        await old.load_session(ActivePath())


async def test_f4_a_revision_whose_checkpoint_was_collected_is_refused_and_its_node_is_not(lab: Lab) -> None:
    """A fork at the node begins without a checkpoint, which the caller asked for; one at the revision would lie."""
    store = await branched(lab)
    await store.gc_unreachable()
    error = await refused(lab, RevisionNotReadableError, lab.history().fork_session("s", "f", at_revision=2))
    assert (error.reason, error.revision) == ("checkpoint", 2)
    assert (await loaded(await fork(lab, at_node_id="c"))).checkpoint is None
    await lab.assert_sound()


async def test_f4_a_replaced_node_of_the_same_id_is_another_one(lab: Lab) -> None:
    """At the old revision its transcript is gone; at the node, the checkpoint of the old one does not count."""
    store = await lab.store()
    await turn(store, node("a", text="old"), checkpoint=checkpoint(1, tool_state=b"old"))
    new = (node("a", text="new"), node("b", "a"))
    await turn(store, graph=ReplaceFull(SessionGraph(new, "b")), checkpoint=checkpoint(2, tool_state=b"new"))
    error = await refused(lab, RevisionNotReadableError, lab.history().fork_session("s", "f", at_revision=1))
    assert error.reason == "transcript"
    read = await loaded(await fork(lab, at_node_id="a"))
    assert ([some(one.message).text for one in read.graph.nodes], read.checkpoint) == (["new"], None)


async def test_f4_of_forks_that_race_for_an_id_one_wins(lab: Lab) -> None:
    """From two processes and of two sources; the others are told that it is taken, and leave nothing."""
    await branched(lab)
    other = await lab.store("other")
    await turn(other, node("o"), session_id="other")
    histories = (lab.history(), lab.history(await lab.second()))
    done = await asyncio.gather(
        *(histories[at % 2].fork_session(("s", "other")[at % 3 == 0], "f") for at in range(10)), return_exceptions=True
    )
    won = [one for one in done if isinstance(one, SessionMeta)]
    assert [type(one) for one in done if not isinstance(one, SessionMeta)] == [SessionIdTakenError] * 9
    source = {Child("s", "e"): ["a", "d", "e"], Child("other", "o"): ["o"]}
    assert await node_ids(await lab.store("f")) == source[won[0].relation]  # type: ignore[index]
    await lab.assert_sound()


async def test_f4_forks_and_commits_that_write_to_each_other_come_to_an_end(lab: Lab) -> None:
    """Locks are taken in one order: a fork never waits for somebody who waits for it."""
    stores = {name: await lab.store(name) for name in ("b", "y")}
    for name, store in stores.items():
        await turn(store, node("n0"), session_id=name)
    history = lab.history(await lab.second())

    async def turns(name: str, to: str) -> None:
        """Settle turns that send mail to the other session, and to those that are being forked."""
        for number in range(1, 11):
            added = append(node(f"n{number}", f"n{number - 1}"))
            mail = (
                said("mail", session_id=to),
                said("mail", session_id=f"a{number}"),
                said("m", session_id=f"z{number}"),
            )
            lease = await lane(stores[name], session_id=name)
            letter = commit(lease, number, graph=added).with_outbox(*mail)
            await stores[name].commit_runtime_state(letter.releasing_session_execution_lease(lease.completion()))

    async def forks(source: str) -> None:
        """Fork under the same names, as far as nobody was there first."""
        for number in range(1, 11):
            for new in (f"a{number}", f"z{number}"):
                with suppress(SessionIdTakenError):
                    await history.fork_session(source, new)

    await asyncio.gather(turns("b", "y"), turns("y", "b"), forks("b"), forks("y"))
    assert [len(await node_ids(store)) for store in stores.values()] == [11, 11]
    await lab.assert_sound()
