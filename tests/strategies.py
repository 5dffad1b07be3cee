"""What the state machine draws from: names, drafts, faults, and what a run of it must have met."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from fastness.conformance.builders import command, task
from fastness.model import (
    ActiveTurn,
    BlobRef,
    CheckpointKind,
    Group,
    LeaseOwnerIdentity,
    LocalProcess,
    MergeKey,
    Never,
    NextTurn,
    PayloadDefault,
    PendingTurnInputDraft,
    QueuedWorkBatchDraft,
    QueuedWorkPayload,
    TurnInput,
)

SESSIONS = ("a", "b")
HERE = LocalProcess("host", "boot", 1, "1")
OWNERS = (
    LeaseOwnerIdentity("alice", "1"),
    LeaseOwnerIdentity("alice", "2"),
    LeaseOwnerIdentity("bob", "1", HERE),
)
EXACT = "claim_ready_queued_work_by_batch_ids"
TURNS = ("t1", "t2", "turn 1")
BLOB_X = BlobRef("2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881")
"""The content ``b"x"`` by its hash: known where the head holds it, else not."""
COMMIT_FAULTS = (
    "binding",
    "revision",
    "usage",
    "claims",
    "graph",
    "graph",
    "collision",
    "collision",
    "blob",
    "attachment",
    "attachment",
    "attachment",
    "fence",
    "frame",
    "stamp",
    "stamp",
)
RUN = settings(
    max_examples=240,
    stateful_step_count=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    # Shrinking takes minutes; add Phase.shrink to hunt a mismatch that was found.
    phases=[Phase.generate],
)
sessions = st.sampled_from(SESSIONS)
owners = st.sampled_from(OWNERS)
turns = st.sampled_from(TURNS)
recent = st.sampled_from([0, 0, 0, 0, 1, 2, 5])
keys = st.sampled_from([None, None, None, "k1", "k2"])
few = st.integers(1, 3)
boundaries: st.SearchStrategy[CheckpointKind] = st.sampled_from(["after_work", "before_completion"])
work_boundaries = st.sampled_from(["idle", "idle", "active_turn_checkpoint"])
MERGES: tuple[MergeKey, ...] = (Never(), PayloadDefault(), Group("g"), Group("g"))
PAYLOADS: tuple[tuple[QueuedWorkPayload, ...], ...] = (
    (task(),),
    (task(),),
    (task("x"), task("y")),
    (command(),),
    (task(), command()),
    (),
)


def one_class(draft: QueuedWorkBatchDraft) -> bool:
    """Whether a batch may be enqueued at all."""
    return bool(draft.payloads) and len({type(payload) for payload in draft.payloads}) == 1


@st.composite
def input_drafts(draw: st.DrawFn) -> PendingTurnInputDraft:
    """Input for a session, for the next turn or a running one, with or without a key."""
    ingress = NextTurn() if draw(st.booleans()) else ActiveTurn(draw(turns), draw(boundaries))
    text = draw(st.sampled_from(["hi", "ho"]))
    return PendingTurnInputDraft(draw(sessions), ingress, TurnInput.of_text(text), None, draw(keys))


@st.composite
def work_drafts(draw: st.DrawFn) -> QueuedWorkBatchDraft:
    """Work of all classes and policies, now and then mixed or empty, now and then for later."""
    return QueuedWorkBatchDraft(
        draw(sessions),
        draw(st.sampled_from(["earliest_safe_boundary", "earliest_safe_boundary", "after_current_turn_commit"])),
        draw(st.sampled_from(["join", "join", "exclusive"])),
        draw(st.sampled_from(PAYLOADS)),
        draw(st.sampled_from(MERGES)),
        draw(keys),
        draw(st.sampled_from([0, 0, 0, 1_700_000_020_000])),
    )


WANTED = """
lease: Acquired|lease: Busy|reclaim: Acquired|reclaim: Busy|renew lease: SessionExecutionLease
renew lease: LeaseExpiredError|release: NoneType|delete: NoneType
enqueue input: PendingTurnInput|enqueue input: InputSourceKeyConflictError|list inputs: list
claim next: TurnInputClaim|claim next: NoneType|claim next: LeaseExpiredError
claim active: TurnInputClaim|claim active: NoneType|claim active: LeaseExpiredError
renew turn input claim: TurnInputClaim|renew turn input claim: TurnInputClaimExpiredError
abandon turn input claim: NoneType|cancel input: Cancelled|cancel input: AlreadyClaimed
cancel input: AlreadyCompleted|cancel input: AlreadyCancelled|cancel input: NotFound
cancel inputs: list|cancel suffix: SuffixOutcomes|cancel suffix: AnchorNotFound
enqueue work: QueuedWorkBatch|enqueue work: InvalidInputError|list work: list
claim work: QueuedWorkClaim|claim work: NoneType|claim work: LeaseExpiredError
claim command: QueuedWorkClaim|claim command: NoneType|claim exactly: QueuedWorkClaim|claim exactly: NoneType
renew queued work claim: QueuedWorkClaim|renew queued work claim: QueuedWorkClaimExpiredError
abandon queued work claim: NoneType|cancel work: QueuedWorkBatch|cancel work: NoneType
commit: RuntimeCommitResult|commit: InvalidInputError|commit: SessionBindingMismatchError
commit: TurnCommitConflictError|commit: LeaseExpiredError|commit: HeadRevisionConflictError
commit: ClaimExpiredError|commit: NodeIdCollisionError|commit: GraphInvalidError|commit: UnknownBlobRefError
commit: AttachmentNotInManifestError|commit: InputSourceKeyConflictError
commit of Append|commit of Unchanged|commit of ReplaceFull|commit replayed
load: PersistedSessionRead|load: NoneType|load: GraphInvalidError|load: SessionDeletedError
load node: SessionNodeRecord|load head: SessionHeadMeta|record intent: NoneType|commit refs: NoneType
commit refs: AttachmentNotInManifestError|holds ref: bool|forget: NoneType
tombstone: NoneType|tombstone: GraphInvalidError|vacuum: VacuumReport|collect: GcReport
"""
"""What has to have happened at least once in a run, for the run to mean anything."""
