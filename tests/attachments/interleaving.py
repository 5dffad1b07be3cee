"""Processes on one database and one byte store. Exactly one moves at a time, and any may die between two calls.

A process is a script of acts. Every call that it makes of the manifest or of the byte store is a gate: it stops there
until a plan lets it go on, or lets it die there, after which nothing of it runs, no ``finally`` either. Time passes
only when the plan says so, on the database's clock and on the event loop's at once. What holds is compared after every
move with a model that knows only what was committed, let go of and deleted.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, NamedTuple

from fastness.attachments.memory import InMemoryAttachmentStore
from fastness.attachments.reclaim import MARK_TTL_MS, reclaim_orphaned_attachments, release_unnamed_attachments
from fastness.attachments.session import SessionAttachmentStore
from fastness.conformance import Lab
from fastness.conformance.builders import commit, lane
from fastness.errors import (
    AttachmentNotFoundError,
    AttachmentNotInManifestError,
    ContendedError,
    SessionDeletedError,
    StoreError,
)
from fastness.factory import EngineSessionStoreFactory
from fastness.manifest import StoreOptions
from fastness.model import AttachmentStore, RuntimePersistence, SessionStoreCreateRequest, Unchanged
from fastness.store import SessionStore
from tests.attachments.plans import CONTENTS, IDS, PUNCTUAL_MS, SESSIONS, STEP_MS, Act, Move, Plan, Script

TRIES = 4
"""How often a process tries again to record an intent for content that a sweep has marked."""
EVER = 2**63 - 1


class ViolationError(AssertionError):
    """What the stores promise does not hold."""


class Died(BaseException):
    """Ends a process where it stands. All its further calls end in it as well, so that no clean-up of it does any."""


class MovedLoop(asyncio.SelectorEventLoop):
    """An event loop whose time goes on by itself, and jumps when the clock of the stores does."""

    moved_s = 0.0

    def time(self) -> float:
        """Seconds, with all jumps."""
        return super().time() + self.moved_s


_HOPS = 50
"""How often the event loop goes round until whoever gave up is at its next call, if nothing else is in its way."""


# --- processes ---


class Rules(NamedTuple):
    """How a world goes on, and what may be broken in it.

    ``punctual``: no put lasts as long as the cut-offs are back, and unnamed bytes are not looked for.
    """

    punctual: bool = False
    attachments: type[SessionAttachmentStore] = SessionAttachmentStore
    manifest: Callable[[Any], Any] = lambda manifest: manifest
    sweep: Callable[..., Awaitable[Any]] = reclaim_orphaned_attachments
    loop_moves: bool = True


class Process:
    """One process. It stands at a gate (``at``), or has not begun, or is over."""

    def __init__(self, world: World, script: Script) -> None:
        self.world = world
        self.script = script
        self.session_id = SESSIONS[script.session]
        self.at: str | None = None
        self.since_ms = 0
        self.intent_ms: int | None = None
        self.dead = self.over = False
        self._go: asyncio.Future[None] | None = None
        self._stopped = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def move(self) -> None:
        """Make one call, and stop before the next one."""
        if await self._ended_by_itself():
            return
        self._stopped.clear()
        if self._task is None:
            self._task = asyncio.create_task(self._live())
        else:
            assert self._go is not None
            self._go.set_result(None)
        await self._stopped.wait()
        if self.over:
            await self._task  # raises what went wrong

    async def die(self) -> None:
        """End before the next call."""
        if await self._ended_by_itself():
            return
        self.dead = self.over = True
        if self._task is not None:
            assert self._go is not None
            self._go.set_exception(Died())
            await self._task

    async def gate(self, name: str) -> None:
        """Stop here until somebody lets it go on."""
        if self.dead:
            raise Died
        self._go = asyncio.get_running_loop().create_future()
        self.at, self.since_ms = name, self.world.now_ms
        self._stopped.set()
        try:
            await self._go
        except asyncio.CancelledError:
            # This call was given up when the time moved: the process goes on by itself, to its next one.
            self._stopped.clear()
            raise

    async def _ended_by_itself(self) -> bool:
        """Wait for a process that goes on by itself. Whether it is over by then."""
        if self._task is not None:
            await self._stopped.wait()
            if self.over:
                await self._task  # raises what went wrong
        return self.over

    async def _live(self) -> None:
        try:
            with suppress(SessionDeletedError, Died):
                await self._act()
        finally:
            self.over = True
            self._stopped.set()

    async def _act(self) -> None:
        request = SessionStoreCreateRequest(self.session_id)
        store = await self.world.factory.create_store(request)
        acting = Acting(self, store)
        for act in self.script.acts:
            self.world.seen[act.kind] += 1
            try:
                await getattr(acting, act.kind)(act)
            except (ContendedError, AttachmentNotFoundError, AttachmentNotInManifestError) as error:
                # Sweeps were in the way, or what was to be shared or read is not there: the acts know when it must be.
                self.world.seen[f"{act.kind}: {type(error).__name__}"] += 1
            self.intent_ms = None


class Gated:
    """A manifest or a byte store as a process sees it: it stops before each call."""

    def __init__(self, inner: Any, process: Process) -> None:
        self._inner = inner
        self._process = process

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._inner, name)

        async def gated(*args: Any, **kwargs: Any) -> Any:
            for attempt in range(1, TRIES + 1):
                await self._process.gate(name)
                try:
                    given = await call(*args, **kwargs)
                except ContendedError:
                    # This is how the store waits for a sweep, only that others move meanwhile.
                    if name != "record_intent" or attempt == TRIES:
                        raise
                    self._process.world.seen["waited"] += 1
                    continue
                if name == "record_intent":
                    self._process.intent_ms = self._process.world.now_ms
                return given
            return None

        return gated


class Acting:
    """The acts of one process."""

    def __init__(self, process: Process, store: RuntimePersistence) -> None:
        self.process = process
        self.world = process.world
        self.store = store
        self.session = self._session(store, process.session_id)

    def _session(self, store: RuntimePersistence, session_id: str) -> SessionAttachmentStore:
        manifest: Any = Gated(self.world.rules.manifest(store), self.process)
        store_of_bytes: Any = Gated(self.world.bytes, self.process)
        return self.world.rules.attachments(manifest, store_of_bytes, session_id)

    async def put(self, act: Act) -> None:
        """Put content."""
        self.world.named[self.process.session_id].add(act.content)
        reference = await self.session.put(CONTENTS[act.content], name=f"{act.content}.txt")
        # Nobody has moved since the last call of the put.
        if not await self.store.holds_ref(self.process.session_id, reference.attachment_id):
            raise ViolationError(f"a put gave content {act.content}, which the session does not hold")

    async def commit(self, _: Act) -> None:
        """Settle a turn that refers to all that is pending. What came too late for a sweep is put once more."""
        try:
            await self._commit()
        except AttachmentNotInManifestError as error:
            self.world.seen["put once more"] += 1
            try:
                await self.put(Act("put", IDS.index(error.attachment_id)))
                await self._commit()
            except StoreError:
                # Whoever lives in this process later must not stumble over it.
                self.session = self._session(self.store, self.process.session_id)
                raise

    async def _commit(self) -> None:
        await self.process.gate("commit")
        if not self.session.pending:
            return
        session_id = self.process.session_id
        lease = await lane(self.store, session_id=session_id)
        head = await self.store.load_head()
        stay = Unchanged(None if head is None else head.leaf_node_id)
        made = commit(lease, None if head is None else head.revision, graph=stay)
        made = self.session.stamp(made)
        await self.store.commit_runtime_state(made)
        self.session.settled(made)
        self.world.committed[session_id] |= {IDS.index(each) for each in made.committed_attachment_ids}
        self.world.seen["committed"] += 1

    async def keep(self, act: Act) -> None:
        """Put content and settle the turn."""
        await self.put(act)
        await self.commit(act)

    async def share(self, act: Act) -> None:
        """Take over what another session holds, and settle the turn."""
        source_id = SESSIONS[act.other]
        stores = self.world.handle(source_id)
        source = self._session(stores, source_id)
        for entry in await source.list():
            assert entry.reference is not None
            self.world.named[self.process.session_id].add(IDS.index(entry.attachment_id))
            # One byte store has one wrapper: else the bytes would be copied from the store to itself.
            source._store = self.session._store
            await self.session.share(entry.reference, source)
            self.world.seen["shared"] += 1
        await self.commit(act)

    async def get(self, act: Act) -> None:
        """Read: what is committed all the while must come, and what this session never named must not."""
        session_id, life = self.process.session_id, self.world.lives[self.process.session_id]
        before = act.content in self.world.committed[session_id]
        named = act.content in self.world.named[session_id]
        try:
            found = await self.session.get(IDS[act.content], verify=True)
        except (AttachmentNotFoundError, AttachmentNotInManifestError) as error:
            if before and life == self.world.lives[session_id]:
                raise ViolationError(f"content {act.content} is committed in {session_id!r}: {error}") from None
            raise
        named = named or act.content in self.world.named[session_id]
        if found != CONTENTS[act.content] or not named:
            raise ViolationError(f"session {session_id!r} read {found!r} for content {act.content}")
        self.world.seen["read"] += 1

    async def forget(self, act: Act) -> None:
        """Let go of content."""
        await self.session.forget(IDS[act.content])
        self.world.let_go(self.process.session_id, {act.content})

    async def delete(self, act: Act) -> None:
        """Delete a session, maybe this one."""
        await self.process.gate("delete_session")
        await self.world.factory.delete_session(SESSIONS[act.other])
        self.world.let_go(SESSIONS[act.other], set(range(len(CONTENTS))))
        self.world.named[SESSIONS[act.other]].clear()

    async def sweep(self, act: Act) -> None:
        """Delete what nobody needs, up to a cut-off of this process's own."""
        manifest = Gated(self.world.rules.manifest(self.world.handle("nobody")), self.process)
        store = Gated(self.world.bytes, self.process)
        cut_off = self.world.now_ms - act.grace_ms
        report = await self.world.rules.sweep(manifest, store, cut_off, batch_size=act.batch_size)
        self.world.seen["swept"] += report.reclaimed_count

    async def clean(self, act: Act) -> None:
        """Look for bytes that nothing names, and sweep."""
        manifest: Any = Gated(self.world.handle("nobody"), self.process)
        store: Any = Gated(self.world.bytes, self.process)
        self.world.seen["unnamed"] += await release_unnamed_attachments(manifest, store)
        await self.sweep(act)


