"""Migrations of the schema: by many processes at once, interrupted, and with the same end as a fresh start."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apsw
import psycopg
import pytest

from fastness.conformance.builders import BOB, chain, content_id, intent, lane, node_ids, release, said, turn, work
from fastness.engines import postgres_open, sqlite_open
from fastness.errors import BackendError, DatabaseOpenError
from fastness.model import SessionStoreCreateRequest, TurnBegun
from fastness.persistence import SqliteSessionStoreFactory, process_execution_env_ref
from fastness.sql.migrations import Migration, migrations, script
from fastness.sql.schema import POSTGRES_TYPES, SQLITE_TYPES, Types
from tests.engines.postgres_lab import Ground, ground_of

S = SessionStoreCreateRequest("s")
ROOT = Path(__file__).parents[2]

STARTER = """
import asyncio, sys
from fastness.model import SessionStoreCreateRequest, TurnBegun
from fastness.persistence import open_database
async def main(url):
    sys.stdin.readline()
    async with open_database(url) as factory:
        await factory.create_store(SessionStoreCreateRequest("s"))
        print((await factory.check()).findings)
asyncio.run(main(sys.argv[1]))
"""


def start_ten(url: str) -> list[str]:
    """Open a database in ten processes at once; what each of them says."""
    command = [sys.executable, "-c", STARTER, url]
    started = [subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-2, text=True, cwd=ROOT) for _ in range(10)]
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return [process.communicate()[0].strip() for process in started]


def test_ten_processes_may_start_at_once_against_an_empty_database(own_ground: Ground) -> None:
    """All of them open the same database, even where transactions are serializable, and the schema is made once."""
    server = own_ground.server
    with server.database() as url:
        name = psycopg.conninfo.conninfo_to_dict(url)["dbname"]
        own_ground.execute(f"alter database {name} set default_transaction_isolation = 'serializable'")
        assert start_ten(url) == ["()"] * 10
        with psycopg.connect(url) as connection:
            assert connection.execute("select version from fastness.fastness_migration").fetchall() == [
                (1,),
                (2,),
                (3,),
            ]


FOURTH = (
    "alter table lane add column mood text",
    "create table moods (mood text not null primary key)",
    "create index lane_mood on lane (mood)",
)


def steps_to(version: int, *more: str) -> Any:
    """What stands in for the list of migrations: those there are, and a fourth that runs ``more``; the first few."""

    def known(types: Types) -> Sequence[Migration]:
        fourth = Migration(4, "it's a mood", (*FOURTH, *more))
        return (*migrations(types), fourth)[:version]

    return known


@pytest.mark.parametrize("engine", ["postgres", "sqlite"])
async def test_an_interrupted_migration_leaves_nothing_and_is_run_whole_later(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, tmp_path: Path, engine: str
) -> None:
    """A step that fails at its last statement undoes all of them; when it can succeed, old sessions are all there."""
    ground: Ground | None = request.getfixturevalue("ground") if engine == "postgres" else None

    def opened() -> Any:
        return ground.factory() if ground is not None else SqliteSessionStoreFactory(tmp_path / "m.db")

    def known(version: int, *more: str) -> None:
        for module in (postgres_open, sqlite_open):
            monkeypatch.setattr(module, "migrations", steps_to(version, *more))

    known(3)
    async with opened() as factory:
        await turn(await factory.create_store(S), *chain("a", "b"))
    known(4, "insert into no_such_table values (1)")
    async with opened() as factory:
        with pytest.raises(BackendError):
            await factory.create_store(S)
    known(3)
    async with opened() as factory:
        store = await factory.create_store(S)
        assert await node_ids(store) == ["a", "b"]
        assert (await factory.check()).findings == ()
    known(4)
    async with opened() as factory:
        store = await factory.create_store(S)
        await turn(store, *chain("c", after="b"))
        assert await node_ids(store) == ["a", "b", "c"]
    known(3)
    async with opened() as factory:
        with pytest.raises(
            DatabaseOpenError, match="schema version 4, this release of fastness knows versions up to 3"
        ):
            await factory.create_store(S)


UNDO_ENVIRONMENTS = (
    "drop table environment",
    "drop index attachment_intent",
    "alter table attachment drop column intent_id",
    "create index attachment_intent on attachment (recorded_ms) where committed = 0",
    "drop index attachment_release_time",
    "create index attachment_release_time on attachment_release (released_ms)",
    "delete from fastness_migration where version = 2",
)
UNDO_AGENDA = (
    "drop index session_created",
    "drop index session_parent",
    "create index session_parent on session (parent_session_id) where parent_session_id is not null",
    *(f"drop table {table}" for table in ("quarantine", "session_label", "worker")),
    *(f"drop index {index}" for index in ("lane_agenda", "lane_owner", "turn_input_by_time", "queued_work_by_time")),
    *(f"alter table lane drop column {column}" for column in ("ready_ms", "backoff_ms", "priority", "interrupt")),
    *(f"alter table turn_input drop column {column}" for column in ("available_ms", "attempts")),
    "alter table queued_work drop column attempts",
    *(f"alter table commit_log drop column {column}" for column in ("usage", "next_seq", "fencing_token")),
    "delete from fastness_migration where version = 3",
)


def undo(ground: Ground | None, path: Path, *statements: str) -> None:
    """Take steps back, behind the library's back."""
    if ground is not None:
        for statement in statements:
            ground.execute(statement)
        return
    connection = apsw.Connection(str(path))
    for statement in statements:
        connection.execute(statement)
    connection.close()


