"""Imports: every turn lands once, a second run adds nothing, and what went in comes out."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fastness.conformance import Lab
from fastness.conformance.builders import owner
from fastness.errors import (
    CommitOutcomeUnknownError,
    ContendedError,
    HeadRevisionConflictError,
    InvalidInputError,
    LeaseExpiredError,
    StoreError,
)
from fastness.formats.records import read_records
from fastness.model import (
    FullGraph,
    LeaseTimings,
    NextTurn,
    PendingTurnInputDraft,
    RuntimeCommit,
    RuntimeCommitResult,
    SessionStoreCreateRequest,
    TurnInput,
)
from fastness.model.protocols import RuntimePersistence
from fastness.model.transcript import Message, TextPart, message_node
from fastness.replay import ImportOptions, ImportReport, Replayer, exported_records, import_file, plan_replay, runner
from fastness.replay.runner import Settings

SYSTEM = {"role": "system", "content": "Be kind."}
HELLO = {"role": "user", "content": "Hello"}
CALL = {
    "content": None,
    "role": "assistant",
    "tool_calls": [{"function": {"arguments": '{"a": 1e2}', "name": "f"}, "id": "c", "type": "function"}],
}
ANSWER = {"role": "tool", "tool_call_id": "c", "name": "f", "content": "1"}
DONE = {"role": "assistant", "content": "Done."}
BYE = {"role": "user", "content": "Bye"}
OTHER = {"role": "assistant", "content": "Something else."}

RECORDS: list[Any] = [
    {"task": 1, "traj": [SYSTEM, HELLO, CALL, ANSWER, DONE, BYE, DONE], "reward": 0.5},
    {"task": 1, "traj": [SYSTEM, HELLO, CALL, ANSWER, OTHER, BYE, DONE], "reward": 1.0},
    {"task": 2, "traj": [SYSTEM, HELLO]},
    {"task": 2, "traj": []},
    {"traj": [SYSTEM, HELLO], "task": 2},
    {"task": 1, "traj": [DONE, ANSWER]},
]
BRANCHED = ImportOptions(branch_by="task")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry at once: what is tested is that it is retried."""
    monkeypatch.setattr(runner, "_LONGEST_PAUSE_S", 0.0)


def written(tmp_path: Path, records: Any = None) -> Path:
    """Write records to a file."""
    path = tmp_path / "talks.json"
    path.write_text(json.dumps(RECORDS if records is None else records))
    return path


async def exported(lab: Lab) -> dict[str, list[Any]]:
    """Export every session."""
    found = {}
    async for session_id in lab.factory.session_ids():
        store = await lab.factory.open_existing_store(SessionStoreCreateRequest(session_id))
        read = await store.load_session(FullGraph())
        found[session_id] = [json.loads(record) for record in exported_records(read.graph)]
    return found


async def test_every_conversation_becomes_a_session_and_comes_out_as_it_went_in(lab: Lab, tmp_path: Path) -> None:
    """Without branches, a record is one session, and its export is the whole record, order of keys included."""
    report = await import_file(lab.factory, written(tmp_path))
    assert report == ImportReport(6, 8, 0, 20, 0)
    found = await exported(lab)
    assert found == {f"talks-{index}": [record] for index, record in enumerate(RECORDS)}
    assert list(found["talks-4"][0]) == ["traj", "task"]
    await lab.assert_sound()


async def test_conversations_of_one_field_are_branches_that_share_their_beginning(lab: Lab, tmp_path: Path) -> None:
    """Nodes that two conversations begin with are stored once; every branch comes out whole."""
    report = await import_file(lab.factory, written(tmp_path), BRANCHED)
    assert report == ImportReport(6, 8, 0, 14, 0)
    assert await exported(lab) == {
        "talks-1": [RECORDS[0], RECORDS[1], RECORDS[5]],
        "talks-2": [RECORDS[2], RECORDS[3], RECORDS[4]],
    }
    await lab.assert_sound()


