"""Transactions that collide: none loses an update, and what the database refuses runs again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from contract_tables import Counter, Database, Meeting, Note, told
from sqlalchemy import event, select, text, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession

from qsession import ConflictError, QSession, QueuedAsyncEngine
from qsession.session.maker import SessionMaker

Make = Callable[..., QueuedAsyncEngine]


async def add_one(s: QSession, number: int) -> None:
    """Read, then write what depends on what was read."""
    counter = await s.get_one(Counter, number)
    counter.value += 1


async def test_a_storm_of_increments_loses_nothing(maker: SessionMaker, database: Database) -> None:
    """Twenty tasks change one row ten times each by run(), and every change counts."""

    async def ten() -> None:
        for _ in range(10):
            await maker.run(add_one, 1, attempts=100)

    await asyncio.gather(*(ten() for _ in range(20)))
    assert await database.values() == [200, 0]
    assert maker.engine.stats().in_use == 0


async def test_a_write_after_a_read_that_met_another_one(
    maker: SessionMaker, database: Database
) -> None:
    """Two transactions have read the same row before either writes: one of them runs again."""
    meeting, attempts = Meeting(2), []

    async def meet(s: QSession) -> None:
        attempts.append(1)
        counter = await s.get_one(Counter, 1)
        await meeting.wait()
        counter.value += 1

    await asyncio.gather(maker.run(meet), maker.run(meet))
    assert await database.values() == [2, 0]
    assert len(attempts) > 2
    assert maker.engine.stats().conflicts == len(attempts) - 2


async def test_write_skew_is_refused(maker: SessionMaker, database: Database) -> None:
    """Two transactions that each read both rows and write one of them do not both succeed."""
    meeting = Meeting(2)

    async def take_the_place(s: QSession, mine: int) -> None:
        taken = await s.scalars(select(Counter).where(Counter.value > 0))
        if taken.first() is None:
            await meeting.wait()
            await s.execute(update(Counter).where(Counter.id == mine).values(value=1))

    await asyncio.gather(maker.run(take_the_place, 1), maker.run(take_the_place, 2))
    assert sorted(await database.values()) == [0, 1]


@pytest.mark.servers
async def test_a_conflict_is_raised_from_the_drivers_error(
    maker: SessionMaker, database: Database
) -> None:
    """The ConflictError names statement and code, and the driver's own error is its cause."""
    meeting = Meeting(2)

    async def meet() -> None:
        async with maker.begin() as s:
            counter = await s.get_one(Counter, 1)
            await meeting.wait()
            counter.value += 1

    results = await asyncio.gather(meet(), meet(), return_exceptions=True)
    (error,) = [each for each in results if each is not None]
    assert isinstance(error, ConflictError)
    assert isinstance(error, OperationalError)  # what retries of existing code look for
    assert isinstance(error.__cause__, maker.engine.dialect.loaded_dbapi.Error)
    assert "UPDATE counters SET value=" in str(error)
    assert ("40001" if "postgresql" in database.driver else "1213") in str(error)
    assert "run the transaction again" in str(error)
    assert await database.values() == [1, 0]


@pytest.mark.servers
@pytest.mark.only("postgresql")
async def test_a_conflict_at_commit(maker: SessionMaker, database: Database) -> None:
    """A conflict that only COMMIT reveals is a ConflictError of commit()."""
    async with maker() as one, maker() as two:
        for s, number in ((one, 1), (two, 2)):
            await s.scalars(select(Counter))
            await s.execute(update(Counter).where(Counter.id == number).values(value=1))
        await one.commit()
        with pytest.raises(ConflictError, match=r"COMMIT.*40001"):
            await two.commit()
        await two.rollback()
    assert await database.values() == [1, 0]
    assert maker.engine.stats().conflicts == 1


@pytest.mark.servers
@pytest.mark.parametrize("plain", [False, True], ids=["qsession", "plain"])
async def test_a_deadlock_is_a_conflict(
    maker: SessionMaker, database: Database, plain: bool
) -> None:
    """Two transactions that wait for each other: one gets ConflictError, the other goes on."""
    meeting = Meeting(2)

    async def both(first: int, second: int) -> None:
        session: Any = AsyncSession(maker.engine) if plain else maker()
        async with session as s, s.begin():
            for number in (first, second):
                await s.execute(
                    update(Counter).where(Counter.id == number).values(value=Counter.value + 1)
                )
                await meeting.wait()

    results = await asyncio.gather(both(1, 2), both(2, 1), return_exceptions=True)
    assert [type(each) for each in results if each is not None] == [ConflictError]
    assert await database.values() == [1, 1]


@pytest.mark.servers
@pytest.mark.parametrize("plain", [False, True], ids=["qsession", "plain"])
@pytest.mark.parametrize("then", ["a statement", "commit"])
async def test_nothing_is_done_after_a_conflict(
    maker: SessionMaker, database: Database, plain: bool, then: str
) -> None:
    """Who catches it and goes on is refused until it rolls back: half of it must not be written."""
    meeting = Meeting(2)
    refused = []

    async def both(first: int, second: int) -> None:
        session: Any = AsyncSession(maker.engine) if plain else maker()
        async with session as s:
            try:
                for number in (first, second):
                    await s.execute(
                        update(Counter).where(Counter.id == number).values(value=Counter.value + 1)
                    )
                    await meeting.wait()
            except ConflictError:
                with pytest.raises(ConflictError, match="already"):
                    if then == "a statement":
                        await s.execute(update(Counter).values(value=7))
                    else:
                        await s.commit()
                await s.rollback()
                refused.append(await s.scalar(select(Counter.id).where(Counter.id == 1)))
            else:
                await s.commit()

    await asyncio.gather(both(1, 2), both(2, 1))
    assert refused == [1]
    assert await database.values() == [1, 1]


