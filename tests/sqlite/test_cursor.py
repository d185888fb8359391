"""Cursors: streams that outlive commits, results of every kind, and cursors used by hand."""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest
from engines import Make
from sqlalchemy import String, bindparam, delete, func, insert, select, text, update
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.exc import InterfaceError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from qsession import QueuedAsyncEngine

READ, WRITE = ({"qsession_access": access} for access in ("read", "write"))


class Base(DeclarativeBase):
    """The tables of these tests."""


class User(Base):
    """Somebody with a name of their own."""

    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String, unique=True)


IDS = select(User.id).order_by(User.id)
NAMES = select(User.name).order_by(User.id)


async def users(make: Make, **kw: Any) -> QueuedAsyncEngine:
    """An engine with ten users, n1 to n10."""
    engine = make(**kw)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(insert(User), [{"name": f"n{n}"} for n in range(1, 11)])
    return engine


# Streams.


@pytest.mark.parametrize("options", [READ, WRITE], ids=["reader", "writer"])
async def test_partitions_and_yield_per(make: Make, options: dict[str, str]) -> None:
    """Rows come in the portions that were asked for."""
    engine = await users(make)
    async with engine.connect() as connection:
        result = await connection.stream(IDS, execution_options=options)
        assert [len(part) async for part in result.partitions(4)] == [4, 4, 2]
        result = await connection.stream(IDS, execution_options={"yield_per": 3})
        assert [len(part) async for part in result.scalars().partitions()] == [3, 3, 3, 1]


async def test_update_in_the_loop(make: Make) -> None:
    """What is streamed may be changed meanwhile in the same session."""
    engine = await users(make)
    async with AsyncSession(engine) as session:
        stream = await session.stream_scalars(
            select(User).order_by(User.id), execution_options={"yield_per": 2}
        )
        async for user in stream:
            user.name = f"u{user.id}"
            await session.flush()
        await session.commit()
        assert (await session.scalars(NAMES)).all() == [f"u{n}" for n in range(1, 11)]


@pytest.mark.parametrize("options", [READ, WRITE], ids=["reader", "writer"])
async def test_stream_past_a_commit(make: Make, options: dict[str, str]) -> None:
    """A commit in the middle leaves the rest of the stream to be read."""
    engine = await users(make)
    async with engine.connect() as connection:
        result = await connection.stream(IDS, execution_options={**options, "yield_per": 2})
        seen = []
        async for (each,) in result:
            seen.append(each)
            if each == 3:
                await connection.commit()
        assert seen == list(range(1, 11))


async def test_stream_cut_off_by_a_rollback_says_so(make: Make) -> None:
    """Behind a write a rollback ends the stream: with an error, not as if it were complete."""
    engine = await users(make)
    async with engine.connect() as connection:
        await connection.execute(insert(User), {"name": "undone"})
        result = await connection.stream(IDS, execution_options={**WRITE, "yield_per": 2})
        assert (await result.fetchmany(2))[0] == (1,)
        await connection.rollback()
        with pytest.raises(InterfaceError, match="remaining rows of this stream were lost"):
            await result.all()


@pytest.mark.parametrize("options", [{}, READ, WRITE], ids=["auto", "reader", "writer"])
async def test_stream_past_a_rollback(make: Make, options: dict[str, str]) -> None:
    """Nothing was written, so what is streamed is not undone: the rest can be read."""
    engine = await users(make)
    async with engine.connect() as connection:
        result = await connection.stream(IDS, execution_options={**options, "yield_per": 2})
        assert (await result.fetchmany(2))[0] == (1,)
        await connection.rollback()
        assert len(await result.all()) == 8
        await connection.execute(delete(User))
        await connection.commit()
    assert engine.stats().in_use == 0


async def test_stream_past_transactions_without_a_connection(make: Make) -> None:
    """The connection of the stream is used again, rather than waited for."""
    engine = await users(make, pool_size=1, max_overflow=0, pool_timeout=0.1)
    async with engine.execution_options(**READ).connect() as connection:
        result = await connection.stream(IDS, execution_options={"yield_per": 2})
        assert (await result.fetchmany(2))[0] == (1,)
        await connection.rollback()
        await (await connection.begin_nested()).rollback()  # it is never sent
        await connection.rollback()
        assert len((await connection.execute(NAMES)).all()) == 10
        assert len(await result.all()) == 8
    assert engine.stats().in_use == 0


async def test_two_streams_at_once(make: Make) -> None:
    """Streams of one connection do not disturb one another."""
    engine = await users(make)
    async with engine.connect() as connection:
        one, other = await connection.stream(IDS), await connection.stream(NAMES)
        for n in range(1, 4):
            assert (await one.fetchone(), await other.fetchone()) == ((n,), (f"n{n}",))
        await one.close()
        assert len(await other.all()) == 7


async def test_a_stream_left_open_holds_nothing_after_close(make: Make) -> None:
    """Closing the session closes its streams; the next one may write."""
    engine = await users(make, pool_size=1, max_overflow=0, pool_timeout=0.1)
    for options in (READ, WRITE):
        async with AsyncSession(engine) as session:
            result = await session.stream(IDS, execution_options={**options, "yield_per": 2})
            await result.fetchone()
    async with engine.begin() as connection:
        await connection.execute(delete(User))
    assert engine.stats().holder is None


async def test_stream_of_insert_returning(make: Make) -> None:
    """INSERT ... RETURNING can be streamed, and is committed as a whole."""
    engine = await users(make)
    async with engine.connect() as connection:
        rows = await connection.stream(
            text("INSERT INTO users (name) VALUES ('a'), ('b') RETURNING name")
        )
        assert [name async for name in rows.scalars()] == ["a", "b"]
        await connection.commit()
        assert await connection.scalar(select(func.count()).select_from(User)) == 12


