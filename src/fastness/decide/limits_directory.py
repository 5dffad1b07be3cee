"""What the directory of sessions takes from outside, and what it refuses before anything is written (laws B1, D1).

The same promise as that of ``limits``, for descriptions of sessions, requests to create one, and listings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from fastness.decide.limits import (
    check_id,
    check_int63,
    check_optional_id,
    check_text,
    check_type,
    utf8_size,
)
from fastness.errors import InvalidInputError
from fastness.model.session import (
    Child,
    PersistedSessionConfig,
    Root,
    SessionFilter,
    SessionMeta,
    SessionRelation,
    SessionStoreCreateRequest,
)

MAX_LABEL_BYTES = 128
"""The longest label, in bytes of UTF-8."""

MAX_LABELS = 64
"""How many labels a session may have, and a listing may ask for."""

MAX_PRIORITY = 9


def check_meta(meta: SessionMeta) -> None:
    """Take what a person wants to know of a session."""
    check_type("meta", meta, SessionMeta)
    check_id("meta.session_id", meta.session_id)
    for what in ("session_name", "created_at", "model"):
        check_text(f"meta.{what}", getattr(meta, what))
    if meta.cwd is not None:
        check_text("meta.cwd", meta.cwd)
    _check_relation(meta.relation)
    check_labels("meta.labels", meta.labels)
    check_priority("meta.priority", meta.priority)
    # That the bytes are one JSON value shows when the record is encoded: it is read back then.
    check_type("meta.custom", meta.custom, msgspec.Raw)


_CHANGEABLE = frozenset({"session_name", "model", "cwd", "labels", "priority", "custom"})


def check_changes(session_id: str, changes: Mapping[str, Any]) -> None:
    """Take some fields of a description. What cannot be written brings nothing to life."""
    for field in changes:
        if field not in _CHANGEABLE:
            raise InvalidInputError("changes", f"name {field!r}, which is no field that can be changed")
    check_meta(SessionMeta(session_id, **{"session_name": "", "created_at": "", "model": "", **changes}))


def check_create_request(request: SessionStoreCreateRequest) -> None:
    """Take what names a session to a factory."""
    check_type("request", request, SessionStoreCreateRequest)
    check_id("request.session_id", request.session_id)
    _check_relation(request.relation)
    check_type("request.config", request.config, PersistedSessionConfig)
    check_text("request.config.provider_id", request.config.provider_id)
    check_text("request.config.model", request.config.model)
    check_labels("request.labels", request.labels)
    check_priority("request.priority", request.priority)


def check_label(what: str, value: object) -> str:
    """Take one label: 1 to 128 bytes of UTF-8, printable, without white space at its ends."""
    label = check_text(what, value)
    size = utf8_size(label)
    if not 0 < size <= MAX_LABEL_BYTES:
        raise InvalidInputError(what, f"has {size} bytes, and a label has 1 to {MAX_LABEL_BYTES}")
    if not label.isprintable() or label != label.strip():
        raise InvalidInputError(what, f"{label!r} must be printable, without white space at its ends")
    return label


def check_labels(what: str, values: Sequence[str]) -> None:
    """Take the labels of a session or of a filter. Their order does not count, nor that one comes twice."""
    check_type(what, values, tuple, list)
    if len(values) > MAX_LABELS:
        raise InvalidInputError(what, f"are {len(values)}, more than the {MAX_LABELS} that there may be")
    for value in values:
        check_label(what, value)


def check_priority(what: str, value: object) -> None:
    """Take the priority of a session: 0 to 9, and 9 goes first."""
    if not 0 <= check_int63(what, value) <= MAX_PRIORITY:
        raise InvalidInputError(what, f"is {value} and must be 0 to {MAX_PRIORITY}")


def _check_relation(relation: SessionRelation) -> None:
    check_type("relation", relation, Root, Child)
    if isinstance(relation, Child):
        check_id("relation.parent_session_id", relation.parent_session_id)
        check_optional_id("relation.caused_by", relation.caused_by)


def check_filter(filters: SessionFilter) -> None:
    """Take what narrows a listing."""
    check_type("filters", filters, SessionFilter)
    check_optional_id("filters.id_prefix", filters.id_prefix)
    check_optional_id("filters.parent_session_id", filters.parent_session_id)
    for what in ("created_from_ms", "created_until_ms"):
        if getattr(filters, what) is not None:
            check_int63(f"filters.{what}", getattr(filters, what))
    check_labels("filters.labels", filters.labels)


def check_cursor(cursor: str | None) -> int:
    """Take the cursor of a listing back, and give the place behind which it goes on."""
    if cursor is None:
        return 0
    if not isinstance(cursor, str) or not cursor.isascii() or not cursor.isdigit() or len(cursor) > 18:
        raise InvalidInputError("cursor", "is none of ours; pass next_cursor of the page before")
    return int(cursor)
