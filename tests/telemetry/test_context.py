"""Laws of log records: each says to which turn it belongs, and to no other."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import Iterator

import pytest

from fastness.telemetry import Telemetry, TurnContextFilter, turn_context, turn_logger


class Kept(logging.Handler):
    """Keeps what it is given, as message and the three attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def said(self) -> list[tuple[object, ...]]:
        """Message, session, turn and token of each record."""
        return [
            (each.getMessage(), *(each.__dict__[name] for name in ("session_id", "turn_id", "fencing_token")))
            for each in self.records
        ]


@pytest.fixture
def kept() -> Iterator[Kept]:
    """A handler without the filter, on every logger."""
    handler = Kept()
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.mark.parametrize("name", ["fastness.turn", "fastness.lane", "fastness.worker"])
def test_a_record_of_the_runtime_says_its_turn_whatever_the_handler(kept: Kept, name: str) -> None:
    """Within a turn all three; without one the attributes are there, and None."""
    log = turn_logger(name)
    log.warning("before")
    with turn_context(session_id="s", turn_id="turn/3", fencing_token=3):
        log.warning("%s within", "well")
    assert kept.said == [("before", None, None, None), ("well within", "s", "turn/3", 3)]
    assert {record.name for record in kept.records} == {name}
    assert {record.filename for record in kept.records} == {"test_context.py"}


def test_a_logger_that_names_a_turn_means_that_one_alone(kept: Kept) -> None:
    """Nothing of the current turn is mixed in: it may be another session's."""
    log = turn_logger("fastness.lane", session_id="other", fencing_token=9)
    with turn_context(session_id="s", turn_id="turn/3", fencing_token=3):
        log.warning("beside", extra={"late_s": 2})
    assert kept.said == [("beside", "other", None, 9)]
    assert kept.records[0].__dict__["late_s"] == 2


def test_records_of_other_code_say_their_turn_where_the_handler_has_the_filter(kept: Kept) -> None:
    """Those of any logger, and of the runtime's own, which keep what they say."""
    kept.addFilter(TurnContextFilter())
    with turn_context(session_id="s", turn_id="turn/3", fencing_token=3):
        logging.getLogger("shop").info("sold")
        turn_logger("fastness.lane", session_id="other").warning("beside")
    logging.getLogger("shop").info("closed")
    assert kept.said == [
        ("sold", "s", "turn/3", 3),
        ("beside", "other", None, None),
        ("closed", None, None, None),
    ]


def test_the_filter_leaves_what_a_record_has_already(kept: Kept) -> None:
    """An application that gives its records a session_id of its own keeps it."""
    kept.addFilter(TurnContextFilter())
    with turn_context(session_id="s", turn_id="turn/3", fencing_token=3):
        logging.getLogger("shop").info("sold", extra={"session_id": "a cookie"})
    assert kept.said == [("sold", "a cookie", "turn/3", 3)]


def test_a_record_factory_that_uses_the_same_names_breaks_nothing(kept: Kept) -> None:
    """The records of the runtime then say the turn all the same."""
    before = logging.getLogRecordFactory()

    def factory(*args: object, **kwargs: object) -> logging.LogRecord:
        record = before(*args, **kwargs)
        record.session_id = "a cookie"
        return record

    logging.setLogRecordFactory(factory)
    try:
        turn_logger("fastness.turn", session_id="s", turn_id="turn/3", fencing_token=3).warning("late")
    finally:
        logging.setLogRecordFactory(before)
    assert kept.said == [("late", "s", "turn/3", 3)]


async def test_turns_beside_each_other_do_not_mix(kept: Kept) -> None:
    """Each task has its own turn, and so have the tasks and threads that it starts; one within another comes back."""
    kept.addFilter(TurnContextFilter())
    log = logging.getLogger("shop")
    both = asyncio.Barrier(2)

    async def turn(session_id: str, token: int) -> None:
        with Telemetry().turn(session_id, f"turn/{token}", token):
            await both.wait()
            await asyncio.create_task(asyncio.to_thread(log.info, session_id))
            with turn_context(session_id=f"{session_id}/child"):
                await both.wait()
                log.info("%s/child", session_id)
            await both.wait()
            log.info(session_id)

    await asyncio.gather(turn("a", 1), turn("b", 2))
    log.info("after")
    assert sorted(kept.said, key=str) == [
        ("a", "a", "turn/1", 1),
        ("a", "a", "turn/1", 1),
        ("a/child", "a/child", None, None),
        ("after", None, None, None),
        ("b", "b", "turn/2", 2),
        ("b", "b", "turn/2", 2),
        ("b/child", "b/child", None, None),
    ]


def test_a_turn_that_ends_in_another_context_than_it_began_in_ends_without_an_error() -> None:
    """As where a synchronous face enters it in one task and leaves it in another."""
    turn = Telemetry().turn("s", "turn/3", 3)
    contextvars.copy_context().run(turn.__enter__)
    contextvars.copy_context().run(turn.__exit__, None, None, None)


def test_another_thread_can_make_a_turn_its_own(kept: Kept) -> None:
    """For a block, while it runs elsewhere."""
    kept.addFilter(TurnContextFilter())
    log = logging.getLogger("shop")

    def elsewhere() -> None:
        log.info("before")
        with turn.current():
            log.info("within")
        log.info("after")

    with Telemetry().turn("s", "turn/3", 3) as turn:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert kept.said == [
        ("before", None, None, None),
        ("within", "s", "turn/3", 3),
        ("after", None, None, None),
    ]
