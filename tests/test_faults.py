"""SQLite, or a listener, fails in the middle of what is done for a transaction."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest
from cancelling import MARKS, READ, Base, Bench, Item, Mark, eventually, rows
from sqlalchemy import event, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from qsession.errors import ConflictError
from qsession.session.maker import QSession
from qsession.sqlite import ending, group, lease, log, pool, running

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
    """Let the writer's connection fail at BEGIN, COMMIT or ROLLBACK; gives what fails."""
    connection = bench.engine.pool.writer._record.dbapi_connection._connection
    connection._connection = Raw(connection._connection, word, times)
    return connection._connection


async def error_of(coroutine):
    """What a task of its own fails with, or None."""
    (result,) = await asyncio.gather(coroutine, return_exceptions=True)
    return result


async def transaction(bench):
    """A transaction that reads, is upgraded, streams, and writes in a savepoint."""
    bench.run += 1
    bench.learn()
    async with AsyncSession(bench.engine) as session:
        await session.execute(READ)
        session.add(Mark(run=bench.run))
        await session.flush()
        async with session.begin_nested():
            await session.execute(insert(Mark), [{"run": bench.run}] * (MARKS - 1))
        stream = await session.stream(select(Item.id))
        await stream.fetchmany(2)
        await session.commit()
        bench.acknowledged.add(bench.run)
        await stream.close()


FUNCTIONS = [
    (running, "run"),  # which reports what happens after its BEGIN, and never raises that
    (log, "execute"),
    (log, "same_again"),
    (lease, "commit"),
    (lease, "clean_up"),
    (lease, "finish_reading"),
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
            fault = Fault(patched, [place], name, n, after)
            await bench.engine.dispose()
            error = await error_of(transaction(bench))
        in_replay = isinstance(error, ConflictError) and name in ("execute", "same_again")
        assert error is None or "fault" in str(error) or in_replay
        await bench.check()
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


async def crowd(bench):
    """Transactions in one group; every other one rolls back. The errors they get."""

    async def write(run):
        async with AsyncSession(bench.engine) as session:
            await session.execute(MARK, [{"run": run}] * MARKS)
            if run % 2:
                await session.rollback()
                return
            await session.commit()
            bench.acknowledged.add(run)

    async with AsyncSession(bench.engine) as holder:
        await holder.execute(update(Item).values(value=Item.value + 1))
        bench.run += 100
        tasks = [asyncio.create_task(write(bench.run + number)) for number in range(6)]
        await eventually(lambda: bench.engine.stats().waiting == 6)
        try:
            await holder.commit()
        finally:
            errors = await asyncio.gather(*tasks, return_exceptions=True)
    return [error for error in errors if error is not None]


@pytest.mark.parametrize("name", ["leave", "finish", "_commit", "_replay"])
async def test_function_of_a_group_fails(bench, monkeypatch, name):
    """Whoever is not told of an error is durable, and who rolled back has written nothing."""
    await crowd(bench)  # now the texts are known to be short
    n = 0
    fault = None
    while fault is None or fault.calls >= fault.n:
        n += 1
        with monkeypatch.context() as patched:
            places = [each for each in (group, lease, ending) if hasattr(each, name)]
            fault = Fault(patched, places, name, n)
            try:
                errors = await crowd(bench)
            except Exception as error:
                errors = [error]
        assert all("fault" in str(error) or "group" in str(error) for error in errors)
        await bench.check()
        written = {run for (run,) in rows(bench.path, "SELECT DISTINCT run FROM marks")}
        assert written == bench.acknowledged


async def test_member_that_rolled_back_is_not_replayed(tmp_path):
    """A deferred foreign key fails at the COMMIT of a group, whose members are run again."""
    bench = await Bench.ready(tmp_path / "app.db")

    @event.listens_for(bench.engine.sync_engine, "connect")
    def enforce(connection, record):
        connection.cursor().execute("PRAGMA foreign_keys=ON")

    await bench.engine.dispose()
    async with bench.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(
            text(
                "CREATE TABLE child (id INTEGER, item INTEGER REFERENCES items (id) "
                "DEFERRABLE INITIALLY DEFERRED)"
            )
        )
    await crowd(bench)
    child = text("INSERT INTO child VALUES (1, :item)")
    for item in range(1, 5):
        async with bench.engine.begin() as connection:
            await connection.execute(child, {"item": item})

    async def write(run):
        async with AsyncSession(bench.engine) as session:
            await session.execute(child, {"item": 1 if run else 4711})
            await session.execute(MARK, {"run": run})
            if run == 1:
                await session.rollback()
            else:
                await session.commit()

    async with AsyncSession(bench.engine) as holder:
        await holder.execute(update(Item).values(value=Item.value + 1))
        tasks = [asyncio.create_task(write(run)) for run in range(4)]
        await eventually(lambda: bench.engine.stats().waiting == 4)
        await holder.commit()
        errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(error).__name__ for error in errors] == ["IntegrityError", *["NoneType"] * 3]
    assert rows(bench.path, "SELECT run FROM marks WHERE run < 100") == [(2,), (3,)]
    await bench.engine.dispose()


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
