"""A store whose commits meet faults, for whoever runs turns: by themselves, or in a worker."""

from __future__ import annotations

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
        commit_runtime_state = SessionStore.commit_runtime_state

        async def commit(store: SessionStore, given: RuntimeCommit) -> Any:
            """Commit, and lose the answer; or refuse before anything happened."""
            self.sent.append(given)
            fault = self.next.pop(0) if self.next else ""
            if fault == "busy":
                raise ContendedError("others were faster", 1)
            if fault == "never sent":
                raise CommitOutcomeUnknownError("the connection broke")
            result = await commit_runtime_state(store, given)
            if fault == "answer lost":
                raise CommitOutcomeUnknownError("the connection broke")
            return result

        monkeypatch.setattr(SessionStore, "commit_runtime_state", commit)


KINDS = (
    ("answer lost",),
    ("never sent",),
    ("busy",),
    ("busy", "never sent", "answer lost", "answer lost"),
)
"""What may come of a commit before there is an answer."""
