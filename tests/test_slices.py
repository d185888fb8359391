"""A long executemany, which runs on the loop in slices."""

from __future__ import annotations

import asyncio
import threading

import pytest
from cancelling import PATIENCE, Bench, assert_free, rows
from grouping import (
    ADD,
    check_foreign_keys,
    known_short,
    patient,
    ready_with,
    together,
    write,
)
from sqlalchemy import event, text
from sqlalchemy.exc import IntegrityError
from test_group_failures import CHILD, SCHEMA

from qsession import QSessionError
from qsession.sqlite import pace, running
from qsession.sqlite.running import FEW

HERE, THREAD = "loop", "thread"
BULK = text("INSERT INTO items (id, value) VALUES (:id, here(:value))")
UPSERT = text("INSERT INTO items (id, value) VALUES (:id, :value) ON CONFLICT DO NOTHING")


def numbers(count, first=100):
    """Parameter sets."""
    return [{"id": first + each, "value": each} for each in range(count)]


@pytest.fixture
async def bench(tmp_path, monkeypatch):
    """An engine that has foreign keys and a function that tells where it was called."""
    patient(monkeypatch)
    made = await ready_with(tmp_path / "app.db", SCHEMA)
    loop = threading.get_ident()
    made.places = []

    def here(value):
        made.places.append(HERE if threading.get_ident() == loop else THREAD)
        return value

    @event.listens_for(made.engine.sync_engine, "connect")
    def connect(connection, record):
        check_foreign_keys(connection, record)
        connection.raw.create_function("here", 1, here)

    yield made
    await made.check()
    await made.engine.dispose()
    assert_free(made.path)


async def insert(bench, count, statement=BULK, first=100):
    """Where the rows were inserted; what the result says of them is compared."""
    bench.places.clear()
    async with bench.engine.begin() as connection:
        result = await connection.execute(statement, numbers(count, first))
    assert result.rowcount == count
    return bench.places


async def test_slices_on_the_loop(bench):
    """The first few rows show in the thread how long they take; the rest follow on the loop."""
    count = 3 * FEW + 7
    assert await insert(bench, count) == [THREAD] * FEW + [HERE] * (count - FEW)
    assert await insert(bench, count, first=1000) == [HERE] * count
    found = rows(bench.path, "SELECT id, value FROM items WHERE id >= 100 AND id < 1000")
    assert found == [(100 + each, each) for each in range(count)]


async def test_long_rows_stay_in_the_thread(bench, monkeypatch):
    """Where the first few took long, all the rest go to the thread at once."""
    monkeypatch.setattr(pace, "SHORT", 0.0)
    sent = []
    run = running.DriverConnection.run

    def counted(driver, function, *args):
        sent.append(function)
        return run(driver, function, *args)

    monkeypatch.setattr(running.DriverConnection, "run", counted)
    assert await insert(bench, 5 * FEW) == [THREAD] * 5 * FEW
    assert len([each for each in sent if each is running.run]) == 2


async def test_inline_false(tmp_path):
    """All rows go to the thread, at once."""
    made = await Bench.ready(tmp_path / "app.db", inline=False)
    sent = []
    made.engine.pool.writer._record.dbapi_connection.raw.set_trace_callback(sent.append)
    async with made.engine.begin() as connection:
        result = await connection.execute(UPSERT, numbers(5 * FEW, first=4))
    assert result.rowcount == 5 * FEW - 2
    assert len([each for each in sent if each.startswith("INSERT")]) == 5 * FEW
    await made.engine.dispose()


async def test_error_in_a_later_slice(bench):
    """It says what SQLite says, keeps what came before, and the transaction goes on."""
    await insert(bench, FEW)
    repeated = [*numbers(2 * FEW + 5, first=1000), {"id": 1000, "value": 0}, *numbers(3, 5000)]
    async with bench.engine.begin() as connection:
        await connection.execute(ADD, {"run": 1})
        with pytest.raises(IntegrityError):
            await connection.execute(BULK, repeated)
    bench.acknowledged.add(1)
    assert rows(bench.path, "SELECT count(*) FROM items WHERE id >= 1000") == [(2 * FEW + 5,)]


async def test_cancelled_between_slices(bench, monkeypatch):
    """Nothing of it is written, and the next writer has its turn."""
    await insert(bench, FEW)
    monkeypatch.setattr(pace, "BUDGET", -1.0)  # a turn of the loop for each slice
    began = len(bench.places)
    task = asyncio.create_task(insert(bench, 50 * FEW, first=1000))
    while len(bench.places) in (0, began):
        await asyncio.sleep(0)
    assert len(bench.places) < 50 * FEW
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(write(bench, 1), PATIENCE)
    assert rows(bench.path, "SELECT count(*) FROM items WHERE id >= 1000") == [(0,)]


async def test_ended_elsewhere_between_slices(bench, monkeypatch):
    """Another task closes the connection: the rest is not run in somebody else's transaction."""
    await insert(bench, FEW)
    monkeypatch.setattr(pace, "BUDGET", -1.0)
    bench.places.clear()
    async with bench.engine.connect() as connection:
        task = asyncio.create_task(connection.execute(BULK, numbers(50 * FEW, first=1000)))
        while not bench.places:
            await asyncio.sleep(0)
        routed = (await connection.run_sync(lambda c: c.connection)).dbapi_connection
        routed.transaction.abandon()
        other = asyncio.create_task(write(bench, 1))
        with pytest.raises(QSessionError, match="ended elsewhere"):
            await asyncio.wait_for(task, PATIENCE)
        await asyncio.wait_for(other, PATIENCE)
    assert rows(bench.path, "SELECT count(*) FROM items WHERE id >= 1000") == [(0,)]


async def test_replayed_with_its_group(bench):
    """It joins no group, but may be the first of one: then it is replayed as one statement."""
    known_short(bench, CHILD)
    await insert(bench, FEW)

    async def culprit():
        async with bench.engine.begin() as connection:
            await connection.execute(CHILD)

    outcome = await together(bench, insert(bench, 4 * FEW, first=1000), culprit(), write(bench, 1))
    assert [type(each) for each in outcome] == [list, IntegrityError, type(None)]
    assert rows(bench.path, "SELECT count(*) FROM items WHERE id >= 1000") == [(4 * FEW,)]
    assert rows(bench.path, "SELECT count(*) FROM children") == [(0,)]
    assert len(bench.places) == 2 * 4 * FEW


async def test_joins_no_group(bench):
    """Those who have finished do not wait for it: their COMMIT comes first."""
    await insert(bench, FEW)
    groups = bench.engine.stats().groups
    (places,) = await together(bench, insert(bench, 4 * FEW, first=1000))
    assert places == [THREAD] * FEW + [HERE] * 3 * FEW
    assert bench.engine.stats().groups == groups
