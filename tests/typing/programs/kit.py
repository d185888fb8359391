"""Tests of an application that use the kit and its fixtures."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, MetaData, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session
from typing_extensions import assert_type

from qsession import QSession, QueuedAsyncEngine, qsession
from qsession.session import SessionMaker
from qsession.testing import (
    Disk,
    HeldSync,
    OtherLoop,
    Program,
    When,
    assert_free,
    cancel_at_every_await,
    copy_database,
    create_database,
    database_url,
    foreign_writer,
    held_disk,
    rolled_back,
    settled,
    slow_disk,
)


@pytest.fixture(scope="session")
def qsession_metadata() -> MetaData:
    """The tables of the application."""
    return MetaData()


@pytest.fixture
async def session(qsession_engine: QueuedAsyncEngine) -> AsyncIterator[AsyncSession]:
    """A fixture of the user's own."""
    async with rolled_back(qsession_engine) as session:
        assert_type(session, AsyncSession)
        yield session


async def add(number: int) -> int:
    """What is tested."""
    async with qsession.begin() as s:
        await s.execute(text("SELECT 1"))
    return number


async def test_sessions(qsession_engine: QueuedAsyncEngine, qsession_maker: SessionMaker) -> None:
    """Of each kind."""
    async with rolled_back(qsession_engine, QSession) as one:
        assert_type(one, QSession)
    async with rolled_back(qsession_engine, qsession_maker) as two:
        assert_type(two, QSession)
    async with rolled_back(qsession_engine, async_sessionmaker(class_=AsyncSession)) as three:
        assert_type(three, AsyncSession)


def test_without_asyncio(qsession_sync_engine: Engine, qsession_path: Path) -> None:
    """Of a synchronous engine."""
    with rolled_back(qsession_sync_engine) as session:
        assert_type(session, Session)
    with foreign_writer(qsession_path, "DELETE FROM items") as other:
        assert_type(other, Program)
        other.finish()
    assert_free(qsession_path)


async def test_the_rest(qsession_engine: QueuedAsyncEngine, tmp_path: Path) -> None:
    """Each tool."""
    create_database(tmp_path / "a.db", MetaData())
    create_database("b.db", alembic="alembic.ini")
    copy_database("b.db", tmp_path / "c.db")
    assert_type(database_url("b.db", queue_timeout=5), str)
    with slow_disk(0.5, error=errno.EIO, path="b.db") as disk:
        assert_type(disk, Disk)
    with held_disk() as held:
        assert_type(await held.begun(), HeldSync)
    async with Program("held()", 1, "two") as program:
        program.let_go()
        assert_type(program.wait(), int)

    async def check() -> None:
        await settled(qsession_engine)

    assert_type(await cancel_at_every_await(lambda: add(1), check, when=When.TWICE), int)
    await cancel_at_every_await(lambda: add(1), lambda: assert_free("b.db"))
    with OtherLoop() as loop:
        assert_type(loop.run(add, 1), int)
        assert_type(await asyncio.wrap_future(loop.submit(add, number=1)), int)
        with loop.standing_still():
            await add(1)


async def mistakes(engine: QueuedAsyncEngine) -> None:
    """Each line is one."""
    with rolled_back(engine):  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues]
        pass
    with OtherLoop() as loop:
        loop.run(add, "1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await cancel_at_every_await(add(1), lambda: None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
