"""The session commands that the library itself knows. All others are the handler's.

{"fastness": "switch", "node": "…"}                       go on from another node; null is before the first one
{"fastness": "configure", "model": "…", "provider_id": "…"}   run on another model or provider, either may be missing
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from fastness.errors import InvalidInputError
from fastness.model import SessionCommand
from fastness.runtime import branches
from fastness.runtime.turn import Turn


class Switch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="fastness", tag="switch"):
    """Go on from another node."""

    node: str | None


class Configure(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="fastness", tag="configure"):
    """Run on another model or provider."""

    model: str | None = None
    provider_id: str | None = None


BuiltIn: TypeAlias = Switch | Configure


class _Mark(msgspec.Struct, frozen=True):
    """Whether a command is one of ours."""

    fastness: str | None = None


def built_in(command: SessionCommand) -> BuiltIn | None:
    """Read a command; None: it is the handler's. Raises ``InvalidInputError`` for one of ours that is malformed."""
    try:
        mark = msgspec.json.decode(command.command, type=_Mark).fastness
    except msgspec.DecodeError:
        return None
    if mark is None:
        return None
    try:
        return msgspec.json.decode(command.command, type=Switch | Configure)
    except msgspec.DecodeError as error:
        raise InvalidInputError("command", f"{mark!r} cannot be read: {error}") from error


async def apply(turn: Turn) -> bool:
    """Apply what the turn has taken, if all of it is commands of ours. Whether it was."""
    if turn.kind != "command":
        return False
    payloads = [item.payload for item in turn.work[0].items if isinstance(item.payload, SessionCommand)]
    commands = [command for payload in payloads if (command := built_in(payload)) is not None]
    if len(commands) < len(payloads):
        return False
    for command in commands:
        if isinstance(command, Switch):
            await branches.switch(turn, command.node)
        else:
            turn.configure(model=command.model, provider_id=command.provider_id)
    return True
