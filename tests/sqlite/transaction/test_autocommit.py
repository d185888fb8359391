"""AUTOCOMMIT: each statement is its own transaction, unless the application begins one by hand."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from engines import Make, metadata, notes
from sqlalchemy import event, func, insert, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from qsession import QueuedAsyncEngine
from qsession.sqlite.transaction import sending

COUNT = select(func.count()).select_from(notes)


async def autocommit(make: Make) -> tuple[QueuedAsyncEngine, AsyncConnection]:
    """A connection in AUTOCOMMIT, on a table of three rows."""
    engine = make()
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
        await connection.execute(insert(notes), [{"id": n} for n in range(3)])
    connection = await engine.connect()
    await connection.execution_options(isolation_level="AUTOCOMMIT")
    return engine, connection


async def run(connection: AsyncConnection, *statements: str) -> int:
    """Send texts, then count the rows on another connection."""
    for each in statements:
        await connection.execute(text(each))
    async with connection.engine.connect() as other:
        return int(await other.scalar(COUNT.execution_options(qsession_access="read")) or 0)


async def test_each_statement_is_committed(make: Make) -> None:
    """There is nothing to roll back, and nothing is held between statements."""
    engine, connection = await autocommit(make)
    assert await run(connection, "DELETE FROM notes WHERE id=0") == 2
    assert engine.stats().holder is None
    await connection.rollback()
    assert await connection.scalar(COUNT) == 2
    await connection.close()


async def test_streams_of_what_writes(make: Make) -> None:
    """A lone statement that writes is not streamed; its rows come all the same."""
    _, connection = await autocommit(make)
    returning = insert(notes).returning(notes.c.id)
    for statement, ids in (
        (returning.values([{"id": 7}, {"id": 8}, {"id": 9}]), [7, 8, 9]),
        (select(notes.c.id).where(notes.c.id > 7).with_for_update(), [8, 9]),
    ):
        async with connection.stream(statement) as found:
            assert sorted([row.id async for row in found]) == ids
    await connection.close()


async def test_vacuum_and_pragma(make: Make) -> None:
    """What may not run inside a transaction runs here, and a setting stays for this connection."""
    _, connection = await autocommit(make)
    await run(connection, "VACUUM", "PRAGMA user_version=7", "PRAGMA foreign_keys=ON")
    assert await connection.scalar(text("PRAGMA user_version")) == 7
    assert await connection.scalar(text("PRAGMA foreign_keys")) == 1
    await connection.close()


async def test_text_transactions(make: Make) -> None:
    """BEGIN, COMMIT and ROLLBACK as text delimit a transaction by hand."""
    engine, connection = await autocommit(make)
    assert await run(connection, "BEGIN", "DELETE FROM notes", "ROLLBACK") == 3
    assert await run(connection, "BEGIN IMMEDIATE", "DELETE FROM notes WHERE id=0") == 3
    assert engine.stats().holder is not None
    assert await run(connection, "COMMIT") == 2
    assert await run(connection, "begin exclusive", "DELETE FROM notes", "END") == 0
    assert engine.stats().holder is None
    await connection.close()


async def test_text_savepoints(make: Make) -> None:
    """A savepoint outside of a transaction begins one; releasing it commits, as in SQLite."""
    engine, connection = await autocommit(make)
    delete = "DELETE FROM notes WHERE id=0"
    assert await run(connection, "SAVEPOINT a", delete, "ROLLBACK TO a", "RELEASE a") == 3
    assert await run(connection, "SAVEPOINT a", "SAVEPOINT b", delete, "RELEASE b") == 3
    assert await run(connection, "RELEASE SAVEPOINT a") == 2
    assert engine.stats().holder is None
    await connection.close()


async def test_begin_nested(make: Make) -> None:
    """SQLAlchemy's savepoints work under AUTOCOMMIT as well."""
    engine, connection = await autocommit(make)
    async with connection.begin_nested():
        await connection.execute(text("DELETE FROM notes WHERE id=0"))
    await connection.close()
    async with engine.connect() as other:
        assert await other.scalar(COUNT) == 2