# Results.


async def test_text_returning(make: Make) -> None:
    """RETURNING in text yields its rows, and the transaction counts as one that wrote."""
    engine = await users(make)
    commits = engine.stats().commits
    async with engine.begin() as connection:
        sql = "INSERT INTO users (name) VALUES (:n) RETURNING id"
        assert (await connection.execute(text(sql), {"n": "r"})).all() == [(11,)]
        sql = "UPDATE users SET name = 'w' || id WHERE id < 3 RETURNING name"
        assert (await connection.scalars(text(sql))).all() == ["w1", "w2"]
        sql = "WITH x AS (SELECT 'cte' AS n) INSERT INTO users (name) SELECT n FROM x"
        await connection.execute(text(sql))
    assert engine.stats().commits == commits + 1


async def test_executemany_and_insertmanyvalues(make: Make) -> None:
    """Many rows at once, with and without RETURNING, keep order and row counts."""
    engine = await users(make, insertmanyvalues_page_size=7)
    async with AsyncSession(engine) as session:
        added = [User(name=f"m{n}") for n in range(30)]
        session.add_all(added)
        await session.flush()
        assert [user.id for user in added] == list(range(11, 41))
        ordered = insert(User).returning(User.name, sort_by_parameter_order=True)
        names = [f"o{n}" for n in range(20)]
        assert (await session.scalars(ordered, [{"name": n} for n in names])).all() == names
        await session.commit()
    async with engine.begin() as connection:
        table: Any = User.__table__
        change = update(table).where(table.c.id == bindparam("i")).values(name=bindparam("n"))
        result = await connection.execute(change, [{"i": 1, "n": "A"}, {"i": 2, "n": "B"}])
        assert result.rowcount == 2
        result = await connection.execute(insert(table), [{"name": f"z{n}"} for n in range(5)])
        assert result.rowcount == 5


async def test_upsert(make: Make) -> None:
    """SQLite's ON CONFLICT works, with RETURNING and without."""
    engine = await users(make)
    async with AsyncSession(engine) as session:
        statement = upsert(User).values([{"name": "n1"}, {"name": "new"}])
        statement = statement.on_conflict_do_update(
            index_elements=["name"], set_={"name": statement.excluded.name + "!"}
        )
        assert (await session.scalars(statement.returning(User.name))).all() == ["n1!", "new"]
        ignored: Any = await session.execute(
            upsert(User).values(name="n2").on_conflict_do_nothing()
        )
        assert ignored.rowcount == 0
        await session.commit()


async def test_exec_driver_sql(make: Make) -> None:
    """Driver SQL takes tuples, mappings and lists of tuples; two statements at once are refused."""
    engine = await users(make)
    async with engine.begin() as connection:
        run = connection.exec_driver_sql
        assert (await run("SELECT name FROM users WHERE id=?", (1,))).scalar() == "n1"
        assert (await run("SELECT name FROM users WHERE id=:i", {"i": 2})).scalar() == "n2"
        result = await run("INSERT INTO users (name) VALUES (?)", [("h",), ("i",)])
        assert result.rowcount == 2
        result = await run("INSERT INTO users (name) VALUES (?)", ("j",))
        assert (result.lastrowid, result.rowcount) == (13, 1)
        several = (ProgrammingError, sqlite3.Warning)  # the second on Python 3.10
        with pytest.raises(several, match="one statement at a time"):
            await run("SELECT 1; SELECT 2")


async def test_what_a_result_tells(make: Make) -> None:
    """Row counts, keys of inserted rows, descriptions and SQLite's own functions agree."""
    engine = await users(make)
    async with engine.begin() as connection:
        result = await connection.execute(insert(User).values(name="x"))
        assert result.inserted_primary_key == (11,)
        assert (result.lastrowid, result.rowcount) == (11, 1)
        assert (await connection.execute(text("SELECT last_insert_rowid()"))).scalar() == 11
        assert (await connection.execute(delete(User).where(User.id > 8))).rowcount == 3
        assert (await connection.execute(text("SELECT changes()"))).scalar() == 3
        result = await connection.execute(select(User.id, User.name).where(User.id > 99))
        assert list(result.keys()) == ["id", "name"]
        assert result.all() == []


async def test_a_cursor_by_hand(make: Make) -> None:
    """A cursor from run_sync behaves as the DBAPI says."""
    engine = await users(make)

    def by_hand(connection: Any) -> None:
        cursor = connection.connection.cursor()
        cursor.executemany("INSERT INTO users (name) VALUES (?)", [("p",), ("q",)])
        assert cursor.rowcount == 2
        cursor.execute("SELECT id FROM users ORDER BY id")
        assert cursor.fetchmany(3) == [(1,), (2,), (3,)]
        assert cursor.fetchone() == (4,)
        assert len(cursor.fetchall()) == 8
        assert cursor.fetchone() is None
        cursor.arraysize = 2
        cursor.execute("SELECT id FROM users ORDER BY id")
        assert len(cursor.fetchmany()) == 2
        assert len(list(cursor)) == 10
        assert cursor.description[0][0] == "id"
        cursor.execute("UPDATE users SET name = name || 'x' WHERE id < 3")
        assert (cursor.rowcount, cursor.description) == (2, None)
        cursor.close()
        connection.connection.rollback()

    async with engine.connect() as connection:
        await connection.run_sync(by_hand)
    async with engine.connect() as connection:
        assert len((await connection.execute(IDS)).all()) == 10
