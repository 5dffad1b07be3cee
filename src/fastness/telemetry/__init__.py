"""What a running fastness tells its operators: log records with their turn, spans and metrics.

It promises that no record, span or metric carries the content of a message or the text of an error, and that nothing
here changes what a turn does. Without OpenTelemetry all of it but the log records is nothing. It must not know stores,
engines or the runtime: it is told.
"""

from __future__ import annotations

from fastness.telemetry.context import TurnContextFilter, turn_context, turn_logger
from fastness.telemetry.seam import CommitSpan, Telemetry, TurnSpan, default_telemetry, error_type

__all__ = [
    "CommitSpan",
    "Telemetry",
    "TurnContextFilter",
    "TurnSpan",
    "default_telemetry",
    "error_type",
    "turn_context",
    "turn_logger",
]
