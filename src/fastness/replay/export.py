"""Exports a session: every branch as the record that it was imported from, or as a plain list of messages.

A branch that grew after its import is exported with what it grew, and a session that was never imported as
``{"messages": [...]}``.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from fastness.errors import GraphInvalidError
from fastness.formats.openai_chat import from_message
from fastness.formats.records import Frame, assemble
from fastness.model.graph import SessionGraph, messages_of
from fastness.model.transcript import PluginPayload, SessionNodeRecord
from fastness.replay.plan import IMPORT_PLUGIN, ImportedRecord

_imported = msgspec.json.Decoder(ImportedRecord)
_PLAIN = Frame("messages")


def exported_records(graph: SessionGraph, leaf_node_id: str | None = None, *, session_id: str = "") -> list[bytes]:
    """Give the records of all branches, those of an import in the order of their file; or the one that ends at a leaf.

    Raises ``GraphInvalidError`` for a leaf that is not there and for an import node that is damaged.
    """
    leaves = graph.leaves() if leaf_node_id is None else (leaf_node_id,)
    found: list[tuple[int, bytes]] = []
    for at, leaf in enumerate(leaves):
        path = graph.active_path(leaf, session_id=session_id)
        imported = _import_of(path, session_id)
        messages = [from_message(message) for message in messages_of(path)]
        if imported is None:
            found.append((at, assemble(_PLAIN, messages)))
        else:
            found.append((imported.index, assemble(imported.frame, messages)))
    found.sort(key=lambda pair: pair[0])
    return [record for _, record in found]


def _import_of(path: Sequence[SessionNodeRecord], session_id: str) -> ImportedRecord | None:
    for node in reversed(path):
        payload = node.payload
        if isinstance(payload, PluginPayload) and payload.plugin_type == IMPORT_PLUGIN:
            try:
                return _imported.decode(payload.body)
            except msgspec.DecodeError as error:
                detail = f"the import node {node.node_id!r} cannot be read: {error}"
                raise GraphInvalidError(session_id, "undecodable", node.node_id, detail) from None
    return None
