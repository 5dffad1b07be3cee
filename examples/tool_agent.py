"""An agent that uses tools and files: it draws a chart, keeps it as an attachment, and reads it again when asked.

    python examples/tool_agent.py --crash [FILE.db]    # the process dies when a tool has run
    python examples/tool_agent.py [FILE.db]            # the turn begins anew, and comes to its end

It shows messages in the form of chat completions, tool calls with their results, attachments, and what a crash in the
middle of a turn leaves in the transcript: nothing, above all no tool call without its result. A tool that ran is run
again; that its file is kept once is because attachments are named by what is in them. The model is a script.
"""

from __future__ import annotations

import asyncio
import json
import os
import struct
import sys
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import fastness
from fastness import Database, Turn
from fastness.formats.openai_chat import from_message

SESSION = "sales"
QUESTIONS = ("Draw the sales of this week.", "How large is the picture?")
CRASH = "--crash" in sys.argv


def call_model(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Say what comes next, as a provider's API would."""
    last = messages[-1]
    if last["content"] == QUESTIONS[0]:
        return tool_call("call_1", "draw_chart", {"values": [3, 5, 2, 8]})
    if last["content"] == QUESTIONS[1]:
        drawn = next(json.loads(each["content"]) for each in messages if each["role"] == "tool")
        return tool_call("call_2", "measure", {"attachment": drawn["attachment"]})
    result = json.loads(last["content"])
    if last["tool_call_id"] == "call_1":
        file = {"type": "file", "file": {"file_id": result["attachment"]}}
        return {"role": "assistant", "content": [{"type": "text", "text": "Here it is."}, file]}
    return {"role": "assistant", "content": f"It is {result['width']} by {result['height']} pixels."}


def tool_call(call_id: str, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Have the model ask for a tool."""
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": call_id, "type": "function", "function": function}],
    }


async def draw_chart(turn: Turn, values: list[int]) -> dict[str, Any]:
    """Draw a bar for each value, and keep the picture with the session."""
    picture = await turn.attach(png(values), name="sales.png")
    print(f"(drew {picture.name}, {picture.media_type}, {picture.size} bytes)", flush=True)
    if CRASH:
        os._exit(1)
    return {"attachment": picture.attachment_id, "name": picture.name}


async def measure(turn: Turn, attachment: str) -> dict[str, Any]:
    """Read a picture that the session has, and give its size in pixels."""
    width, height = struct.unpack(">II", (await turn.attachment(attachment))[16:24])
    return {"width": width, "height": height}


TOOLS: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {"draw_chart": draw_chart, "measure": measure}


async def run(turn: Turn) -> None:
    """Call the model and the tools that it asks for, until it asks for none. All of it is one commit."""
    while True:
        reply = call_model([json.loads(from_message(message)) for message in turn.messages])
        turn.append(reply)
        if "tool_calls" not in reply:
            return
        for call in reply["tool_calls"]:
            tool = TOOLS[call["function"]["name"]]
            result = await tool(turn, **json.loads(call["function"]["arguments"]))
            turn.append({"role": "tool", "tool_call_id": call["id"], "content": json.dumps(result)})


def png(values: list[int]) -> bytes:
    """Draw bars, 8 pixels wide and as high as their values, black on white."""
    height = max(values)
    rows = [[0 if value >= height - y else 255 for value in values for _ in range(8)] for y in range(height)]
    pixels = b"".join(b"\0" + bytes(row) for row in rows)
    header = struct.pack(">IIBBBBB", len(rows[0]), height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(pixels, level=0)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


async def show(db: Database) -> None:
    """Print the transcript."""
    view = await db.read(SESSION)
    for message in view.messages if view else ():
        said = json.loads(from_message(message))
        calls = [call["function"]["name"] for call in said.get("tool_calls", ())]
        print(f"{message.role}: {message.text or ''.join(calls) or said['content']}")


async def main() -> None:
    """Ask both questions, each once in the life of the session, and answer what waits."""
    paths = [word for word in sys.argv[1:] if word != "--crash"]
    path = paths[0] if paths else "tools.db"
    async with fastness.connect(f"sqlite:///{path}", attachments=f"{path}.attachments") as db:
        for question in QUESTIONS:
            asked = await db.send(SESSION, question, key=question)
            if asked.state != "completed":
                async with db.turn(SESSION) as turn:
                    await run(turn)
        await show(db)


if __name__ == "__main__":
    asyncio.run(main())
