"""The laws of quarantine (Q1 to Q3): what failed too often is set aside, and waits for a person."""

from __future__ import annotations

import pytest

from fastness.conformance.builders import (
    BOB,
    TTL_MS,
    begin,
    claim_inputs,
    kinds,
    lane,
    owner,
    release,
    said,
    some,
    task,
    texts,
    work,
)
from fastness.conformance.lab import Lab, refused
from fastness.errors import InvalidInputError
from fastness.model import (
    Agenda,
    AlreadyCancelled,
    Cancelled,
    NothingToDo,
    QuarantinedRow,
    QuarantineKind,
    TurnBegun,
    TurnFailure,
    VacuumReport,
)

KINDS: tuple[QuarantineKind, ...] = ("input", "work")
of_both_kinds = pytest.mark.parametrize("kind", KINDS)


async def add(lab: Lab, kind: str, name: str = "bad", session_id: str = "s") -> str:
    """Enqueue a row of this name, which is its source key as well; give its id."""
    store = await lab.store(session_id)
    if kind == "input":
        return (await store.enqueue_pending_turn_input(said(name, session_id=session_id, key=name))).input_id
    return (await store.enqueue_queued_work(work(task(name), session_id=session_id, key=name))).batch_id


async def fail(lab: Lab, session_id: str = "s", *, error: str = "no", max_attempts: int | None = 1) -> TurnFailure:
    """Begin a turn and let it fail."""
    begun = await begin(lab.dispatch(), session_id)
    return await lab.dispatch().fail_turn(
        begun.lease.completion(),
        input_claims=[] if begun.input_claim is None else [begun.input_claim],
        work_claims=[] if begun.work_claim is None else [begun.work_claim],
        error=error,
        max_attempts=max_attempts,
    )


async def spoiled(lab: Lab, kind: str, name: str = "bad", session_id: str = "s") -> str:
    """Have a row in quarantine; give its id."""
    row_id = await add(lab, kind, name, session_id)
    assert await fail(lab, session_id) == TurnFailure(0, 1)
    return row_id


async def listed(lab: Lab, session_id: str | None = None) -> list[QuarantinedRow]:
    """All that is in quarantine."""
    return list((await lab.dispatch().list_quarantine(session_id=session_id)).rows)


async def waiting(lab: Lab) -> list[str]:
    """What waits in the session."""
    store = await lab.store()
    return texts(await store.list_pending_turn_inputs("s")) + kinds(await store.list_pending_queued_work("s"))


def taken(begun: TurnBegun) -> list[str]:
    """What a turn began with."""
    if begun.input_claim is not None:
        return texts(begun.input_claim.inputs)
    return kinds(some(begun.work_claim).batches)


@of_both_kinds
async def test_q1_what_failed_too_often_is_set_aside_with_its_error(lab: Lab, kind: QuarantineKind) -> None:
    """Until then it is tried again; afterwards the session goes on with what stands behind it."""
    lab.dispatch()
    row_id = await add(lab, kind)
    await add(lab, kind, "good")
    start = lab.now_ms
    assert await fail(lab, error="first", max_attempts=2) == TurnFailure(2 if kind == "input" else 1, 0)
    lab.clock.advance(1_000)
    assert await fail(lab, error="second", max_attempts=2) == TurnFailure(0, 1)
    await lab.reopen()
    (row,) = await listed(lab)
    draft = row.draft
    assert row == QuarantinedRow("s", kind, row_id, 2, "second", start + 1_000, start, draft)
    assert draft.source_key == "bad"
    assert await waiting(lab) == ["good"]
    assert taken(await begin(lab.dispatch())) == ["good"]
    await lab.assert_sound()


@of_both_kinds
async def test_q1_what_kills_its_turns_is_set_aside_before_the_next_one(lab: Lab, kind: QuarantineKind) -> None:
    """No turn lives to report it: whoever begins the next finds it out, and takes what stands behind."""
    lab.dispatch()
    row_id = await add(lab, kind)
    for at in range(3):
        assert taken(await begin(lab.dispatch(), who=owner("runner", f"{at}"), max_attempts=3)) == ["bad"]
        lab.clock.advance(30_000)
    await add(lab, kind, "good")
    begun = await begin(lab.dispatch(), who=BOB, max_attempts=3)
    assert (taken(begun), begun.quarantined_count) == (["good"], 1)
    (row,) = await listed(lab)
    assert (row.row_id, row.attempts) == (row_id, 3)
    assert "died" in row.error


async def test_q1_where_nothing_is_left_the_session_is_at_rest(lab: Lab) -> None:
    """However many are set aside at once, the lane is left alone and the agenda empty."""
    lab.dispatch()
    for name in ("a", "b", "c"):
        await add(lab, "input", name)
    await begin(lab.dispatch())
    lab.clock.advance(30_000)
    await add(lab, "work")
    got = await lab.dispatch().begin_turn("s", BOB, TTL_MS, max_attempts=1, max_inputs=2)
    assert isinstance(got, TurnBegun)
    assert (taken(got), got.quarantined_count) == (["bad"], 3)
    lab.clock.advance(30_000)
    assert await lab.dispatch().begin_turn("s", BOB, TTL_MS, max_attempts=1) == NothingToDo(1)
    assert await lab.dispatch().read_agenda() == Agenda(())
    assert len(await listed(lab)) == 4
    assert (await lane(await lab.store(), BOB)).fencing_token == 3


