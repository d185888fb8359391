"""Odd ground: files that are missing, damaged, full, deleted, replaced or changed by others."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, text
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession

from qsession import QueuedAsyncEngine, create_async_engine
from qsession.sqlite import pool


def make(path: Path, rows: int = 3, wal: bool = True) -> None:
    """A database with a table ``t`` of ``rows`` rows, made without qsession."""
    with closing(sqlite3.connect(path)) as connection:
        if wal:
            connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT)")
        connection.executemany("INSERT INTO t (b) VALUES (?)", [("x" * 500,)] * rows)
        connection.commit()


def rows_of(path: Path) -> int:
    """What another program counts in ``t``."""
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT count(*) FROM t").fetchone()[0])


async def count(engine: QueuedAsyncEngine, access: str = "read") -> int:
    """The rows of ``t`` in a transaction of its own."""
    async with engine.connect() as connection:
        await connection.execution_options(qsession_access=access)
        return int((await connection.execute(text("SELECT count(*) FROM t"))).scalar_one())


async def add(engine: QueuedAsyncEngine) -> None:
    """One more row, committed."""
    async with engine.begin() as connection:
        await connection.execute(text("INSERT INTO t (b) VALUES ('new')"))


def replace_file(path: Path, rows: int) -> None:
    """Another database takes the place of the one at ``path``, as a restore does."""
    new = path.with_name("restored.db")
    make(new, rows)
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    new.replace(path)


def delete_file(path: Path) -> None:
    """Delete a database with its log."""
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


@pytest.fixture
async def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An engine on a file with three rows, which it looks at whenever a transaction begins."""
    monkeypatch.setattr(pool, "LOOK_AGAIN", 0.0)
    make(tmp_path / "a.db")
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'a.db'}", queue_timeout=0.3)
    yield engine
    await engine.dispose()


async def test_missing_folder_is_named_and_may_be_made_later(tmp_path: Path) -> None:
    """A folder that does not exist is an error that names it, and none once it is there."""
    folder = tmp_path / "missing"
    engine = create_async_engine(f"sqlite+aiosqlite:///{folder}/a.db")
    with pytest.raises(OperationalError, match=rf"the folder '{folder}' does not exist"):
        await count(engine)
    folder.mkdir()
    make(folder / "a.db")
    assert await count(engine) == 3
    await engine.dispose()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such name")
async def test_path_that_is_not_utf_8(tmp_path: Path) -> None:
    """A folder from an old disk: SQLite gives its path in bytes, which are no valid text."""
    folder = tmp_path / os.fsdecode(b"\xdcbung")
    folder.mkdir()
    path = folder / "app.db"
    make(path, rows=3)
    engine = create_async_engine(URL.create("sqlite+aiosqlite", database=str(path)))
    await add(engine)
    assert await count(engine) == 4
    async with engine.connect() as connection:  # ATTACH looks at the files again
        await connection.execute(text("ATTACH ':memory:' AS other"))
        await connection.execute(text("CREATE TABLE other.notes (id)"))
        await connection.commit()
    assert engine.pool.write_queue.place == str(path)
    await engine.dispose()
    assert rows_of(path) == 4


