"""What PostgreSQL, its url or its rights can have wrong: one typed error that says what to do and tells no secret."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg_pool import AsyncConnectionPool

from fastness.conformance.builders import chain, commit, lane, said
from fastness.errors import (
    BackendError,
    DatabaseOpenError,
    DatabaseReadOnlyError,
    HandleUnusableError,
    InvalidInputError,
    StoreError,
)
from fastness.model import SessionStoreCreateRequest
from fastness.persistence import PostgresSessionStoreFactory, open_database
from tests.engines.postgres_lab import HASTE_MS, Ground
from tests.servers.postgres import PostgresServer
from tests.servers.room import free_port

SECRET = "hunter2:/@#"  # noqa: S105 - made up
SESSION = SessionStoreCreateRequest("s")


async def refusal(factory: PostgresSessionStoreFactory) -> StoreError:
    """The error that the first use of a database comes to; it tells no secret."""
    async with factory:
        with pytest.raises(StoreError) as caught:
            await factory.create_store(SESSION)
    assert caught.value.__cause__ is None
    assert "hunter2" not in f"{caught.value} {factory.engine!r} {vars(caught.value)}"
    return caught.value


@pytest.fixture
def role(ground: Ground) -> Iterator[str]:
    """A role with a password and without rights."""
    name = f"r{ground.schema}"
    ground.server.create_role(name, SECRET)
    yield name
    with ground.server.admin() as connection:
        connection.execute(sql.SQL("drop owned by {}").format(sql.Identifier(name)))
    ground.server.drop_role(name)


async def made(ground: Ground) -> None:
    """Make the schema, with a session in it."""
    async with ground.factory() as factory:
        await factory.create_store(SESSION)


# Who and where


async def test_a_wrong_password_is_said_and_not_repeated(own_ground: Ground) -> None:
    """A wrong password is refused with the name of the user and with what to check."""
    own_ground.server.create_role("kim", SECRET)
    error = await refusal(own_ground.factory(own_ground.server.url("postgres", "kim", "hunter2 wrong")))
    assert type(error) is DatabaseOpenError
    assert 'password authentication failed for user "kim"' in str(error)
    assert str(error).endswith("; check user and password")
    error = await refusal(own_ground.factory(own_ground.server.url("postgres", "kim")))
    assert "no password supplied" in str(error)
    assert str(error).endswith("; check user and password")


@pytest.mark.parametrize(
    ("url", "said", "remedy"),
    [
        ("postgresql://u:hunter2@no-such-host.invalid/db", "no-such-host.invalid", "check the host's name"),
        ("postgresql://u:hunter2@127.0.0.1:{free}/db", "refused", "check host and port, and start the server"),
        ("postgresql:///db?host=/no/such/socket", "/no/such/socket", "check host and port, and start the server"),
        ("postgresql://u:hunter2@127.0.0.1:99999/db", "port", "check the url and the server's log"),
    ],
)
async def test_a_server_that_is_not_there_is_named(url: str, said: str, remedy: str) -> None:
    """An unknown host, a closed port, a missing socket and a port out of range are told apart."""
    error = await refusal(PostgresSessionStoreFactory(url.format(free=free_port()), patience_ms=1000))
    assert type(error) is DatabaseOpenError
    assert said in str(error)
    assert str(error).endswith(f"; {remedy}")


async def test_an_unknown_database_and_an_unknown_role_are_named(ground: Ground) -> None:
    """What does not exist on the server is called by its name, with the advice to create it."""
    error = await refusal(ground.factory(ground.server.url("nowhere")))
    assert type(error) is DatabaseOpenError
    assert 'database "nowhere" does not exist' in str(error)
    assert str(error).endswith("; create the database, or name one that is there")
    error = await refusal(ground.factory(ground.server.url("postgres", "nobody_here")))
    assert type(error) is DatabaseOpenError
    assert str(error).endswith(("; create the role, or name one that is there", "; check user and password"))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hunter2@[::1/db",
        "postgresql://u:hunter2@h/db?no_such_option=1",
        "postgresql://u:hunter2@h/db?sslmode",
        "postgresql://u:x@hunter2@h/db",
        "postgresql://u:hunter2/x@h/db",
        "postgresql://u:1/hunter2@h/db",
        "host=h port=hunter2",
        "password='hunter2",
        "hunter2",
        "postgresql://u:%00hunter2@h/db",
        "postgresql://u:hunter2\0@h/db",
        None,
        5,
    ],
)
def test_a_string_that_is_no_url_is_refused_without_repeating_it(url: Any) -> None:
    """What libpq cannot read, or reads as something else than was meant, is invalid input; none of it is repeated."""
    with pytest.raises(InvalidInputError, match=r"^database ") as caught:
        PostgresSessionStoreFactory(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"schema": '"; drop schema public'}, "schema"),
        ({"schema": "s" * 64}, "schema"),
        ({"schema": ""}, "schema"),
        ({"schema": "a\0b"}, "schema"),
        ({"schema": "käse"}, "schema"),
        ({"schema": "a\n"}, "schema"),
        ({"schema": None}, "schema"),
        ({"schema": "pg_mine"}, "schema"),
        ({"pool_size": 0}, "pool_size"),
        ({"pool_size": -1}, "pool_size"),
        ({"pool_size": "8"}, "pool_size"),
        ({"pool_size": 1.5}, "pool_size"),
        ({"pool_size": True}, "pool_size"),
        ({"patience_ms": 0}, "patience_ms"),
        ({"patience_ms": None}, "patience_ms"),
        ({"patience_ms": 2**40}, "patience_ms"),
        ({"listen_url": "no url"}, "listen_url"),
        ({"pool": "postgresql://h/db"}, "pool"),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(fields: dict[str, Any], what: str) -> None:
    """Names of schemas that would need quoting, sizes below one and wrong types are refused before anything is done."""
    with pytest.raises(InvalidInputError) as caught:
        PostgresSessionStoreFactory("postgresql://h/db", **fields)
    assert caught.value.what == what


def test_a_schema_in_the_url_is_checked_like_any_other() -> None:
    """The parameter of the url goes through the same gate."""
    with pytest.raises(InvalidInputError, match=r"^schema "):
        open_database("postgresql://h/db?fastness_schema=a%22b")


def test_a_missing_driver_is_an_error_that_says_what_to_install() -> None:
    """Without psycopg, SQLite works and a PostgreSQL url is refused with the command that installs the driver."""
    script = """