@pytest.mark.parametrize("options", [ImportOptions(), BRANCHED, ImportOptions(concurrency=1)])
async def test_a_second_run_adds_nothing(lab: Lab, tmp_path: Path, options: ImportOptions) -> None:
    """All turns are found in their place: no row of any table differs, but those of nobody's lane."""
    path = written(tmp_path)
    await import_file(lab.factory, path, options)
    before = await lab.dump()
    assert await import_file(lab.factory, path, options) == ImportReport(6, 0, 8, 0, 0)
    assert await lab.dump() == before


async def test_an_import_goes_on_where_a_smaller_one_ended(lab: Lab, tmp_path: Path) -> None:
    """A limit stops after so many records; the next run adds the rest."""
    path = written(tmp_path)
    assert (await import_file(lab.factory, path, ImportOptions(limit=2))).turns_replayed == 4
    assert await import_file(lab.factory, path) == ImportReport(6, 4, 4, 6, 0)


async def test_a_turn_is_settled_with_its_input_checkpoint_and_lane(lab: Lab, tmp_path: Path) -> None:
    """After the import no input waits, the turns are counted, the usage is charged and the lane is free."""
    usage = {"prompt_tokens": 5, "completion_tokens": 2}
    path = written(
        tmp_path, {"model": "m1", "messages": [HELLO, {**DONE, "usage": usage}, BYE, {**DONE, "usage": usage}]}
    )
    await import_file(lab.factory, path)
    store = await lab.reopen("talks-0")
    read = await store.load_session(FullGraph())
    assert read is not None
    assert read.meta.model == "m1"
    assert read.head.meta.revision == 2
    assert read.checkpoint is not None
    assert read.checkpoint.turn_state.turn_index == 2
    assert [(entry.source, entry.model, entry.usage.input_tokens) for entry in read.head.ledger] == [("turn", "m1", 10)]
    assert await store.list_pending_turn_inputs("talks-0") == []
    assert await lab.execute_raw("select count(*) from turn_input_evidence where state = 'completed'") == [(2,)]
    assert await lab.execute_raw("select count(*) from lane where lease_token is not null") == [(0,)]


@pytest.mark.parametrize(
    ("records", "options", "reason"),
    [
        ([RECORDS[0], {"a": 1}], ImportOptions(), r"record 2 \(line 1, byte \d+\) is no conversation"),
        ([RECORDS[0], {"traj": [7]}], ImportOptions(), r"record 2 .*, message 1 is not a JSON object"),
        ([RECORDS[0], {"traj": []}], BRANCHED, r"record 2 .* has no single value in the field 'task'"),
        ([RECORDS[0]], ImportOptions(session_id="x" * 513), r"session id of record 1 .* more than the 512"),
        ([RECORDS[0]], ImportOptions(session_id="{value}"), r"names \{value\}, which needs a field to branch by"),
        ([RECORDS[0]], ImportOptions(session_id=""), "session id template must not be empty"),
        ([RECORDS[0]], ImportOptions(session_id="{stem}{x}"), r"may have \{stem\}, \{index\} and \{value\} in braces"),
        ([RECORDS[0]], ImportOptions(session_id="{stem"), r"may have \{stem\}, \{index\} and \{value\} in braces"),
        (
            [RECORDS[2], {"traj": [HELLO, {}, {}, {}, {}]}],
            ImportOptions(commit_budget_bytes=1000),
            r"record 2 .*, turn 1 takes \d+ bytes, more than the 1000",
        ),
        ([RECORDS[0]], ImportOptions(concurrency=0), "concurrency is 0 and must be at least 1"),
    ],
)
async def test_a_wrong_file_leaves_no_half_of_itself(
    lab: Lab, tmp_path: Path, records: Any, options: ImportOptions, reason: str
) -> None:
    """Every record is proved before the first is written."""
    with pytest.raises(InvalidInputError, match=reason):
        await import_file(lab.factory, written(tmp_path, records), options)
    assert await exported(lab) == {}