async def test_folder_in_place_of_a_file(tmp_path: Path) -> None:
    """A folder is not a database, and the error says what cannot be opened."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}")
    with pytest.raises(OperationalError, match=r"unable to open database file.*is a folder"):
        await count(engine)
    await engine.dispose()


async def test_not_a_database(tmp_path: Path) -> None:
    """A file of something else is named, is not touched, and may be put right."""
    path = tmp_path / "a.db"
    path.write_bytes(b"This is a letter, not a database. " * 100)
    before = path.read_bytes()
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    with pytest.raises(
        DatabaseError, match=r"a\.db' is not an SQLite database, or it is encrypted"
    ):
        await add(engine)
    with pytest.raises(DatabaseError, match="file is not a database"):
        await count(engine)
    assert path.read_bytes() == before
    path.unlink()
    make(path)
    await add(engine)
    assert await count(engine) == 4
    await engine.dispose()


@pytest.mark.parametrize("access", ["read", "write"])
async def test_corrupted_page(tmp_path: Path, access: str) -> None:
    """A damaged page is reported with a way out; rows on other pages can still be read."""
    path = tmp_path / "a.db"
    make(path, rows=100)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE other (a)")
        connection.execute("INSERT INTO other VALUES (1)")
        connection.commit()
        size = connection.execute("PRAGMA page_size").fetchone()[0]
        root = connection.execute("SELECT rootpage FROM sqlite_master").fetchone()[0]
    good = path.read_bytes()
    with path.open("r+b") as file:
        file.seek((root - 1) * size)
        file.write(b"\xff" * size)
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    for _ in range(2):
        with pytest.raises(DatabaseError, match=r"is damaged; see https://sqlite\.org/recovery"):
            await count(engine, access)
    async with engine.begin() as connection:
        await connection.execute(text("INSERT INTO other VALUES (2)"))
        assert (await connection.execute(text("SELECT count(*) FROM other"))).scalar() == 2
    await engine.dispose()
    path.write_bytes(good)
    assert await count(engine, access) == 100
    await engine.dispose()


@pytest.mark.parametrize("change", ["deleted", "replaced"])
@pytest.mark.parametrize("access", ["read", "write"])
async def test_file_is_gone_between_transactions(
    engine: QueuedAsyncEngine, tmp_path: Path, access: str, change: str
) -> None:
    """The next transaction on a file that was taken away fails once; then the new one is used."""
    assert await count(engine, access) == 3
    path = tmp_path / "a.db"
    delete_file(path) if change == "deleted" else replace_file(path, rows=7)
    with pytest.raises(OperationalError, match=f"was {change}.*opens the file again"):
        await count(engine, access)
    if change == "deleted":
        make(path, rows=7)
    assert await count(engine, access) == 7
    await add(engine)
    assert rows_of(path) == 8


@pytest.mark.parametrize("change", ["deleted", "replaced"])
async def test_file_is_gone_before_the_commit(
    engine: QueuedAsyncEngine, tmp_path: Path, change: str
) -> None:
    """A commit into a file that has no name any more is an error, never an acknowledgement."""
    path = tmp_path / "a.db"
    async with AsyncSession(engine) as session:
        await session.execute(text("INSERT INTO t (b) VALUES ('lost')"))
        delete_file(path) if change == "deleted" else replace_file(path, rows=7)
        with pytest.raises(OperationalError, match=f"was {change}.*committed to the old file"):
            await session.commit()
        await session.rollback()
        if change == "deleted":
            make(path, rows=7)
        await session.execute(text("INSERT INTO t (b) VALUES ('kept')"))
        await session.commit()
    assert rows_of(path) == 8
    assert engine.stats().holder is None


async def test_file_is_replaced_while_a_transaction_reads(
    engine: QueuedAsyncEngine, tmp_path: Path
) -> None:
    """A reader keeps its snapshot of the old file; what it writes then does not go there."""
    path = tmp_path / "a.db"
    async with engine.connect() as connection:
        await connection.execution_options(qsession_access="read")
        for _ in range(2):
            assert (await connection.execute(text("SELECT count(*) FROM t"))).scalar() == 3
            replace_file(path, rows=7)
    with pytest.raises(OperationalError, match="replaced by another file"):
        await count(engine)
    assert await count(engine) == 7


async def test_file_is_replaced_while_a_lone_statement_waits(tmp_path: Path) -> None:
    """What commits by itself looks after it has waited for the ticket, not only before."""
    path = tmp_path / "a.db"
    make(path)
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    lone = engine.execution_options(isolation_level="AUTOCOMMIT")

    async def write() -> None:
        async with lone.connect() as connection:
            await connection.exec_driver_sql("INSERT INTO t (b) VALUES (?)", [("x",), ("y",)])

    async with engine.connect() as holder:
        await holder.execute(text("INSERT INTO t (b) VALUES ('held')"))
        job = asyncio.create_task(write())
        while not engine.stats().waiting:
            await asyncio.sleep(0)
        replace_file(path, rows=7)
        await holder.rollback()
    with pytest.raises(OperationalError, match="replaced by another file"):
        await job
    await engine.dispose()
    assert rows_of(path) == 7


async def test_schema_changed_by_another_process(engine: QueuedAsyncEngine, tmp_path: Path) -> None:
    """Prepared statements of readers and of the writer see new columns and tables."""
    star = text("SELECT * FROM t WHERE a = 1")
    async with engine.connect() as reading, engine.connect() as writing:
        await reading.execution_options(qsession_access="read")
        await writing.execution_options(qsession_access="write")
        for connection in (reading, writing):
            assert len((await connection.execute(star)).keys()) == 2
            await connection.rollback()
        with closing(sqlite3.connect(tmp_path / "a.db")) as other:
            other.execute("ALTER TABLE t ADD COLUMN c DEFAULT 5")
            other.execute("CREATE TABLE u (a)")
            other.commit()
        for connection in (reading, writing):
            result = await connection.execute(star)
            assert list(result.keys()) == ["a", "b", "c"]
            assert result.one().c == 5
            await connection.rollback()
        await writing.execute(text("INSERT INTO u SELECT c FROM t"))
        await writing.commit()
        assert (await reading.execute(text("SELECT count(*) FROM u"))).scalar() == 3


async def test_table_dropped_by_another_process(engine: QueuedAsyncEngine, tmp_path: Path) -> None:
    """A table that another process dropped is SQLAlchemy's usual error, and no more than that."""
    assert await count(engine) == 3
    with closing(sqlite3.connect(tmp_path / "a.db")) as other:
        other.execute("DROP TABLE t")
        other.commit()
    for access in ("read", "write"):
        with pytest.raises(OperationalError, match="no such table: t"):
            await count(engine, access)
    assert engine.stats().holder is None


async def test_file_switched_to_another_journal_and_back(
    engine: QueuedAsyncEngine, tmp_path: Path
) -> None:
    """A file that another tool takes out of WAL mode is put back into it by new connections."""
    await add(engine)
    await engine.dispose()
    with closing(sqlite3.connect(tmp_path / "a.db")) as other:
        assert other.execute("PRAGMA journal_mode=DELETE").fetchone() == ("delete",)
    await add(engine)
    assert await count(engine) == 5
    assert (tmp_path / "a.db-wal").exists()