import sys
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {'psycopg', 'psycopg_pool', 'psycopg_binary'}:
            raise ImportError('walled off', name=name)
sys.meta_path.insert(0, Wall())
from fastness.errors import DatabaseOpenError
from fastness.persistence import open_database
open_database('memory:')
try:
    open_database('postgresql://u:hunter2@h/db')
except DatabaseOpenError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == (
        "PostgreSQL needs a driver that is not installed (psycopg); run: pip install 'fastness[postgres]'\n"
    )


# Rights


async def test_a_role_without_create_on_the_database_is_told_what_to_grant(ground: Ground, role: str) -> None:
    """Where the schema is missing and the role may not make one, the error names the right that is lacking."""
    error = await refusal(ground.factory(ground.server.url(ground.database, role, SECRET)))
    assert type(error) is DatabaseOpenError
    assert "permission denied for database" in str(error)
    assert "grant this role create on the database" in str(error)


async def test_a_role_without_usage_of_the_schema_is_told_what_to_grant(ground: Ground, role: str) -> None:
    """A schema that is there and closed to the role is a missing right, and not a missing schema."""
    await made(ground)
    error = await refusal(ground.factory(ground.server.url(ground.database, role, SECRET)))
    assert type(error) is DatabaseOpenError
    assert f"permission denied for schema {ground.schema}" in str(error)
    assert "; grant this role usage of the schema, and select, insert, update and delete on its tables" in str(error)


