"""Replay: recorded conversations become sessions, turn by turn, the way a live agent would have written them.

``import_file`` replays a file, ``exported_records`` gives the records back as they came. Both are built on the public
capabilities alone.
"""

from fastness.replay.export import exported_records
from fastness.replay.importer import ImportOptions, ImportReport, Survey, import_file, survey
from fastness.replay.plan import IMPORT_PLUGIN, PlannedTurn, Replay, plan_replay
from fastness.replay.runner import Replayer, TurnOutcome

__all__ = [
    "IMPORT_PLUGIN",
    "ImportOptions",
    "ImportReport",
    "PlannedTurn",
    "Replay",
    "Replayer",
    "Survey",
    "TurnOutcome",
    "exported_records",
    "import_file",
    "plan_replay",
    "survey",
]
