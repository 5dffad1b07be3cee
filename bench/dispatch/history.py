"""What it costs to find a session and to claim its input beside a long history, against a database without one.

The full database is filled by bulk inserts straight into the tables, because a million turns would take hours: 100,000
sessions, each with its lane, a head and ten settled inputs. Their transcripts are left out, which no claim reads. Both
databases get fresh statistics. Then the same is done on both, in turns, each time on a session that was not touched
since the filling: send, and (this is timed) read the agenda and begin the turn; then give it back and cancel the input,
so that the session is idle again.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import apsw
import psycopg

from bench.dispatch.part import places
from bench.findings import Found, Part, Size, Value
from fastness.factory import EngineSessionStoreFactory, open_database
from fastness.model import (
    NextTurn,
    NothingToDo,
    PendingTurnInputDraft,
    SessionStoreCreateRequest,
    TurnBegun,
    TurnInput,
)
from fastness.model.base import encode
from fastness.persistence import mint_owner
from fastness.sql.program import Param, Program, Statement, Write
from fastness.store import SessionStore

SESSIONS = {"short": 20_000, "full": 100_000}
INPUTS_EACH = 10
CHUNK = 5_000
ROUNDS = 400
WARM_UP = 100
TTL_MS = 30_000
OLD_MS = 1_700_000_000_000

_NUMBERS = "with recursive n (i) as (select {first} union all select i + 1 from n where i < {last})"
ADD_SESSIONS = f"""
    insert into session (session_id, created_ms)
    {_NUMBERS} select 'session-' || i, $1 from n"""
ADD_LANES = """
    insert into lane (sid, admission_seq, fencing_token)
    select sid, $1, $1 from session where sid > $2 and sid <= $3"""
ADD_HEADS = """
    insert into head (sid, revision, leaf_node_id, node_count, next_seq, config, updated_ms)
    select sid, $1, null, 0, 1, '{}', $4 from session where sid > $2 and sid <= $3"""
ADD_SETTLED = f"""
    insert into turn_input_evidence (sid, seq, input_id, source_key, state, enqueued_ms, settled_ms, body)
    {_NUMBERS.format(first=1, last=INPUTS_EACH)}
    select sid, i, 'input-' || sid || '-' || i, 'key-' || i, 'completed', $4, $4, $1
    from session, n where sid > $2 and sid <= $3"""
"""``$2`` and ``$3`` bound the keys of the sessions of a chunk."""

DRAFT = PendingTurnInputDraft(
    "session", NextTurn(), TurnInput.of_text("Where is my order, and when will it come? " * 4)
)


class Claimed(NamedTuple):
    """What the two halves of a claim took, in seconds."""

    agenda_s: float
    begin_s: float


def beside_history(folder: Path, size: Size) -> Found:
    """Median time of a claim beside the history divided by that without, on both engines."""
    sessions = SESSIONS[size]
    figures: dict[str, Value] = {"idle_sessions": sessions, "settled_inputs": sessions * INPUTS_EACH}
    with places(folder) as made:
        for engine, place in made.items():
            with place.database() as empty, place.database() as full:
                for name, value in asyncio.run(_measure(empty, full, sessions)).items():
                    figures[f"{engine}_{name}"] = value
    return Found(figures)


async def _measure(empty_url: str, full_url: str, sessions: int) -> dict[str, Value]:
    rounds = ROUNDS + WARM_UP
    names = [f"session-{1 + at * (sessions // rounds)}" for at in range(rounds)]
    async with open_database(empty_url) as empty, open_database(full_url) as full:
        started = time.perf_counter()
        await _fill(full, sessions)
        for name in names:
            await empty.create_store(SessionStoreCreateRequest(name))
        for url in (empty_url, full_url):
            await asyncio.to_thread(_take_statistics, url)
        filling = time.perf_counter() - started
        taken: dict[str, list[Claimed]] = {"empty": [], "full": []}
        for at, name in enumerate(names):
            # Who comes first finds the disk idle: they take turns.
            sides = (("empty", empty), ("full", full))
            for side, factory in sides if at % 2 else sides[::-1]:
                claimed = await _claim(factory, name)
                if at >= WARM_UP:
                    taken[side].append(claimed)
    figures: dict[str, Value] = {"filling_s": round(filling, 1)}
    for side, claims in taken.items():
        figures[f"{side}_agenda_us"] = round(statistics.median(each.agenda_s for each in claims) * 1e6)
        figures[f"{side}_begin_us"] = round(statistics.median(each.begin_s for each in claims) * 1e6)
    pairs = zip(taken["full"], taken["empty"], strict=True)
    return figures | {"ratio": statistics.median(sum(one) / sum(other) for one, other in pairs)}


async def _fill(factory: EngineSessionStoreFactory, sessions: int) -> None:
    body = encode(DRAFT).decode()
    for first in range(0, sessions, CHUNK):
        last = min(first + CHUNK, sessions)
        await _write(factory, ADD_SESSIONS.format(first=first + 1, last=last), OLD_MS)
        # The keys of a fresh database are drawn from one on.
        await _write(factory, ADD_LANES, INPUTS_EACH, first, last)
        await _write(factory, ADD_HEADS, INPUTS_EACH, first, last, OLD_MS)
        await _write(factory, ADD_SETTLED, body, first, last, OLD_MS)


async def _write(factory: EngineSessionStoreFactory, statement: str, *params: Param) -> None:
    def program() -> Program[None]:
        yield Write(Statement(statement, params))

    await factory.engine.write(program)


def _take_statistics(url: str) -> None:
    if url.startswith("sqlite"):
        connection = apsw.Connection(url.removeprefix("sqlite:///"))
        connection.execute("analyze")
        connection.close()
    else:
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute("vacuum analyze")


async def _claim(factory: EngineSessionStoreFactory, session_id: str) -> Claimed:
    """Find a session that was sent to, and begin its turn; afterwards it is as idle as before."""
    store = SessionStore(factory.engine, session_id, None, factory.options)
    said = await store.enqueue_pending_turn_input(
        PendingTurnInputDraft(session_id, NextTurn(), TurnInput.of_text("hello"))
    )
    started = time.perf_counter()
    agenda = await factory.dispatch.read_agenda(limit=8)
    found = time.perf_counter()
    begun = await factory.dispatch.begin_turn(agenda.sessions[0].session_id, mint_owner(), TTL_MS, max_inputs=1)
    claimed = Claimed(found - started, time.perf_counter() - found)
    assert isinstance(begun, TurnBegun)
    assert begun.input_claim is not None
    assert begun.input_claim.inputs[0].input_id == said.input_id
    await factory.dispatch.fail_turn(
        begun.lease.completion(), input_claims=(begun.input_claim,), error="a benchmark", counts=False
    )
    await store.cancel_pending_turn_input(session_id, said.input_id)
    # A cancellation leaves the session on the agenda, and whoever comes for nothing takes it off.
    assert isinstance(await factory.dispatch.begin_turn(session_id, mint_owner(), TTL_MS), NothingToDo)
    return claimed


PARTS = (
    Part(
        "claims",
        "Claims beside a long history",
        beside_history,
        f"""Filled by SQL in bulk, then analysed. {ROUNDS} rounds on each database in turns, each on a session that was
not touched since: the agenda is read and a turn begun, not run. The ratios are medians over the rounds.""",
    ),
)
