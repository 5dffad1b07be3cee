"""Every engine and a naive reference model, driven through all operations: every answer and the final state agree."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from fastness.conformance.builders import WHEN, append, content_id, intent, node, usage
from fastness.model import (
    Acquired,
    ActivePath,
    AgentFrameRecord,
    BlobRef,
    ByInputId,
    BySourceKey,
    FullGraph,
    HydratedSessionCheckpoint,
    LeaseOwnerIdentity,
    PendingTurnInputDraft,
    PersistedSessionConfig,
    PersistedTurnState,
    QueuedWorkBatchDraft,
    ReplaceFull,
    RuntimeCommit,
    SessionGraph,
    TurnInputCompletion,
    Unchanged,
)
from tests.strategies import (
    BLOB_X,
    COMMIT_FAULTS,
    HERE,
    OWNERS,
    RUN,
    SESSIONS,
    TURNS,
    WANTED,
    boundaries,
    few,
    input_drafts,
    keys,
    one_class,
    owners,
    recent,
    sessions,
    turns,
    work_boundaries,
    work_drafts,
)
from tests.worlds import MODEL, Each, Worlds, own_schema

SEEN: Counter[str] = Counter()


class Machine(RuleBasedStateMachine):
    """The same calls to the model and to every engine. Pools hold what was handed out, one value for each world."""

    def __init__(self) -> None:
        super().__init__()
        self.worlds = Worlds(SEEN)
        self.handles: dict[str, list[Each]] = {name: [] for name in SESSIONS}
        self.leases: list[Each] = []
        self.inputs: list[Each] = []
        self.batches: list[Each] = []
        self.input_claims: list[Each] = []
        self.work_claims: list[Each] = []
        self.commits: list[tuple[str, Each]] = []
        self.refs: list[BlobRef | None] = [None]
        self.node_count = 0

    def teardown(self) -> None:
        """Compare everything that is left, once more."""
        try:
            self.worlds.compare_everything()
        finally:
            self.worlds.close()

    def handle(self, session_id: str, back: int = 0) -> Each:
        """A handle of a session, by default the newest."""
        pool = self.handles[session_id]
        return pool[max(len(pool) - 1 - back, 0)]

    def of(self, pool: list[Each], back: int) -> Each:
        """Something that was handed out lately."""
        return pool[max(len(pool) - 1 - back, 0)]

    def on(self, name: str, session_id: str, method: str, *args: Any, back: int = 0, **kwargs: Any) -> Each | None:
        """Call a method of a session's handle everywhere. An argument that is one value per world is taken apart."""
        handle = self.handle(session_id, back)

        def mine(value: Any, world: str) -> Any:
            return value[world] if isinstance(value, dict) else value

        return self.worlds.call(
            name,
            lambda world: getattr(handle[world], method)(
                *(mine(value, world) for value in args),
                **{key: mine(value, world) for key, value in kwargs.items()},
            ),
        )

    @initialize()
    def open_all(self) -> None:
        """Every session is there at the start."""
        for session_id in SESSIONS:
            self.handles[session_id].append(self.worlds.create(session_id))
            self.claim_lane(session_id, session_id, OWNERS[0], 30_000)

    @rule(session_id=sessions, drafts=st.lists(input_drafts() | work_drafts().filter(one_class), max_size=4))
    def begin_turn(self, session_id: str, drafts: list[Any]) -> None:
        """A lane is claimed, some things come in for it, and what is ready is claimed."""
        self.claim_lane(session_id, session_id, OWNERS[0], 30_000)
        for draft in drafts:
            mine = msgspec.structs.replace(draft, session_id=session_id)
            if isinstance(mine, PendingTurnInputDraft):
                self.enqueue_input(session_id, mine)
            else:
                self.enqueue_work(session_id, mine)
        self.claim_active(session_id, 0, "t1", "before_completion", 3)
        self.claim_next(session_id, session_id, 0, 2)
        self.claim_command(session_id, 0)
        self.claim_work(session_id, 0, "idle", 3)

    # --- time, sessions, lanes ---

    @rule(ms=st.sampled_from([1, 1, 5_000, 29_000, 30_000]))
    def time_passes(self, ms: int) -> None:
        """The clock moves on."""
        self.worlds.clock.advance(ms)

    @rule(session_id=sessions, really=st.integers(0, 5))
    def delete(self, session_id: str, really: int) -> None:
        """A session is deleted and opened anew; its old handles stay in use."""
        if really != 5:
            return
        self.worlds.call("delete", lambda world: self.worlds.worlds[world].factory.delete_session(session_id))
        self.handles[session_id].append(self.worlds.create(session_id))

    @rule(via=sessions, session_id=sessions, who=owners, ttl_ms=st.sampled_from([10_000, 30_000]))
    def claim_lane(self, via: str, session_id: str, who: LeaseOwnerIdentity, ttl_ms: int) -> None:
        """Somebody wants a lane."""
        got = self.on("lease", via, "try_claim_session_execution_lease", session_id, who, ttl_ms)
        self.keep_lease(got)

    @precondition(lambda self: self.leases)
    @rule(session_id=sessions, who=owners, back=recent, dead=st.booleans())
    def reclaim_lane(self, session_id: str, who: LeaseOwnerIdentity, back: int, dead: bool) -> None:
        """Somebody wants a lane whose holder may be dead."""
        self.worlds.dead = {HERE} if dead else set()
        observed = {world: lease.fence() for world, lease in self.of(self.leases, back).items()}
        got = self.on("reclaim", session_id, "reclaim_session_execution_lease", session_id, who, observed, 30_000)
        self.keep_lease(got)

    def keep_lease(self, got: Each | None) -> None:
        """Remember a lease that was granted."""
        if got is not None and isinstance(got[MODEL], Acquired):
            self.leases.append({world: outcome.lease for world, outcome in got.items()})

    @precondition(lambda self: self.leases)
    @rule(back=recent, via=sessions)
    def renew_lane(self, back: int, via: str) -> None:
        """A holder, perhaps a former one, renews."""
        fence = {world: lease.fence() for world, lease in self.of(self.leases, back).items()}
        got = self.on("renew lease", via, "renew_session_execution_lease", fence, 20_000)
        if got is not None:
            self.leases.append(got)

    @precondition(lambda self: self.leases)
    @rule(back=recent, via=sessions)
    def release_lane(self, back: int, via: str) -> None:
        """A holder, perhaps a former one, gives its lane back."""
        done = {world: lease.completion() for world, lease in self.of(self.leases, back).items()}
        self.on("release", via, "release_session_execution_lease", done)

    # --- input ---

    @rule(via=sessions, draft=input_drafts())
    def enqueue_input(self, via: str, draft: PendingTurnInputDraft) -> None:
        """Somebody says something."""
        got = self.on("enqueue input", via, "enqueue_pending_turn_input", draft)
        if got is not None:
            self.inputs.append(got)

    @rule(via=sessions, session_id=sessions)
    def list_inputs(self, via: str, session_id: str) -> None:
        """What waits?"""
        self.on("list inputs", via, "list_pending_turn_inputs", session_id)

    def fence_of(self, session_id: str, back: int) -> Each | None:
        """The fence of a lease, mostly the newest of that session, else any."""
        mine = [lease for lease in self.leases if lease[MODEL].session_id == session_id] or self.leases
        return {world: lease.fence() for world, lease in self.of(mine, back).items()} if mine else None

    @rule(via=sessions, session_id=sessions, back=recent, limit=few)
    def claim_next(self, via: str, session_id: str, back: int, limit: int) -> None:
        """A turn begins."""
        fence = self.fence_of(session_id, back)
        self.keep_claim(
            self.input_claims, self.on("claim next", via, "claim_next_turn_inputs", session_id, fence, max_inputs=limit)
        )

    @rule(session_id=sessions, back=recent, turn_id=turns, at=boundaries, limit=few)
    def claim_active(self, session_id: str, back: int, turn_id: str, at: str, limit: int) -> None:
        """A turn takes a checkpoint."""
        fence = self.fence_of(session_id, back)
        fields: dict[str, Any] = {"turn_id": turn_id, "checkpoint": at, "max_inputs": limit}
        got = self.on("claim active", session_id, "claim_active_turn_inputs", session_id, fence, **fields)
        self.keep_claim(self.input_claims, got)

    def keep_claim(self, pool: list[Each], got: Each | None) -> None:
        """Remember a claim that was granted."""
        if got is not None and got[MODEL] is not None:
            pool.append(got)

    @precondition(lambda self: self.input_claims)
    @rule(via=sessions, back=recent, gives_up=st.booleans())
    def touch_input_claim(self, via: str, back: int, gives_up: bool) -> None:
        """A claim of input, perhaps a dead one, is renewed or abandoned."""
        method = "abandon_turn_input_claim" if gives_up else "renew_turn_input_claim"
        self.on(method.replace("_", " "), via, method, self.of(self.input_claims, back))

    @precondition(lambda self: self.inputs)
    @rule(via=sessions, session_id=sessions, back=recent, key=keys, how=st.sampled_from(["one", "many", "suffix"]))
    def cancel_input(self, via: str, session_id: str, back: int, key: str | None, how: str) -> None:
        """Somebody takes something back."""
        ids = {world: row.input_id for world, row in self.of(self.inputs, back).items()}
        if how == "one":
            self.on("cancel input", via, "cancel_pending_turn_input", session_id, ids)
            return
        by_key = BySourceKey(key or "k1")
        targets: dict[str, Any] = {world: by_key if key else ByInputId(ids[world]) for world in ids}
        if how == "suffix":
            self.on("cancel suffix", via, "cancel_pending_turn_input_suffix", session_id, targets)
        else:
            several = {world: [targets[world], by_key, ByInputId(ids[world])] for world in ids}
            self.on("cancel inputs", via, "cancel_pending_turn_inputs", session_id, several)

    @precondition(lambda self: self.input_claims)
    @rule(via=sessions, back=recent)
    def cancel_claimed(self, via: str, back: int) -> None:
        """Somebody takes back what was claimed, and is perhaps completed by now."""
        claim = self.of(self.input_claims, back)
        ids = {world: held.inputs[0].input_id for world, held in claim.items()}
        self.on("cancel input", via, "cancel_pending_turn_input", claim[MODEL].session_id, ids)

    # --- work ---

    @rule(via=sessions, draft=work_drafts())
    def enqueue_work(self, via: str, draft: QueuedWorkBatchDraft) -> None:
        """Something has to be done."""
        got = self.on("enqueue work", via, "enqueue_queued_work", draft)
        if got is not None:
            self.batches.append(got)

    @rule(via=sessions, session_id=sessions, hidden=st.booleans())
    def list_work(self, via: str, session_id: str, hidden: bool) -> None:
        """What is there to do?"""
        self.on("list work", via, "list_pending_queued_work" if hidden else "list_queued_work", session_id)

    @rule(session_id=sessions, back=recent, at=work_boundaries, limit=few)
    def claim_work(self, session_id: str, back: int, at: str, limit: int) -> None:
        """Somebody takes up work."""
        fence = self.fence_of(session_id, back)
        fields: dict[str, Any] = {"boundary": at, "max_batches": limit}
        got = self.on("claim work", session_id, "claim_ready_queued_work", session_id, fence, **fields)
        self.keep_claim(self.work_claims, got)

    @rule(session_id=sessions, back=recent)
    def claim_command(self, session_id: str, back: int) -> None:
        """Somebody takes up a command."""
        fence = self.fence_of(session_id, back)
        got = self.on("claim command", session_id, "claim_leading_ready_session_command", session_id, fence)
        self.keep_claim(self.work_claims, got)

    @precondition(lambda self: self.batches)
    @rule(session_id=sessions, back=recent, at=work_boundaries, count=few, skip=st.sampled_from([0, 0, 1]))
    def claim_exactly(self, session_id: str, back: int, at: str, count: int, skip: int) -> None:
        """Somebody takes up work by name: what is listed first, or what stands behind it."""
        self.claim_lane(session_id, session_id, OWNERS[0], 30_000)
        fence = self.fence_of(session_id, back)
        listed = self.on("list work", session_id, "list_pending_queued_work", session_id) or {}
        ids = {world: [batch.batch_id for batch in found][skip : skip + count] for world, found in listed.items()}
        if ids and ids[MODEL]:
            fields: dict[str, Any] = {"boundary": at, "batch_ids": ids}
            got = self.on(
                "claim exactly", session_id, "claim_ready_queued_work_by_batch_ids", session_id, fence, **fields
            )
            self.keep_claim(self.work_claims, got)

    @precondition(lambda self: self.work_claims)
    @rule(via=sessions, back=recent, gives_up=st.booleans())
    def touch_work_claim(self, via: str, back: int, gives_up: bool) -> None:
        """A claim of work, perhaps a dead one, is renewed or abandoned."""
        method = "abandon_queued_work_claim" if gives_up else "renew_queued_work_claim"
        self.on(method.replace("_", " "), via, method, self.of(self.work_claims, back))

    @precondition(lambda self: self.batches)
    @rule(via=sessions, session_id=sessions, back=recent)
    def cancel_work(self, via: str, session_id: str, back: int) -> None:
        """Something need not be done after all."""
        ids = {world: batch.batch_id for world, batch in self.of(self.batches, back).items()}
        self.on("cancel work", via, "cancel_queued_work_batch", session_id, ids)

    # --- commits ---

    def live_ids(self, session_id: str) -> list[str]:
        """The ids of the live nodes, as the model has them."""
        return [found.node_id for found in self.handle(session_id)[MODEL].session.nodes]

    def delta(self, data: st.DataObject, session_id: str, fault: str) -> Any:
        """A change of the graph that fits, or one that does not."""
        live = self.live_ids(session_id)
        leaf = self.handle(session_id)[MODEL].session.leaf
        self.node_count += 1
        fresh = f"n{self.node_count}"
        if fault == "collision":
            stored: bool = data.draw(st.booleans())
            taken = live[0] if live and stored else fresh
            return append(node(fresh, leaf), node(taken, leaf))
        if fault == "graph":
            odd = (append(node(fresh, "nowhere")), append(node(fresh, fresh)), Unchanged("nowhere"))
            return data.draw(st.sampled_from(odd))
        kind = data.draw(st.sampled_from(["append"] * 5 + ["unchanged", "replace", "stay"]))
        if kind == "stay":
            return Unchanged(leaf)
        if kind == "unchanged" and live:
            return Unchanged(data.draw(st.sampled_from(live)))
        if kind == "replace":
            first = data.draw(st.sampled_from([*live[:2], fresh]))
            return ReplaceFull(SessionGraph((node(first), node(f"{fresh}r", first)), f"{fresh}r"))
        parent = data.draw(st.sampled_from([leaf, leaf, *live, None]))
        return append(node(fresh, parent), node(f"{fresh}+", fresh))

    def live_claims(self, pool: list[Each], session_id: str) -> list[Each]:
        """The claims of a session that are live, as the model has it."""
        store = self.handle(session_id)[MODEL]
        return [claim for claim in pool if claim[MODEL].session_id == session_id and store.is_live(claim[MODEL])]

    @rule(data=st.data(), session_id=sessions, fault=st.sampled_from([""] * 10 + list(COMMIT_FAULTS)))
    def commit(self, data: st.DataObject, session_id: str, fault: str) -> None:
        """A turn is settled, or tries to be, with one fault in it."""
        now_and_then = st.sampled_from([False, False, True])
        if fault != "fence":
            self.claim_lane(session_id, session_id, OWNERS[0], 30_000)
        fence = self.fence_of(session_id, data.draw(recent) if fault == "fence" else 0)
        if fence is None:
            return
        revision = self.handle(session_id)[MODEL].session.revision
        base = RuntimeCommit(
            "other" if fault == "binding" else session_id,
            data.draw(st.sampled_from([None, 0, 1, 99])) if fault == "revision" else revision,
            config=PersistedSessionConfig("p", "m") if data.draw(now_and_then) else None,
            graph=self.delta(data, session_id, fault),
            usage_deltas=tuple(data.draw(st.lists(st.sampled_from([usage(1, 2), usage(0, 0, 0, 0, 3)]), max_size=2))),
            interrupted_turn_input_turn_id=data.draw(turns) if data.draw(now_and_then) else None,
        )
        held = content_id("a") in self.handle(session_id)[MODEL].session.attachments
        if fault == "attachment" or (held and data.draw(st.booleans())):
            base = base.with_committed_attachments((content_id("a"),))
        if fault == "usage":
            base = msgspec.structs.replace(base, usage_deltas=(usage(-1),))
        base = self.with_checkpoint(data, base, fault)
        if data.draw(now_and_then):
            base = base.with_outbox(data.draw(input_drafts()), data.draw(work_drafts().filter(one_class)))
        self.send(session_id, self.settling(data, base, session_id, fence, fault))

    def with_checkpoint(self, data: st.DataObject, base: RuntimeCommit, fault: str) -> RuntimeCommit:
        """The commit with a checkpoint and frames, now and then."""
        if fault == "blob" or data.draw(st.booleans()):
            parts = [data.draw(st.sampled_from([None, b"x", b"y", b"z"])) for _ in range(2)]
            first: Any = BLOB_X if fault == "blob" else parts[0]
            state = PersistedTurnState(data.draw(st.integers(0, 3)))
            base = msgspec.structs.replace(base, checkpoint=HydratedSessionCheckpoint(state, first, None, parts[1]))
        if fault == "frame" or data.draw(st.integers(0, 4)) == 4:
            frame_id = data.draw(st.sampled_from(["f1", "f2"]))
            ref = data.draw(st.sampled_from(self.refs[-3:])) if fault == "frame" else self.refs[-1]
            frame = AgentFrameRecord(frame_id, WHEN, checkpoint_ref=ref)
            current = data.draw(st.sampled_from([frame_id, None, "no frame"])) if fault == "frame" else frame_id
            base = msgspec.structs.replace(base, agent_frames=(frame,), current_agent_frame_id=current)
        return base

    def settling(self, data: st.DataObject, base: RuntimeCommit, session_id: str, fence: Each, fault: str) -> Each:
        """The commit of each world: with its claims, its lease, and perhaps a stamp and a release."""
        inputs = self.live_claims(self.input_claims, session_id)
        work = self.live_claims(self.work_claims, session_id)
        if fault == "claims":
            inputs, work = (inputs + self.input_claims[-1:]) or [], (work + self.work_claims[-1:]) or []
        recorded = sorted(self.handle(session_id)[MODEL].session.receipts)
        turn_id = data.draw(st.sampled_from([f"turn {len(self.commits)}", *TURNS, None]))
        if fault == "stamp" and recorded:
            turn_id = data.draw(st.sampled_from(recorded))
        forged = (TurnInputCompletion(session_id, "nobody's", 1, ("x",)),) if fault == "claims" else ()
        releases = data.draw(st.booleans())
        lease = self.of([one for one in self.leases if one[MODEL].fence() == fence[MODEL]], 0)
        sent: Each = {}
        for world in fence:
            made = base.with_session_execution_lease(fence[world])
            made = made.completing_turn_input_claims((*(claim[world] for claim in inputs), *forged[: not inputs]))
            made = made.completing_queue_claims(tuple(claim[world] for claim in work))
            if releases:
                made = made.releasing_session_execution_lease(lease[world].completion())
            # The hash covers input and batch ids, which differ between worlds; within each, equal stays equal.
            sent[world] = made if turn_id is None else made.with_turn_commit(turn_id)
        return sent

    def send(self, session_id: str, sent: Each) -> None:
        """Commit everywhere, and remember what was sent and which checkpoint it made."""
        got = self.on("commit", session_id, "commit_runtime_state", sent)
        self.commits.append((session_id, sent))
        if got is not None:
            SEEN[f"commit of {type(sent[MODEL].graph).__name__}"] += 1
            SEEN["commit replayed"] += got[MODEL].replayed
            self.refs.append(got[MODEL].checkpoint_ref)

    @precondition(lambda self: self.commits)
    @rule(back=recent, lease_back=recent)
    def commit_again(self, back: int, lease_back: int) -> None:
        """A holder that lost the answer sends the same commit again, under the fence that it has now."""
        session_id, sent = self.commits[max(len(self.commits) - 1 - back, 0)]
        fence = self.fence_of(session_id, lease_back)
        assert fence is not None
        self.send(session_id, {world: one.with_session_execution_lease(fence[world]) for world, one in sent.items()})

    @rule(data=st.data(), session_id=sessions, drafts=st.lists(input_drafts(), min_size=1, max_size=3))
    def whole_turn(self, data: st.DataObject, session_id: str, drafts: list[Any]) -> None:
        """Something is said, a turn settles it, and somebody tries to take it back."""
        self.begin_turn(session_id, drafts)
        self.commit(data, session_id, "")
        regrets: bool = data.draw(st.booleans())
        if self.input_claims and regrets:
            self.cancel_claimed(session_id, 0)

    # --- reads, attachments, maintenance ---

    @rule(session_id=sessions, data=st.data(), full=st.booleans(), last=st.sampled_from([None, 1, 3]), back=recent)
    def load(self, session_id: str, data: st.DataObject, full: bool, last: int | None, back: int) -> None:
        """Somebody reads, perhaps with a handle from before a deletion."""
        leaf = data.draw(st.sampled_from([None, "nowhere", *self.live_ids(session_id)]))
        self.on("load", session_id, "load_session", FullGraph() if full else ActivePath(leaf, last), back=back)
        self.on("load node", session_id, "load_node", leaf or "n1", back=back)
        self.on("load head", session_id, "load_head", back=back)

    @rule(via=sessions, session_id=sessions, what=st.sampled_from(["intent", "refs", "holds", "forget"]))
    def attach(self, via: str, session_id: str, what: str) -> None:
        """Attachments come, are committed, looked up and forgotten."""
        content = content_id("a")
        if what == "intent":
            self.on("record intent", via, "record_intent", intent(content, session_id=session_id))
        elif what == "refs":
            self.on("commit refs", via, "commit_refs", session_id, [content])
        elif what == "holds":
            self.on("holds ref", via, "holds_ref", session_id, content)
        else:
            self.on("forget", via, "forget", session_id, content)

    @rule(session_id=sessions, data=st.data(), back=recent)
    def tombstone(self, session_id: str, data: st.DataObject, back: int) -> None:
        """A branch is hidden, or half of one is tried."""
        live = self.live_ids(session_id)
        ids = data.draw(st.sampled_from([live[-1:], live[-2:], live[:1], live[1:], ["nowhere"], []]))
        self.on("tombstone", session_id, "tombstone_nodes", ids, back=back)

    @rule(session_id=sessions, ago=st.sampled_from([None, 0, 30_000]), receipts=st.sampled_from([None, None, 30_000]))
    def vacuum(self, session_id: str, ago: int | None, receipts: int | None) -> None:
        """Old evidence goes."""
        now = self.worlds.clock()
        fields: dict[str, Any] = {
            "evidence_older_than_ms": None if ago is None else now - ago,
            "receipts_older_than_ms": None if receipts is None else now - receipts,
        }
        self.on("vacuum", session_id, "vacuum", **fields)

    @rule(session_id=sessions, keep=few)
    def collect(self, session_id: str, keep: int) -> None:
        """Blobs that nobody needs go."""
        self.on("collect", session_id, "gc_unreachable", keep_revisions=keep)


@pytest.mark.timeout(1_200)  # it is the longest of all
def test_every_engine_and_the_model_agree_on_everything() -> None:
    """Whatever is called, in whatever order, the stores answer what the naive model answers, and end in its state."""
    SEEN.clear()
    with own_schema():
        run_state_machine_as_test(Machine, settings=RUN)
    never = sorted(name for name in WANTED.replace("\n", "|").split("|") if name and not SEEN[name])
    assert never == [], f"the run is too thin; this happened: {sorted(SEEN.items())}"
