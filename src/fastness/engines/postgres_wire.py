"""One connection to a PostgreSQL server: statements go out in pipelines, answers come back in order.

It promises that waiting never blocks the event loop, and that an answer is told from a refusal (``Refused``), which
says whether the statements behind it were begun, and from a connection that is gone (``Lost``). It ends a pipeline
whenever it waits for answers: only behind such an end does the server count how long it is kept waiting, and cut off a
process that stands still in a transaction. Without a transaction around it, the end of a pipeline commits what stands
in it. It works on libpq's own connection, below cursors, because what a turn costs is mostly what each statement costs.
It knows no program.
"""

from __future__ import annotations

import asyncio
import select
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn, TypeAlias

import psycopg
from psycopg import pq
from psycopg.adapt import Transformer

from fastness.engines.postgres_dialect import Command, Value
from fastness.sql.program import Row

_INT8 = struct.Struct("!q").pack
_OIDS = {int: 20, str: 25, bytes: 17, bool: 16, type(None): 0}
_BINARY = pq.Format.BINARY

_DONE = frozenset({int(pq.ExecStatus.COMMAND_OK), int(pq.ExecStatus.TUPLES_OK)})
_SYNCED = int(pq.ExecStatus.PIPELINE_SYNC)
_ALIVE = pq.ConnStatus.OK
_IDLE = pq.TransactionStatus.IDLE
_IN_TRANSACTION = frozenset({pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR})

_MAX_PREPARED = 1_000
_prepared_so_far = [0]  # names are unique in the process, for whoever shares a connection with us


class Refused(Exception):  # noqa: N818 - what the server said, before it is translated
    """The server refused a statement.

    ``ends_connection``: it was the last word. ``stopped_before_the_end``: the server itself said so, and did not come
    to the last of the statements that were waited for.
    """

    def __init__(self, result: Any, at: int, of: int) -> None:
        self.sqlstate = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
        severity = (result.error_field(pq.DiagnosticField.SEVERITY_NONLOCALIZED) or b"").decode()
        self.ends_connection = severity != "ERROR"
        # A pooler speaks for a server that it lost, and cannot know how far that one came.
        self.stopped_before_the_end = bool(severity) and at < of - 1
        # The detail and the context of a message may carry values; its primary line does not.
        message = result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b""
        super().__init__(message.decode(errors="replace"))


class Lost(Exception):  # noqa: N818 - what happened to the connection, before it is translated
    """The connection is gone."""


_Pending: TypeAlias = "tuple[bool, str | None]"
"""What an answer is waited for: whether it gives rows, and the text that it prepares."""


