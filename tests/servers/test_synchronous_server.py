"""The synchronous engine on a server: SQLAlchemy's own, with our options and our errors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from server_databases import database_on
from sqlalchemy import Engine, text
from sqlalchemy.exc import ArgumentError

from qsession import ConflictError, ReadOnlyError, create_engine

pytestmark = pytest.mark.servers
READ = text("SELECT value FROM counters WHERE id = 1")
SET = text("UPDATE counters SET value = :value WHERE id = 1")


@pytest.fixture
def engine() -> Iterator[Engine]:
    """With a counter at 0."""
    with database_on("postgresql") as url:
        engine = create_engine(url.set(drivername="postgresql+psycopg"), queue_timeout=7)
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE counters (id INTEGER, value INTEGER)"))
            connection.execute(text("INSERT INTO counters VALUES (1, 0)"))
        yield engine
        engine.dispose()


def test_a_conflict_is_told_as_elsewhere(engine: Engine) -> None:
    """Two transactions read the same row and write it."""
    strict = engine.execution_options(isolation_level="SERIALIZABLE")
    with strict.connect() as first, strict.connect() as second:
        value = first.scalar(READ)
        assert second.scalar(READ) == value
        first.execute(SET, {"value": value + 1})
        first.commit()
        with pytest.raises(ConflictError):
            second.execute(SET, {"value": value + 1})
        with pytest.raises(ConflictError, match="already"):
            second.execute(READ)
        second.rollback()
        assert second.scalar(READ) == 1


def test_options_reach_the_server(engine: Engine) -> None:
    """Of a connection and of an engine; what has no meaning there is refused or left out."""
    with engine.connect() as connection, pytest.raises(ReadOnlyError):
        connection.execution_options(qsession_access="read").execute(SET, {"value": 1})
    readers = create_engine(engine.url, access="read", max_size=1)
    with readers.connect() as connection, pytest.raises(ReadOnlyError):
        connection.execute(SET, {"value": 1})
    assert readers.pool.size() == 1  # type: ignore[attr-defined]
    assert engine.pool.timeout() == 7  # type: ignore[attr-defined]
    readers.dispose()
    with pytest.raises(ArgumentError):
        create_engine(engine.url, access="sometimes")
