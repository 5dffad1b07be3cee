"""Every error that fastness raises on purpose, under one root.

Each error carries its facts as attributes, has a stable ``code``, and its message says what happened and what to do
next. Messages never contain payloads, only ids and counts. Nothing here knows about databases or values.

    StoreError
    ├── InvalidInputError                 refused before anything was written (law B1)
    ├── SessionBindingMismatchError       the handle belongs to another session (C2)
    ├── SessionDeletedError               the session this handle was opened for is gone (M3)
    ├── SessionNotFoundError              there is no session of that id (F4)
    ├── SessionIdTakenError               there is one already (F4)
    ├── UnsupportedReadScopeError
    ├── HeadRevisionConflictError         somebody else moved the head (C5)
    ├── TurnCommitConflictError           the turn id is taken by other content (C3)
    ├── LeaseExpiredError                 the fence is not the live lease (C4, L4)
    ├── TurnInterruptedError              somebody asked the turn to end (T)
    ├── ClaimExpiredError                 a completion does not own its rows (C6)
    │   ├── QueuedWorkClaimExpiredError
    │   └── TurnInputClaimExpiredError
    ├── InputSourceKeyConflictError       the source key is bound to another submission (I1)
    ├── NodeIdCollisionError              G1
    ├── GraphInvalidError                 G1, G3, G5
    ├── RevisionNotReadableError          the session cannot be read as it was then (H3)
    ├── UnknownBlobRefError               A3
    ├── AttachmentNotFoundError           A5
    ├── AttachmentNotInManifestError      A2, A3
    ├── RecordVersionError                M4
    │   ├── RecordVersionMissingError
    │   ├── RecordVersionInvalidError
    │   └── RecordVersionUnsupportedError
    ├── CommitOutcomeUnknownError         send the same stamped commit again (C12)
    ├── ContendedError                    nothing happened; retry the same call unchanged
    ├── HandleUnusableError               closed, used after a fork, or from another event loop
    └── BackendError                      the database failed
        ├── DatabaseOpenError             no database, truncated, newer schema, wrong place
        ├── DatabaseReadOnlyError
        ├── DatabaseDamagedError
        ├── DatabaseFullError
        └── AttachmentStoreError      the store of the bytes failed
            └── AttachmentDamagedError    the bytes are not what their id says (A1)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


def _rebuild(cls: type[StoreError], message: str, fields: dict[str, object]) -> StoreError:
    error = cls.__new__(cls, message)
    error.args = (message,)
    error.__dict__.update(fields)
    return error


class StoreError(Exception):
    """The root of all errors of this library."""

    code: ClassVar[str] = "store_error"

    def __reduce__(self) -> tuple[object, ...]:
        # Subclasses take fields, not a message: the default would call them with the message on unpickling.
        return (_rebuild, (type(self), str(self), dict(self.__dict__)))


class InvalidInputError(StoreError):
    """A value from outside breaks a limit of law B1. Nothing was written."""

    code = "invalid_input"

    def __init__(self, what: str, reason: str) -> None:
        self.what = what
        self.reason = reason
        super().__init__(f"{what} {reason}")


class SessionBindingMismatchError(StoreError):
    """A handle that is bound to one session was given work for another."""

    code = "session_binding_mismatch"

    def __init__(self, bound_session_id: str, given_session_id: str) -> None:
        self.bound_session_id = bound_session_id
        self.given_session_id = given_session_id
        super().__init__(
            f"this handle is bound to session {bound_session_id!r} and was given {given_session_id!r};"
            " open a store for that session"
        )


class SessionDeletedError(StoreError):
    """The session was deleted after this handle was opened; a new session of the same id is another session."""

    code = "session_deleted"

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        super().__init__(f"session {session_id!r} was deleted; drop this handle, nothing can be written to it")


class SessionNotFoundError(StoreError):
    """There is no session of that id: it was never made, or it was deleted."""

    code = "session_not_found"

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        super().__init__(f"there is no session {session_id!r}; name one that is there, list_sessions shows all")


class SessionIdTakenError(StoreError):
    """A session was to be made under an id that one has already. Nothing was written."""

    code = "session_id_taken"

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        super().__init__(f"there is a session {session_id!r} already; choose another id, or delete that one first")


class UnsupportedReadScopeError(StoreError):
    """``load_session`` was given something that is no read scope."""

    code = "unsupported_read_scope"

    def __init__(self, scope: str) -> None:
        self.scope = scope
        super().__init__(f"cannot load with the scope {scope}; use FullGraph() or ActivePath(leaf_node_id)")


class HeadRevisionConflictError(StoreError):
    """The head is not at the revision that the commit was built on. ``None`` stands for "no head yet"."""

    code = "head_revision_conflict"

    def __init__(self, session_id: str, expected: int | None, actual: int | None) -> None:
        self.session_id = session_id
        self.expected = expected
        self.actual = actual
        super().__init__(
            f"session {session_id!r} is at head revision {actual}, the commit expected {expected};"
            " load the session again and build the commit on what is there"
        )


class TurnCommitConflictError(StoreError):
    """The turn id has a receipt for other content, or the stamp is for another session."""

    code = "turn_commit_conflict"

    def __init__(self, session_id: str, turn_id: str, recorded_hash: str, given_hash: str) -> None:
        self.session_id = session_id
        self.turn_id = turn_id
        self.recorded_hash = recorded_hash
        self.given_hash = given_hash
        super().__init__(
            f"turn {turn_id!r} of session {session_id!r} was settled as {recorded_hash[:12]}, this commit is"
            f" {given_hash[:12]}; a turn id names one turn: reload, and use a new id for new content"
        )


class LeaseExpiredError(StoreError):
    """The fence is not the session's live lease: stale, superseded, released, expired or missing."""

    code = "lease_expired"

    def __init__(
        self, session_id: str, fencing_token: int | None, reason: str, successor_owner_id: str | None = None
    ) -> None:
        self.session_id = session_id
        self.fencing_token = fencing_token
        self.reason = reason
        self.successor_owner_id = successor_owner_id
        holder = f" (now held by {successor_owner_id!r})" if successor_owner_id else ""
        super().__init__(
            f"the lease of session {session_id!r} with fencing token {fencing_token} is {reason}{holder};"
            " stop this turn, nothing of it was written, and claim the lane again before the next one"
        )


