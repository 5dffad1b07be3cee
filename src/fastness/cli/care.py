"""``check``, ``maintain`` and ``delete``: taking care of a database."""

from __future__ import annotations

import re
import sys
import time
from typing import Annotated, Any, NamedTuple

import msgspec
import typer

from fastness.cli.attachments import entries_of
from fastness.cli.json_lines import out_json
from fastness.cli.options import AttachmentsOption, DatabaseOption, JsonOption, SessionArgument
from fastness.cli.progress import progress_bar
from fastness.cli.screen import counted, one_line, out
from fastness.cli.session import HOLDS_NOTHING, NO_DIRECTORY, AttachmentsPlace, attachments_place, open_session, run
from fastness.errors import InvalidInputError, SessionDeletedError
from fastness.factory import EngineSessionStoreFactory
from fastness.model.base import MAX_INT, Value
from fastness.persistence import (
    AttachmentManifest,
    AttachmentReclamationReport,
    AttachmentStore,
    CheckReport,
    GcReport,
    MaintenancePreview,
    SessionStoreCreateRequest,
    VacuumReport,
    reclaim_orphaned_attachments,
    release_unnamed_attachments,
)

_FAULTY = 1
_DURATION = re.compile(r"([0-9]{1,9})([smhd])")
_UNIT_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_NOT_SWEPT = "attachments: not looked at; --attachments names their store"


class Sweep(NamedTuple):
    """What ``maintain`` is to do about attachments. ``older_than_ms`` is an age."""

    place: AttachmentsPlace
    older_than_ms: int
    unnamed: bool


class SweepReport(Value, frozen=True):
    """What a sweep did, or would do, and how much content that nothing names it put on record for later ones."""

    reclamation: AttachmentReclamationReport
    released_unnamed_count: int


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(check)
    app.command()(maintain)
    app.command()(delete)


def check(context: typer.Context, database: DatabaseOption = None, as_json: JsonOption = False) -> None:
    """Verify the whole database: graphs, references, counts, claims, indexes. Exit status 1 says that it has faults."""
    report = run(context, database, _check)
    if as_json:
        out_json(report)
    else:
        for finding in report.findings:
            where = "database" if finding.session_id is None else f"session {finding.session_id}"
            out(one_line(f"{where}: {finding.rule}: {finding.detail}"))
        out(_checked(report))
    if report.findings:
        raise typer.Exit(_FAULTY)


