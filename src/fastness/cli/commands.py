"""The list of the commands, with what help says of each; what one of them needs is loaded when it is asked for.

So help and a wrong name cost no more than the parser, and a command loads no other. That what is said here is the
beginning of what the command says of itself, a test holds.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group


class Listed(NamedTuple):
    """A command as the list of them has it: the module that registers it, and the first sentence of its help."""

    module: str
    summary: str


COMMANDS = {
    "import": Listed("transfer", "Replay recorded conversations as durable turns."),
    "export": Listed(
        "transfer",
        "Print sessions in the format they came in, one record a line (JSON Lines); every branch is a record.",
    ),
    "sessions": Listed("view", "List sessions, oldest first."),
    "show": Listed("view", "Show a session's transcript, by default the branch it stands on."),
    "queue": Listed("view", "Show what waits for a session, user input and other work, and who holds its lane."),
    "send": Listed("send", "Say something to a session, as a user does, and print the id of that input."),
    "interrupt": Listed("send", "Ask the turn that runs to end, in whatever process it runs."),
    "describe": Listed("send", "Describe a session, as far as something is given, and print what is known of it."),
    "worker": Listed(
        "worker",
        "Run turns of all sessions with a handler, until SIGTERM or Ctrl-C: then what runs is finished, or given back.",
    ),
    "workers": Listed(
        "workers",
        "List the workers, with what they run and when they were last seen, and the lanes that are held, by whom.",
    ),
    "history": Listed(
        "history", "List the commits of a session, oldest first: revision, time, turn, and the tokens it was charged."
    ),
    "watch": Listed("history", "Print the commits of a session as they are made, anywhere, a line for each."),
    "fork": Listed(
        "branch",
        "Make a new session of what one is, or was: its branch, its checkpoint and its attachments, and no usage.",
    ),
    "check": Listed("care", "Verify the whole database: graphs, references, counts, claims, indexes."),
    "maintain": Listed("care", "Vacuum every session, and collect blobs and attachments that nothing needs."),
    "delete": Listed("care", "Delete a session and all it holds, also while somebody works on it."),
    "copy": Listed("moving", "Copy every session to another database and verify it there, while the source is in use."),
    "backup": Listed(
        "moving", "Write all sessions, as they are at this moment, into a new file, while the database is in use."
    ),
    "restore": Listed(
        "moving", "Verify a backup and bring all of it into an empty database, which is made if missing."
    ),
    "migrate": Listed("schema", "Create or migrate the tables of a database."),
    "quarantine": Listed(
        "quarantine", "List, retry and discard what was set aside because its turns failed too often."
    ),
    "branch": Listed("branch", "List the branches of a session, or switch to another one."),
    "attachments": Listed("attachments", "List, put, get and verify what sessions hold of attachments."),
}


class Commands(TyperGroup):
    """The commands by name, each a stand-in with the help it is listed with, until it is the one that is meant."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {name: TyperCommand(name, help=listed.summary) for name, listed in COMMANDS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Give the command that is meant, loaded, and what stands behind it."""
        name, found, rest = super().resolve_command(ctx, args)
        return name, found if name is None else load(name), rest


def load(name: str) -> Any:
    """Load a command of the list."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    import_module(f"fastness.cli.{COMMANDS[name].module}").register(app)
    return get_group(app).commands[name]
