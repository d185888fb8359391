"""What the tests of observations have in common: tables, and what an observer has seen."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any

from cancelling import PATIENCE, assert_free, connection_threads, eventually
from sqlalchemy import ForeignKey, insert
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from qsession import Observation, create_async_engine
from qsession.session.maker import SessionMaker

NEVER = 1_000.0
"""Seconds between two looks: nothing is found by a look."""


class Base(DeclarativeBase):
    """The tables of these tests."""


class Parent(Base):
    """Has children."""

    __tablename__ = "parents"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(default="")
    children: Mapped[list[Child]] = relationship(back_populates="parent", order_by="Child.id")


class Child(Base):
    """Has a parent."""

    __tablename__ = "children"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(default="")
    parent_id: Mapped[int | None] = mapped_column(ForeignKey(Parent.id))
    parent: Mapped[Parent | None] = relationship(back_populates="children")


class Other(Base):
    """Has nothing to do with them."""

    __tablename__ = "others"
    id: Mapped[int] = mapped_column(primary_key=True)


class Ground:
    """A maker on a file with tables, one of whose observers is looked at."""

    def __init__(self, path: Path, **kw: Any) -> None:
        self.path = path
        self.engine = create_async_engine(f"sqlite+aiosqlite:///{path}", **kw)
        self.maker = SessionMaker(bind=self.engine)

    @classmethod
    async def ready(cls, path: Path, **kw: Any) -> Ground:
        """One whose tables are there."""
        ground = cls(path, **kw)
        async with ground.engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        return ground

    async def add(self, *objects: object) -> None:
        """Commit objects."""
        async with self.maker.begin() as s:
            s.add_all(objects)

    async def write(self, statement: Any, **parameters: Any) -> None:
        """Commit a statement."""
        async with self.engine.begin() as connection:
            await connection.execute(statement, parameters)

    def outside(self, *statements: str) -> None:
        """Commit on a connection of another program."""
        with closing(sqlite3.connect(self.path, isolation_level=None)) as raw:
            for sql in statements:
                raw.execute(sql)

    @property
    def commits(self) -> Any:
        return self.engine.pool.write_queue.commits

    async def settled(self) -> None:
        """No connection of the pool is out, and nobody observes the file."""
        commits = self.commits

        def is_left() -> bool:
            commits.look_soon()
            return not commits.observed

        await eventually(is_left)
        await eventually(lambda: self.engine.stats().in_use == 0)
        assert_free(self.path)

    async def close(self) -> None:
        """The file is free, and all connections and threads end."""
        await self.settled()
        threads = connection_threads()
        await self.engine.dispose()
        await eventually(lambda: not any(each.is_alive() for each in threads))


async def soon(step: Coroutine[Any, Any, Any]) -> Any:
    """The result of a step that must not take long."""
    return await asyncio.wait_for(step, PATIENCE)


async def nothing(rows: Observation[Any]) -> asyncio.Task[Any]:
    """A task that waits for the next result, which does not come by itself."""
    waiting = asyncio.ensure_future(rows.__anext__())
    await waits(rows, waiting)
    return waiting


async def waits(rows: Observation[Any], waiting: asyncio.Task[Any]) -> None:
    """Return when the task of an observation waits for a commit."""
    subscription = rows._subscription
    assert subscription is not None
    await eventually(lambda: waiting.done() or not subscription._waiter.is_over)
    assert not waiting.done(), waiting


ADD_PARENT = insert(Parent).values(name="x")
