"""What the peers on SQLAlchemy have in common."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from bench.peers.roles import POSTGRES_QUESTIONS, SQLITE_QUESTIONS, sqlite_settings, versions


def engine_url(place: str) -> str:
    """Name the asynchronous driver for SQLAlchemy."""
    if place.startswith("postgresql:"):
        return place.replace("postgresql:", "postgresql+asyncpg:", 1)
    return f"sqlite+aiosqlite:///{place}"


async def engine_settings(engine: AsyncEngine) -> dict[str, str]:
    """Read back what holds on a connection of an engine."""
    async with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            found = [(await connection.execute(text(f"show {name}"))).scalar_one() for name in POSTGRES_QUESTIONS]
            return dict(zip(POSTGRES_QUESTIONS, found, strict=True)) | versions("asyncpg")
        answers = [(await connection.execute(text(question))).one() for question in SQLITE_QUESTIONS]
        return sqlite_settings(*answers) | versions("aiosqlite")
