"""The laws of turn input (I1 to I6)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fastness.conformance.builders import (
    ALICE,
    BOB,
    chain,
    claim_inputs,
    commit,
    lane,
    release,
    said,
    said_now,
    some,
    texts,
    turn,
    work,
)
from fastness.conformance.lab import Lab, refused
from fastness.errors import InputSourceKeyConflictError, TurnInputClaimExpiredError
from fastness.model import (
    AlreadyCancelled,
    AlreadyClaimed,
    AlreadyCompleted,
    AnchorNotFound,
    ByInputId,
    BySourceKey,
    Cancelled,
    NextTurn,
    NotFound,
    PendingTurnInput,
    PendingTurnInputClaimDiagnostics,
    PendingTurnInputDraft,
    RuntimePersistence,
    SessionExecutionLease,
    StructuredItem,
    SuffixOutcomes,
    TextItem,
    TurnInput,
    TurnInputClaim,
    raw_json,
)


async def claim_next(store: RuntimePersistence, lease: SessionExecutionLease, limit: int = 10) -> TurnInputClaim | None:
    """Claim next-turn input."""
    return await store.claim_next_turn_inputs("s", lease.fence(), max_inputs=limit)


async def claim_active(
    store: RuntimePersistence, lease: SessionExecutionLease, turn_id: str = "t1", at: Any = "after_work"
) -> TurnInputClaim | None:
    """Claim input for a running turn at a checkpoint."""
    return await store.claim_active_turn_inputs("s", lease.fence(), turn_id=turn_id, checkpoint=at, max_inputs=10)


def taken(claim: TurnInputClaim | None) -> list[str]:
    """What the inputs of a claim say; nothing where nothing was granted."""
    return [] if claim is None else texts(claim.inputs)


async def waiting(store: RuntimePersistence) -> list[tuple[str, str]]:
    """What waits, and as what."""
    rows = await store.list_pending_turn_inputs("s")
    return list(zip(texts(rows), [row.state for row in rows], strict=True))


async def test_i1_a_submission_is_kept_as_it_was_made(lab: Lab) -> None:
    """An enqueued row has the draft's content, the next admission number and the time of now."""
    store = await lab.store()
    draft = PendingTurnInputDraft(
        "s",
        NextTurn(),
        TurnInput((TextItem("a\0b"), StructuredItem("form", msgspec.Raw(b'{"b":1e2,"a":[]}'))), raw_json({"z": 1})),
        "i1",
        "k1",
    )
    row = await store.enqueue_pending_turn_input(draft)
    wanted = PendingTurnInput("s", "i1", 1, "deferred_next_turn", NextTurn(), draft.input, "k1", lab.start_ms)
    assert row == wanted
    assert await (await lab.reopen()).list_pending_turn_inputs("s") == [wanted]


async def test_i1_the_same_submission_returns_the_original_row(lab: Lab) -> None:
    """Sent again with the same key, also after a reopening and later, it is the row that was made first."""
    store = await lab.store()
    first = await store.enqueue_pending_turn_input(said("hi", key="k"))
    lab.clock.advance(5)
    async with lab.unchanged():
        assert await store.enqueue_pending_turn_input(said("hi", key="k")) == first
        assert await (await lab.reopen()).enqueue_pending_turn_input(said("hi", key="k")) == first


@pytest.mark.parametrize("state", ["accepted", "deferred_next_turn", "completed", "cancelled"])
async def test_i1_a_key_stays_bound_whatever_became_of_the_row(lab: Lab, state: str) -> None:
    """The original is returned with its state: claimed, completed or cancelled; other content stays a conflict."""
    store = await lab.store()
    lease = await lane(store)
    draft = said_now("hi", source_key="k") if state == "accepted" else said("hi", key="k")
    row = await store.enqueue_pending_turn_input(draft)
    claim = some(await (claim_active(store, lease) if state == "accepted" else claim_next(store, lease)))
    if state == "completed":
        await store.commit_runtime_state(commit(lease, None, *chain("a")).completing_turn_input_claim(claim))
    if state == "cancelled":
        await store.abandon_turn_input_claim(claim)
        await store.cancel_pending_turn_input("s", row.input_id)
    again = await (await lab.reopen()).enqueue_pending_turn_input(draft)
    assert (again.input_id, again.admission_seq, again.state) == (row.input_id, 1, state)
    store = await lab.reopen()
    await refused(lab, InputSourceKeyConflictError, store.enqueue_pending_turn_input(said("other", key="k")))


