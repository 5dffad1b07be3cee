"""What a sweep of attachments may take (law A4)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Hold(NamedTuple):
    """A session's row for some content."""

    attachment_id: str
    committed: bool
    recorded_ms: int


def reclaimable(
    wanted: Sequence[str], named: frozenset[str], holds: Iterable[Hold], marked: frozenset[str], older_than_ms: int
) -> tuple[str, ...]:
    """Give the ids whose bytes nobody needs, in the order asked for.

    ``named`` are those that some intent or release names at all: what no manifest names is not ours to delete.
    ``marked`` are those that another sweep is at. A committed reference or an intent newer than the cut-off, of
    whichever session, keeps the bytes. The cut-off is inclusive.
    """
    kept = {hold.attachment_id for hold in holds if hold.committed or hold.recorded_ms > older_than_ms}
    seen: dict[str, None] = dict.fromkeys(wanted)
    return tuple(each for each in seen if each in named and each not in kept and each not in marked)
