"""The laws of frames: what they refer to, what they keep, and how the turn hash sees them (G1, A3, M1, C3, C9)."""

from __future__ import annotations

from fastness.conformance.builders import checkpoint, commit, lane, loaded, node, some, turn
from fastness.conformance.lab import Lab, refused
from fastness.errors import GraphInvalidError, TurnCommitConflictError, UnknownBlobRefError
from fastness.model import (
    AgentFrameRecord,
    BlobRef,
    GcReport,
    RuntimeCommit,
    RuntimePersistence,
    SessionCheckpoint,
)

NOW = "2026-01-01T00:00:00Z"


def frame(frame_id: str, ref: BlobRef | None = None, reason: str = "initial") -> AgentFrameRecord:
    """A frame that started from a checkpoint."""
    return AgentFrameRecord(frame_id, NOW, reason, checkpoint_ref=ref)


async def held_tools(store: RuntimePersistence) -> BlobRef:
    """The tool state that the head's checkpoint refers to, by name."""
    result = await turn(store, checkpoint=checkpoint(2, tool_state=b"tools"))
    assert isinstance(result.manifest, SessionCheckpoint)
    assert result.manifest.tool_state is not None
    return result.manifest.tool_state


async def test_g1_a_node_names_a_frame_that_is_there(lab: Lab) -> None:
    """Nodes, the current frame and a frame's predecessor must be stored or come along."""
    store = await lab.store()
    lease = await lane(store)
    for fields in (
        {"graph": None},
        {"current_agent_frame_id": "nowhere"},
        {"agent_frames": (AgentFrameRecord("f", NOW, previous_frame_id="nowhere"),)},
    ):
        nodes = () if "graph" not in fields else (node("a", frame="nowhere"),)
        attempt = commit(lease, None, *nodes, **{name: value for name, value in fields.items() if value is not None})
        error = await refused(lab, GraphInvalidError, store.commit_runtime_state(attempt))
        assert (error.fault, error.node_id) == ("unknown_frame", "nowhere")


async def test_g2_frames_are_loaded_in_the_order_they_started(lab: Lab) -> None:
    """The order is that of the commits, and within a commit that of the commit; a change does not move a frame."""
    store = await lab.store()
    await turn(store, agent_frames=(frame("z"), frame("a")), current_agent_frame_id="z")
    await turn(store, agent_frames=(frame("m"), frame("a", reason="renamed")), current_agent_frame_id="m")
    async for handle in lab.handles(store):
        read = await loaded(handle)
        assert [(one.frame_id, one.reason) for one in read.head.agent_frames] == [
            ("z", "initial"),
            ("a", "renamed"),
            ("m", "initial"),
        ]
        assert read.head.meta.current_agent_frame_id == "m"


async def test_m1_a_frame_keeps_the_checkpoint_it_started_from(lab: Lab) -> None:
    """The blobs stay while the frame names them, whatever the head moves on to, and go when it does not any more."""
    store = await lab.store()
    first = await turn(store, checkpoint=checkpoint(1, tool_state=b"old tools"))
    await turn(store, agent_frames=(frame("f", first.checkpoint_ref),))
    await turn(store, checkpoint=checkpoint(2, tool_state=b"new tools"))
    assert await store.gc_unreachable() == GcReport(2, 4, 0)
    await turn(store, agent_frames=(frame("f", first.checkpoint_ref, "renamed"),))
    assert await store.gc_unreachable() == GcReport(2, 4, 0)
    await turn(store, agent_frames=(frame("f"),))
    report = await store.gc_unreachable()
    assert (report.root_count, report.retained_blob_count, report.deleted_blob_count) == (1, 2, 2)
    assert (await lab.check()).findings == ()


async def test_m1_superseded_checkpoints_of_a_frame_are_collected(lab: Lab) -> None:
    """A frame that moves on with the head holds one checkpoint, not all it ever had."""
    store = await lab.store()
    for at in range(5):
        result = await turn(store, checkpoint=checkpoint(at, tool_state=b"tools %d" % at))
        await turn(store, agent_frames=(frame("f", result.checkpoint_ref),))
    report = await store.gc_unreachable()
    assert (report.retained_blob_count, report.deleted_blob_count) == (2, 8)


async def test_a3_a_frame_names_a_checkpoint_of_its_own_session(lab: Lab) -> None:
    """This commit's, the head's, or the one it named before: any other blob is refused, a part of a checkpoint too."""
    store = await lab.store()
    tools = await held_tools(store)
    other = await lab.store("other")
    foreign = await turn(other, session_id="other", checkpoint=checkpoint(9, tool_state=b"theirs"))
    head = some(await store.load_head())
    await turn(store, agent_frames=(frame("f", head.checkpoint_ref),))
    lease = await lane(store)
    for ref in (tools, foreign.checkpoint_ref):
        assert ref is not None
        attempt = commit(lease, 2, agent_frames=(frame("f", ref),))
        error = await refused(lab, UnknownBlobRefError, store.commit_runtime_state(attempt))
        assert error.blob_ref == ref.sha256
    assert (await store.gc_unreachable()).deleted_blob_count == 0


async def test_c3_a_change_of_another_frame_is_no_replay(lab: Lab) -> None:
    """The same turn id with a change of another existing frame is a conflict; new frames count by their order."""
    store = await lab.store()
    await turn(store, node("a"), agent_frames=(frame("f1"), frame("f2")), current_agent_frame_id="f1")
    lease = await lane(store)
    one = commit(lease, 1, node("b", "a"), agent_frames=(frame("f1", reason="compacted"),)).with_turn_commit("t")
    two = commit(lease, 1, node("b", "a"), agent_frames=(frame("f2", reason="compacted"),)).with_turn_commit("t")
    await store.commit_runtime_state(one)
    await refused(lab, TurnCommitConflictError, store.commit_runtime_state(two))
    assert (await store.commit_runtime_state(one)).replayed is True

    def compacting(frame_id: str) -> RuntimeCommit:
        """A turn that starts a frame under an id of its own minting."""
        frames = (frame(frame_id),)
        nodes = (node("c", "b", frame=frame_id),)
        return commit(lease, 2, *nodes, agent_frames=frames, current_agent_frame_id=frame_id).with_turn_commit("u")

    await store.commit_runtime_state(compacting("minted"))
    assert (await store.commit_runtime_state(compacting("minted anew"))).replayed is True
