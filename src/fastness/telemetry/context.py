"""Which turn a line of code belongs to, and how log records come to say so.

It promises that every record of a logger made by ``turn_logger`` has the attributes ``session_id``, ``turn_id`` and
``fencing_token`` (None where it is not known), and that turns which run beside each other in tasks or threads never see
each other's. It configures no handler and no level: that is the application's.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, MutableMapping
from contextvars import ContextVar, Token
from typing import Any, NamedTuple

# What an application has not asked for is not printed.
logging.getLogger("fastness").addHandler(logging.NullHandler())


class TurnFacts(NamedTuple):
    """What a record says about its turn. The names are those of the record's attributes."""

    session_id: str | None = None
    turn_id: str | None = None
    fencing_token: int | None = None


_NONE = TurnFacts()
_KEY = "fastness_turn"
_current: ContextVar[TurnFacts] = ContextVar(_KEY, default=_NONE)


def enter(facts: TurnFacts) -> Token[TurnFacts]:
    """Make it the turn of this task or thread, and of the tasks that it starts from now on."""
    return _current.set(facts)


def leave(token: Token[TurnFacts]) -> bool:
    """Go back to what was before. False where the block has moved to another task, whose turn it never was."""
    try:
        _current.reset(token)
    except ValueError:
        return False
    return True


@contextlib.contextmanager
def turn_context(
    *, session_id: str | None, turn_id: str | None = None, fencing_token: int | None = None
) -> Iterator[None]:
    """Say to which turn the code of the block belongs. A block within it replaces all three."""
    token = enter(TurnFacts(session_id, turn_id, fencing_token))
    try:
        yield
    finally:
        leave(token)


class TurnContextFilter(logging.Filter):
    """Gives each record the attributes ``session_id``, ``turn_id`` and ``fencing_token``; it holds none back.

    Put it on a handler, and the records of any library have them within a turn, so that a format can name them. An
    attribute that a record has already from somewhere else is left as it is.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add what is missing. Always True."""
        bound: TurnFacts | None = record.__dict__.get(_KEY)
        if bound is not None:
            record.__dict__.update(bound._asdict())
            return True
        for name, value in _current.get()._asdict().items():
            record.__dict__.setdefault(name, value)
        return True


_FILTER = TurnContextFilter()


class _TurnLogger(logging.LoggerAdapter[logging.Logger]):
    """Hands the turn to the filter in one attribute.

    Three would make ``logging`` raise where a record factory of the application uses one of their names.
    """

    def __init__(self, logger: logging.Logger, bound: TurnFacts) -> None:
        super().__init__(logger)
        self._bound = bound

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        facts = _current.get() if self._bound == _NONE else self._bound
        kwargs["extra"] = {**(kwargs.get("extra") or {}), _KEY: facts}
        return msg, kwargs


def turn_logger(
    name: str, *, session_id: str | None = None, turn_id: str | None = None, fencing_token: int | None = None
) -> logging.LoggerAdapter[logging.Logger]:
    """Give a logger whose records say to which turn they belong.

    That is the turn named here, for code that runs beside it, or else the one that is current where the record is made.
    """
    logger = logging.getLogger(name)
    logger.addFilter(_FILTER)  # the same one again is not added
    return _TurnLogger(logger, TurnFacts(session_id, turn_id, fencing_token))
