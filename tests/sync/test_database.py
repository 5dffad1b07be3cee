"""Laws of the loop behind the face: who may call it, how calls and iterators end, and what happens behind its end."""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import threading
from collections.abc import Callable
from itertools import islice

import pytest

from fastness import sync
from fastness.errors import HandleUnusableError
from tests.sync.conftest import Place, Running, in_time, run_script, until


def ours(db: sync.Database) -> list[str]:
    """The coroutines that run on the loop beside this call, but for those of the engine and of the loop itself."""

    async def names() -> list[str]:
        """Look."""
        others = [task.get_coro() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        found = [getattr(each, "__qualname__", "") for each in others]
        return [name for name in found if name.startswith(("Call.", "HeldTurn.", "Database.", "async_generator"))]

    return db.run(names())


def test_methods_of_the_database_give_what_the_async_ones_give(db: sync.Database) -> None:
    """Sending, describing, branching, forking, listing and deleting."""
    with db.turn("s") as turn:
        turn.append("first")
    with db.turn("s") as turn:
        turn.append("second")
    assert db.describe("s", labels=["blue"], priority=3).labels == ("blue",)
    db.switch("s", turn.messages[0].id)
    db.fork("s", "copy", at_revision=2)
    copy = db.read("copy")
    assert copy is not None
    assert [message.text for message in copy.messages] == ["first", "second"]
    assert [record.revision for record in db.history("s")] == [1, 2, 3]
    assert sorted(summary.meta.session_id for summary in db.sessions()) == ["copy", "s"]
    assert len(db.list(limit=1).sessions) == 1
    assert list(db.quarantine()) == []
    db.delete("s")
    db.delete("s")
    assert db.read("s") is None
    assert db.run(db.factory.check()).findings == ()


def test_a_watch_gives_commits_as_they_are_made_and_ends_when_it_is_left(db: sync.Database) -> None:
    """By ``break``, which drops it, as well as by ``close``; nothing of it stays behind on the loop."""
    with db.turn("s") as turn:
        turn.append("first")
    for record in db.watch("s", after_revision=0):
        assert record.revision == 1
        break
    watch = db.watch("s", after_revision=0)
    assert next(watch).revision == 1
    watching = Running(lambda: next(watch).revision)
    with db.turn("s") as turn:
        turn.append("second")
    assert watching.come() == 2
    watch.close()
    watch.close()
    assert list(watch) == []
    assert watch._source.ag_frame is None  # type: ignore[attr-defined]
    until(lambda: ours(db) == [])


def test_closing_an_iterator_ends_the_thread_that_waits_for_its_next_item(db: sync.Database) -> None:
    """As the end of a loop, without an error."""
    watch = db.watch("s")
    waiting = Running(lambda: list(watch))
    until(lambda: "Call._work" in ours(db))
    watch.close()
    assert waiting.come() == []


def test_an_iterator_can_be_left_by_its_block(db: sync.Database) -> None:
    """What was not taken is gone."""
    for number in range(3):
        with db.turn("s") as turn:
            turn.append(f"{number}")
    with db.history("s") as history:
        assert [record.revision for record in islice(history, 2)] == [1, 2]
    assert list(history) == []


def test_a_closed_database_refuses_and_may_be_closed_again(place: Place) -> None:
    """Also one that was never used."""
    with place.connect() as db:
        assert db.read("s") is None
        stream = db.history("s")
    assert "fastness.sync" not in {thread.name for thread in threading.enumerate()}
    db.close()
    with pytest.raises(HandleUnusableError):
        db.read("s")
    with pytest.raises(HandleUnusableError):
        next(stream)
    stream.close()
    unused = place.connect()
    unused.close()
    unused.close()
    with pytest.raises(HandleUnusableError), unused:
        pytest.fail("it is closed")


def test_closing_ends_what_other_threads_wait_for(place: Place) -> None:
    """A call raises that it was closed; a turn leaves nothing, and its lane is free."""
    db = place.connect()
    inside, closed = threading.Event(), threading.Event()

    def work() -> None:
        with db.turn("s") as turn:
            turn.append("half")
            inside.set()
            in_time(closed)
            turn.append("more")

    watching, working = Running(lambda: list(db.watch("other"))), Running(work)
    in_time(inside)
    until(lambda: "Call._work" in ours(db))
    closing = [Running(db.close) for _ in range(2)]
    for each in closing:
        each.come()
    closed.set()
    with pytest.raises(HandleUnusableError):
        watching.come()
    with pytest.raises(HandleUnusableError):
        working.come()
    if place.engine != "memory":
        with place.connect() as again, again.turn("s", wait_s=0) as turn:
            assert turn.messages == ()


def test_a_call_on_the_own_loop_s_thread_is_refused(place: Place) -> None:
    """It would wait for itself for ever; closing it there as well."""
    with place.connect() as db:

        async def call() -> None:
            """Call it here."""
            with pytest.raises(HandleUnusableError, match="own event loop"):
                db.read("s")
            with pytest.raises(HandleUnusableError, match="own event loop"):
                db.close()

        db.run(call())
        assert db.read("s") is None


async def test_a_thread_that_runs_a_loop_of_its_own_may_call_it(place: Place) -> None:
    """It stops that loop meanwhile, and no more."""
    with place.connect() as db:
        db.send("s", "hello")
        with db.turn("s") as turn:
            assert [message.text for message in turn.messages] == ["hello"]


def test_calls_run_in_the_context_of_who_makes_them(place: Place) -> None:
    """What a thread has set for its code holds for the call as well."""
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="nobody")

    async def who() -> str:
        """Say."""
        return name.get()

    def as_ann() -> str:
        name.set("ann")
        return place_db.run(who())

    with place.connect() as place_db:
        assert Running(as_ann).come() == "ann"
        assert place_db.run(who()) == "nobody"


