"""Laws of the history beside the kit's: its rules without a database, reading in pages, and moving with the session."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastness.conformance.builders import chain, checkpoint, commit, lane, loaded, node, node_ids, turn, usage
from fastness.conformance.lab import Lab
from fastness.decide.history import mentioned, point_at, usage_until
from fastness.errors import DatabaseDamagedError, RevisionNotReadableError, SessionIdTakenError, SessionNotFoundError
from fastness.model import SessionHistoryStore, SessionStoreCreateRequest
from fastness.ops import history
from fastness.persistence import EngineSessionStoreFactory, InMemorySessionStoreFactory, SqliteSessionStoreFactory
from fastness.transfer import backup, copy, restore
from tests.lab import ENGINES

HASH = "0123456789abcdef" * 4


async def test_a_factory_has_the_capability() -> None:
    """``factory.history`` is a ``SessionHistoryStore``."""
    async with InMemorySessionStoreFactory() as factory:
        assert isinstance(factory.history, SessionHistoryStore)


def test_usage_until_is_the_total_without_what_came_later() -> None:
    """A pair that was first used later is left out; one that was counted as nothing, and not since, is kept."""
    totals = [usage(9, 1), usage(3, source="later"), usage(source="nothing")]
    later = [usage(4), usage(2, source="later"), usage(1, source="later")]
    assert usage_until("s", totals, later) == (usage(5, 1), usage(source="nothing"))
    assert usage_until("s", totals, []) == tuple(totals)


def test_more_usage_than_the_ledger_has_is_damage() -> None:
    """In any counter, also where the others are right."""
    with pytest.raises(DatabaseDamagedError, match="'s' add up to more usage than its ledger has"):
        usage_until("s", [usage(9, 9, 9, 9, 1)], [usage(1, 1, 1, 1, 2)])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (f'{{"uri":"attachment:{HASH}"}}', {HASH}),
        (f'"{HASH}","{HASH[::-1]}"', {HASH, HASH[::-1]}),
        (f'"{HASH}0"', set()),
        (f'"a{HASH}"', set()),
        (f'"g{HASH}g"', {HASH}),
        (f'"{HASH.upper()}"', set()),
        (f'"\\u0030{HASH[1:]}"', {HASH}),
        (f'"\\\\u0030{HASH[1:]}"', set()),
    ],
)
def test_an_id_occurs_where_it_stands_alone(body: str, expected: set[str]) -> None:
    """Not as a part of a longer number; in JSON of others also with escapes."""
    assert mentioned([b'"nothing"', f"[{body}]".encode()]) == expected


def test_errors_say_what_happened_and_what_to_do() -> None:
    """With the session and the revision as fields and in words."""
    with pytest.raises(RevisionNotReadableError) as caught:
        point_at("s", 7, None, None)
    assert str(caught.value) == (
        "revision 7 of session 's' cannot be read: there is no such revision, the newest is 0; list_commits shows all"
    )
    assert (caught.value.code, caught.value.reason) == ("revision_not_readable", "unknown")
    assert str(SessionNotFoundError("s")) == "there is no session 's'; name one that is there, list_sessions shows all"
    assert (
        str(SessionIdTakenError("s")) == "there is a session 's' already; choose another id, or delete that one first"
    )


async def test_a_revision_is_the_same_however_many_rows_are_read_at_a_time(lab: Lab) -> None:
    """Nodes and later usage come in pages: of one row, of two, which fit exactly, and all at once."""
    store = await lab.store()
    await turn(store, *chain("a", "b", "c", "d"), usage_deltas=(usage(1),))
    expected = await loaded(store)
    for name in "efgh":
        await turn(store, node(name), usage_deltas=(usage(10),))
    for rows in (1, 2, 3, 1000):
        assert await lab.factory.engine.read(lambda rows=rows: history.load_at("s", 1, rows)) == expected


async def filled(factory: EngineSessionStoreFactory) -> None:
    """A session with three commits, the last of which hid what the second had brought, and a fork of the first."""
    store = await factory.create_store(SessionStoreCreateRequest("s"))
    await turn(store, *chain("a", "b"), checkpoint=checkpoint(1, tool_state=b"one"), usage_deltas=(usage(1),))
    await turn(store, node("c", "a"), checkpoint=checkpoint(2), usage_deltas=(usage(2),))
    await store.tombstone_nodes(["c"])
    await factory.history.fork_session("s", "f", at_revision=1)


async def told(factory: EngineSessionStoreFactory) -> list[object]:
    """All that the history tells of both sessions."""
    past = factory.history
    found: list[object] = [await past.list_commits(name) for name in ("s", "f")]
    return found + [await past.load_session_at(*each) for each in (("s", 1), ("s", 3), ("f", 1))]


async def test_a_copied_session_keeps_its_history(lab: Lab, tmp_path: Path) -> None:
    """On whatever engine it arrives: its commits, its past and its forks are told the same, and it goes on."""
    async with SqliteSessionStoreFactory(tmp_path / "source.db") as source:
        await filled(source)
        expected = await told(source)
        assert (await copy(source, lab.factory)).copied_count == 2
    assert await told(lab.factory) == expected
    store = await lab.store("f")
    await turn(store, node("x", "b"), session_id="f")
    assert await node_ids(store) == ["a", "b", "x"]
    await lab.assert_sound()


@pytest.mark.parametrize("engine", ["postgres", "sqlite"])
async def test_a_restored_session_keeps_its_history(engine: str, tmp_path: Path) -> None:
    """What was backed up from a server or a file is told the same afterwards."""
    (tmp_path / "lab").mkdir()
    async with Lab(ENGINES[engine], tmp_path / "lab") as lab:
        await filled(lab.factory)
        expected = await told(lab.factory)
        await backup(lab.factory, tmp_path / "backup.db")
    async with SqliteSessionStoreFactory(tmp_path / "restored.db") as restored:
        await restore(tmp_path / "backup.db", restored)
        assert await told(restored) == expected


async def test_a_damaged_receipt_is_an_error(lab: Lab) -> None:
    """A manifest that is not the one of the recorded checkpoint is not told as the result of a replay (law C3)."""
    store = await lab.store()
    stamped = commit(await lane(store), None, checkpoint=checkpoint(1)).with_turn_commit("t1")
    await store.commit_runtime_state(stamped)
    await lab.execute_raw("update commit_log set manifest = replace(manifest, 'turn_index\":1', 'turn_index\":2')")
    async for handle in lab.handles(store):
        with pytest.raises(DatabaseDamagedError, match="the receipt of revision 1 is damaged"):
            await handle.commit_runtime_state(stamped)
