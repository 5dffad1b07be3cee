"""``history`` and ``watch``: the commits of a session, those there are and those to come."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from fastness.cli.json_lines import out_json
from fastness.cli.options import DatabaseOption, JsonOption, SessionArgument
from fastness.cli.screen import columns, moment, one_line, out
from fastness.cli.session import open_session, run
from fastness.factory import EngineSessionStoreFactory
from fastness.persistence import CommitPage, CommitRecord, TokenUsage
from fastness.runtime.database import Database

_HEADS = ("REVISION", "TIME", "KIND", "TURN", "TOKENS IN", "OUT")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(history)
    app.command()(watch)


def history(
    context: typer.Context,
    session_id: SessionArgument,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Commits on a page.")] = 50,
    after: Annotated[int, typer.Option(min=0, metavar="REVISION", help="Go on behind a page, as it says.")] = 0,
    newest: Annotated[bool, typer.Option("--newest", help="Begin with the newest, and go down.")] = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the commits of a session, oldest first: revision, time, turn, and the tokens it was charged."""

    async def work(factory: EngineSessionStoreFactory) -> CommitPage:
        """Read a page, if the session is there."""
        await open_session(factory, session_id)
        return await factory.history.list_commits(session_id, after_revision=after, limit=limit, newest_first=newest)

    page = run(context, database, work)
    if as_json:
        out_json(page)
        return
    out(_listing(page.commits) if page.commits else "no commits")
    if page.cursor is not None:
        out(f"more: {'--newest ' if newest else ''}--after {page.cursor}")


def watch(
    context: typer.Context,
    session_id: SessionArgument,
    after: Annotated[
        int | None, typer.Option(min=0, metavar="REVISION", help="Begin behind this one, not behind the last.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="End after so many commits.")] = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the commits of a session as they are made, anywhere, a line for each. Ctrl-C ends it."""
    run(context, database, lambda factory: _watch(factory, session_id, after, limit, as_json=as_json))


async def _watch(
    factory: EngineSessionStoreFactory, session_id: str, after: int | None, limit: int | None, *, as_json: bool
) -> None:
    await open_session(factory, session_id)
    left = limit
    async for commit in Database(factory).watch(session_id, after_revision=after):
        out_json(commit) if as_json else out(_line(commit))
        sys.stdout.flush()
        left = None if left is None else left - 1
        if left == 0:
            return


def _usage(commit: CommitRecord) -> TokenUsage:
    return sum((entry.usage for entry in commit.usage), TokenUsage())


def _row(commit: CommitRecord) -> tuple[str, ...]:
    usage = _usage(commit)
    turn = "" if commit.turn_id is None else commit.turn_id
    numbers = (f"{usage.input_tokens:,}", f"{usage.output_tokens:,}") if commit.usage else ("", "")
    return (f"{commit.revision:,}", moment(commit.committed_at_epoch_ms), commit.kind, one_line(turn, 60), *numbers)


def _listing(commits: Sequence[CommitRecord]) -> str:
    return columns(_HEADS, [_row(commit) for commit in commits])


def _line(commit: CommitRecord) -> str:
    revision, when, kind, turn, tokens_in, tokens_out = _row(commit)
    charged = f": {tokens_in} tokens in, {tokens_out} out" if commit.usage else ""
    return f"{when} revision {revision}, {kind} {turn}".rstrip() + charged
