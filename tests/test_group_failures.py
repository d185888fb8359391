"""A commit group that fails: the COMMIT itself, one member's constraint, the disk, the file."""

from __future__ import annotations

import asyncio
import os
import sqlite3

import pytest
from cancelling import PATIENCE, assert_free, eventually, rows, settled
from grouping import (
    ADD,
    COUNT,
    RAISE,
    Gate,
    check_foreign_keys,
    known_short,
    marks,
    patient,
    ready,
    ready_with,
    together,
    traced,
    waiters,
    write,
)
from sqlalchemy import event, text
from sqlalchemy.exc import DatabaseError, IntegrityError, OperationalError

from qsession import GroupAborted, QSessionError
from qsession.sqlite import group

DROPS = [  # statements behind which SQLite has rolled back everything, members before it included
    text("INSERT OR ROLLBACK INTO items (id) VALUES (1)"),
    text("INSERT INTO refused (id) VALUES (1)"),
]
SCHEMA = """
    CREATE TABLE refused (id INTEGER);
    CREATE TRIGGER refuses BEFORE INSERT ON refused
        BEGIN SELECT RAISE(ROLLBACK, 'refused'); END;
    CREATE TABLE parents (id INTEGER PRIMARY KEY);
    CREATE TABLE children (parent REFERENCES parents DEFERRABLE INITIALLY DEFERRED);
    CREATE TABLE stamps (id INTEGER PRIMARY KEY, stamp BLOB DEFAULT (randomblob(16)));
"""
CHILD = text("INSERT INTO children (parent) VALUES (1)")
PARENT = text("INSERT INTO parents (id) VALUES (1)")
STAMP = text("INSERT INTO stamps DEFAULT VALUES")
STAMPS = text("SELECT stamp FROM stamps")


@pytest.fixture
async def bench(tmp_path, monkeypatch):
    """An engine with foreign keys that is found whole and free after the test."""
    patient(monkeypatch)
    made = await ready_with(tmp_path / "app.db", SCHEMA)
    event.listen(made.engine.sync_engine, "connect", check_foreign_keys)
    async with made.engine.begin() as connection:
        await connection.execute(RAISE)
    known_short(made, *DROPS, CHILD, PARENT, STAMP, STAMPS)
    yield made
    await made.check()
    await made.engine.dispose()
    assert_free(made.path)


async def run(bench, *statements, run=None):
    """One transaction; what its last statement returned, if that was rows."""
    async with bench.engine.begin() as connection:
        if run is not None:
            await connection.execute(ADD, {"run": run})
        for statement in statements:
            result = await connection.execute(statement)
            last = result.all() if result.returns_rows else None
    return last


def failing(monkeypatch, times, error):
    """The next COMMITs of groups fail, and SQLite has kept the transaction, as on a busy lock."""
    commit = group._commit
    left = iter(range(times))
    monkeypatch.setattr(
        group, "_commit", lambda raw, t: commit(raw, t) if next(left, None) is None else error
    )


async def test_every_member_gets_the_error(bench, monkeypatch):
    """The COMMIT fails: nobody is acknowledged, nothing is there, and the next group works."""
    failing(monkeypatch, 1, sqlite3.OperationalError("made up"))

    async def undo():
        async with bench.engine.connect() as connection:
            await connection.execute(ADD, {"run": 3})
            await connection.rollback()

    made = await waiters(bench, write(bench, 1), run(bench, COUNT), undo(), write(bench, 2))
    with pytest.raises(OperationalError, match="made up"):
        await made.first.commit()
    for outcome in await made.outcomes():
        assert isinstance(outcome, OperationalError)
        assert "made up" in str(outcome)
    await made.first.close()
    assert marks(bench) == []
    await together(bench, write(bench, 4), run=5)
    assert marks(bench) == [5, 4]


async def test_deferred_constraint_fails_only_its_owner(bench):
    """SQLite finds out at the COMMIT of the group: the members are committed one by one."""
    sent = traced(bench)
    outcomes = await together(
        bench,
        write(bench, 1),
        run(bench, CHILD, run=2),
        run(bench, PARENT, run=3),
        write(bench, 4),
        run(bench, CHILD, run=5),
    )
    # with the parent of a later member the child of an earlier one is right, as far as anyone saw
    assert sent.count("COMMIT") == 1
    assert outcomes == [None] * 5
    outcomes = await together(
        bench,
        write(bench, 11),
        run(bench, text("INSERT INTO children (parent) VALUES (7)"), run=12),
        write(bench, 13),
        run=10,
    )
    assert outcomes[0] is None
    assert isinstance(outcomes[1], IntegrityError)
    assert outcomes[2] is None
    assert marks(bench) == [0, 1, 2, 3, 4, 5, 10, 11, 13]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("drops", DROPS)
async def test_a_statement_drops_the_whole_transaction(bench, drops, first):
    """The finished members are run again, each by itself, and nobody but the culprit is told."""
    culprit = run(bench, drops, run=None if first else 2)
    outcomes = await together(
        bench, write(bench, 1), culprit, write(bench, 3), run(bench, RAISE, COUNT, run=4)
    )
    assert isinstance(outcomes[1], DatabaseError)
    assert outcomes[::2] == [None, None]
    assert outcomes[3] == [(12,)]
    assert marks(bench) == [0, 1, 3, 4]
    assert len(rows(bench.path, "SELECT id FROM marks")) == 12
    assert rows(bench.path, "SELECT DISTINCT value FROM items") == [(2,)]


