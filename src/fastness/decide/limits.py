"""What the store takes from outside, and what it refuses before anything is written (law B1).

Struct fields are not checked when a value is built, so every value that comes from outside passes here once. Whatever
breaks a limit, a wrong type included, is an ``InvalidInputError`` that names the field; a value that passes can be
bound to a statement and encoded. Content (text of items, foreign JSON) is only checked for being what it says: it may
be long and may contain NUL. Nothing here knows what the database holds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeVar, get_args

import msgspec

from fastness.decide.queued_work import class_of
from fastness.errors import InvalidInputError
from fastness.model.attachments import AttachmentManifestEntry, AttachmentProof, AttachmentReclaimGrant, AttachmentRef
from fastness.model.base import MAX_ID_BYTES, MAX_INT, Value, encode
from fastness.model.checkpoint import CheckpointKind
from fastness.model.lease import (
    LeaseOwnerIdentity,
    LocalProcess,
    Opaque,
    SessionExecutionLeaseCompletion,
    SessionExecutionLeaseFence,
)
from fastness.model.queued_work import (
    DeliveryPolicy,
    Group,
    Never,
    PayloadDefault,
    ProcessWake,
    QueuedWorkBatch,
    QueuedWorkBatchDraft,
    QueuedWorkClaim,
    QueuedWorkClaimBoundary,
    QueuedWorkPayload,
    SessionCommand,
    SlotPolicy,
    Task,
)
from fastness.model.session import ActivePath, SessionReadScope
from fastness.model.turn_input import (
    ActiveTurn,
    AttachmentItem,
    ByInputId,
    BySourceKey,
    NextTurn,
    PendingTurnInput,
    PendingTurnInputCancelTarget,
    PendingTurnInputDraft,
    StructuredItem,
    TextItem,
    TurnInput,
    TurnInputClaim,
    TurnInputIngress,
    TurnInputItem,
)

MAX_NAME_BYTES = 4096
MAX_MEDIA_TYPE = 255
_MEDIA_TYPE = re.compile(r"[!#$&^_.+\-\w]+/[!#$&^_.+\-\w]+( *;[ -~]*)?", re.ASCII)

MAX_TTL_MS = 100 * 366 * 24 * 3600 * 1000
"""The longest life of a lease or a mark, in milliseconds."""

MIN_INT = -(2**63)

MAX_PAGE = 10_000
"""How many rows a page of any listing may have."""

DEFAULT_COMMIT_BUDGET_BYTES = 64 * 1024 * 1024
"""How many bytes of content one call may bring, unless the store was configured otherwise."""

T = TypeVar("T")

_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_type(what: str, value: object, *kinds: type[Any]) -> None:
    """Refuse a value that is of none of these classes."""
    if not isinstance(value, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise InvalidInputError(what, f"must be {wanted}, not {type(value).__name__}")


def check_text(what: str, value: object) -> str:
    """Take any text that is Unicode. NUL is fine: such text lives inside JSON."""
    if not isinstance(value, str):
        raise InvalidInputError(what, f"must be text, not {type(value).__name__}")
    if not value.isascii():
        _utf8(what, value)
    return value


def check_id(what: str, value: object) -> str:
    """Take an id or a key: 1 to 512 bytes of UTF-8 without NUL."""
    # This runs a dozen times in every commit, and nearly always on a short ASCII text.
    if type(value) is str and 0 < len(value) <= MAX_ID_BYTES and value.isascii() and "\0" not in value:
        return value
    if type(value) is not str:  # a subclass may not be what it looks like
        raise InvalidInputError(what, f"must be text, not {type(value).__name__}")
    size = len(value) if value.isascii() else len(_utf8(what, value))
    if not size:
        raise InvalidInputError(what, "must not be empty")
    if size > MAX_ID_BYTES:
        raise InvalidInputError(what, f"has {size} bytes, more than the {MAX_ID_BYTES} that an id or key may have")
    if "\0" in value:
        raise InvalidInputError(what, "must not contain NUL")
    return value


def check_optional_id(what: str, value: object) -> str | None:
    """Take an id or a key, or None."""
    return None if value is None else check_id(what, value)


def check_int63(what: str, value: object) -> int:
    """Take a number that a signed 64-bit column holds without wrapping."""
    # bool is an int to Python, but no number to whoever sends it.
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidInputError(what, f"must be a whole number, not {type(value).__name__}")
    if not MIN_INT <= value <= MAX_INT:
        raise InvalidInputError(what, "is beyond 63 bits")
    return value


def check_count(what: str, value: object) -> int:
    """Take a counter, a size or a time: 0 to 2**63 - 1."""
    if type(value) is int and 0 <= value <= MAX_INT:
        return value
    number = check_int63(what, value)
    if number < 0:
        raise InvalidInputError(what, f"is {number} and must not be negative")
    return number


def check_positive(what: str, value: object) -> int:
    """Take a limit: 1 to 2**63 - 1."""
    number = check_int63(what, value)
    if number < 1:
        raise InvalidInputError(what, f"is {number} and must be at least 1")
    return number


def check_page_size(limit: object) -> int:
    """Take how many rows a page of a listing may have."""
    size = check_positive("limit", limit)
    if size > MAX_PAGE:
        raise InvalidInputError("limit", f"is {size} and must be at most {MAX_PAGE}")
    return size


def check_choice(what: str, value: object, choices: Sequence[object]) -> None:
    """Refuse a word that is none of these."""
    if not isinstance(value, str) or value not in choices:
        raise InvalidInputError(what, f"must be one of {', '.join(map(str, choices))}")


def check_budget(size: int, budget: int = DEFAULT_COMMIT_BUDGET_BYTES) -> None:
    """Refuse content that is larger than one call may bring. Both in bytes."""
    if size > budget:
        raise InvalidInputError("content", f"has {size} bytes, over the configured budget of {budget}")


def utf8_size(text: str) -> int:
    """Give how many bytes a text has in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def check_fence(fence: SessionExecutionLeaseFence) -> None:
    """Take what proves that a lane is held."""
    check_type("fence", fence, SessionExecutionLeaseFence)
    _check_proof("fence", fence)


