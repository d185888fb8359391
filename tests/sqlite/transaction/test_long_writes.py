"""A write whose text has been short, and that takes long this time, does not keep the loop."""

from __future__ import annotations

import threading

import pytest
from cancelling import Bench, Mark, assert_free, rows
from sqlalchemy import event, insert, text
from sqlalchemy.exc import IntegrityError

from qsession import ConflictError
from qsession.sqlite.driver import pace
from qsession.sqlite.transaction import plan

AGES = 3600.0
SUM = text("SELECT sum(value) FROM items")
LONG = text(
    "UPDATE items SET value = value + here() * (SELECT min(i) FROM (WITH RECURSIVE n(i) AS "
    "(SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT :size) SELECT i FROM n))"
)


class Places:
    """What the tests ask: how often the long write ran on the loop, and how often in a thread."""

    def __init__(self, made):
        self.made = made
        self.engine = made.engine
        self.here = self.elsewhere = 0
        self.loop = threading.get_ident()
        event.listen(made.engine.sync_engine, "connect", self.listen)

    def listen(self, connection, record):
        connection.raw.create_function("here", 0, self.note)

    def note(self):
        if threading.get_ident() == self.loop:
            self.here += 1
        else:
            self.elsewhere += 1
        return 1

    def values(self):
        return [value for (value,) in rows(self.made.path, "SELECT value FROM items")]


@pytest.fixture
async def bench(tmp_path, monkeypatch):
    """Every text is known to be short, but one that is more than a few steps is broken off."""
    for name in ("BUDGET", "SHORT"):
        monkeypatch.setattr(pace, name, AGES)
    monkeypatch.setattr(plan, "BUDGET", AGES)
    monkeypatch.setattr(plan, "LONG_WRITE", 1e-9)
    made = await Bench.ready(tmp_path / "app.db")
    await made.engine.dispose()
    bench = Places(made)
    made.engine.pool.pace.note(LONG.text.replace(":size", "?"), 0.0)
    yield bench
    await made.check()
    await made.engine.dispose()
    assert_free(made.path)


async def long(connection, size=100_000):
    await connection.execute(LONG, {"size": size})


@pytest.mark.parametrize("size", [1, 100_000])
@pytest.mark.parametrize("level", ["SERIALIZABLE", "AUTOCOMMIT"])
async def test_only_what_is_long_is_broken_off(bench, size, level):
    """It is done once, wherever it was begun."""
    async with bench.engine.connect() as connection:
        await connection.execution_options(isolation_level=level)
        await long(connection, size)
        await connection.commit()
    assert bench.values() == [1] * 5
    assert (bench.elsewhere > 0) == (size > 1)


async def test_rolled_back(bench):
    """Nothing of it stays, nor of its first attempt."""
    async with bench.engine.connect() as connection:
        await long(connection)
        await connection.execute(insert(Mark), [{"run": 7}] * 3)
        await connection.rollback()
    assert bench.values() == [0] * 5
    assert bench.elsewhere > 0
    assert rows(bench.made.path, "SELECT * FROM marks") == []


async def test_a_trigger_that_rolls_back(bench):
    """It fails as it would have failed on the loop, and the connection goes on."""
    async with bench.engine.begin() as connection:
        await connection.exec_driver_sql(
            "CREATE TRIGGER refuse AFTER UPDATE ON items BEGIN SELECT RAISE(ROLLBACK, 'no'); END"
        )
    async with bench.engine.connect() as connection:
        with pytest.raises(IntegrityError, match="no"):
            await long(connection)
        await connection.rollback()
        await connection.execute(insert(Mark), [{"run": 7}] * 3)
        await connection.commit()
    assert bench.values() == [0] * 5
    assert rows(bench.made.path, "SELECT DISTINCT run FROM marks") == [(7,)]


@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("access", ["auto", "write", "snapshot"])
async def test_behind_a_read(bench, access, changed):
    """It is validated again with its second attempt, in the thread."""
    options = {"qsession_reads": access} if access == "snapshot" else {"qsession_access": access}
    engine = bench.engine.execution_options(**options)
    async with engine.connect() as connection:
        assert await connection.scalar(SUM) == 0
        queue = bench.engine.pool.write_queue.queue
        if queue.holder is not None:
            assert queue.take_away(queue.holder)
        if changed:
            async with bench.engine.begin() as other:
                await other.execute(text("UPDATE items SET value = 7"))
            with pytest.raises(ConflictError):
                await long(connection)
            await connection.rollback()
        else:
            await long(connection)
            await connection.commit()
    assert bench.values() == ([7] * 5 if changed else [1] * 5)


@pytest.mark.parametrize("random", [False, True])
async def test_behind_a_write_it_is_not_broken_off(bench, random):
    """SQLite would roll back the whole transaction with it."""
    async with bench.engine.begin() as connection:
        await connection.execute(insert(Mark), [{"run": 7}] * 3)
        if random:
            await connection.execute(text("SELECT random()"))
        await long(connection)
    assert bench.values() == [1] * 5
    assert bench.elsewhere == 0


async def test_on_the_drivers_connection_it_is_not_broken_off(bench):
    """Nobody knows what the application has sent there before."""
    async with bench.engine.begin() as connection:
        raw = await connection.get_raw_connection()
        await raw.driver_connection.execute("UPDATE items SET value = value + 1")
        await long(connection)
    assert bench.values() == [2] * 5
    assert bench.elsewhere == 0
