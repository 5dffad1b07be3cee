"""What a sweep of attachments may take (law A4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Hold(NamedTuple):
    """What names some content: a session's row, or (never committed) what a deleted session left."""

    attachment_id: str
    committed: bool
    recorded_ms: int


def reclaimable(
    wanted: Sequence[str], holds: Sequence[Hold], marked: frozenset[str], older_than_ms: int
) -> tuple[str, ...]:
    """Give the ids whose bytes nobody needs, in the order asked for.

    ``holds`` is all that names them: what no manifest names is not ours to delete. ``marked`` are those that another
    sweep is at. A committed reference, or an intent or release newer than the cut-off, keeps the bytes, whoever made
    it. The cut-off is inclusive.
    """
    named = {hold.attachment_id for hold in holds}
    kept = {hold.attachment_id for hold in holds if hold.committed or hold.recorded_ms > older_than_ms}
    seen: dict[str, None] = dict.fromkeys(wanted)
    return tuple(each for each in seen if each in named and each not in kept and each not in marked)
