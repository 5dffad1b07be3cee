"""What is known of a session, from what was given and what was not (laws M3, D1)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

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


FEW = 2000
"""So many sessions can be sorted for one page of a listing."""


class Way(NamedTuple):
    """How a listing finds its sessions: through those that one criterion fits (None: all), in their order or sorted."""

    leader: int | None
    in_order: bool


def worth_counting(ordered: Sequence[bool]) -> bool:
    """Whether a listing has a choice, by whether the index of each criterion gives the sessions in their order."""
    return len(ordered) > 1 or not all(ordered)


def way_through(ordered: Sequence[bool], counts: Sequence[int]) -> Way:
    """Choose the criterion that leads a listing: the one that fits the fewest sessions, where those are few.

    ``counts`` go no further than ``FEW``; without a choice there are none. Where none fits few, the listing goes in
    order, and whoever asks for a page of many soon has it.
    """
    rarest = min(range(len(counts)), key=counts.__getitem__, default=None)
    if rarest is not None and counts[rarest] < FEW:
        return Way(rarest, ordered[rarest])
    leader = next((at for at, in_order in enumerate(ordered) if in_order), None)
    return Way(leader, in_order=True)
