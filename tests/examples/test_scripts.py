"""The examples that are one file: what they print, what they print the second time, and what a crash leaves."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
FASTNESS = Path(sys.executable).with_name("fastness")
CHART = "570a28b671dfb58d95c182a031b86bc4b4378b2c07ede53e5d9d83dfd85180da"


def command(script: str, *words: str) -> list[str]:
    """Give the command that runs an example; a warning ends it."""
    return [sys.executable, "-W", "error", str(EXAMPLES / script), *words]


def run(words: list[str], directory: Path, typed: str = "", status: int = 0) -> str:
    """Run a command to its end, and give what it prints."""
    done = subprocess.run(words, cwd=directory, input=typed, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout


def check(directory: Path, database: str) -> str:
    """Verify a database that an example has made."""
    return run([str(FASTNESS), "--database", f"sqlite:///{database}", "check"], directory)


# --- the chat loop ---


def test_a_chat_goes_on_where_it_was(tmp_path: Path) -> None:
    """Started again, it shows the conversation, and the script goes on with its next line."""
    assert run(command("chat_loop.py"), tmp_path, "Hello.\nI missed my train.\n") == (
        "bot: Good to see you. What is on your mind?\nbot: Go on, I am listening.\n"
    )
    assert run(command("chat_loop.py"), tmp_path, "I was late.\n/quit\nnot said\n") == (
        "you: Hello.\n"
        "bot: Good to see you. What is on your mind?\n"
        "you: I missed my train.\n"
        "bot: Go on, I am listening.\n"
        "bot: Why do you think so?\n"
    )


def test_a_chat_edits_regenerates_and_tells_its_history(tmp_path: Path) -> None:
    """Each is a branch of its own, made by one commit, and answered by the next."""
    typed = "Hello.\n/regenerate\n/edit Good evening.\n/history\n"
    assert run(command("chat_loop.py"), tmp_path, typed) == (
        "bot: Good to see you. What is on your mind?\n"
        "bot: Go on, I am listening.\n"
        "bot: Why do you think so?\n"
        "revision 1: 1 tokens in, 9 out\n"
        "revision 2: 0 tokens in, 0 out\n"
        "revision 3: 1 tokens in, 5 out\n"
        "revision 4: 0 tokens in, 0 out\n"
        "revision 5: 2 tokens in, 5 out\n"
    )
    assert run(command("chat_loop.py"), tmp_path) == "you: Good evening.\nbot: Why do you think so?\n"
    # A start at which nothing waits leaves no trace.
    assert run(command("chat_loop.py"), tmp_path, "/history\n").count("revision") == 5


def test_a_chat_says_what_it_cannot_do(tmp_path: Path) -> None:
    """There is nothing to edit or to answer again before the first word, and nothing is written by it."""
    assert run(command("chat_loop.py"), tmp_path, "/regenerate\n/edit Hello.\n/history\n") == (
        "bot: (there is no answer yet)\nbot: (there is nothing to edit)\n"
    )
    assert run(command("chat_loop.py"), tmp_path, "Hello.\n/edit\n").endswith(
        "bot: (write /edit and what you meant to say)\n"
    )


def test_a_chat_answers_what_it_died_over(tmp_path: Path) -> None:
    """The process ends while the model thinks; the next one answers the question at its start, once."""
    dying = "import os, chat_loop; chat_loop.call_model = lambda *_: os._exit(9); chat_loop.main()"
    words = ["env", f"PYTHONPATH={EXAMPLES}", sys.executable, "-B", "-c", dying]
    assert run(words, tmp_path, "Hello.\n", status=9) == ""
    again = "you: Hello.\nbot: Good to see you. What is on your mind?\n"
    assert run(command("chat_loop.py"), tmp_path) == again
    assert run(command("chat_loop.py"), tmp_path) == again


def test_a_chat_has_a_file_of_its_own(tmp_path: Path) -> None:
    """Another file is another conversation."""
    run(command("chat_loop.py"), tmp_path, "Hello.\n")
    assert run(command("chat_loop.py", "other.db"), tmp_path) == ""
    assert check(tmp_path, "chat.db").endswith("no fault found\n")


# --- the agent that wakes itself ---

LOOKS = ("shop: look 1, attempt 1", "shop: look 2, attempt 1", "shop: look 2, attempt 2", "shop: look 3, attempt 1")
FAILURES = (
    "ghost: look 1, attempt 1",
    "ghost: look 1, attempt 2",
    "ghost: look 1, attempt 3",
    "ghost: set aside after 3 attempts: LookupError: there is no deployment of that name",
)
TRANSCRIPT = (
    "shop: user: Watch the shop.",
    "shop: assistant: I will tell you when it is live.",
    "shop: assistant: It is live.",
    "ghost: user: Watch the ghost.",
    "ghost: assistant: I will tell you when it is live.",
    "ghost: user: Are you there?",
    "ghost: assistant: I am still here.",
)


def test_an_agent_wakes_itself_until_it_is_done(tmp_path: Path) -> None:
    """It looks again after a pause, tries again what failed, sets aside what fails for good, and is done once."""
    first = run(command("background_agent.py"), tmp_path)
    assert first.splitlines() == [*LOOKS, *FAILURES, *TRANSCRIPT]
    assert run(command("background_agent.py"), tmp_path).splitlines() == list(TRANSCRIPT)
    assert check(tmp_path, "background.db").endswith("no fault found\n")


DYING = """
import asyncio, os, signal, background_agent
ask = background_agent.percent_done

