"""What does not run in a commit group: the group is closed before it, or it leaves the group."""

from __future__ import annotations

import pytest
from cancelling import READ, Mark, rows
from grouping import (
    ADD,
    RAISE,
    known_short,
    marks,
    together,
    traced,
    whole,
    write,
)
from sqlalchemy import select, text

from qsession.sqlite import log

RETURNING = text("INSERT INTO items (value) VALUES (7) RETURNING id")
SLOWER = text("UPDATE items SET value = value + 10")
INSIDE = {  # what may follow a write in one transaction, and how it shows in the trace
    "ddl": ("CREATE TABLE made (id INTEGER)", "CREATE TABLE"),
    "pragma": ("PRAGMA user_version=5", "PRAGMA"),
    "temp": ("CREATE TEMP TABLE lent (id INTEGER)", "CREATE TEMP"),
    "returning": (RETURNING.text, "INSERT"),
    "unknown": (SLOWER.text, "UPDATE"),
}


@pytest.fixture
async def bench(tmp_path, monkeypatch):
    """An engine that is found whole and free after the test."""
    async with whole(tmp_path / "app.db", monkeypatch) as made:
        yield made


async def alone(bench, sql):
    """One statement in AUTOCOMMIT."""
    async with bench.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text(sql))


@pytest.mark.parametrize(
    ("sql", "known"),
    [
        (SLOWER.text, False),
        ("CREATE TABLE made (id INTEGER)", False),
        *(
            (sql, known)
            for sql in ("PRAGMA cache_size=100", "ATTACH ':memory:' AS beside", "VACUUM")
            for known in (False, True)
        ),
    ],
)
async def test_autocommit_closes_the_group_before(bench, sql, known):
    """The members in front of it are made durable by a COMMIT of their own."""
    if known:
        known_short(bench, text(sql))
    sent = traced(bench)
    outcomes = await together(bench, write(bench, 1), alone(bench, sql), write(bench, 2))
    assert outcomes == [None] * 3
    words = sql.split()[0]
    at = next(i for i, each in enumerate(sent) if each.startswith(words))
    before = ["BEGIN IMMEDIATE", "INSERT", "SAVEPOINT", "INSERT", "RELEASE", "COMMIT"]
    assert [each for each in sent[:at] if each not in before[:1]] == before[1:]
    assert marks(bench) == [0, 1, 2]


async def test_autocommit_joins_the_group(bench):
    """A statement of its own that is known to be short shares the COMMIT, as any other does."""
    known_short(bench, RAISE)
    sent = traced(bench)
    outcomes = await together(bench, write(bench, 1), alone(bench, RAISE.text), write(bench, 2))
    assert outcomes == [None] * 3
    assert [each for each in sent if each in ("BEGIN IMMEDIATE", "COMMIT")] == [
        "BEGIN IMMEDIATE",
        "COMMIT",
    ]
    assert marks(bench) == [0, 1, 2]


async def first_then(bench, sql, run, keep=True):
    """A transaction whose first statement is not for a group."""
    async with bench.engine.connect() as connection:
        await connection.execute(text(sql))
        await connection.execute(ADD, {"run": run})
        await (connection.commit() if keep else connection.rollback())


