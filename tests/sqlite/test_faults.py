"""SQLite, or a listener, fails in the middle of what is done for a transaction."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest
from cancelling import MARKS, READ, Bench, Item, Mark
from sqlalchemy import event, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from qsession.errors import ConflictError
from qsession.session.maker import QSession
from qsession.sqlite import cursor, pool
from qsession.sqlite.transaction import sending

MARK = text("INSERT INTO marks (run) VALUES (:run)")


@pytest.fixture(params=[False, True], ids=["threads", "inline"])
async def bench(request, tmp_path):
    """An engine with one reader; it is whole again after each test."""
    made = await Bench.ready(tmp_path / "app.db", inline=request.param)
    yield made
    await made.check()
    await made.engine.dispose()


class Fault:
    """Makes a function fail at its n-th call: before it has done its work, or after it."""

    def __init__(self, monkeypatch, places, name, n=1, after=False):
        function = getattr(places[0], name)
        self.calls = 0
        self.n = n

        def failing(*args):
            self.calls += 1
            if self.calls != self.n:
                return function(*args)
            if after:
                function(*args)
            raise sqlite3.OperationalError("fault")

        for place in places:
            monkeypatch.setattr(place, name, failing)


class Raw:
    """A ``sqlite3.Connection`` that fails at one statement, as often as ``times`` says."""

    def __init__(self, raw, word, times):
        self.raw, self.word, self.times = raw, word, times

    def __getattr__(self, name):
        return getattr(self.raw, name)

    def execute(self, sql, *args):
        if sql.startswith(self.word) and self.times > 0:
            self.times -= 1
            raise sqlite3.OperationalError("fault")
        return self.raw.execute(sql, *args)


def break_statement(bench, word, times):
    """Let the connection that writes fail at BEGIN, COMMIT or ROLLBACK; gives what fails."""
    (record,) = bench.engine.pool._reserved
    driver = record.dbapi_connection
    driver.raw = driver._connection._connection = Raw(driver.raw, word, times)
    return driver.raw


async def error_of(coroutine):
    """What a task of its own fails with, or None."""
    (result,) = await asyncio.gather(coroutine, return_exceptions=True)
    return result


async def transaction(bench):
    """A reader, and a transaction that reads, is validated, streams, and writes in a savepoint."""
    bench.run += 1
    bench.learn()
    async with bench.engine.execution_options(qsession_access="read").connect() as connection:
        await connection.execute(READ)
        await connection.commit()
        await connection.execute(READ)
    async with AsyncSession(bench.engine) as session:
        await session.execute(READ)
        stream = await session.stream(select(Mark.id))
        await stream.fetchmany(1)
        session.add(Mark(run=bench.run))
        await session.flush()
        async with session.begin_nested():
            await session.execute(insert(Mark), [{"run": bench.run}] * (MARKS - 1))
        stream = await session.stream(select(Item.id))
        await stream.fetchmany(2)
        await session.commit()
        bench.acknowledged.add(bench.run)
        await stream.close()
        await session.execute(insert(Mark), bench.marks())
        await session.rollback()


FUNCTIONS = [
    (sending, "run"),  # which reports what happens after its BEGIN, and never raises that
    (sending, "execute"),
    (sending, "same_again"),
    (sending, "commit"),
    (sending, "clean_up"),
    (sending, "finish_reading"),
    (sending, "fetch"),
    (pool, "make_ready"),
]


@pytest.mark.parametrize(
    ("place", "name", "after"),
    [(*each, False) for each in FUNCTIONS] + [(*each, True) for each in FUNCTIONS[1:]],
)
async def test_function_of_the_thread_fails(bench, monkeypatch, place, name, after):
    """At each of its calls in turn: the transaction fails or not, but nothing stays held."""
    n = 0
    fault = None
    while fault is None or fault.calls >= fault.n:
        n += 1
        with monkeypatch.context() as patched:
            places = [each for each in (place, cursor) if hasattr(each, name)]
            fault = Fault(patched, places, name, n, after)
            await bench.engine.dispose()
            error = await error_of(transaction(bench))
        validating = isinstance(error, ConflictError) and name in ("same_again", "fetch")
        assert error is None or "fault" in str(error) or validating
        await bench.check()
    assert n > 1
    assert bench.run in bench.acknowledged


@pytest.mark.parametrize("word", ["BEGIN", "COMMIT", "ROLLBACK"])
@pytest.mark.parametrize("times", [1, 2, 100])
@pytest.mark.parametrize("ends", ["commits", "rolls back", "is cancelled"])
async def test_statement_that_ends_a_transaction_fails(bench, word, times, ends):
    """The error is told, the ticket passes on, and the next one finds a connection that works."""
    bench.run += 1

    async def write():
        async with QSession(bench.engine) as session:
            await session.execute(MARK, bench.marks())
            if ends == "commits":
                await session.commit()
                bench.acknowledged.add(bench.run)
            elif ends == "is cancelled":
                asyncio.current_task().cancel()
                await asyncio.sleep(0)
            await session.rollback()

    async with bench.engine.begin() as connection:
        await connection.execute(update(Item).values(value=0))
    broken = break_statement(bench, word, times)
    error = await error_of(write())
    assert error is None or "fault" in str(error) or ends == "is cancelled"
    broken.times = 0
    await bench.check()


@pytest.mark.parametrize("name", ["connect", "checkout", "reset", "begin", "commit"])
async def test_listener_fails(bench, name):
    """A listener raises once; what it kept from happening can be done again."""
    failed = []

    def fail(*args):
        if not failed:
            failed.append(name)
            raise ArithmeticError(name)

    await bench.engine.dispose()
    target = bench.engine.sync_engine
    event.listen(target, name, fail)
    error = await error_of(transaction(bench))
    assert error is None or str(error) == name
    event.remove(target, name, fail)
    assert failed == [name]
    await bench.check()