async def die(deployment, look, attempt):
    if look == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return await ask(deployment, look, attempt)

background_agent.percent_done = die
asyncio.run(background_agent.main())
"""


def test_an_agent_that_was_killed_wakes_up_all_the_same(tmp_path: Path) -> None:
    """What it had done before is not done again, and what it was at is."""
    words = ["env", f"PYTHONPATH={EXAMPLES}", sys.executable, "-B", "-c", DYING]
    assert run(words, tmp_path, status=-9).splitlines() == list(LOOKS[:2])
    assert run(command("background_agent.py"), tmp_path).splitlines() == [*LOOKS[2:], *FAILURES, *TRANSCRIPT]


# --- the agent with tools ---

ANSWERED = (
    "user: Draw the sales of this week.\n"
    "assistant: draw_chart\n"
    f'tool: {{"attachment": "{CHART}", "name": "sales.png"}}\n'
    "assistant: Here it is.\n"
    "user: How large is the picture?\n"
    "assistant: measure\n"
    'tool: {"width": 32, "height": 8}\n'
    "assistant: It is 32 by 8 pixels.\n"
)
DREW = "(drew sales.png, image/png, 332 bytes)\n"


def test_tools_run_and_what_they_made_can_be_read(tmp_path: Path) -> None:
    """The second question is answered from the attachment of the first; asked again, nothing runs."""
    assert run(command("tool_agent.py"), tmp_path) == DREW + ANSWERED
    assert run(command("tool_agent.py"), tmp_path) == ANSWERED


def test_a_crash_leaves_no_tool_call_without_its_result(tmp_path: Path) -> None:
    """After it the transcript is as it was before the turn, and the next run comes to the end, with one picture."""
    database = ("--database", "sqlite:///tools.db")
    assert run(command("tool_agent.py", "--crash"), tmp_path, status=1) == DREW
    assert run([str(FASTNESS), *database, "show", "sales"], tmp_path) == "session sales has no messages yet\n"
    assert run(command("tool_agent.py"), tmp_path) == DREW + ANSWERED
    assert check(tmp_path, "tools.db").endswith("no fault found\n")
    listed = run([str(FASTNESS), *database, "attachments", "list", "sales", "--json"], tmp_path)
    assert [json.loads(line)["attachment_id"] for line in listed.splitlines()] == [CHART]


# --- all of them ---


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.py")), ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_an_example_is_short_and_named_in_the_list(path: Path) -> None:
    """It fits on three screens, says what it shows, and the list of examples leads to it."""
    text = path.read_text(encoding="utf-8")
    assert text.startswith('"""')
    assert text.count("\n") < 150
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert os.fspath(path.relative_to(EXAMPLES)) in listed


def test_the_list_prints_what_it_says(tmp_path: Path) -> None:
    """Its commands, typed in order in the checkout, print exactly what stands below them; … stands for anything."""
    (tmp_path / "examples").symlink_to(EXAMPLES)
    environment = {**os.environ, "PATH": f"{FASTNESS.parent}{os.pathsep}{os.environ['PATH']}"}
    (transcript,) = re.findall(r"```console\n(.*?)```", (EXAMPLES / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    steps = transcript.split("$ ")[1:]
    assert len(steps) == 5
    for step in steps:
        typed, _, expected = step.partition("\n")
        done = subprocess.run(
            ["sh", "-c", typed], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        pattern = ".*".join(map(re.escape, expected.split("…")))
        assert re.fullmatch(pattern, done.stdout, re.DOTALL), f"{typed}\n{done.stdout}{done.stderr}"