# --- the world ---


class World:
    """One database and one byte store, with the model of what must be in them."""

    def __init__(self, lab: Lab, loop: MovedLoop, rules: Rules, store: AttachmentStore | None = None) -> None:
        self.lab = lab
        self.rules = rules
        self.bytes: AttachmentStore = store or InMemoryAttachmentStore()
        # A store that does not wait by itself for a sweep: a gate does.
        self.factory = EngineSessionStoreFactory(lab.factory.engine, StoreOptions(intent_wait_ms=0))
        self.seen: Counter[str] = Counter()
        self.committed: dict[str, set[int]] = {}
        self.named: dict[str, set[int]] = {}
        self.lives: Counter[str] = Counter()
        self.processes: list[Process] = []
        self._loop = loop

    @property
    def now_ms(self) -> int:
        """The time, in the database and for everybody."""
        return self.lab.clock.now_ms

    def handle(self, session_id: str) -> Any:
        """A handle of a session that may not be there; this does not make it."""
        return SessionStore(self.lab.factory.engine, session_id, None, StoreOptions(intent_wait_ms=0))

    def let_go(self, session_id: str, contents: set[int]) -> None:
        """Note that a session needs content no more."""
        self.committed[session_id] -= contents
        self.lives[session_id] += 1

    async def play(self, plan: Plan) -> None:
        """Do all that a plan says, then what is left, and then see what is left of it all."""
        await self._start_over()
        self.processes = [Process(self, script) for script in plan.scripts]
        try:
            for move in plan.moves:
                await self._move(move)
                await self._require_readable()
            while living := self._living():
                for process in living:
                    await process.move()
                await self._require_readable()
                if any(process.at == "record_intent" for process in living):
                    await self._tick()
        finally:
            for process in self.processes:
                if not process.over:
                    await process.die()
        await self._clean_up()

    async def _start_over(self) -> None:
        for session_id in SESSIONS:
            await self.factory.delete_session(session_id)
        for table in ("attachment_release", "attachment_mark"):
            await self.lab.execute_raw(f"delete from {table}")
        for each in await self.bytes.list():
            await self.bytes.delete(each)
        self.committed = {session_id: set() for session_id in SESSIONS}
        self.named = {session_id: set() for session_id in SESSIONS}

    def _living(self) -> list[Process]:
        """Who can move now."""
        return [process for process in self.processes if not process.over]

    async def _move(self, move: Move) -> None:
        if move.kind == "tick":
            await self._end_puts()
            await self._tick()
            return
        living = self._living()
        if not living:
            return
        process = living[move.who % len(living)]
        if move.kind == "die":
            self.seen[f"died at {process.at}"] += 1
            await process.die()
            return
        for _ in range(move.calls):
            if not process.over:
                await process.move()

    async def _end_puts(self) -> None:
        """Let puts come to their end before time passes, where none lasts that long."""
        for process in self.processes if self.rules.punctual else ():
            while not process.over and process.intent_ms is not None:
                await process.move()

    async def _tick(self) -> None:
        """Let a step of time pass, unless somebody may count on it that it does not."""
        then = self.now_ms + STEP_MS
        for process in self.processes:
            if process.over:
                continue
            if self.rules.punctual and process.intent_ms is not None and then - process.intent_ms >= PUNCTUAL_MS:
                return
        await self._pass(STEP_MS)

    async def _pass(self, ms: int) -> None:
        self.lab.clock.advance(ms)
        if self.rules.loop_moves:
            self._loop.moved_s += ms / 1000
        # Who has waited too long by now gives up, and comes to its next call by itself.
        for _ in range(_HOPS):
            await asyncio.sleep(0)

    async def _require_readable(self) -> None:
        for session_id, contents in self.committed.items():
            for content in contents:
                try:
                    found = await self.bytes.get(IDS[content], verify=True)
                except StoreError as error:
                    raise ViolationError(f"content {content}, committed in {session_id!r}: {error}") from None
                if found != CONTENTS[content]:
                    raise ViolationError(f"content {content} is {found!r}")

    async def _clean_up(self) -> None:
        """Let all marks lapse, sweep, and require that what is committed is there and nothing else."""
        await self._pass(MARK_TTL_MS)
        manifest = self.handle("nobody")
        if not self.rules.punctual:
            await release_unnamed_attachments(manifest, self.bytes)
        await reclaim_orphaned_attachments(manifest, self.bytes, self.now_ms, batch_size=2)
        await self._require_readable()
        needed = {IDS[content] for contents in self.committed.values() for content in contents}
        kept = set(await self.bytes.list())
        if kept != needed:
            raise ViolationError(f"kept for nobody: {sorted(kept - needed)}, missing: {sorted(needed - kept)}")
        entries = await manifest.list_attachments()
        held = {(entry.session_id, IDS.index(entry.attachment_id)) for entry in entries if entry.state == "committed"}
        if held != {(name, content) for name, contents in self.committed.items() for content in contents}:
            raise ViolationError(f"the manifest says that these are committed: {held}, and it is {self.committed}")
        left = {entry.attachment_id for entry in await manifest.list_uncommitted(EVER)}
        if not left <= needed:
            raise ViolationError(f"the manifest still waits for {left - needed}")
        await self.lab.assert_sound()