async def test_a_role_that_may_only_select_reads_and_is_refused_by_the_first_write(ground: Ground, role: str) -> None:
    """With usage and select alone, reads answer, and a write names the table and the right that is lacking."""
    await made(ground)
    ground.execute(f'grant usage on schema "{ground.schema}" to "{role}"')
    ground.execute(f'grant select on all tables in schema "{ground.schema}" to "{role}"')
    async with ground.factory(ground.server.url(ground.database, role, SECRET)) as factory:
        store = await factory.open_existing_store(SESSION)
        assert store is not None
        assert await store.load_head() is None
        with pytest.raises(DatabaseOpenError, match=r"permission denied for table lane.*; grant this role usage"):
            await store.enqueue_pending_turn_input(said("x"))
        assert await store.list_pending_turn_inputs("s") == []


async def test_a_role_needs_no_more_rights_than_the_error_says(ground: Ground, role: str) -> None:
    """With usage, select, insert, update and delete, a role that owns nothing runs a turn."""
    await made(ground)
    ground.execute(f'grant usage on schema "{ground.schema}" to "{role}"')
    ground.execute(f'grant select, insert, update, delete on all tables in schema "{ground.schema}" to "{role}"')
    async with ground.factory(ground.server.url(ground.database, role, SECRET)) as factory:
        store = await factory.create_store(SessionStoreCreateRequest("new"))
        lease = await lane(store, session_id="new")
        assert (await store.commit_runtime_state(commit(lease, None, *chain("a")))).head_revision == 1


# A server that cannot be written, or has no room


async def test_a_database_that_is_set_to_read_only_is_refused(own_ground: Ground) -> None:
    """A database whose transactions only read by default cannot be written."""
    url = own_ground.server.create_database("frozen")
    own_ground.execute("alter database frozen set default_transaction_read_only = on")
    error = await refusal(own_ground.factory(url))
    assert type(error) is DatabaseReadOnlyError


async def test_a_role_with_too_many_connections_is_told_so(ground: Ground, role: str) -> None:
    """Where the role's limit is used up, the error says which limit and what helps."""
    ground.execute(f'alter role "{role}" connection limit 1')
    url = ground.server.url(ground.database, role, SECRET)
    with psycopg.connect(url):
        error = await refusal(ground.factory(url, patience_ms=HASTE_MS))
    assert type(error) is DatabaseOpenError
    assert f'too many connections for role "{role}"' in str(error)
    assert str(error).endswith("; lower pool_size, put a pooler in front, or raise max_connections")


async def test_a_server_without_a_free_connection_says_so() -> None:
    """A server whose connections are all taken refuses the opening, and takes it when one is free again."""
    with PostgresServer(fsync=False, settings={"max_connections": "6", "superuser_reserved_connections": "0"}) as small:
        taken: list[psycopg.Connection] = []
        with contextlib.suppress(psycopg.OperationalError):
            while len(taken) < 10:
                taken.append(psycopg.connect(small.url()))
        assert 1 <= len(taken) <= 6
        error = await refusal(PostgresSessionStoreFactory(small.url(), patience_ms=HASTE_MS))
        assert type(error) is DatabaseOpenError
        assert "too many clients" in str(error)
        assert str(error).endswith("; lower pool_size, put a pooler in front, or raise max_connections")
        for connection in taken[:2]:
            connection.close()
        async with PostgresSessionStoreFactory(small.url(), pool_size=8) as factory:
            await factory.create_store(SESSION)
        for connection in taken[2:]:
            connection.close()


