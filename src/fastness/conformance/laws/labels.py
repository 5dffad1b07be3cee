"""The laws of the directory: descriptions, what a session is found by, and listings by labels (D1 to D3)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from fastness.conformance.builders import WHEN, said, some
from fastness.conformance.lab import Lab, differences, refused
from fastness.conformance.laws.settlement import Cut, CutError
from fastness.conformance.subject import Power
from fastness.errors import InvalidInputError, StoreError
from fastness.model import (
    NO_JSON,
    Child,
    PersistedSessionConfig,
    SessionFilter,
    SessionMeta,
    SessionStoreCreateRequest,
)

FOREIGN = b'{"n":1e2,"n":2,"deep":[{"a" : "\\u0000\\ud83d\\ude00"}],"\xc3\xa9":null}'


def described(session_id: str = "s", *labels: str, **fields: Any) -> SessionMeta:
    """A description with these labels."""
    return SessionMeta(session_id, "My trip", WHEN, "m", labels=labels, **fields)


async def listed(lab: Lab, *labels: str, limit: int = 100, **fields: Any) -> list[str]:
    """The ids of all sessions with these labels, page by page."""
    found: list[str] = []
    cursor = None
    while True:
        page = await lab.factory.list_sessions(
            limit=limit, cursor=cursor, filters=SessionFilter(labels=labels, **fields)
        )
        assert len(page.sessions) <= limit
        found += [one.meta.session_id for one in page.sessions]
        cursor = page.next_cursor
        if cursor is None:
            return found


async def shelve(lab: Lab, **labels: str) -> None:
    """Make sessions, each with one-letter labels."""
    for session_id, letters in labels.items():
        await (await lab.store(session_id)).save_session_meta(described(session_id, *letters))


# --- D1: a description is kept as it was given ---


async def test_d1_a_description_is_given_back_as_it_was_saved(lab: Lab) -> None:
    """Labels, priority and the application's JSON, byte for byte, by a load and by a listing."""
    meta = described("s", "blue", "north shore", "été", priority=7, custom=msgspec.Raw(FOREIGN))
    store = await lab.store()
    await store.save_session_meta(meta)
    async for handle in lab.handles(store):
        found = some(await handle.load_session_meta())
        assert found == meta
        assert bytes(found.custom) == FOREIGN
        (summary,) = (await lab.factory.list_sessions()).sessions
        assert summary.meta == meta
    await lab.assert_sound()


async def test_d1_a_session_that_nobody_described_has_no_labels(lab: Lab) -> None:
    """It has the priority 0 and no JSON of the application's."""
    meta = some(await (await lab.store()).load_session_meta())
    assert (meta.labels, meta.priority, meta.custom) == ((), 0, NO_JSON)


async def test_d1_labels_are_a_set_in_the_order_of_their_bytes(lab: Lab) -> None:
    """Whatever order they were given in, and however often, each comes once."""
    store = await lab.store()
    await store.save_session_meta(described("s", "é", "b", "~", "B", "b", "\uffee", "😀", "ba", "é"))
    async for handle in lab.handles(store):
        meta = some(await handle.load_session_meta())
        assert meta.labels == ("B", "b", "ba", "~", "é", "\uffee", "😀")


async def test_d1_as_many_and_as_long_labels_as_there_may_be_are_taken(lab: Lab) -> None:
    """64 of them, of 128 bytes, and both ends of the priorities."""
    store = await lab.store()
    labels = tuple(f"{number:02}{'é' * 63}" for number in range(64))
    for priority in (9, 0):
        await store.save_session_meta(described("s", *labels, priority=priority))
        meta = some(await store.load_session_meta())
        assert (meta.labels, meta.priority) == (labels, priority)
    assert await listed(lab, *labels) == ["s"]


BAD_LABELS: dict[str, Any] = {
    "empty": ("",),
    "129 bytes": ("é" * 64 + "x",),
    "NUL": ("a\0b",),
    "a line feed": ("a\nb",),
    "a blank before": (" a",),
    "a blank behind": ("a ",),
    "a blank alone": (" ",),
    "a lone surrogate": ("\ud800",),
    "a mark of direction": ("a\u202eb",),
    "not text": (1,),
    "65 of them": tuple(f"{number}" for number in range(65)),
    "a text": "blue",
    "None": None,
}


@pytest.mark.parametrize("bad", BAD_LABELS)
async def test_d1_bad_labels_are_refused_before_anything_is_written(lab: Lab, bad: str) -> None:
    """By a description, by a creation, and by a listing, which has no session with such a label to show."""
    labels = BAD_LABELS[bad]
    store = await lab.store()
    meta = SessionMeta("s", "My trip", WHEN, "m", labels=labels)
    await refused(lab, InvalidInputError, store.save_session_meta(meta))
    request = SessionStoreCreateRequest("new", labels=labels)
    await refused(lab, InvalidInputError, lab.factory.create_store(request))
    await refused(lab, InvalidInputError, lab.factory.list_sessions(filters=SessionFilter(labels=labels)))


