"""Imports a file: every record becomes a session, or a branch of one, several of them at once.

The file is read twice. The survey proves that every record can be replayed before the first turn is written, so that a
wrong file leaves no half of itself behind; it also counts, for a progress bar. Memory holds the records that are being
replayed and no more.
"""

from __future__ import annotations

import asyncio
import re
import stat
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import msgspec

from fastness.decide.limits import DEFAULT_COMMIT_BUDGET_BYTES, check_id, check_size
from fastness.errors import InvalidInputError
from fastness.formats.records import MAX_RECORD_BYTES, ConversationRecord, read_records
from fastness.model.base import encode
from fastness.model.protocols import SessionStoreFactory
from fastness.model.session import PersistedSessionConfig, SessionStoreCreateRequest
from fastness.replay.plan import Replay, plan_replay
from fastness.replay.runner import Replayer, Settings, TurnOutcome


class ImportOptions(msgspec.Struct, frozen=True):
    """What becomes of the records of a file.

    ``branch_by`` is the dotted path of a field: records of equal value become branches of one session. ``session_id``
    is a template of ``{stem}`` (the file's name), ``{index}`` (the record's, from 0) and ``{value}`` (of that field).
    ``concurrency`` is how many conversations are replayed at once; those of one session go one after the other.
    ``commit_budget_bytes`` is what the store takes at once: a record with a turn above it is refused by the survey.
    """

    branch_by: str | None = None
    session_id: str | None = None
    limit: int | None = None
    concurrency: int = 16
    max_record_bytes: int = MAX_RECORD_BYTES
    commit_budget_bytes: int = DEFAULT_COMMIT_BUDGET_BYTES
    settings: Settings = Settings()


class Survey(msgspec.Struct, frozen=True):
    """What a file holds."""

    conversations: int
    turns: int
    messages: int


class ImportReport(msgspec.Struct, frozen=True):
    """What an import did: turns it settled, turns that were there, messages it wrote, lanes taken from the dead."""

    conversations: int = 0
    turns_replayed: int = 0
    turns_present: int = 0
    messages_added: int = 0
    lanes_taken_over: int = 0


def planned(path: Path, options: ImportOptions) -> Iterator[Replay]:
    """Plan the records of a file, in its order. ``InvalidInputError`` names the record that cannot be replayed."""
    if options.concurrency < 1:
        raise InvalidInputError("concurrency", f"is {options.concurrency} and must be at least 1")
    pieces = _template(options)
    _check_rereadable(path)
    records = read_records(path, max_record_bytes=options.max_record_bytes)
    for record in islice(records, options.limit):
        yield plan_replay(record, _session_id(path, record, options, pieces))


def survey(path: Path, options: ImportOptions) -> Survey:
    """Read a whole file and prove that every record can be replayed. Nothing is written."""
    conversations = turns = messages = 0
    for replay in planned(path, options):
        _check_turns(replay, options.commit_budget_bytes)
        conversations, turns = conversations + 1, turns + len(replay.turns)
        messages += replay.message_count
    return Survey(conversations, turns, messages)


async def import_file(
    factory: SessionStoreFactory,
    path: Path,
    options: ImportOptions | None = None,
    *,
    surveyed: Survey | None = None,
    progress: Callable[[TurnOutcome], None] | None = None,
) -> ImportReport:
    """Replay a file into a database. A second run finds every turn and adds nothing.

    Raises ``InvalidInputError`` before anything is written, and the ``StoreError`` of the first conversation that could
    not be settled (an ``InvalidInputError`` names its record); what was settled stays, and the next run goes on there.
    """
    chosen = options or ImportOptions()
    if surveyed is None:
        survey(path, chosen)
    run = _Import(factory, chosen, progress)
    running: set[asyncio.Task[None]] = set()
    try:
        for replay in planned(path, chosen):
            running.add(run.start(replay))
            while len(running) >= chosen.concurrency:
                running = await _some_done(running)
        while running:
            running = await _some_done(running)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    return run.report()


