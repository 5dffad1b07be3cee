"""``python -m fastness`` is the command line."""

from fastness.cli import run

run()