# A schema that somebody changed


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ("drop table token_usage", "the table token_usage is missing"),
        ("alter table head drop column config", "the table head has no column config"),
        ("alter table lane alter admission_seq type integer", "the column admission_seq of lane is integer"),
        ("drop function fastness_require", "the function fastness_require is missing"),
        ("alter table node rename to knot", "the table node is missing"),
    ],
)
async def test_a_schema_changed_by_hand_is_refused_by_what_was_changed(
    ground: Ground, change: str, finding: str
) -> None:
    """A table, column, type or function that is not as it was made is named when the database is opened."""
    await made(ground)
    ground.execute(change)
    error = await refusal(ground.factory())
    assert type(error) is DatabaseOpenError
    assert finding in str(error)
    assert str(error).endswith("; undo the change or restore a backup; nothing was changed now")


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ("drop table commit_log", "42P01"),
        ("alter table head drop column config", "42703"),
        ("drop function fastness_require", "42883"),
        ("alter table commit_log alter column turn_id type bytea using turn_id::bytea", "42"),
    ],
)
async def test_a_schema_changed_under_an_open_database_is_an_error_that_leaves_no_trace(
    ground: Ground, change: str, state: str
) -> None:
    """What is changed by hand while sessions are open fails the commit in words, and nothing of the commit is there."""
    async with ground.factory() as factory:
        store = await factory.create_store(SESSION)
        lease = await lane(store)
        await store.commit_runtime_state(commit(lease, None, *chain("a")).with_turn_commit("t1"))
        ground.execute(change)
        with pytest.raises(DatabaseOpenError, match="are not as this release made them") as caught:
            await store.commit_runtime_state(commit(lease, 1, *chain("b", after="a")).with_turn_commit("t2"))
        assert f"SQLSTATE {state}" in str(caught.value)
        assert "run 'fastness check'" in str(caught.value)
        assert ground.execute("select node_id from node") == [("a",)]


@pytest.mark.parametrize("index", ["session_parent", "node_by_id", "head_pkey"])
async def test_an_index_that_was_dropped_is_a_finding_of_the_check(ground: Ground, index: str) -> None:
    """Without an index everything still answers, ever slower: the database opens, and its check names the index."""
    await made(ground)
    if index.endswith("_pkey"):
        ground.execute(f"alter table {index.removesuffix('_pkey')} drop constraint {index}")
    else:
        ground.execute(f"drop index {index}")
    async with ground.factory() as factory:
        assert [finding.detail for finding in (await factory.check()).findings] == [f"the index {index} is missing"]


async def test_the_check_of_an_open_database_finds_what_was_changed_since(ground: Ground) -> None:
    """A column that is dropped after the opening is a finding, not a crash of the check."""
    async with ground.factory() as factory:
        await factory.create_store(SESSION)
        ground.execute("alter table head drop column config")
        findings = [finding.detail for finding in (await factory.check()).findings]
    assert "the table head has no column config" in findings


async def test_what_somebody_added_is_none_of_our_business(ground: Ground) -> None:
    """A table, a column and an index beside ours change nothing."""
    await made(ground)
    ground.execute("create table notes (x int)")
    ground.execute("alter table head add column note text")
    ground.execute("create index mine on head (note)")
    async with ground.factory() as factory:
        store = await factory.create_store(SESSION)
        lease = await lane(store)
        await store.commit_runtime_state(commit(lease, None, *chain("a")))
        assert (await factory.check()).findings == ()


async def test_a_newer_schema_is_refused_by_number(ground: Ground) -> None:
    """A database that a later release has migrated is left alone, and the error names both versions."""
    await made(ground)
    ground.execute("insert into fastness_migration values (99, 'later')")
    error = await refusal(ground.factory())
    assert type(error) is DatabaseOpenError
    assert "the database has schema version 99, this release of fastness knows versions up to 3" in str(error)
    assert "; upgrade fastness; nothing was changed" in str(error)


async def test_the_next_call_tries_again_once_the_cause_is_mended(own_ground: Ground) -> None:
    """A failed opening is not remembered: when the server is up, the same object works."""
    server = own_ground.server
    assert isinstance(server, PostgresServer)
    server.stop()
    async with own_ground.factory(patience_ms=HASTE_MS) as factory:
        with pytest.raises(DatabaseOpenError, match="refused"):
            await factory.create_store(SESSION)
        server.start()
        store = await factory.create_store(SESSION)
        assert await store.load_head() is None


async def test_a_pool_that_was_not_opened_is_an_error_that_says_so(ground: Ground) -> None:
    """An application that hands in a pool before it opened it, or after it closed it, is told what to do."""
    pool: Any = AsyncConnectionPool(ground.url, open=False, min_size=1)
    error = await refusal(ground.factory("", pool=pool))
    assert isinstance(error, BackendError | HandleUnusableError)
    assert "not open" in str(error)
    assert "; open the pool" in str(error)
