"""A fleet on one PostgreSQL server: workers and the server itself are killed, and every input is settled once."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterable

from fastness.factory import EngineSessionStoreFactory
from fastness.model import FullGraph, PersistedSessionRead, SessionStoreCreateRequest, TextPart
from fastness.persistence import open_database
from fastness.sql.program import Program, Read, Statement
from tests import fleet
from tests.nursery import Nursery, nursery_over
from tests.servers.postgres import PostgresServer

CREW = 8
TURNS_PER_KILL = 12
SAID_BY_THE_FIRST_PRODUCER = 200
CRASHES_AFTER = (100, 250)
"""How many turns were settled when the server crashes."""
NAMES = [fleet.session_name(number) for number in range(fleet.SESSIONS)]

Node = tuple[str, int]
"""A settled key, and the fencing token of the turn that settled it."""


def test_eight_workers_settle_every_input_once_while_they_and_the_server_die() -> None:
    """200 sessions, some dozens of killed workers, a killed producer, two crashes of the server: nothing lost, doubled
    or torn."""
    with PostgresServer() as server, server.database() as url, nursery_over(url) as nursery:
        run(nursery, server)
        nursery.close()
        asyncio.run(audit(nursery, url))


def run(nursery: Nursery, server: PostgresServer) -> None:
    """Keep eight workers at it until nothing waits, and kill who is due."""
    chance = random.Random(20_240_502)
    producer = nursery.order("feed")
    crew = [nursery.order("serve") for _ in range(CREW)]
    fed, said, done, killed = False, 0, 0, 0
    crashes = list(CRASHES_AFTER)
    idle: Counter[int] = Counter()
    for what, pid, *_ in nursery.lines():
        fed |= what == "fed"
        said += what == "said"
        done += what == "done"
        if fed and what == "idle":
            idle[pid] += 1
        if what == "said" and said == SAID_BY_THE_FIRST_PRODUCER:
            nursery.kill(producer)
            producer = nursery.order("feed")
        if what == "done" and done % TURNS_PER_KILL == 0 and not idle:
            time.sleep(0.01 * chance.random())
            nursery.kill(crew.pop(chance.randrange(CREW)))
            crew.append(nursery.order("serve"))
            killed += 1
        if crashes and done >= crashes[0]:
            crashes.pop(0)
            server.stop("immediate")
            server.start()
        # Who says it twice after the producer's end has looked again after the last input was in.
        if any(times > 1 for times in idle.values()):
            break
    assert crashes == [], "the server did not crash as often as was planned"
    assert killed > CREW, "hardly anybody was killed"


async def audit(nursery: Nursery, url: str) -> None:
    """Compare what is there with what was said, and with what was to be."""
    async with open_database(url) as factory:
        report = await factory.check()
        assert report.findings == ()
        assert await factory.engine.read(unsettled) == 0
        settled = {name: await settled_in(factory, name) for name in NAMES}
        evidence = await factory.engine.read(evidence_of)
    turns = {name: turns_of(nodes) for name, nodes in settled.items()}
    inputs = {fleet.input_key(name, count) for name in NAMES for count in range(fleet.INPUTS)}
    wakes = {
        (fleet.neighbour(name), fleet.wake_key(first_input))
        for name in NAMES
        for keys in turns[name]
        if (first_input := next((key for key in keys if key in inputs), None)) is not None
    }
    wanted = {name: {fleet.input_key(name, count) for count in range(fleet.INPUTS)} for name in NAMES}
    for name, key in wakes:
        wanted[name].add(key)
    assert {name: Counter(key for key, _ in nodes) for name, nodes in settled.items()} == {
        name: Counter(keys) for name, keys in wanted.items()
    }, "an input or a wake is missing, was settled twice, or came from nowhere"
    assert evidence == Counter({(name, key, "completed"): 1 for name in NAMES for key in wanted[name]})
    assert report.commit_count == sum(len(found) for found in turns.values())
    hear(nursery, settled)


async def settled_in(factory: EngineSessionStoreFactory, session_id: str) -> list[Node]:
    """What the turns of a session settled, in the order of their commits, on one line and charged once each."""
    store = await factory.open_existing_store(SessionStoreCreateRequest(session_id))
    assert store is not None
    read = await store.load_session(FullGraph())
    assert read is not None
    nodes = nodes_of(read)
    assert [found.node_id for found in read.graph.active_path()] == [key for key, _ in nodes]
    tokens = [token for _, token in nodes]
    assert tokens == sorted(tokens), f"{session_id}: a turn was committed behind one with a greater fencing token"
    turn_count = len(set(tokens))
    assert (read.head.meta.revision, read.head.ledger[0].usage.input_tokens) == (turn_count, turn_count)
    return nodes


def nodes_of(read: PersistedSessionRead) -> list[Node]:
    """Each node with the token that stands in its text."""
    found = []
    for one in read.graph.nodes:
        part = one.payload.event.message.parts[0]  # type: ignore[union-attr]
        assert isinstance(part, TextPart)
        found.append((one.node_id, int(part.content)))
    return found


def turns_of(nodes: Iterable[Node]) -> list[list[str]]:
    """The keys that each turn settled, turn by turn: no two turns of a session have the same fencing token."""
    found: dict[int, list[str]] = defaultdict(list)
    for key, token in nodes:
        found[token].append(key)
    return list(found.values())


def hear(nursery: Nursery, settled: dict[str, list[Node]]) -> None:
    """What was acknowledged is there, and the kills and crashes were worth their name."""
    for name, nodes in settled.items():
        there = {key for key, _ in nodes}
        acknowledged = {key for line in nursery.told("done", name) for key in line.split(",")}
        assert acknowledged - there == set(), "an acknowledged turn is lost"
        tokens = nursery.told("lane", name)
        assert len(tokens) == len(set(tokens)), "a fencing token was granted twice"
    last_words = {line[1]: line[0] for line in nursery.heard}
    assert list(last_words.values()).count("lane") > 0, "nobody died with a turn in hand"
    refusals = Counter(line[3] for line in nursery.heard if line[0] == "lost")
    assert set(refusals) <= {"CommitOutcomeUnknownError", "DatabaseOpenError"}, refusals


def unsettled() -> Program[int]:
    """A program that counts what waits or is held."""
    (rows,) = yield Read(Statement("select (select count(*) from turn_input) + (select count(*) from queued_work)", ()))
    return int(rows[0][0])


def evidence_of() -> Program[Counter[tuple[str, str, str]]]:
    """A program that reads how everything that came in ended: session, source key, state."""
    sql = """
        select s.session_id, e.source_key, e.state from session s join (
            select sid, source_key, state from turn_input_evidence
            union all select sid, source_key, state from queued_work_evidence
        ) e on e.sid = s.sid"""
    (rows,) = yield Read(Statement(sql, ()))
    return Counter((session_id, key, state) for session_id, key, state in rows)
