"""A store whose commits meet faults, for whoever runs turns: by themselves, or in a worker."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fastness.errors import CommitOutcomeUnknownError, ContendedError
from fastness.model import RuntimeCommit
from fastness.persistence import SessionStore


class Faults:
    """The faults of the next commits, one each, and what was sent. After the last one, nothing is wrong any more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.next: list[str] = []
        self.sent: list[RuntimeCommit] = []
        for name in ("commit_runtime_state", "commit_and_begin"):
            monkeypatch.setattr(SessionStore, name, self._faulty(getattr(SessionStore, name)))
        monkeypatch.setattr("fastness.runtime.sending._FIRST_PAUSE_S", 0.0)

    def _faulty(self, commit: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def faulty(store: SessionStore, given: RuntimeCommit, *rest: Any, **about: Any) -> Any:
            """Commit, and lose the answer; or refuse before anything happened."""
            self.sent.append(given)
            fault = self.next.pop(0) if self.next else ""
            if fault == "busy":
                raise ContendedError("others were faster", 1)
            if fault == "never sent":
                raise CommitOutcomeUnknownError("the connection broke")
            result = await commit(store, given, *rest, **about)
            if fault == "answer lost":
                raise CommitOutcomeUnknownError("the connection broke")
            return result

        return faulty


KINDS = (
    ("answer lost",),
    ("never sent",),
    ("busy",),
    ("busy", "never sent", "answer lost", "answer lost"),
)
"""What may come of a commit before there is an answer."""