async def test_i1_other_content_under_the_same_key_is_a_conflict(lab: Lab) -> None:
    """Another text, another ingress and another spelling of the same JSON are other content."""
    store = await lab.store()

    def draft(data: bytes) -> PendingTurnInputDraft:
        """A submission under one key with this very JSON."""
        items = (StructuredItem("form", msgspec.Raw(data)),)
        return PendingTurnInputDraft("s", NextTurn(), TurnInput(items), None, "k")

    row = await store.enqueue_pending_turn_input(draft(b'{"a":1}'))
    others = (said("hi", key="k"), said_now("hi", source_key="k"), draft(b'{"a": 1}'))
    for other in others:
        error = await refused(lab, InputSourceKeyConflictError, store.enqueue_pending_turn_input(other))
        assert (error.source_key, error.input_id) == ("k", row.input_id)


async def test_i1_an_input_id_is_bound_like_a_key(lab: Lab) -> None:
    """The same submission under the same explicit id is one row, other content under it a conflict."""
    store = await lab.store()
    first = await store.enqueue_pending_turn_input(said("hi", input_id="i"))
    assert await store.enqueue_pending_turn_input(said("hi", input_id="i")) == first
    await refused(lab, InputSourceKeyConflictError, store.enqueue_pending_turn_input(said("yo", input_id="i")))


async def test_i1_keys_of_different_sessions_are_different(lab: Lab) -> None:
    """A key names a submission of one session."""
    store = await lab.store()
    await store.enqueue_pending_turn_input(said("mine", key="k"))
    theirs = await store.enqueue_pending_turn_input(said("theirs", key="k", session_id="other"))
    assert (theirs.session_id, theirs.admission_seq) == ("other", 1)


async def test_i1_a_key_is_free_again_once_its_evidence_is_gone(lab: Lab) -> None:
    """After a vacuum of the evidence, the key can be used for something else."""
    store = await lab.store()
    row = await store.enqueue_pending_turn_input(said("hi", key="k"))
    await store.cancel_pending_turn_input("s", row.input_id)
    assert (await store.vacuum()).removed_pending_turn_input_tombstone_count == 1
    again = await store.enqueue_pending_turn_input(said("other", key="k"))
    assert again.admission_seq == 2


async def test_i2_input_and_work_share_one_order_of_admission(lab: Lab) -> None:
    """One sequence per session numbers both; lists and claims keep it."""
    store = await lab.store()
    for text in ("a", "b"):
        await store.enqueue_pending_turn_input(said(text))
        await store.enqueue_queued_work(work())
    assert [row.admission_seq for row in await store.list_pending_turn_inputs("s")] == [1, 3]
    assert [batch.admission_seq for batch in await store.list_queued_work("s")] == [2, 4]
    assert taken(await claim_next(store, await lane(store))) == ["a", "b"]


async def test_i2_lists_hide_held_and_terminal_rows(lab: Lab) -> None:
    """What a live claim holds, what was completed and what was cancelled is not pending."""
    store = await lab.store()
    for text in ("done", "gone", "held", "left"):
        await store.enqueue_pending_turn_input(said(text, input_id=text))
    lease = await lane(store)
    done = some(await claim_next(store, lease, 1))
    await store.commit_runtime_state(commit(lease, None, *chain("a")).completing_turn_input_claim(done))
    await store.cancel_pending_turn_input("s", "gone")
    assert taken(await claim_next(store, lease, 1)) == ["held"]
    async for handle in lab.handles(store):
        assert texts(await handle.list_pending_turn_inputs("s")) == ["left"]


async def test_i3_active_input_goes_to_its_own_turn_at_an_admitted_checkpoint(lab: Lab) -> None:
    """After work only what may come then is granted; before completion everything; another turn's never."""
    store = await lab.store()
    lease = await lane(store)
    await store.enqueue_pending_turn_input(said_now("early"))
    await store.enqueue_pending_turn_input(said_now("late", boundary="before_completion"))
    await store.enqueue_pending_turn_input(said_now("foreign", "t2"))
    await store.enqueue_pending_turn_input(said_now("early too"))
    first = await claim_active(store, lease)
    assert taken(first) == ["early", "early too"]
    assert first is not None
    assert [row.state for row in first.inputs] == ["accepted", "accepted"]
    assert taken(await claim_active(store, lease)) == []
    assert taken(await claim_active(store, lease, at="before_completion")) == ["late"]
    assert await waiting(store) == [("foreign", "pending_active")]