@of_both_kinds
async def test_q1_no_claim_meets_what_was_set_aside(lab: Lab, kind: QuarantineKind) -> None:
    """It does not wait, and its session has nothing to do."""
    lab.dispatch()
    await spoiled(lab, kind)
    store = await lab.reopen()
    assert await lab.dispatch().read_agenda() == Agenda(())
    assert await lab.dispatch().begin_turn("s", BOB, TTL_MS) == NothingToDo()
    lease = await lane(store)
    assert await store.claim_next_turn_inputs("s", lease.fence(), max_inputs=9) is None
    assert await store.claim_ready_queued_work("s", lease.fence(), boundary="idle", max_batches=9) is None
    assert await waiting(lab) == []


@of_both_kinds
async def test_q1_its_source_key_stays_bound_whatever_is_vacuumed(lab: Lab, kind: QuarantineKind) -> None:
    """Sent again, it is the row that is set aside, and is not run behind a person's back."""
    lab.dispatch()
    row_id = await spoiled(lab, kind)
    store = await lab.store()
    assert await store.vacuum(evidence_older_than_ms=0) == VacuumReport(0, 0, 0, 0)
    assert await store.vacuum(receipts_older_than_ms=0) == VacuumReport(0, 0, 0, 0)
    async with lab.unchanged():
        if kind == "input":
            again = await store.enqueue_pending_turn_input(said("bad", key="bad"))
            assert (again.input_id, again.state) == (row_id, "quarantined")
        else:
            batch = await store.enqueue_queued_work(work(task("other"), key="bad"))
            assert (batch.batch_id, batch.state, kinds([batch])) == (row_id, "quarantined", ["bad"])
    assert len(await listed(lab)) == 1


@of_both_kinds
async def test_q1_a_deletion_takes_what_was_set_aside(lab: Lab, kind: QuarantineKind) -> None:
    """A session of the same name knows nothing of it."""
    lab.dispatch()
    row_id = await spoiled(lab, kind)
    await lab.factory.delete_session("s")
    assert await listed(lab) == []
    await lab.store()
    assert await lab.dispatch().retry_quarantined("s", kind, row_id) is False
    assert await add(lab, kind) != row_id
    assert await waiting(lab) == ["bad"]
    await lab.assert_sound()


@of_both_kinds
async def test_q2_what_is_retried_stands_behind_all_that_waits(lab: Lab, kind: QuarantineKind) -> None:
    """It is the same row, under its key, with no attempt counted; it is run, and not twice."""
    lab.dispatch()
    row_id = await spoiled(lab, kind)
    await add(lab, kind, "good")
    await lab.reopen()
    assert await lab.dispatch().retry_quarantined("s", kind, row_id) is True
    async with lab.unchanged():
        assert await lab.dispatch().retry_quarantined("s", kind, row_id) is False
    assert await listed(lab) == []
    assert await add(lab, kind) == row_id
    assert await waiting(lab) == ["good", "bad"]
    begun = await begin(lab.dispatch(), max_inputs=1)
    assert taken(begun) == ["good"]
    await release(await lab.store(), begun.lease)
    assert await fail(lab) == TurnFailure(0, 1)
    begun = await begin(lab.dispatch())
    assert taken(begun) == ["bad"]
    row = begun.input_claim.inputs[0] if begun.input_claim else some(begun.work_claim).batches[0]
    assert row.attempts == 1
    await lab.assert_sound()


async def test_q2_what_is_retried_is_on_the_agenda(lab: Lab) -> None:
    """At once where the lane is free, else when it is."""
    row_id = await spoiled(lab, "input")
    dispatch = lab.dispatch()
    lease = await lane(await lab.store())
    assert await dispatch.retry_quarantined("s", "input", row_id) is True
    assert await dispatch.read_agenda() == Agenda((), 30_000)
    await release(await lab.store(), lease)
    assert [each.session_id for each in (await dispatch.read_agenda()).sessions] == ["s"]


@of_both_kinds
async def test_q2_what_is_discarded_is_cancelled(lab: Lab, kind: QuarantineKind) -> None:
    """Once: it is gone from the quarantine, its key stays bound, and a vacuum takes it then."""
    lab.dispatch()
    row_id = await spoiled(lab, kind)
    await lab.reopen()
    assert await lab.dispatch().discard_quarantined("s", kind, row_id) is True
    async with lab.unchanged():
        assert await lab.dispatch().discard_quarantined("s", kind, row_id) is False
        assert await lab.dispatch().retry_quarantined("s", kind, row_id) is False
    assert await listed(lab) == []
    assert await add(lab, kind) == row_id
    assert await waiting(lab) == []
    store = await lab.store()
    assert await store.vacuum() == (VacuumReport(0, 1, 0, 0) if kind == "input" else VacuumReport(0, 0, 1, 0))
    await lab.assert_sound()


