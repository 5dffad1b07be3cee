"""Faults, each put into a healthy history as a broken store would leave it, and each of exactly one kind.

What the fault changes, it changes everywhere: a token that was given out twice is so in the log and in the journals.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from msgspec.structs import replace

from fastness.testing import (
    Committed,
    FinalCommit,
    FinalInput,
    FinalNode,
    FindingKind,
    Interrupted,
    Quarantined,
    Sent,
    TurnFailed,
    TurnStarted,
    text_hash,
)
from tests.testing.histories import Chapter, Tale

Mutation: TypeAlias = Callable[[Tale, Chapter], None]
MUTATIONS: list[tuple[FindingKind, Mutation]] = []
"""Every fault, and what it has to be found as."""


def found_as(kind: FindingKind) -> Callable[[Mutation], Mutation]:
    """List a fault."""

    def listed(mutation: Mutation) -> Mutation:
        MUTATIONS.append((kind, mutation))
        return mutation

    return listed


def one_input(tale: Tale, chapter: Chapter) -> str:
    """An input that was acknowledged and settled."""
    return tale.chance.choice(chapter.sequential)


def at(chapter: Chapter, input_id: str) -> int:
    """Where the node of an input is."""
    return next(place for place, node in enumerate(chapter.nodes) if node.input_id == input_id)


def change_events(tale: Tale, chapter: Chapter, kind: type, change: Callable[[Any], Any]) -> None:
    """Rewrite the events of a kind in one session; None leaves one out."""
    events = [
        change(event) if isinstance(event, kind) and event.session_id == chapter.session_id else event
        for event in tale.events
    ]
    tale.events = [event for event in events if event is not None]


def told(tale: Tale, chapter: Chapter) -> Committed:
    """A commit of which its worker has heard at once."""
    return next(
        event
        for event in tale.events
        if isinstance(event, Committed) and event.session_id == chapter.session_id and not event.replayed
    )


def take_out(tale: Tale, chapter: Chapter) -> str:
    """Remove an input from the transcript, and from what its turn says."""
    gone = one_input(tale, chapter)
    node = chapter.nodes.pop(at(chapter, gone))
    chapter.nodes = [
        replace(other, parent_node_id=node.parent_node_id) if other.parent_node_id == node.node_id else other
        for other in chapter.nodes
    ]
    change_events(
        tale,
        chapter,
        Committed,
        lambda event: replace(event, input_ids=tuple(known for known in event.input_ids if known != gone)),
    )
    return gone


def append_commit(tale: Tale, chapter: Chapter, turn_id: str, token: int, seen: int | None = None) -> None:
    """Have a turn of this token land behind everything else."""
    tale.say("zombie", TurnStarted(chapter.session_id, turn_id, token, (), "zombie", seen))
    chapter.commits.append(FinalCommit(len(chapter.commits) + 1, turn_id, token, "turn", chapter.leaf))


# --- inputs ---


@found_as("lost_input")
def lose_an_input(tale: Tale, chapter: Chapter) -> None:
    """It was acknowledged, and is gone."""
    take_out(tale, chapter)


@found_as("pending")
def leave_an_input(tale: Tale, chapter: Chapter) -> None:
    """It waits for ever."""
    chapter.pending.append(FinalInput(take_out(tale, chapter)))


@found_as("quarantined")
def set_an_input_aside(tale: Tale, chapter: Chapter) -> None:
    """The database says so."""
    chapter.quarantined.append(take_out(tale, chapter))


@found_as("quarantined")
def hear_of_an_input_set_aside(tale: Tale, chapter: Chapter) -> None:
    """A worker says so."""
    tale.say("worker-0", Quarantined(chapter.session_id, take_out(tale, chapter), "KeyError"))


@found_as("settled_twice")
def settle_an_input_twice(tale: Tale, chapter: Chapter) -> None:
    """The same input is in the transcript again."""
    node = chapter.nodes[at(chapter, one_input(tale, chapter))]
    chapter.nodes.append(replace(node, node_id="again", parent_node_id=chapter.leaf))


@found_as("settled_twice")
def settle_a_text_twice(tale: Tale, chapter: Chapter) -> None:
    """A key that did not hold: the same submission is there under another id."""
    node = chapter.nodes[at(chapter, one_input(tale, chapter))]
    chapter.nodes.append(replace(node, node_id="again", parent_node_id=chapter.leaf, input_id="another id"))


@found_as("settled_twice")
def settle_an_unanswered_attempt_twice(tale: Tale, chapter: Chapter) -> None:
    """Nobody knows whether it came in; it came in twice."""
    tale.say("s0.mute", Sent(chapter.session_id, "mute", text_hash=text_hash("mute")))
    for name in ("mute 1", "mute 2"):
        chapter.nodes.append(FinalNode(name, chapter.leaf, "user", name, text_hash("mute")))


@found_as("settled_twice")
def leave_a_second_copy_waiting(tale: Tale, chapter: Chapter) -> None:
    """The same submission waits under another id, to be answered again."""
    text = chapter.nodes[at(chapter, one_input(tale, chapter))].text_hash
    chapter.pending.append(FinalInput("another id", text))


@found_as("settled_and_waiting")
def leave_a_settled_input_waiting(tale: Tale, chapter: Chapter) -> None:
    """It will be answered again."""
    chapter.pending.append(FinalInput(one_input(tale, chapter)))


@found_as("settled_and_waiting")
def set_a_settled_input_aside(tale: Tale, chapter: Chapter) -> None:
    """It may be tried again."""
    chapter.quarantined.append(one_input(tale, chapter))


@found_as("altered_input")
def alter_an_input(tale: Tale, chapter: Chapter) -> None:
    """The transcript says something else."""
    place = at(chapter, one_input(tale, chapter))
    chapter.nodes[place] = replace(chapter.nodes[place], text_hash=text_hash("something else"))


@found_as("unsent")
def settle_what_nobody_sent(tale: Tale, chapter: Chapter) -> None:
    """An input comes from nowhere."""
    chapter.nodes.append(FinalNode("stranger", chapter.leaf, "user", "stranger", text_hash("stranger")))


@found_as("unsent")
def keep_what_nobody_sent(tale: Tale, chapter: Chapter) -> None:
    """An input from nowhere waits."""
    chapter.pending.append(FinalInput("stranger", text_hash("stranger")))


@found_as("out_of_order")
def swap_two_inputs(tale: Tale, chapter: Chapter) -> None:
    """What was sent second is settled first."""
    first, second = tale.chance.sample(chapter.sequential, 2)
    one, other = at(chapter, first), at(chapter, second)
    nodes = chapter.nodes
    said = (nodes[one].text_hash, nodes[other].text_hash)
    nodes[one] = replace(nodes[one], input_id=second, text_hash=said[1])
    nodes[other] = replace(nodes[other], input_id=first, text_hash=said[0])
    names = {first: second, second: first}
    change_events(
        tale,
        chapter,
        Committed,
        lambda event: replace(event, input_ids=tuple(names.get(known, known) for known in event.input_ids)),
    )


@found_as("key_bound_twice")
def acknowledge_a_key_with_another_id(tale: Tale, chapter: Chapter) -> None:
    """The sender asks again, and is told of another input."""
    tale.say("s0.late", Sent(chapter.session_id, "first-0", "ghost", acknowledged=True))


@found_as("id_shared")
def acknowledge_two_keys_with_one_id(tale: Tale, chapter: Chapter) -> None:
    """Two submissions are taken for one."""
    shared = one_input(tale, chapter)
    text = chapter.nodes[at(chapter, shared)].text_hash
    tale.say("s0.late", Sent(chapter.session_id, "late", shared, text, acknowledged=True))


@found_as("session_missing")
def lose_a_session(tale: Tale, chapter: Chapter) -> None:
    """All of it is gone."""
    tale.chapters.remove(chapter)


# --- the commit log ---


@found_as("revision_gap")
def lose_a_revision(tale: Tale, chapter: Chapter) -> None:
    """A row of the log is missing in between, and nobody has heard of it."""
    gone = chapter.commits.pop(tale.chance.randrange(len(chapter.commits) - 1))
    chapter.head = chapter.commits[-1].revision
    change_events(tale, chapter, Committed, lambda event: None if event.revision == gone.revision else event)


@found_as("revision_gap")
def move_the_head_alone(tale: Tale, chapter: Chapter) -> None:
    """The head is ahead of the log."""
    chapter.head = len(chapter.commits) + 1


@found_as("revision_gap")
def leave_the_head_behind(tale: Tale, chapter: Chapter) -> None:
    """The log is ahead of the head."""
    chapter.head = len(chapter.commits) - 1


@found_as("revision_repeated")
def repeat_a_revision(tale: Tale, chapter: Chapter) -> None:
    """A row of the log is there twice."""
    chapter.head = len(chapter.commits)
    chapter.commits.append(tale.chance.choice(chapter.commits))


@found_as("turn_repeated")
def land_a_turn_again(tale: Tale, chapter: Chapter) -> None:
    """A retry was not seen to be one."""
    again = tale.chance.choice(chapter.commits)
    chapter.commits.append(replace(again, revision=len(chapter.commits) + 1, fencing_token=chapter.token + 1))


@found_as("token_shared")
def reuse_the_last_token(tale: Tale, chapter: Chapter) -> None:
    """Two turns land under one token."""
    token = chapter.commits[-1].fencing_token
    assert token is not None
    append_commit(tale, chapter, "turn/copy", token, len(chapter.commits))


@found_as("token_shared")
def grant_a_token_twice(tale: Tale, chapter: Chapter) -> None:
    """A turn that comes to nothing runs under the token of one that lands."""
    token = tale.chance.choice(chapter.commits).fencing_token
    assert token is not None
    event = tale.chance.choice([TurnFailed, Interrupted])
    tale.say("zombie", event(chapter.session_id, "turn/copy", token, "KeyError"))


@found_as("stale_commit")
def commit_under_an_old_token(tale: Tale, chapter: Chapter) -> None:
    """A zombie lands behind its successors."""
    append_commit(tale, chapter, "turn/1", 1)


@found_as("stale_commit")
def commit_beside_a_successor(tale: Tale, chapter: Chapter) -> None:
    """A zombie lands after its successor has begun, which then fails: the log alone shows nothing of it."""
    token = chapter.token + 10
    tale.say("worker-0", TurnStarted(chapter.session_id, "turn/next", token, (), "", len(chapter.commits) - 1))


@found_as("unannounced_commit")
def commit_a_turn_that_nobody_began(tale: Tale, chapter: Chapter) -> None:
    """A worker commits what it never started."""
    turn_id = tale.chance.choice(chapter.commits).turn_id
    change_events(tale, chapter, TurnStarted, lambda event: None if event.turn_id == turn_id else event)


@found_as("commit_disagrees")
def tell_another_token(tale: Tale, chapter: Chapter) -> None:
    """A worker hears of a commit under a token that the log does not have."""
    heard = told(tale, chapter)
    change_events(
        tale,
        chapter,
        Committed,
        lambda event: replace(event, fencing_token=event.fencing_token + 1) if event == heard else event,
    )


@found_as("commit_disagrees")
def replay_under_an_earlier_token(tale: Tale, chapter: Chapter) -> None:
    """A replay is told to a lease that was granted before the commit was made."""
    heard = told(tale, chapter)
    earlier = replace(heard, fencing_token=heard.fencing_token - 1, replayed=True)
    change_events(tale, chapter, Committed, lambda event: earlier if event == heard else event)


@found_as("commit_disagrees")
def tell_another_revision(tale: Tale, chapter: Chapter) -> None:
    """A worker hears of a revision that is another turn's, or nobody's."""
    heard = told(tale, chapter)
    other = tale.chance.choice([heard.revision + 1, len(chapter.commits) + 1])
    change_events(tale, chapter, Committed, lambda event: replace(event, revision=other) if event == heard else event)


@found_as("held_lane")
def hold_the_lane(tale: Tale, chapter: Chapter) -> None:
    """Somebody never gave it back."""
    chapter.holder = "worker-0"


# --- the transcript ---


@found_as("broken_chain")
def lose_the_root(tale: Tale, chapter: Chapter) -> None:
    """The first node hangs on one that is not there."""
    chapter.nodes[0] = replace(chapter.nodes[0], parent_node_id="nowhere")


@found_as("broken_chain")
def stand_on_nothing(tale: Tale, chapter: Chapter) -> None:
    """The head's leaf is not there."""
    chapter.leaf = "nowhere"


