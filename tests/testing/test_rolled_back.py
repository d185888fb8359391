"""rolled_back: commits that are undone, and what it cannot show."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from qsession import QSession, QueuedAsyncEngine, create_async_engine, create_engine, qsession
from qsession.testing import assert_free, cancel_at_every_await, database_url, rolled_back, settled

INSERT = text("INSERT INTO t VALUES (1, NULL)")
COUNT = text("SELECT count(*) FROM t")
ORPHAN = text("INSERT INTO t VALUES (2, 99)")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file whose table has a deferred reference to itself."""
    with closing(sqlite3.connect(tmp_path / "a.db")) as connection:
        connection.execute(
            "CREATE TABLE t (id INTEGER PRIMARY KEY, "
            "parent REFERENCES t (id) DEFERRABLE INITIALLY DEFERRED)"
        )
    return tmp_path / "a.db"


@pytest.fixture
async def engine(path: Path):
    """An engine on the file."""
    made = create_async_engine(database_url(path))
    yield made
    await made.dispose()


def outside(path: Path) -> int:
    """The rows that others see."""
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute(COUNT.text).fetchone()[0])


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (None, AsyncSession),
        (QSession, QSession),
        (qsession, QSession),
        (async_sessionmaker(expire_on_commit=False), AsyncSession),
    ],
    ids=["by default", "class", "qsession", "maker"],
)
async def test_commits_are_undone(engine: QueuedAsyncEngine, path: Path, make, kind) -> None:
    """The code commits, rolls back and goes on; afterwards nothing has happened."""
    async with rolled_back(engine, make) if make else rolled_back(engine) as session:
        assert isinstance(session, kind)
        await session.execute(INSERT)
        await session.commit()
        await session.execute(text("DELETE FROM t"))
        await session.rollback()
        assert await session.scalar(COUNT) == 1
        assert outside(path) == 0
    await settled(engine)
    assert outside(path) == 0
    assert_free(path)


@pytest.mark.parametrize("make", [None, Session, sessionmaker(expire_on_commit=False)])
def test_the_same_without_asyncio(path: Path, make) -> None:
    """For an engine of `create_engine` it is a plain block."""
    engine = create_engine(database_url(path))
    with rolled_back(engine, make) if make else rolled_back(engine) as session:
        session.execute(INSERT)
        session.commit()
        session.execute(text("DELETE FROM t"))
        session.rollback()
        assert session.scalar(COUNT) == 1
    assert outside(path) == 0
    assert_free(path)
    engine.dispose()


async def test_wherever_it_is_left(path: Path) -> None:
    """Cancelled at any await, also those of its end, it has undone everything."""
    engine = create_async_engine(database_url(path), inline=False)

    async def run() -> None:
        async with rolled_back(engine) as session:
            await session.execute(INSERT)
            await session.commit()

    async def check() -> None:
        await settled(engine)
        assert_free(path)
        assert outside(path) == 0

    assert await cancel_at_every_await(run, check) > 3
    await engine.dispose()


async def test_a_real_commit_is_not_shown(engine: QueuedAsyncEngine, path: Path) -> None:
    """A deferred foreign key, which COMMIT would refuse, goes unnoticed here."""

    async def orphan(session: AsyncSession) -> None:
        await session.execute(text("PRAGMA foreign_keys=ON"))
        await session.execute(ORPHAN)
        await session.commit()

    async with rolled_back(engine) as session:
        await session.execute(ORPHAN)
        await session.commit()
    async with AsyncSession(engine) as session:
        with pytest.raises(IntegrityError):
            await orphan(session)
    assert outside(path) == 0
