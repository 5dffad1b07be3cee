"""Laws of a turn that failed: once its code has ended, nothing cuts off what is done about it."""

from __future__ import annotations

import asyncio

import pytest

import fastness
from fastness.liveness import mint_owner
from fastness.model import InterruptRequest, TurnBegun
from fastness.runtime.turn import Turn


async def test_an_interruption_that_comes_too_late_does_not_cut_off_the_giving_back() -> None:
    """The turn's own error is what is told, and what it took is given back in whole."""
    given_back: list[str] = []
    async with fastness.connect("memory:") as db:
        await db.send("s", "hello")
        begun = await db.factory.dispatch.begin_turn("s", mint_owner(), 30_000)
        assert isinstance(begun, TurnBegun)

        async def give_back(turn: Turn, error: BaseException) -> None:
            """Be asked to end in the middle of it."""
            db.runner.lanes["s"].request_interrupt(InterruptRequest("too late"))
            await asyncio.sleep(0.01)
            given_back.append(type(error).__name__)

        async def run() -> None:
            """Run a turn that fails."""
            now = asyncio.get_running_loop().time()
            async with db.runner.turn(begun, now, on_failure=give_back):
                raise RuntimeError("the model is out of order")

        with pytest.raises(RuntimeError, match="out of order"):
            await run()
    assert given_back == ["RuntimeError"]