@found_as("broken_chain")
def repeat_a_node(tale: Tale, chapter: Chapter) -> None:
    """An id is there twice."""
    chapter.nodes.append(next(node for node in chapter.nodes if node.role == "assistant"))


@found_as("orphan_call")
def lose_a_result(tale: Tale, chapter: Chapter) -> None:
    """A tool was called, and nothing came of it."""
    place = tale.chance.choice([place for place, node in enumerate(chapter.nodes) if node.results])
    chapter.nodes[place] = replace(chapter.nodes[place], results=())


@found_as("orphan_call")
def stand_between_call_and_result(tale: Tale, chapter: Chapter) -> None:
    """The branch that the session stands on ends in a call, whose result is beside it."""
    chapter.leaf = tale.chance.choice([node.node_id for node in chapter.nodes if node.calls])


@found_as("orphan_result")
def lose_a_call(tale: Tale, chapter: Chapter) -> None:
    """A result answers what nobody asked, though the same id was asked for before."""
    place = tale.chance.choice([place for place, node in enumerate(chapter.nodes) if node.calls])
    chapter.nodes[place] = replace(chapter.nodes[place], calls=())


@found_as("misplaced_input")
def claim_the_input_of_another_turn(tale: Tale, chapter: Chapter) -> None:
    """A turn says that it settled what is in another one."""
    heard = told(tale, chapter)
    other = next(name for name in chapter.sequential if name not in heard.input_ids)
    change_events(
        tale,
        chapter,
        Committed,
        lambda event: replace(event, input_ids=(*event.input_ids, other)) if event == heard else event,
    )


@found_as("unanswered")
def answer_nothing(tale: Tale, chapter: Chapter) -> None:
    """A turn that settled input has no answer in it."""
    heard = told(tale, chapter)
    leaf = next(commit.leaf_node_id for commit in chapter.commits if commit.revision == heard.revision)
    end = next(place for place, node in enumerate(chapter.nodes) if node.node_id == leaf)
    for place in range(at(chapter, heard.input_ids[0]), end + 1):
        if chapter.nodes[place].role == "assistant":
            chapter.nodes[place] = replace(chapter.nodes[place], role="system")
