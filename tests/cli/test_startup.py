"""What a fresh interpreter loads: no more than what was asked for needs."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import typer
from typer.main import get_group

import fastness.cli
from fastness.cli.commands import COMMANDS, load
from fastness.cli.main import app

HEAVY = [
    "apsw",
    "asyncio",
    "ctypes",
    "fastness.attachments",
    "fastness.decide",
    "fastness.engines",
    "fastness.factory",
    "fastness.model",
    "fastness.ops",
    "fastness.persistence",
    "fastness.runtime",
    "fastness.store",
    "fastness.telemetry",
    "httpx",
    "imagesize",
    "logging",
    "msgspec",
    "obstore",
    "opentelemetry",
    "psycopg",
    "psycopg_pool",
    "puremagic",
    "rich",
    "sqlite3",
    "ssl",
    "zstandard",
]
EXTRAS = ["obstore", "opentelemetry", "psycopg", "psycopg_pool", "rich", "typer"]


def loaded(code: str, watched: list[str]) -> list[str]:
    """Run code in a fresh interpreter; give what it has loaded of what is watched."""
    code += "\nimport sys\nsys.stderr.write(' '.join(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return sorted(set(watched) & set(found.stderr.split()))


def test_importing_the_package_loads_nothing_heavy() -> None:
    """``import fastness`` is free until something of it is asked for."""
    assert loaded("import fastness", [*HEAVY, "typer"]) == []


def test_asking_for_connect_loads_no_extra() -> None:
    """``fastness.connect`` loads no library that only another database, telemetry or the command line needs."""
    assert loaded("import fastness; fastness.connect", EXTRAS) == []


def test_help_loads_no_more_than_the_parser() -> None:
    """``fastness --help`` loads no command, and no library that commands need."""
    assert loaded("from fastness.cli.main import main; main(['--help'])", HEAVY) == []


def test_a_command_loads_no_other() -> None:
    """``sessions`` needs nothing of what copies, shows bars or runs turns."""
    code = "import sys; from fastness.cli.main import main; main(['sessions', '--help'])"
    others = ["fastness.cli.moving", "fastness.cli.worker", "fastness.runtime", "fastness.transfer", "rich"]
    assert loaded(code, [*others, "fastness.cli.view"]) == ["fastness.cli.view"]


def test_the_list_of_commands_says_what_each_says_of_itself() -> None:
    """Help lists every command by the first sentence of its own help."""
    group = get_group(app)
    for name, listed in COMMANDS.items():
        shown = group.commands[name].get_short_help_str(1000)
        assert (name, shown) == (name, listed.summary)
        assert (name, load(name).get_short_help_str(1000)) == (name, shown)


def test_every_command_is_on_the_list() -> None:
    """What a module registers is listed under that module, and no module that registers something is left out."""
    modules = {
        path.stem for path in Path(fastness.cli.__file__).parent.glob("*.py") if "def register(" in path.read_text()
    }
    registered = {(module, name) for module in modules for name in names_of(module)}
    assert registered == {(listed.module, name) for name, listed in COMMANDS.items()}


def names_of(module: str) -> list[str]:
    """Give the names of the commands and groups that a module registers."""
    own = typer.Typer()
    import_module(f"fastness.cli.{module}").register(own)
    return list(get_group(own).commands)