@pytest.mark.parametrize("bad", [-1, 10, True, 1.0, "1", None])
async def test_d1_a_priority_is_a_whole_number_from_0_to_9(lab: Lab, bad: Any) -> None:
    """Every other is refused, by a description and by a creation."""
    store = await lab.store()
    await refused(lab, InvalidInputError, store.save_session_meta(described("s", priority=bad)))
    request = SessionStoreCreateRequest("new", priority=bad)
    await refused(lab, InvalidInputError, lab.factory.create_store(request))


NO_CUSTOM: dict[str, Any] = {
    "no raw JSON": {"a": 1},
    "None": None,
    "nothing": msgspec.Raw(b""),
    "half a value": msgspec.Raw(b"{"),
    "two values": msgspec.Raw(b"1 2"),
    "white space around": msgspec.Raw(b" 1"),
    "not UTF-8": msgspec.Raw(b'"\xff"'),
    "an end of the record": msgspec.Raw(b'1,"priority":9'),
}


@pytest.mark.parametrize("bad", NO_CUSTOM)
async def test_d1_what_is_not_one_json_value_is_refused(lab: Lab, bad: str) -> None:
    """It cannot break out of the description either."""
    store = await lab.store()
    await refused(lab, InvalidInputError, store.save_session_meta(described("s", custom=NO_CUSTOM[bad])))


async def test_d1_a_creation_gives_a_new_session_its_labels_and_priority(lab: Lab) -> None:
    """As a description would: as a set, in their order, and found by them."""
    request = SessionStoreCreateRequest("s", labels=("b", "a", "b"), priority=4)
    store = await lab.factory.create_store(request)
    async for handle in lab.handles(store):
        meta = some(await handle.load_session_meta())
        assert (meta.labels, meta.priority) == (("a", "b"), 4)
        assert await listed(lab, "b") == ["s"]


async def test_d1_a_creation_describes_a_session_that_an_enqueue_brought_to_life(lab: Lab) -> None:
    """Nobody has said anything of it yet, and what waits there stays."""
    other = await lab.store("other")
    await other.enqueue_pending_turn_input(said("hi"))
    store = await lab.factory.create_store(SessionStoreCreateRequest("s", labels=("a",), priority=4))
    meta = some(await store.load_session_meta())
    assert (meta.labels, meta.priority) == (("a",), 4)
    assert len(await store.list_pending_turn_inputs("s")) == 1


async def test_d1_a_creation_overwrites_no_description(lab: Lab) -> None:
    """Not even that a session has no labels, the priority 0 and no JSON: somebody may have meant it so (M3)."""
    store = await lab.store()
    for meta in (described("s", "a", priority=4, custom=msgspec.Raw(b"[1]")), described("s")):
        await store.save_session_meta(meta)
        async with lab.unchanged():
            config = PersistedSessionConfig("openai", "gpt")
            request = SessionStoreCreateRequest("s", Child("p"), config, labels=("b",), priority=9)
            again = await lab.factory.create_store(request)
        assert await again.load_session_meta() == meta
        assert await listed(lab, "b") == []


# --- D2: what a session is found by is what its description says ---


async def found_by(lab: Lab) -> dict[str, tuple[tuple[str, ...], int]]:
    """Labels and priority of each session as they stand where work is looked for, past its description."""
    labels: dict[str, list[str]] = {}
    for session_id, label in await lab.execute_raw(
        "select s.session_id, l.label from session_label l join session s on s.sid = l.sid order by l.label"
    ):
        labels.setdefault(session_id, []).append(label)
    rows = await lab.execute_raw("select s.session_id, l.priority from lane l join session s on s.sid = l.sid")
    return {session_id: (tuple(labels.get(session_id, ())), priority) for session_id, priority in rows}


async def test_d2_labels_and_priority_stand_where_work_is_looked_for(lab: Lab) -> None:
    """After a creation, a description and another one, those of the last; of other sessions, their own."""
    await shelve(lab, other="bx")
    store = await lab.factory.create_store(SessionStoreCreateRequest("s", labels=("a", "b"), priority=4))
    assert await found_by(lab) == {"other": (("b", "x"), 0), "s": (("a", "b"), 4)}
    await store.save_session_meta(described("s", "c", "b", priority=9))
    assert await found_by(lab) == {"other": (("b", "x"), 0), "s": (("b", "c"), 9)}
    await store.save_session_meta(described("s"))
    assert await found_by(lab) == {"other": (("b", "x"), 0), "s": ((), 0)}
    await lab.factory.delete_session("other")
    assert await found_by(lab) == {"s": ((), 0)}


async def test_d2_a_listing_follows_every_description(lab: Lab) -> None:
    """A label that is not named again is gone from it, one that is new is there, and one that stays, stays."""
    await shelve(lab, other="bx", s="ab")
    assert [await listed(lab, label) for label in "abcx"] == [["s"], ["other", "s"], [], ["other"]]
    await shelve(lab, s="bc")
    await lab.reopen()
    assert [await listed(lab, label) for label in "abcx"] == [[], ["other", "s"], ["s"], ["other"]]


