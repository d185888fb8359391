"""The file and the engine of a storm, and the look at the file afterwards."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession
from tables import Storm

from qsession import create_async_engine
from qsession.session.maker import SessionMaker

SCHEMA = """
    CREATE TABLE counters (id INTEGER PRIMARY KEY, value INTEGER NOT NULL);
    CREATE TABLE events (id INTEGER PRIMARY KEY, name VARCHAR NOT NULL);
    INSERT INTO counters VALUES (1, 0), (2, 0);
"""


@pytest.fixture(params=["plain", "qsession"])
async def storm(
    tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Callable[..., Storm]]:
    """Makes a storm on a cold engine. In the end nothing is held, and others can write at once."""
    path = tmp_path / "app.db"
    outside = sqlite3.connect(path)
    outside.executescript(SCHEMA)
    outside.close()
    storms = []

    def make(**settings: Any) -> Storm:
        engine = create_async_engine(f"sqlite+aiosqlite:///{path}", **settings)
        maker = SessionMaker(bind=engine)
        if request.param == "qsession":
            sessions = (maker, partial(maker, access="auto"), maker.reader)
        else:
            plain = partial(AsyncSession, engine)
            reading = engine.execution_options(qsession_access="read")
            sessions = (plain, plain, partial(AsyncSession, reading))
        storms.append(Storm(path, engine, maker, *sessions))
        return storms[-1]

    yield make
    for each in storms:
        await each.over()
        assert each.engine.stats().waiting == 0
        outside = sqlite3.connect(path, timeout=0.2, isolation_level=None)
        outside.execute("BEGIN IMMEDIATE")
        outside.close()
        await each.engine.dispose()
