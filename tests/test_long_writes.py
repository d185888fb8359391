"""A write whose text has been short, and that takes long this time, does not keep the loop."""

from __future__ import annotations

import threading

import pytest
from cancelling import assert_free, rows
from grouping import ADD, COUNT, ITEMS, known_short, marks, patient, ready, together, write
from sqlalchemy import event, text

from qsession.sqlite import log as logs
from qsession.sqlite import running

LONG = text(
    "UPDATE items SET value = value + here() * (SELECT min(i) FROM (WITH RECURSIVE n(i) AS "
    "(SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT :size) SELECT i FROM n))"
)
RETURNING = text("INSERT INTO marks (run) VALUES (8), (8), (8) RETURNING id")


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
    known_short(made, LONG.text.replace(":size", "?"), RETURNING)
    monkeypatch.setattr(running, "LONG_WRITE", 0.0)
    yield bench
    await made.check()
    await made.engine.dispose()
    assert_free(made.path)


async def long(connection, size=100_000):
    await connection.execute(LONG, {"size": size})


@pytest.mark.parametrize("size", [1, 100_000])
async def test_only_what_is_long_is_broken_off(bench, size):
    """It is done once, wherever it was begun."""
    async with bench.engine.begin() as connection:
        await long(connection, size)
    assert bench.values() == [1] * 5
    assert (bench.elsewhere > 0) == (size > 1)


@pytest.mark.parametrize("before", [[ITEMS], [COUNT, ADD], [ADD]])
@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_what_came_before_is_replayed(bench, before, end):
    """SQLite rolls back the whole transaction with a write that is broken off."""
    async with bench.engine.connect() as connection:
        for statement in before:
            await connection.execute(statement, {"run": 7})
        await long(connection)
        await long(connection, 1)
        await getattr(connection, end)()
    kept = end == "commit"
    assert bench.values() == [2 if kept else 0] * 5
    assert bench.elsewhere > 0
    assert len(marks(bench.made)) == (kept and ADD in before)


async def test_in_a_savepoint(bench):
    """The savepoint is there again, and can be rolled back to."""
    async with bench.engine.begin() as connection:
        await connection.execute(ADD, {"run": 7})
        async with connection.begin_nested() as savepoint:
            await long(connection)
            await savepoint.rollback()
    assert bench.values() == [0] * 5
    assert bench.elsewhere > 0
    assert marks(bench.made) == [7]


async def test_in_a_group(bench):
    """Those who have finished are run again; nobody is lost, nor the one who was broken off."""

    async def member():
        async with bench.engine.begin() as connection:
            await connection.execute(COUNT)
            await long(connection)
            await connection.execute(ADD, {"run": 2})

    made = bench.made
    assert await together(made, write(made, 1), member(), write(made, 3)) == [None] * 3
    assert marks(made) == [0, 1, 2, 3]
    assert bench.values() == [1] * 5
    assert bench.elsewhere > 0


async def test_what_may_not_come_out_the_same_is_not_broken_off(bench, monkeypatch):
    """Rows returned by a write, a log that was dropped, the driver's connection."""
    async with bench.engine.begin() as connection:
        await connection.execute(RETURNING)
        await long(connection)
    monkeypatch.setattr(logs, "MAX_STATEMENTS", 1)
    async with bench.engine.begin() as connection:
        await connection.execute(ITEMS)
        await connection.execute(ADD, {"run": 7})
        await long(connection)
    async with bench.engine.begin() as connection:
        raw = await connection.get_raw_connection()
        await raw.driver_connection.execute("UPDATE items SET value = value + 1")
        await long(connection)
    assert bench.values() == [4] * 5
    assert bench.elsewhere == 0
    assert marks(bench.made) == [8, 7]