@pytest.mark.parametrize("engine", ["postgres", "sqlite"])
async def test_a_database_of_the_first_version_is_migrated_when_it_is_opened(
    request: pytest.FixtureRequest, tmp_path: Path, engine: str
) -> None:
    """All its sessions are there, it keeps environments from now on, and its check finds nothing."""
    ground: Ground | None = request.getfixturevalue("ground") if engine == "postgres" else None

    def opened() -> Any:
        return ground.factory() if ground is not None else SqliteSessionStoreFactory(tmp_path / "m.db")

    async with opened() as factory:
        store = await factory.create_store(S)
        await turn(store, *chain("a", "b"))
        await store.record_intent(intent(content_id("cat")))
    undo(ground, tmp_path / "m.db", *UNDO_AGENDA, *UNDO_ENVIRONMENTS)
    environment = b'{"cwd": "/srv"}'
    ref = process_execution_env_ref(environment)
    async with opened() as factory:
        store = await factory.create_store(S)
        assert await node_ids(store) == ["a", "b"]
        await store.commit_refs("s", [content_id("cat")])
        await factory.process_execution_envs.put_process_execution_env(ref, environment)
        assert await factory.process_execution_envs.get_process_execution_env(ref) == environment
        assert (await factory.check()).findings == ()


@pytest.mark.parametrize("engine", ["postgres", "sqlite"])
async def test_a_database_of_the_second_version_is_migrated_when_it_is_opened(
    request: pytest.FixtureRequest, tmp_path: Path, engine: str
) -> None:
    """Input and work that waited in it, held or not, is on the agenda and run; a session without any is not."""
    ground: Ground | None = request.getfixturevalue("ground") if engine == "postgres" else None

    def opened() -> Any:
        return ground.factory() if ground is not None else SqliteSessionStoreFactory(tmp_path / "m.db")

    async with opened() as factory:
        store = await factory.create_store(S)
        for session_id in ("input", "work", "held"):
            await store.enqueue_pending_turn_input(said("hello", session_id=session_id, input_id="i"))
        await store.cancel_pending_turn_input("work", "i")
        await store.enqueue_queued_work(work(session_id="work"))
        lease = await lane(store, session_id="held")
        await store.claim_next_turn_inputs("held", lease.fence(), max_inputs=1)
        await release(store, lease)
        await turn(store, *chain("a", "b"))
    undo(ground, tmp_path / "m.db", *UNDO_AGENDA)
    async with opened() as factory:
        assert await node_ids(await factory.create_store(S)) == ["a", "b"]
        agenda = await factory.dispatch.read_agenda()
        assert sorted(each.session_id for each in agenda.sessions) == ["held", "input", "work"]
        for session_id in ("held", "input", "work"):
            begun = await factory.dispatch.begin_turn(session_id, BOB, 30_000)
            assert isinstance(begun, TurnBegun)
            assert (begun.input_claim is None, begun.work_claim is None) == (session_id == "work", session_id != "work")
        assert (await factory.dispatch.read_agenda()).sessions == ()
        assert (await factory.check()).findings == ()


@pytest.mark.parametrize("engine", ["postgres", "sqlite"])
async def test_an_older_database_that_was_changed_by_hand_is_refused_and_stays_as_it_was(
    request: pytest.FixtureRequest, tmp_path: Path, engine: str
) -> None:
    """It is not migrated first and refused afterwards: the build that could read it still can."""
    ground: Ground | None = request.getfixturevalue("ground") if engine == "postgres" else None
    path = tmp_path / "m.db"
    first = migrations(SQLITE_TYPES if ground is None else POSTGRES_TYPES)[:1]
    statements = (*script(first), "alter table lane drop column liveness")
    if ground is not None:
        for statement in (f'create schema "{ground.schema}"', *statements):
            ground.execute(statement)
    else:
        connection = apsw.Connection(str(path))
        connection.pragma("journal_mode", "wal")
        for statement in statements:
            connection.execute(statement)
        connection.close()
    before = path.read_bytes() if ground is None else b""
    for _ in range(2):
        factory = ground.factory() if ground is not None else SqliteSessionStoreFactory(path)
        async with factory:
            with pytest.raises(DatabaseOpenError, match="lane has no column liveness"):
                await factory.create_store(S)
    if ground is not None:
        assert ground.execute("select version from fastness_migration") == [(1,)]
    else:
        assert path.read_bytes() == before


SHAPE = """
    select json_agg(line order by line) from (
        select format('%%s.%%s %%s %%s %%s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
            pg_get_expr(d.adbin, d.adrelid)) as line
        from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
        left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
        where c.relnamespace = current_schema()::regnamespace and c.relkind = 'r'
        union all select replace(indexdef, current_schema(), '') from pg_indexes where schemaname = current_schema()
        union all select prosrc from pg_proc where pronamespace = current_schema()::regnamespace
        union all select version || name from fastness_migration) shape"""


async def test_a_migrated_schema_equals_a_fresh_one(monkeypatch: pytest.MonkeyPatch, own_ground: Ground) -> None:
    """Columns, types, defaults, indexes and functions are the same whether the steps ran years apart or at once."""
    with ground_of(own_ground.server) as fresh:
        monkeypatch.setattr(postgres_open, "migrations", steps_to(3))
        async with own_ground.factory() as factory:
            await factory.create_store(S)
        monkeypatch.setattr(postgres_open, "migrations", steps_to(4))
        for ground in (own_ground, fresh):
            async with ground.factory() as factory:
                await factory.create_store(S)
        shapes = [ground.execute(SHAPE)[0][0] for ground in (own_ground, fresh)]
        assert shapes[0] == shapes[1]
        assert "4it's a mood" in json.dumps(shapes[0])
        assert len(shapes[0]) > len(postgres_open.expected_schema().columns)
        assert POSTGRES_TYPES.functions != ()
