"""The writer thread: takes every program that waits, runs the group in one transaction, and commits once.

It promises that each program is answered exactly once, after COMMIT has answered; that a program which fails takes no
other with it; that no failure leaves a transaction open; and that the thread does not die silently. It must not know
what the programs mean.

A group runs without savepoints. A program that raises before its first ``Write`` fails alone, since there is nothing to
undo. If anything fails after a ``Write``, the group is rolled back and run once more from fresh programs, each behind a
savepoint, and what fails again fails alone. If even the outer transaction is lost (a full disk takes it away), or its
COMMIT is refused, each program gets a transaction of its own.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import TypeAlias

import apsw

from fastness.engines.sqlite_faults import commit_error, same_for_another
from fastness.engines.sqlite_files import SharedFile, release
from fastness.engines.sqlite_open import Link, Settings, enter_file, open_helper, open_writer
from fastness.engines.sqlite_run import Job, deliver, run
from fastness.engines.sqlite_wal import Checkpointer, WalWatch, passive_checkpoint, report_pinned, thorough_checkpoint
from fastness.errors import BackendError, CommitOutcomeUnknownError, StoreError

LARGEST_GROUP = 256
"""Programs in one transaction at most, so that the first of them is not kept waiting for ever."""

_log = logging.getLogger("fastness.sqlite")

Errand: TypeAlias = Callable[[], None]
"""Something else that the thread does, between two groups."""


class Writer:
    """The write connection of one engine, and the thread that alone uses it."""

    def __init__(self, settings: Settings) -> None:
        self.is_open = False
        self.on_group: Callable[[int], None] | None = None
        """Told behind each COMMIT, in the writer's thread, how many writes it has settled. It must not raise."""
        self._settings = settings
        self._queue: queue.SimpleQueue[Job | Errand] = queue.SimpleQueue()
        self._link: Link | None = None
        self._file: SharedFile | None = None
        self._checkpointer: Checkpointer | None = None
        self._watch = WalWatch()
        self._wal_pages = 0
        self._group: list[Job] = []
        self._commit_sent = False
        self._stopping = False
        self._dead: BackendError | None = None
        self._at_end: list[Errand] = []
        self._thread: threading.Thread | None = None

    # For the event loop.

    def start(self) -> None:
        """Start the thread. The database is opened by the first job or errand that needs it."""
        # Not made before: a thread that crosses a fork unstarted cannot be started in the child.
        self._thread = threading.Thread(target=self._main, name="fastness-sqlite-writer", daemon=True)
        self._thread.start()

    def submit(self, item: Job | Errand) -> None:
        """Queue a program or an errand; they are done in order. An errand must not raise."""
        self._queue.put(item)

    def submit_open(self, job: Job) -> None:
        """Queue the opening of the database; the job's program is not run, only its future is answered."""
        self._queue.put(lambda: self._answer_open(job))

    @property
    def is_stopping(self) -> bool:
        """Whether ``stop`` was called."""
        return bool(self._at_end)

    def stop(self, before_closing: Errand, at_end: Errand) -> None:
        """Finish what is queued, call ``before_closing``, let go of the files, call ``at_end``."""
        self._at_end = [before_closing, self._let_go, at_end]
        self._queue.put(self._note_stop)

    def join(self, timeout_s: float) -> None:
        """Wait for the thread to end."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    # For the thread.

    def open(self) -> Link:
        """Open the database unless it is open. Raises a ``StoreError``; the next call tries again."""
        if self._dead is not None:
            raise same_for_another(self._dead)
        if self._link is None:
            self._link = self._open_file() if self._settings.path is not None else open_writer(self._settings)
            self.is_open = True
        return self._link

    def _answer_open(self, job: Job) -> None:
        try:
            self.open()
        except Exception as error:  # noqa: BLE001 - the caller gets it
            job.error = error
        deliver([job])

    def _open_file(self) -> Link:
        settings = self._settings
        if self._file is not None:  # only the connection was given up
            link = open_writer(settings)
        else:
            file = enter_file(settings)
            try:
                link = open_writer(settings)
            except BaseException:
                release(file)
                raise
            self._file = file
            self._checkpointer = Checkpointer(
                lambda: open_helper(settings, query_only=False), file, lambda: self._queue.put(self._copy_tail)
            )
        link.connection.set_wal_hook(self._note_pages)
        return link

    def _main(self) -> None:
        try:
            while not self._stopping:
                self._serve(self._queue.get())
        except BaseException as error:  # noqa: BLE001 - whatever it is, nobody may wait for ever
            _log.exception("the writer of %s stopped", self._settings.place)
            self._mourn(error)
        for errand in self._at_end:
            errand()

    def _serve(self, item: Job | Errand) -> None:
        if type(item) is Job:
            errand = self._take_group(item)
            self._look_after_log()
            if errand is not None:
                errand()
        else:
            item()  # type: ignore[operator]

    def _take_group(self, first: Job) -> Errand | None:
        """Run and answer everything that waits. Gives the errand that ended the group, if one did."""
        jobs = self._group = [first]
        try:
            link = self._begin()
        except StoreError as error:
            errand = self._take_waiting(jobs)
            _fail(jobs, error)
        else:
            errand, is_sound = self._run_together(link, jobs)
            if is_sound:
                self._commit(link, jobs)
            else:
                self._run_again(jobs)
        self._group = []
        deliver(jobs)
        return errand

    def _take_waiting(self, jobs: list[Job]) -> Errand | None:
        while not self._queue.empty():
            item = self._queue.get_nowait()
            if type(item) is not Job:
                return item  # type: ignore[return-value]
            jobs.append(item)
        return None

    def _begin(self) -> Link:
        link = self.open()
        self._commit_sent = False
        try:
            link.cursor.execute("begin immediate")
        except apsw.Error as error:
            raise link.explain(error) from error
        return link

    def _run_together(self, link: Link, jobs: list[Job]) -> tuple[Errand | None, bool]:
        """Run the first job and those that arrive meanwhile. False: something must be undone."""
        waiting, hook, explain = self._queue, self._settings.before_batch, link.explain
        job = jobs[0]
        while True:
            if not job.future.cancelled():
                run(job, link.cursor, hook, explain)
                if job.error is not None and (job.wrote or not link.connection.in_transaction):
                    return None, False
            if waiting.empty() or len(jobs) >= LARGEST_GROUP:
                return None, True
            item = waiting.get_nowait()
            if type(item) is not Job:
                return item, True  # type: ignore[return-value]
            job = item
            jobs.append(job)

    def _run_again(self, jobs: list[Job]) -> None:
        """Run a group in which something failed after a ``Write`` once more, each program behind a savepoint."""
        self._undo()
        if len(jobs) == 1:
            return  # it failed alone already
        try:
            link = self._begin()
        except StoreError as error:
            _fail(jobs, error)
            return
        if all(self._run_behind_savepoint(link, job) for job in jobs):
            self._commit(link, jobs)
        else:
            self._run_one_by_one(jobs)

    def _run_behind_savepoint(self, link: Link, job: Job) -> bool:
        """False: the outer transaction is lost, and what the group did so far with it."""
        if job.future.cancelled():
            return True
        try:
            link.cursor.execute("savepoint program")
            run(job, link.cursor, self._settings.before_batch, link.explain)
            if not link.connection.in_transaction:
                return False
            if job.error is not None:
                link.cursor.execute("rollback to program")
            link.cursor.execute("release program")
        except apsw.Error:
            return False
        return True

    def _run_one_by_one(self, jobs: list[Job]) -> None:
        """Give each program a transaction of its own: slow, and nobody suffers for another."""
        self._undo()
        for job in jobs:
            if job.future.cancelled():
                continue
            try:
                link = self._begin()
            except StoreError as error:
                _fail([job], error)
                continue
            run(job, link.cursor, self._settings.before_batch, link.explain)
            if job.error is None:
                self._commit(link, [job])
            else:
                self._undo()

    def _commit(self, link: Link, jobs: list[Job]) -> None:
        try:
            if self._settings.before_batch is not None:
                self._settings.before_batch(None)
            self._commit_sent = True
            link.cursor.execute("commit")
        except Exception as error:  # noqa: BLE001 - translated, and every caller is told
            told = commit_error(error, link.place, link.wait.waited_ms)
            self._undo()
            if len(jobs) > 1 and not isinstance(told, CommitOutcomeUnknownError):
                self._run_one_by_one(jobs)
            else:
                # Also those that were refused: what refused them may be gone with the group.
                _fail(jobs, told)
            return
        if self.on_group is not None and (written := sum(job.wrote and job.error is None for job in jobs)):
            self.on_group(written)

    def _undo(self) -> None:
        """Leave no transaction open. A connection that cannot even roll back is given up, and opened anew."""
        link = self._link
        if link is None:
            return
        try:
            if link.connection.in_transaction:
                link.cursor.execute("rollback")
        except apsw.Error:
            if self._settings.path is None:
                raise  # the database would be gone with the connection
            self._give_up_connection()

    def _give_up_connection(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    # The log.

    def _note_pages(self, _connection: apsw.Connection, _database: str, pages: int) -> int:
        self._wal_pages = pages
        return apsw.SQLITE_OK

    def _look_after_log(self) -> None:
        if self._checkpointer is None or self.is_stopping:
            return
        action = self._watch.committed(self._wal_pages)
        if action == "background":
            self._checkpointer.wake()
        elif action == "inline":
            self._checkpoint_inline()

    def _checkpoint_inline(self) -> None:
        assert self._file is not None
        if self._link is None:
            return
        with self._file.checkpointing:
            found = thorough_checkpoint(self._link)
        if found is not None and self._watch.is_news(found.copied == found.pages):
            report_pinned(self._settings.place, found.pages)

    def _copy_tail(self) -> None:
        """Finish a background run: after this, the next commit starts the log over."""
        is_stubborn = self._watch.stubborn
        self._watch.tail_copied()
        file = self._file
        if file is None or self._link is None or not file.checkpointing.acquire(blocking=False):
            return
        try:
            if is_stubborn:
                thorough_checkpoint(self._link)
            else:
                passive_checkpoint(self._link.connection)
        finally:
            file.checkpointing.release()

    # The end.

    def _note_stop(self) -> None:
        self._stopping = True

    def _mourn(self, error: BaseException) -> None:
        """Answer everything with an error until the engine is closed."""
        self._dead = BackendError(
            f"the writer of {self._settings.place} stopped after an unexpected {type(error).__name__}",
            "close this store and open a new one, and report this as a fault of fastness",
        )
        self._dead.__cause__ = error
        if self._commit_sent:
            _fail(self._group, CommitOutcomeUnknownError(f"{self._settings.place}: {type(error).__name__}"))
        else:
            _fail(self._group, self._dead)
        deliver(self._group)
        self._give_up_connection()
        while not self._stopping:
            item = self._queue.get()
            if type(item) is Job:
                _fail([item], self._dead)
                deliver([item])
            else:
                item()  # type: ignore[operator]

    def _let_go(self) -> None:
        # The writer's connection is the last of this engine: closing it copies the log and removes it, where no other
        # process has the file open.
        if self._checkpointer is not None:
            self._checkpointer.stop()
        self._give_up_connection()
        if self._file is not None:
            release(self._file)
            self._file = None


def _fail(jobs: list[Job], error: StoreError) -> None:
    for job in jobs:
        job.error = same_for_another(error)