@pytest.mark.servers
@pytest.mark.only("mysql")
async def test_a_savepoint_outlives_a_lock_that_is_not_given_up(
    make: Make, database: Database
) -> None:
    """Past innodb_lock_wait_timeout only the statement is undone: the savepoint is still there."""
    engine = make(connect_args={"init_command": "SET innodb_lock_wait_timeout = 1"})
    maker = SessionMaker(bind=engine)
    async with maker() as holder:
        await holder.execute(update(Counter).where(Counter.id == 1).values(value=1))
        async with maker() as s:
            await s.execute(update(Counter).where(Counter.id == 2).values(value=2))
            with pytest.raises(ConflictError, match="1205"):
                async with s.begin_nested():
                    await s.execute(update(Counter).where(Counter.id == 1).values(value=2))
            await s.commit()
        await holder.commit()
    assert await database.values() == [1, 2]


@pytest.mark.servers
@pytest.mark.only("mysql")
async def test_a_lock_that_is_not_given_up_is_a_conflict(make: Make, database: Database) -> None:
    """Past innodb_lock_wait_timeout the one that waits gets ConflictError (1205)."""
    engine = make(connect_args={"init_command": "SET innodb_lock_wait_timeout = 1"})
    maker = SessionMaker(bind=engine)
    async with maker() as holder:
        await holder.execute(update(Counter).where(Counter.id == 1).values(value=1))
        async with maker() as s:
            with pytest.raises(ConflictError, match="1205"):
                await s.execute(update(Counter).where(Counter.id == 1).values(value=2))
            await s.rollback()
        await holder.commit()
    assert await database.values() == [1, 0]


@pytest.mark.servers
@pytest.mark.only("mysql")
async def test_a_row_that_changed_after_the_snapshot_is_a_conflict(
    make: Make, database: Database
) -> None:
    """With MariaDB's snapshot isolation a stale write is ConflictError (1020) and loses nothing."""
    async with database.outside.connect() as connection:
        if await connection.scalar(text("SELECT @@version LIKE '%MariaDB%'")) != 1:
            pytest.skip("innodb_snapshot_isolation is MariaDB's")
    engine = make(connect_args={"init_command": "SET innodb_snapshot_isolation = ON"})
    maker = SessionMaker(bind=engine, isolation="REPEATABLE READ")
    async with maker() as s:
        assert (await s.get_one(Counter, 1)).value == 0
        await maker.run(add_one, 1)
        with pytest.raises(ConflictError, match="1020"):
            await s.execute(update(Counter).where(Counter.id == 1).values(value=7))
        await s.rollback()
    assert await database.values() == [1, 0]


LEVELS = [
    ("write", None, "SERIALIZABLE", False),
    ("auto", None, "SERIALIZABLE", False),
    ("write", "REPEATABLE READ", "REPEATABLE READ", False),
    ("write", "READ COMMITTED", "READ COMMITTED", False),
    ("read", "READ COMMITTED", "READ COMMITTED", True),
    ("read", None, None, True),
]


@pytest.mark.servers
@pytest.mark.parametrize(("access", "isolation", "level", "read_only"), LEVELS)
async def test_the_server_is_told_the_level(
    maker: SessionMaker,
    database: Database,
    access: Any,
    isolation: Any,
    level: Any,
    read_only: bool,
) -> None:
    """What the server knows of a transaction is what the session was made with."""
    postgresql = "postgresql" in database.driver
    if database.reading and access == "read":  # no replica offers more
        level = level or "REPEATABLE READ"
    level = level or ("SERIALIZABLE" if postgresql else "REPEATABLE READ")
    async with maker(access=access, isolation=isolation) as s:
        await s.get(Counter, 1)
        assert await told(s, database) == (level, read_only)


@pytest.mark.servers
async def test_plain_sessions_keep_the_level_of_the_server(
    maker: SessionMaker, database: Database
) -> None:
    """An AsyncSession of SQLAlchemy's own is as isolated as the server makes it by itself."""
    async with AsyncSession(maker.engine) as s:
        await s.get(Counter, 1)
        default = "READ COMMITTED" if "postgresql" in database.driver else "REPEATABLE READ"
        assert await told(s, database) == (default, False)


async def test_the_engine_keeps_working_after_conflicts(
    maker: SessionMaker, database: Database
) -> None:
    """Conflicts that are never run again leave no transaction and no connection behind."""
    meeting = Meeting(4)

    async def meet(number: int) -> None:
        async with maker.begin() as s:
            counter = await s.get_one(Counter, 1)
            await meeting.wait()
            counter.value += number

    results = await asyncio.gather(*(meet(2**n) for n in range(4)), return_exceptions=True)
    assert {type(each) for each in results} <= {type(None), ConflictError}
    done = [2**n for n, each in enumerate(results) if each is None]
    assert done
    assert await database.values() == [sum(done), 0]
    async with maker.begin() as s:
        s.add(Note(body="works"))
    assert await database.notes() == ["works"]


@pytest.mark.servers
async def test_a_listener_of_the_user_sees_the_drivers_error(
    maker: SessionMaker, database: Database
) -> None:
    """A handle_error listener of the application gets the driver's error and what it became."""
    seen: list[Any] = []
    event.listen(
        maker.engine.sync_engine,
        "handle_error",
        lambda context: seen.append((context.original_exception, context.chained_exception)),
    )
    async with maker.reader() as s:
        with pytest.raises(Exception, match="read-only") as caught:
            await s.execute(text("UPDATE counters SET value = 1"))
    ((original, chained),) = seen
    assert chained is caught.value
    assert caught.value.__cause__ is original
