"""Databases: the factories that create, open, list, check and delete sessions, and how a database is named.

sqlite:///sessions.db       a file, relative to the working directory
sqlite:////var/lib/a.db     a file, absolute
postgresql://user@host/db   a PostgreSQL database; &fastness_schema=name for another schema than "fastness"
memory:                     private to this process, gone with it
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import unquote

import msgspec

from fastness.decide import limits, limits_directory
from fastness.dispatch import EngineSessionDispatch
from fastness.engines.engine import Clock, Engine, system_clock
from fastness.engines.sqlite import BatchHook, SqliteEngine, check_path, holds_bytes
from fastness.environments import EngineProcessExecutionEnvStore
from fastness.errors import DatabaseDamagedError, DatabaseOpenError, InvalidInputError
from fastness.history import EngineSessionHistory
from fastness.liveness import is_dead as process_is_dead
from fastness.manifest import EngineAttachmentManifest, StoreOptions
from fastness.model import (
    CheckFinding,
    CheckReport,
    DurabilityTier,
    GcReport,
    LocalProcess,
    MaintenancePreview,
    SessionFilter,
    SessionMeta,
    SessionPage,
    SessionStoreCreateRequest,
)
from fastness.ops import check, directory, maintenance
from fastness.ops.check import SessionCheck
from fastness.store import SessionStore, collect
from fastness.workers import EngineWorkerRegistry

if TYPE_CHECKING:
    from psycopg_pool import AsyncConnectionPool

    from fastness.engines.postgres import PostgresEngine


class EngineSessionStoreFactory:
    """The sessions of one database, on any engine. Use it as an async context manager, or ``close`` it."""

    def __init__(self, engine: Engine, options: StoreOptions | None = None) -> None:
        self.engine = engine
        self.durability_tier: DurabilityTier = engine.durability_tier
        self.options = options or StoreOptions()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Finish what was started and let go of the database. Handles opened from here are closed with it."""
        await self.engine.close()

    async def create_store(self, request: SessionStoreCreateRequest) -> SessionStore:
        """Open a session, which is made if it is not there; what was known of it is never overwritten (law M3)."""
        limits_directory.check_create_request(request)
        limits.check_size(request, self.options.commit_budget_bytes)
        sid = await self.engine.write(lambda: directory.create(request))
        return SessionStore(self.engine, request.session_id, sid, self.options)

    async def open_existing_store(self, request: SessionStoreCreateRequest) -> SessionStore | None:
        """Open a session that is there; None where it is not."""
        limits_directory.check_create_request(request)
        sid = await self.engine.read(lambda: directory.sid_of(request.session_id))
        return None if sid is None else SessionStore(self.engine, request.session_id, sid, self.options)

    async def describe_session(self, session_id: str, changes: Mapping[str, Any]) -> SessionMeta:
        """Change some fields of a session's description, and give all of it. An unknown session comes to life.

        ``changes`` are fields of ``SessionMeta``: session_name, model, cwd, labels, priority, custom.
        """
        limits_directory.check_changes(session_id, changes)
        return await self.engine.write(lambda: directory.describe(session_id, changes))

    async def delete_session(self, session_id: str) -> None:
        """Remove all of a session, also while somebody works on it; twice is fine (law M3)."""
        limits.check_id("session_id", session_id)
        await self.engine.write(lambda: directory.delete(session_id))

    async def list_sessions(
        self, *, limit: int = 100, cursor: str | None = None, filters: SessionFilter | None = None
    ) -> SessionPage:
        """List sessions, oldest first, a page at a time.

        A session that comes to life while somebody goes through the pages may be on none of them.
        """
        limits.check_page_size(limit)
        wanted = filters or SessionFilter()
        limits_directory.check_filter(wanted)
        after = limits_directory.check_cursor(cursor)
        return await self.engine.read(lambda: directory.list_page(after, limit, wanted))

    async def check(self, progress: Callable[[int, int], None] | None = None) -> CheckReport:
        """Verify the whole database, session by session, beside running work. Faults are findings, not errors.

        ``progress`` is called with how many sessions were looked at and how many there are.
        """
        findings = [CheckFinding("file", None, fault) for fault in await self.engine.verify()]
        report = CheckReport(0, 0, 0, 0, 0, 0)
        done = nodes = commits = after = 0
        try:
            report = await self.engine.read(check.check_database)
            while (found := await self.engine.read(partial(check.next_session, after))) is not None:
                after, session_id = found
                one = await self._check_session(after, session_id)
                findings += one.findings
                nodes, commits, done = nodes + one.node_count, commits + one.commit_count, done + 1
                if progress is not None:
                    progress(done, max(report.session_count, done))
        except (DatabaseDamagedError, DatabaseOpenError) as error:
            findings.append(CheckFinding("file", None, f"the verification ended early: {error.detail}"))
        return msgspec.structs.replace(
            report,
            session_count=done,
            node_count=nodes,
            commit_count=commits,
            findings=(*findings, *report.findings),
        )

    async def _check_session(self, sid: int, session_id: str) -> SessionCheck:
        """Verify one session; damage below the level of records is a finding, too, and the next one is looked at."""
        try:
            return await self.engine.read(partial(check.check_session, sid))
        except DatabaseDamagedError as error:
            return SessionCheck(0, 0, (CheckFinding("file", session_id, error.detail),))

    async def migration_script(self) -> list[str]:
        """Give the statements that the database lacks to be up to date, for a person to run. Changes nothing."""
        return await self.engine.migration_script()

    async def migrate(self) -> None:
        """Open the database, which creates or migrates it where needed. Every other call does that by itself."""
        await self.engine.read(lambda: directory.sid_of(""))

    @property
    def attachment_manifest(self) -> EngineAttachmentManifest:
        """The attachment manifest of the whole database, for sweeps and listings."""
        return EngineAttachmentManifest(self.engine, self.options)

    @property
    def history(self) -> EngineSessionHistory:
        """What was committed to the sessions of this database, each as it was, and forks of them."""
        return EngineSessionHistory(self.engine, budget_bytes=self.options.commit_budget_bytes)

    @property
    def process_execution_envs(self) -> EngineProcessExecutionEnvStore:
        """The environments that are kept in this database."""
        return EngineProcessExecutionEnvStore(self.engine, budget_bytes=self.options.commit_budget_bytes)

    @property
    def dispatch(self) -> EngineSessionDispatch:
        """What there is to do in this database, its turns' beginnings and ends, and what was set aside."""
        return EngineSessionDispatch(self.engine, self.options)

    @property
    def workers(self) -> EngineWorkerRegistry:
        """Who runs turns on this database, and which lanes are held."""
        return EngineWorkerRegistry(self.engine)

    async def gc_unreachable(self, *, keep_revisions: int = 1) -> GcReport:
        """Delete the blobs of the database that no retained checkpoint needs (law M1)."""
        limits.check_positive("keep_revisions", keep_revisions)
        return await collect(self.engine, keep_revisions)

    async def maintenance_preview(self, *, keep_revisions: int = 1) -> MaintenancePreview:
        """Count what a vacuum of every session and a collection would remove. Nothing is changed."""
        limits.check_positive("keep_revisions", keep_revisions)
        return await self.engine.read(lambda: maintenance.preview(keep_revisions))

    async def session_ids(self) -> AsyncIterator[str]:
        """Go through all sessions, oldest first, a page in memory at a time."""
        cursor = None
        while True:
            page = await self.list_sessions(limit=500, cursor=cursor)
            for summary in page.sessions:
                yield summary.meta.session_id
            cursor = page.next_cursor
            if cursor is None:
                return


