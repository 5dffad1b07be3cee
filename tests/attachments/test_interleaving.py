"""What is committed can be read, and what nobody needs is gone in the end, however processes interleave and die.

``release_unnamed_attachments`` is needed for one thing only: a put that a sweep with too late a cut-off has overtaken,
and that died before it could start over. Where every cut-off is further back than any put lasts, sweeps alone leave
nothing behind; that is the second property. Broken rules show that the first one can fail.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy

from fastness.attachments.files import FileAttachmentStore
from fastness.attachments.reclaim import MARK_TTL_MS, reclaim_orphaned_attachments
from fastness.attachments.session import SessionAttachmentStore
from fastness.conformance import Lab
from fastness.model import AttachmentIntent, AttachmentReclaimGrant, AttachmentReclamationReport, RuntimeCommit
from fastness.sql.program import Program, Statement, Write
from tests.attachments.interleaving import MovedLoop, Rules, ViolationError, World
from tests.attachments.plans import IDS, PUNCTUAL_MS, Act, Move, Plan, Script, plans
from tests.lab import ENGINES

GO = Phase.generate
"""Shrinking takes long; add ``Phase.shrink`` to hunt a violation that was found."""

NARROW = plans((0,), (0,), ("keep", "put", "forget", "sweep", "sweep"))
"""One content, and hardly anything but puts and sweeps of it."""


class Stage:
    """A world and the event loop that it lives in."""

    def __init__(self, world: World, runner: asyncio.Runner) -> None:
        self.world = world
        self._runner = runner

    def play(self, plan: Plan) -> None:
        """Play one plan to its end."""
        self._runner.run(self.world.play(plan))

    def play_many(self, examples: int, some: SearchStrategy[Plan] | None = None) -> Counter[str]:
        """Play so many plans, always the same ones. Gives what happened, and how often."""
        if some is None:
            some = plans((PUNCTUAL_MS,)) if self.world.rules.punctual else plans()

        @settings(
            max_examples=examples,
            deadline=None,
            derandomize=True,
            database=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
            phases=[GO],
        )
        @given(some)
        def holds(plan: Plan) -> None:
            self.play(plan)

        holds()
        return self.world.seen


@contextmanager
def staged(folder: Path, rules: Rules | None = None, *, engine: str = "memory", files: bool = False) -> Iterator[Stage]:
    """Have a world to play in."""
    with asyncio.Runner(loop_factory=MovedLoop) as runner:
        lab = Lab(ENGINES[engine], folder)
        runner.run(lab.__aenter__())
        try:
            loop = runner.get_loop()
            assert isinstance(loop, MovedLoop)
            store = FileAttachmentStore(folder / "files") if files else None
            yield Stage(World(lab, loop, rules or Rules(), store), runner)
        finally:
            runner.run(lab.__aexit__(None, None, None))


def require_seen(seen: Counter[str], *wanted: str) -> None:
    """Refuse a run in which something never happened that it is about."""
    never = [each for each in wanted if not seen[each]]
    assert never == [], f"the run is too thin; this happened: {sorted(seen.items())}"


HAPPENED = (
    "committed",
    "shared",
    "read",
    "swept",
    "died at record_intent",
    "died at put",
    "died at find_attachment",
    "died at commit",
)


def test_nothing_committed_is_lost_and_nothing_else_stays(tmp_path: Path) -> None:
    """With cut-offs of any kind: all that is committed can be read after every move, and in the end nothing else is."""
    with staged(tmp_path) as stage:
        stage.play_many(300)
        seen = stage.play_many(250, NARROW)
    require_seen(
        seen,
        *HAPPENED,
        "waited",
        "put once more",
        "died at begin_reclaim",
        "died at delete",
    )


def test_with_cut_offs_that_are_far_enough_back_sweeps_alone_leave_nothing(tmp_path: Path) -> None:
    """Where no put lasts as long as the cut-offs are back, nobody has to look for bytes that nothing names."""
    with staged(tmp_path, Rules(punctual=True)) as stage:
        seen = stage.play_many(350)
    require_seen(seen, *HAPPENED)


@pytest.mark.parametrize(
    ("engine", "files", "examples"),
    [("memory", True, 40), ("sqlite", True, 40), ("sqlite", False, 40), ("postgres", False, 40)],
)
def test_the_same_holds_on_disk_and_on_a_server(engine: str, files: bool, examples: int, tmp_path: Path) -> None:
    """Files and memory, under every engine, keep what is committed and nothing else."""
    with staged(tmp_path, engine=engine, files=files) as stage:
        seen = stage.play_many(examples)
    require_seen(seen, "committed", "shared", "read", "swept", "died at put")


# --- scenes ---

PUT_AND_DIE_BEFORE_THE_CHECK = Plan(
    (Script(0, (Act("put"),)), Script(1, (Act("sweep"),))),
    # It records its intent and looks at it; the sweep does all it does; the bytes come; then it dies.
    (Move("go", 0, 3), Move("go", 1, 8), Move("go", 0, 1), Move("die", 0)),
)
TWO_OF_ONE_SESSION = Plan(
    (Script(0, (Act("put"), Act("commit"))), Script(1, (Act("sweep"),)), Script(0, (Act("put"),))),
    # The first puts, and comes to its commit; the sweep takes it; the other records an intent and dies; the commit.
    (Move("go", 0, 5), Move("go", 1, 8), Move("go", 1, 2), Move("die", 1), Move("go", 0, 1)),
)


def test_a_put_that_was_overtaken_and_died_needs_the_search_for_unnamed_bytes(tmp_path: Path) -> None:
    """Its bytes are named by nothing: sweeps do not find them, and the search for what is unnamed does."""
    with staged(tmp_path, Rules(punctual=True)) as stage, pytest.raises(ViolationError, match="kept for nobody"):
        stage.play(PUT_AND_DIE_BEFORE_THE_CHECK)
    assert stage.world.seen["died at find_attachment"] == 1
    with staged(tmp_path) as stage:
        stage.play(PUT_AND_DIE_BEFORE_THE_CHECK)
    assert stage.world.seen["died at find_attachment"] == 1


class ShowsNoProof(SessionAttachmentStore):
    """Names what it refers to, and not the intents that the bytes were put under."""

    def stamp(self, commit: RuntimeCommit) -> RuntimeCommit:
        return commit.with_committed_attachments(self.pending)


def test_a_turn_that_a_sweep_has_overtaken_cannot_commit(tmp_path: Path) -> None:
    """Also where another process of its session has begun the same put anew, whose bytes never came."""
    broken = Rules(attachments=ShowsNoProof)
    with staged(tmp_path, broken) as stage, pytest.raises(ViolationError, match="committed in 'a'"):
        stage.play(TWO_OF_ONE_SESSION)
    with staged(tmp_path) as stage:
        stage.play(TWO_OF_ONE_SESSION)
    assert stage.world.seen["put once more"] == 1


# --- broken rules, which have to be found ---


class Broken:
    """A manifest with one broken rule."""

    def __init__(self, manifest: Any) -> None:
        self.manifest = manifest

    def __getattr__(self, name: str) -> Any:
        return getattr(self.manifest, name)


class GrantsAll(Broken):
    """Grants to a sweep whatever it asks for, and stands by it."""

    async def begin_reclaim(self, attachment_ids: list[str], **bounds: Any) -> AttachmentReclaimGrant:
        grant: AttachmentReclaimGrant = await self.manifest.begin_reclaim(attachment_ids, **bounds)
        return AttachmentReclaimGrant(grant.sweep_id, tuple(attachment_ids), grant.lapses_at_epoch_ms)

    async def reclaim_left_ms(self, _: AttachmentReclaimGrant) -> int:
        return MARK_TTL_MS


class OverlooksMarks(Broken):
    """Records an intent as if no sweep were at the content."""

    async def record_intent(self, intent: AttachmentIntent) -> None:
        unmark = Statement("delete from attachment_mark where attachment_id = $1", (intent.reference.attachment_id,))

        def program() -> Program[None]:
            yield Write(unmark)

        await self.manifest._engine.write(program)
        await self.manifest.record_intent(intent)


class NeverLooksBack(SessionAttachmentStore):
    """Takes it for granted that no sweep came while the bytes were put."""

    async def _under_intent(self, reference: Any, have_bytes: Any) -> None:
        await self._manifest.record_intent(AttachmentIntent(self.session_id, reference))
        entry = await self._manifest.find_attachment(self.session_id, reference.attachment_id)
        await have_bytes()
        if entry is not None:
            self._pending[reference.attachment_id] = entry.proof()


class BytesFirst(SessionAttachmentStore):
    """Writes the bytes, and then says that it is about to."""

    async def _under_intent(self, reference: Any, have_bytes: Any) -> None:
        await have_bytes()
        await super()._under_intent(reference, _nothing)


async def _nothing() -> None: ...


async def deletes_first(
    manifest: Any, store: Any, older_than_epoch_ms: int, *, batch_size: int
) -> AttachmentReclamationReport:
    """A sweep that asks what it may take, takes it, and marks it then."""
    page = await manifest.list_uncommitted(older_than_epoch_ms, limit=batch_size)
    wanted = [entry.attachment_id for entry in page]
    for each in await manifest.list_reclaimable(wanted, older_than_epoch_ms=older_than_epoch_ms):
        await store.delete(each)
    return await reclaim_orphaned_attachments(manifest, store, older_than_epoch_ms, batch_size=batch_size)


async def never_looks_at_the_time(
    manifest: Any, store: Any, older_than_epoch_ms: int, *, batch_size: int
) -> AttachmentReclamationReport:
    """A sweep that deletes under a mark of whatever age."""
    page = await manifest.list_uncommitted(older_than_epoch_ms, limit=batch_size)
    wanted = [entry.attachment_id for entry in page]
    grant = await manifest.begin_reclaim(wanted, older_than_epoch_ms=older_than_epoch_ms, mark_ttl_ms=MARK_TTL_MS)
    for each in grant.attachment_ids:
        await store.delete(each)
    done = await manifest.finish_reclaim(grant)
    return AttachmentReclamationReport(len(page), done, 0, 0)


async def forgets_before_it_deletes(
    manifest: Any, store: Any, older_than_epoch_ms: int, *, batch_size: int
) -> AttachmentReclamationReport:
    """A sweep that lets intents in again before the bytes are gone."""
    page = await manifest.list_uncommitted(older_than_epoch_ms, limit=batch_size)
    wanted = [entry.attachment_id for entry in page]
    grant = await manifest.begin_reclaim(wanted, older_than_epoch_ms=older_than_epoch_ms, mark_ttl_ms=MARK_TTL_MS)
    done = await manifest.finish_reclaim(grant)
    for each in grant.attachment_ids:
        with suppress(FileNotFoundError):
            await store.delete(each)
    return AttachmentReclamationReport(len(page), done, 0, 0)


BROKEN: dict[str, Rules] = {
    "grants all": Rules(manifest=GrantsAll),
    "overlooks marks": Rules(manifest=OverlooksMarks),
    "never looks back": Rules(attachments=NeverLooksBack),
    "bytes first": Rules(attachments=BytesFirst, punctual=True),
    "deletes first": Rules(sweep=deletes_first),
    "forgets before it deletes": Rules(sweep=forgets_before_it_deletes),
}


THIRD = IDS.index(max(IDS))
A_SWEEP_OUTLIVES_ITS_MARKS = Plan(
    (
        Script(0, (Act("put", 0), Act("put", 1), Act("put", 2))),
        Script(1, (Act("sweep", batch_size=3),)),
        Script(2, (Act("keep", THIRD),)),
    ),
    (
        Move("go", 0, 13),
        # It has three contents marked, and takes as long for each as it may.
        *(Move("go", 0, 3), Move("tick"), Move("go", 0, 1), Move("tick"), Move("go", 0, 1), Move("tick")),
        *(Move("go", 1, 6), Move("go", 0, 1)),
    ),
)


def test_a_sweep_stops_before_its_marks_lapse(tmp_path: Path) -> None:
    """One that goes on takes what was committed meanwhile; ours gives up, and a later one takes the rest."""
    broken = Rules(sweep=never_looks_at_the_time)
    with staged(tmp_path, broken) as stage, pytest.raises(ViolationError, match="committed in 'c'"):
        stage.play(A_SWEEP_OUTLIVES_ITS_MARKS)
    with staged(tmp_path) as stage:
        stage.play(A_SWEEP_OUTLIVES_ITS_MARKS)
    assert stage.world.seen["sweep: ContendedError"] == 1


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_is_found(rule: str, tmp_path: Path) -> None:
    """Whichever rule is broken, some plan loses what is committed, or leaves what nobody needs."""
    with staged(tmp_path, BROKEN[rule]) as stage, pytest.raises(ViolationError):
        stage.play_many(1500, NARROW)
