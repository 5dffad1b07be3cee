"""Every name under which something is measured or traced, with its unit and attributes.

``docs/observability.md`` lists them, and a test holds the two together.

Where the conventions of OpenTelemetry for generative AI (0.1, in development) have a name for the same thing, it is
theirs. Their counters of tokens are not used: they count the calls of a model where these are made, and are counted
there; what is counted here is what commits have settled. No metric has an attribute with as many values as there are
sessions or turns.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

OPERATION = "gen_ai.operation.name"
INVOKE_AGENT = "invoke_agent"
AGENT_NAME = "gen_ai.agent.name"
CONVERSATION = "gen_ai.conversation.id"
MODEL = "gen_ai.request.model"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
ERROR_TYPE = "error.type"
TURN_ID = "fastness.turn.id"
FENCING_TOKEN = "fastness.fencing_token"  # noqa: S105 - a number in order, no secret
HEAD_REVISION = "fastness.head.revision"
INPUT_COUNT = "fastness.input.count"
OUTCOME = "fastness.turn.outcome"
REPLAYED = "fastness.commit.replayed"
WORKER = "fastness.worker.id"
REFUSED = "fastness.operation"
REASON = "fastness.takeover.reason"
CLAIMED = "fastness.claim.kind"
SOURCE = "fastness.usage.source"

TURN_SPAN = INVOKE_AGENT
COMMIT_SPAN = "fastness.commit"
TURN_ATTRIBUTES = (
    OPERATION,
    CONVERSATION,
    AGENT_NAME,
    TURN_ID,
    FENCING_TOKEN,
    WORKER,
    INPUT_COUNT,
    HEAD_REVISION,
    MODEL,
    INPUT_TOKENS,
    OUTPUT_TOKENS,
    OUTCOME,
    ERROR_TYPE,
)
COMMIT_ATTRIBUTES = (CONVERSATION, TURN_ID, FENCING_TOKEN, HEAD_REVISION, REPLAYED, ERROR_TYPE)

_QUICK_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_LONG_S = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0)
# As the conventions advise for this metric.
_TURN_S = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 102.4, 204.8, 409.6)
_GROUPS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)

Kind = Literal["counter", "histogram", "gauge"]


class Instrument(NamedTuple):
    """One thing that is measured. ``boundaries`` are those of a histogram's buckets, in its unit."""

    name: str
    kind: Kind
    unit: str
    attributes: tuple[str, ...]
    description: str
    boundaries: tuple[float, ...] | None = None


COMMITS = Instrument("fastness.commits", "counter", "{commit}", (REPLAYED,), "Commits that landed.")
COMMIT_DURATION = Instrument(
    "fastness.commit.duration",
    "histogram",
    "s",
    (ERROR_TYPE,),
    "How long a commit took, from when it was sent to its answer.",
    _QUICK_S,
)
CONFLICTS = Instrument(
    "fastness.conflicts",
    "counter",
    "{conflict}",
    (ERROR_TYPE, REFUSED),
    "What was refused because somebody else had written first.",
)
FENCING_REJECTIONS = Instrument(
    "fastness.fencing.rejections",
    "counter",
    "{rejection}",
    (ERROR_TYPE, REFUSED),
    "What was refused because the lane was no longer held.",
)
TAKEOVERS = Instrument(
    "fastness.takeovers", "counter", "{takeover}", (REASON,), "Lanes taken from a holder that did not give them back."
)
TURN_DURATION = Instrument(
    "gen_ai.invoke_agent.duration",
    "histogram",
    "s",
    (OPERATION, AGENT_NAME, OUTCOME, ERROR_TYPE),
    "How long a turn took, from its claim to its end.",
    _TURN_S,
)
TURNS_RUNNING = Instrument("fastness.turns.running", "gauge", "{turn}", (WORKER,), "Turns that run now.")
TURNS_FAILED = Instrument("fastness.turns.failed", "counter", "{turn}", (ERROR_TYPE,), "Turns that left nothing.")
INTERRUPTS = Instrument("fastness.interrupts", "counter", "{turn}", (), "Turns that somebody has interrupted.")
QUARANTINED = Instrument(
    "fastness.quarantined", "counter", "{row}", (CLAIMED,), "Input and work put aside after its turns had failed."
)
PICKUP_LATENCY = Instrument(
    "fastness.pickup.latency",
    "histogram",
    "s",
    (),
    "From when a session was ready to when its turn began.",
    _QUICK_S,
)
QUEUE_AGE = Instrument(
    "fastness.queue.age", "histogram", "s", (CLAIMED,), "From when a row was enqueued to when it was claimed.", _LONG_S
)
GROUP_SIZE = Instrument(
    "fastness.group.size", "histogram", "{write}", (), "Writes that one COMMIT of SQLite settled together.", _GROUPS
)
USAGE = tuple(
    Instrument(f"fastness.usage.{counter}", "counter", "{token}", (MODEL, SOURCE), f"{said} that commits settled.")
    for counter, said in (
        ("input_tokens", "Input tokens"),
        ("output_tokens", "Output tokens"),
        ("cache_read_tokens", "Tokens read from a provider's cache"),
        ("cache_write_tokens", "Tokens written to a provider's cache"),
        ("reasoning_output_tokens", "Output tokens spent on reasoning"),
    )
)
"""One for each counter of a ``TokenUsage``, whose name is the last part of its own."""

INSTRUMENTS = (
    COMMITS,
    COMMIT_DURATION,
    CONFLICTS,
    FENCING_REJECTIONS,
    TAKEOVERS,
    TURN_DURATION,
    TURNS_RUNNING,
    TURNS_FAILED,
    INTERRUPTS,
    QUARANTINED,
    PICKUP_LATENCY,
    QUEUE_AGE,
    GROUP_SIZE,
    *USAGE,
)