CALLS: dict[str, Callable[[Lab, Any], Any]] = {
    "description": lambda _, store: store.save_session_meta(described("s", "b", "c", priority=9)),
    "creation": lambda lab, _: lab.factory.create_store(SessionStoreCreateRequest("new", labels=("b",), priority=9)),
}


@pytest.mark.parametrize("call", CALLS)
async def test_d2_a_description_that_is_cut_off_anywhere_leaves_no_trace(lab: Lab, call: str) -> None:
    """Before any of its batches and before COMMIT: what it is found by is as it was, too."""
    lab.needs(Power.BATCHES)
    store = await lab.store()
    await store.save_session_meta(described("s", "a", "b", priority=4))
    for point in range(100):
        lab.on_batch = Cut(point)
        before = await lab.snapshot()
        try:
            await CALLS[call](lab, store)
            break
        except (CutError, StoreError):
            assert differences(before, await lab.snapshot()) == {}, f"cut off at point {point}, and something is there"
        finally:
            lab.on_batch = None
    assert point >= 2, "no batch of it was seen"
    assert differences(before, await lab.snapshot()) != {}


async def test_d2_descriptions_at_the_same_time_do_not_mix(lab: Lab) -> None:
    """The session is found by the labels of the one that came last, and by no other's."""
    stores = (await lab.store(), await lab.beside())
    letters = "abcdefghijkl"
    saves = [stores[at % 2].save_session_meta(described("s", one, "all")) for at, one in enumerate(letters)]
    await asyncio.gather(*saves)
    labels = some(await stores[0].load_session_meta()).labels
    assert len(labels) == 2
    assert [one for one in letters if await listed(lab, one) == ["s"]] == [one for one in labels if one != "all"]
    assert await listed(lab, "all") == ["s"]


# --- D3: a listing by labels ---


async def test_d3_a_listing_shows_the_sessions_that_have_all_the_labels(lab: Lab) -> None:
    """Oldest first, each once, however the labels are ordered and however often one is named."""
    await shelve(lab, s1="ab", s2="b", s3="abc", s4="", s5="ca")
    assert await listed(lab) == ["s1", "s2", "s3", "s4", "s5"]
    assert await listed(lab, "a") == ["s1", "s3", "s5"]
    assert await listed(lab, "a", "b") == await listed(lab, "b", "a", "b") == ["s1", "s3"]
    assert await listed(lab, "a", "b", "c") == ["s3"]
    assert await listed(lab, "a", "nobody's") == await listed(lab, "nobody's") == []


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
async def test_d3_a_listing_by_labels_comes_in_pages(lab: Lab, limit: int) -> None:
    """Every session with them is on one page, in whatever pages the listing comes, and no page is empty or late."""
    await shelve(lab, **{f"s{number}": "ab"[number % 2 :] for number in range(6)}, other="c")
    assert await listed(lab, "b", limit=limit) == ["s0", "s1", "s2", "s3", "s4", "s5"]
    assert await listed(lab, "b", "a", limit=limit) == ["s0", "s2", "s4"]


async def test_d3_other_filters_narrow_it_further(lab: Lab) -> None:
    """The beginning of the id, the parent and the time of creation, beside the labels."""
    start = lab.start_ms
    for session_id, parent in (("x1", "p"), ("x2", "q"), ("y1", "p"), ("y2", "p")):
        request = SessionStoreCreateRequest(session_id, Child(parent), labels=() if session_id == "y1" else ("a",))
        await lab.factory.create_store(request)
        lab.clock.advance(10)
    assert await listed(lab, "a", id_prefix="x") == ["x1", "x2"]
    assert await listed(lab, "a", parent_session_id="p") == ["x1", "y2"]
    assert await listed(lab, "a", created_from_ms=start + 10) == ["x2", "y2"]
    assert await listed(lab, "a", created_from_ms=start + 10, created_until_ms=start + 29) == ["x2"]
    assert await listed(lab, "a", "a", id_prefix="y", parent_session_id="p", created_from_ms=start) == ["y2"]


async def test_d3_a_label_is_what_it_is_to_the_byte(lab: Lab) -> None:
    """Case, accents, wildcards and what only looks the same are other labels; quotes are nothing special."""
    labels = ("a", "A", "ab", "%", "_", "e\u0301", "\u00e9", "it's", '"', "a.*", "\\", "[]", "null")
    for number, label in enumerate(labels):
        await lab.factory.create_store(SessionStoreCreateRequest(f"s{number:02}", labels=(label,)))
    assert [await listed(lab, label) for label in labels] == [[f"s{number:02}"] for number in range(len(labels))]


async def test_d3_a_session_made_anew_has_none_of_the_labels_of_the_deleted_one(lab: Lab) -> None:
    """They went with it."""
    await shelve(lab, s="ab")
    await lab.factory.delete_session("s")
    assert await listed(lab, "a") == []
    await shelve(lab, s="b")
    assert (await listed(lab, "a"), await listed(lab, "b")) == ([], ["s"])
    await lab.assert_sound()
