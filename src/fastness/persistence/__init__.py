"""The face of the library's persistence: values, protocols, errors, stores, functions. It holds no code of its own."""

from fastness import model
from fastness.attachments.files import FileAttachmentStore
from fastness.attachments.memory import InMemoryAttachmentStore
from fastness.attachments.objects import ObjectAttachmentStore
from fastness.attachments.opening import open_attachments
from fastness.attachments.reclaim import reclaim_orphaned_attachments, release_unnamed_attachments
from fastness.attachments.session import SessionAttachmentStore
from fastness.dispatch import EngineSessionDispatch
from fastness.environments import EngineProcessExecutionEnvStore, InMemoryProcessExecutionEnvStore
from fastness.errors import (
    AttachmentDamagedError,
    AttachmentNotFoundError,
    AttachmentNotInManifestError,
    AttachmentStoreError,
    BackendError,
    ClaimExpiredError,
    CommitOutcomeUnknownError,
    ContendedError,
    DatabaseDamagedError,
    DatabaseFullError,
    DatabaseOpenError,
    DatabaseReadOnlyError,
    GraphInvalidError,
    HandleUnusableError,
    HeadRevisionConflictError,
    InputSourceKeyConflictError,
    InvalidInputError,
    LeaseExpiredError,
    NodeIdCollisionError,
    QueuedWorkClaimExpiredError,
    RecordVersionError,
    RecordVersionInvalidError,
    RecordVersionMissingError,
    RecordVersionUnsupportedError,
    RevisionNotReadableError,
    SessionBindingMismatchError,
    SessionDeletedError,
    SessionIdTakenError,
    SessionNotFoundError,
    StoreError,
    TurnCommitConflictError,
    TurnInputClaimExpiredError,
    UnknownBlobRefError,
    UnsupportedReadScopeError,
)
from fastness.factory import (
    EngineSessionStoreFactory,
    InMemorySessionStore,
    InMemorySessionStoreFactory,
    PostgresSessionStoreFactory,
    SqliteSessionStoreFactory,
    open_database,
)
from fastness.history import EngineSessionHistory
from fastness.liveness import current_process, is_dead, mint_owner
from fastness.model import *  # noqa: F403 - the vocabulary is listed once, in fastness.model
from fastness.state import load_persisted_session_state, load_persisted_session_state_active_path
from fastness.store import SessionStore
from fastness.workers import EngineWorkerRegistry

__all__ = [
    "AttachmentDamagedError",
    "AttachmentNotFoundError",
    "AttachmentNotInManifestError",
    "AttachmentStoreError",
    "BackendError",
    "ClaimExpiredError",
    "CommitOutcomeUnknownError",
    "ContendedError",
    "DatabaseDamagedError",
    "DatabaseFullError",
    "DatabaseOpenError",
    "DatabaseReadOnlyError",
    "EngineProcessExecutionEnvStore",
    "EngineSessionDispatch",
    "EngineSessionHistory",
    "EngineSessionStoreFactory",
    "EngineWorkerRegistry",
    "FileAttachmentStore",
    "GraphInvalidError",
    "HandleUnusableError",
    "HeadRevisionConflictError",
    "InMemoryAttachmentStore",
    "InMemoryProcessExecutionEnvStore",
    "InMemorySessionStore",
    "InMemorySessionStoreFactory",
    "InputSourceKeyConflictError",
    "InvalidInputError",
    "LeaseExpiredError",
    "NodeIdCollisionError",
    "ObjectAttachmentStore",
    "PostgresSessionStoreFactory",
    "QueuedWorkClaimExpiredError",
    "RecordVersionError",
    "RecordVersionInvalidError",
    "RecordVersionMissingError",
    "RecordVersionUnsupportedError",
    "RevisionNotReadableError",
    "SessionAttachmentStore",
    "SessionBindingMismatchError",
    "SessionDeletedError",
    "SessionIdTakenError",
    "SessionNotFoundError",
    "SessionStore",
    "SqliteSessionStoreFactory",
    "StoreError",
    "TurnCommitConflictError",
    "TurnInputClaimExpiredError",
    "UnknownBlobRefError",
    "UnsupportedReadScopeError",
    "current_process",
    "is_dead",
    "load_persisted_session_state",
    "load_persisted_session_state_active_path",
    "mint_owner",
    "open_attachments",
    "open_database",
    "reclaim_orphaned_attachments",
    "release_unnamed_attachments",
]
__all__ += model.__all__
