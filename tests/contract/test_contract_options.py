"""How a session's mode reaches its connection, beside the options of the engine."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from contract_tables import Counter, Database, Note, told
from sqlalchemy import event, text

from qsession import QSession, QueuedAsyncEngine
from qsession.session.maker import SessionMaker


@pytest.fixture
def seen(engine: QueuedAsyncEngine) -> Iterator[list[Any]]:
    """The execution options of each statement that the engine has run."""
    found: list[Any] = []

    def note(connection: Any, *_: Any) -> None:
        found.append(dict(connection.get_execution_options()))

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    yield found
    event.remove(engine.sync_engine, "before_cursor_execute", note)


async def test_settings_of_the_engine_made_later_reach_the_sessions(
    maker: SessionMaker, seen: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Its options and its log are those of the engine at the time, not when the mode was new."""
    engine = maker.engine
    async with maker() as s:
        await s.execute(text("SELECT 1"))
    engine.sync_engine.update_execution_options(tag=5)
    engine.sync_engine.echo = True
    with caplog.at_level(logging.INFO, "sqlalchemy.engine"):
        async with maker() as s:
            await s.execute(text("SELECT 'later'"))
    engine.sync_engine.echo = False
    assert "SELECT 'later'" in caplog.text
    assert seen[-1] == {**seen[0], "tag": 5}


async def test_every_first_use_has_the_mode(maker: SessionMaker, seen: list[Any]) -> None:
    """Whether a connection is first asked for by a flush, a savepoint, a query or by itself."""
    async with maker(priority=3) as s:
        s.add(Note(body="flushed"))
        await s.flush()
        await s.rollback()
        async with s.begin_nested():
            await s.get(Counter, 1)
        await s.rollback()
        await s.get(Counter, 1)
        await s.rollback()
        await (await s.connection(execution_options={"tag": 5})).execute(text("SELECT 1"))
    assert {options["qsession_priority"] for options in seen} == {3}
    assert [options for options in seen if "tag" in options] == [seen[-1]]


@pytest.mark.servers
async def test_a_savepoint_as_the_first_use_is_in_a_transaction_of_the_mode(
    maker: SessionMaker, database: Database
) -> None:
    """The level is told before the transaction begins, after which it could not be."""
    async with maker() as s:
        async with s.begin_nested():
            await s.get(Counter, 1)
            assert await told(s, database) == ("SERIALIZABLE", False)


@pytest.mark.servers
async def test_an_isolation_level_of_the_engine_stays(
    engine: QueuedAsyncEngine, database: Database
) -> None:
    """What was asked for in SQLAlchemy's terms is not overruled by the default of a session."""
    own = engine.execution_options(isolation_level="REPEATABLE READ")
    async with QSession(own) as s:
        await s.get(Counter, 1)
        assert (await told(s, database))[0] == "REPEATABLE READ"


async def test_the_pool_logs_below_sqlalchemy(
    engine: QueuedAsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """A level that is set on sqlalchemy.pool reaches the pool of ours."""
    with caplog.at_level(logging.INFO, "sqlalchemy.pool"):
        await engine.dispose()
    assert {each.name for each in caplog.records} == {
        f"sqlalchemy.pool.impl.{type(engine.pool).__name__}"
    }
