"""Attachments and environments: references, and the rows of the manifest that ties them to commits."""

from __future__ import annotations

from collections.abc import AsyncIterable
from pathlib import Path
from typing import Literal, TypeAlias

from fastness.model.base import Value


class AttachmentRef(Value, frozen=True):
    """A reference to content: the id is the sha256 of the bytes, all else belongs to the reference (law A1).

    ``size`` is in bytes, ``width`` and ``height`` in pixels, for images.
    """

    attachment_id: str
    name: str
    media_type: str
    size: int
    width: int | None = None
    height: int | None = None


class AttachmentIntent(Value, frozen=True):
    """A session is about to put these bytes. Recorded before the first byte is written (law A2)."""

    session_id: str
    reference: AttachmentRef


class AttachmentManifestEntry(Value, frozen=True):
    """A row of the manifest. ``released``: what a session let go of, or had when it was deleted.

    ``session_id`` is empty for a release of content that no session had named. ``intent_id``, which only
    ``find_attachment`` gives, names the intent that bytes are put under: another one comes only after a sweep.
    """

    session_id: str
    attachment_id: str
    state: Literal["intent", "committed", "released"]
    recorded_at_epoch_ms: int
    reference: AttachmentRef | None = None
    intent_id: str = ""

    def proof(self) -> AttachmentProof:
        """Say which intent the bytes were put under."""
        return AttachmentProof(self.attachment_id, self.intent_id)


class AttachmentProof(Value, frozen=True):
    """Says that bytes were put under an intent. A commit that shows it is refused once a sweep has taken that intent,
    even if another intent for the same content has come since, whose bytes may not have.
    """

    attachment_id: str
    intent_id: str


class AttachmentReclaimGrant(Value, frozen=True):
    """What a sweep may delete now. All of it goes to ``finish_reclaim``; the mark lapses at ``lapses_at_epoch_ms``."""

    sweep_id: str
    attachment_ids: tuple[str, ...]
    lapses_at_epoch_ms: int


AttachmentSource: TypeAlias = "bytes | bytearray | memoryview | Path | AsyncIterable[bytes | bytearray | memoryview]"
"""Where the bytes of an attachment come from: memory, a file by its path, or a stream, which is read once."""

AttachmentPersistence: TypeAlias = Literal["inline", "durable"]
"""``inline`` dies with the process, ``durable`` survives it."""
