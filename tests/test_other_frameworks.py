"""Without asyncio: the message says what is missing. Trio runs coroutines as these tests do."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from qsession import create_async_engine, create_pool, observe
from qsession.session.maker import SessionMaker

SELECT = text("SELECT 1")


async def by_connection(url: str) -> None:
    async with create_async_engine(url).connect() as connection:
        await connection.execute(SELECT)


async def by_session(url: str) -> None:
    maker = SessionMaker()
    maker.configure(url)
    async with maker() as s:
        await s.execute(SELECT)


async def by_pool(url: str) -> None:
    await create_pool(url).execute("SELECT 1")


async def by_observation(url: str) -> None:
    await anext(observe(SELECT, engine=create_async_engine(url)))


async def by_disposal(url: str) -> None:
    await create_async_engine(url).dispose()


ON_SERVERS = ["postgresql+asyncpg://127.0.0.1:1/x", "mysql+asyncmy://127.0.0.1:1/x"]
WAYS = [by_connection, by_session, by_pool, by_observation, by_disposal]


@pytest.mark.parametrize(
    ("url", "way"),
    [("sqlite+aiosqlite:///{}/a.db", way) for way in WAYS]
    + [(url, way) for url in ON_SERVERS for way in WAYS[:3]],
)
def test_no_loop_of_asyncio(
    url: str, way: Callable[[str], Coroutine[Any, Any, None]], tmp_path: Path
) -> None:
    """At the first step of each way in, and no coroutine is forgotten."""
    with pytest.raises(RuntimeError, match="does not work with Trio"):
        way(url.format(tmp_path)).send(None)
