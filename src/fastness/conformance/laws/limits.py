"""The law of limits (B1): what is accepted works, what is refused leaves no trace."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from fastness.conformance.builders import (
    TTL_MS,
    WHEN,
    append,
    chain,
    checkpoint,
    claim_inputs,
    command,
    commit,
    content_id,
    intent,
    lane,
    loaded,
    node,
    said,
    said_now,
    some,
    task,
    texts,
    turn,
    usage,
    work,
)
from fastness.conformance.lab import Lab, refused
from fastness.errors import InvalidInputError
from fastness.model import (
    AgentFrameRecord,
    AttachmentIntent,
    AttachmentRef,
    ByInputId,
    BySourceKey,
    HydratedSessionCheckpoint,
    LeaseOwnerIdentity,
    Message,
    NextTurn,
    PendingTurnInputDraft,
    PersistedSessionConfig,
    PersistedTurnState,
    RuntimePersistence,
    SessionExecutionLease,
    SessionMeta,
    SessionNodeRecord,
    SessionStoreCreateRequest,
    StructuredItem,
    Task,
    TextPart,
    TokenUsage,
    ToolCallPart,
    TurnInput,
    message_node,
    raw_json,
)

MAX = 2**63 - 1
BAD_IDS = {"NUL": "a\0b", "too long": "x" * 513, "too many bytes": "é" * 257, "lone surrogate": "\ud800", "empty": ""}


async def test_b1_text_may_contain_nul_and_anything_that_is_unicode(lab: Lab) -> None:
    """NUL inside messages, items, payloads and foreign JSON goes in and comes out as it was."""
    store = await lab.store()
    odd = "a\0b\U0010ffff\u2028"
    parts = (TextPart(odd), ToolCallPart("f", raw_json({odd: odd}), "1"))
    await turn(store, message_node("n", None, WHEN, Message("m", "assistant", parts)))
    await store.enqueue_pending_turn_input(said(odd))
    await store.enqueue_queued_work(work(Task("k", raw_json(odd))))
    again = await lab.reopen()
    found = some(await again.load_node("n"))
    assert found.message == Message("m", "assistant", parts)
    assert texts(await again.list_pending_turn_inputs("s")) == [odd]
    assert (await again.list_queued_work("s"))[0].items[0].payload == Task("k", raw_json(odd))


async def test_b1_ids_may_have_512_bytes_and_any_letters(lab: Lab) -> None:
    """An id of exactly 512 bytes works everywhere that an id is, as does one that looks like SQL."""
    for session_id in ("x" * 512, "é" * 256, "'; drop table node; --", "%_$1 \u2028/.."):
        store = await lab.store(session_id)
        message = Message(session_id, "user", (TextPart("hi"),))
        await turn(store, message_node(session_id, None, WHEN, message), session_id=session_id)
        await store.enqueue_pending_turn_input(said("hi", session_id=session_id, key=session_id, input_id=session_id))
        again = await lab.reopen(session_id)
        assert await again.load_node(session_id) == message_node(session_id, None, WHEN, message)
        assert texts(await again.list_pending_turn_inputs(session_id)) == ["hi"]
    await lab.assert_sound()


async def test_b1_a_message_of_4_mb_is_fine(lab: Lab) -> None:
    """A message of four megabytes is committed and loaded equal."""
    store = await lab.store()
    text = "0123456789abcdef" * (4 * 1024 * 1024 // 16)
    await turn(store, node("big", None, text))
    found = some(await (await lab.reopen()).load_node("big"))
    assert found.message is not None
    assert found.message.text == text


async def test_b1_ten_thousand_pending_rows_are_fine(lab: Lab) -> None:
    """A row behind 10,000 others is listed, and found by a claim in front of which they are all held."""
    store = await lab.store()
    lease = await lane(store, ttl_ms=1_000_000)
    drafts = [said(str(at)) for at in range(10_000)]
    await store.commit_runtime_state(commit(lease, None, *chain("a")).with_outbox(*drafts))
    assert len(await store.list_pending_turn_inputs("s")) == 10_000
    claim = await claim_inputs(store, lease, 10_000)
    assert texts(claim.inputs) == [str(at) for at in range(10_000)]
    await store.enqueue_pending_turn_input(said("behind"))
    behind = await claim_inputs(store, lease)
    assert texts(behind.inputs) == ["behind"]
    done = commit(lease, 1, node("b", "a")).completing_turn_input_claims((claim, behind))
    await store.commit_runtime_state(done)
    assert await (await lab.reopen()).list_pending_turn_inputs("s") == []


async def test_b1_any_63_bit_number_is_fine(lab: Lab) -> None:
    """The greatest number is kept exactly, as a counter, a time and a limit."""
    store = await lab.store()
    await turn(
        store,
        *chain("a"),
        usage_deltas=(usage(MAX, 0, 1),),
        checkpoint=HydratedSessionCheckpoint(PersistedTurnState(MAX, TokenUsage(MAX))),
    )
    await store.enqueue_queued_work(work(at_ms=MAX))
    again = await lab.reopen()
    read = await loaded(again)
    assert read.head.ledger == (usage(MAX, 0, 1),)
    assert read.checkpoint == HydratedSessionCheckpoint(PersistedTurnState(MAX, TokenUsage(MAX)))
    assert (await again.list_queued_work("s"))[0].available_at_ms == MAX
    lease = await lane(again)
    assert await again.claim_next_turn_inputs("s", lease.fence(), max_inputs=MAX) is None
    assert await again.claim_ready_queued_work("s", lease.fence(), boundary="idle", max_batches=MAX) is None


async def test_b1_usage_never_wraps(lab: Lab) -> None:
    """A total beyond 63 bits is refused, and the total stays what it was."""
    store = await lab.store()
    await turn(store, usage_deltas=(usage(0, 0, 0, 0, MAX),))
    lease = await lane(store)
    for deltas in ((usage(0, 0, 0, 0, 1),), (usage(MAX, source="x"), usage(1, source="x"))):
        await refused(lab, InvalidInputError, store.commit_runtime_state(commit(lease, 1, usage_deltas=deltas)))


async def test_b1_a_lease_may_not_outlive_the_numbers(lab: Lab) -> None:
    """A time to live whose end would be beyond 63 bits, or that is not positive, is refused."""
    store = await lab.store()
    for ttl_ms in (MAX, 0, -1):
        who = LeaseOwnerIdentity("o", "1")
        await refused(lab, InvalidInputError, store.try_claim_session_execution_lease("s", who, ttl_ms))


Call = Callable[[RuntimePersistence, SessionExecutionLease, str], Awaitable[object]]


def committing(**fields: Any) -> Callable[[RuntimePersistence, SessionExecutionLease], Awaitable[object]]:
    """A commit with these fields."""
    return lambda store, lease: store.commit_runtime_state(commit(lease, None, **fields))


IDS: dict[str, Call] = {
    "node id": lambda store, lease, bad: committing(graph=append(node(bad)))(store, lease),
    "parent": lambda store, lease, bad: committing(graph=append(node("a", bad)))(store, lease),
    "message id": lambda store, lease, bad: committing(
        graph=append(message_node("a", None, WHEN, Message(bad, "user", ())))
    )(store, lease),
    "cause": lambda store, lease, bad: committing(graph=append(msgspec.structs.replace(node("a"), caused_by=bad)))(
        store, lease
    ),
    "frame id": lambda store, lease, bad: committing(agent_frames=(AgentFrameRecord(bad, WHEN),))(store, lease),
    "turn id": lambda store, lease, bad: store.commit_runtime_state(commit(lease, None).with_turn_commit(bad)),
    "interrupted turn": lambda store, lease, bad: committing(interrupted_turn_input_turn_id=bad)(store, lease),
    "usage source": lambda store, lease, bad: committing(usage_deltas=(usage(1, source=bad),))(store, lease),
    "committed attachment": lambda store, lease, bad: committing(committed_attachment_ids=(bad,))(store, lease),
    "outbox key": lambda store, lease, bad: store.commit_runtime_state(
        commit(lease, None).with_outbox(said("x", key=bad))
    ),
    "session of input": lambda store, _, bad: store.enqueue_pending_turn_input(said("x", session_id=bad)),
    "input id": lambda store, _, bad: store.enqueue_pending_turn_input(said("x", input_id=bad)),
    "source key of input": lambda store, _, bad: store.enqueue_pending_turn_input(said("x", key=bad)),
    "turn of input": lambda store, _, bad: store.enqueue_pending_turn_input(said_now("x", bad)),
    "source key of work": lambda store, _, bad: store.enqueue_queued_work(work(key=bad)),
    "session of work": lambda store, _, bad: store.enqueue_queued_work(work(session_id=bad)),
    "owner": lambda store, _, bad: store.try_claim_session_execution_lease("s", LeaseOwnerIdentity(bad, "1"), TTL_MS),
    "incarnation": lambda store, _, bad: store.try_claim_session_execution_lease(
        "s", LeaseOwnerIdentity("o", bad), TTL_MS
    ),
    "session of a lease": lambda store, _, bad: store.try_claim_session_execution_lease(
        bad, LeaseOwnerIdentity("o", "1"), TTL_MS
    ),
    "turn of a claim": lambda store, lease, bad: store.claim_active_turn_inputs(
        "s", lease.fence(), turn_id=bad, checkpoint="after_work", max_inputs=1
    ),
    "attachment": lambda store, _, bad: store.record_intent(
        AttachmentIntent("s", AttachmentRef(bad, "n", "image/png", 1))
    ),
    "cancelled input": lambda store, _, bad: store.cancel_pending_turn_input("s", bad),
    "cancel target": lambda store, _, bad: store.cancel_pending_turn_inputs("s", [ByInputId("i"), BySourceKey(bad)]),
    "cancelled work": lambda store, _, bad: store.cancel_queued_work_batch("s", bad),
    "tombstoned node": lambda store, _, bad: store.tombstone_nodes(["a", bad]),
    "loaded node": lambda store, _, bad: store.load_node(bad),
}


@pytest.mark.parametrize("where", IDS)
async def test_b1_ids_and_keys_are_checked_wherever_they_come_in(lab: Lab, where: str) -> None:
    """NUL, more than 512 bytes, a lone surrogate and the empty text are refused as an id or key, without a trace."""
    store = await lab.store()
    lease = await lane(store)
    for why, bad in BAD_IDS.items():
        error = await refused(lab, InvalidInputError, IDS[where](store, lease, bad))
        assert error.what, f"{where} that is {why}"


async def test_b1_a_session_id_is_checked_by_the_factory(lab: Lab) -> None:
    """No session of a bad name is created, opened or deleted."""
    for bad in BAD_IDS.values():
        await refused(lab, InvalidInputError, lab.factory.create_store(SessionStoreCreateRequest(bad)))
        await refused(lab, InvalidInputError, lab.factory.open_existing_store(SessionStoreCreateRequest(bad)))
        await refused(lab, InvalidInputError, lab.factory.delete_session(bad))


SURROGATES: dict[str, Callable[[RuntimePersistence, SessionExecutionLease], Awaitable[object]]] = {
    "message": committing(graph=append(node("a", None, "\ud83d"))),
    "config": committing(config=PersistedSessionConfig("p", "\ud83d")),
    "foreign JSON": committing(
        graph=append(
            message_node("a", None, WHEN, Message("m", "user", (ToolCallPart("f", msgspec.Raw(b'"\xed\xa0\xbd"')),)))
        )
    ),
    "input": lambda store, _: store.enqueue_pending_turn_input(said("\ud83d")),
    "work": lambda store, _: store.enqueue_queued_work(work(Task("\ud83d"))),
    "metadata": lambda store, _: store.save_session_meta(SessionMeta("s", "\ud83d", WHEN, "m")),
}


@pytest.mark.parametrize("where", SURROGATES)
async def test_b1_lone_surrogates_are_refused(lab: Lab, where: str) -> None:
    """Text that is not Unicode is refused wherever it comes in."""
    store = await lab.store()
    lease = await lane(store)
    await refused(lab, InvalidInputError, SURROGATES[where](store, lease))


NUMBERS: dict[str, Callable[[RuntimePersistence, SessionExecutionLease, int], Awaitable[object]]] = {
    **{
        f"usage {at}": (
            lambda store, lease, bad, at=at: committing(usage_deltas=(usage(*([0] * at), bad),))(store, lease)  # type: ignore[misc]
        )
        for at in range(5)
    },
    "turn index": lambda store, lease, bad: committing(checkpoint=checkpoint(bad))(store, lease),
    "expected revision": lambda store, lease, bad: store.commit_runtime_state(commit(lease, bad)),
    "turn usage": lambda store, lease, bad: committing(
        checkpoint=HydratedSessionCheckpoint(PersistedTurnState(1, TokenUsage(bad)))
    )(store, lease),
    "time of work": lambda store, _, bad: store.enqueue_queued_work(work(at_ms=bad)),
    "size": lambda store, _, bad: store.record_intent(
        AttachmentIntent("s", AttachmentRef(content_id("a"), "n", "image/png", bad))
    ),
    "limit of input": lambda store, lease, bad: store.claim_next_turn_inputs("s", lease.fence(), max_inputs=bad),
    "limit of work": lambda store, lease, bad: store.claim_ready_queued_work(
        "s", lease.fence(), boundary="idle", max_batches=bad
    ),
    "kept revisions": lambda store, _, bad: store.gc_unreachable(keep_revisions=bad),
    "ttl": lambda store, lease, bad: store.renew_session_execution_lease(lease.fence(), bad),
}


@pytest.mark.parametrize("where", NUMBERS)
@pytest.mark.parametrize("bad", [-1, 2**63, 2**200])
async def test_b1_numbers_are_counts_of_63_bits(lab: Lab, where: str, bad: int) -> None:
    """Negative counters and numbers beyond 63 bits are refused, without a trace."""
    store = await lab.store()
    lease = await lane(store)
    await refused(lab, InvalidInputError, NUMBERS[where](store, lease, bad))


@pytest.mark.parametrize("where", ["nodes", "checkpoint", "outbox", "input", "work", "config", "meta", "intent"])
async def test_b1_values_over_the_commit_budget_are_refused(lab: Lab, where: str) -> None:
    """More than the configured budget (64 MiB) in one call is refused before anything is written."""
    store = await lab.store()
    lease = await lane(store)
    big = "x" * (64 * 1024 * 1024)
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "nodes": lambda: committing(graph=append(node("a", None, big)))(store, lease),
        "checkpoint": lambda: committing(checkpoint=checkpoint(tool_state=big.encode() + b"x"))(store, lease),
        "outbox": lambda: store.commit_runtime_state(commit(lease, None).with_outbox(said(big))),
        "input": lambda: store.enqueue_pending_turn_input(said(big)),
        "work": lambda: store.enqueue_queued_work(work(Task("k", raw_json(big)))),
        "config": lambda: committing(config=PersistedSessionConfig(model=big + "x"))(store, lease),
        "meta": lambda: store.save_session_meta(SessionMeta("s", big, WHEN, "m")),
        "intent": lambda: store.record_intent(intent(content_id("a"), name=big)),
    }
    await refused(lab, InvalidInputError, calls[where]())


@pytest.mark.parametrize("raw", [b"", b"{", b"{} {}", b" {}", b"{} ", b"\xff", b'{"a":1,}'])
async def test_b1_foreign_json_is_exactly_one_value(lab: Lab, raw: bytes) -> None:
    """What would poison the record around it is refused: no JSON, half of one, two, or white space around one."""
    store = await lab.store()
    lease = await lane(store)
    part = ToolCallPart("f", msgspec.Raw(raw), "1")
    nodes = append(message_node("a", None, WHEN, Message("m", "assistant", (part,))))
    await refused(lab, InvalidInputError, committing(graph=nodes)(store, lease))
    items = (StructuredItem("form", msgspec.Raw(raw)),)
    draft = PendingTurnInputDraft("s", NextTurn(), TurnInput(items))
    await refused(lab, InvalidInputError, store.enqueue_pending_turn_input(draft))
    await refused(lab, InvalidInputError, store.enqueue_queued_work(work(Task("k", msgspec.Raw(raw)))))


@pytest.mark.parametrize(
    "raw", [b"1e2", b'{"a":1,"a":2}', b'{"b":1,"a":[ ]}', b"12345678901234567890123", b'"\\u0000"']
)
async def test_b1_foreign_json_is_kept_byte_for_byte(lab: Lab, raw: bytes) -> None:
    """Spelling, order and repeated keys of foreign JSON come out as they went in, in every optional place as well."""
    store = await lab.store()
    part = ToolCallPart("f", msgspec.Raw(raw), "1")
    await turn(
        store,
        message_node("a", None, WHEN, Message("m", "assistant", (part,))),
        agent_frames=(AgentFrameRecord("f", WHEN, body=msgspec.Raw(raw)),),
        checkpoint=HydratedSessionCheckpoint(PersistedTurnState(protocol_turn_options=msgspec.Raw(raw))),
    )
    await store.enqueue_pending_turn_input(PendingTurnInputDraft("s", NextTurn(), TurnInput((), msgspec.Raw(raw))))
    again = await lab.reopen()
    read = await loaded(again)
    message = read.graph.nodes[0].message
    assert message is not None
    assert isinstance(message.parts[0], ToolCallPart)
    assert bytes(message.parts[0].arguments) == raw
    assert bytes(read.head.agent_frames[0].body or b"") == raw
    assert read.checkpoint is not None
    assert bytes(read.checkpoint.turn_state.protocol_turn_options or b"") == raw
    assert bytes((await again.list_pending_turn_inputs("s"))[0].input.metadata or b"") == raw


async def test_b1_a_mixed_batch_is_refused_by_the_outbox_too(lab: Lab) -> None:
    """What an enqueue refuses, a commit does not enqueue either."""
    store = await lab.store()
    lease = await lane(store)
    mixed = commit(lease, None, *chain("a")).with_outbox(work(task(), command()))
    await refused(lab, InvalidInputError, store.commit_runtime_state(mixed))


class Disguised(SessionNodeRecord, tag=2):  # type: ignore[misc]
    """A node of another schema version, smuggled in as a subclass."""


async def test_b1_a_subclass_is_not_the_value(lab: Lab) -> None:
    """What encodes itself otherwise than the record it is taken for never gets in; every load would fail on it."""
    store = await lab.store()
    lease = await lane(store)
    node = Disguised("a", None, "2026-01-01T00:00:00Z", chain("a")[0].payload)
    attempt = commit(lease, None, node)
    error = await refused(lab, InvalidInputError, store.commit_runtime_state(attempt))
    assert error.what == "SessionNodeRecord"


async def test_b1_usage_that_overflows_by_itself_is_refused_before_the_lease_is_looked_at(lab: Lab) -> None:
    """Deltas are added up with the limits, before any rule speaks."""
    store = await lab.store()
    lease = await lane(store)
    lab.clock.advance(10**6)
    most = usage(2**63 - 1)
    attempt = commit(lease, 7, usage_deltas=(most, most))
    await refused(lab, InvalidInputError, store.commit_runtime_state(attempt))
