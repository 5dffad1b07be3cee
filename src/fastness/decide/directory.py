"""What is known of a session, from what was given and what was not (laws M3, D1)."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from fastness.model.session import Child, SessionMeta, SessionStoreCreateRequest


def rfc3339(epoch_ms: int) -> str:
    """Write a time the way people read it: RFC 3339 in UTC, to the millisecond."""
    return datetime.fromtimestamp(epoch_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def effective_meta(session_id: str, stored: SessionMeta | None, created_ms: int) -> SessionMeta:
    """Give the metadata of a session, also of one that came to life by an enqueue and was never described."""
    return stored or SessionMeta(session_id, session_id, rfc3339(created_ms), "")


def filled_meta(request: SessionStoreCreateRequest, stored: SessionMeta | None, created_ms: int) -> SessionMeta:
    """Give the metadata after a creation: what is missing is filled in, nothing is overwritten."""
    if stored is None:
        given = effective_meta(request.session_id, None, created_ms)
        return tidied(
            msgspec.structs.replace(
                given,
                model=request.config.model,
                relation=request.relation,
                labels=request.labels,
                priority=request.priority,
            )
        )
    return msgspec.structs.replace(
        stored,
        session_name=stored.session_name or request.session_id,
        created_at=stored.created_at or rfc3339(created_ms),
        model=stored.model or request.config.model,
    )


def tidied(meta: SessionMeta) -> SessionMeta:
    """Give a description as it is kept: each label once, in the order of their bytes, which is that of code points."""
    return msgspec.structs.replace(meta, labels=tuple(sorted(set(meta.labels))))


def parent_of(meta: SessionMeta) -> str | None:
    """The session that started this one."""
    return meta.relation.parent_session_id if isinstance(meta.relation, Child) else None
