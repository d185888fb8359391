"""A write whose text has been short, and that takes long this time, does not keep the loop."""

from __future__ import annotations

import asyncio
import threading

import pytest
from cancelling import assert_free, eventually, rows
from grouping import ADD, COUNT, ITEMS, known_short, marks, patient, ready, together, write
from sqlalchemy import event, text
from sqlalchemy.exc import IntegrityError

from qsession.sqlite import running

LONG = text(
    "UPDATE items SET value = value + here() * (SELECT min(i) FROM (WITH RECURSIVE n(i) AS "
    "(SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT :size) SELECT i FROM n))"
)


class Bench:
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
    patient(monkeypatch)
    made = await ready(tmp_path / "app.db")
    await made.engine.dispose()
    bench = Bench(made)
    known_short(made, LONG.text.replace(":size", "?"))
    monkeypatch.setattr(running, "LONG_WRITE", 0.0)
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
        await connection.execute(ADD, {"run": 7})
        await connection.rollback()
    assert bench.values() == [0] * 5
    assert bench.elsewhere > 0


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
        await connection.execute(ADD, {"run": 7})
        await connection.commit()
    assert bench.values() == [0] * 5
    assert marks(bench.made) == [7]


async def test_the_first_of_a_group(bench):
    """Whoever waits behind it joins it."""
    async with bench.engine.connect() as connection:
        await long(connection)
        waiting = asyncio.create_task(write(bench.made, 1))
        await eventually(lambda: bench.engine.stats().waiting == 1)
        await connection.commit()
    await waiting
    assert bench.engine.stats().groups == 1
    assert bench.values() == [1] * 5
    assert bench.elsewhere > 0


@pytest.mark.parametrize("before", [ITEMS, ADD, text("SELECT random()")])
async def test_behind_another_statement_it_is_not_broken_off(bench, before):
    """SQLite rolls back the whole transaction with it, and a replay might come out different."""
    async with bench.engine.begin() as connection:
        await connection.execute(before, {"run": 7} if before is ADD else {})
        await long(connection)
    assert bench.values() == [1] * 5
    assert bench.elsewhere == 0


async def test_in_a_group_it_is_not_broken_off(bench):
    """The others who have finished would have to be run again."""

    async def member():
        async with bench.engine.begin() as connection:
            await long(connection)
            await connection.execute(COUNT)

    made = bench.made
    assert await together(made, write(made, 1), member(), write(made, 3)) == [None] * 3
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
