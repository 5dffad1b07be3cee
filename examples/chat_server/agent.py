"""What the workers of the chat run: ``fastness worker agent:handler``. The model is a script, and takes its time.

It shows a handler that hears what is said while it answers: each message that was sent to the running turn is answered
in the same turn, and all of it lands as one commit.
"""

from __future__ import annotations

import asyncio
import logging

from fastness import TokenUsage, Turn

SCRIPT = {
    "Hello.": "Hello, how can I help?",
    "Count to forty.": " ".join(map(str, range(1, 41))),
    "Count to a million.": " ".join(map(str, range(1, 1_000_001))),
}
WORD_TAKES_S = 0.05

log = logging.getLogger("agent")


async def handler(turn: Turn) -> None:
    """Answer what was said, and go on until nobody has said anything more."""
    async for said in turn.checkpoints():
        for message in said:
            log.info("answering, attempt %d", turn.attempts)
            text = await call_model(message.text)
            usage = TokenUsage(input_tokens=len(message.text.split()), output_tokens=len(text.split()))
            turn.append(text, usage=usage, model="script-1")


async def call_model(question: str) -> str:
    """Answer one question, word by word."""
    words = SCRIPT.get(question, f"You said: {question}").split()
    for _ in words:
        await asyncio.sleep(WORD_TAKES_S)
    return " ".join(words)
