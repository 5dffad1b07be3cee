"""What the checker cannot know, since only the plan says it: what is to be set aside, what wakes, what is charged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fastness.factory import EngineSessionStoreFactory
from fastness.model import FullGraph, SessionStoreCreateRequest
from fastness.testing import AnyEvent, FinalSession, FinalState, Sent, text_hash
from tests.proof.plan import Planned, Size, plan


async def find_faults(
    size: Size, factory: EngineSessionStoreFactory, events: Sequence[AnyEvent], final: FinalState
) -> list[str]:
    """Compare what is there with the plan, and have the database checked by itself."""
    planned = plan(size)
    ids = {event.key: event.input_id for event in events if isinstance(event, Sent) and event.acknowledged}
    faults = [f"{each.key} was never acknowledged" for each in planned if each.key not in ids]
    faults += _wrongly_set_aside(planned, ids, final)
    faults += _wrong_wakes(planned, final)
    for session in final.sessions:
        faults += await _wrong_charges(factory, session)
    report = await factory.check()
    faults += [f"check: {found.session_id}: {found.rule}: {found.detail}" for found in report.findings]
    faults += [
        f"the lane of {lane.session_id} is held"
        for lane in await factory.workers.list_held_lanes()
        if not lane.is_expired
    ]
    return faults


def _wrongly_set_aside(planned: list[Planned], ids: dict[str, str | None], final: FinalState) -> list[str]:
    """Poison is set aside, all of it, and nothing else is."""
    poison = {ids.get(each.key) for each in planned if each.kind == "poison"}
    aside = {input_id for session in final.sessions for input_id in session.quarantined}
    faults = [f"input {input_id} was poison and is not in quarantine" for input_id in poison - aside]
    return faults + [f"input {input_id} was no poison and is in quarantine" for input_id in aside - poison]


def _wrong_wakes(planned: list[Planned], final: FinalState) -> list[str]:
    """Work that a turn left to its session was done once."""
    said = Counter(node.text_hash for session in final.sessions for node in session.nodes)
    wakes = [each.key for each in planned if each.kind == "wake"]
    times = {key: said[text_hash(f"woke wake:{key}")] for key in wakes}
    return [f"the wake of {key} was answered {count} times" for key, count in times.items() if count != 1]


async def _wrong_charges(factory: EngineSessionStoreFactory, session: FinalSession) -> list[str]:
    """Every commit charges one token; one that was interrupted before its first line charges none."""
    if not session.commits:
        return []
    store = await factory.open_existing_store(SessionStoreCreateRequest(session.session_id))
    read = None if store is None else await store.load_session(FullGraph())
    charged = 0 if read is None else sum(entry.usage.input_tokens for entry in read.head.ledger)
    events = sum(node.role is None for node in session.nodes)
    if len(session.commits) - events <= charged <= len(session.commits):
        return []
    return [f"{session.session_id}: {charged} tokens were charged in {len(session.commits)} commits"]
