"""Short statements behind a write, which a unit of work sends by the thousand."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from engines import Make, metadata, notes
from sqlalchemy import event, func, insert, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.util import await_only

from qsession import QSessionError, QueuedAsyncEngine
from qsession.sqlite.dialect import A_TURN, MANY, WIDE
from qsession.sqlite.driver import pace
from qsession.sqlite.driver.physical import DriverConnection
from qsession.sqlite.transaction.plan import Plan
from qsession.sqlite.transaction.runner import Runner
from qsession.sqlite.transaction.sending import Report

AGES = 3600.0
INSERT = text("INSERT INTO notes (id) VALUES (:id)")
ADDED = text("INSERT INTO notes (id) VALUES (:id) RETURNING id")
NOTHING = text("UPDATE notes SET body = NULL WHERE id < 0")
COUNT = select(func.count()).select_from(notes)


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that ran on the loop behind a write; every machine is quick."""
    monkeypatch.setattr(pace, "SHORT", AGES)
    monkeypatch.setattr(pace, "BUDGET", AGES)
    sent: list[str] = []
    run = Runner.run_here

    def noted(self: Runner, driver: DriverConnection, plan: Plan) -> Report | None:
        report = run(self, driver, plan)
        if plan.in_transaction:
            sent.append(plan.statement.sql)
        return report

    monkeypatch.setattr(Runner, "run_here", noted)
    return sent


async def prepared(make: Make, **kw: Any) -> QueuedAsyncEngine:
    """An engine with an empty table, whose statements are all known to be short."""
    engine = make(**kw)
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
        for _ in range(2):
            for statement in (INSERT, ADDED):
                await connection.execute(statement, {"id": 1})
                await connection.execute(text("DELETE FROM notes"))
            await connection.execute(NOTHING)
            await connection.execute(COUNT)
    return engine


async def test_rows_and_numbers(make: Make, direct: list[str]) -> None:
    """Each result is what SQLite says; what follows sees what came before."""
    engine = await prepared(make)
    direct.clear()
    async with engine.begin() as connection:
        await connection.execute(INSERT, {"id": 1})
        result = await connection.execute(INSERT, {"id": 7})
        assert (result.rowcount, result.lastrowid) == (1, 7)
        assert (await connection.execute(ADDED, {"id": 8})).scalar_one() == 8
        assert (await connection.execute(NOTHING)).rowcount == 0
        assert await connection.scalar(COUNT) == 3
    assert len(direct) == 4
    async with engine.connect() as connection:
        assert await connection.scalar(COUNT) == 3


async def test_an_error_ends_one_statement(make: Make, direct: list[str]) -> None:
    """A constraint that is broken leaves the transaction as it was."""
    engine = await prepared(make)
    async with engine.begin() as connection:
        await connection.execute(INSERT, {"id": 1})
        with pytest.raises(IntegrityError):
            await connection.execute(INSERT, {"id": 1})
        await connection.execute(INSERT, {"id": 2})
    async with engine.connect() as connection:
        assert await connection.scalar(COUNT) == 2


async def test_an_error_that_ends_the_transaction(make: Make, direct: list[str]) -> None:
    """SQLite has rolled all of it back: nothing more runs, until it is rolled back here too."""
    engine = await prepared(make)
    async with engine.begin() as connection:
        await connection.execute(
            text(
                "CREATE TRIGGER no_nines BEFORE INSERT ON notes WHEN new.id = 9 "
                "BEGIN SELECT RAISE(ROLLBACK, 'no nines'); END"
            )
        )
    async with engine.connect() as connection:
        await connection.execute(INSERT, {"id": 1})
        with pytest.raises(IntegrityError, match="no nines"):
            await connection.execute(INSERT, {"id": 9})
        with pytest.raises(QSessionError, match="rolled back the transaction"):
            await connection.execute(INSERT, {"id": 2})
        await connection.rollback()
        assert await connection.scalar(COUNT) == 0


async def test_what_changes_nothing_first(make: Make, direct: list[str]) -> None:
    """A transaction that has begun to write without a change may write afterwards."""
    engine = await prepared(make)
    async with engine.begin() as connection:
        await connection.execute(NOTHING)
        await connection.execute(INSERT, {"id": 1})
    async with engine.connect() as connection:
        assert await connection.scalar(COUNT) == 1


async def test_two_greenlets_on_one_connection(make: Make) -> None:
    """The transaction knows which task used it last, though one greenlet sends many statements."""
    engine = await prepared(make)
    halfway, go_on = asyncio.Event(), asyncio.Event()
    tasks: list[Any] = []

    async with engine.connect() as connection:

        def twice(sync: Any) -> None:
            transaction = sync.connection.dbapi_connection.transaction
            sync.execute(INSERT, {"id": 1})
            halfway.set()
            await_only(go_on.wait())
            tasks.append(transaction.task)
            for number in (2, 3):
                sync.execute(INSERT, {"id": number})
                tasks.append(transaction.task)

        first = asyncio.create_task(connection.run_sync(twice))
        await halfway.wait()
        await connection.execute(INSERT, {"id": 4})
        go_on.set()
        await first
        assert tasks == [asyncio.current_task(), first, first]
        assert await connection.scalar(COUNT) == 4


async def _bulk(connection: AsyncConnection, first: int) -> None:
    await connection.execute(insert(notes), [{"id": first + number} for number in range(MANY + 1)])


async def _wide(connection: AsyncConnection, first: int) -> None:
    await connection.execute(
        insert(notes).values([{"id": first + number} for number in range(WIDE + 1)])
    )


@pytest.mark.parametrize("send", [_bulk, _wide])
async def test_a_turn_of_the_loop_while_much_is_prepared(make: Make, send: Any) -> None:
    """SQLAlchemy makes two passes over the parameters of a statement; others go on between."""
    engine = await prepared(make)
    turned: list[bool] = []
    seen: list[bool] = []

    @event.listens_for(engine.sync_engine, "before_cursor_execute")
    def before(*_: Any) -> None:
        seen.append(bool(turned))

    async def sleeper() -> None:
        await asyncio.sleep(A_TURN)
        turned.append(True)

    async with engine.begin() as connection:
        task = asyncio.create_task(sleeper())
        await asyncio.sleep(0)
        await send(connection, 1)
        await task
    assert seen == [True]


async def test_cancelled_while_many_rows_are_prepared(make: Make) -> None:
    """Nothing of the transaction is written, and the next one has its turn."""
    engine = await prepared(make)
    async with engine.connect() as connection:
        await connection.execute(INSERT, {"id": 1})
        task = asyncio.create_task(_bulk(connection, 10))
        asyncio.get_running_loop().call_soon(task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task
    async with engine.begin() as connection:
        assert await connection.scalar(COUNT) == 0
        await _bulk(connection, 10)
    async with engine.connect() as connection:
        assert await connection.scalar(COUNT) == MANY + 1
    assert engine.stats().waiting == 0
