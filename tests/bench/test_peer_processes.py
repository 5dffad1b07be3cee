"""What is compared runs in processes that answer, and that say why they do not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from bench.peer_processes import PEERS, ROOT, ProcessError, SideProcess, peers_python


def test_a_process_answers_what_it_is_told_and_ends_when_nothing_comes_any_more(tmp_path: Path) -> None:
    """A session of ours makes three turns of four messages, and finds them again after its store was closed."""
    one = SideProcess(sys.executable, "peers.ours", options={"place": str(tmp_path / "ours.db")})
    assert one.answer() == {"ready": True}
    assert one.ask("open")["settings"]["journal_mode"] == "wal"
    assert len(one.ask("turns", count=3, is_ready=False)["seconds"]) == 3
    assert one.ask("close") == {}
    one.tell("open")
    assert one.answer()["settings"]["synchronous"] == "full"
    assert list(one.ask("load")) == ["seconds"]
    one.end()
    one.end()
    assert not (tmp_path / "ours.db-wal").exists()


def test_the_last_answer_of_a_process_comes_when_it_is_told_that_nothing_else_will(tmp_path: Path) -> None:
    """A worker says that it is ready, and at its end which jobs it has begun."""
    options = {"url": f"sqlite:///{tmp_path / 'ours.db'}", "concurrency": 1, "sessions": 1}
    assert SideProcess(sys.executable, "dispatch.ours", "prepare", options=options).last_answer() == {}
    worker = SideProcess(sys.executable, "dispatch.ours", "work", options=options)
    assert worker.answer() == {"ready": True}
    assert worker.last_answer() == {"heard": {}}


def test_a_process_that_fails_is_named_with_its_last_words() -> None:
    """What it said before them is in the notes. One may also tell its error itself, and one may not be installed."""
    with pytest.raises(ProcessError, match=r"^dispatch.ours prepare ended with 1: KeyError: 'url'\n") as failed:
        SideProcess(sys.executable, "dispatch.ours", "prepare", options={}).last_answer()
    assert failed.value.__notes__[0].startswith("Traceback (most recent call last):\n")
    with pytest.raises(ProcessError, match=r"^KeyError: 'place'$"):
        SideProcess(sys.executable, "peers.ours", options={}).last_answer()
    with pytest.raises(ProcessError, match=r"^not installed: there is no environment of the peers$"):
        SideProcess("/nowhere/bin/python", "peers.ours", options={})


def test_the_peers_have_an_interpreter_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """In an environment at the root of the checkout, or where a variable says."""
    monkeypatch.delenv(PEERS, raising=False)
    assert peers_python() == str(ROOT / ".venv-peers" / "bin" / "python")
    assert (ROOT / "bench" / "peer_processes.py").exists()
    monkeypatch.setenv(PEERS, "/opt/peers/python")
    assert peers_python() == "/opt/peers/python"
