"""The chat server: a web process and two workers, as three processes of their own, on both engines."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.servers.postgres import shared_server

HERE = Path(__file__).resolve().parent.parent.parent / "examples" / "chat_server"
BIN = Path(sys.executable).parent
FORTY = " ".join(map(str, range(1, 41)))
PATIENCE_S = 60.0
"""How long a process may take to tell what is waited for. One that does not is killed, and that is a failure."""


class Child:
    """A process of the chat. What it tells is read as it comes: that is how its steps are awaited."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        self.process = process
        self.err = process.stderr

    def until(self, part: str) -> str:
        """Read what it tells up to a line with this in it."""
        told = []
        patience = threading.Timer(PATIENCE_S, self.process.kill)
        patience.start()
        try:
            for line in self.err:
                told.append(line)
                if part in line:
                    return line
        finally:
            patience.cancel()
        raise AssertionError(f"{part!r} is not in {told}")

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Have it stand still for a block."""
        self.process.send_signal(signal.SIGSTOP)
        yield
        self.process.send_signal(signal.SIGCONT)

    def end(self, number: signal.Signals) -> int:
        """Send it a signal, and give its status."""
        self.process.send_signal(number)
        self.err.read()
        return self.process.wait()


def first_to_tell(*children: Child) -> Child:
    """Wait until one of them tells something. All that they have told before was read."""
    ready, _, _ = select.select([each.err for each in children], [], [], PATIENCE_S)
    assert ready, "nobody tells anything"
    return next(each for each in children if each.err in ready)


@contextmanager
def child(*words: str, url: str) -> Iterator[Child]:
    """Run a process of the chat, up to when it is no longer needed."""
    environment = {**os.environ, "FASTNESS_DATABASE": url, "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(
        [str(BIN / words[0]), *words[1:]], cwd=HERE, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Child(process)
        finally:
            process.kill()


class Chat:
    """The chat as a browser has it, and its workers."""

    def __init__(self, url: str, address: str, stack: ExitStack) -> None:
        self.url = url
        self.stack = stack
        self.client = stack.enter_context(httpx.Client(base_url=address, timeout=PATIENCE_S, trust_env=False))

    def hire(self) -> Child:
        """Start one more worker."""
        worker = self.stack.enter_context(child("fastness", "worker", "agent:handler", url=self.url))
        worker.until("runs agent:handler")
        return worker

    def say(self, text: str, key: str | None = None) -> httpx.Response:
        """Post a message."""
        headers = {} if key is None else {"Idempotency-Key": key}
        return self.client.post("/chats/42/messages", json={"text": text}, headers=headers)

    def transcript(self) -> list[tuple[str, str]]:
        """Who said what."""
        messages: list[dict[str, Any]] = self.client.get("/chats/42").json()["messages"]
        return [(message["role"], message["text"]) for message in messages]

    def commits(self, after: int = 0) -> Iterator[str]:
        """Listen to the commits behind a revision."""
        headers = {"Last-Event-ID": str(after)} if after else {}
        with self.client.stream("GET", "/chats/42/events", headers=headers) as response:
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            yield from (line for line in response.iter_lines() if line)

    def until(self, count: int) -> list[tuple[str, str]]:
        """Listen until the transcript has so many messages, and give it."""
        for _ in self.commits():
            found = self.transcript()
            if len(found) >= count:
                return found
        raise AssertionError("the stream has ended")

    def interrupt(self) -> Any:
        """Press stop."""
        return self.client.post("/chats/42/interrupt").json()


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'chat.db'}"
    else:
        with shared_server().database() as found:
            yield found


@pytest.fixture
def chat(url: str) -> Iterator[Chat]:
    """A chat that nobody works for yet."""
    with ExitStack() as stack:
        web = stack.enter_context(child("uvicorn", "app:app", "--port", "0", url=url))
        address = web.until("Uvicorn running on").split("running on ")[1].split()[0]
        yield Chat(url, address, stack)


def test_a_message_is_answered_once_however_often_it_is_sent(chat: Chat) -> None:
    """One key is one message; other words under it are refused, and so is what is no message."""
    workers = chat.hire(), chat.hire()
    first = chat.say("Hello.", "m1")
    assert first.status_code == 202
    assert chat.say("Hello.", "m1").json() == first.json()
    assert next(chat.commits()) == "id: 1"
    assert chat.say("Hello.", "m1").json() == first.json()
    assert chat.say("Good-bye.", "m1").status_code == 409
    assert chat.client.post("/chats/42/messages", json={}).status_code == 400
    assert chat.say("Thanks.", "m2").status_code == 202
    assert chat.until(4) == [
        ("user", "Hello."),
        ("assistant", "Hello, how can I help?"),
        ("user", "Thanks."),
        ("assistant", "You said: Thanks."),
    ]
    assert [worker.end(signal.SIGTERM) for worker in workers] == [0, 0]


def test_what_is_said_meanwhile_joins_the_answer(chat: Chat) -> None:
    """A second tab speaks while the first is answered: both are answered in one turn, by one commit."""
    worker = chat.hire()
    chat.say("Count to forty.")
    worker.until("answering, attempt 1")
    with worker.stopped():
        chat.say("Hello.")
    assert next(chat.commits()) == "id: 1"
    assert chat.transcript() == [
        ("user", "Count to forty."),
        ("assistant", FORTY),
        ("user", "Hello."),
        ("assistant", "Hello, how can I help?"),
    ]


def test_the_stream_of_commits_goes_on_where_it_broke_off(chat: Chat) -> None:
    """It begins behind the last event that was received, and else with the first commit there is."""
    chat.hire()
    chat.say("Hello.")
    chat.until(2)
    chat.say("Thanks.")
    chat.until(4)
    first = list(islice(chat.commits(), 4))
    assert [line.partition(":")[0] for line in first] == ["id", "data", "id", "data"]
    assert list(islice(chat.commits(after=1), 2)) == ["id: 2", first[3]]


def test_two_tabs_that_speak_at_once_are_both_answered(chat: Chat) -> None:
    """Nothing is lost, and each answer stands behind its question, whichever came first."""
    chat.hire(), chat.hire()
    with ThreadPoolExecutor(2) as tabs:
        assert [each.status_code for each in tabs.map(chat.say, ("left", "right"))] == [202, 202]
    said = chat.until(4)
    assert sorted(said) == [
        ("assistant", "You said: left"),
        ("assistant", "You said: right"),
        ("user", "left"),
        ("user", "right"),
    ]
    for tab in ("left", "right"):
        assert said.index(("user", tab)) < said.index(("assistant", f"You said: {tab}"))


def test_an_answer_can_be_stopped(chat: Chat) -> None:
    """Nothing is left of it but the question, and the next question is answered."""
    assert chat.interrupt() == {"interrupted": False}
    worker = chat.hire()
    chat.say("Count to a million.")
    worker.until("answering, attempt 1")
    assert chat.interrupt() == {"interrupted": True}
    assert next(chat.commits()) == "id: 1"
    assert chat.transcript() == [("user", "Count to a million.")]
    chat.say("Hello.")
    assert chat.until(3)[1:] == [("user", "Hello."), ("assistant", "Hello, how can I help?")]


def test_a_worker_that_dies_is_replaced_by_the_other_one(chat: Chat) -> None:
    """The answer begins anew there, and is in the transcript once."""
    workers = chat.hire(), chat.hire()
    chat.say("Count to forty.")
    first = first_to_tell(*workers)
    assert "answering, attempt 1" in first.err.readline()
    first.end(signal.SIGKILL)
    (second,) = (each for each in workers if each is not first)
    second.until("answering, attempt 2")
    assert chat.until(2) == [("user", "Count to forty."), ("assistant", FORTY)]
