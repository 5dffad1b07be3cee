"""fastness for code that does not await: the names of ``fastness``, over the same code.

    with fastness.sync.connect("sqlite:///agents.db") as db:
        db.send("chat-42", "Where is my order?", key="msg-7")
        with db.turn("chat-42") as turn:
            turn.append(answer, usage=usage)

A database runs one event loop on a thread of its own, and every call waits for a coroutine there. It holds no rule of
its own: what a method does stands at the method of that name in the async face.
"""

from __future__ import annotations

from fastness.runtime.worker import Answer
from fastness.sync.database import Database, connect
from fastness.sync.face import Stream
from fastness.sync.turn import Turn
from fastness.sync.worker import Handler, Worker

__all__ = ["Answer", "Database", "Handler", "Stream", "Turn", "Worker", "connect"]
