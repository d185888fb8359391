"""A long executemany, which runs on the loop in slices."""

from __future__ import annotations

import asyncio
import threading

import pytest
from cancelling import PATIENCE, Bench, Mark, assert_free, rows
from sqlalchemy import event, insert, text
from sqlalchemy.exc import IntegrityError

from qsession import ConflictError, QSessionError
from qsession.sqlite.driver import pace
from qsession.sqlite.driver.physical import DriverConnection
from qsession.sqlite.transaction import plan, sending
from qsession.sqlite.transaction.runner import FEW
from qsession.waiting import pacing

AGES = 3600.0
HERE, THREAD = "loop", "thread"
BULK = text("INSERT INTO items (id, value) VALUES (:id, here(:value))")
UPSERT = text("INSERT INTO items (id, value) VALUES (:id, :value) ON CONFLICT DO NOTHING")
COUNT = text("SELECT count(*) FROM items")


def numbers(count, first=100):
    """Parameter sets."""
    return [{"id": first + each, "value": each} for each in range(count)]


@pytest.fixture
async def bench(tmp_path, monkeypatch):
    """An engine that has a function that tells where it was called; every machine is quick."""
    for module, name in ((pace, "BUDGET"), (pace, "SHORT"), (plan, "BUDGET"), (plan, "LONG_WRITE")):
        monkeypatch.setattr(module, name, AGES)
    monkeypatch.setattr(pace, "MOST_ROWS", FEW)
    made = await Bench.ready(tmp_path / "app.db")
    loop = threading.get_ident()
    made.places = []

    def here(value):
        made.places.append(HERE if threading.get_ident() == loop else THREAD)
        return value

    @event.listens_for(made.engine.sync_engine, "connect")
    def connect(connection, record):
        connection.raw.create_function("here", 1, here)

    await made.engine.dispose()
    yield made
    await made.check()
    await made.engine.dispose()
    assert_free(made.path)


async def insert_all(bench, count, statement=BULK, first=100):
    """Where the rows were inserted; what the result says of them is compared."""
    bench.places.clear()
    async with bench.engine.begin() as connection:
        result = await connection.execute(statement, numbers(count, first))
    assert result.rowcount == count
    return bench.places


async def write(bench, run):
    """A transaction that adds one mark."""
    async with bench.engine.begin() as connection:
        await connection.execute(insert(Mark), [{"run": run}] * 3)
    bench.acknowledged.add(run)


def found(bench):
    """How many rows there are of those that were inserted second."""
    return rows(bench.path, "SELECT count(*) FROM items WHERE id >= 1000")[0][0]


async def test_slices_on_the_loop(bench):
    """The first few rows show in the thread how long they take; the rest follow on the loop."""
    count = 3 * FEW + 7
    assert await insert_all(bench, count) == [THREAD] * FEW + [HERE] * (count - FEW)
    assert await insert_all(bench, count, first=1000) == [HERE] * count
    inserted = rows(bench.path, "SELECT id, value FROM items WHERE id >= 100 AND id < 1000")
    assert inserted == [(100 + each, each) for each in range(count)]


async def test_long_rows_stay_in_the_thread(bench, monkeypatch):
    """Where the first few took long, all the rest go to the thread at once."""
    monkeypatch.setattr(pace, "SHORT", 0.0)
    sent = []
    run = DriverConnection.run

    def counted(driver, function, *args):
        sent.append(function)
        return run(driver, function, *args)

    monkeypatch.setattr(DriverConnection, "run", counted)
    assert await insert_all(bench, 5 * FEW) == [THREAD] * 5 * FEW
    assert sent.count(sending.run) == 2


async def test_inline_false(tmp_path, monkeypatch):
    """All rows go to the thread, at once."""
    made = await Bench.ready(tmp_path / "app.db", inline=False)
    sent = []
    run = DriverConnection.run

    def counted(driver, function, *args):
        sent.append(function)
        return run(driver, function, *args)

    monkeypatch.setattr(DriverConnection, "run", counted)
    async with made.engine.begin() as connection:
        result = await connection.execute(UPSERT, numbers(5 * FEW, first=4))
    assert result.rowcount == 5 * FEW - 2
    assert sent.count(sending.run) == 1
    await made.engine.dispose()


