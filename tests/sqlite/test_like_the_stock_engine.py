"""What existing code takes for granted: it works here as it does on SQLAlchemy's own engine."""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
import warnings
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiosqlite
import pytest
from engines import Make
from sqlalchemy import event, exc, func, insert, literal, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.ext.asyncio import create_async_engine as stock_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.pool import NullPool
from sqlalchemy.util import await_only

from qsession import ConflictError, QSession, UncommittedChangesWarning


class Base(DeclarativeBase):
    pass


class Page(Base):
    __tablename__ = "pages"

    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str]
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012


async def run(engine: Any, *statements: str) -> None:
    """Execute each statement in a transaction of its own."""
    for sql in statements:
        async with engine.begin() as connection:
            await connection.execute(text(sql))


def keys_on(raw: Any, _: Any) -> None:
    """A "connect" listener, as most applications with foreign keys have one."""
    raw.execute("PRAGMA foreign_keys=ON")


async def count(engine: Any, table: str = "t") -> int:
    """How many rows a table has."""
    async with engine.connect() as connection:
        found: int = await connection.scalar(text(f"SELECT count(*) FROM {table}"))
        return found


async def test_a_session_sees_what_was_done_through_another_one(make: Make) -> None:
    """It reads, another session of the same task writes, and it reads again."""
    engine = make()
    await run(engine, "CREATE TABLE t (x)")
    async with AsyncSession(engine) as first:
        assert await first.scalar(text("SELECT count(*) FROM t")) == 0
        async with AsyncSession(engine) as second:
            await second.execute(text("INSERT INTO t VALUES (1)"))
            await second.commit()
        assert await first.scalar(text("SELECT count(*) FROM t")) == 1


@pytest.mark.parametrize("learnt", [False, True])
async def test_a_session_that_polls_sees_the_latest(make: Make, learnt: bool) -> None:
    """Also once its call site is known to read only."""
    engine = make()
    await run(engine, "CREATE TABLE t (x)")

    async def poll(changes: int) -> list[int]:
        seen = []
        async with AsyncSession(engine) as session:
            for number in range(changes + 1):
                seen.append(await session.scalar(text("SELECT count(*) FROM t")))
                if number < changes:
                    await asyncio.create_task(run(engine, "INSERT INTO t VALUES (1)"))
        return seen

    for _ in range(20 if learnt else 0):
        await poll(0)
    assert await poll(3) == [0, 1, 2, 3]


async def test_one_snapshot_where_it_is_asked_for(make: Make) -> None:
    """``reads="snapshot"`` of the engine, or of one transaction."""
    for options, keywords in (({}, {"reads": "snapshot"}), ({"qsession_reads": "snapshot"}, {})):
        engine = make(**keywords)
        await run(engine, "DROP TABLE IF EXISTS t", "CREATE TABLE t (x)")
        bound = engine.execution_options(**options)
        async with AsyncSession(bound) as session:
            assert await session.scalar(text("SELECT count(*) FROM t")) == 0
            await asyncio.create_task(run(engine, "INSERT INTO t VALUES (1)"))
            assert await session.scalar(text("SELECT count(*) FROM t")) == 0


async def test_a_version_that_is_stale(make: Make) -> None:
    """`StaleDataError`, as code with a ``version_id_col`` expects, and the conflict behind it."""
    engine = make()
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(engine) as session:
        session.add(Page(id=1, body=""))
        await session.commit()
    async with AsyncSession(engine) as first, AsyncSession(engine) as second:
        mine, theirs = await first.get_one(Page, 1), await second.get_one(Page, 1)
        mine.body = "mine"
        await first.commit()
        theirs.body = "theirs"
        with pytest.raises(StaleDataError) as caught:
            await second.commit()
        assert isinstance(caught.value.__cause__, ConflictError)
        await second.rollback()
        assert (await second.get_one(Page, 1)).body == "mine"


async def test_a_conflict_without_a_version(make: Make) -> None:
    """An UPDATE that checks no version is a conflict, also of a table with a version."""
    engine = make()
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await run(engine, "INSERT INTO pages VALUES (1, '', 1)")
    async with AsyncSession(engine) as session:
        await session.execute(select(Page.body))
        await asyncio.create_task(run(engine, "UPDATE pages SET body = 'theirs'"))
        with pytest.raises(ConflictError):
            await session.execute(text("UPDATE pages SET body = 'mine'"))


