"""Engines that a framework has made from ``sqlite+qsession://``: what they offer."""

from __future__ import annotations

import asyncio
import typing
from collections.abc import AsyncIterator
from pathlib import Path
from unittest.mock import create_autospec

import pytest
import sqlalchemy.ext.asyncio
from sqlalchemy import text
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncEngine

import qsession
from qsession import EngineDraining, QueuedAsyncEngine, QueueTimeout
from qsession.session.maker import SessionMaker
from qsession.statistics import Stats


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    """SQLAlchemy's own function has made it."""
    engine = sqlalchemy.ext.asyncio.create_async_engine(f"sqlite+qsession:///{tmp_path}/a.db")
    assert type(engine) is AsyncEngine
    yield engine
    await engine.dispose()


async def test_its_numbers_are_at_hand(engine: AsyncEngine) -> None:
    """By the function, for type checkers, and as a method, as on the engine of our own."""
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE t (a)"))
    for stats in (qsession.stats(engine), qsession.stats(engine.sync_engine), engine.stats()):  # type: ignore[attr-defined]
        assert isinstance(stats, Stats)
        assert stats.commits == 1


@pytest.mark.parametrize("way", ["function", "method"])
async def test_it_can_be_drained(engine: AsyncEngine, way: str) -> None:
    """Who is at work is waited for; who comes later is refused."""

    async def drain(timeout: float | None = None) -> None:
        if way == "function":
            await qsession.drain(engine, timeout)
        else:
            await engine.drain(timeout)  # type: ignore[attr-defined]

    async with engine.connect() as connection:
        await connection.execute(text("CREATE TABLE t (a)"))
        with pytest.raises(QueueTimeout):
            await drain(0.001)
        draining = asyncio.create_task(drain())
        with pytest.raises(EngineDraining):
            async with engine.connect() as late:
                await late.execute(text("SELECT 1"))
        await connection.rollback()
    await draining


async def test_other_engines_stay_as_they_are() -> None:
    """They have no such attributes, and neither has the class; the functions say why not."""
    other = sqlalchemy.ext.asyncio.create_async_engine("sqlite+aiosqlite://")
    for name in ("stats", "drain"):
        assert not hasattr(other, name)
        assert not hasattr(AsyncEngine, name)
        with pytest.raises(AttributeError, match=f"'AsyncEngine' object has no attribute '{name}'"):
            getattr(other, name)
    create_autospec(AsyncEngine)
    with pytest.raises(InvalidRequestError, match="sqlite\\+aiosqlite has no write queue"):
        qsession.stats(other)
    with pytest.raises(InvalidRequestError, match="sqlite\\+aiosqlite has no write queue"):
        await qsession.drain(other)
    await other.dispose()


async def test_the_engine_of_a_maker_is_typed_and_has_them(engine: AsyncEngine) -> None:
    """Whoever has made the engine; it is one object, and has the pool of the one given."""
    getter = SessionMaker.engine.fget
    assert typing.get_type_hints(getter)["return"] is QueuedAsyncEngine
    maker = SessionMaker()
    maker.configure(bind=engine)
    assert maker.engine is maker.engine
    assert maker.engine.sync_engine is engine.sync_engine
    assert maker.engine.stats().commits == 0
