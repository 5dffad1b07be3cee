"""How a place for attachments is named.

some/directory              files, whole or not at all
s3://bucket/prefix          an object store; gs:// and az:// likewise
memory:                     private to this process, gone with it
"""

from __future__ import annotations

from pathlib import Path

from fastness.attachments.files import FileAttachmentStore
from fastness.attachments.memory import InMemoryAttachmentStore
from fastness.attachments.objects import ObjectAttachmentStore
from fastness.errors import InvalidInputError
from fastness.model import AttachmentStore

_OBJECTS = ("s3://", "gs://", "az://")


def open_attachments(place: str | Path) -> AttachmentStore:
    """Name a place for attachments by directory or url.

    Raises ``InvalidInputError`` for a url of no known kind, ``AttachmentStoreError`` where a library is not installed.
    """
    if isinstance(place, Path):
        return FileAttachmentStore(place)
    if not isinstance(place, str) or not place or "\0" in place:
        raise InvalidInputError("attachments", "must be named by a directory or a url")
    if place == "memory:":
        return InMemoryAttachmentStore()
    if place.startswith(_OBJECTS):
        return ObjectAttachmentStore.from_url(place)
    if "://" in place:
        raise InvalidInputError("attachments", "must be a directory, s3://…, gs://…, az://… or memory:")
    return FileAttachmentStore(place)
