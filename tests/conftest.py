"""Fixtures that several test files use.

QSESSION_TEST_LOOP=uvloop runs all tests on its event loop. QSESSION_TEST_WAYS=general turns off the
short ways of short statements: whatever they promise, the general way has to keep as well.
"""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import ways
from copy_databases import database
from engines import Make
from folders import ROOT
from sqlalchemy.ext.asyncio import AsyncEngine

from qsession import create_async_engine

# Programs that a test starts, in whatever folder, use this checkout.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])

if os.environ.get("QSESSION_TEST_LOOP") == "uvloop":
    with warnings.catch_warnings():  # Python 3.14 warns of policies, which uvloop is made of
        warnings.simplefilter("ignore", DeprecationWarning)
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())


@pytest.fixture
def short_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """The short ways are taken, however the suite is run: the test is one of them."""
    for (owner, name), function in ways.SHORT.items():
        monkeypatch.setattr(owner, name, function)


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    """Makes engines on one file, and disposes of them."""
    made: list[AsyncEngine] = []

    def make(query: str = "", by: Any = create_async_engine, **kw: Any) -> Any:
        driver = "aiosqlite" if by is create_async_engine else "qsession"
        made.append(by(f"sqlite+{driver}:///{tmp_path / 'a.db'}{query}", **kw))
        return made[-1]

    yield make
    for engine in made:
        await engine.dispose()


@pytest.fixture
async def new(tmp_path: Path) -> AsyncIterator[Any]:
    """Makes databases for copies, and drops them: ``await new("asyncpg")``."""
    async with AsyncExitStack() as stack:
        yield lambda kind: stack.enter_async_context(database(kind, tmp_path))
