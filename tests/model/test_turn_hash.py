"""The law of the turn hash (C9), as properties: what must not change it, and what must."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastness.conformance.builders import checkpoint, node, said, usage, work
from fastness.model import (
    AgentFrameRecord,
    Append,
    BlobRef,
    GenericPart,
    HydratedSessionCheckpoint,
    LeaseOwnerIdentity,
    Message,
    MessageOrigin,
    PersistedSessionConfig,
    PersistedTurnState,
    QueuedWorkCompletion,
    RuntimeCommit,
    SessionExecutionLeaseCompletion,
    SessionExecutionLeaseFence,
    SessionNodeRecord,
    TextPart,
    TokenUsage,
    ToolCallPart,
    TurnInputCompletion,
    Unchanged,
    message_node,
)

ids = st.text(st.characters(categories=("Lu", "Ll", "Nd")), min_size=1, max_size=6)


def turn_of(names: list[str], times: str = "2024-01-01T00:00:00Z", after: str | None = "old") -> RuntimeCommit:
    """A turn of three messages in a chain and one frame, under the given new ids."""
    first, second, third, frame = names[:4]
    nodes = []
    for at, (name, above) in enumerate(((first, after), (second, first), (third, second))):
        message = Message(f"msg-{name}", "assistant", (TextPart(f"text {at}"),))
        nodes.append(message_node(name, above, times, message, caused_by=above, agent_frame_id=frame))
    return RuntimeCommit(
        "s",
        3,
        config=PersistedSessionConfig("openai", "gpt"),
        agent_frames=(AgentFrameRecord(frame, times, "compaction"),),
        current_agent_frame_id=frame,
        graph=Append(tuple(nodes), third),
        checkpoint=checkpoint(2, tool_state=b"tools"),
        usage_deltas=(usage(1, 2, 3, 4, 5),),
        completed_queue_claims=(QueuedWorkCompletion("s", "claim", 1, ("b1", "b2")),),
        completed_turn_input_claims=(TurnInputCompletion("s", "claim", 1, ("i1", "i2")),),
        interrupted_turn_input_turn_id="t0",
        committed_attachment_ids=("att",),
    ).with_outbox(said("later"), work())


BASE = turn_of(["n1", "n2", "n3", "f1"])


@given(st.lists(ids.map("new-".__add__), min_size=4, max_size=4, unique=True), st.datetimes())
def test_c9_ids_that_the_commit_introduces_and_times_do_not_count(names: list[str], when: Any) -> None:
    """The same turn under other ids of nodes, messages and frames, at other times, has the same hash."""
    assert turn_of(names, when.isoformat() + "Z").turn_commit_hash() == BASE.turn_commit_hash()


@given(st.none() | st.integers(0, 2**63 - 1), ids, ids, st.integers(1, 2**63 - 1))
def test_c9_revision_lease_release_stamp_and_claim_tokens_do_not_count(
    on: int | None, name: str, token: str, number: int
) -> None:
    """How a commit is sent, under which lease, claim ids and tokens, is not what it means."""
    holder = LeaseOwnerIdentity(name, token)
    sent = msgspec.structs.replace(
        BASE,
        expected_head_revision=on,
        session_execution_lease=SessionExecutionLeaseFence("s", holder, token, number),
        release_session_execution_lease=SessionExecutionLeaseCompletion("s", holder, token, number),
        completed_queue_claims=(QueuedWorkCompletion("s", name, number, ("b1", "b2")),),
        completed_turn_input_claims=(TurnInputCompletion("s", name, number, ("i1", "i2")),),
    )
    assert sent.turn_commit_hash() == BASE.turn_commit_hash()
    assert sent.with_turn_commit(name).turn_commit_hash() == BASE.turn_commit_hash()


def change(**fields: Any) -> Callable[[RuntimeCommit], RuntimeCommit]:
    """A change of fields of the commit."""
    return lambda commit: msgspec.structs.replace(commit, **fields)


def third(**fields: Any) -> Callable[[RuntimeCommit], RuntimeCommit]:
    """A change of fields of the last node."""

    def apply(commit: RuntimeCommit) -> RuntimeCommit:
        assert isinstance(commit.graph, Append)
        nodes = commit.graph.nodes
        changed = msgspec.structs.replace(nodes[2], **fields)
        return msgspec.structs.replace(commit, graph=Append((*nodes[:2], changed), commit.graph.leaf_node_id))

    return apply


def said_by(role: Any = "assistant", *parts: Any, **fields: Any) -> Any:
    """The payload of a message with these parts."""
    return message_node("x", None, "t", Message("msg", role, parts or (TextPart("text 2"),), **fields)).payload


def call(arguments: bytes) -> ToolCallPart:
    """A tool call with these very bytes as arguments."""
    return ToolCallPart("search", msgspec.Raw(arguments), "call-1")


MEANINGS: dict[str, Callable[[RuntimeCommit], RuntimeCommit]] = {
    "session": change(session_id="other"),
    "config": change(config=PersistedSessionConfig("openai", "gpt-5")),
    "no config": change(config=None),
    "current frame": change(current_agent_frame_id="an older frame"),
    "frame reason": change(agent_frames=(AgentFrameRecord("f1", "t", "assignment"),)),
    "frame body": change(agent_frames=(AgentFrameRecord("f1", "t", "compaction", body=msgspec.Raw(b"1")),)),
    "frame predecessor": change(agent_frames=(AgentFrameRecord("f1", "t", "compaction", "f0"),)),
    "frame checkpoint": change(agent_frames=(AgentFrameRecord("f1", "t", "compaction", None, BlobRef("0" * 64)),)),
    "branch point": lambda _: turn_of(["n1", "n2", "n3", "f1"], after="another old node"),
    "root": lambda _: turn_of(["n1", "n2", "n3", "f1"], after=None),
    "parent among the new": third(parent_node_id="n1"),
    "leaf among the new": lambda commit: change(graph=Append(commit.graph.nodes, "n2"))(commit),  # type: ignore[union-attr]
    "leaf that exists": lambda commit: change(graph=Append(commit.graph.nodes, "old"))(commit),  # type: ignore[union-attr]
    "switch of branch": change(graph=Unchanged("old")),
    "switch to another branch": change(graph=Unchanged("other old")),
    "cause": third(caused_by="a call"),
    "frame of a node": third(agent_frame_id=None),
    "role": third(payload=said_by("user")),
    "text": third(payload=said_by("assistant", TextPart("other text"))),
    "a part more": third(payload=said_by("assistant", TextPart("text 2"), TextPart(""))),
    "origin": third(payload=said_by(origin=MessageOrigin("turn_input", "i1"))),
    "arguments": third(payload=said_by("assistant", call(b'{"q":1}'))),
    "bytes of arguments": third(payload=said_by("assistant", call(b'{"q": 1}'))),
    "order of keys in arguments": third(payload=said_by("assistant", call(b'{"q":1,"r":2}'))),
    "another order of keys": third(payload=said_by("assistant", call(b'{"r":2,"q":1}'))),
    "a number written otherwise": third(payload=said_by("assistant", call(b'{"q":1e0}'))),
    "a part of unknown type": third(payload=said_by("assistant", GenericPart("x", msgspec.Raw(b"{}")))),
    "the user's own key id": third(payload=said_by("assistant", GenericPart("x", msgspec.Raw(b'{"id":1}')))),
    "the user's own key timestamp": third(
        payload=said_by("assistant", GenericPart("x", msgspec.Raw(b'{"timestamp":1}')))
    ),
    "no checkpoint": change(checkpoint=None),
    "turn index": change(checkpoint=checkpoint(3, tool_state=b"tools")),
    "tool state": change(checkpoint=checkpoint(2, tool_state=b"other")),
    "which part a state is": change(checkpoint=checkpoint(2, plugin_snapshot=b"tools")),
    "turn options": change(
        checkpoint=HydratedSessionCheckpoint(PersistedTurnState(2, TokenUsage(), None, msgspec.Raw(b"{}")), b"tools")
    ),
    "usage": change(usage_deltas=(usage(1, 2, 3, 4, 6),)),
    "usage of another model": change(usage_deltas=(usage(1, 2, 3, 4, 5, model="n"),)),
    "no usage": change(usage_deltas=()),
    "completed batches": change(completed_queue_claims=(QueuedWorkCompletion("s", "claim", 1, ("b1", "b3")),)),
    "no completed batches": change(completed_queue_claims=()),
    "completed input": change(completed_turn_input_claims=(TurnInputCompletion("s", "claim", 1, ("i1", "i3")),)),
    "no completed input": change(completed_turn_input_claims=()),
    "interrupted turn": change(interrupted_turn_input_turn_id="t9"),
    "no interrupted turn": change(interrupted_turn_input_turn_id=None),
    "attachments": change(committed_attachment_ids=("att", "more")),
    "outbox": change(outbox=()),
}
"""Changes that a user could notice; every pair of them differs in meaning, too."""


@pytest.mark.parametrize("name", MEANINGS)
def test_c9_whatever_a_user_could_notice_counts(name: str) -> None:
    """A turn that means something else has another hash."""
    assert MEANINGS[name](BASE).turn_commit_hash() != BASE.turn_commit_hash(), name


def test_c9_different_meanings_differ_from_each_other() -> None:
    """No two of the changed turns share a hash."""
    hashes: dict[str, str] = {}
    for name, apply in MEANINGS.items():
        other = hashes.setdefault(apply(BASE).turn_commit_hash(), name)
        assert other == name, f"{name!r} and {other!r} have one hash"


@given(st.lists(st.text(max_size=8), max_size=4), st.lists(st.text(max_size=8), max_size=4))
def test_c9_texts_are_told_apart(one: list[str], other: list[str]) -> None:
    """Two turns have one hash exactly when they say the same messages."""

    def hash_of(said_texts: list[str]) -> str:
        nodes: list[SessionNodeRecord] = []
        for at, text in enumerate(said_texts):
            nodes.append(node(f"n{at}", nodes[-1].node_id if nodes else None, text))
        leaf = nodes[-1].node_id if nodes else None
        return RuntimeCommit("s", None, graph=Append(tuple(nodes), leaf)).turn_commit_hash()

    assert (hash_of(one) == hash_of(other)) == (one == other)


def test_c9_content_and_a_reference_to_the_same_content_mean_the_same() -> None:
    """Carrying a part of the checkpoint by its content hash changes nothing."""
    ref = BlobRef("ad0f63a30f3e29e9b40df51a0daaf63efdcf40d44ab77ec10dfbc2fcb2a4b9f3")
    sent = change(checkpoint=checkpoint(2, tool_state=b"x"))(BASE).turn_commit_hash()
    known = BlobRef("2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881")
    assert change(checkpoint=checkpoint(2, tool_state=known))(BASE).turn_commit_hash() == sent
    assert change(checkpoint=checkpoint(2, tool_state=ref))(BASE).turn_commit_hash() != sent


def test_c9_an_ordinal_is_not_mistaken_for_an_id() -> None:
    """A leaf that is an existing node called like an ordinal is not the new node of that ordinal."""
    nodes = (node("new", None),)
    on_new = RuntimeCommit("s", None, graph=Append(nodes, "new")).turn_commit_hash()
    on_old = RuntimeCommit("s", None, graph=Append(nodes, "0")).turn_commit_hash()
    assert on_new != on_old


def test_c9_an_input_id_in_the_outbox_is_one_that_the_commit_introduces() -> None:
    """It may be minted anew by a second run; the source key and the content are what counts."""
    empty = RuntimeCommit("s", 3)
    one = empty.with_outbox(said("later", key="k", input_id="minted")).turn_commit_hash()
    assert empty.with_outbox(said("later", key="k", input_id="minted anew")).turn_commit_hash() == one
    assert empty.with_outbox(said("later", key="other", input_id="minted")).turn_commit_hash() != one
    assert empty.with_outbox(said("sooner", key="k", input_id="minted")).turn_commit_hash() != one