async def test_i3_what_may_come_after_work_may_come_before_completion(lab: Lab) -> None:
    """The boundary is the earliest one, not the only one."""
    store = await lab.store()
    lease = await lane(store)
    await store.enqueue_pending_turn_input(said_now("early"))
    assert taken(await claim_active(store, lease, at="before_completion")) == ["early"]


async def test_i3_next_turn_input_is_not_for_a_running_turn(lab: Lab) -> None:
    """It is granted by the idle claim alone, and stays deferred until it is completed."""
    store = await lab.store()
    lease = await lane(store)
    await store.enqueue_pending_turn_input(said("later"))
    await store.enqueue_pending_turn_input(said_now("now"))
    assert taken(await claim_active(store, lease, at="before_completion")) == ["now"]
    claim = await claim_next(store, lease)
    assert taken(claim) == ["later"]
    assert claim is not None
    assert claim.inputs[0].state == "deferred_next_turn"


async def test_i3_input_for_a_running_turn_is_not_next_turn_input_while_it_runs(lab: Lab) -> None:
    """As long as the lane is in the hands that it was in at admission, the idle claim leaves it alone."""
    store = await lab.store()
    lease = await lane(store)
    await store.enqueue_pending_turn_input(said_now("now"))
    assert taken(await claim_next(store, lease)) == []
    assert await waiting(store) == [("now", "pending_active")]


@pytest.mark.parametrize("end", ["released", "expired", "taken over", "settled"])
async def test_i4_input_for_a_turn_that_is_over_is_for_the_next(lab: Lab, end: str) -> None:
    """Once the lane left the hands it was in, or the turn has a receipt, active input counts as next-turn input."""
    store = await lab.store()
    lease = await lane(store)
    await store.enqueue_pending_turn_input(said_now("late"))
    if end == "settled":
        await store.commit_runtime_state(commit(lease, None, *chain("a")).with_turn_commit("t1"))
    elif end == "released":
        await release(store, lease)
    else:
        lab.clock.advance(30_000)
    if end == "taken over":
        lease = await lane(store, BOB)
    store = await lab.reopen()
    assert await waiting(store) == [("late", "deferred_next_turn")]
    if end in {"released", "expired"}:
        lease = await lane(store, BOB)
    assert taken(await claim_next(store, lease)) == ["late"]


async def test_i4_input_admitted_to_a_free_lane_is_for_the_next_turn_once_one_begins(lab: Lab) -> None:
    """It remembers that nobody held the lane; the turn of its name may still take it, and the idle claim finds it."""
    store = await lab.store()
    await store.enqueue_pending_turn_input(said_now("one", "t1"))
    await store.enqueue_pending_turn_input(said_now("two", "t2"))
    lease = await lane(store)
    assert await waiting(store) == [("one", "deferred_next_turn"), ("two", "deferred_next_turn")]
    assert taken(await claim_active(store, lease, "t2")) == ["two"]
    assert taken(await claim_next(store, lease)) == ["one"]


async def test_i4_input_for_a_turn_that_was_settled_before_is_for_the_next(lab: Lab) -> None:
    """What comes for a turn that has a receipt already is next-turn input from the start."""
    store = await lab.store()
    lease = await lane(store)
    await store.commit_runtime_state(commit(lease, None, *chain("a")).with_turn_commit("t1"))
    row = await store.enqueue_pending_turn_input(said_now("too late"))
    assert row.state == "deferred_next_turn"
    assert taken(await claim_next(store, lease)) == ["too late"]


@pytest.mark.parametrize("end", ["expired", "released", "abandoned"])
async def test_i4_accepted_input_of_a_dead_claim_is_found_again(lab: Lab, end: str) -> None:
    """What a crashed turn had accepted is listed, and the next turn gets it."""
    store = await lab.store()
    lease = await lane(store)
    await store.enqueue_pending_turn_input(said_now("hello?"))
    claim = some(await claim_active(store, lease))
    if end == "expired":
        lab.clock.advance(30_000)
    elif end == "released":
        await release(store, lease)
    else:
        await store.abandon_turn_input_claim(claim)
    store = await lab.reopen()
    assert await waiting(store) == [("hello?", "deferred_next_turn")]
    holder = lease if end == "abandoned" else await lane(store, BOB)
    again = await claim_next(store, holder)
    assert taken(again) == ["hello?"]
    assert again is not None
    await store.commit_runtime_state(commit(holder, None, *chain("a")).completing_turn_input_claim(again))
    assert await waiting(store) == []


