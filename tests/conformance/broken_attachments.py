"""Stores of attachments that break a law each, and faces of a session that do: what ``test_kit`` runs the laws on."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from typing import Any

import pytest

from fastness.conformance import AttachmentLab, AttachmentSubject
from fastness.conformance.laws import attachments_of_sessions
from fastness.conformance.laws.attachments import *  # noqa: F403
from fastness.conformance.laws.attachments_of_sessions import *  # noqa: F403
from fastness.persistence import InMemoryAttachmentStore, SessionAttachmentStore


class OtherHash(InMemoryAttachmentStore):
    """Names content by another hash (A1)."""

    async def put(self, source: Any, *, attachment_id: str | None = None) -> str:
        """Keep it under a name of our own."""
        content = await super().get(await super().put(source, attachment_id=attachment_id))
        found = hashlib.sha3_256(content).hexdigest()
        self._contents = {
            found if self._contents[each] == content else each: self._contents[each] for each in self._contents
        }
        return found


class Gullible(InMemoryAttachmentStore):
    """Takes other content than was expected, under its own name (A1)."""

    async def put(self, source: Any, *, attachment_id: str | None = None) -> str:
        """Never mind what was expected."""
        return await super().put(source)


class Unverified(InMemoryAttachmentStore):
    """Gives whatever is there, also where it was to be verified (A5)."""

    def stream(self, attachment_id: str, *, start: int = 0, end: int | None = None, verify: bool = False) -> Any:
        """Never mind the hash."""
        return super().stream(attachment_id, start=start, end=end)


class Undeleted(InMemoryAttachmentStore):
    """Says that it deleted, and does not (A5)."""

    async def delete(self, attachment_id: str) -> int:
        """Say how many bytes there are."""
        return len(self._contents.get(attachment_id, b""))


class Truncated(InMemoryAttachmentStore):
    """Keeps what there was of a stream that failed (A5)."""

    async def put(self, source: Any, *, attachment_id: str | None = None) -> str:
        """Keep what comes."""
        if not hasattr(source, "__aiter__"):
            return await super().put(source, attachment_id=attachment_id)
        gathered = bytearray()
        try:
            async for piece in source:
                gathered += piece
        finally:
            found = await super().put(gathered)
        return found


class Unsorted(InMemoryAttachmentStore):
    """Lists its content as it came (A5)."""

    async def list(self, *, after: str = "", limit: int = 1000) -> Any:
        """Leave the order to chance."""
        await super().list(after=after, limit=limit)
        return [each for each in self._contents if each > after][:limit]


class Trusting(InMemoryAttachmentStore):
    """Looks for whatever it is asked for, be it a hash or a path (A5)."""

    async def size(self, attachment_id: str) -> int:
        """Look it up."""
        return len(self._contents[attachment_id])


class Ragged(InMemoryAttachmentStore):
    """Takes the end of a part for its length (A5)."""

    def stream(self, attachment_id: str, *, start: int = 0, end: int | None = None, verify: bool = False) -> Any:
        """Give as many bytes as the end says."""
        return super().stream(attachment_id, start=start, end=None if end is None else start + end, verify=verify)


class Late(SessionAttachmentStore):
    """Records the intent after the bytes (A2)."""

    async def _under_intent(self, reference: Any, have_bytes: Any) -> None:
        await have_bytes()
        await super()._under_intent(reference, have_bytes)


class Open(SessionAttachmentStore):
    """Lets a session read whatever there is (A3)."""

    async def require_held(self, attachment_id: str) -> None:
        """Let everybody in."""


class Hasty(SessionAttachmentStore):
    """Does not see whether a sweep took the intent while the bytes were on their way (A2)."""

    async def _under_intent(self, reference: Any, have_bytes: Any) -> None:
        await super()._under_intent(reference, nothing)
        await have_bytes()


async def nothing() -> None:
    """Have no bytes."""


async def damage(lab: AttachmentLab, attachment_id: str, data: bytes) -> None:
    """Change what is kept."""
    lab.opened._contents[attachment_id] = data


STORES = [OtherHash, Gullible, Unverified, Undeleted, Truncated, Unsorted, Trusting, Ragged]
FACES = [Late, Open, Hasty]


@pytest.fixture(params=[*STORES, *FACES])
def attachment_subject(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AttachmentSubject:
    """One store after the other."""
    kind = request.param
    if kind in FACES:
        monkeypatch.setattr(attachments_of_sessions, "SessionAttachmentStore", kind)
        kind = InMemoryAttachmentStore
    return AttachmentSubject(lambda _: nullcontext(kind()), damage=damage)
