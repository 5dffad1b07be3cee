"""A naive model of the whole store: dictionaries and lists, one pass over everything, no database.

It is written from the contract alone and shares with the store nothing but the values that go in and come out. What the
store refuses it refuses with ``RefusedError`` and the name of the error. Where the store is clever it is slow: a commit
copies every session first, so that a refusal can put everything back.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from fastness import model as m
from tests.reference.claims import ReferenceClaims
from tests.reference.rows import Receipt, RefusedError, Row, Session

_PARTS = ("tool_state", "plugin_snapshot", "execution_state")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class ReferenceFactory:
    """All sessions by name, all blobs, and the clock that the real stores have."""

    def __init__(self, clock: Callable[[], int], is_dead: Callable[[m.LocalProcess], bool]) -> None:
        self.clock = clock
        self.is_dead = is_dead
        self.sessions: dict[str, Session] = {}
        self.blobs: dict[str, int] = {}
        self.minted = 0

    def mint(self) -> str:
        """An id that nobody else has."""
        self.minted += 1
        return f"minted-{self.minted}"

    def born(self, session_id: str) -> Session:
        """The session of that name, which comes to life if it is not there."""
        if session_id not in self.sessions:
            self.sessions[session_id] = Session(session_id, self.clock())
        return self.sessions[session_id]

    def create_store(self, request: m.SessionStoreCreateRequest) -> ReferenceStore:
        """A handle of a session that is there now."""
        return ReferenceStore(self, self.born(request.session_id))

    def delete_session(self, session_id: str) -> None:
        """Forget all of a session; what was opened before stays bound to what is gone."""
        gone = self.sessions.pop(session_id, None)
        if gone is not None:
            gone.deleted = True

    def collect(self, keep: int) -> m.GcReport:
        """M1: forget what no session needs in its last revisions or its frames."""
        needed: set[str] = set()
        roots = 0
        for session in self.sessions.values():
            session.history = [[] for _ in session.history[:-keep]] + session.history[-keep:]
            roots += len(
                {session.checkpoint_ref, *(frame.checkpoint_ref for frame in session.frames.values())} - {None}
            )
            for refs in (*session.history, *session.frame_refs.values()):
                needed.update(refs)
        gone = {ref: size for ref, size in self.blobs.items() if ref not in needed}
        for ref in gone:
            del self.blobs[ref]
        return m.GcReport(roots, len(self.blobs), len(gone), sum(gone.values()))


class ReferenceStore(ReferenceClaims):
    """A handle that is bound to one session, with the store's methods, not asynchronous."""

    factory: ReferenceFactory

    # --- commits ---

    def commit_runtime_state(self, commit: m.RuntimeCommit) -> m.RuntimeCommitResult:
        """C1 to C14: try it, and put everything back if it is refused."""
        sessions = self.factory.sessions
        saved = {name: copy.deepcopy(session.__dict__) for name, session in sessions.items()}
        blobs = dict(self.factory.blobs)
        try:
            return self._commit(commit)
        except RefusedError:
            for name in set(sessions) - set(saved):
                del sessions[name]
            for name, fields in saved.items():
                sessions[name].__dict__.update(fields)
            self.factory.blobs = blobs
            raise

    def _commit(self, commit: m.RuntimeCommit) -> m.RuntimeCommitResult:
        for entry in commit.usage_deltas:
            if min(msgspec.structs.astuple(entry.usage)) < 0:
                raise RefusedError("InvalidInputError")
        session = self._own()
        if commit.session_id != session.session_id:
            raise RefusedError("SessionBindingMismatchError")
        recorded = self._recorded(session, commit)
        if recorded is not None:
            self._release(session, commit)
            return msgspec.structs.replace(recorded, replayed=True)
        self._require_live(session, session.session_id, commit.session_execution_lease)
        if commit.expected_head_revision != session.revision:
            raise RefusedError("HeadRevisionConflictError")
        self._complete(session, commit)
        self._change_graph(session, commit)
        left = {session.checkpoint_ref: self._refs(session)}
        self._require_frame(session, commit)
        manifest = self._change_checkpoint(session, commit)
        self._change_frames(session, commit, left | {session.checkpoint_ref: self._refs(session)})
        self._change_the_rest(session, commit)
        session.revision = (session.revision or 0) + 1
        session.history.append(self._refs(session))
        result = m.RuntimeCommitResult(session.revision, session.checkpoint_ref, manifest, session.leaf)
        if commit.turn_commit is not None:
            stamp = commit.turn_commit
            session.receipts[stamp.turn_id] = Receipt(stamp.turn_commit_hash, result, self.factory.clock())
        self._release(session, commit)
        for drafted in commit.outbox:
            if isinstance(drafted, m.OutboxInput):
                self.enqueue_pending_turn_input(drafted.draft)
            else:
                self.enqueue_queued_work(drafted.draft)
        return result

    def _recorded(self, session: Session, commit: m.RuntimeCommit) -> m.RuntimeCommitResult | None:
        stamp = commit.turn_commit
        if stamp is None:
            return None
        if stamp.session_id != session.session_id:
            raise RefusedError("TurnCommitConflictError")
        receipt = session.receipts.get(stamp.turn_id)
        if receipt is not None and receipt.turn_hash != stamp.turn_commit_hash:
            raise RefusedError("TurnCommitConflictError")
        return None if receipt is None else receipt.result

    def _release(self, session: Session, commit: m.RuntimeCommit) -> None:
        shown = commit.release_session_execution_lease
        if shown is not None and self._names(session, shown):
            session.lease = None

    def _complete(self, session: Session, commit: m.RuntimeCommit) -> None:
        owned: list[Row] = []
        for done in commit.completed_turn_input_claims:
            rows = self._owned(session, session.inputs, done, done.input_ids)
            if rows is None or any(row in owned for row in rows):
                raise RefusedError("TurnInputClaimExpiredError")
            owned += rows
        for work in commit.completed_queue_claims:
            rows = self._owned(session, session.work, work, work.batch_ids)
            if rows is None or any(row in owned for row in rows):
                raise RefusedError("QueuedWorkClaimExpiredError")
            owned += rows
        for row in owned:
            row.settled, row.settled_ms = "completed", self.factory.clock()
        for row in session.inputs:
            left = row.settled is None and row.turn_id is not None
            if left and row.turn_id == commit.interrupted_turn_input_turn_id:
                row.attempts -= 1 if self._is_held(session, row) else 0
                row.state, row.turn_id, row.boundary, row.claim_id = "deferred_next_turn", None, None, None

    def _change_graph(self, session: Session, commit: m.RuntimeCommit) -> None:
        graph = commit.graph
        if isinstance(graph, m.ReplaceFull):
            session.nodes = []
        nodes, leaf = ((), graph.leaf_node_id) if isinstance(graph, m.Unchanged) else self._given(graph)
        for node in nodes:
            live = [other.node_id for other in session.nodes]
            if node.node_id in live or node.node_id in session.tombstoned:
                raise RefusedError("NodeIdCollisionError")
            if node.parent_node_id is not None and node.parent_node_id not in live:
                raise RefusedError("GraphInvalidError")
            session.nodes.append(node)
        stays = isinstance(graph, m.Unchanged) and leaf == session.leaf
        if leaf not in [node.node_id for node in session.nodes] and not (leaf is None and (not session.nodes or stays)):
            raise RefusedError("GraphInvalidError")
        session.leaf = leaf

    def _given(self, graph: m.Append | m.ReplaceFull) -> tuple[Sequence[m.SessionNodeRecord], str | None]:
        if isinstance(graph, m.ReplaceFull):
            return graph.graph.nodes, graph.graph.leaf_node_id
        return graph.nodes, graph.leaf_node_id

    def _require_frame(self, session: Session, commit: m.RuntimeCommit) -> None:
        known = {*session.frames, *(frame.frame_id for frame in commit.agent_frames)}
        if commit.current_agent_frame_id is not None and commit.current_agent_frame_id not in known:
            raise RefusedError("GraphInvalidError")

    def _change_frames(
        self, session: Session, commit: m.RuntimeCommit, heads: dict[m.BlobRef | None, list[str]]
    ) -> None:
        """A frame starts from a checkpoint of the head, before or after this commit, or keeps the one it has."""
        for frame in commit.agent_frames:
            before = session.frames.get(frame.frame_id)
            session.frames[frame.frame_id] = frame
            if frame.checkpoint_ref is None:
                session.frame_refs.pop(frame.frame_id, None)
            elif frame.checkpoint_ref in heads:
                session.frame_refs[frame.frame_id] = heads[frame.checkpoint_ref]
            elif before is None or before.checkpoint_ref != frame.checkpoint_ref:
                raise RefusedError("UnknownBlobRefError")
        session.current_frame = commit.current_agent_frame_id or session.current_frame

    def _refs(self, session: Session) -> list[str]:
        if session.checkpoint is None or session.checkpoint_ref is None:
            return []
        parts = [getattr(session.checkpoint, name) for name in _PARTS]
        return [session.checkpoint_ref.sha256, *(_sha256(part) for part in parts if part is not None)]

    def _change_checkpoint(self, session: Session, commit: m.RuntimeCommit) -> m.SessionCheckpoint | None:
        given = commit.checkpoint
        if given is None:
            return None
        before = session.checkpoint
        held = {_sha256(part): part for name in _PARTS if (part := getattr(before, name, None)) is not None}
        held.update({_sha256(part): part for name in _PARTS if isinstance(part := getattr(given, name), bytes)})
        parts = {}
        for name in _PARTS:
            part = getattr(given, name)
            if isinstance(part, m.BlobRef):
                if part.sha256 not in held:
                    raise RefusedError("UnknownBlobRefError")
                part = held[part.sha256]
            parts[name] = part
        refs = {name: None if part is None else m.BlobRef(_sha256(part)) for name, part in parts.items()}
        manifest = m.SessionCheckpoint(given.turn_state, **refs)
        body = msgspec.json.encode(manifest)
        session.checkpoint = m.HydratedSessionCheckpoint(given.turn_state, **parts)
        session.checkpoint_ref = m.BlobRef(_sha256(body))
        self.factory.blobs[_sha256(body)] = len(body)
        self.factory.blobs.update({_sha256(part): len(part) for part in parts.values() if part is not None})
        return manifest

    def _change_the_rest(self, session: Session, commit: m.RuntimeCommit) -> None:
        for attachment_id in commit.committed_attachment_ids:
            if attachment_id not in session.attachments:
                raise RefusedError("AttachmentNotInManifestError")
            session.attachments[attachment_id] = "committed"
        for entry in commit.usage_deltas:
            key = (entry.source, entry.model)
            session.usage[key] = session.usage.get(key, m.TokenUsage()) + entry.usage
        session.config = commit.config or session.config

    # --- reads ---

    def load_head(self) -> m.SessionHeadMeta | None:
        """One row."""
        session = self._own()
        if session.revision is None:
            return None
        count, frame = len(session.nodes), session.current_frame
        return m.SessionHeadMeta(session.revision, session.leaf, count, session.config, frame, session.checkpoint_ref)

    def load_node(self, node_id: str) -> m.SessionNodeRecord | None:
        """A live node."""
        return next((node for node in self._own().nodes if node.node_id == node_id), None)

    def load_session(self, scope: m.SessionReadScope) -> m.PersistedSessionRead | None:
        """G2."""
        session, head = self._own(), self.load_head()
        if head is None:
            return None
        graph = m.SessionGraph(tuple(session.nodes), session.leaf)
        if isinstance(scope, m.ActivePath):
            leaf = session.leaf if scope.leaf_node_id is None else scope.leaf_node_id
            path = self._path(session, leaf)
            kept = path[-scope.last :] if scope.last else path
            behind = kept[0].parent_node_id if kept else None
            graph = m.SessionGraph(tuple(kept), leaf, behind)
        created = datetime.fromtimestamp(session.created_ms / 1000, UTC).isoformat(timespec="milliseconds")
        meta = m.SessionMeta(session.session_id, session.session_id, created.replace("+00:00", "Z"), "")
        ledger = tuple(m.TokenLedgerEntry(*key, spent) for key, spent in sorted(session.usage.items()))
        return m.PersistedSessionRead(
            meta, m.SessionHead(head, tuple(session.frames.values()), ledger), graph, session.checkpoint
        )

    def _path(self, session: Session, leaf: str | None) -> list[m.SessionNodeRecord]:
        path: list[m.SessionNodeRecord] = []
        while leaf is not None:
            node = self.load_node(leaf)
            if node is None:
                raise RefusedError("GraphInvalidError")
            path.insert(0, node)
            leaf = node.parent_node_id
        return path

    # --- attachments ---

    def record_intent(self, intent: m.AttachmentIntent) -> None:
        """A2."""
        session = self._found_or_born(intent.session_id)
        session.attachments.setdefault(intent.reference.attachment_id, "intent")

    def commit_refs(self, session_id: str, attachment_ids: Sequence[str]) -> None:
        """A2, out of band."""
        session = self._find(session_id)
        held = {} if session is None else session.attachments
        if any(attachment_id not in held for attachment_id in attachment_ids):
            raise RefusedError("AttachmentNotInManifestError")
        held.update(dict.fromkeys(attachment_ids, "committed"))

    def holds_ref(self, session_id: str, attachment_id: str) -> bool:
        """A3."""
        session = self._find(session_id)
        return session is not None and attachment_id in session.attachments

    def forget(self, session_id: str, attachment_id: str) -> None:
        """Let go."""
        session = self._find(session_id)
        if session is not None:
            session.attachments.pop(attachment_id, None)

    # --- maintenance ---

    def tombstone_nodes(self, node_ids: Sequence[str]) -> None:
        """G5."""
        session = self._own()
        going = {node.node_id for node in session.nodes if node.node_id in node_ids}
        for node in session.nodes:
            if node.parent_node_id in going and node.node_id not in going:
                raise RefusedError("GraphInvalidError")
        if not going or session.revision is None:
            return
        while session.leaf in going:
            leaf = self.load_node(session.leaf)
            session.leaf = leaf.parent_node_id if leaf is not None else None
        session.tombstoned += [node.node_id for node in session.nodes if node.node_id in going]
        session.nodes = [node for node in session.nodes if node.node_id not in going]
        session.revision += 1
        session.history.append(self._refs(session))

    def vacuum(
        self, *, evidence_older_than_ms: int | None = None, receipts_older_than_ms: int | None = None
    ) -> m.VacuumReport:
        """M2."""
        session = self._own()

        def drop(rows: list[Row]) -> tuple[list[Row], int]:
            cut = evidence_older_than_ms
            kept = [row for row in rows if row.settled is None or (cut is not None and row.settled_ms > cut)]
            return kept, len(rows) - len(kept)

        nodes, session.tombstoned = len(session.tombstoned), []
        session.inputs, inputs = drop(session.inputs)
        session.work, work = drop(session.work)
        cut = -1 if receipts_older_than_ms is None else receipts_older_than_ms
        gone = [turn_id for turn_id, receipt in session.receipts.items() if receipt.committed_ms <= cut]
        for turn_id in gone:
            del session.receipts[turn_id]
        for row in session.inputs:  # I4: what its turn can no longer take stays input for the next
            if row.settled is None and row.claim_id is None and row.turn_id in gone:
                row.state, row.turn_id, row.boundary = "deferred_next_turn", None, None
        return m.VacuumReport(nodes, inputs, work, len(gone))

    def gc_unreachable(self, *, keep_revisions: int = 1) -> m.GcReport:
        """M1."""
        return self.factory.collect(keep_revisions)


def answer(call: Callable[[], Any]) -> Any:
    """What a call of the model comes to: its value, or the name of its refusal."""
    try:
        return call()
    except RefusedError as refusal:
        return refusal
