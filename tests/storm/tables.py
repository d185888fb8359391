"""The tables of the storms, and `Storm`: an engine on a file with one of the ways to a session."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from qsession import QueuedAsyncEngine
from qsession.session.maker import SessionMaker

NEVER = 3600.0
STUCK = 60.0
"""Seconds after which something is taken for stuck; no shorter time is asserted anywhere."""


class Base(DeclarativeBase):
    """The tables."""


class Counter(Base):
    """A row that everybody wants to change."""

    __tablename__ = "counters"
    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int]


class Event(Base):
    """A row that is only inserted."""

    __tablename__ = "events"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


READ = select(Counter.value).where(Counter.id == 1)


@dataclass
class Storm:
    """An engine on a file; ``session`` makes the kind of session that is being tested."""

    path: Path
    engine: QueuedAsyncEngine
    maker: SessionMaker
    session: Callable[[], AsyncSession]
    guessing: Callable[[], AsyncSession]
    """The same kind, with access ``auto``."""
    reader: Callable[[], AsyncSession]
    """The same kind, with access ``read``."""

    def query(self, sql: str) -> list[Any]:
        """What somebody sees who opens the file with `sqlite3`."""
        outside = sqlite3.connect(self.path)
        try:
            return outside.execute(sql).fetchall()
        finally:
            outside.close()

    def values(self) -> list[int]:
        """The two counters."""
        return [value for (value,) in self.query("SELECT value FROM counters ORDER BY id")]

    async def waiting(self, count: int) -> None:
        """Return when so many tasks wait in the queue."""

        async def look() -> None:
            while self.engine.stats().waiting != count:
                await asyncio.sleep(0.001)

        await asyncio.wait_for(look(), STUCK)

    async def over(self) -> None:
        """Return when nobody holds the ticket: what was broken off is undone in the background."""

        async def look() -> None:
            while self.engine.stats().holder is not None:
                await asyncio.sleep(0.001)

        await asyncio.wait_for(look(), STUCK)

    async def learn(self) -> None:
        """Let the prediction see that transactions which begin with READ write nothing."""
        for _ in range(16):
            await read(self.guessing)


async def read(session: Callable[[], AsyncSession]) -> int | None:
    """The first counter, in a transaction that only reads."""
    async with session() as reader:
        value = await reader.scalar(READ)
        await reader.commit()
        return value


async def add(session: AsyncSession, id_: int = 1) -> None:
    """Add 1 to a counter, as the ORM does: read the row, then write what was computed from it."""
    counter = await session.get_one(Counter, id_)
    counter.value += 1
    await session.flush()
