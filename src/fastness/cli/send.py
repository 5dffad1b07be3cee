"""``send``, ``interrupt`` and ``describe``: telling a session something.

What is said is durable when the command ends; whoever runs turns of the session takes it from there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import typer

from fastness.cli.attachments import name_of_file, regular_file
from fastness.cli.json_lines import out_json
from fastness.cli.options import (
    AttachmentsOption,
    DatabaseOption,
    JsonOption,
    SessionArgument,
    database_url,
    refuse_memory,
)
from fastness.cli.screen import one_line, out
from fastness.cli.session import attachments_place, open_session, run
from fastness.errors import InvalidInputError
from fastness.factory import EngineSessionStoreFactory
from fastness.persistence import PendingTurnInput, SessionExecutionLease, SessionMeta
from fastness.runtime.database import Database
from fastness.runtime.messages import Said

_STANDARD = "-"


class Receiver(StrEnum):
    """Which turn takes what is said."""

    NEXT = "next"
    RUNNING = "running"

    @property
    def turn(self) -> Literal["next_turn", "running_turn"]:
        """What the library calls it."""
        return "running_turn" if self is Receiver.RUNNING else "next_turn"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(send)
    app.command()(interrupt)
    app.command()(describe)


def send(
    context: typer.Context,
    session_id: SessionArgument,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to say; - reads standard input.")],
    key: Annotated[
        str | None, typer.Option(metavar="KEY", help="A name of your own for it: sent again, it is there once.")
    ] = None,
    to: Annotated[
        Receiver, typer.Option(help="The next turn, or the one that runs (if none does, the next as well).")
    ] = Receiver.NEXT,
    delay: Annotated[float, typer.Option(metavar="SECONDS", help="Hold it back for so long.")] = 0,
    attach: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Send this file along; may be given again.")
    ] = None,
    place: AttachmentsOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say something to a session, as a user does, and print the id of that input.

    The session, and a SQLite file, are made if missing. Of standard input, the line feed at its very end is left out.
    """
    refuse_memory(database_url(context, database))
    files = [(regular_file(str(file)), name_of_file(str(file))) for file in attach or ()]
    said = _standard_input() if text == _STANDARD else text
    if not said and not files:
        raise InvalidInputError("the text", "is empty; say something, or send a file with --attach")
    store = attachments_place(context, database, place).open() if files else None

    async def work(factory: EngineSessionStoreFactory) -> PendingTurnInput:
        """Keep the files, then say it."""
        db = Database(factory, attachments=store)
        items: Said = said if not files else [*([said] if said else []), *(await _attached(db, session_id, files))]
        return await db.send(session_id, items, key=key, to=to.turn, delay=delay)

    sent = run(context, database, work, create=True)
    out_json(sent) if as_json else out(one_line(sent.input_id))


async def _attached(db: Database, session_id: str, files: Sequence[tuple[Path, str]]) -> list[Any]:
    return [await db.attach(session_id, path, name=name) for path, name in files]


def _standard_input() -> str:
    try:
        found = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError:
        raise InvalidInputError("standard input", "is no UTF-8 text; send it as a file with --attach") from None
    except (OSError, AttributeError) as error:  # what was closed is None
        said = getattr(error, "strerror", None) or "it is closed"
        raise InvalidInputError("standard input", f"cannot be read: {said}") from None
    return found.removesuffix("\n")


def interrupt(
    context: typer.Context,
    session_id: SessionArgument,
    reason: Annotated[str | None, typer.Option(help="Why, for the transcript.")] = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask the turn that runs to end, in whatever process it runs. What it has taken is settled, its answer dropped."""

    async def work(factory: EngineSessionStoreFactory) -> SessionExecutionLease | None:
        """Ask, if the session is there."""
        await open_session(factory, session_id)
        return await Database(factory).interrupt(session_id, reason=reason)

    asked = run(context, database, work)
    if as_json:
        out_json({"session_id": session_id, "asked": None if asked is None else _turn_of(asked)})
    elif asked is None:
        out("no turn runs")
    else:
        out(f"asked {one_line(asked.owner.owner_id)} to end its turn under fencing token {asked.fencing_token}")


def _turn_of(lease: SessionExecutionLease) -> dict[str, object]:
    """Say which turn it is, without the token that proves its lease."""
    return {"owner": lease.owner, "fencing_token": lease.fencing_token}


def describe(
    context: typer.Context,
    session_id: SessionArgument,
    name: Annotated[str | None, typer.Option(help="Call it so.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="Give it this label, in place of those it has; may be given again.")
    ] = None,
    no_labels: Annotated[bool, typer.Option("--no-labels", help="Take its labels away.")] = False,
    priority: Annotated[int | None, typer.Option(min=0, max=9, help="9 goes before all others.")] = None,
    custom: Annotated[str | None, typer.Option(metavar="JSON", help="Whatever your application keeps there.")] = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Describe a session, as far as something is given, and print what is known of it."""
    if label and no_labels:
        raise InvalidInputError("describe", "takes --label or --no-labels, not both")
    kept = None if custom is None else _json("--custom", custom)

    async def work(factory: EngineSessionStoreFactory) -> SessionMeta:
        """Write down what is new, if the session is there."""
        await open_session(factory, session_id)
        return await Database(factory).describe(
            session_id,
            name=name,
            labels=[] if no_labels else label or None,
            priority=priority,
            custom=msgspec.UNSET if kept is None else kept,
        )

    meta = run(context, database, work)
    if as_json:
        out_json(meta)
        return
    out(f"session {one_line(meta.session_id)}")
    out(f"name: {one_line(meta.session_name)}")
    out(f"labels: {one_line(', '.join(meta.labels)) or 'none'}")
    out(f"priority: {meta.priority}")
    out(f"custom: {one_line(bytes(meta.custom).decode())}")


def _json(what: str, text: str) -> msgspec.Raw:
    try:
        found = text.encode()
        msgspec.json.decode(found)
    except (msgspec.DecodeError, UnicodeError):
        raise InvalidInputError(what, "is no JSON; text goes in double quotes") from None
    return msgspec.Raw(found)