def _check_proof(what: str, shown: SessionExecutionLeaseFence | SessionExecutionLeaseCompletion) -> None:
    # It is only compared with the lease that stands in the lane: what is odd in it names no lease.
    check_id(f"{what}.session_id", shown.session_id)
    check_type(f"{what}.owner", shown.owner, LeaseOwnerIdentity)
    check_count(f"{what}.fencing_token", shown.fencing_token)


def check_ids(what: str, values: Sequence[str]) -> tuple[str, ...]:
    """Take a series of ids or keys, and give it as a tuple."""
    return tuple([check_id(what, value) for value in _series(what, values)])


def check_claim_names(session_id: str, claim_id: str, fencing_token: int, row_ids: Sequence[str]) -> None:
    """Take what a claim or a completion says it is."""
    check_id("claim.session_id", session_id)
    check_id("claim.claim_id", claim_id)
    check_count("claim.fencing_token", fencing_token)
    check_ids("claim rows", row_ids)


def check_input_claim(claim: TurnInputClaim) -> None:
    """Take a claim of input back from its holder."""
    check_type("claim", claim, TurnInputClaim)
    for row in _series("claim.inputs", claim.inputs):
        check_type("claim.inputs", row, PendingTurnInput)
    shown = claim.completion()
    check_claim_names(shown.session_id, shown.claim_id, shown.fencing_token, shown.input_ids)


def check_work_claim(claim: QueuedWorkClaim) -> None:
    """Take a claim of work back from its holder."""
    check_type("claim", claim, QueuedWorkClaim)
    for batch in _series("claim.batches", claim.batches):
        check_type("claim.batches", batch, QueuedWorkBatch)
    shown = claim.completion()
    check_claim_names(shown.session_id, shown.claim_id, shown.fencing_token, shown.batch_ids)


def check_checkpoint(what: str, value: object) -> None:
    """Take a boundary inside a turn."""
    check_choice(what, value, get_args(CheckpointKind))


def check_claim_boundary(value: object) -> None:
    """Take a boundary at which work is claimed."""
    check_choice("boundary", value, get_args(QueuedWorkClaimBoundary))


def check_cancel_target(target: PendingTurnInputCancelTarget) -> None:
    """Take what a cancel may name."""
    check_type("target", target, ByInputId, BySourceKey)
    if isinstance(target, ByInputId):
        check_id("target.input_id", target.input_id)
    else:
        check_id("target.source_key", target.source_key)


