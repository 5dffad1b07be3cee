"""``check``, ``maintain`` and ``delete``: taking care of a database."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import msgspec
import typer

from fastness.cli.screen import counted, one_line, out, out_json, progress_bar
from fastness.cli.session import DatabaseOption, JsonOption, SessionArgument, open_session, run
from fastness.errors import InvalidInputError, SessionDeletedError
from fastness.factory import EngineSessionStoreFactory
from fastness.persistence import CheckReport, GcReport, MaintenancePreview, SessionStoreCreateRequest, VacuumReport

_FAULTY = 1


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
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Vacuum every session and collect blobs that nothing needs. A dry run unless --apply is given."""
    if not apply:
        preview = run(context, database, lambda factory: factory.maintenance_preview(keep_revisions=keep_revisions))
        out_json(preview) if as_json else out(_would_remove(preview, receipts=receipts))
        return
    cut_off = int(time.time() * 1000) if receipts else None
    vacuumed, collected = run(context, database, lambda factory: _maintain(factory, keep_revisions, cut_off))
    out_json({"vacuum": vacuumed, "collection": collected}) if as_json else out(_removed(vacuumed, collected))


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


async def _maintain(
    factory: EngineSessionStoreFactory, keep_revisions: int, receipts_older_than_ms: int | None
) -> tuple[VacuumReport, GcReport]:
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
    return total, await factory.gc_unreachable(keep_revisions=keep_revisions)


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


def _would_remove(preview: MaintenancePreview, *, receipts: bool) -> str:
    rows = [
        counted(preview.tombstoned_node_count, "tombstoned node"),
        counted(preview.turn_input_evidence_count, "settled input"),
        counted(preview.queue_evidence_count, "settled batch", "settled batches"),
        f"{counted(preview.unreachable_blob_count, 'blob')} ({preview.unreachable_byte_count:,} bytes)",
    ]
    if receipts:
        rows.append(counted(preview.receipt_count, "receipt"))
    return f"would remove {', '.join(rows)}; --apply does it"


def _removed(vacuumed: VacuumReport, collected: GcReport) -> str:
    rows = (
        counted(vacuumed.removed_node_count, "tombstoned node"),
        counted(vacuumed.removed_pending_turn_input_tombstone_count, "settled input"),
        counted(vacuumed.removed_queue_evidence_count, "settled batch", "settled batches"),
        counted(vacuumed.removed_receipt_count, "receipt"),
        f"{counted(collected.deleted_blob_count, 'blob')} ({collected.deleted_byte_count:,} bytes)",
    )
    return f"removed {', '.join(rows)}"