@pytest.mark.parametrize(
    ("template", "branch_by", "expected"),
    [
        ("{stem}/{index}", None, "talks/0"),
        ("{value}-{index}-x", "name", "{index}-0-x"),
        (None, "name", "talks-{index}"),
    ],
)
async def test_a_template_names_sessions(
    lab: Lab, tmp_path: Path, template: str | None, branch_by: str | None, expected: str
) -> None:
    """The known names are filled in once: what a field says is no template."""
    path = written(tmp_path, [{"name": "{index}", "traj": [HELLO]}])
    await import_file(lab.factory, path, ImportOptions(session_id=template, branch_by=branch_by))
    assert list(await exported(lab)) == [expected]


async def test_branches_of_an_exported_session_can_be_chosen(lab: Lab, tmp_path: Path) -> None:
    """A leaf names one branch; a session that was never imported comes out as a plain list of messages."""
    await import_file(lab.factory, written(tmp_path), BRANCHED)
    store = await lab.reopen("talks-1")
    read = await store.load_session(FullGraph())
    assert read is not None
    assert [json.loads(one) for one in exported_records(read.graph, read.graph.leaves()[1])] == [RECORDS[1]]
    leaf = read.graph.nodes[1].node_id
    assert [json.loads(one) for one in exported_records(read.graph, leaf)] == [{"messages": [SYSTEM, HELLO]}]


async def test_a_record_near_the_budget_of_a_commit_is_refused_before_anything_is_written(
    lab: Lab, tmp_path: Path
) -> None:
    """A record just under 64 MiB would not fit the store with all that stands around it: the survey says so."""
    path = tmp_path / "large.json"
    path.write_text('[{"traj":[]},{"traj":[{"role":"assistant","content":"' + "x" * ((64 << 20) - 100) + '"}]}]')
    with pytest.raises(InvalidInputError, match=r"record 2 .* is larger than 50331648 bytes"):
        await import_file(lab.factory, path)
    with pytest.raises(InvalidInputError, match=r"record 2 .*, turn 1 takes \d+ bytes, more than the 67108864"):
        await import_file(lab.factory, path, ImportOptions(max_record_bytes=64 << 20))
    assert await exported(lab) == {}


async def test_what_cannot_be_read_twice_is_refused(lab: Lab, tmp_path: Path) -> None:
    """A pipe would be empty after the survey; nobody waits for its writer."""
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    with pytest.raises(InvalidInputError, match=r"pipe.json' is read twice and is no regular file; save it"):
        await import_file(lab.factory, pipe)


@pytest.mark.parametrize(
    ("record", "message", "expected"),
    [
        ({}, {}, "unknown"),
        ({"model": "m1"}, {}, "m1"),
        ({"model": "m1"}, {"model": "m2"}, "m2"),
        ({"model": "m1"}, {"model": "a\0b"}, "m1"),
        ({"model": "m1"}, {"model": 7}, "m1"),
        ({"model": "x" * 513}, {"model": ""}, "unknown"),
        ({"model": None}, {"model": "ü" * 257}, "unknown"),
    ],
)
async def test_usage_of_a_model_that_has_no_name_is_charged_all_the_same(
    lab: Lab, tmp_path: Path, record: dict[str, Any], message: dict[str, Any], expected: str
) -> None:
    """A bad name, or none, is no reason to refuse a conversation, and the record comes out as it went in."""
    reply = {**DONE, **message, "usage": {"prompt_tokens": 5}}
    records = [{**record, "messages": [HELLO, reply]}, {**record, "usage": {"prompt_tokens": 5}, "messages": [HELLO]}]
    await import_file(lab.factory, written(tmp_path, records))
    assert await exported(lab) == {"talks-0": records[:1], "talks-1": records[1:]}
    read = await (await lab.reopen("talks-0")).load_session(FullGraph())
    assert read is not None
    assert [(entry.model, entry.usage.input_tokens) for entry in read.head.ledger] == [(expected, 5)]


