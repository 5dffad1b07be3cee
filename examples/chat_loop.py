"""A chat in the terminal that remembers: end it, start it again, and it goes on where it was.

    python examples/chat_loop.py [FILE.db]

    /edit TEXT     say TEXT in the place of what you said last
    /regenerate    have the last answer made anew
    /history       show the commits of this session
    /quit          end it, as Ctrl-D does

It shows turns, branches and the agent's own state, and the face of the library for code that does not await. The model
is a script that gives its lines in order, whatever you say. Lines may also come through a pipe:

    printf 'Hello.\n/regenerate\n' | python examples/chat_loop.py
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import fastness.sync
from fastness import Message, TokenUsage

SESSION = "chat"
SCRIPT = (
    "Good to see you. What is on your mind?",
    "Go on, I am listening.",
    "Why do you think so?",
    "And what happened then?",
)


def call_model(messages: Sequence[Message], line: int) -> tuple[str, TokenUsage]:
    """Answer a conversation with a line of the script; a word counts as a token."""
    text = SCRIPT[line % len(SCRIPT)]
    read = sum(len(message.text.split()) for message in messages)
    return text, TokenUsage(input_tokens=read, output_tokens=len(text.split()))


def answer(db: fastness.sync.Database) -> str:
    """Run one turn: it takes what waits, and one commit writes the answer, its usage and the state.

    Where nothing waits, it does nothing, and so nothing is written.
    """
    with db.turn(SESSION) as turn:
        if turn.kind == "empty":
            return ""
        line = int(turn.state or b"0")
        text, usage = call_model(turn.messages, line)
        turn.append(text, usage=usage, model="script-1")
        turn.state = b"%d" % (line + 1)
    return text


def resume(db: fastness.sync.Database) -> None:
    """Answer what an earlier run was ended before, and show the conversation up to now."""
    answer(db)
    for message in messages(db):
        print(f"{'you' if message.role == 'user' else 'bot'}: {message.text}")


def messages(db: fastness.sync.Database) -> tuple[Message, ...]:
    """Give the conversation on the branch that the session stands on."""
    view = db.read(SESSION)
    return view.messages if view else ()


def edit(db: fastness.sync.Database, text: str) -> str:
    """Say something else: a new branch from before what the user said last. The old one is kept."""
    said = [message for message in messages(db) if message.role == "user"]
    if not said or not text:
        return "(there is nothing to edit)" if text else "(write /edit and what you meant to say)"
    db.edit(SESSION, said[-1].id, text)
    return answer(db)


def regenerate(db: fastness.sync.Database) -> str:
    """Answer once more: a new branch from before the last answer."""
    if not messages(db):
        return "(there is no answer yet)"
    db.regenerate(SESSION)
    return answer(db)


def history(db: fastness.sync.Database) -> None:
    """Show the commits: each answer is one, and so is each step onto another branch."""
    for commit in db.history(SESSION):
        used = sum((entry.usage for entry in commit.usage), TokenUsage())
        print(f"revision {commit.revision}: {used.input_tokens} tokens in, {used.output_tokens} out")


def lines() -> Iterator[str]:
    """Give what the user types, or what comes through a pipe."""
    while True:
        try:
            line = input("you: " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if line == "/quit":
            return
        if line:
            yield line


def main() -> None:
    """Talk until the user has had enough."""
    path = sys.argv[1] if len(sys.argv) > 1 else "chat.db"
    with fastness.sync.connect(f"sqlite:///{path}") as db:
        resume(db)
        for line in lines():
            command, _, rest = line.partition(" ")
            match command:
                case "/edit":
                    print("bot:", edit(db, rest.strip()))
                case "/regenerate":
                    print("bot:", regenerate(db))
                case "/history":
                    history(db)
                case _:
                    db.send(SESSION, line)
                    print("bot:", answer(db))


if __name__ == "__main__":
    main()
