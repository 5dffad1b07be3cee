"""A fleet: processes that are kept at their posts, and treated badly.

It starts one process for each post, and another one in its place when it was killed. What else ends before its work is
done is a failure and is told. It knows nothing of databases; who dies when is for its caller to say. Nobody outlives
the block: a member that calls ``end_with_parent`` ends with this process, however that ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self


class _Post:
    """One place in the fleet, and who stands there now."""

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str]) -> None:
        self.name = name
        self.command = command
        self.env = env
        self.process: asyncio.subprocess.Process | None = None
        self.was_killed = False
        self.was_dismissed = False
        self.is_stopped = False
        self.keeper: asyncio.Task[None] | None = None

    @property
    def is_alive(self) -> bool:
        """Whether somebody stands there, able to be treated badly."""
        return self.process is not None and self.process.returncode is None and not self.was_killed

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal, and tell whether anybody was there to get it."""
        if self.process is None or not self.is_alive:
            return False
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
            return True
        return False


class Fleet:
    """Processes by the names of their posts. Use it in ``async with``.

    ``started``, ``killed`` and ``stopped`` count what happened; ``failures`` names every process that ended by itself
    and not well.
    """

    def __init__(self) -> None:
        self.started = 0
        self.killed = 0
        self.stopped = 0
        self.failures: list[str] = []
        self._posts: dict[str, _Post] = {}
        self._pauses: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        keepers = [post.keeper for post in self._posts.values() if post.keeper is not None]
        for task in (*keepers, *self._pauses):
            task.cancel()
        await asyncio.gather(*keepers, *self._pauses, return_exceptions=True)

    def man(self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        """Have a command run under a name until it ends well; ``env`` is added to this process' environment."""
        post = _Post(name, command, {**os.environ, **(env or {})})
        self._posts[name] = post
        post.keeper = asyncio.create_task(self._keep(post), name=f"post {name}")

    async def _keep(self, post: _Post) -> None:
        while not post.was_dismissed and await self._was_killed(post):
            pass

    async def _was_killed(self, post: _Post) -> bool:
        """Have one process stand there until it ends, and tell whether it is to be replaced."""
        process = await asyncio.create_subprocess_exec(*post.command, stdin=asyncio.subprocess.PIPE, env=post.env)
        post.process, post.was_killed = process, False
        self.started += 1
        if post.was_dismissed:
            post.signal(signal.SIGTERM)
        try:
            status = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if post.was_killed and status == -signal.SIGKILL:
            return True
        # One that is dismissed before it can hear of it dies of the signal.
        if status and not (post.was_dismissed and status == -signal.SIGTERM):
            self.failures.append(f"{post.name} (process {process.pid}) ended by itself with status {status}")
        return False

    def alive(self, prefix: str = "") -> list[str]:
        """Name the posts where somebody is at work, those that begin with ``prefix``."""
        return [name for name, post in self._posts.items() if name.startswith(prefix) and post.is_alive]

    def unfinished(self, prefix: str = "") -> list[str]:
        """Name the posts whose work is not done, those that begin with ``prefix``, whoever stands there just now."""
        posts = [post for name, post in self._posts.items() if name.startswith(prefix)]
        return [post.name for post in posts if post.keeper is not None and not post.keeper.done()]

    def pid(self, name: str) -> int | None:
        """Give the process that is alive at a post, None where there is none."""
        post = self._posts[name]
        return post.process.pid if post.process is not None and post.is_alive else None

    def kill(self, name: str) -> bool:
        """Send SIGKILL. False: nobody was there."""
        post = self._posts[name]
        if not post.signal(signal.SIGKILL):
            return False
        post.was_killed = True
        self.killed += 1
        return True

    def stop(self, name: str, seconds: float) -> bool:
        """Send SIGSTOP, and SIGCONT after so many seconds. False: nobody was there, or stopped already."""
        post = self._posts[name]
        if post.is_stopped or not post.signal(signal.SIGSTOP):
            return False
        self.stopped += 1
        post.is_stopped = True
        task = asyncio.create_task(self._go_on(post, seconds))
        self._pauses.add(task)
        task.add_done_callback(self._pauses.discard)
        return True

    async def _go_on(self, post: _Post, seconds: float) -> None:
        process = post.process
        try:
            await asyncio.sleep(seconds)
        finally:
            post.is_stopped = False
            # Whoever was killed meanwhile has a successor, who was never stopped.
            if post.process is process:
                post.signal(signal.SIGCONT)

    async def finished(self, prefix: str) -> None:
        """Wait until every post that begins with ``prefix`` has done its work, or has failed."""
        keepers = [post.keeper for name, post in self._posts.items() if name.startswith(prefix)]
        await asyncio.gather(*(keeper for keeper in keepers if keeper is not None))

    async def dismiss(self, prefix: str = "") -> None:
        """Send SIGTERM to every post that begins with ``prefix``, and wait for them to end."""
        if self._pauses:
            await asyncio.wait(self._pauses)
        for name, post in self._posts.items():
            if name.startswith(prefix):
                post.was_dismissed = True
                post.signal(signal.SIGTERM)
        await self.finished(prefix)


def end_with_parent() -> None:
    """Have this process end when the one that keeps its fleet does: then its standard input comes to an end."""

    def watch() -> None:
        """Wait for it."""
        # Not through sys.stdin, whose lock this thread would hold when the interpreter ends.
        while os.read(0, 4096):
            pass
        os._exit(1)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()
