"""An application that has changed one import: create_async_engine."""

from __future__ import annotations

import asyncio

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Mapped, mapped_column
from typing_extensions import assert_type

from qsession import Base, QueuedAsyncEngine, Stats, create_async_engine, drain, stats


class User(Base):
    """A table."""

    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


engine = create_async_engine("sqlite+aiosqlite:///app.db", queue_timeout=5, echo=True)
make_session = async_sessionmaker(engine, expire_on_commit=False)


async def prepare() -> None:
    """Tables, and connections in advance."""
    async with engine.begin() as connection:
        assert_type(connection, AsyncConnection)
        await connection.run_sync(Base.metadata.create_all)
    await engine.fill()


async def rename(number: int, name: str) -> User:
    """A session of SQLAlchemy's own."""
    async with make_session() as session:
        assert_type(session, AsyncSession)
        user = await session.get_one(User, number)
        assert_type(user, User)
        user.name = name
        await session.commit()
    return user


async def names() -> list[str]:
    """On an engine that reads."""
    reading = engine.execution_options(qsession_access="read")
    assert_type(reading, QueuedAsyncEngine)
    async with AsyncSession(reading) as session:
        return list(await session.scalars(select(User.name)))


async def clear() -> None:
    """A connection, and the driver's."""
    async with engine.connect() as connection:
        await connection.execute(update(User).values(name="x"))
        await connection.commit()
        raw = await connection.get_raw_connection()
        print(raw.driver_connection)


async def finish() -> Stats:
    """What the queue did, and the end."""
    await engine.drain(timeout=10)
    await drain(engine)
    await engine.dispose()
    assert_type(engine.stats(), Stats)
    return stats(engine)


asyncio.run(prepare())

# Mistakes.
create_async_engine(7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
engine.stats().size = 7  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
