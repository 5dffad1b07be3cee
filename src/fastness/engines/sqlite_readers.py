"""The reader threads: each runs reading programs on a connection of its own, beside the writer.

It promises one snapshot for each program, that a read never waits for the writer, and that no read leaves a
transaction open. It must not write. A snapshot that several programs share gets a thread and a connection of its own,
so that however long it is held, other reads do not wait for it.
"""

from __future__ import annotations

import queue
import threading

import apsw

from fastness.engines.sqlite_open import Link, Settings, open_helper
from fastness.engines.sqlite_run import Job, deliver, run
from fastness.errors import BackendError

READERS = 2


class Readers:
    """A few threads over one queue. They start with the first job, and open their connections then."""

    def __init__(self, settings: Settings, count: int = READERS) -> None:
        self._settings = settings
        self._count = count
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._held: list[SnapshotReader] = []

    def hold(self, ended: Job) -> SnapshotReader:
        """Give a reader that stays on one snapshot. ``ended`` is answered once its connection is closed."""
        self._held = [reader for reader in self._held if reader.is_alive]
        reader = SnapshotReader(self._settings, ended)
        self._held.append(reader)
        return reader

    def submit(self, job: Job) -> None:
        """Queue a program that reads. The database must have been opened by the writer."""
        if not self._threads:
            for _ in range(self._count):
                thread = threading.Thread(target=self._main, name="fastness-sqlite-reader", daemon=True)
                self._threads.append(thread)
                thread.start()
        self._queue.put(job)

    def stop(self) -> None:
        """Ask the threads to finish what is queued and to close their connections."""
        for _ in self._threads:
            self._queue.put(None)
        for reader in self._held:
            reader.stop()

    def join(self) -> None:
        """Wait for the threads to end."""
        for thread in self._threads:
            thread.join()
        for reader in self._held:
            reader.join()

    def _main(self) -> None:
        link: Link | None = None
        while (job := self._queue.get()) is not None:
            if job.future.cancelled():
                continue
            try:
                link = link or open_helper(self._settings, query_only=True)
                self._read(link, job)
            except apsw.Error as error:
                # The transaction could not be ended: this connection is not used again.
                job.error = link.explain(error) if link is not None else error
                link = _given_up(link)
            except BaseException as error:  # noqa: BLE001 - the caller gets it; this thread serves others too
                job.error = error
                link = _given_up(link)
            deliver([job])
            del job  # it has the result, which is not kept in memory until the next one comes
        _given_up(link)

    def _read(self, link: Link, job: Job) -> None:
        link.cursor.execute("begin")
        run(job, link.cursor, self._settings.before_batch, link.explain)
        if link.connection.in_transaction:
            link.cursor.execute("rollback" if job.error else "commit")


class SnapshotReader:
    """One thread whose connection keeps a reading transaction open: all its programs see the same moment."""

    def __init__(self, settings: Settings, ended: Job) -> None:
        self._settings = settings
        self._ended = ended
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._main, name="fastness-sqlite-snapshot", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread has not ended yet."""
        return self._thread.is_alive()

    def submit(self, job: Job) -> None:
        """Queue a program that reads; the first one makes the snapshot."""
        self._queue.put(job)

    def stop(self) -> None:
        """Ask the thread to finish what is queued and to close its connection. Twice is fine."""
        self._queue.put(None)

    def join(self) -> None:
        """Wait for the thread to end."""
        self._thread.join()

    def _main(self) -> None:
        link: Link | None = None
        while (job := self._queue.get()) is not None:
            if job.future.cancelled():
                continue
            try:
                link = link or self._begin()
                if not link.connection.in_transaction:
                    raise BackendError(f"the snapshot of {link.place} was lost", "start over, with a new one")
                run(job, link.cursor, self._settings.before_batch, link.explain)
            except BaseException as error:  # noqa: BLE001 - the caller gets it
                job.error = error
            deliver([job])
            del job
        _given_up(link)
        deliver([self._ended])

    def _begin(self) -> Link:
        link = open_helper(self._settings, query_only=True)
        try:
            link.cursor.execute("begin")
            # A transaction has no snapshot before its first read.
            list(link.cursor.execute("select count(*) from sqlite_schema"))
        except apsw.Error as error:
            link.close()
            raise link.explain(error) from error
        return link


def _given_up(link: Link | None) -> Link | None:
    """Close a connection; the next program gets a new one."""
    if link is not None:
        link.close()
    return None