async def test_i4_a_live_turn_of_the_same_id_may_still_take_its_input(lab: Lab) -> None:
    """A turn that is run again under a new lease gets what was said to its first run."""
    store = await lab.store()
    lease = await lane(store)
    await store.enqueue_pending_turn_input(said_now("accepted"))
    await claim_active(store, lease)
    await store.enqueue_pending_turn_input(said_now("pending"))
    lab.clock.advance(30_000)
    again = await claim_active(store, await lane(store, BOB))
    assert taken(again) == ["accepted", "pending"]


async def test_i5_an_interrupted_turn_leaves_the_rest_to_the_next(lab: Lab) -> None:
    """A commit that names it completes what it claims and defers its other input, held or not, once."""
    store = await lab.store()
    lease = await lane(store)
    await store.enqueue_pending_turn_input(said_now("consumed"))
    consumed = await claim_active(store, lease)
    await store.enqueue_pending_turn_input(said_now("accepted, not consumed"))
    await claim_active(store, lease)
    await store.enqueue_pending_turn_input(said_now("pending", boundary="before_completion"))
    await store.enqueue_pending_turn_input(said_now("of another turn", "t2"))
    assert consumed is not None
    done = commit(lease, None, *chain("a")).completing_turn_input_claim(consumed)
    await store.commit_runtime_state(done.deferring_interrupted_turn_inputs("t1"))
    async for handle in lab.handles(store):
        assert await waiting(handle) == [
            ("accepted, not consumed", "deferred_next_turn"),
            ("pending", "deferred_next_turn"),
            ("of another turn", "pending_active"),
        ]
    store = await lab.reopen()
    assert taken(await claim_active(store, lease, at="before_completion")) == []
    assert taken(await claim_next(store, lease)) == ["accepted, not consumed", "pending"]


async def test_i5_deferring_happens_once(lab: Lab) -> None:
    """A replay of the commit does not defer what was said to that turn afterwards."""
    store = await lab.store()
    lease = await lane(store)
    stamped = commit(lease, None, *chain("a")).deferring_interrupted_turn_inputs("t9").with_turn_commit("t1")
    await store.commit_runtime_state(stamped)
    await store.enqueue_pending_turn_input(said_now("new", "t9"))
    await store.commit_runtime_state(stamped)
    assert await waiting(store) == [("new", "pending_active")]


async def test_i6_cancel_takes_a_waiting_row_and_knows_the_others(lab: Lab) -> None:
    """A waiting row is cancelled; a held, completed, cancelled or unknown one is told as such."""
    store = await lab.store()
    for text in ("done", "held", "free"):
        await store.enqueue_pending_turn_input(said(text, input_id=text))
    lease = await lane(store)
    done = some(await claim_next(store, lease, 1))
    await store.commit_runtime_state(commit(lease, None, *chain("a")).completing_turn_input_claim(done))
    held = some(await claim_next(store, lease, 1))
    free = await store.cancel_pending_turn_input("s", "free")
    assert isinstance(free, Cancelled)
    assert (free.input.input_id, free.input.state) == ("free", "cancelled")
    store = await lab.reopen()
    assert await store.cancel_pending_turn_input("s", "free") == AlreadyCancelled("free")
    assert await store.cancel_pending_turn_input("s", "done") == AlreadyCompleted("done")
    assert await store.cancel_pending_turn_input("s", "nothing") == NotFound()
    assert await store.cancel_pending_turn_input("no such session", "free") == NotFound()
    diagnostics = PendingTurnInputClaimDiagnostics(held.claim_id, ALICE, 1, lab.start_ms + 30_000)
    assert await store.cancel_pending_turn_input("s", "held") == AlreadyClaimed("held", diagnostics)
    assert (await store.renew_turn_input_claim(held)).claim_id == held.claim_id


async def test_i6_a_cancelled_row_is_never_claimed_or_completed(lab: Lab) -> None:
    """A row cancelled after its claim died takes the claim with it."""
    store = await lab.store()
    await store.enqueue_pending_turn_input(said("hi", input_id="i"))
    lease = await lane(store)
    claim = some(await claim_next(store, lease))
    await store.abandon_turn_input_claim(claim)
    await store.cancel_pending_turn_input("s", "i")
    assert await claim_next(store, lease) is None
    attempt = commit(lease, None, *chain("a")).completing_turn_input_claim(claim)
    await refused(lab, TurnInputClaimExpiredError, store.commit_runtime_state(attempt))