async def test_error_in_a_later_slice(bench):
    """It says what SQLite says, keeps what came before, and the transaction goes on."""
    await insert_all(bench, FEW)
    repeated = [*numbers(2 * FEW + 5, first=1000), {"id": 1000, "value": 0}, *numbers(3, 5000)]
    async with bench.engine.begin() as connection:
        with pytest.raises(IntegrityError):
            await connection.execute(BULK, repeated)
        await connection.execute(insert(Mark), [{"run": 1}] * 3)
    bench.acknowledged.add(1)
    assert found(bench) == 2 * FEW + 5


async def test_behind_a_read(bench):
    """What was read is validated once, with the first slice; then nothing can change any more."""
    await insert_all(bench, FEW)
    bench.learn()
    for first, changed in ((1000, False), (2000, True)):
        async with bench.engine.connect() as connection:
            await connection.execute(COUNT)
            if changed:
                await insert_all(bench, 1, UPSERT, first=500)
                with pytest.raises(ConflictError):
                    await connection.execute(BULK, numbers(4 * FEW, first))
            else:
                await connection.execute(BULK, numbers(4 * FEW, first))
                await connection.commit()
    assert found(bench) == 4 * FEW
    assert bench.engine.stats().validations == 2


async def test_cancelled_between_slices(bench, monkeypatch):
    """Nothing of it is written, and the next writer has its turn."""
    await insert_all(bench, FEW)
    monkeypatch.setattr(pacing, "BUDGET", -1.0)  # a turn of the loop for each slice
    bench.places.clear()
    task = asyncio.create_task(insert_all(bench, 50 * FEW, first=1000))
    while not bench.places:
        await asyncio.sleep(0)
    assert len(bench.places) < 50 * FEW
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(write(bench, 1), PATIENCE)
    assert found(bench) == 0


async def test_ended_elsewhere_between_slices(bench, monkeypatch):
    """Another task closes the connection: the rest is not run in somebody else's transaction."""
    await insert_all(bench, FEW)
    monkeypatch.setattr(pacing, "BUDGET", -1.0)
    bench.places.clear()
    async with bench.engine.connect() as connection:
        task = asyncio.create_task(connection.execute(BULK, numbers(50 * FEW, first=1000)))
        while not bench.places:
            await asyncio.sleep(0)
        routed = (await connection.run_sync(lambda c: c.connection)).dbapi_connection
        routed.transaction.abandon()
        other = asyncio.create_task(write(bench, 1))
        with pytest.raises(QSessionError, match="another task ended"):
            await asyncio.wait_for(task, PATIENCE)
        await asyncio.wait_for(other, PATIENCE)
    assert found(bench) == 0


@pytest.mark.parametrize("count", [1, 5 * FEW])
async def test_rolled_back_while_it_waits(bench, monkeypatch, count):
    """It waits for a turn of the loop, and another task's ROLLBACK is on its way.

    task                        the thread          another task
    waits for its turn
                                is busy             rollback()
    has its turn: gives up
                                ROLLBACK
    """
    await insert_all(bench, FEW)
    gate = threading.Event()
    async with bench.engine.connect() as connection:
        await connection.execute(BULK, numbers(1, first=1000))
        routed = (await connection.run_sync(lambda c: c.connection)).dbapi_connection
        driver = routed.transaction.work.lease.driver
        monkeypatch.setattr(pacing, "BUDGET", -1.0)  # one statement in a turn
        await asyncio.sleep(0)  # so that a new turn begins here

        async def roll_back():
            driver.post(lambda raw: gate.wait(PATIENCE))
            await connection.rollback()

        task = asyncio.create_task(connection.execute(BULK, numbers(count, first=2000)))
        rollback = asyncio.create_task(roll_back())
        assert pacing.turns.of(asyncio.get_running_loop()).enter() is None  # that is this one
        try:
            for _ in range(10):
                await asyncio.sleep(0)
        finally:
            gate.set()
        await rollback
        with pytest.raises(QSessionError, match="another task ended"):
            await task
    assert found(bench) == 0


async def test_rows_that_nobody_counts(bench):
    """sqlite3 counts no rows of a text that begins with WITH; nor is there a sum of them."""
    sql = text("WITH one AS (SELECT :value) INSERT INTO items (id, value) SELECT :id, * FROM one")
    async with bench.engine.begin() as connection:
        few = await connection.execute(sql, numbers(FEW))
        many = await connection.execute(sql, numbers(5 * FEW, 1_000))
    assert many.rowcount == few.rowcount == -1
