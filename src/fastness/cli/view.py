"""``sessions``, ``show`` and ``queue``: what is there."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

import typer

from fastness.cli.json_lines import out_json
from fastness.cli.options import DatabaseOption, JsonOption, SessionArgument
from fastness.cli.screen import columns, counted, moment, one_line, out
from fastness.cli.session import load, open_session, run
from fastness.cli.transcript import readable, tree
from fastness.errors import InvalidInputError
from fastness.factory import EngineSessionStoreFactory
from fastness.model.turn_input import AttachmentItem, TextItem
from fastness.persistence import (
    ActivePath,
    FullGraph,
    PendingTurnInput,
    PersistedSessionRead,
    QueuedWorkBatch,
    SessionExecutionLease,
    SessionFilter,
    SessionReadScope,
    SessionSummary,
    snapshot_of,
)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(sessions)
    app.command()(show)
    app.command()(queue)


def sessions(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Sessions on a page.")] = 50,
    cursor: Annotated[str | None, typer.Option(help="Go on behind a page, as it says.")] = None,
    prefix: Annotated[str | None, typer.Option(help="Only ids that begin so.")] = None,
    parent: Annotated[str | None, typer.Option(metavar="ID", help="Only children of this session.")] = None,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="Created then or later (ISO 8601).")] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Created then or earlier (ISO 8601).")] = None,
    label: Annotated[list[str] | None, typer.Option(help="Only those with this label; may be given again.")] = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """List sessions, oldest first."""
    filters = SessionFilter(prefix, parent, _time("since", since), _time("until", until), tuple(label or ()))
    page = run(context, database, lambda factory: factory.list_sessions(limit=limit, cursor=cursor, filters=filters))
    if as_json:
        out_json(page)
        return
    out(_listing(page.sessions) if page.sessions else "no sessions")
    if page.next_cursor is not None:
        out(f"more: --cursor {one_line(page.next_cursor)}")


def _listing(sessions: Sequence[SessionSummary]) -> str:
    heads = ["SESSION", "REVISION", "NODES", "CREATED", "UPDATED"]
    rows = [
        [
            one.meta.session_id,
            f"{one.revision:,}",
            f"{one.node_count:,}",
            moment(one.created_ms),
            moment(one.updated_ms),
        ]
        for one in sessions
    ]
    if any(one.meta.labels for one in sessions):
        heads.append("LABELS")
        rows = [[*row, ", ".join(one.meta.labels)] for row, one in zip(rows, sessions, strict=True)]
    return columns(heads, rows)


def show(
    context: typer.Context,
    session_id: SessionArgument,
    leaf: Annotated[str | None, typer.Option(metavar="NODE", help="The branch that ends at this node.")] = None,
    as_tree: Annotated[bool, typer.Option("--tree", help="Show all branches, a line for each message.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Print long texts whole.")] = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a session's transcript, by default the branch it stands on."""
    if as_tree and leaf is not None:
        raise InvalidInputError("show", "takes --leaf or --tree, not both")
    scope: SessionReadScope = FullGraph() if as_tree else ActivePath(leaf)
    read = run(context, database, lambda factory: load(factory, session_id, scope))
    if as_json:
        out_json(_json(session_id, read))
    elif read is None:
        out(f"session {one_line(session_id)} has no messages yet")
    else:
        lines = tree(read) if as_tree else readable(read, full=full)
        for line in lines:
            out(line)


def queue(
    context: typer.Context, session_id: SessionArgument, database: DatabaseOption = None, as_json: JsonOption = False
) -> None:
    """Show what waits for a session, user input and other work, and who holds its lane."""
    inputs, batches, holder = run(context, database, lambda factory: _waiting(factory, session_id))
    if as_json:
        out_json({"pending_inputs": inputs, "queued_work": batches, "lane": _lane(holder)})
        return
    out(f"lane: {_holder(holder)}")
    out(f"{counted(len(inputs), 'input')} waiting")
    if inputs:
        rows = [(str(one.admission_seq), one.input_id, one.state, one_line(_input_text(one), 60)) for one in inputs]
        out(columns(("SEQ", "INPUT", "STATE", "TEXT"), rows))
    out(f"{counted(len(batches), 'batch', 'batches')} of work queued")
    if batches:
        found = [
            (str(one.admission_seq), one.batch_id, one.state, one.work_class, str(len(one.items))) for one in batches
        ]
        out(columns(("SEQ", "BATCH", "STATE", "CLASS", "ITEMS"), found))


async def _waiting(
    factory: EngineSessionStoreFactory, session_id: str
) -> tuple[list[PendingTurnInput], list[QueuedWorkBatch], SessionExecutionLease | None]:
    store = await open_session(factory, session_id)
    inputs = await store.list_pending_turn_inputs(session_id)
    batches = await store.list_queued_work(session_id)
    return inputs, batches, await store.observe_session_execution_lease(session_id)


def _lane(lease: SessionExecutionLease | None) -> dict[str, object] | None:
    """Who holds the lane, without the token that proves it."""
    if lease is None:
        return None
    shown = ("owner", "fencing_token", "claimed_at_epoch_ms", "expires_at_epoch_ms")
    return {name: getattr(lease, name) for name in shown}


def _holder(lease: SessionExecutionLease | None) -> str:
    if lease is None:
        return "free"
    until = moment(lease.expires_at_epoch_ms)
    return f"held by {one_line(lease.owner.owner_id)}, fencing token {lease.fencing_token}, until {until}"


def _input_text(row: PendingTurnInput) -> str:
    found = []
    for item in row.input.items:
        if isinstance(item, TextItem):
            found.append(item.text)
        elif isinstance(item, AttachmentItem):
            found.append(f"[{item.attachment.name}]")
        else:
            found.append(bytes(item.data).decode())
    return " ".join(found)


def _json(session_id: str, read: PersistedSessionRead | None) -> dict[str, object]:
    if read is None:
        return {"session_id": session_id, "revision": 0, "nodes": []}
    snapshot = snapshot_of(read)
    return {
        "session_id": session_id,
        "meta": read.meta,
        "revision": read.head.meta.revision,
        "leaf_node_id": read.graph.leaf_node_id,
        "turn_state": snapshot.turn_state,
        "usage": snapshot.ledger,
        "nodes": read.graph.nodes,
    }


def _time(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
        found = found if found.tzinfo is not None else found.replace(tzinfo=UTC)
        return int(found.timestamp() * 1000)
    except (ValueError, OverflowError):
        raise InvalidInputError(f"--{name} {text!r}", "is no time such as 2025-01-31 or 2025-01-31T12:00:00Z") from None