def check_cancel_targets(
    targets: Sequence[PendingTurnInputCancelTarget],
) -> tuple[PendingTurnInputCancelTarget, ...]:
    """Take what a bulk cancel names."""
    for target in _series("targets", targets):
        check_cancel_target(target)
    return tuple(targets)


def check_input_draft(draft: PendingTurnInputDraft) -> None:
    """Take turn input that is about to be enqueued. It may be without items: that it was submitted says something."""
    check_type("draft", draft, PendingTurnInputDraft)
    check_id("draft.session_id", draft.session_id)
    check_optional_id("draft.input_id", draft.input_id)
    check_optional_id("draft.source_key", draft.source_key)
    _check_ingress(draft.ingress)
    check_count("draft.available_at_ms", draft.available_at_ms)
    check_type("draft.input", draft.input, TurnInput)
    _check_json("draft.input.metadata", draft.input.metadata)
    for item in _series("draft.input.items", draft.input.items):
        _check_item(item)


def check_batch_draft(draft: QueuedWorkBatchDraft) -> None:
    """Take work that is about to be enqueued: at least one payload, all of one class (law W6)."""
    check_type("draft", draft, QueuedWorkBatchDraft)
    check_id("draft.session_id", draft.session_id)
    check_optional_id("draft.source_key", draft.source_key)
    check_choice("draft.delivery_policy", draft.delivery_policy, get_args(DeliveryPolicy))
    check_choice("draft.slot_policy", draft.slot_policy, get_args(SlotPolicy))
    check_count("draft.available_at_ms", draft.available_at_ms)
    check_type("draft.merge_key", draft.merge_key, Never, PayloadDefault, Group)
    if isinstance(draft.merge_key, Group):
        check_id("draft.merge_key.name", draft.merge_key.name)
    for payload in _series("draft.payloads", draft.payloads):
        _check_payload(payload)
    class_of(draft.payloads)


def check_attachment_id(what: str, value: object) -> str:
    """Take the id of content: a hash, so that nothing else can be smuggled into a path or a key (law A5)."""
    if not _SHA256.fullmatch(check_id(what, value)):
        raise InvalidInputError(what, "must be the sha256 of the content, in lower-case hexadecimal")
    return str(value)


def check_attachment_ids(what: str, values: Sequence[str]) -> tuple[str, ...]:
    """Take several ids of content."""
    return tuple(check_attachment_id(what, value) for value in _series(what, values))


def check_proofs(what: str, proofs: Sequence[AttachmentProof]) -> tuple[AttachmentProof, ...]:
    """Take what says which intents bytes were put under."""
    for proof in _series(what, proofs):
        check_type(what, proof, AttachmentProof)
        check_id(f"{what}.attachment_id", proof.attachment_id)
        check_text(f"{what}.intent_id", proof.intent_id)
    return tuple(proofs)


def check_attachment_name(what: str, value: object) -> str:
    """Take what content is called. It is no path: whoever makes a file of it has to see to that."""
    name = check_text(what, value)
    if utf8_size(name) > MAX_NAME_BYTES:
        raise InvalidInputError(what, f"must be at most {MAX_NAME_BYTES} bytes of UTF-8")
    return name


def check_media_type(what: str, value: object) -> str:
    """Take a media type, with parameters or without."""
    media_type = check_text(what, value)
    if len(media_type) > MAX_MEDIA_TYPE or not _MEDIA_TYPE.fullmatch(media_type):
        raise InvalidInputError(what, f"must be like image/png, of at most {MAX_MEDIA_TYPE} characters")
    return media_type


def check_attachment_ref(what: str, reference: AttachmentRef) -> None:
    """Take a reference to content. Whether the session may refer to it is another question."""
    check_type(what, reference, AttachmentRef)
    check_attachment_id(f"{what}.attachment_id", reference.attachment_id)
    check_attachment_name(f"{what}.name", reference.name)
    check_media_type(f"{what}.media_type", reference.media_type)
    check_count(f"{what}.size", reference.size)
    for side, pixels in (("width", reference.width), ("height", reference.height)):
        if pixels is not None:
            check_count(f"{what}.{side}", pixels)


