"""The history of the sessions of a database: ``SessionHistoryStore`` on any engine (laws H1 to H3, F1 to F4).

As thin as the other stores: it checks what comes from outside and hands a program to the engine.
"""

from __future__ import annotations

from fastness.decide import limits
from fastness.engines.engine import Engine
from fastness.errors import InvalidInputError
from fastness.model import CommitPage, PersistedSessionRead, SessionMeta
from fastness.ops import fork, history


class EngineSessionHistory:
    """What was committed to a session, the session as it was, and forks of it; ``factory.history`` gives it."""

    def __init__(self, engine: Engine, *, budget_bytes: int = limits.DEFAULT_COMMIT_BUDGET_BYTES) -> None:
        self._engine = engine
        self._budget_bytes = budget_bytes

    async def list_commits(
        self, session_id: str, *, after_revision: int = 0, limit: int = 100, newest_first: bool = False
    ) -> CommitPage:
        """List the commits of a session, oldest first, a page at a time; none for an unknown session (law H1).

        ``after_revision`` is where the page begins, itself left out: ``cursor`` of the page before. With
        ``newest_first`` the pages go down from there, and from the newest where it is 0. ``limit`` is at most 10,000.
        """
        limits.check_id("session_id", session_id)
        limits.check_count("after_revision", after_revision)
        limits.check_type("newest_first", newest_first, bool)
        limits.check_page_size(limit)
        return await self._engine.read(
            lambda: history.list_commits(session_id, after_revision, limit, newest_first=newest_first)
        )

    async def load_session_at(self, session_id: str, revision: int) -> PersistedSessionRead | None:
        """Load a session as the commit of that revision left it, on one snapshot; None for an unknown session (H2).

        Nodes that were tombstoned or replaced since are left out, but the active path is whole. Usage is what was used
        until then, the checkpoint the one of then. The configuration, and what a frame says, are not kept by revision:
        they are as they are now. The current frame is the one of the leaf, unless the revision is the newest.

        Raises ``RevisionNotReadableError`` for a revision that there is not, or whose transcript or checkpoint is gone
        (law H3).
        """
        limits.check_id("session_id", session_id)
        limits.check_positive("revision", revision)
        return await self._engine.read(lambda: history.load_at(session_id, revision, self._engine.rows_per_read))

    async def fork_session(
        self,
        session_id: str,
        new_session_id: str,
        *,
        at_node_id: str | None = None,
        at_revision: int | None = None,
        name: str | None = None,
    ) -> SessionMeta:
        """Make a new session that begins as another one was, and give its description (laws F1 to F4).

        It begins at a node, at the leaf of a revision, or by default at the head, also while a turn of the source runs:
        what is settled is forked. Its transcript is the active path to there, under the same node ids, and its history
        one commit of the kind ``fork``. It is described as the source is, but for its name (by default its id), its
        creation and its relation: a child of the source, caused by the node. Configuration, and the frames that the
        path needs, are the source's. No usage, input or work comes along.

        The checkpoint is that of the head or of the revision, its turn state with it. At a node it is that of the
        newest commit which ended on this node; if there was none, or it was collected, the fork has no checkpoint, and
        counts its turns from 0. Of the source's committed attachments the fork holds those whose ids occur in the path
        or its frames, and can read no other (law A3).

        Raises ``SessionNotFoundError``, ``SessionIdTakenError``, ``GraphInvalidError`` for an unknown node, and
        ``RevisionNotReadableError`` for a revision that there is not, or whose leaf or checkpoint is gone. Called again
        after an unknown outcome, it says that the id is taken if it had landed.
        """
        limits.check_id("session_id", session_id)
        limits.check_id("new_session_id", new_session_id)
        limits.check_optional_id("at_node_id", at_node_id)
        if at_revision is not None:
            limits.check_positive("at_revision", at_revision)
            if at_node_id is not None:
                raise InvalidInputError("at_revision", "and at_node_id are given; name one of them")
        if name is not None:
            limits.check_budget(limits.utf8_size(limits.check_text("name", name)), self._budget_bytes)
        place = fork.Place(at_node_id, at_revision)
        return await self._engine.write(lambda: fork.fork(session_id, new_session_id, place, name))
