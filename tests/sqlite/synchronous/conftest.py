"""Synchronous engines on one file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from qsession import create_engine

MakeSync = Callable[..., Engine]


@pytest.fixture
def made(tmp_path: Path) -> Iterator[MakeSync]:
    """Makes synchronous engines on one file, and disposes of them."""
    engines: list[Engine] = []

    def make(query: str = "", by: Any = create_engine, **kw: Any) -> Engine:
        engines.append(by(f"sqlite+qsession:///{tmp_path}/a.db{query}", **kw))
        return engines[-1]

    yield make
    for engine in engines:
        engine.dispose()


@pytest.fixture
def engine(made: MakeSync) -> Engine:
    """One with a table of one counter, at 0, and an empty one."""
    engine = made()
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE counters (id INTEGER PRIMARY KEY, value INTEGER)"))
        connection.execute(text("CREATE TABLE notes (body TEXT)"))
        connection.execute(text("INSERT INTO counters VALUES (1, 0)"))
    return engine