class Wire:
    """A connection in use by one program at a time. ``transactions`` counts them; ``round`` is its keeper's.

    ``own_session``: what is set on the connection stays and is ours alone. ``bounded``: the server ends a transaction
    that takes too long, and can be told of one that may. ``prepares`` is False behind a transaction
    pooler, where the next transaction may meet another server process that knows nothing of what was prepared before.
    """

    def __init__(
        self, connection: psycopg.AsyncConnection[Any], *, prepares: bool, own_session: bool, bounded: bool = False
    ) -> None:
        self.connection = connection
        self.own_session = own_session
        self.bounded = bounded
        self.transactions = 0
        self.round = 0
        self.tag = b""
        self._pgconn = connection.pgconn
        self._prepares = prepares
        self._prepared: dict[str, bytes] = {}
        self._transformer = Transformer(connection)
        self._pending: list[_Pending] = []
        self._open_ends = 0
        self._poll: select.poll | None = None
        self._watched_by: asyncio.AbstractEventLoop | None = None
        self._socket = -1
        self._waiter: asyncio.Future[None] | None = None

    # --- in and out of use ---

    def begin(self) -> None:
        """Take the connection into use. Raises ``Lost`` where the server has gone away since."""
        pgconn = self._pgconn
        self._pending = []
        self._open_ends = 0
        try:
            while self._readable():
                pgconn.consume_input()
            if pgconn.status != _ALIVE:
                raise Lost("the connection was closed while it was idle")
            if self._watched_by is None:
                pgconn.enter_pipeline_mode()
                self._watch()
        except psycopg.Error as error:
            raise Lost(_text(error)) from error
        self.transactions += 1

    def _readable(self) -> bool:
        """Whether something came in while nobody asked: most often the end."""
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self._pgconn.socket, select.POLLIN)
        return bool(self._poll.poll(0))

    def _watch(self) -> None:
        """Have the event loop tell when something comes in, until ``leave``: to ask it each time costs more."""
        self._watched_by = asyncio.get_running_loop()
        self._socket = self._pgconn.socket
        self._watched_by.add_reader(self._socket, self._came_in)

    def leave(self) -> None:
        """Have the event loop forget the connection. It comes before whatever closes its socket, if libpq did not."""
        if self._watched_by is not None:
            with suppress(OSError):  # a closed socket that was to be written, too: the loop forgets all of it
                self._watched_by.remove_reader(self._socket)
            self._watched_by = None

    @property
    def is_idle(self) -> bool:
        """Whether it can be taken into use again: it is alive, and in no transaction."""
        return bool(self._pgconn.transaction_status == _IDLE)

    @property
    def is_ready(self) -> bool:
        """Whether it can be taken into use again as it is."""
        return self.is_idle and self._watched_by is not None

    def end(self) -> bool:
        """Give the connection out of use; False: it is in no state to be used again."""
        self.leave()
        try:
            self._pgconn.exit_pipeline_mode()
        except psycopg.Error:
            return False
        return self.is_idle

    # --- sending ---

    def put(self, command: Command, *, wants_rows: bool = True) -> None:
        """Queue a statement. Its rows are answered where it gives some and they are wanted."""
        sql, params, gives_rows = command
        values = [
            value.encode() if type(value) is str else _INT8(value) if type(value) is int else _encoded(value)
            for value in params
        ]
        formats = [_BINARY] * len(values)
        try:
            name = self._name(sql, params) if self._prepares else None
            if name is not None:
                self._pgconn.send_query_prepared(name, values, formats, _BINARY)
            else:
                self._pgconn.send_query_params(sql.encode(), values, _oids(params), formats, _BINARY)
        except psycopg.Error as error:
            raise Lost(_text(error)) from error
        self._pending.append((gives_rows and wants_rows, None))

    def _name(self, sql: str, params: Sequence[Value]) -> bytes | None:
        """The name of a prepared statement; it is prepared on the way. None where there are too many already.

        What is None in the first parameters has the type of its place, as it has where it is not None.
        """
        name = self._prepared.get(sql)
        if name is None and len(self._prepared) < _MAX_PREPARED:
            _prepared_so_far[0] += 1
            name = b"fastness_%d" % _prepared_so_far[0]
            self._pgconn.send_prepare(name, sql.encode(), _oids(params))
            self._pending.append((False, sql))
            self._prepared[sql] = name
        return name

    def push(self) -> None:
        """Send what is queued, as far as it goes without waiting: the server may begin."""
        try:
            self._pgconn.flush()
        except psycopg.Error as error:
            raise Lost(_text(error)) from error

    def _end_pipeline(self) -> None:
        """After a refusal the server skips everything up to here. It answers that it has come here, too."""
        self._pgconn.pipeline_sync()
        self._open_ends += 1

    def forget(self) -> None:
        """Prepare everything anew from here on: something between us and the server has lost or replaced it."""
        self._prepared.clear()

    # --- receiving ---

    async def answers(self, *, commits: bool = False) -> list[list[Row]]:
        """Send what is queued, and wait for all answers: the rows of each statement that gives rows, in order.

        Raises ``Refused`` for the first statement that was refused, when all that was sent has been dealt with, and
        ``Lost``. ``tag`` is then what the last statement did. ``commits``: the end of the pipeline does something, too,
        and counts as one more statement.
        """
        pending, self._pending = self._pending, []
        count = len(pending)
        rows: list[list[Row]] = []
        at = 0
        result: Any = None
        try:
            self._end_pipeline()
            if self._pgconn.flush():
                await self._flush()
            for at, (gives_rows, _) in enumerate(pending):
                result = self._next() or await self._result()
                if result.status not in _DONE:
                    await self._refuse(result, pending, at, count + commits)
                if gives_rows:
                    rows.append(self._rows(result))
            if result is not None:
                self.tag = result.command_status
            at = count
            if commits:
                result = self._next() or await self._result()
                if result.status != _SYNCED:
                    await self._refuse(result, pending, at, count + 1)
                return rows
        except psycopg.Error as error:
            self._skip(pending[at:])
            raise Lost(_text(error)) from error
        # All answers are here: what they say has happened. The next use finds out about the connection.
        with suppress(psycopg.Error):
            await self._to_the_end()
        return rows

    async def _refuse(self, result: Any, pending: Sequence[_Pending], at: int, of: int) -> NoReturn:
        """Raise what a statement was refused with, once the server has come to the end of the pipeline."""
        refusal = Refused(result, at, of)
        self._skip(pending[at:])
        if not refusal.ends_connection:
            with suppress(psycopg.Error):  # a connection that goes now changes nothing of what was said
                await self._to_the_end()
        raise refusal

    def _skip(self, pending: Sequence[_Pending]) -> None:
        """After a refusal: what was to be prepared from there on was not."""
        for _, prepares in pending:
            if prepares is not None:
                self._prepared.pop(prepares, None)

    async def rollback(self) -> None:
        """Leave whatever transaction there is, also behind a refusal. Raises ``Lost``.

        What is queued and was not waited for is undone before the pipeline ends: without a transaction around it, the
        end would commit it.
        """
        if self.is_idle and not self._pending:
            return
        undoes = bool(self._pending) or self._pgconn.transaction_status in _IN_TRANSACTION
        self._skip(self._pending)
        self._pending = []
        try:
            await self._leave_transaction(undoes=undoes)
            if self._pgconn.transaction_status in _IN_TRANSACTION:
                await self._leave_transaction(undoes=True)
        except psycopg.Error as error:
            raise Lost(_text(error)) from error

    async def _leave_transaction(self, *, undoes: bool) -> None:
        if undoes:
            self._pgconn.send_query_params(b"rollback", [], [], [], _BINARY)
        self._end_pipeline()
        await self._flush()
        await self._to_the_end()

    async def _to_the_end(self) -> None:
        while self._open_ends:
            _ = self._next() or await self._result()

    def _next(self) -> Any:
        """The next result or end of a pipeline, None where it has still to come.

        The mark that ends a statement's results is passed over.
        """
        pgconn = self._pgconn
        while not pgconn.is_busy():
            result = pgconn.get_result()
            if result is not None:
                self._open_ends -= result.status == _SYNCED
                return result
            if pgconn.status != _ALIVE:
                raise psycopg.OperationalError("the connection is closed")
        return None

    async def _result(self) -> Any:
        """Wait for the next result or end of a pipeline."""
        while True:
            await self._ready()
            result = self._next()
            if result is not None:
                return result

    # --- waiting ---

    async def _flush(self) -> None:
        while self._pgconn.flush():
            assert self._watched_by is not None
            loop, socket = self._watched_by, self._socket
            ready = self._ready()
            loop.add_writer(socket, _resolve, ready)
            try:
                await ready
            finally:
                loop.remove_writer(socket)

    def _ready(self) -> asyncio.Future[None]:
        """Give what is done when there is something to go on with. Raises ``psycopg.Error`` where it is awaited."""
        if self._watched_by is None:
            raise psycopg.OperationalError("the connection is closed")
        self._waiter = ready = self._watched_by.create_future()
        return ready

    def _came_in(self) -> None:
        """Take in what came, and let go on who waits for it. Where nobody does, it is for ``begin`` to look."""
        ready = self._waiter
        try:
            self._pgconn.consume_input()
            if ready is not None and not self._pgconn.is_busy():
                _resolve(ready)
        except psycopg.Error as error:
            self.leave()
            if ready is not None and not ready.done():
                ready.set_exception(error)

    def _rows(self, result: Any) -> list[Row]:
        transformer = self._transformer
        transformer.set_pgresult(result, format=_BINARY)
        return transformer.load_rows(0, result.ntuples, tuple)


def _oids(params: Sequence[Value]) -> list[int]:
    return [_OIDS[type(value)] for value in params]


def _encoded(value: Value) -> bytes | None:
    """Give a value that is neither a text nor a number, which most are."""
    if type(value) is bool:
        return b"\x01" if value else b"\x00"
    return value  # type: ignore[return-value]


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _text(error: psycopg.Error) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
