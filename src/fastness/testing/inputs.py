"""The laws of input: what was acknowledged is settled once, as it was said and in its order, and nothing else is.

An input is known by its key to its senders and by its id to the store; the acknowledgement ties the two. Where that was
lost, the text has to do.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from fastness.testing.events import Sent
from fastness.testing.final import FinalSession
from fastness.testing.history import SessionHistory
from fastness.testing.report import Finding


class Place(NamedTuple):
    """Where an input stands in the transcript first, how often it does, and what it says there."""

    position: int
    times: int
    text_hash: str | None


class Account(NamedTuple):
    """Who sent what to one session, and what became of it.

    By key: the ids it was ``acknowledged`` with, those that its sender ``asked`` for, and its ``texts`` as hashes. By
    id: its place, and the text of what waits. ``aside`` is what was ever quarantined.
    """

    session: FinalSession
    sent: list[Sent]
    acknowledged: dict[str, set[str]]
    asked: dict[str, set[str]]
    texts: dict[str, set[str]]
    places: dict[str, Place]
    waiting: dict[str, str | None]
    aside: set[str]

    @classmethod
    def of(cls, history: SessionHistory) -> Account:
        """Draw it up."""
        acknowledged: dict[str, set[str]] = defaultdict(set)
        asked: dict[str, set[str]] = defaultdict(set)
        texts: dict[str, set[str]] = defaultdict(set)
        for event in history.sent:
            asked[event.key].update(() if event.input_id is None or event.acknowledged else (event.input_id,))
            texts[event.key].update(() if event.text_hash is None else (event.text_hash,))
            if event.acknowledged and event.input_id is not None:
                acknowledged[event.key].add(event.input_id)
        session = history.session
        waiting = {row.input_id: row.text_hash for row in session.pending}
        aside = {*session.quarantined, *(event.input_id for event in history.quarantined)}
        return cls(session, history.sent, acknowledged, asked, texts, _places(session), waiting, aside)

    @property
    def unacknowledged(self) -> list[str]:
        """The keys that were attempted, and of which no sender ever heard again."""
        return [key for key in self.asked if key not in self.acknowledged]

    @property
    def ids(self) -> dict[str, str]:
        """The id of every key that was acknowledged with one id."""
        return {key: next(iter(ids)) for key, ids in self.acknowledged.items() if len(ids) == 1}


def _places(session: FinalSession) -> dict[str, Place]:
    places: dict[str, Place] = {}
    for position, node in enumerate(session.nodes):
        if node.input_id is not None:
            first = places.get(node.input_id, Place(position, 0, node.text_hash))
            places[node.input_id] = first._replace(times=first.times + 1)
    return places


def check_inputs(account: Account) -> Iterator[Finding]:
    """Find every input that is not where it has to be, or is where it must not be."""
    yield from _check_names(account)
    for key, input_id in account.ids.items():
        yield from _check_acknowledged(account, key, input_id)
    yield from _check_settled(account)
    yield from _check_unknown(account)
    yield from _check_order(account)


def _check_names(account: Account) -> Iterator[Finding]:
    session_id = account.session.session_id
    keys: dict[str, list[str]] = defaultdict(list)
    for key, ids in account.acknowledged.items():
        if len(ids) > 1:
            yield Finding("key_bound_twice", session_id, f"key {key!r} was acknowledged as {_listed(ids)}")
        for input_id in ids:
            keys[input_id].append(key)
    for input_id, shared in keys.items():
        if len(shared) > 1:
            yield Finding(
                "id_shared", session_id, f"input {input_id!r} was acknowledged for the keys {_listed(shared)}"
            )


def _check_acknowledged(account: Account, key: str, input_id: str) -> Iterator[Finding]:
    session_id = account.session.session_id
    name = f"input {input_id!r} (key {key!r})"
    place = account.places.get(input_id)
    if place is not None:
        texts = account.texts[key]
        if texts and place.text_hash is not None and place.text_hash not in texts:
            yield Finding("altered_input", session_id, f"{name} was sent with another text")
    elif input_id in account.waiting:
        yield Finding("pending", session_id, f"{name} waits")
    elif input_id in account.aside:
        yield Finding("quarantined", session_id, f"{name} was set aside")
    elif account.session.lane_holder is not None:
        yield Finding("pending", session_id, f"{name} may be claimed by {account.session.lane_holder!r}")
    else:
        yield Finding("lost_input", session_id, f"{name} was acknowledged and is nowhere")


def _check_settled(account: Account) -> Iterator[Finding]:
    session = account.session
    for input_id, place in account.places.items():
        if place.times > 1:
            yield Finding(
                "settled_twice", session.session_id, f"input {input_id!r} is in the transcript {place.times} times"
            )
        if input_id in account.waiting or input_id in session.quarantined:
            yield Finding("settled_and_waiting", session.session_id, f"input {input_id!r} is settled and still kept")


def _check_unknown(account: Account) -> Iterator[Finding]:
    """Lay the inputs whose id nobody was told beside the attempts that nobody heard of again, by their texts."""
    session_id = account.session.session_id
    known = {input_id for ids in (*account.acknowledged.values(), *account.asked.values()) for input_id in ids}
    found = {input_id: place.text_hash for input_id, place in account.places.items()} | account.waiting
    unheard = [key for key in account.unacknowledged if not account.asked[key]]
    open_texts = Counter(text for key in unheard for text in account.texts[key])
    textless = sum(not account.texts[key] for key in unheard)
    all_texts = {text for texts in account.texts.values() for text in texts}
    for input_id, text in found.items():
        if input_id in known:
            continue
        if text is not None and open_texts[text] > 0:
            open_texts[text] -= 1
        elif text in all_texts:
            yield Finding("settled_twice", session_id, f"input {input_id!r} repeats the text of one that was sent once")
        elif textless > 0:
            textless -= 1
        else:
            yield Finding("unsent", session_id, f"input {input_id!r} was sent by nobody who keeps a journal")


def _check_order(account: Account) -> Iterator[Finding]:
    """Compare what one process knew to be in when it first attempted an input with where that input stands."""
    writers: dict[str, set[str]] = defaultdict(set)
    for event in account.sent:
        writers[event.key].add(event.writer)
    by_writer: dict[str, list[Sent]] = defaultdict(list)
    for event in account.sent:
        if event.ordered:
            by_writer[event.writer].append(event)
    # An input that others sent as well may have been in before this process said anything of it.
    own = {key for key, names in writers.items() if len(names) == 1}
    for events in by_writer.values():
        yield from _check_sender(account, events, own)


def _check_sender(account: Account, events: Iterable[Sent], own: set[str]) -> Iterator[Finding]:
    ids, places = account.ids, account.places
    behind: dict[str, tuple[int, str] | None] = {}  # for each key, the last input that was in when it was attempted
    last: tuple[int, str] | None = None
    for event in events:
        input_id = ids.get(event.key)
        place = None if input_id is None or input_id in account.aside else places.get(input_id)
        if place is None or input_id is None:
            continue
        if not event.acknowledged:
            behind.setdefault(event.key, last)
        elif last is None or place.position > last[0]:
            last = (place.position, input_id)
    for key, floor in behind.items():
        input_id = ids[key]
        if key in own and floor is not None and places[input_id].position < floor[0]:
            detail = f"input {input_id!r} stands before {floor[1]!r}, which was in when it was sent"
            yield Finding("out_of_order", account.session.session_id, detail)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names))