async def test_q2_input_that_was_set_aside_can_be_cancelled_like_any_other(lab: Lab) -> None:
    """It is out of the quarantine then, and cancelled."""
    row_id = await spoiled(lab, "input")
    store = await lab.store()
    cancelled = await store.cancel_pending_turn_input("s", row_id)
    assert isinstance(cancelled, Cancelled)
    assert cancelled.input.input_id == row_id
    assert await listed(lab) == []
    assert await store.cancel_pending_turn_input("s", row_id) == AlreadyCancelled(row_id)
    assert await lab.dispatch().retry_quarantined("s", "input", row_id) is False


@of_both_kinds
async def test_q2_only_what_is_in_quarantine_is_retried_or_discarded(lab: Lab, kind: QuarantineKind) -> None:
    """Not what waits, is claimed or unknown, nor what another session or the other kind has under that id."""
    dispatch = lab.dispatch()
    row_id = await spoiled(lab, kind)
    fresh = await add(lab, kind, "waits")
    other_kind: QuarantineKind = "work" if kind == "input" else "input"
    await lab.store("other")
    async with lab.unchanged():
        for session_id, of_kind, of_id in (
            ("s", kind, fresh),
            ("s", kind, "unknown"),
            ("s", other_kind, row_id),
            ("other", kind, row_id),
            ("unknown", kind, row_id),
        ):
            assert await dispatch.retry_quarantined(session_id, of_kind, of_id) is False
            assert await dispatch.discard_quarantined(session_id, of_kind, of_id) is False


async def test_q2_a_retried_row_is_never_in_two_places(lab: Lab) -> None:
    """A claim that was made before the row was set aside completes nothing of the row that is tried again."""
    row_id = await add(lab, "input")
    store = await lab.store()
    old = await claim_inputs(store, await lane(store))
    lab.clock.advance(30_000)
    assert await lab.dispatch().begin_turn("s", BOB, TTL_MS, max_attempts=1) == NothingToDo(1)
    assert await lab.dispatch().retry_quarantined("s", "input", row_id)
    begun = await begin(lab.dispatch(), who=BOB)
    await store.abandon_turn_input_claim(old)
    assert await store.renew_turn_input_claim(some(begun.input_claim)) == begun.input_claim


async def test_q3_the_quarantine_is_listed_in_pages(lab: Lab) -> None:
    """Oldest first over all sessions, however small the page, and nothing twice while more comes in."""
    dispatch = lab.dispatch()
    wanted = []
    for at in range(3):
        for session_id in ("b", "a"):
            wanted.append((session_id, await spoiled(lab, KINDS[at % 2], f"bad {at}", session_id)))
            lab.clock.advance(1)
    for limit in (1, 4, 6, 100):
        found, cursor, count = [], None, 0
        while True:
            page = await dispatch.list_quarantine(limit=limit, cursor=cursor)
            assert len(page.rows) <= limit
            found += [(row.session_id, row.row_id) for row in page.rows]
            count, cursor = count + 1, page.cursor
            if cursor is None:
                break
        assert found == wanted
        assert count == -(-len(wanted) // limit)
    first = await dispatch.list_quarantine(limit=4)
    wanted.append(("c", await spoiled(lab, "input", "bad", "c")))
    await lab.factory.delete_session("b")
    await lab.reopen("a")
    rest = await lab.dispatch().list_quarantine(cursor=first.cursor)
    assert [(row.session_id, row.row_id) for row in rest.rows] == [wanted[5], wanted[6]]


async def test_q3_the_quarantine_of_one_session_is_listed_apart(lab: Lab) -> None:
    """In pages as well; an unknown session has none."""
    dispatch = lab.dispatch()
    mine = {await spoiled(lab, KINDS[at % 2], f"bad {at}") for at in range(4)}
    await spoiled(lab, "input", "bad", "other")
    found, cursor = [], None
    for _ in range(2):
        page = await dispatch.list_quarantine(session_id="s", limit=2, cursor=cursor)
        found += [row.row_id for row in page.rows]
        cursor = page.cursor
    assert cursor is None
    assert (len(found), set(found)) == (4, mine)
    assert await listed(lab, "unknown") == []


@pytest.mark.parametrize("cursor", ["", "x", "00", "5b5d", b"[1,1,1,1]".hex(), b'[1,1,"","\xff"]'.hex()])
async def test_q3_a_cursor_of_nobodys_is_refused(lab: Lab, cursor: str) -> None:
    """And so are pages of no rows, of too many, and kinds that there are not."""
    dispatch = lab.dispatch()
    await refused(lab, InvalidInputError, dispatch.list_quarantine(cursor=cursor))
    for limit in (0, 10_001):
        await refused(lab, InvalidInputError, dispatch.list_quarantine(limit=limit))
    await refused(lab, InvalidInputError, dispatch.retry_quarantined("s", "other", "x"))  # type: ignore[arg-type]
