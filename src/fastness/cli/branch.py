"""``branch list``, ``branch switch`` and ``fork``: going on from elsewhere, in the same session or in a new one."""

from __future__ import annotations

from typing import Annotated

import typer

from fastness.cli.json_lines import out_json
from fastness.cli.options import DatabaseOption, JsonOption, SessionArgument
from fastness.cli.screen import columns, counted, one_line, out
from fastness.cli.session import load, open_session, run
from fastness.cli.transcript import summary
from fastness.errors import InvalidInputError
from fastness.factory import EngineSessionStoreFactory
from fastness.model.base import Value
from fastness.model.graph import SessionGraph
from fastness.persistence import FullGraph, SessionMeta
from fastness.runtime.database import Database

_TEXT_WIDTH = 60


class Branch(Value, frozen=True):
    """One way through a session: where it ends, and its last message."""

    leaf_node_id: str
    is_current: bool
    message_count: int
    last: str


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)
    group.callback(invoke_without_command=True)(branch)
    group.command("list")(list_)
    group.command()(switch)
    app.add_typer(group, name="branch")
    app.command()(fork)


def branch(context: typer.Context) -> None:
    """List the branches of a session, or switch to another one."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def list_(
    context: typer.Context, session_id: SessionArgument, database: DatabaseOption = None, as_json: JsonOption = False
) -> None:
    """List the branches of a session, each by the leaf it ends at; * marks the one that the session stands on."""
    read = run(context, database, lambda factory: load(factory, session_id, FullGraph()))
    found = [] if read is None else branches_of(read.graph)
    if as_json:
        for one in found:
            out_json(one)
    elif found:
        rows = [("*" if one.is_current else "", one.leaf_node_id, f"{one.message_count:,}", one.last) for one in found]
        out(columns(("", "LEAF", "MESSAGES", "LAST"), rows))
    else:
        out("no branches")


def branches_of(graph: SessionGraph) -> list[Branch]:
    """Give the branches of a session, oldest first. Where it stands may also be in the middle of others."""
    ends = graph.leaves()
    if graph.leaf_node_id is not None and graph.leaf_node_id not in ends:
        ends = (*ends, graph.leaf_node_id)
    found = []
    for leaf in ends:
        said = [node for node in graph.active_path(leaf) if node.message is not None]
        last = one_line(summary(said[-1]), _TEXT_WIDTH) if said else ""
        found.append(Branch(leaf, leaf == graph.leaf_node_id, len(said), last))
    return found


def switch(
    context: typer.Context,
    session_id: SessionArgument,
    node_id: Annotated[str, typer.Argument(metavar="NODE", help="The leaf of a branch, or any other node.")],
    database: DatabaseOption = None,
) -> None:
    """Have a session go on from another node. It waits for the turn that runs; what waits is then answered there."""

    async def work(factory: EngineSessionStoreFactory) -> None:
        """Switch, if the session is there."""
        await open_session(factory, session_id)
        await Database(factory).switch(session_id, node_id)

    run(context, database, work)
    out(one_line(f"session {session_id} goes on from {node_id}"))


def fork(
    context: typer.Context,
    session_id: SessionArgument,
    new_session_id: Annotated[str, typer.Argument(metavar="NEW", help="The id of the new session.")],
    at_node: Annotated[str | None, typer.Option(metavar="NODE", help="Go on from this node, on any branch.")] = None,
    at_revision: Annotated[
        int | None, typer.Option(min=1, metavar="REVISION", help="Go on from the session as it was then.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What to call it, if not by its id.")] = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a new session of what one is, or was: its branch, its checkpoint and its attachments, and no usage."""
    if at_node is not None and at_revision is not None:
        raise InvalidInputError("fork", "takes --at-node or --at-revision, not both")

    async def work(factory: EngineSessionStoreFactory) -> tuple[SessionMeta, int]:
        """Fork, if the session is there, and count what came along."""
        await open_session(factory, session_id)
        db = Database(factory)
        meta = await db.fork(session_id, new_session_id, at_node=at_node, at_revision=at_revision, name=name)
        read = await load(factory, new_session_id, FullGraph())
        return meta, 0 if read is None else len(read.graph.active_messages())

    meta, count = run(context, database, work)
    out_json(meta) if as_json else out(
        one_line(f"forked {session_id} to {meta.session_id}, with {counted(count, 'message')}")
    )