def check_manifest_page(after: AttachmentManifestEntry | None, limit: int | None) -> None:
    """Take the bounds of a page of the manifest."""
    if limit is not None:
        check_positive("limit", limit)
    if after is not None:
        check_type("after", after, AttachmentManifestEntry)
        if after.session_id != "":  # content that no session had named
            check_id("after.session_id", after.session_id)
        check_id("after.attachment_id", after.attachment_id)
        check_int63("after.recorded_at_epoch_ms", after.recorded_at_epoch_ms)


def _check_ingress(ingress: TurnInputIngress) -> None:
    check_type("draft.ingress", ingress, ActiveTurn, NextTurn)
    if isinstance(ingress, ActiveTurn):
        check_id("draft.ingress.turn_id", ingress.turn_id)
        check_checkpoint("draft.ingress.min_boundary", ingress.min_boundary)


def _check_item(item: TurnInputItem) -> None:
    check_type("draft.input.items", item, TextItem, AttachmentItem, StructuredItem)
    if isinstance(item, TextItem):
        check_text("draft.input.items.text", item.text)
    elif isinstance(item, AttachmentItem):
        check_attachment_ref("draft.input.items.attachment", item.attachment)
    else:
        check_text("draft.input.items.kind", item.kind)
        _check_json("draft.input.items.data", item.data)


def _check_payload(payload: QueuedWorkPayload) -> None:
    check_type("draft.payloads", payload, ProcessWake, SessionCommand, Task)
    if isinstance(payload, ProcessWake):
        _check_json("draft.payloads.wake", payload.wake)
    elif isinstance(payload, SessionCommand):
        _check_json("draft.payloads.command", payload.command)
    else:
        check_text("draft.payloads.kind", payload.kind)
        _check_json("draft.payloads.data", payload.data)


def _check_json(what: str, value: object) -> None:
    # That the bytes are one JSON value shows when the record is encoded: it is read back then.
    if not isinstance(value, msgspec.Raw):
        raise InvalidInputError(what, f"must be raw JSON (see raw_json), not {type(value).__name__}")


def _series(what: str, values: Sequence[T]) -> Sequence[T]:
    # A list is taken as well: the record that is stored, and given back, holds a tuple.
    if not isinstance(values, tuple | list):
        raise InvalidInputError(what, f"must be a tuple, not {type(values).__name__}")
    return values


def _utf8(what: str, value: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise InvalidInputError(what, "contains a lone surrogate, which is not valid text") from None


def check_size(record: Value, budget: int) -> None:
    """Refuse a record that is larger than one call may bring."""
    check_budget(len(encode(record)), budget)


def check_ttl(ttl_ms: int) -> None:
    """Take how long something lives, in milliseconds: up to a hundred years, so that no sum with a time wraps."""
    if check_positive("ttl_ms", ttl_ms) > MAX_TTL_MS:
        raise InvalidInputError("ttl_ms", f"is {ttl_ms} and must be at most {MAX_TTL_MS}")


def check_owner(owner: LeaseOwnerIdentity) -> None:
    """Take who claims a lane."""
    check_type("owner", owner, LeaseOwnerIdentity)
    check_id("owner.owner_id", owner.owner_id)
    check_id("owner.incarnation_id", owner.incarnation_id)
    check_type("owner.liveness", owner.liveness, LocalProcess, Opaque)
    if isinstance(owner.liveness, LocalProcess):
        process = owner.liveness
        check_count("owner.liveness.pid", process.pid)
        for what in ("host_id", "boot_id", "process_start"):
            check_id(f"owner.liveness.{what}", getattr(process, what))


def check_completion(completion: SessionExecutionLeaseCompletion) -> None:
    """Take what releases a lane."""
    check_type("completion", completion, SessionExecutionLeaseCompletion)
    _check_proof("completion", completion)


def check_grant(grant: AttachmentReclaimGrant) -> None:
    """Take the grant of a sweep back."""
    check_type("grant", grant, AttachmentReclaimGrant)
    check_id("grant.sweep_id", grant.sweep_id)
    check_ids("grant.attachment_ids", grant.attachment_ids)


def check_scope(scope: SessionReadScope) -> None:
    """Take what a load is asked for. What is no scope at all has an error of its own."""
    if isinstance(scope, ActivePath):
        check_optional_id("scope.leaf_node_id", scope.leaf_node_id)
        if scope.last is not None:
            check_positive("scope.last", scope.last)
        if scope.after_revision is not None:
            check_positive("scope.after_revision", scope.after_revision)
