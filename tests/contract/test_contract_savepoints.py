"""Savepoints in which the server has dropped more than what was inside of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from contract_tables import Counter, Database
from sqlalchemy import select, text, update
from sqlalchemy.exc import OperationalError

from qsession import ConflictError, QSession, QSessionError, QueuedAsyncEngine
from qsession.session.maker import SessionMaker

Make = Callable[..., QueuedAsyncEngine]
pytestmark = [pytest.mark.servers, pytest.mark.only("mysql")]


def put(number: int, value: int) -> Any:
    return update(Counter).where(Counter.id == number).values(value=value)


async def drop_as_the_server_does(s: QSession) -> None:
    """End the transaction behind SQLAlchemy's back."""
    raw = (await (await s.connection()).get_raw_connection()).driver_connection
    assert raw is not None
    await raw.rollback()


async def test_a_row_that_changed_after_the_snapshot(make: Make, database: Database) -> None:
    """MariaDB drops the whole transaction (1020): who goes on behind the block is refused."""
    async with database.outside.connect() as connection:
        if await connection.scalar(text("SELECT @@version LIKE '%MariaDB%'")) != 1:
            pytest.skip("innodb_snapshot_isolation is MariaDB's")
    engine = make(connect_args={"init_command": "SET innodb_snapshot_isolation = ON"})
    maker = SessionMaker(bind=engine, isolation="REPEATABLE READ")
    attempts = []

    async def work(s: QSession) -> None:
        attempts.append(1)
        await s.execute(put(1, 100))
        await s.execute(select(Counter.value))
        if len(attempts) == 1:
            async with database.outside.begin() as other:
                await other.execute(put(2, 1))
        try:
            async with s.begin_nested():
                await s.execute(put(2, Counter.value + 1))
        except ConflictError:
            with pytest.raises(ConflictError, match=r"already.*1020"):
                await s.execute(put(1, 7))
            with pytest.raises(ConflictError, match=r"already.*1020"):
                await s.commit()
            raise

    await maker.run(work)
    assert len(attempts) == 2
    assert await database.values() == [100, 2]


async def test_a_timeout_that_has_dropped_the_transaction(make: Make, database: Database) -> None:
    """As with innodb_rollback_on_timeout: the savepoint is gone (1305), and that is a conflict."""
    engine = make(connect_args={"init_command": "SET innodb_lock_wait_timeout = 1"})
    maker = SessionMaker(bind=engine)
    async with maker() as holder, maker() as s:
        await holder.execute(put(2, 1))
        await s.execute(put(1, 100))
        with pytest.raises(ConflictError, match="savepoint no longer exists"):
            async with s.begin_nested():
                try:
                    await s.execute(put(2, 2))
                finally:
                    await drop_as_the_server_does(s)
        with pytest.raises(ConflictError, match=r"already.*1205"):
            await s.execute(put(1, 7))
        with pytest.raises(ConflictError, match=r"already.*1205"):
            await s.commit()
        await s.rollback()
        assert await s.scalar(select(Counter.value).where(Counter.id == 1)) == 0
        await holder.commit()
    assert await database.values() == [0, 1]


async def test_a_transaction_that_was_ended_without_a_conflict(
    maker: SessionMaker, database: Database
) -> None:
    """As by DDL: it is no conflict, which would be run again, and it cannot go on either."""
    async with maker() as s:
        await s.execute(put(1, 100))
        with pytest.raises(OperationalError, match="1305"):
            async with s.begin_nested():
                await drop_as_the_server_does(s)
                raise RuntimeError
        for _ in range(2):
            with pytest.raises(QSessionError, match="committed or lost") as caught:
                await s.execute(put(2, 7))
            assert not isinstance(caught.value, ConflictError)
        await s.rollback()
        await s.execute(put(2, 8))
        await s.commit()
    assert await database.values() == [0, 8]


async def test_a_savepoint_that_never_was(maker: SessionMaker, database: Database) -> None:
    """An error of the application's own statement: the transaction is as it was."""
    async with maker() as s:
        await s.execute(put(1, 100))
        with pytest.raises(OperationalError, match="1305"):
            await s.execute(text("ROLLBACK TO SAVEPOINT nowhere"))
        await s.commit()
    assert await database.values() == [100, 0]