async def test_i6_a_bulk_cancel_has_one_outcome_per_target_in_order(lab: Lab) -> None:
    """Targets by id and by key, a repeated and an unknown one: each gets its outcome where it stands."""
    store = await lab.store()
    await store.enqueue_pending_turn_input(said("a", input_id="a", key="ka"))
    await store.enqueue_pending_turn_input(said("b", input_id="b"))
    targets = (ByInputId("b"), BySourceKey("nothing"), BySourceKey("ka"), ByInputId("a"), ByInputId("b"))
    results = await store.cancel_pending_turn_inputs("s", targets)
    assert tuple(result.target for result in results) == targets
    assert isinstance(results[0].outcome, Cancelled)
    assert isinstance(results[2].outcome, Cancelled)
    assert results[0].outcome.input.input_id == "b"
    assert results[2].outcome.input.input_id == "a"
    rest = [results[at].outcome for at in (1, 3, 4)]
    assert rest == [NotFound(), AlreadyCancelled("a"), AlreadyCancelled("b")]
    assert await waiting(await lab.reopen()) == []
    assert await (await lab.reopen()).cancel_pending_turn_inputs("s", ()) == []


async def test_i6_a_suffix_cancel_covers_the_anchor_and_what_came_after_it(lab: Lab) -> None:
    """Everything admitted from the anchor on is cancelled, except what is held, in the order of admission."""
    store = await lab.store()
    lease = await lane(store)
    await store.enqueue_pending_turn_input(said("before", input_id="before"))
    await store.enqueue_pending_turn_input(said("anchor", input_id="anchor", key="k"))
    await store.enqueue_pending_turn_input(said_now("held", input_id="held"))
    assert taken(await claim_active(store, lease)) == ["held"]
    await store.enqueue_pending_turn_input(said_now("active", input_id="active"))
    await store.enqueue_pending_turn_input(said("gone", input_id="gone"))
    await store.cancel_pending_turn_input("s", "gone")
    outcome = await store.cancel_pending_turn_input_suffix("s", BySourceKey("k"))
    assert isinstance(outcome, SuffixOutcomes)
    assert [type(result.outcome).__name__ for result in outcome.outcomes] == [
        "Cancelled",
        "AlreadyClaimed",
        "Cancelled",
    ]
    assert outcome.outcomes[0].target == BySourceKey("k")
    assert [result.target for result in outcome.outcomes[1:]] == [ByInputId("held"), ByInputId("active")]
    async for handle in lab.handles(store):
        assert texts(await handle.list_pending_turn_inputs("s")) == ["before"]


async def test_i6_a_suffix_cancel_without_its_anchor_cancels_nothing(lab: Lab) -> None:
    """An unknown anchor is told as such, and nothing goes."""
    store = await lab.store()
    await store.enqueue_pending_turn_input(said("a"))
    async with lab.unchanged():
        assert await store.cancel_pending_turn_input_suffix("s", ByInputId("nothing")) == AnchorNotFound()
        assert await store.cancel_pending_turn_input_suffix("no such session", ByInputId("a")) == AnchorNotFound()


async def test_i2_input_reaches_any_session_of_the_database(lab: Lab) -> None:
    """A handle of one session enqueues, lists and cancels for another."""
    store = await lab.store()
    other = await lab.store("other")
    row = await store.enqueue_pending_turn_input(said("hi", session_id="other"))
    assert texts(await other.list_pending_turn_inputs("other")) == ["hi"]
    assert await store.list_pending_turn_inputs("s") == []
    assert isinstance(await store.cancel_pending_turn_input("other", row.input_id), Cancelled)
    await turn(store, *chain("a"))


async def test_i4_input_for_a_settled_turn_stays_for_the_next_when_its_receipt_goes(lab: Lab) -> None:
    """Vacuuming receipts does not turn late input of a settled turn back into input that nobody may claim."""
    store = await lab.store()
    lease = await lane(store)
    await store.enqueue_pending_turn_input(said_now("late", "t1"))
    await store.commit_runtime_state(commit(lease, None, *chain("a")).with_turn_commit("t1"))
    await store.vacuum(receipts_older_than_ms=lab.now_ms)
    assert [row.state for row in await store.list_pending_turn_inputs("s")] == ["deferred_next_turn"]
    claim = await claim_inputs(store, lease, 5)
    assert len(claim.inputs) == 1