async def test_engine_in_autocommit(make: Make) -> None:
    """isolation_level="AUTOCOMMIT" of an engine is that of all its sessions."""
    engine = make(isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        await connection.run_sync(metadata.create_all)
    async with AsyncSession(engine) as session:
        await session.execute(insert(notes), {"id": 1})
        await session.rollback()
        assert await session.scalar(COUNT) == 1


async def test_the_option_ends_with_the_connection(make: Make) -> None:
    """The next connection of the same engine is transactional again."""
    engine, connection = await autocommit(make)
    await connection.close()
    async with engine.connect() as other:
        level: Any = await other.get_isolation_level()
        assert level == "SERIALIZABLE"
        await other.execute(text("DELETE FROM notes"))
        await other.rollback()
        assert await other.scalar(COUNT) == 3


async def test_a_statement_that_fails_leaves_nothing(make: Make) -> None:
    """A constraint undoes the statement alone, and the connection goes on at once."""
    engine, connection = await autocommit(make)
    with pytest.raises(IntegrityError):
        await connection.execute(text("INSERT INTO notes (id) VALUES (7), (1)"))
    assert engine.stats().holder is None
    assert await run(connection, "INSERT INTO notes (id) VALUES (8)") == 4
    await connection.close()


async def test_a_trigger_that_rolls_back_leaves_nothing(make: Make) -> None:
    """Where SQLite itself ends the transaction around a statement, the next one can begin."""
    engine, connection = await autocommit(make)
    await run(
        connection,
        "CREATE TRIGGER never BEFORE UPDATE ON notes BEGIN SELECT RAISE(ROLLBACK, 'never'); END",
    )
    with pytest.raises(IntegrityError, match="never"):
        await connection.execute(text("UPDATE notes SET body = 1"))
    assert engine.stats().holder is None
    assert await run(connection, "DELETE FROM notes WHERE id=0") == 2
    await connection.close()


async def test_a_read_waits_for_nobody_who_writes(make: Make) -> None:
    """It is its own transaction, and takes no ticket, whatever its text."""
    engine, connection = await autocommit(make)
    async with engine.begin() as other:
        await other.execute(text("DELETE FROM notes"))
        assert await connection.scalar(COUNT) == 3
        assert await connection.scalar(text("WITH n AS (SELECT 1) SELECT * FROM n")) == 1
    assert await connection.scalar(COUNT) == 0
    assert engine.stats().validations == engine.stats().conflicts == 0
    await connection.close()


async def test_a_text_of_which_only_the_database_knows_that_it_writes(make: Make) -> None:
    """It is committed by itself, as any write."""
    engine, connection = await autocommit(make)
    delete = text("WITH one (id) AS (SELECT 1) DELETE FROM notes WHERE id IN one")
    before = engine.stats()
    await connection.execute(delete)
    assert engine.stats().commits == before.commits + 1
    assert await connection.scalar(COUNT) == 2
    await connection.close()


async def test_savepoints_of_one_name(make: Make) -> None:
    """The innermost one is released; the outermost is still there to be rolled back to."""
    _, connection = await autocommit(make)
    delete = "DELETE FROM notes"
    assert await run(connection, "SAVEPOINT a", "SAVEPOINT a", delete, "RELEASE a") == 3
    assert await run(connection, "ROLLBACK TO a", "RELEASE a") == 3
    await connection.close()


@pytest.mark.parametrize("release", ["RELEASE Name;", 'RELEASE "NAME"', "RELEASE name -- done"])
async def test_a_savepoint_that_is_released(make: Make, release: str) -> None:
    """The outermost one is a transaction, however its name is spelled."""
    engine, connection = await autocommit(make)
    assert await run(connection, "SAVEPOINT name", "DELETE FROM notes", release) == 0
    assert engine.stats().holder is None
    await connection.close()


async def test_a_savepoint_whose_release_fails(make: Make) -> None:
    """It is a COMMIT: what it could not commit is undone, and nothing is held."""
    engine = make()
    event.listen(
        engine.sync_engine, "connect", lambda raw, _: raw.execute("PRAGMA foreign_keys=ON")
    )
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
        await connection.execute(
            text("CREATE TABLE child (id REFERENCES notes (id) DEFERRABLE INITIALLY DEFERRED)")
        )
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        with pytest.raises(IntegrityError):
            async with connection.begin_nested():
                await connection.execute(insert(notes), {"id": 1})
                await connection.execute(text("INSERT INTO child VALUES (99)"))
        assert engine.stats().holder is None
        assert await connection.scalar(COUNT) == 0
        await connection.execute(insert(notes), {"id": 1})


async def test_savepoints_behind_comments(make: Make) -> None:
    """As tools put them there that tell where a statement comes from."""
    engine, connection = await autocommit(make)
    delete = "DELETE FROM notes"
    assert await run(connection, "/* app */ SAVEPOINT a", delete, "/* app */ RELEASE a") == 0
    assert engine.stats().holder is None
    await connection.close()


async def test_or_fail_keeps_what_came_before(make: Make) -> None:
    """SQLite commits the rows before the one that failed (https://sqlite.org/lang_conflict.html)."""
    engine, connection = await autocommit(make)
    with pytest.raises(IntegrityError):
        await connection.execute(text("INSERT OR FAIL INTO notes (id) VALUES (7), (1)"))
    assert engine.stats().holder is None
    assert await connection.scalar(COUNT) == 4
    await connection.close()


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the driver of 3.11 alone does that")
async def test_many_rows_with_returning(make: Make) -> None:
    """However many there are, the driver says that there are columns, and gives no rows."""
    engine = make()
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
        for first, number in ((0, 2), (100, 50)):
            ids = [(first + n,) for n in range(number)]
            found = await connection.exec_driver_sql(
                "INSERT INTO notes (id) VALUES (?) RETURNING id", ids
            )
            assert found.returns_rows


class Id:
    """A number that is bound by an adapter."""

    def __init__(self, number: int) -> None:
        self.number = number


async def test_many_rows_are_sent_once(make: Make, tmp_path: Path) -> None:
    """No other program gets in between them, and the rows before one that fails are kept."""
    engine, connection = await autocommit(make)
    said: list[str] = []

    def bind(each: Id) -> int:
        if each.number == 0:  # the fifth
            try:
                other.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                said.append(str(error))
            else:
                other.execute("ROLLBACK")
        return each.number

    sqlite3.register_adapter(Id, bind)
    path = tmp_path / "a.db"
    with closing(
        sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    ) as other:
        before = engine.stats().commits
        with pytest.raises(IntegrityError):
            await connection.exec_driver_sql(
                "INSERT INTO notes (id) VALUES (?)", [(Id(n),) for n in (10, 11, 12, 13, 0, 14)]
            )
        assert said == ["database is locked"]
        found = other.execute("SELECT id FROM notes ORDER BY id").fetchall()
        assert [number for (number,) in found] == [0, 1, 2, 10, 11, 12, 13]
        other.execute("BEGIN IMMEDIATE")
    assert engine.stats().holder is None
    assert engine.stats().commits == before + 1
    await connection.close()


async def test_a_streamed_write_is_committed_before_its_first_row(make: Make) -> None:
    """Whoever has the first row may idle: it is in the file, and nobody waits for its reader."""
    engine, connection = await autocommit(make)
    returning = insert(notes).values([{"id": 7}, {"id": 8}, {"id": 9}]).returning(notes.c.id)
    async with connection.stream(returning) as found:
        first = await found.fetchone()
        assert engine.stats().holder is None
        async with engine.begin() as other:
            assert await other.scalar(COUNT) == 6
            await other.execute(insert(notes), {"id": 10})
        rest = await found.fetchall()
        assert sorted(row.id for row in [first, *rest] if row) == [7, 8, 9]
    await connection.close()


async def test_ddl_before_another_program_locks_the_file(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is committed: nothing that waits for the lock is sent behind it."""
    engine = make(isolation_level="AUTOCOMMIT", queue_timeout=0.2)

    @event.listens_for(engine.sync_engine, "connect")
    def connect(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=DELETE")
        cursor.close()

    execute, path = sending.execute, engine.url.database
    assert path is not None

    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
        with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:

            def locked_behind(*args: Any) -> Any:
                found = execute(*args)
                other.execute("BEGIN EXCLUSIVE")
                return found

            monkeypatch.setattr(sending, "execute", locked_behind)
            await connection.execute(text("CREATE TABLE made (id INTEGER)"))
            monkeypatch.undo()
            other.execute("ROLLBACK")
        assert await connection.scalar(text("SELECT count(*) FROM made")) == 0
    await engine.dispose()