class TurnInterruptedError(StoreError):
    """Somebody asked the running turn to end, and it did. What it had taken is settled, what it had made is not."""

    code = "turn_interrupted"

    def __init__(self, session_id: str, fencing_token: int, reason: str | None) -> None:
        self.session_id = session_id
        self.fencing_token = fencing_token
        self.reason = reason
        told = "" if reason is None else f" ({reason})"
        super().__init__(
            f"the turn of session {session_id!r} under fencing token {fencing_token} was interrupted{told};"
            " send again what is still to be done"
        )


class ClaimExpiredError(StoreError):
    """A claim no longer owns exactly its rows."""

    code = "claim_expired"
    noun: ClassVar[str] = "claim"

    def __init__(self, session_id: str, claim_id: str, reason: str) -> None:
        self.session_id = session_id
        self.claim_id = claim_id
        self.reason = reason
        super().__init__(
            f"{self.noun} {claim_id!r} of session {session_id!r} {reason};"
            " nothing was written: claim again under the live lease"
        )


class QueuedWorkClaimExpiredError(ClaimExpiredError):
    """A claim of queued work is not live, or a completion does not match it."""

    code = "queued_work_claim_expired"
    noun = "queued-work claim"


class TurnInputClaimExpiredError(ClaimExpiredError):
    """A claim of turn input is not live, or a completion does not match it."""

    code = "turn_input_claim_expired"
    noun = "turn-input claim"


class InputSourceKeyConflictError(StoreError):
    """The source key (or input id) is bound to a submission with other content."""

    code = "input_source_key_conflict"

    def __init__(self, session_id: str, source_key: str | None, input_id: str) -> None:
        self.session_id = session_id
        self.source_key = source_key
        self.input_id = input_id
        super().__init__(
            f"source key {source_key!r} of session {session_id!r} is bound to input {input_id!r} with other content;"
            " use a new key for a new submission"
        )


class NodeIdCollisionError(StoreError):
    """A node id is taken in this session, possibly by a tombstoned node that was not vacuumed yet."""

    code = "node_id_collision"

    def __init__(self, session_id: str, node_id: str) -> None:
        self.session_id = session_id
        self.node_id = node_id
        super().__init__(f"node id {node_id!r} is taken in session {session_id!r}; mint a new id")


class GraphInvalidError(StoreError):
    """The graph, as given or as stored, is not a forest of live nodes. ``fault`` is a short stable word."""

    code = "graph_invalid"

    def __init__(self, session_id: str, fault: str, node_id: str | None, detail: str) -> None:
        self.session_id = session_id
        self.fault = fault
        self.node_id = node_id
        super().__init__(f"graph of session {session_id!r}: {detail}")


class RevisionNotReadableError(StoreError):
    """A session cannot be read, or forked, as it was at a revision.

    ``reason`` is a short stable word: ``unknown`` (there is no such revision), ``before_history`` (it was committed by
    a release that kept none), ``transcript`` (its leaf was tombstoned or replaced since), ``checkpoint`` (collected).
    """

    code = "revision_not_readable"

    def __init__(self, session_id: str, revision: int, reason: str, detail: str) -> None:
        self.session_id = session_id
        self.revision = revision
        self.reason = reason
        self.detail = detail
        super().__init__(f"revision {revision} of session {session_id!r} cannot be read: {detail}")


