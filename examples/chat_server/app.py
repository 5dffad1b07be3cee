"""A chat back end: a web application that keeps no state of its own, and workers in processes of their own.

Run each in a terminal, in the directory of this file; as many workers as you like, and kill whichever you like:

    uvicorn app:app --timeout-graceful-shutdown 1
    fastness --database sqlite:///chat.db worker agent:handler
    fastness --database sqlite:///chat.db worker agent:handler

    curl localhost:8000/chats/42/events
    curl localhost:8000/chats/42/messages -H 'Idempotency-Key: m1' --json '{"text": "Hello."}'
    curl localhost:8000/chats/42/messages --json '{"text": "Count to a million."}'
    curl localhost:8000/chats/42/interrupt --json '{}'
    curl localhost:8000/chats/42

It shows messages that are durable before they are acknowledged and said once however often they are sent, a stream of
commits that goes on where it broke off, two tabs that talk at once, and stopping an answer that runs elsewhere.
``FASTNESS_DATABASE`` names another database for all of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

import fastness
from fastness import Database
from fastness.errors import InputSourceKeyConflictError, InvalidInputError


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Database]]:
    """Open the database for as long as the server runs."""
    async with fastness.connect(os.environ.get("FASTNESS_DATABASE", "sqlite:///chat.db")) as db:
        yield {"db": db}


async def say(request: Request) -> Response:
    """Take a message. It joins the answer that is being made, or starts the next one."""
    message = await request.json()
    row = await database(request).send(
        chat_of(request), message.get("text"), key=request.headers.get("Idempotency-Key"), to="running_turn"
    )
    return JSONResponse({"id": row.input_id}, 202)


async def transcript(request: Request) -> Response:
    """Give the conversation as the last commit left it."""
    view = await database(request).read(chat_of(request))
    messages = [{"role": each.role, "text": each.text} for each in view.messages] if view else []
    return JSONResponse({"messages": messages})


async def events(request: Request) -> Response:
    """Tell of every commit as it is made, as server-sent events: from the first, or after the last one received."""
    after = int(request.headers.get("Last-Event-ID", "0"))

    async def stream() -> AsyncIterator[str]:
        """Write an event for each commit."""
        async for commit in database(request).watch(chat_of(request), after_revision=after):
            yield f"id: {commit.revision}\ndata: {json.dumps({'turn': commit.turn_id})}\n\n"

    return StreamingResponse(stream(), media_type="text/event-stream")


async def interrupt(request: Request) -> Response:
    """Have the answer that is being made end, in whatever process."""
    lease = await database(request).interrupt(chat_of(request), reason="the user has stopped it")
    return JSONResponse({"interrupted": lease is not None})


async def refuse(_: Request, error: Exception) -> Response:
    """Say what is wrong with a message."""
    return JSONResponse({"error": str(error)}, 409 if isinstance(error, InputSourceKeyConflictError) else 400)


def database(request: Request) -> Database:
    """Give the database that the server has open."""
    db: Database = request.state.db
    return db


def chat_of(request: Request) -> str:
    """Give the name of the session that a path is about."""
    return f"chat-{request.path_params['chat']}"


app = Starlette(
    lifespan=lifespan,
    routes=[
        Route("/chats/{chat}", transcript),
        Route("/chats/{chat}/messages", say, methods=["POST"]),
        Route("/chats/{chat}/events", events),
        Route("/chats/{chat}/interrupt", interrupt, methods=["POST"]),
    ],
    exception_handlers={InputSourceKeyConflictError: refuse, InvalidInputError: refuse},
)
