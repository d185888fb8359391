"""A connection that is lost: what the error says, above all when it was lost in COMMIT."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from contract_tables import Counter, Database, Note
from sqlalchemy import event, select, text, update
from sqlalchemy.exc import DBAPIError

from qsession import QueuedAsyncEngine
from qsession.session.maker import SessionMaker

pytestmark = pytest.mark.servers

SLOW_COMMIT = [
    """CREATE OR REPLACE FUNCTION sleep_long() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_sleep(600); RETURN NULL; END $$""",
    """CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON notes DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION sleep_long()""",
]
KILL = {
    "postgresql": (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    ),
    "mysql": "KILL {number}",
}


async def number_of(s: object, database: Database) -> int:
    """What the server calls the connection of a session."""
    function = "pg_backend_pid()" if "postgresql" in database.driver else "connection_id()"
    return int(await s.scalar(text(f"SELECT {function}")))  # type: ignore[attr-defined]


async def kill(engine: QueuedAsyncEngine, database: Database, number: int) -> None:
    """Have the server end the connection of somebody else."""
    async with database.outside.connect() as connection:
        await connection.execute(text(KILL[engine.dialect.name].format(number=number)))


async def test_lost_between_two_statements(maker: SessionMaker, database: Database) -> None:
    """The error says that the transaction is rolled back, and the next one finds a connection."""
    async with maker() as s:
        await s.execute(update(Counter).values(value=9))
        await kill(maker.engine, database, await number_of(s, database))
        with pytest.raises(
            DBAPIError, match="lost, and the server rolls back the transaction"
        ) as e:
            await s.execute(update(Counter).values(value=10))
        assert e.value.connection_invalidated
        await s.rollback()
    async with maker.begin() as s:
        await s.execute(update(Counter).values(value=Counter.value + 1))
    assert await database.values() == [1, 1]
    assert maker.engine.stats().in_use == 0


@pytest.mark.direct
async def test_lost_while_idle_in_the_pool(maker: SessionMaker, database: Database) -> None:
    """Whoever gets a connection that was ended gets the error, and the one after him a new one."""
    async with maker() as s:
        number = await number_of(s, database)
    await kill(maker.engine, database, number)
    with pytest.raises(DBAPIError, match="connection to the server was lost"):
        async with maker() as s:
            await s.get(Counter, 1)
    async with maker() as s:
        assert await s.get(Counter, 1) is not None
    assert maker.engine.stats().in_use == 0


async def test_pre_ping_finds_it_first(
    make: Callable[..., QueuedAsyncEngine], database: Database
) -> None:
    """With pool_pre_ping a connection that was ended while idle is replaced without an error."""
    engine = make(pool_pre_ping=True)
    maker = SessionMaker(bind=engine)
    async with maker() as s:
        number = await number_of(s, database)
    await kill(engine, database, number)
    async with maker() as s:
        assert await s.get(Counter, 1) is not None


@pytest.mark.only("postgresql")
async def test_lost_while_commit_runs(maker: SessionMaker, database: Database) -> None:
    """The error says that nobody knows whether the transaction was committed."""
    async with database.outside.begin() as connection:
        for statement in SLOW_COMMIT:
            await connection.exec_driver_sql(statement)
    committing = asyncio.Event()
    event.listen(maker.engine.sync_engine, "commit", lambda _: committing.set())

    async def write() -> None:
        async with maker.begin() as s:
            s.add(Note(body="x"))

    task = asyncio.create_task(write())
    await committing.wait()
    while not await database.others(in_transaction=True):
        await asyncio.sleep(0)
    running = text(
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COMMIT%' AND state = 'active'"
    )
    async with database.outside.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        while not await connection.scalar(running):
            await asyncio.sleep(0)
    await kill(maker.engine, database, 0)
    with pytest.raises(DBAPIError, match="lost during COMMIT, and it is not known"):
        await task
    async with maker() as s:
        assert (await s.scalars(select(Note))).all() == []
        await s.execute(text("DROP TRIGGER slow ON notes"))
        await s.commit()