class _Import:
    """The counts of a running import, and who goes behind whom: branches of one session are written in turn."""

    def __init__(
        self,
        factory: SessionStoreFactory,
        options: ImportOptions,
        progress: Callable[[TurnOutcome], None] | None,
    ) -> None:
        self._factory = factory
        self._progress = progress
        self._settings = msgspec.structs.replace(options.settings, on_turn=self._count)
        self._last: dict[str, asyncio.Task[None]] = {}
        self._conversations = self._replayed = self._present = self._messages = self._taken_over = 0

    def start(self, replay: Replay) -> asyncio.Task[None]:
        """Begin to replay a conversation, behind the one that was started before it for the same session."""
        before = self._last.get(replay.session_id)
        task = asyncio.create_task(self._replay(replay, before))
        self._last[replay.session_id] = task
        task.add_done_callback(lambda done: self._forget(replay.session_id, done))
        return task

    def report(self) -> ImportReport:
        """Give the counts so far."""
        return ImportReport(self._conversations, self._replayed, self._present, self._messages, self._taken_over)

    async def _replay(self, replay: Replay, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        request = SessionStoreCreateRequest(replay.session_id, config=PersistedSessionConfig(model=replay.model))
        try:
            replayer = Replayer(await self._factory.create_store(request), replay, self._settings)
            await replayer.run()
        except InvalidInputError as error:
            raise InvalidInputError(f"{replay.record}: {error.what}", error.reason) from error
        self._conversations += 1
        self._taken_over += replayer.take_over_count

    def _count(self, outcome: TurnOutcome) -> None:
        self._replayed += outcome.replayed
        self._present += not outcome.replayed
        self._messages += outcome.messages_added
        if self._progress is not None:
            self._progress(outcome)

    def _forget(self, session_id: str, done: asyncio.Task[None]) -> None:
        if self._last.get(session_id) is done:
            del self._last[session_id]


async def _some_done(running: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    done, still = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    failures = [error for task in done if (error := task.exception()) is not None]
    if failures:
        # The others of this batch have failed as well, or are done: one reason is enough to stop.
        for task in still:
            task.cancel()
        await asyncio.gather(*still, return_exceptions=True)
        raise failures[0]
    return still


def _check_rereadable(path: Path) -> None:
    """Refuse what can be read but once, such as a pipe: it would be empty after the survey."""
    try:
        kind = path.stat().st_mode
    except (OSError, ValueError):
        return  # opening it says why
    if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
        raise InvalidInputError(f"file {str(path)!r}", "is read twice and is no regular file; save it to a file first")


def _check_turns(replay: Replay, budget: int) -> None:
    """Refuse what the store would refuse later: a turn, or an input of it, that is above the budget."""
    for turn in replay.turns:
        size = sum(len(encode(node.record)) for node in turn.nodes)
        if size > budget:
            what = f"{replay.record}, turn {turn.index}"
            raise InvalidInputError(what, f"takes {size} bytes, more than the {budget} that are committed at once")
        for draft in turn.inputs:
            try:
                check_size(draft, budget)
            except InvalidInputError as error:
                raise InvalidInputError(f"{replay.record}, turn {turn.index}: {error.what}", error.reason) from None


_PIECE = re.compile(r"[^{}]+|\{(?:stem|index|value)\}|.", re.DOTALL)


def _template(options: ImportOptions) -> list[str] | None:
    """Take the template of session ids apart, into names in braces and the text between them; None: there is none."""
    if options.session_id is None:
        return None
    pieces = _PIECE.findall(options.session_id)
    if not pieces:
        raise InvalidInputError("session id template", "must not be empty")
    if "{" in pieces or "}" in pieces:
        raise InvalidInputError("session id template", "may have {stem}, {index} and {value} in braces, nothing else")
    if "{value}" in pieces and options.branch_by is None:
        raise InvalidInputError("session id template", "names {value}, which needs a field to branch by")
    return pieces


def _session_id(path: Path, record: ConversationRecord, options: ImportOptions, pieces: list[str] | None) -> str:
    value = record.field(options.branch_by) if options.branch_by is not None else None
    named = {"{stem}": path.stem, "{index}": str(record.index), "{value}": value or ""}
    found = pieces or ["{stem}", "-", "{index}" if value is None else "{value}"]
    try:
        # What a field says is never read as a template: the pieces were told apart before.
        return check_id("session_id", "".join(named.get(piece, piece) for piece in found))
    except InvalidInputError as error:
        raise InvalidInputError(f"the session id of {record}", error.reason) from None