async def add_then(bench, sql, run, keep=True):
    """A transaction that has joined a group when it sends what is not for one."""
    async with bench.engine.connect() as connection:
        await connection.execute(ADD, {"run": run})
        await connection.execute(text(sql))
        await (connection.commit() if keep else connection.rollback())


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("kind", INSIDE)
async def test_group_is_closed_before_a_first_statement(bench, kind, keep):
    """DDL, a version, RETURNING and texts nobody knows start a transaction of their own."""
    sql, shown = INSIDE[kind]
    sent = traced(bench)
    outcomes = await together(
        bench, write(bench, 1), first_then(bench, sql, 2, keep), write(bench, 3)
    )
    assert outcomes == [None] * 3
    assert "COMMIT" in sent[: len(sent) - sent[::-1].index(shown)]
    assert marks(bench) == ([0, 1, 2, 3] if keep else [0, 1, 3])


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("kind", INSIDE)
async def test_member_leaves_the_group_for_it(bench, kind, keep, known):
    """The others are committed first; what it had written is written again, and still its own."""
    sql, shown = INSIDE[kind]
    if known:
        known_short(bench, text(sql))
        if kind == "returning":
            bench.engine.pool.pace.keep_alone(sql)
    sent = traced(bench)
    outcomes = await together(
        bench, write(bench, 1), add_then(bench, sql, 2, keep), write(bench, 3)
    )
    assert outcomes == [None] * 3
    if not (known and kind in ("ddl", "pragma", "unknown")):
        at = next(i for i, each in enumerate(sent[7:], 7) if each == shown)
        assert "COMMIT" in sent[:at]
    assert marks(bench) == ([0, 1, 2, 3] if keep else [0, 1, 3])
    outside = {
        "ddl": "SELECT count(*) FROM sqlite_schema WHERE name = 'made'",
        "pragma": "SELECT user_version = 5 FROM pragma_user_version",
        "temp": f"SELECT {keep:d}",
        "returning": "SELECT count(*) FROM items WHERE value = 7",
        "unknown": "SELECT value = 10 FROM items WHERE id = 1",
    }[kind]
    assert rows(bench.path, outside) == [(int(keep),)]


@pytest.mark.parametrize("keep", [True, False])
async def test_stream_in_a_member(bench, keep):
    """A stream on the writer needs a transaction that nothing else depends on."""

    async def member():
        async with bench.engine.connect() as connection:
            await connection.execute(ADD, {"run": 2})
            async with connection.stream(select(Mark.run).order_by(Mark.id)) as result:
                first = (await result.fetchone())[0]
                await (connection.commit() if keep else connection.rollback())
            return first

    outcomes = await together(bench, write(bench, 1), member(), write(bench, 3))
    assert outcomes == [None, 0, None]
    assert marks(bench) == ([0, 1, 2, 3] if keep else [0, 1, 3])


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("keep", [True, False])
async def test_driver_connection_in_a_member(bench, keep, joined):
    """Whoever uses the driver's connection has a transaction of its own, from its start on."""

    async def member():
        async with bench.engine.connect() as connection:
            if joined:
                await connection.execute(ADD, {"run": 2})
            driver = (await connection.get_raw_connection()).driver_connection
            if not joined:
                await driver.execute("BEGIN IMMEDIATE")
                await connection.execute(ADD, {"run": 2})
            assert marks(bench) == [0, 1]
            await driver.execute("UPDATE items SET value = 3")
            await (connection.commit() if keep else connection.rollback())

    outcomes = await together(bench, write(bench, 1), member(), write(bench, 3))
    assert outcomes == [None] * 3
    assert marks(bench) == ([0, 1, 2, 3] if keep else [0, 1, 3])
    assert rows(bench.path, "SELECT DISTINCT value FROM items") == [(3 if keep else 0,)]


async def test_driver_connection_of_a_reader_that_had_read(bench):
    """What it had read is checked before the connection is handed out, not after."""
    bench.learn()
    async with bench.engine.connect() as connection:
        await connection.execute(READ)
        driver = (await connection.get_raw_connection()).driver_connection
        await driver.execute("UPDATE items SET value = 3")
        await connection.commit()
    assert rows(bench.path, "SELECT DISTINCT value FROM items") == [(3,)]


async def test_log_past_its_limits(bench, monkeypatch):
    """A member too long to be run again leaves the group, and goes on alone."""
    monkeypatch.setattr(log, "MAX_STATEMENTS", 5)

    async def long(run, keep):
        async with bench.engine.connect() as connection:
            for _ in range(8):
                await connection.execute(RAISE)
            await connection.execute(ADD, {"run": run})
            await (connection.commit() if keep else connection.rollback())

    sent = traced(bench)
    outcomes = await together(
        bench, write(bench, 1), long(2, True), long(3, False), write(bench, 4)
    )
    assert outcomes == [None] * 4
    assert marks(bench) == [0, 1, 2, 4]
    assert rows(bench.path, "SELECT DISTINCT value FROM items") == [(8,)]
    assert sent.count("COMMIT") >= 3
