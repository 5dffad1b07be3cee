"""Laws of the history checker: what is healthy passes, and every fault is found as what it is."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from fastness.errors import InvalidInputError
from fastness.testing import (
    KINDS,
    MEANINGS,
    AnyEvent,
    Committed,
    Counts,
    FinalCommit,
    FinalInput,
    FinalNode,
    FinalSession,
    FinalState,
    Finding,
    FindingKind,
    Quarantined,
    Sent,
    TurnStarted,
    check,
    text_hash,
)
from tests.testing.histories import Tale, tales
from tests.testing.mutations import MUTATIONS, Mutation

RUN = settings(max_examples=40, deadline=None, derandomize=True, database=None)
OF_FILES = {"torn_line", "journal_gap"}
"""The kinds that ``test_journal`` is about."""


@given(tales())
@settings(RUN, max_examples=200)
def test_a_healthy_history_passes(tale: Tale) -> None:
    """Lost answers, retries, failed, crashed and overtaken turns are no faults."""
    report = check(tale.events, tale.final())
    assert report.ok, report.explain()


def test_there_is_a_fault_of_every_kind() -> None:
    """No kind of finding is without a history in which it must be found, and a sentence that says what it is."""
    assert {kind for kind, _ in MUTATIONS} | OF_FILES == set(KINDS)
    assert set(MEANINGS) == set(KINDS)


@pytest.mark.parametrize(("kind", "mutation"), MUTATIONS, ids=lambda value: getattr(value, "__name__", ""))
@given(tale=tales())
@RUN
def test_every_fault_is_found_as_what_it_is(kind: FindingKind, mutation: Mutation, tale: Tale) -> None:
    """One fault in a healthy history is found, in its session, as one of its kind and of no other."""
    chapter = tale.chance.choice(tale.chapters)
    mutation(tale, chapter)
    report = check(tale.events, tale.final())
    found = {(finding.kind, finding.session_id) for finding in report.findings}
    assert found == {(kind, chapter.session_id)}, report.explain()


@pytest.mark.parametrize(("kind", "mutation"), MUTATIONS, ids=lambda value: getattr(value, "__name__", ""))
@given(tale=tales(), seed=st.integers(0, 2**32))
@settings(RUN, max_examples=3)
def test_no_verdict_rests_on_time(kind: FindingKind, mutation: Mutation, tale: Tale, seed: int) -> None:
    """With other wall clocks, and the events in another order, the report reads the same."""
    mutation(tale, tale.chapters[0])
    chance = random.Random(seed)
    shuffled: list[AnyEvent] = [replace(event, wall_ms=chance.randrange(10**12)) for event in tale.events]
    chance.shuffle(shuffled)
    assert check(shuffled, tale.final()).explain() == check(tale.events, tale.final()).explain()


# --- one small history, word by word ---


def sent(key: str, number: int, *, input_id: str | None = None, writer: str = "a", ordered: bool = True) -> Sent:
    """One event of a sender, acknowledged where it names the input."""
    heard = input_id is not None
    return Sent("s", key, input_id, text_hash(key), heard, ordered, writer=writer, sequence=number)


def user(input_id: str, parent: str | None, text: str) -> FinalNode:
    """The message of an input."""
    return FinalNode(input_id, parent, "user", input_id, text_hash(text))


SENT: list[AnyEvent] = [sent("one", 1), sent("one", 2, input_id="i1"), sent("two", 3), sent("two", 4, input_id="i2")]
RUN_ONCE: list[AnyEvent] = [
    TurnStarted("s", "turn/1", 1, ("i1", "i2"), "w", 0, writer="w", sequence=1),
    Committed("s", "turn/1", 1, 1, ("i1", "i2"), writer="w", sequence=2),
]
NODES = (user("i1", None, "one"), user("i2", "i1", "two"), FinalNode("n", "i2", "assistant"))
SESSION = FinalSession("s", 1, "n", (FinalCommit(1, "turn/1", 1, "turn", "n"),), NODES)


def test_a_report_says_what_was_looked_at() -> None:
    """The counts, and the one word for it."""
    report = check([*SENT, *RUN_ONCE], FinalState((SESSION,)))
    assert report.counts == Counts(processes=2, sessions=1, acknowledged=2, settled=2, turns_started=1, commits=1)
    assert report.explain() == (
        "1 sessions, 2 processes\n"
        "inputs: 2 acknowledged, 0 unacknowledged; 2 settled, 0 pending, 0 quarantined\n"
        "turns: 1 started, 0 failed, 0 interrupted; 1 commits, 0 replays\n"
        "ok\n"
    )


def test_a_report_says_what_is_wrong() -> None:
    """Each kind with what it means, and each finding with what it is about; a long list is cut."""
    session = replace(SESSION, nodes=(), leaf_node_id=None, lane_holder=None)
    report = check([*SENT, RUN_ONCE[0]], FinalState((session,)))
    assert report.findings == (
        Finding("lost_input", "s", "input 'i1' (key 'one') was acknowledged and is nowhere"),
        Finding("lost_input", "s", "input 'i2' (key 'two') was acknowledged and is nowhere"),
    )
    assert report.explain(limit=1).splitlines()[3:] == [
        "2 findings",
        "lost_input (2): an acknowledged input is nowhere: not in the transcript, not waiting, not set aside",
        "  s: input 'i1' (key 'one') was acknowledged and is nowhere",
        "  and 1 more",
    ]


def test_what_is_allowed_is_told_apart() -> None:
    """Input that still waits or was set aside is no fault for who expects it, and is counted all the same."""
    session = FinalSession("s", pending=(FinalInput("i1"),))
    events = [*SENT, Quarantined("s", "i2")]
    assert [finding.kind for finding in check(events, FinalState((session,))).findings] == ["pending", "quarantined"]
    report = check(events, FinalState((session,)), allow=("quarantined", "pending"))
    assert report.ok
    assert [finding.kind for finding in report.allowed] == ["pending", "quarantined"]
    assert "allowed: 1 pending, 1 quarantined\nok\n" in report.explain()


def test_a_kind_that_does_not_exist_cannot_be_allowed() -> None:
    """A word that is misspelled would hide nothing, and is refused."""
    with pytest.raises(InvalidInputError, match="names no kind of finding: 'lost'"):
        check([], FinalState(), allow=("lost",))  # type: ignore[arg-type]


def test_what_a_holder_may_have_claimed_is_not_lost() -> None:
    """While a lane is held, input that cannot be seen counts as waiting; the lane is the fault."""
    session = FinalSession("s", lane_holder="w")
    report = check(SENT, FinalState((session,)), allow=("pending",))
    assert report.findings == (Finding("held_lane", "s", "held by 'w'"),)


def test_concurrent_inputs_have_no_order() -> None:
    """What was sent before the other was acknowledged, by one process or by two, may be settled either way round."""
    nodes = (user("i2", None, "two"), user("i1", "i2", "one"), FinalNode("n", "i1", "assistant"))
    final = FinalState((replace(SESSION, nodes=nodes),))
    at_once = [sent("one", 1), sent("two", 2), sent("one", 3, input_id="i1"), sent("two", 4, input_id="i2")]
    two_processes = [*SENT[:2], sent("two", 1, writer="b"), sent("two", 2, input_id="i2", writer="b")]
    for events in (at_once, two_processes):
        assert check([*events, *RUN_ONCE], final).findings == ()
    assert check([*SENT, *RUN_ONCE], final).findings == (
        Finding("out_of_order", "s", "input 'i2' stands before 'i1', which was in when it was sent"),
    )


def test_only_ordered_inputs_have_an_order() -> None:
    """Delayed input, and input for the turn that runs, overtakes and is overtaken."""
    nodes = (user("i2", None, "two"), user("i1", "i2", "one"), FinalNode("n", "i1", "assistant"))
    for free in ("one", "two"):
        events = [*(replace(event, ordered=event.key != free) for event in SENT if isinstance(event, Sent)), *RUN_ONCE]
        assert check(events, FinalState((replace(SESSION, nodes=nodes),))).findings == ()


def test_an_input_that_another_process_sent_as_well_has_no_order() -> None:
    """It may have been in long before this process sent it, once more and in its own order."""
    nodes = (user("i2", None, "two"), user("i1", "i2", "one"), FinalNode("n", "i1", "assistant"))
    events = [*SENT, sent("two", 1, writer="b")]
    assert check([*events, *RUN_ONCE], FinalState((replace(SESSION, nodes=nodes),))).findings == ()


def test_an_unanswered_attempt_accounts_for_one_input() -> None:
    """It is known by its text, or, where no text was written down, by being the only thing that it can be."""
    for text in (text_hash("one"), None):
        events: list[AnyEvent] = [Sent("s", "one", None, text), *SENT[2:], RUN_ONCE[0]]
        session = replace(SESSION, nodes=(user("x", None, "one"), user("i2", "x", "two"), NODES[2]))
        report = check(events, FinalState((session,)))
        assert report.findings == ()
        assert report.counts.unacknowledged == 1
        doubled = replace(session, nodes=(*session.nodes, user("y", "n", "one")))
        found = check(events, FinalState((doubled,))).findings
        assert [finding.kind for finding in found] == ["settled_twice" if text else "unsent"]


def test_an_attempt_that_named_its_id_is_known_by_it() -> None:
    """The sender chose the id; no text is needed to know it again."""
    events = [Sent("s", "one", "i1"), *SENT[2:], *RUN_ONCE]
    assert check(events, FinalState((SESSION,))).findings == ()


def test_a_session_that_was_only_attempted_need_not_be_there() -> None:
    """Nothing says that the first input ever arrived."""
    assert check([Sent("s", "one")], FinalState()).findings == ()


def test_a_call_id_may_be_used_again() -> None:
    """Each result answers the nearest call of its id that is still open, also within one message, also without id."""
    nodes = (
        FinalNode("1", None, "assistant", calls=("c",)),
        FinalNode("2", "1", "tool", results=("c",)),
        FinalNode("3", "2", "assistant", calls=("c", None, None), results=("c",)),
        FinalNode("4", "3", "tool", results=(None,)),
        FinalNode("5", "4", "tool", results=(None,)),
    )
    final = FinalState((FinalSession("s", 1, "5", (FinalCommit(1, None, None, "import", "5"),), nodes),))
    assert check([], final).findings == ()
    once_more = FinalNode("6", "5", "tool", results=("c",))
    session = replace(final.sessions[0], nodes=(*nodes, once_more), leaf_node_id="6")
    assert check([], FinalState((session,))).findings == (
        Finding("orphan_result", "s", "result 'c' in node '6' has no call"),
    )


def test_branches_have_results_of_their_own() -> None:
    """A call that two branches follow is answered on each; the commits that move the leaf add nothing."""
    nodes = (
        user("i1", None, "one"),
        FinalNode("call", "i1", "assistant", calls=("c",)),
        FinalNode("left", "call", "tool", results=("c",)),
        FinalNode("right", "call", "tool", results=("c",)),
        FinalNode("n", "right", "assistant"),
    )
    commits = (
        FinalCommit(1, None, 1, "turn", "left"),
        FinalCommit(2, None, None, "branch", "call"),
        FinalCommit(3, "turn/5", 5, "turn", "n"),
    )
    events = [*SENT[:2], TurnStarted("s", "turn/5", 5, (), "w", 2), Committed("s", "turn/5", 5, 3)]
    assert check(events, FinalState((FinalSession("s", 3, "n", commits, nodes),))).findings == ()


def test_an_acknowledged_input_has_an_id() -> None:
    """Without one, nothing could be proved of it."""
    with pytest.raises(InvalidInputError, match="input_id must be given"):
        Sent("s", "one", acknowledged=True)
