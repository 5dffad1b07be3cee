"""The environments of a database: ``ProcessExecutionEnvStore`` on any engine (law E1).

As thin as the other stores: it checks what comes from outside and hands a program to the engine.
"""

from __future__ import annotations

import asyncio

from fastness.decide import limits
from fastness.decide.packing import packed
from fastness.engines.engine import Engine
from fastness.engines.sqlite import SqliteEngine
from fastness.errors import InvalidInputError
from fastness.model import DurabilityTier, process_execution_env_ref
from fastness.model.base import sha256_hex
from fastness.ops import environments


class EngineProcessExecutionEnvStore:
    """Environments beside the sessions of a database; ``factory.process_execution_envs`` gives it.

    An environment is a JSON object, named by its canonical hash (``process_execution_env_ref``). It is never changed
    and never deleted, and collections keep it.
    """

    def __init__(self, engine: Engine, *, budget_bytes: int = limits.DEFAULT_COMMIT_BUDGET_BYTES) -> None:
        self.durability_tier: DurabilityTier = engine.durability_tier
        self._engine = engine
        self._budget_bytes = budget_bytes

    async def put_process_execution_env(self, ref: str, data: bytes) -> None:
        """Keep an environment under its name; the same one again, in whatever layout, changes nothing.

        Raises ``InvalidInputError`` for what is no JSON object, or has another canonical hash than ``ref``.
        """
        limits.check_id("ref", ref)
        limits.check_type("environment", data, bytes)
        limits.check_budget(len(data), self._budget_bytes)
        # A large one takes a while, in which the event loop has other things to do.
        found, blob, body = await asyncio.to_thread(_prepared, data)
        if found != ref:
            raise InvalidInputError("ref", f"must be the environment's canonical hash, {found}, and is {ref!r}")
        await self._engine.write(lambda: environments.put(ref, blob, body))

    async def get_process_execution_env(self, ref: str) -> bytes | None:
        """Give an environment byte for byte as it was put first; None for an unknown name."""
        limits.check_id("ref", ref)
        return await self._engine.read(lambda: environments.get(ref))


def _prepared(data: bytes) -> tuple[str, str, bytes]:
    return process_execution_env_ref(data), sha256_hex(data), packed(data)


class InMemoryProcessExecutionEnvStore(EngineProcessExecutionEnvStore):
    """Environments in a private in-memory database, gone with the process."""

    def __init__(self) -> None:
        super().__init__(SqliteEngine(None))

    async def close(self) -> None:
        """Let go of the database and all that is in it."""
        await self._engine.close()
