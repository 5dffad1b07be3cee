"""A history by session: what the journals say of it, each process in its own order, beside its final state."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from fastness.testing.events import AnyEvent, Committed, Interrupted, Quarantined, Sent, TurnFailed, TurnStarted
from fastness.testing.final import FinalSession, FinalState


class SessionHistory(NamedTuple):
    """All that is known of one session. Events are in the order of their process; processes in that of their names."""

    session: FinalSession
    sent: list[Sent]
    started: list[TurnStarted]
    committed: list[Committed]
    failed: list[TurnFailed]
    quarantined: list[Quarantined]
    interrupted: list[Interrupted]


def by_session(events: Iterable[AnyEvent], final: FinalState) -> tuple[list[SessionHistory], list[str]]:
    """Sort a history by session; give with it the sessions that the journals know and the final state lacks."""
    found: dict[str, list[AnyEvent]] = defaultdict(list)
    for event in sorted(events, key=lambda event: (event.writer, event.sequence)):
        found[event.session_id].append(event)
    sessions = {session.session_id: session for session in final.sessions}
    histories = [_history(sessions[session_id], found[session_id]) for session_id in sorted(sessions)]
    missing = [session_id for session_id in sorted(found) if session_id not in sessions and _landed(found[session_id])]
    return histories, missing


def _history(session: FinalSession, events: list[AnyEvent]) -> SessionHistory:
    return SessionHistory(
        session,
        [event for event in events if isinstance(event, Sent)],
        [event for event in events if isinstance(event, TurnStarted)],
        [event for event in events if isinstance(event, Committed)],
        [event for event in events if isinstance(event, TurnFailed)],
        [event for event in events if isinstance(event, Quarantined)],
        [event for event in events if isinstance(event, Interrupted)],
    )


def _landed(events: Iterable[AnyEvent]) -> bool:
    """Whether anything of a session is known to have been in the database: an attempt alone is not."""
    return any(not isinstance(event, Sent) or event.acknowledged for event in events)
