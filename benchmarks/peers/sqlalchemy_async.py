"""SQLAlchemy under asyncio: the stock engine, the stock engine with the recipe, and qsession."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from sqlalchemy import event, insert, select, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from qsession import create_async_engine as queued_engine
from qsession.session.maker import SessionMaker

from .model import Item, item, page_of
from .peer import NAME, TaskPeer, Way, row


def stock(url: str) -> AsyncEngine:
    """The engine as it comes: rollback journal, deferred BEGIN, a busy timeout of 5 s."""
    return create_async_engine(url)


def recipe(url: str) -> AsyncEngine:
    """The engine with SQLAlchemy's documented events and SQLite's usual advice.

    A transaction cannot know when it begins whether it will write, so all are IMMEDIATE.
    """
    engine = create_async_engine(url)

    @event.listens_for(engine.sync_engine, "connect")
    def connect(connection: Any, _: object) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA busy_timeout=30000")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def ours(url: str) -> AsyncEngine:
    """The engine of qsession, with its defaults."""
    return queued_engine(url)


class EnginePeer(TaskPeer):
    """What has an engine."""

    make: ClassVar[Callable[[str], AsyncEngine]]

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self.engine = type(self).make(f"sqlite+aiosqlite:///{file}")

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        await self.engine.dispose()


class OrmPeer(EnginePeer):
    """An `AsyncSession` for each operation."""

    way: ClassVar[Way] = "orm"

    def session(self) -> AsyncSession:
        return AsyncSession(self.engine)

    def reader(self) -> AsyncSession:
        return self.session()

    async def get(self, i: int) -> str:
        async with self.reader() as session:
            return (await session.get_one(Item, row(i))).name

    async def list(self, i: int) -> int:
        async with self.reader() as session:
            return len((await session.scalars(page_of(Item, i))).all())

    async def insert(self, i: int) -> None:
        async with self.session() as session:
            session.add(Item(n=0, name=NAME))
            await session.commit()

    async def change(self, i: int) -> None:
        async with self.session() as session:
            (await session.get_one(Item, row(i))).n += 1
            await session.commit()


class CorePeer(EnginePeer):
    """An ``engine.begin()`` for each operation, and statements without the ORM."""

    way: ClassVar[Way] = "core"

    async def get(self, i: int) -> str:
        async with self.engine.begin() as connection:
            found = await connection.execute(select(item).where(item.c.id == row(i)))
            return str(found.one().name)

    async def list(self, i: int) -> int:
        async with self.engine.begin() as connection:
            return len((await connection.execute(page_of(item, i))).all())

    async def insert(self, i: int) -> None:
        async with self.engine.begin() as connection:
            await connection.execute(insert(item).values(n=0, name=NAME))

    async def change(self, i: int) -> None:
        async with self.engine.begin() as connection:
            found = await connection.execute(select(item.c.n).where(item.c.id == row(i)))
            await connection.execute(
                update(item).where(item.c.id == row(i)).values(n=found.scalar_one() + 1)
            )


class StockOrm(OrmPeer):
    name = "stock"
    wal = False
    make = stock


class StockCore(CorePeer):
    name = "stock"
    wal = False
    make = stock


class RecipeOrm(OrmPeer):
    name = "stock, recipe"
    make = recipe


class RecipeCore(CorePeer):
    name = "stock, recipe"
    make = recipe


class OursOrm(OrmPeer):
    name = "qsession, AsyncSession(engine)"
    wal = False
    make = ours


class OursCore(CorePeer):
    name = "qsession, engine.begin()"
    wal = False
    make = ours


class OursSession(OrmPeer):
    """`qsession()` for what writes and `qsession.reader()` for what reads."""

    name = "qsession()"
    wal = False
    make = ours

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self.maker = SessionMaker(bind=self.engine)

    def session(self) -> AsyncSession:
        return self.maker()

    def reader(self) -> AsyncSession:
        return self.maker.reader()