async def test_ddl_that_ends_without_commit_is_told(make: Make) -> None:
    """The stock driver used to commit it. A rollback on purpose says nothing."""
    engine = make()
    with pytest.warns(UncommittedChangesWarning, match="CREATE TABLE new"):
        async with engine.connect() as connection:
            await connection.execute(text("CREATE TABLE new (x)"))
    with pytest.warns(UncommittedChangesWarning, match="user_version"):
        async with engine.connect() as connection:
            await connection.execute(text("PRAGMA user_version = 7"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with engine.connect() as connection:
            await connection.execute(text("CREATE TABLE new (x)"))
            await connection.execute(text("PRAGMA user_version"))
            await connection.rollback()
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE new (x)"))
    assert await count(engine, "new") == 0


FROM_ONE = "WITH one AS (SELECT 1 AS x) "


@pytest.mark.parametrize(
    "sql",
    [
        FROM_ONE + "INSERT INTO t SELECT x FROM one",
        FROM_ONE + "UPDATE t SET x = x + 1 RETURNING x",
        FROM_ONE + "DELETE FROM t",
        "ANALYZE",
    ],
)
async def test_a_text_that_sqlite3_commits_is_told_of_if_it_is_lost(make: Make, sql: str) -> None:
    """The stock driver sends no BEGIN before a WITH, so it commits it."""
    engine = make()
    await run(engine, "CREATE TABLE t (x)", "INSERT INTO t VALUES (0)", "CREATE INDEX i ON t (x)")
    for use in (engine.connect(), AsyncSession(engine), QSession(engine)):
        with pytest.warns(UncommittedChangesWarning, match=re.escape(sql[:20])) as caught:
            async with use as used:
                await used.execute(text(sql))
        assert len(caught) == 1
    assert await count(engine) == 1


async def test_a_compiled_statement_with_a_cte_is_told_of_if_it_is_lost(make: Make) -> None:
    """SQLAlchemy writes WITH first, and the driver looks at the first word only."""
    engine = make()
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    one = select(literal(1).label("id")).cte("one")
    columns = select(one.c.id, literal("").label("body"), literal(1).label("version"))
    adding = insert(Page).from_select(["id", "body", "version"], columns).add_cte(one)
    with pytest.warns(UncommittedChangesWarning, match="WITH one"):
        async with engine.connect() as connection:
            await connection.execute(adding)


async def test_nothing_is_told_where_nothing_is_lost(make: Make) -> None:
    """A WITH that reads, or changes no row, and a PRAGMA that reads, behind a write."""
    engine = make()
    await run(engine, "CREATE TABLE t (x)")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for sql in (
            FROM_ONE + "SELECT * FROM one",
            FROM_ONE + "DELETE FROM t WHERE x > 9",
            "PRAGMA user_version",
        ):
            async with engine.connect() as connection:
                await connection.execute(text(sql))
            async with engine.connect() as connection:
                await connection.execute(text("INSERT INTO t VALUES (1)"))
                await connection.execute(text(sql))
        async with engine.begin() as connection:
            await connection.execute(text(FROM_ONE + "INSERT INTO t SELECT x FROM one"))
    assert await count(engine) == 1


async def test_nothing_is_told_of_ddl_that_changes_nothing_in_the_file(make: Make) -> None:
    """What is there already, or was not there, and a temporary table, which ends with its user."""
    engine = make()
    await run(engine, "CREATE TABLE t (x)", "CREATE INDEX i ON t (x)")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for sql in (
            "CREATE TABLE IF NOT EXISTS t (x)",
            "CREATE INDEX IF NOT EXISTS i ON t (x)",
            "DROP TABLE IF EXISTS another",
        ):
            async with engine.connect() as connection:
                await connection.execute(text(sql))
        async with engine.connect() as connection:
            await connection.execute(text("CREATE TEMPORARY TABLE mine (x)"))
            await connection.execute(text("ALTER TABLE mine ADD COLUMN y"))
            await connection.execute(text("INSERT INTO mine VALUES (1, 2)"))
            await connection.execute(text("DROP TABLE mine"))
    for sql in ("CREATE TABLE IF NOT EXISTS u (x)", "DROP INDEX i", "ALTER TABLE t ADD COLUMN y"):
        with pytest.warns(UncommittedChangesWarning, match=re.escape(sql)):
            async with engine.connect() as connection:
                await connection.execute(text(sql))


async def test_connections_are_equal_whoever_made_the_proxy(make: Make) -> None:
    """``session.connection()`` and the connection that the session is bound to, either way."""
    for engine in (make(), make(by=stock_engine)):
        async with engine.connect() as mine, AsyncSession(mine) as session:
            theirs = await session.connection()
            assert mine == theirs
            assert theirs == mine
            assert not mine != theirs  # noqa: SIM202
        async with engine.connect() as one, engine.connect() as another:
            assert one != another


async def test_info_of_connect_listeners(make: Make) -> None:
    """``connection.info`` holds what a "connect" listener has put into the record's."""
    engine = make()
    event.listen(engine.sync_engine, "connect", lambda raw, record: record.info.update(mark=7))
    event.listen(engine.sync_engine, "connect", lambda _, record: record.record_info.update(of=8))
    async with engine.connect() as connection:
        assert (await connection.run_sync(lambda inner: dict(inner.info)))["mark"] == 7
        assert (await connection.get_raw_connection()).record_info == {"of": 8}
        await connection.execute(text("SELECT 1"))
        assert (await connection.run_sync(lambda inner: dict(inner.info)))["mark"] == 7


async def test_a_file_attached_to_itself(make: Make, tmp_path: Path) -> None:
    """It can be read. A write would wait for itself: the error says so, at once."""
    engine = make(queue_timeout=600)
    await run(engine, "CREATE TABLE t (x)")
    async with engine.connect() as connection:
        await connection.execute(text(f"ATTACH '{tmp_path / 'a.db'}' AS same"))
        assert await connection.scalar(text("SELECT count(*) FROM same.t")) == 0
        with pytest.raises(exc.OperationalError, match=r"attached its own database file.*DETACH"):
            await connection.execute(text("INSERT INTO t VALUES (1)"))
    await run(engine, "INSERT INTO t VALUES (2)")
    assert await count(engine) == 1


async def test_null_pool_keeps_nothing_open(make: Make, tmp_path: Path) -> None:
    """So the file may be deleted between two uses."""
    engine, path = make(poolclass=NullPool), tmp_path / "a.db"
    for _ in range(3):
        await run(engine, "CREATE TABLE IF NOT EXISTS t (x)", "INSERT INTO t VALUES (1)")
        assert await count(engine) == 1
        assert os.listdir(tmp_path).count("a.db-wal") == 0  # the last connection was closed
        os.unlink(path)


async def test_module_argument(make: Make) -> None:
    """``module=`` names aiosqlite, or what is like it; another one is refused with a way out."""
    engine = make(module=aiosqlite)
    await run(engine, "CREATE TABLE t (x)")
    assert await count(engine) == 0
    with pytest.raises(exc.ArgumentError, match="async_creator"):
        make(module=sqlite3)
    with pytest.raises(exc.ArgumentError, match="async_creator"):
        make(module=SimpleNamespace(Connection=object))


async def test_creator_argument(make: Make, tmp_path: Path) -> None:
    """``creator=`` opens the driver's connection by itself."""
    path = os.fspath(tmp_path / "a.db")

    async def opened() -> aiosqlite.Connection:
        return await aiosqlite.connect(path)

    engine = make(creator=lambda: await_only(opened()))
    await run(engine, "CREATE TABLE t (x)", "INSERT INTO t VALUES (1)")
    assert await count(engine) == 1
    engine = make(creator=lambda: aiosqlite.connect(path))  # not awaited: nothing awaits it here
    await run(engine, "INSERT INTO t VALUES (2)")
    assert await count(engine) == 2
    with closing(sqlite3.connect(path)) as raw:
        wrong = make(creator=lambda: raw)
        with pytest.raises(exc.ArgumentError, match="async_creator"):
            await count(wrong)


async def test_data_version_watches_a_file(make: Make, tmp_path: Path) -> None:
    """On a connection that is kept, between its transactions, beside others at work."""
    engine = make(pool_size=5)
    await run(engine, "CREATE TABLE t (x)")
    outside = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    async with engine.connect() as watching:

        async def version() -> Any:
            found = await watching.scalar(text("PRAGMA data_version"))
            await watching.rollback()
            return found

        last = await version()
        for number in range(12):
            await asyncio.gather(*(count(engine) for _ in range(number % 4)))
            changed = number % 3 == 0
            if changed:
                outside.execute("INSERT INTO t VALUES (1)")
            now = await version()
            assert (now != last) == changed
            last = now
    outside.close()


async def test_a_pragma_of_each_session(make: Make) -> None:
    """What changes nothing keeps nothing; what changes something is set back for the next one."""
    engine = make()
    event.listen(
        engine.sync_engine, "connect", lambda raw, _: raw.execute("PRAGMA foreign_keys=ON")
    )
    opened: list[int] = []
    event.listen(engine.sync_engine, "connect", lambda raw, _: opened.append(1))
    await run(engine, "CREATE TABLE t (x)")
    for setting in ("foreign_keys=ON", "foreign_keys=OFF", "cache_size=-4000"):
        for _ in range(5):
            async with AsyncSession(engine) as session:
                await session.execute(text(f"PRAGMA {setting}"))
                await session.execute(text("SELECT * FROM t"))
    async with AsyncSession(engine) as session:
        assert await session.scalar(text("PRAGMA foreign_keys")) == 1
        assert await session.scalar(text("PRAGMA cache_size")) != -4000
    assert len(opened) <= 2


@pytest.mark.parametrize("commits", [True, False])
async def test_foreign_keys_in_a_small_migration(make: Make, commits: bool) -> None:
    """Off behind a SELECT, so that a table can be rebuilt; on again behind the last write.

    SQLite ignores the last PRAGMA in silence. Here it has effect once the transaction has ended.
    """
    engine = make()
    event.listen(
        engine.sync_engine, "connect", lambda raw, _: raw.execute("PRAGMA foreign_keys=ON")
    )
    await run(
        engine,
        "CREATE TABLE parent (id INTEGER PRIMARY KEY)",
        "CREATE TABLE child (parent REFERENCES parent ON DELETE CASCADE)",
        "INSERT INTO parent VALUES (1)",
        "INSERT INTO child VALUES (1), (1)",
    )
    for access in ("auto", "write"):
        async with AsyncSession(engine.execution_options(qsession_access=access)) as session:
            await session.execute(text("SELECT * FROM parent"))
            for sql in (
                "PRAGMA foreign_keys=OFF",
                "CREATE TABLE rebuilt (id INTEGER PRIMARY KEY)",
                "INSERT INTO rebuilt SELECT * FROM parent",
                "DROP TABLE parent",
                "ALTER TABLE rebuilt RENAME TO parent",
                "PRAGMA foreign_keys=ON",
            ):
                await session.execute(text(sql))
            assert await session.scalar(text("PRAGMA foreign_keys")) == 0
            await (session.commit if commits else session.rollback)()
            assert await session.scalar(text("PRAGMA foreign_keys")) == 1
        assert await count(engine, "child") == 2


async def test_begin_by_hand(make: Make) -> None:
    """Where SQLite would accept it: behind a SELECT, behind a COMMIT by hand, in a listener."""
    engine = make()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    steps = ["COMMIT", "PRAGMA foreign_keys=OFF", "BEGIN IMMEDIATE", "CREATE TABLE t (x)", "END"]
    async with engine.connect() as connection:
        for sql in (*steps, "BEGIN", "SELECT * FROM t", "COMMIT"):
            await connection.exec_driver_sql(sql)
        with pytest.raises(exc.OperationalError, match="within a transaction"):
            for _ in range(2):
                await connection.exec_driver_sql("BEGIN IMMEDIATE")
    event.remove(engine.sync_engine, "begin", begin)
    async with AsyncSession(engine) as session:
        await session.execute(text("SELECT * FROM t"))
        await session.execute(text("BEGIN IMMEDIATE"))
        await session.execute(text("INSERT INTO t VALUES (1)"))
        await session.commit()
    assert await count(engine) == 1


@pytest.mark.parametrize("prefix", ["\ufeff", ";", "/* so */ ;; -- that\n"])
async def test_a_commit_in_disguise(make: Make, prefix: str) -> None:
    """SQLite skips what stands before it, and so do we: what was written is there, once."""
    engine = make()
    await run(engine, "CREATE TABLE t (x)")
    async with AsyncSession(engine) as session:
        await session.execute(text("INSERT INTO t VALUES (1)"))
        await session.execute(text(f"{prefix}COMMIT"))
        await session.rollback()
    assert await count(engine) == 1
    assert engine.stats().holder is None


async def test_a_select_that_writes_is_rolled_back(make: Make) -> None:
    """A function may write on its connection, as those of SpatiaLite do; in a snapshot it is part
    of the transaction.
    """
    engine = make(access="write")

    @event.listens_for(engine.sync_engine, "connect")
    def connect(connection: Any, _record: Any) -> None:
        raw = connection.raw
        raw.create_function("put", 0, lambda: raw.execute("INSERT INTO t VALUES (1)").rowcount)

    await run(engine, "CREATE TABLE t (x)")
    async with engine.connect() as connection:
        await connection.execute(select(func.put()))
        await connection.rollback()
    assert await count(engine) == 0
    async with engine.connect() as connection:
        await connection.execute(select(func.put()))
        await connection.commit()
    assert await count(engine) == 1