class UnknownBlobRefError(StoreError):
    """A checkpoint refers to a blob that this session's head does not hold."""

    code = "unknown_blob_ref"

    def __init__(self, session_id: str, blob_ref: str) -> None:
        self.session_id = session_id
        self.blob_ref = blob_ref
        super().__init__(f"session {session_id!r} does not hold blob {blob_ref!r}; send its content instead of a ref")


class AttachmentNotFoundError(StoreError):
    """No attachment of that id."""

    code = "attachment_not_found"

    def __init__(self, attachment_id: str) -> None:
        self.attachment_id = attachment_id
        super().__init__(
            f"the store has no bytes of attachment {attachment_id!r}; they were never put, or a sweep took them:"
            " put them again"
        )


class AttachmentNotInManifestError(StoreError):
    """This session's manifest does not hold the attachment, whoever else may hold it."""

    code = "attachment_not_in_manifest"

    def __init__(self, session_id: str, attachment_id: str) -> None:
        self.session_id = session_id
        self.attachment_id = attachment_id
        super().__init__(
            f"the manifest of session {session_id!r} does not hold attachment {attachment_id!r};"
            " record the intent and put the bytes before referring to it"
        )


class RecordVersionError(StoreError):
    """A stored record cannot be read because of its schema version."""

    code = "record_schema_version"

    def __init__(self, record: str, version: object, reason: str) -> None:
        self.record = record
        self.version = version
        super().__init__(f"record {record} {reason}; nothing was changed: read it with the version that wrote it")


class RecordVersionMissingError(RecordVersionError):
    """The record names no version."""

    code = "record_schema_version_missing"

    def __init__(self, record: str) -> None:
        super().__init__(record, None, "names no schema version")


class RecordVersionInvalidError(RecordVersionError):
    """The version is no positive integer."""

    code = "record_schema_version_invalid"

    def __init__(self, record: str, version: object) -> None:
        super().__init__(record, version, f"has the invalid schema version {version!r}")


class RecordVersionUnsupportedError(RecordVersionError):
    """The version is one this release does not know."""

    code = "record_schema_version_unsupported"

    def __init__(self, record: str, version: object, supported: Sequence[int]) -> None:
        self.supported = tuple(supported)
        known = ", ".join(map(str, supported))
        super().__init__(record, version, f"has schema version {version!r}, this release reads {known}")


class CommitOutcomeUnknownError(StoreError):
    """The database did not say whether the COMMIT took effect."""

    code = "commit_outcome_unknown"

    def __init__(self, detail: str) -> None:
        self.detail = detail
        super().__init__(
            f"the outcome of the commit is unknown ({detail}); send the same stamped commit again: it lands once"
        )


class ContendedError(StoreError):
    """Others held what this call needs for longer than it may wait. Nothing happened."""

    code = "contended"

    def __init__(
        self, what: str, waited_ms: int, remedy: str = "nothing happened: retry the same call unchanged"
    ) -> None:
        self.what = what
        self.waited_ms = waited_ms
        super().__init__(f"{what} after waiting {waited_ms} ms; {remedy}")


class HandleUnusableError(StoreError):
    """The handle was closed, crossed a fork, or is used from another event loop than its own."""

    code = "handle_unusable"

    def __init__(self, reason: str, remedy: str) -> None:
        self.reason = reason
        super().__init__(f"this store handle {reason}; {remedy}")


class BackendError(StoreError):
    """The database failed in a way that no retry of ours mends. Nothing of the operation is visible."""

    code = "backend"

    def __init__(self, detail: str, remedy: str = "see the cause, mend it, and retry the same call") -> None:
        self.detail = detail
        super().__init__(f"{detail}; {remedy}")


class DatabaseOpenError(BackendError):
    """The named database cannot be opened as one of ours."""

    code = "database_open"


class DatabaseReadOnlyError(BackendError):
    """The database file or its directory cannot be written."""

    code = "database_read_only"


class DatabaseDamagedError(BackendError):
    """What is stored cannot be read: a damaged file, or a record that something else wrote."""

    code = "database_damaged"


class DatabaseFullError(BackendError):
    """The disk is full; the operation left no trace."""

    code = "database_full"


class AttachmentStoreError(BackendError):
    """The store that keeps the bytes of attachments failed. No part of a put is visible.

    ``reason`` is a short stable word: ``full``, ``permission``, ``missing`` (the directory or bucket), ``unreachable``
    (no answer in time), ``refused`` (the service answered with an error), ``io``, or ``damaged``.
    """

    code = "attachment_store"

    def __init__(self, reason: str, detail: str, remedy: str) -> None:
        self.reason = reason
        super().__init__(detail, remedy)


class AttachmentDamagedError(AttachmentStoreError):
    """The stored bytes do not hash to their id."""

    code = "attachment_damaged"

    def __init__(self, attachment_id: str, detail: str) -> None:
        self.attachment_id = attachment_id
        super().__init__(
            "damaged",
            f"the bytes of attachment {attachment_id!r} are damaged: {detail}",
            "delete it from the store and put the same content again, or restore it from a backup",
        )
