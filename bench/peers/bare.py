"""The bare script as a contestant: it writes the rows of our turns, which the library has written elsewhere before.

Beside its own file, the library works in another one, which is not measured: it enqueues, claims and commits the turns
there, and what each wrote is recorded. The input that waits is copied over before the script's turns.
"""

from __future__ import annotations

import shutil
from collections import deque
from pathlib import Path

from bench.bare import BareScript, EncodedTurn, Recorder
from bench.peers.ours import Ours, OurSession
from bench.peers.roles import SQLITE_QUESTIONS, Options, main, sqlite_settings, versions

_PREPARED = ("lane", "turn_input")
"""The tables in which input that was claimed stands."""


class Bare:
    """A file of the script, and one of the library."""

    def __init__(self, options: Options) -> None:
        self.path = Path(options["place"])
        self.recorded = self.path.with_name(f"recorded_{self.path.name}")
        self.library = Ours({**options, "place": str(self.recorded)})
        self.script: BareScript | None = None

    async def open(self) -> None:
        """Open both; the script needs tables that the library has made."""
        await self.library.open()
        if self.path.exists():
            self.script = BareScript(self.path)

    async def close(self) -> None:
        """Close both."""
        await self.library.close()
        self.opened().close()

    async def begin(self) -> None:
        """Give the script a copy of what the library has made so far."""
        await self.library.close()
        shutil.copyfile(self.recorded, self.path)
        await self.open()

    def opened(self) -> BareScript:
        """Give the script, which has begun."""
        assert self.script is not None
        return self.script

    def session(self, name: str) -> BareSession:
        """Name the session; the script has one only."""
        return BareSession(self, name)

    async def settings(self) -> dict[str, str]:
        """Ask the script's connection."""
        db = self.opened().db
        return sqlite_settings(*[next(iter(db.execute(question))) for question in SQLITE_QUESTIONS]) | versions("apsw")


class BareSession:
    """The script's session, and its double in the library."""

    def __init__(self, owner: Bare, name: str) -> None:
        self._owner = owner
        self._name = name
        self._double = OurSession(owner.library, name)
        self._waiting: deque[EncodedTurn] = deque()
        self._recorder: Recorder | None = None
        self._made = 0

    async def attach(self) -> None:
        """Take hold of the double; the first time, also begin the script."""
        await self._double.attach()
        if self._recorder is None:
            await self._owner.begin()
            await self._double.attach()
            self._recorder = Recorder(self._owner.recorded)

    async def ahead(self, count: int) -> None:
        """Prepare the input of the next turns on both sides, and have the library's turns recorded."""
        await self._double.ahead(count)
        self._copy()
        assert self._recorder is not None
        for _ in range(count):
            claim_id = self._double.next_claim_id()
            await self._double.turn()
            self._made += 1
            self._waiting.append(self._recorder.turn(self._name, f"turn-{self._made}", claim_id))

    def _copy(self) -> None:
        db = self._owner.opened().db
        db.execute("attach ? as recorded", (str(self._owner.recorded),))
        db.execute("begin immediate")
        for table in _PREPARED:
            db.execute(f"insert or replace into main.{table} select * from recorded.{table}")
        db.execute("commit")
        db.execute("detach recorded")

    async def turn(self) -> None:
        """Write the rows of the next turn."""
        self._owner.opened().run(self._waiting.popleft())

    async def fill(self, count: int) -> bool:
        """Do nothing: the library does not either."""
        return False

    async def load(self) -> int:
        """Read the nodes, as they are stored."""
        db = self._owner.opened().db
        return len(list(db.execute("select * from node where sid = 1 order by seq")))


if __name__ == "__main__":
    main(Bare)
