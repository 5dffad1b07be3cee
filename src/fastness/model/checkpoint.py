"""The checkpoint: what an agent must have in hand to go on after the last settled turn."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from fastness.model.base import NO_JSON, Count, Record, Value

CheckpointKind: TypeAlias = Literal["after_work", "before_completion"]
"""The safe boundaries inside a turn at which more input may arrive."""


class TokenUsage(Value, frozen=True):
    """Tokens of one or more model calls. Counters are never negative."""

    input_tokens: Count = 0
    output_tokens: Count = 0
    cache_read_tokens: Count = 0
    cache_write_tokens: Count = 0
    reasoning_output_tokens: Count = 0

    def __add__(self, other: TokenUsage) -> TokenUsage:
        return TokenUsage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cache_read_tokens + other.cache_read_tokens,
            self.cache_write_tokens + other.cache_write_tokens,
            self.reasoning_output_tokens + other.reasoning_output_tokens,
        )


class TokenLedgerEntry(Value, frozen=True):
    """Usage of one model by one source (``turn``, ``compaction``, …): added up per pair (law C10)."""

    source: str
    model: str
    usage: TokenUsage


class PersistedTurnState(Value, frozen=True):
    """Where the session stands: turns settled, usage so far, and the driver's own options as foreign JSON."""

    turn_index: Count = 0
    token_usage: TokenUsage = TokenUsage()
    last_prompt_usage: TokenUsage | None = None
    protocol_turn_options: msgspec.Raw = NO_JSON


class BlobRef(Value, frozen=True):
    """The name of immutable content: its sha256, 64 lower-case hexadecimal digits."""

    sha256: str


class SessionCheckpoint(Record, frozen=True):
    """The stored manifest of a checkpoint: turn state inline, the large parts by reference."""

    turn_state: PersistedTurnState
    tool_state: BlobRef | None = None
    plugin_snapshot: BlobRef | None = None
    execution_state: BlobRef | None = None

    def blob_refs(self) -> tuple[BlobRef, ...]:
        """The blobs that this checkpoint needs."""
        return tuple(ref for ref in (self.tool_state, self.plugin_snapshot, self.execution_state) if ref is not None)


class HydratedSessionCheckpoint(Value, frozen=True):
    """A checkpoint with its contents.

    In a commit each part is either content (bytes) or the ``BlobRef`` of a part that the session's head already holds
    and that did not change: it is then neither read nor written again. A load gives contents.
    """

    turn_state: PersistedTurnState
    tool_state: bytes | BlobRef | None = None
    plugin_snapshot: bytes | BlobRef | None = None
    execution_state: bytes | BlobRef | None = None