async def test_input_that_is_found_wrong_while_it_is_replayed_names_its_record(lab: Lab, tmp_path: Path) -> None:
    """Where a file holds many records, an error of the store alone would not say which one it is about."""
    store = await lab.store("talks-1")
    await store.enqueue_pending_turn_input(PendingTurnInputDraft("talks-1", NextTurn(), TurnInput.of_text("Mine!")))
    with pytest.raises(InvalidInputError, match=r"^record 2 \(line 1, byte \d+\): session 'talks-1' has other input"):
        await import_file(lab.factory, written(tmp_path), ImportOptions(limit=2))


class Crash(BaseException):
    """The process is gone."""


class Mortal:
    """A store whose process dies at its n-th call, before or after the call took effect."""

    def __init__(self, store: RuntimePersistence, calls: int, *, effective: bool) -> None:
        self._store = store
        self.left = calls
        self._effective = effective

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        async def call(*args: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left < 0 or (self.left == 0 and not self._effective):
                raise Crash
            result = await method(*args, **options)
            if self.left == 0:
                raise Crash
            return result

        return call


async def replayer(lab: Lab, path: Path, index: int, store: Any = None) -> Replayer:
    """Plan one record of a file for the session ``s``."""
    replay = plan_replay(list(read_records(path))[index], "s")
    return Replayer(store or await lab.store(), replay)


@pytest.mark.parametrize("effective", [False, True])
async def test_a_crash_at_any_call_is_made_good_by_the_next_run(lab: Lab, tmp_path: Path, effective: bool) -> None:
    """Wherever a process dies, the run after its lease's expiry settles all turns once and strands no input."""
    path = written(tmp_path)
    await (await replayer(lab, path, 0)).run()
    crashes = 0
    while True:
        session = f"s-{crashes}"
        replay = plan_replay(list(read_records(path))[1], session)
        mortal = Mortal(await lab.store(session), crashes + 1, effective=effective)
        try:
            await Replayer(mortal, replay).run()
        except Crash:
            crashes += 1
        else:
            break
        lab.clock.advance(30_000)
        await Replayer(await lab.store(session), replay).run()
        store = await lab.reopen(session)
        read = await store.load_session(FullGraph())
        assert read is not None
        assert [json.loads(one) for one in exported_records(read.graph)] == [RECORDS[1]]
        assert read.head.meta.revision == 2
        assert await store.list_pending_turn_inputs(session) == []
    # Two turns of enqueue, enter, claim and commit, after one look at an empty session.
    assert crashes >= 9
    await lab.assert_sound()


class Unlucky:
    """A store whose commits fail in a given way, once each; ``lands`` says whether the commit took effect."""

    def __init__(self, store: RuntimePersistence, errors: list[tuple[StoreError, bool]]) -> None:
        self._store = store
        self._errors = errors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def commit_runtime_state(self, commit: RuntimeCommit) -> RuntimeCommitResult:
        """Fail as long as there are errors left."""
        if not self._errors:
            return await self._store.commit_runtime_state(commit)
        error, lands = self._errors.pop(0)
        if lands:
            await self._store.commit_runtime_state(commit)
        raise error


@pytest.mark.parametrize(
    ("error", "lands"),
    [
        (CommitOutcomeUnknownError("lost"), True),
        (CommitOutcomeUnknownError("lost"), False),
        (HeadRevisionConflictError("s", 1, 2), False),
        (LeaseExpiredError("s", 1, "expired"), False),
    ],
)
async def test_a_commit_that_failed_or_was_not_answered_is_mended(
    lab: Lab, tmp_path: Path, error: StoreError, lands: bool
) -> None:
    """The session is looked at again and the turn is settled once."""
    unlucky = Unlucky(await lab.store(), [(error, lands)])
    await (await replayer(lab, written(tmp_path), 0, unlucky)).run()
    store = await lab.reopen()
    read = await store.load_session(FullGraph())
    assert read is not None
    assert read.head.meta.revision == 2
    assert [json.loads(one) for one in exported_records(read.graph)] == [RECORDS[0]]


async def test_a_fault_that_stays_is_raised_in_the_end(lab: Lab, tmp_path: Path) -> None:
    """Retries are bounded, and leave the lane free."""
    unlucky = Unlucky(await lab.store(), [(HeadRevisionConflictError("s", 1, 2), False)] * 100)
    with pytest.raises(HeadRevisionConflictError):
        await (await replayer(lab, written(tmp_path), 0, unlucky)).run()
    assert await lab.execute_raw("select count(*) from lane where lease_token is not null") == [(0,)]


async def test_turns_that_others_settle_meanwhile_are_kept(lab: Lab, tmp_path: Path) -> None:
    """A session that was moved on behind the import's back gets its turns behind what is there now."""
    path = written(tmp_path)
    replay = plan_replay(next(read_records(path)), "s")
    meddled = False

    async def meddle(turn: object) -> None:
        nonlocal meddled
        if not meddled:
            meddled = True
            await lab.execute_raw("update head set revision = revision + 1")
            await lab.execute_raw("update commit_log set revision = revision + 1")

    store = await lab.store()
    first = msgspec.structs.replace(replay, turns=replay.turns[:1])
    await Replayer(store, first).run()
    await Replayer(store, replay, Settings(while_claimed=meddle)).run()
    read = await store.load_session(FullGraph())
    assert read is not None
    assert read.head.meta.revision == 3
    assert [json.loads(one) for one in exported_records(read.graph)] == [RECORDS[0]]


async def test_input_of_others_is_never_taken_for_our_own(lab: Lab, tmp_path: Path) -> None:
    """A session where somebody else's input waits in front is left as it is, with a reason."""
    store = await lab.store()
    await store.enqueue_pending_turn_input(PendingTurnInputDraft("s", NextTurn(), TurnInput.of_text("Mine!")))
    with pytest.raises(InvalidInputError, match="session 's' has other input waiting"):
        await (await replayer(lab, written(tmp_path), 0)).run()
    assert await store.load_head() is None
    waiting = await store.list_pending_turn_inputs("s")
    assert [row.source_key is None for row in waiting] == [True, False]


async def test_a_lane_that_stays_busy_is_a_typed_error(lab: Lab, tmp_path: Path) -> None:
    """A live holder is waited for within bounds, and named."""
    store = await lab.store()
    await store.try_claim_session_execution_lease("s", owner("alive"), LeaseTimings().ttl_ms)
    replay = plan_replay(next(read_records(written(tmp_path))), "s")
    with pytest.raises(ContendedError, match="the lane of session 's' is held by 'alive'"):
        await Replayer(store, replay, Settings(lane_patience_s=0.0)).run()


async def test_two_imports_at_once_settle_every_turn_once(lab: Lab, tmp_path: Path) -> None:
    """Two runs of one file at the same time come to what one run comes to."""
    path = written(tmp_path)
    reports = await asyncio.gather(*(import_file(lab.factory, path, BRANCHED) for _ in range(2)))
    assert sum(report.turns_replayed for report in reports) == 8
    assert await exported(lab) == {
        "talks-1": [RECORDS[0], RECORDS[1], RECORDS[5]],
        "talks-2": [RECORDS[2], RECORDS[3], RECORDS[4]],
    }
    await lab.assert_sound()


async def test_a_conversation_that_went_on_is_exported_with_what_it_grew(lab: Lab, tmp_path: Path) -> None:
    """Messages behind the record's node belong to the record that is exported."""
    await (await replayer(lab, written(tmp_path), 2)).run()
    store = await lab.reopen()
    read = await store.load_session(FullGraph())
    assert read is not None
    node = message_node("n", read.graph.leaf_node_id, "2025-01-01T00:00:00Z", Message("n", "user", (TextPart("More"),)))
    grown = read.graph.append(node)
    expected = {"task": 2, "traj": [SYSTEM, HELLO, {"role": "user", "content": "More"}]}
    assert [json.loads(one) for one in exported_records(grown)] == [expected]