async def test_the_culprit_is_told_until_it_rolls_back(bench):
    """Its transaction is gone: it cannot go on as if only the statement had failed."""

    async def stubborn():
        async with bench.engine.connect() as connection:
            await connection.execute(ADD, {"run": 2})
            with pytest.raises(DatabaseError):
                await connection.execute(DROPS[0])
            with pytest.raises(QSessionError):
                await connection.execute(ADD, {"run": 2})
            with pytest.raises(QSessionError):
                await connection.commit()
            await connection.rollback()
            await connection.execute(ADD, {"run": 3})
            await connection.commit()

    assert await together(bench, write(bench, 1), stubborn()) == [None, None]
    assert marks(bench) == [0, 1, 3]


async def test_replay_comes_out_different(bench):
    """A member saw what SQLite makes up anew each time: it cannot be run again, and is told so."""
    outcomes = await together(
        bench, write(bench, 1), run(bench, STAMP, STAMPS, run=2), run(bench, DROPS[0])
    )
    assert outcomes[0] is None
    assert isinstance(outcomes[1], GroupAborted)
    assert isinstance(outcomes[1], OperationalError)
    assert "SELECT stamp FROM stamps" in str(outcomes[1])
    assert marks(bench) == [0, 1]


@pytest.mark.parametrize("partial", ["or fail", "many"])
@pytest.mark.parametrize("keep", [True, False])
async def test_statement_that_failed_half_way(bench, partial, keep):
    """What it had changed before its error belongs to the transaction, in a group as elsewhere."""
    fail = text("INSERT OR FAIL INTO items (id, value) VALUES (6, 6), (1, 1)")
    many = text("INSERT INTO items (id, value) VALUES (:id, 6)")
    known_short(bench, fail, many)

    async def member():
        async with bench.engine.connect() as connection:
            await connection.execute(COUNT)
            with pytest.raises(IntegrityError):
                if partial == "many":
                    await connection.execute(many, [{"id": 6}, {"id": 1}])
                else:
                    await connection.execute(fail)
            await (connection.commit() if keep else connection.rollback())

    assert await together(bench, write(bench, 1), member(), write(bench, 2)) == [None] * 3
    assert rows(bench.path, "SELECT count(*) FROM items WHERE id = 6") == [(int(keep),)]


async def test_failed_half_way_and_suspended(bench):
    """Rows that a failed statement left keep the transaction from being taken for a reader."""
    fail = text("INSERT OR FAIL INTO items (id, value) VALUES (6, 6), (1, 1)")
    async with bench.engine.connect() as outer:
        await outer.execute(COUNT)
        with pytest.raises(IntegrityError):
            await outer.execute(fail)
        with pytest.raises(QSessionError):
            await write(bench, 1)
        await outer.commit()
    assert rows(bench.path, "SELECT value FROM items WHERE id = 6") == [(6,)]


@pytest.mark.parametrize("replaced", [True, False])
async def test_file_is_deleted_under_a_group(bench, monkeypatch, tmp_path, replaced):
    """No member is acknowledged into a file that has no name any more."""
    made = await waiters(bench, write(bench, 1), run(bench, COUNT))
    for suffix in ("", "-wal", "-shm"):
        os.unlink(f"{bench.path}{suffix}")
    if replaced:
        await (await ready(tmp_path / "other.db")).engine.dispose()
        os.rename(tmp_path / "other.db", bench.path)
    with pytest.raises(OperationalError, match="replaced" if replaced else "deleted"):
        await made.first.commit()
    for outcome in await made.outcomes():
        assert isinstance(outcome, (DatabaseError, type(None)))
    await made.first.close()
    bench.acknowledged.clear()
    if replaced:
        assert marks(bench) in ([], [1])
    else:
        await (await ready(bench.path)).engine.dispose()


@pytest.mark.parametrize("where", ["BEGIN", "thread"])
async def test_member_is_cancelled_while_the_group_is_run_again(bench, monkeypatch, where):
    """Whoever waits behind the replay is cancelled: that breaks off nobody's replay."""
    gate = Gate(monkeypatch, group, "_replay")
    made = await waiters(bench, write(bench, 1), run(bench, DROPS[0]), write(bench, 2))
    going = asyncio.create_task(made.go())
    await gate.is_reached()
    if where == "thread":
        await eventually(made.tasks[1].done)
    made.tasks[2].cancel()
    await asyncio.wait(made.tasks[2:], timeout=0)
    gate.opened.set()
    outcomes = await asyncio.wait_for(going, PATIENCE)
    assert outcomes[0] is None
    assert isinstance(outcomes[2], asyncio.CancelledError)
    assert marks(bench)[:2] == [0, 1]
    await made.first.close()
    await settled(bench.engine)


async def test_autocommit_runs_again_by_itself(bench):
    """What a lone statement found in a group that failed was seen by nobody: it runs once more."""
    mark = text("UPDATE items SET value = 99 WHERE id = 1")
    follow = text("UPDATE items SET value = 100 WHERE value = 99")
    known_short(bench, mark, CHILD, follow)
    changed = []

    async def orphan():
        async with bench.engine.begin() as connection:
            await connection.execute(mark)
            await connection.execute(CHILD)

    async def alone():
        async with bench.engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            changed.append((await connection.execute(follow)).rowcount)

    sent = traced(bench)
    outcomes = await together(bench, orphan(), alone())
    assert [type(each) for each in outcomes] == [IntegrityError, type(None)]
    assert sent.index("SAVEPOINT") < sent.index("COMMIT")  # they were in one group
    assert changed == [0]
    assert rows(bench.path, "SELECT count(*) FROM items WHERE value >= 99") == [(0,)]