class Slow:
    """A coroutine that waits until it is cancelled, and then takes its time to come to rest."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def wait(self) -> None:
        """Wait."""
        self.seen.append("began")
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)
            self.seen.append("at rest")


def interrupt_main(when: Callable[[], bool]) -> Running:
    """Press Ctrl-C once something holds."""

    def press() -> None:
        until(when)
        os.kill(os.getpid(), signal.SIGINT)

    return Running(press)


def test_ctrl_c_in_a_call_cancels_it_and_waits_until_it_is_at_rest(place: Place) -> None:
    """The database goes on working."""
    slow = Slow()
    with place.connect() as db:
        pressing = interrupt_main(lambda: slow.seen == ["began"])
        with pytest.raises(KeyboardInterrupt):
            db.run(slow.wait())
        assert slow.seen == ["began", "at rest"]
        pressing.come()
        assert db.read("s") is None


def test_ctrl_c_while_a_turn_waits_for_its_lane_leaves_nothing_behind(place: Place) -> None:
    """Neither a task nor a lane that nobody would give back."""
    inside, go_on = threading.Event(), threading.Event()
    with place.connect() as db:

        def hold() -> None:
            with db.turn("s"):
                inside.set()
                in_time(go_on)

        holding = Running(hold)
        in_time(inside)
        pressing = interrupt_main(lambda: "Call._work" in ours(db))
        with pytest.raises(KeyboardInterrupt), db.turn("s"):
            pytest.fail("the lane was held")
        pressing.come()
        go_on.set()
        holding.come()
        with db.turn("s", wait_s=0) as turn:
            assert turn.kind == "empty"


FORKING = """
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from fastness import sync
from fastness.errors import HandleUnusableError
db = sync.connect({url!r})
{before}
child = os.fork()
if child == 0:
    {child}
    db.close()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
db.send("s", "from the parent")
print(len(db.pending("s")[0]))
db.close()
"""


def test_a_forked_child_is_refused_what_its_parent_has_begun(place: Place) -> None:
    """It may close it, which touches nothing of the parent's."""
    child = "try: db.read('s'); os._exit(1)\n    except HandleUnusableError: pass"
    done = run_script(FORKING.format(url=place.url, before="db.read('s')", child=child))
    assert (done.stdout, done.stderr, done.returncode) == ("1\n", "", 0)


def test_what_was_not_used_before_a_fork_is_used_on_both_sides(place: Place) -> None:
    """As servers do that load the application and fork then."""
    done = run_script(FORKING.format(url=place.url, before="", child="db.send('s', 'from the child')"))
    assert (done.stdout, done.stderr, done.returncode) == ("1\n" if place.engine == "memory" else "2\n", "", 0)


def test_a_process_that_forgets_to_close_ends_all_the_same(place: Place) -> None:
    """Also with a turn begun, a watch and a thread that waits."""
    script = f"""
import threading
from fastness import sync
db = sync.connect({place.url!r})
db.send("s", "hello")
turn = db.turn("s").__enter__()
watch = db.watch("s")
threading.Thread(target=lambda: next(watch), daemon=True).start()
print(turn.messages[0].text)
"""
    done = run_script(script)
    assert (done.stdout, done.stderr, done.returncode) == ("hello\n", "", 0)