def maintain(
    context: typer.Context,
    apply: Annotated[bool, typer.Option("--apply", help="Do it. Without this, only say what would be done.")] = False,
    receipts: Annotated[
        bool, typer.Option("--receipts", help="Also drop receipts: a commit that is sent again is then a conflict.")
    ] = False,
    keep_revisions: Annotated[int, typer.Option(min=1, help="Keep the checkpoints of so many last revisions.")] = 1,
    attachments: AttachmentsOption = None,
    attachments_older_than: Annotated[
        str,
        typer.Option(
            metavar="DURATION",
            help="Delete attachments that nobody has needed for so long, such as 30m, 24h or 7d:"
            " longer than any put or turn takes.",
        ),
    ] = "24h",
    unnamed_attachments: Annotated[
        bool,
        typer.Option(
            "--unnamed-attachments",
            help="Also have later runs delete what the store holds and nothing in this database names."
            " Only if nothing else uses that store: they lose what they have there.",
        ),
    ] = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Vacuum every session, and collect blobs and attachments that nothing needs. A dry run unless --apply is given.

    All attachments of a database belong in one place: what is swept here is forgotten, also where its bytes are
    elsewhere.
    """
    place = attachments_place(context, database, attachments)
    sweep = Sweep(place, _duration_ms(attachments_older_than), unnamed_attachments)
    if not apply:
        preview, would = run(context, database, lambda factory: _preview(factory, keep_revisions, sweep))
        told = _would_remove(preview, would, receipts=receipts)
        out_json(msgspec.structs.asdict(preview) | {"attachments": would}) if as_json else out(told)
        return
    cut_off = int(time.time() * 1000) if receipts else None
    vacuumed, collected, swept = run(
        context, database, lambda factory: _maintain(factory, keep_revisions, cut_off, sweep)
    )
    found: dict[str, Any] = {"vacuum": vacuumed, "collection": collected, "attachments": swept}
    out_json(found) if as_json else out(_removed(vacuumed, collected, swept))


def delete(
    context: typer.Context,
    session_id: SessionArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    database: DatabaseOption = None,
) -> None:
    """Delete a session and all it holds, also while somebody works on it."""
    run(context, database, lambda factory: open_session(factory, session_id))
    if not yes:
        if sys.stdin is None or not sys.stdin.isatty():
            raise InvalidInputError("delete", "cannot ask here; say --yes to delete without being asked")
        typer.confirm(f"delete session {one_line(session_id)} and all it holds?", abort=True, err=True)
    run(context, database, lambda factory: factory.delete_session(session_id))
    out(f"deleted session {one_line(session_id)}")


async def _check(factory: EngineSessionStoreFactory) -> CheckReport:
    with progress_bar("sessions") as bar:
        task = bar.add_task("checking", total=None)
        return await factory.check(lambda done, total: bar.update(task, completed=done, total=total))


async def _preview(
    factory: EngineSessionStoreFactory, keep_revisions: int, sweep: Sweep
) -> tuple[MaintenancePreview, SweepReport | None]:
    store = await _store_of(factory, sweep)
    preview = await factory.maintenance_preview(keep_revisions=keep_revisions)
    return preview, None if store is None else await _sweep(factory, store, sweep, dry_run=True)


async def _maintain(
    factory: EngineSessionStoreFactory, keep_revisions: int, receipts_older_than_ms: int | None, sweep: Sweep
) -> tuple[VacuumReport, GcReport, SweepReport | None]:
    bytes_store = await _store_of(factory, sweep)
    total = VacuumReport(0, 0, 0, 0)
    async for session_id in factory.session_ids():
        store = await factory.open_existing_store(SessionStoreCreateRequest(session_id))
        if store is None:
            continue
        try:
            report = await store.vacuum(receipts_older_than_ms=receipts_older_than_ms)
        except SessionDeletedError:
            # It was deleted since it was listed: there is nothing left to remove.
            continue
        total = VacuumReport(*(one + more for one, more in zip(_counts(total), _counts(report), strict=True)))
    collected = await factory.gc_unreachable(keep_revisions=keep_revisions)
    return total, collected, None if bytes_store is None else await _sweep(factory, bytes_store, sweep, dry_run=False)


async def _store_of(factory: EngineSessionStoreFactory, sweep: Sweep) -> AttachmentStore | None:
    """Give the store to sweep, or None if it is not known: the manifest would forget what the real one still has.

    Raises ``InvalidInputError`` for a place that somebody named and that cannot be the one.
    """
    place, manifest = sweep.place, factory.attachment_manifest
    if place.where is None:
        return None
    store = place.open()
    if place.is_absent():
        # A place that nobody has put anything in yet is none until then.
        is_right = place.is_named and not await _has_rows(manifest)
        wrong = NO_DIRECTORY
    else:
        is_right = bool(await store.list(limit=1)) or not await _is_referred_to(manifest)
        wrong = HOLDS_NOTHING
    if place.is_named and not is_right:
        raise place.refusal(wrong)
    return store if is_right else None


async def _has_rows(manifest: AttachmentManifest) -> bool:
    held = await manifest.list_attachments(limit=1)
    return bool(held or await manifest.list_uncommitted(MAX_INT, limit=1))


async def _is_referred_to(manifest: AttachmentManifest) -> bool:
    async for entry in entries_of(manifest, None):
        if entry.state == "committed":
            return True
    return False


async def _sweep(
    factory: EngineSessionStoreFactory, store: AttachmentStore, sweep: Sweep, *, dry_run: bool
) -> SweepReport:
    if sweep.place.is_absent():
        # There are no rows either, else it would have been refused: nothing was ever put.
        return SweepReport(AttachmentReclamationReport(0, 0, dry_run=dry_run), 0)
    manifest = factory.attachment_manifest
    unnamed = sweep.unnamed and not dry_run
    released = await release_unnamed_attachments(manifest, store) if unnamed else 0
    cut_off = int(time.time() * 1000) - sweep.older_than_ms
    return SweepReport(await reclaim_orphaned_attachments(manifest, store, cut_off, dry_run=dry_run), released)


def _counts(report: VacuumReport) -> tuple[int, ...]:
    return msgspec.structs.astuple(report)


def _checked(report: CheckReport) -> str:
    found = ", ".join(
        (
            counted(report.session_count, "session"),
            counted(report.node_count, "node"),
            counted(report.commit_count, "commit"),
            counted(report.blob_count, "blob"),
            counted(report.pending_input_count, "waiting input"),
            counted(report.queued_batch_count, "queued batch", "queued batches"),
        )
    )
    return f"checked {found}: {counted(len(report.findings), 'fault') if report.findings else 'no fault'} found"


def _would_remove(preview: MaintenancePreview, would: SweepReport | None, *, receipts: bool) -> str:
    rows = [
        counted(preview.tombstoned_node_count, "tombstoned node"),
        counted(preview.turn_input_evidence_count, "settled input"),
        counted(preview.queue_evidence_count, "settled batch", "settled batches"),
        f"{counted(preview.unreachable_blob_count, 'blob')} ({preview.unreachable_byte_count:,} bytes)",
    ]
    if receipts:
        rows.append(counted(preview.receipt_count, "receipt"))
    if would is not None:
        rows.append(_swept(would))
    return "\n".join((f"would remove {', '.join(rows)}; --apply does it", *([_NOT_SWEPT] if would is None else [])))


def _removed(vacuumed: VacuumReport, collected: GcReport, swept: SweepReport | None) -> str:
    rows = [
        counted(vacuumed.removed_node_count, "tombstoned node"),
        counted(vacuumed.removed_pending_turn_input_tombstone_count, "settled input"),
        counted(vacuumed.removed_queue_evidence_count, "settled batch", "settled batches"),
        counted(vacuumed.removed_receipt_count, "receipt"),
        f"{counted(collected.deleted_blob_count, 'blob')} ({collected.deleted_byte_count:,} bytes)",
    ]
    lines = []
    if swept is None:
        lines.append(_NOT_SWEPT)
    else:
        rows.append(_swept(swept))
        if swept.released_unnamed_count:
            lines.append(f"released {counted(swept.released_unnamed_count, 'attachment')} that nothing named")
    return "\n".join((f"removed {', '.join(rows)}", *lines))


def _swept(report: SweepReport) -> str:
    done = report.reclamation
    text = f"{counted(done.reclaimed_count, 'attachment')} ({done.freed_byte_count:,} bytes"
    return text + (f"; {done.absent_count:,} had no bytes here)" if done.absent_count else ")")


def _duration_ms(text: str) -> int:
    found = _DURATION.fullmatch(text)
    if found is None:
        raise InvalidInputError(f"--attachments-older-than {text!r}", "is no duration such as 30m, 24h or 7d")
    return int(found[1]) * _UNIT_MS[found[2]]