class SqliteSessionStoreFactory(EngineSessionStoreFactory):
    """All sessions in one SQLite file, which is made where it is not there.

    ``synchronous="full"``: an acknowledged commit survives the loss of power. ``"normal"``: it survives the death of
    the process; the last commits before a loss of power may be gone, none is torn. ``busy_timeout_ms`` bounds the wait
    for other processes, ``commit_budget_bytes`` what one call may write. ``clock`` gives milliseconds since the epoch.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        clock: Clock = system_clock,
        synchronous: Literal["full", "normal"] = "full",
        busy_timeout_ms: int = 30_000,
        allow_network_filesystem: bool = False,
        commit_budget_bytes: int = limits.DEFAULT_COMMIT_BUDGET_BYTES,
        is_dead: Callable[[LocalProcess], bool] = process_is_dead,
        batch_hook: BatchHook | None = None,
    ) -> None:
        engine = SqliteEngine(
            path,
            clock=clock,
            synchronous=synchronous,
            busy_timeout_ms=busy_timeout_ms,
            allow_network_filesystem=allow_network_filesystem,
            before_batch=batch_hook,
        )
        super().__init__(engine, StoreOptions(commit_budget_bytes, is_dead))


class PostgresSessionStoreFactory(EngineSessionStoreFactory):
    """All sessions in one schema of a PostgreSQL database, which is made where it is not there.

    It needs the extra ``fastness[postgres]``. ``conninfo`` is a url or connection string of libpq; several hosts make
    a fail-over. ``pool`` is an ``AsyncConnectionPool`` of the application's own instead. ``pool_size`` bounds the
    connections of this process, ``patience_ms`` every wait: for a connection, a lock, a server that restarts. Behind a
    transaction pooler, ``listen_url`` leads past it to where wake-ups can be heard. Without ``create``, a schema that
    is not there is an error. ``clock`` replaces the server's clock in tests.
    """

    def __init__(
        self,
        conninfo: str = "",
        *,
        pool: AsyncConnectionPool[Any] | None = None,
        schema: str = "fastness",
        pool_size: int = 8,
        patience_ms: int = 30_000,
        listen_url: str | None = None,
        create: bool = True,
        clock: Clock | None = None,
        commit_budget_bytes: int = limits.DEFAULT_COMMIT_BUDGET_BYTES,
        is_dead: Callable[[LocalProcess], bool] = process_is_dead,
        batch_hook: BatchHook | None = None,
    ) -> None:
        limits.check_positive("pool_size", pool_size)
        limits.check_positive("patience_ms", patience_ms)
        engine = _postgres_engine()(
            conninfo,
            pool=pool,
            schema=schema,
            pool_size=pool_size,
            patience_ms=patience_ms,
            listen_url=listen_url,
            create=create,
            clock=clock,
            before_batch=batch_hook,
        )
        super().__init__(engine, StoreOptions(commit_budget_bytes, is_dead))


def _postgres_engine() -> type[PostgresEngine]:
    """Import the engine when it is asked for: its driver is an extra."""
    try:
        from fastness.engines.postgres import PostgresEngine  # noqa: PLC0415
    except ImportError as error:
        raise DatabaseOpenError(
            f"PostgreSQL needs a driver that is not installed ({error.name})", "run: pip install 'fastness[postgres]'"
        ) from error
    return PostgresEngine


class InMemorySessionStoreFactory(EngineSessionStoreFactory):
    """Sessions in a private in-memory database: the same engine, gone with the process."""

    def __init__(
        self,
        *,
        clock: Clock = system_clock,
        commit_budget_bytes: int = limits.DEFAULT_COMMIT_BUDGET_BYTES,
        is_dead: Callable[[LocalProcess], bool] = process_is_dead,
        batch_hook: BatchHook | None = None,
    ) -> None:
        engine = SqliteEngine(None, clock=clock, before_batch=batch_hook)
        super().__init__(engine, StoreOptions(commit_budget_bytes, is_dead))


class InMemorySessionStore(SessionStore):
    """One session in a private in-memory database of its own, fresh on first use."""

    def __init__(self, session_id: str = "session", *, clock: Clock = system_clock) -> None:
        super().__init__(SqliteEngine(None, clock=clock), session_id)

    async def close(self) -> None:
        """Let go of the database and all that is in it."""
        await self._engine.close()


def open_database(url: str, *, existing_only: bool = False) -> EngineSessionStoreFactory:
    """Name a database by url. With ``existing_only`` a missing or empty file is an error instead of a new database.

    Raises ``InvalidInputError`` for a url of no known kind, ``DatabaseOpenError`` for a file that is not there or that
    cannot be reached, or for a driver that is not installed.
    """
    if not isinstance(url, str):
        raise InvalidInputError("database", "must be a url")
    if url == "memory:":
        return InMemorySessionStoreFactory()
    if url.startswith(("postgresql://", "postgres://")):
        conninfo, schema = _schema_of(url)
        return PostgresSessionStoreFactory(conninfo, schema=schema, create=not existing_only)
    scheme, mark, path = url.partition(":///")
    if scheme != "sqlite" or not mark or not path or "\0" in path:
        raise InvalidInputError(
            "database",
            "must be sqlite:///relative/path, sqlite:////absolute/path, postgresql://user@host/database or memory:",
        )
    check_path(path)
    if existing_only and not holds_bytes(path):
        raise DatabaseOpenError(f"there is no database at {path!r}", "name one that exists, or import something first")
    return SqliteSessionStoreFactory(path)


_SCHEMA = "fastness_schema"


def _schema_of(url: str) -> tuple[str, str]:
    """Take our own parameter out of a url; the rest is libpq's."""
    base, mark, query = url.partition("?")
    given = [part for part in query.split("&") if part]
    schemas = [unquote(part.partition("=")[2]) for part in given if part.partition("=")[0] == _SCHEMA]
    rest = "&".join(part for part in given if part.partition("=")[0] != _SCHEMA)
    return (f"{base}{mark}{rest}" if rest else base), (schemas[-1] if schemas else "fastness")
