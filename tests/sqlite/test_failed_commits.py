"""A transaction that fails while others wait: they go on, and each is told what became of its own.

The COMMIT itself fails, SQLite drops the whole transaction, a statement fails half-way, or the file
is gone.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cancelling import Bench, assert_free, rows
from queueing import ADD, COUNT, RAISE, marks, together, waiters, write
from sqlalchemy import TextClause, event, text
from sqlalchemy.exc import DatabaseError, IntegrityError, OperationalError

from qsession import NestedWriteError, QSessionError

DROPS = [  # statements behind which SQLite has rolled back the whole transaction
    text("INSERT OR ROLLBACK INTO items (id) VALUES (1)"),
    text("INSERT INTO refused (id) VALUES (1)"),
]
SCHEMA = """
    CREATE TABLE refused (id INTEGER);
    CREATE TRIGGER refuses BEFORE INSERT ON refused
        BEGIN SELECT RAISE(ROLLBACK, 'refused'); END;
    CREATE TABLE parents (id INTEGER PRIMARY KEY);
    CREATE TABLE children (parent REFERENCES parents DEFERRABLE INITIALLY DEFERRED);
"""
CHILD = text("INSERT INTO children (parent) VALUES (1)")


def check_foreign_keys(connection: Any, _: object) -> None:
    """As SQLAlchemy's documentation has it."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """An engine with foreign keys that is found whole and free after the test."""
    made = await Bench.ready(tmp_path / "app.db")
    outside = sqlite3.connect(made.path)
    outside.executescript(SCHEMA)
    outside.close()
    await made.engine.dispose()
    event.listen(made.engine.sync_engine, "connect", check_foreign_keys)
    yield made
    await made.check()
    await made.engine.dispose()
    assert_free(made.path)


async def run(bench: Bench, *statements: TextClause, run: int) -> Any:
    """One transaction; what its last statement returned, if that was rows."""
    async with bench.engine.begin() as connection:
        await connection.execute(ADD, {"run": run})
        for statement in statements:
            result = await connection.execute(statement)
            last = result.all() if result.returns_rows else None
    return last


async def test_a_deferred_constraint_fails_only_its_owner(bench: Bench) -> None:
    """SQLite finds out at the COMMIT."""
    outcomes = await together(bench, write(bench, 1), run(bench, CHILD, run=2), write(bench, 3))
    assert outcomes[::2] == [None, None]
    assert isinstance(outcomes[1], IntegrityError)
    assert marks(bench) == [0, 1, 3]


@pytest.mark.parametrize("drops", DROPS)
async def test_a_statement_drops_the_whole_transaction(bench: Bench, drops: TextClause) -> None:
    """Its owner is told, and nobody else loses anything."""
    outcomes = await together(
        bench, write(bench, 1), run(bench, drops, run=2), run(bench, RAISE, COUNT, run=3)
    )
    assert outcomes[0] is None
    assert isinstance(outcomes[1], DatabaseError)
    assert outcomes[2] == [(9,)]
    assert marks(bench) == [0, 1, 3]
    assert rows(bench.path, "SELECT DISTINCT value FROM items") == [(1,)]


async def test_the_owner_is_told_until_it_rolls_back(bench: Bench) -> None:
    """Its transaction is gone: it cannot go on as if only the statement had failed."""
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
    assert marks(bench) == [3]


@pytest.mark.parametrize("partial", ["or fail", "many"])
@pytest.mark.parametrize("keep", [True, False])
async def test_a_statement_fails_half_way(bench: Bench, partial: str, keep: bool) -> None:
    """What it had changed before its error belongs to the transaction.

    It has written by then, so a second transaction of its task would wait for itself.
    """
    async with bench.engine.connect() as connection:
        await connection.execute(COUNT)
        with pytest.raises(IntegrityError):
            if partial == "many":
                many = text("INSERT INTO items (id, value) VALUES (:id, 6)")
                await connection.execute(many, [{"id": 6}, {"id": 1}])
            else:
                await connection.execute(
                    text("INSERT OR FAIL INTO items (id, value) VALUES (6, 6), (1, 1)")
                )
        with pytest.raises(NestedWriteError):
            await write(bench, 1)
        await (connection.commit() if keep else connection.rollback())
    assert rows(bench.path, "SELECT count(*) FROM items WHERE id = 6") == [(int(keep),)]


@pytest.mark.parametrize("replaced", [True, False])
async def test_the_file_is_gone(bench: Bench, tmp_path: Path, replaced: bool) -> None:
    """Nobody is acknowledged into a file that has no name any more."""
    made = await waiters(bench, write(bench, 1), write(bench, 2))
    for suffix in ("", "-wal", "-shm"):
        os.unlink(f"{bench.path}{suffix}")
    if replaced:
        other = await Bench.ready(tmp_path / "other.db")
        await other.engine.dispose()
        os.rename(other.path, bench.path)
    with pytest.raises(OperationalError, match="replaced" if replaced else "deleted"):
        await made.holder.commit()
    for outcome in await made.outcomes():
        assert isinstance(outcome, (DatabaseError, type(None)))
    await made.holder.close()
    if not replaced:
        bench.acknowledged.clear()
        await (await Bench.ready(bench.path)).engine.dispose()
